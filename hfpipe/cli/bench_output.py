"""Where the report of a benchmark goes: to the terminal, into files, beside an earlier one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hfpipe.batch.disk import replace_file
from hfpipe.bench.plots import check_plot_path, plot
from hfpipe.bench.report import Report, read_report
from hfpipe.bench.summary import Comparison, advice, compare, summarize
from hfpipe.bench.text import csv_text, markdown
from hfpipe.cli.output import data, tell
from hfpipe.errors import HFPipeError, UsageError

_WIDEST = 160
_NO_TERMINAL = 80
_TIMED = "What is timed, from token ids to token ids, after a warm-up of the same shape:"


@dataclass
class Wanted:
    """What the user wants of a report: `form` is tables, markdown or csv. What can be checked before is checked here.

    `max_loss` and `fail_slower` are shares: 0.02 is 2 %.
    """

    max_loss: float
    json: Path | None
    form: str
    plot: Path | None
    baseline: Path | None
    fail_slower: float | None
    quiet: bool
    _earlier: Report | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.plot:
            check_plot_path(self.plot)
        if self.json and not self.json.absolute().parent.is_dir():
            raise UsageError(f"{self.json} has no folder: {self.json.parent} is none.", hint="Make it first.")
        if self.baseline:
            self._earlier = read_report(self.baseline)

    def show(self, report: Report) -> int:
        """Print the report, write its files, and give the exit code."""
        measured = [one for one in report.configurations if one.samples]
        if report.interrupted and not measured:
            return 1
        self._write_json(report)
        comparison = compare(report, self._earlier, self.fail_slower) if self._earlier else None
        self._print(report, comparison)
        if self.plot and measured:
            drawn = plot(report, self.plot)
            if not self.quiet:
                tell(f"Drawn: {', '.join(map(str, drawn))}")
        too_slow = comparison is not None and bool(comparison.too_slow)
        return 1 if too_slow or not measured else 0

    def _write_json(self, report: Report) -> None:
        if self.json is None:
            return
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n"
        try:
            replace_file(self.json, text.encode("utf-8", "replace"))
        except OSError as error:
            raise HFPipeError(f"Cannot write {self.json}: {error.strerror}.") from error

    def _print(self, report: Report, comparison: Comparison | None) -> None:
        summary, advised = summarize(report), advice(report, self.max_loss)
        if self.form == "markdown":
            data(markdown(summary, advised))
        elif self.form == "csv":
            data(csv_text(summary).rstrip("\n"))
        else:
            from hfpipe.cli import bench_report

            if not self.quiet:
                tell(f"{_TIMED}\n{bench_report.meanings(summary, width=_width())}\n")
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            data(bench_report.benchmark(summary, advised, width=_width(), colour=colour))
        if comparison:
            from hfpipe.cli import bench_report

            tell(bench_report.baseline(comparison, width=_width()))


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)


def read_text(path: Path) -> dict[str, str]:
    """The user's text, by the name of its file. Raises UsageError where it cannot be read."""
    try:
        return {path.name: path.read_text(encoding="utf-8")}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#x} at {error.start:,}."
        ) from error
