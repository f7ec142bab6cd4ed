"""What moves on a terminal's stderr: bars and a spinner. Imported when it is first needed, since Rich takes 0.1 s."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """The cursor is never hidden: a process that is killed could not show it again."""
        return False


class Display:
    """One place at the bottom of the terminal: bars where there are any, else the spinner, else nothing.

    Threads may share it. Texts are shown as they are, without Rich's markup and emoji names.
    """

    def __init__(self) -> None:
        # Reentrant: Ctrl-C may come to a thread that holds it.
        self._lock = threading.RLock()
        self._console = _Console(stderr=True)
        # On a narrow terminal the description is cut, and the numbers are not.
        cut = Column(ratio=2, no_wrap=True, overflow="ellipsis")
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=cut),
            BarColumn(None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            transient=True,
            # A step may take longer than the usual half minute.
            speed_estimate_period=3600,
        )
        spinner = TextColumn("{task.description}", markup=False)
        self._spinner = Progress(
            SpinnerColumn("line"), spinner, TimeElapsedColumn(), console=self._console, transient=True
        )
        self._shown: Progress | None = None
        self._closed = False

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def spin(self, text: str | None) -> None:
        """A spinner with `text` and a clock, or none, in place of what was there: a bar may be left unfinished."""
        with self._lock:
            for shown in (self._bars, self._spinner):
                for task in shown.task_ids:
                    shown.remove_task(task)
            if text is not None:
                self._spinner.add_task(text, total=None)
            self._redraw()

    def progress(self, name: str, done: int, total: int | None, description: str, amount: str) -> None:
        """One bar for each name; done == total ends it."""
        with self._lock:
            task = next((one.id for one in self._bars.tasks if one.fields["name"] == name), None)
            if task is None:
                task = self._bars.add_task(description, total=total, name=name, amount=amount)
            self._bars.update(task, completed=done, total=total, description=description, amount=amount)
            if done == total:
                self._bars.remove_task(task)
            self._redraw()

    def close(self) -> None:
        """Clear it for good: what a thread reports later is not drawn."""
        with self._lock:
            self._closed = True
            self._redraw()

    def _redraw(self) -> None:
        shown = next((one for one in (self._bars, self._spinner) if one.tasks and not self._closed), None)
        if shown is not self._shown:
            if self._shown:
                self._shown.stop()
            self._shown = shown
            if shown:
                shown.start()


DISPLAY = Display()
