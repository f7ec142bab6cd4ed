"""How far a run is, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

# Steps are counted in these: tenths of a second.
_PER_SECOND = 10


class Pace:
    """Of steps that have a name and a size: one that is to come takes as long as those of its name and size took, or
    else those of its size, or else all."""

    def __init__(self, steps: Sequence[tuple[str, int]]) -> None:
        self._steps = steps
        self._taken: list[float] = []
        self._begun = time.perf_counter()

    def step(self) -> None:
        """One more has ended."""
        now = time.perf_counter()
        self._taken.append(now - self._begun)
        self._begun = now

    @property
    def done(self) -> int:
        """Tenths of seconds."""
        return round(_PER_SECOND * sum(self._taken))

    @property
    def total(self) -> int:
        """Tenths of seconds: more than `done` until the last step has ended."""
        rest = self._steps[len(self._taken) :]
        return self.done + (max(1, round(_PER_SECOND * sum(map(self._expected, rest)))) if rest else 0)

    def _expected(self, step: tuple[str, int]) -> float:
        ended = list(zip(self._steps, self._taken, strict=False))
        same = [seconds for one, seconds in ended if one == step]
        alike = [seconds for one, seconds in ended if one[1] == step[1]]
        return mean(same or alike or self._taken or [1.0])
