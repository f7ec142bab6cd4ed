"""The reporter that keeps what it is told."""

from hfpipe.types import Silent


class Recorder(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[list[object]] = []
        self.stages: list[str | None] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, *step: object) -> None:
        self.steps.append([*step])

    def stage(self, text: str | None) -> None:
        self.stages.append(text)
