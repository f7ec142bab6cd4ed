"""A report's pictures as the bytes of files."""

from __future__ import annotations

from hfpipe.bench.plots.data import circumstances, clean, models
from hfpipe.bench.plots.latency import latency
from hfpipe.bench.plots.sheet import saved, style, unknown_characters
from hfpipe.bench.plots.speeds import speeds
from hfpipe.bench.plots.tradeoff import tradeoff
from hfpipe.bench.report import Report

_BOXES = "A box stands for a character that no font of this machine has; FILE.svg and FILE.html show it where one has."


def draw(report: Report, kind: str) -> list[bytes]:
    """The picture of the choice, and that of the times between tokens where there are some; `kind` is png or svg."""
    with style():
        remarks = [_BOXES] if kind == "png" and unknown_characters(_texts(report)) else []
        figures = [tradeoff(report, remarks) or speeds(report, remarks), latency(report, remarks)]
        return [saved(figure, kind, f"hfpipe bench: {models(report)}") for figure in figures if figure]


def _texts(report: Report) -> str:
    names = "".join(clean(row.name) for row in report.configurations)
    return f"{names}{models(report)}{circumstances(report)}"
