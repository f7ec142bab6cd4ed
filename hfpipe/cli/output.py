"""The one place that prints: answers to stdout, talk to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfpipe.errors import HFPipeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class OutputClosed(Exception):
    """Whoever read stdout has gone, as `head` does when it has enough. Not an error."""


class Answer:
    """stdout, for model text: as it is into a pipe or file; on a terminal control characters are shown, not obeyed.

    It takes the file descriptor for itself and leaves stderr in its place: what a library prints to stdout cannot get
    into an answer.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.dup(1)
        self._terminal = os.isatty(self._file)
        os.dup2(2, 1)

    def write(self, text: str) -> None:
        """All of `text`, at once. Raises OutputClosed where nobody reads it any more."""
        if self._terminal:
            text = shown(text)
        data = memoryview(text.encode("utf-8", "replace"))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BrokenPipeError as error:
            raise OutputClosed from error
        except OSError as error:
            raise HFPipeError(f"Cannot write the answer: {error.strerror}.") from error

    def write_json(self, value: Mapping[str, Any]) -> None:
        self.write(json.dumps(value, ensure_ascii=False) + "\n")


def shown(text: str) -> str:
    r"""`text` with its control characters, but for newline and tab, written out as \x1b and the like."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class Talk:
    """stderr: notes and progress, on a terminal alone, or with `verbose` anywhere; errors always."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.verbose = verbose
        self._speaks = not quiet and (verbose or sys.stderr.isatty())
        self._draws = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._bars: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """A Reporter's note, in one dim line."""
        if self._speaks:
            _console().print(shown(text), style="dim", markup=False, highlight=False)

    def progress(self, task: str, done: int, total: int | None) -> None:
        """A Reporter's progress, as one bar a task."""
        if not self._draws:
            return
        bars = self._progress or self._start_progress()
        if task not in self._bars:
            self._bars[task] = bars.add_task(shown(task), total=total)
        bars.update(self._bars[task], completed=done, total=total)
        if done == total:
            bars.remove_task(self._bars.pop(task))
        if not self._bars:
            self.stop_progress()

    def stop_progress(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
            self._bars.clear()

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner while something slow goes on."""
        if not self._draws or self._progress:
            yield
            return
        with _console().status(shown(text)):
            yield

    def say(self, text: str) -> None:
        """What the user asked to see on stderr."""
        text = shown(text) if sys.stderr.isatty() else text
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def table(self, rows: Mapping[str, str]) -> None:
        """Names and values in two columns."""
        width = max(map(len, rows))
        self.say("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))

    def _start_progress(self) -> Progress:
        from rich import progress

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TimeRemainingColumn(),
            console=_console(),
            transient=True,
        )
        self._progress.start()
        return self._progress


def data(text: str) -> None:
    """A line of stdout that is no model text."""
    sys.stdout.write(text + "\n")


def error(problem: HFPipeError) -> None:
    """One line that says what is wrong, one that says what to do."""
    line = f"Error: {problem.message}" + (f"\n{problem.hint}" if problem.hint else "")
    sys.stderr.write(shown(line) + "\n")
    sys.stderr.flush()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)
