"""How far a batch is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.batch.lines import open_input, read_lines
from hfpipe.cli.startup import in_background
from hfpipe.cli.terminal import Terminal

if TYPE_CHECKING:
    from hfpipe.batch.runner import Tally

_EVERY_S = 0.1


class Progress:
    """Shows a tally, ten times a second at most. The records of `input` are counted in a thread, `stood` of them have
    their results already."""

    def __init__(self, talk: Terminal, tally: Tally, input: Path | None, stood: int) -> None:
        self._talk = talk
        self._tally = tally
        self._stood = stood
        self._total = in_background(lambda: _records(input)) if input else None
        self._begun = self._shown = time.perf_counter()

    def show(self) -> None:
        now = time.perf_counter()
        if now - self._shown < _EVERY_S:
            return
        self._shown = now
        rate = self._tally.completion_tokens / (now - self._begun)
        failed = f", {self._tally.failed:,} failed" if self._tally.failed else ""
        total = self._total.result() if self._total and self._total.done() else None
        self._talk.records(f"{rate:,.0f} tokens/s{failed}", self._stood + self._tally.records, total)


def _records(input: Path) -> int:
    with open_input(input) as stream:
        return sum(1 for _ in read_lines(stream))
