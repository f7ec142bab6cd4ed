"""Where the report of a benchmark goes: to the terminal, into files, beside an earlier one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hfpipe.bench.advice import Advice, advice
from hfpipe.bench.comparison import Comparison, check_comparable, check_decidable, compare
from hfpipe.bench.files import check_output, check_place, write_file
from hfpipe.bench.plot import SUFFIXES, plot
from hfpipe.bench.report import Report, read_report
from hfpipe.bench.summary import summarize
from hfpipe.bench.text import csv_text, markdown, remarks
from hfpipe.cli.terminal import OutputClosed, data, error, tell
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.types import Reporter

_WIDEST = 160
_NO_TERMINAL = 80


@dataclass
class Wanted:
    """What the user wants of a `report`: `form` is tables, markdown or csv. What can be checked before anything is
    measured is checked as this is made.

    `max_loss` and `fail_slower` are shares: 0.02 is 2 %.
    """

    report: Report
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
            check_output("--plot", self.plot, SUFFIXES)
        if self.json:
            check_place(self.json)
        if self.baseline:
            self._earlier = read_report(self.baseline)
            check_comparable(self.report, self._earlier)
            if self.fail_slower is not None:
                check_decidable(self.report, self._earlier)

    def save(self, reporter: Reporter) -> None:
        """Write the JSON of what is measured as yet: a run that is killed has lost nothing of it."""
        if problem := self._try(self._write_json, self.json):
            reporter.note(f"Warning: {problem.message}")

    def show(self) -> int:
        """Write the report's files, print it, and give the exit code."""
        report = self.report
        if report.interrupted and not any(one.samples for one in report.configurations):
            return 1
        comparison = compare(report, self._earlier, self.fail_slower) if self._earlier else None
        advised = advice(report, self.max_loss)
        # First, and each by itself: what took hours to measure is not lost with a closed pipe, or with one bad place.
        drawn: list[Path] = []
        problems = [
            self._try(self._write_json, self.json),
            self._try(lambda path: drawn.extend(plot(report, path, advice=advised)), self.plot),
        ]
        # Who has read enough of the table is still told whether all went well.
        with suppress(OutputClosed):
            self._print(comparison, advised)
        for problem in filter(None, problems):
            error(problem)
        if drawn:
            self._tell(f"Drawn: {', '.join(map(str, drawn))}")
        sound = any(one.is_measured for one in report.configurations)
        return 0 if sound and not any(problems) and (comparison is None or comparison.passed) else 1

    def _try(self, write: Callable[[Path], None], path: Path | None) -> HFPipeError | None:
        try:
            if path:
                write(path)
        except HFPipeError as problem:
            return problem
        return None

    def _write_json(self, path: Path) -> None:
        text = json.dumps(self.report.as_dict(), ensure_ascii=False, indent=1) + "\n"
        write_file(path, text.encode("utf-8", "replace"))

    def _print(self, comparison: Comparison | None, advised: Advice) -> None:
        from hfpipe.cli import bench_report

        summary, width = summarize(self.report), _width()
        since = bench_report.baseline(comparison, width=width) if comparison else ""
        if self.form == "markdown":
            data(markdown(summary, advised))
            self._tell(since)
        elif self.form == "csv":
            data(csv_text(summary).rstrip("\n"))
            self._tell("\n".join([*remarks(summary, advised), since]))
        else:
            self._tell(bench_report.meanings(summary, width=width))
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            if since:
                data(f"{since}\n")
            data(bench_report.benchmark(summary, advised, width=width, colour=colour))

    def _tell(self, text: str) -> None:
        if text.strip() and not self.quiet:
            tell(text)


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)


def read_text(path: Path) -> dict[str, str]:
    """The user's text, by the name of its file. Raises UsageError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#x} at {error.start:,}."
        ) from error
    if not text.strip():
        raise UsageError(f"{path} is empty.")
    return {path.name: text}
