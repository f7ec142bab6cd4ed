"""The one place that prints: answers and data to stdout, notes, progress and errors to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hfpipe.errors import HFPipeError
from hfpipe.store import size_text
from hfpipe.types import Unit

if TYPE_CHECKING:
    from hfpipe.cli.display import Display

_SPINNER_AFTER_S = 0.4
_LINE_EVERY_S = 30.0
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class OutputClosed(Exception):
    """The reader of stdout has closed it, as `head` does when it has enough. Not an error."""


class Answer(AbstractContextManager["Answer"]):
    """stdout, for model text: unchanged into a pipe or file; on a terminal control characters are shown, not obeyed.

    It keeps the file descriptor for itself and puts stderr in its place, so that what a library prints to stdout cannot
    get into an answer. As a context manager it ends, on a terminal, the line of an answer that an error cut off.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.dup(1)
        self._terminal = os.isatty(self._file)
        self._last = "\n"
        os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._last != "\n":
            self.write("\n")

    def write(self, text: str) -> None:
        """Write all of `text` at once. Raises OutputClosed when its reader has closed it."""
        data = memoryview((shown(text) if self._terminal else text).encode("utf-8", "replace"))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BrokenPipeError as error:
            raise OutputClosed from error
        except OSError as error:
            raise HFPipeError(f"Cannot write the answer: {error.strerror}.") from error
        self._last = text[-1:] or self._last

    def write_json(self, value: Mapping[str, Any]) -> None:
        """Write one line that is valid JSON on a terminal too: JSON leaves some control characters as they are."""
        text = json.dumps(value, ensure_ascii=False)
        self.write(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def shown(text: str) -> str:
    r"""`text` with its control characters, but for newline and tab, written out as \x1b and the like."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class Terminal(AbstractContextManager["Terminal"]):
    """stderr: notes, stages and progress, on a terminal only, or with `verbose` anywhere; errors always.

    With `plain`, notes and stages are lines also where stderr is not a terminal. As a context manager it clears what
    moves at the end. Threads may share it.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, plain: bool = False) -> None:
        terminal = sys.stderr.isatty()
        self._speaks = (verbose or plain) and not quiet and not terminal
        self._draws = terminal and not quiet
        # What the libraries write would run into a spinner.
        self._moves = self._draws and not verbose
        self._stage: tuple[str, float] | None = None
        self._last_line = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.hold_still()

    @property
    def is_seen(self) -> bool:
        """Whether a person reads the notes, in a terminal."""
        return self._draws

    def hold_still(self) -> None:
        """Draw nothing that moves from now on."""
        self._moves = False
        clear()

    def note(self, text: str) -> None:
        """A Reporter's note, in one line."""
        if self._draws:
            self._display.note(shown(text))
        elif self._speaks:
            tell(shown(text))

    def progress(self, task: str, done: int, total: int | None, unit: Unit = "bytes", detail: str = "") -> None:
        """A Reporter's progress: a bar for each task; for steps and records a line now and then where nothing moves."""
        text = shown(detail if unit == "records" else f"{task}: {detail}" if detail else task)
        if self._moves:
            self._display.progress(task, done, total, text, _amount(done, total, unit))
        elif self._speaks and unit != "bytes" and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            tell(f"{_amount(done, total, unit)}  {text}")

    def stage(self, text: str | None) -> None:
        """A Reporter's stage: a spinner while it lasts, a line with its time once it has ended."""
        if self._stage:
            name, begun = self._stage
            self.note(f"{time.perf_counter() - begun:7.1f} s  {name}")
        self._stage = (text, time.perf_counter()) if text else None
        if self._moves:
            self._display.spin(shown(text) if text else None)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner while work lasts that turns out to be slow."""
        if not self._moves:
            yield
            return
        timer = threading.Timer(_SPINNER_AFTER_S, lambda: self._display.spin(shown(text)))
        timer.daemon = True
        # Where no thread can start, the work that needs one says so.
        with suppress(RuntimeError):
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if timer.ident:
                timer.join()
            if display := _drawn():
                display.spin(None)

    @property
    def _display(self) -> Display:
        from hfpipe.cli.display import DISPLAY

        return DISPLAY


def _amount(done: int, total: int | None, unit: Unit) -> str:
    if unit == "steps":
        return f"{done / total:4.0%}" if total else ""
    amounts = [size_text(n) if unit == "bytes" else f"{n:,}" for n in (done, total) if n is not None]
    return " of ".join(amounts) + (" records" if unit == "records" else "")


def _drawn() -> Display | None:
    """None where nothing was drawn yet: then its module was never imported."""
    return getattr(sys.modules.get("hfpipe.cli.display"), "DISPLAY", None)


def clear() -> None:
    """Remove what moves from the terminal, for good."""
    if display := _drawn():
        display.close()


def data(text: str) -> None:
    """Write a line of stdout that is not model text. Raises OutputClosed when its reader has closed it."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError as problem:
        raise OutputClosed from problem
    except OSError as problem:
        raise HFPipeError(f"Cannot write to stdout: {problem.strerror}.") from problem


def tell(text: str) -> None:
    """Write lines on stderr that the user asked for. That they cannot be written is not an error."""
    with suppress(OSError):
        sys.stderr.write((shown(text) if sys.stderr.isatty() else text) + "\n")
        sys.stderr.flush()


def columns(rows: Mapping[str, str]) -> str:
    """Names and values in two columns."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def error(problem: HFPipeError) -> None:
    """One line that says what is wrong, lines of details where there are any, one that says what to do."""
    lines = [f"Error: {problem.message}", *(f"  {line}" for line in problem.details), problem.hint]
    tell("\n".join(shown(line.replace("\n", " ")) for line in lines if line))
