"""A report as pictures: --plot FILE.png, FILE.svg or FILE.html.

data.py      what the pictures show, and the Pareto front
labels.py    where labels stand
sheet.py     colours, type, a sheet with a title and notes
frame.py     the sheet of a report
axes.py      scales, and the front, of speed against loss
tradeoff.py  decode speed against loss of quality
latency.py   times between tokens
speeds.py    bars of speeds
draw.py      these as the bytes of files
markup.py    text, tables and pictures in HTML
page.py      a page with the pictures, the tables and the advice

This file says which files, and writes them; without matplotlib.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfpipe.bench.advice import Advice
from hfpipe.bench.files import check_place, write_file
from hfpipe.bench.report import Report
from hfpipe.errors import UsageError

SUFFIXES = (".png", ".svg", ".html")


def check_plot_path(path: Path) -> None:
    """Raises UsageError for a suffix that `plot` does not know, and for a place where nothing can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--plot {path} is of no kind that can be drawn.",
            hint=f"Its name has to end in one of {', '.join(SUFFIXES)}.",
        )
    check_place(path)


def plot(report: Report, path: Path, *, advice: Advice | None = None) -> list[Path]:
    """Draw a report. Returns the files, all of them written at the end, each beside its place and renamed into it.

    FILE.png and FILE.svg show decode speed against loss of quality, or speeds where there is no quality;
    FILE-latency.png and .svg the times between tokens, where there are some. FILE.html has both, the numbers and
    the advice.
    """
    check_plot_path(path)
    files = _drawn(report, path, advice)
    for file, data in files.items():
        write_file(file, data)
    return list(files)


def _drawn(report: Report, path: Path, advice: Advice | None) -> dict[Path, bytes]:
    with _quiet():
        # Half a second, and where matplotlib is new some seconds for its list of fonts.
        from hfpipe.bench.plots.draw import draw

        kind = path.suffix.lower()[1:]
        if kind == "html":
            from hfpipe.bench.plots.page import page

            return {path: page(report, draw(report, "svg"), advice).encode()}
        names = [path, path.with_name(f"{path.stem}-latency{path.suffix}")]
        return dict(zip(names, draw(report, kind), strict=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Matplotlib tells of fonts, caches and folders, which are no concern of a user; no window is opened."""
    logger = logging.getLogger("matplotlib")
    level, backend = logger.level, os.environ.get("MPLBACKEND")
    logger.setLevel(logging.CRITICAL + 1)
    os.environ["MPLBACKEND"] = "agg"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        del os.environ["MPLBACKEND"]
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
