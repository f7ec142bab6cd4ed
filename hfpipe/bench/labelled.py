"""Whose work it is that a reporter is told of, where several do the same one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from hfpipe.types import Reporter, Unit


@dataclass(frozen=True, slots=True)
class Labelled:
    """A reporter that begins all that it passes on with a label."""

    reporter: Reporter
    label: str

    def note(self, text: str) -> None:
        self.reporter.note(f"{self.label}: {text}")

    def progress(self, task: str, done: int, total: int | None, unit: Unit = "bytes", detail: str = "") -> None:
        self.reporter.progress(f"{self.label}: {task}", done, total, unit, detail)

    def stage(self, text: str | None) -> None:
        self.reporter.stage(f"{self.label}: {text}" if text else None)
