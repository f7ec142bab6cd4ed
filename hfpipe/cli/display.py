"""What moves on a terminal's stderr: bars and a spinner. Imported when it is first needed, since Rich takes 0.1 s."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from hfpipe.types import Unit

if TYPE_CHECKING:
    from rich.console import RenderableType


# A little of the bar, 100%, 0:00:00, and the gaps between them.
_BESIDE = 4 + 4 + 7 + 3


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """The cursor is never hidden: a process that is killed could not show it again."""
        return False


class _Amount(DownloadColumn):
    """How much of a task is done: bytes of bytes, records of records, or a share."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return super().render(task) if unit == "bytes" else _COLUMNS[unit].render(task)


class _Description(ProgressColumn):
    """What a task is. For steps it is cut on a narrow terminal, where Rich would cut all columns."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        text = Text(task.description)
        if task.fields["unit"] == "steps":
            text.truncate(max(8, self._console.width - _BESIDE), overflow="ellipsis")
        return text


class _Remaining(TimeRemainingColumn):
    """The time that is left. Rich looks at the last half minute, and a step may take longer."""

    def render(self, task: Task) -> Text:
        if task.fields["unit"] != "steps" or not task.completed or task.total is None:
            return super().render(task)
        now, last = time.monotonic(), task.fields["last"]
        left = (last - task.fields["begun"]) / task.completed * (task.total - task.completed) - (now - last)
        minutes, seconds = divmod(max(0, round(left)), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}", style="progress.remaining")


_COLUMNS: dict[str, TaskProgressColumn | MofNCompleteColumn] = {
    "steps": TaskProgressColumn(),
    "records": MofNCompleteColumn(),
}


class Display:
    """One place at the bottom of the terminal: bars where there are any, else the spinner, else nothing.

    Threads may share it. Texts are shown as they are, without Rich's markup and emoji names.
    """

    def __init__(self) -> None:
        # Reentrant: Ctrl-C may come to a thread that holds it.
        self._lock = threading.RLock()
        self._console = _Console(stderr=True)
        self._bars = Progress(
            _Description(self._console),
            BarColumn(),
            _Amount(table_column=Column(min_width=len("100%"), no_wrap=True)),
            _Remaining(table_column=Column(min_width=len("0:00:00"), no_wrap=True)),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._spinner: Spinner | None = None
        # The name of a stage, and when it began.
        self._clock: tuple[str, float] | None = None
        self._live: Live | None = None
        self._closed = False

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def spin(self, text: str | None) -> None:
        """Show a spinner with `text` from now on, or none."""
        with self._lock:
            self._spinner = None if text is None else Spinner("line", Text(text))
            self._clock = None
            self._redraw()

    def stage(self, text: str | None) -> None:
        """A spinner with `text` and a clock, in place of the bars that an earlier stage may have left unfinished."""
        with self._lock:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
            self.spin(text)
            self._clock = (text, time.monotonic()) if text else None

    def progress(
        self, task: str, done: int, total: int | None, unit: Unit = "bytes", description: str | None = None
    ) -> None:
        """One bar a task, described by its name or otherwise; done == total ends it."""
        with self._lock:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, unit=unit, begun=time.monotonic())
            self._bars.update(
                self._tasks[task], completed=done, total=total, description=description or task, last=time.monotonic()
            )
            if done == total:
                self._bars.remove_task(self._tasks.pop(task))
            self._redraw()

    def close(self) -> None:
        """Clear it for good: what a thread reports later is not drawn."""
        with self._lock:
            self._closed = True
            self._redraw()

    def _redraw(self) -> None:
        wanted = not self._closed and bool(self._tasks or self._spinner)
        if wanted and self._live is None:
            self._live = Live(console=self._console, get_renderable=self._picture, transient=True)
            self._live.start(refresh=True)
        elif not wanted and self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> RenderableType:
        if self._spinner and self._clock:
            text, begun = self._clock
            self._spinner.update(text=Text(f"{text} ({time.monotonic() - begun:.0f} s)"))
        return self._bars if self._tasks else self._spinner or ""


DISPLAY = Display()
