"""Round after round over all candidates: what changes on the machine meanwhile changes for all of them.

Every other round goes backwards, A B C and then C B A: on a machine that steadily slows down, the first of each round
would seem faster than the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from hfpipe.bench.candidates import Candidate, reason
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.noise import BUSY
from hfpipe.bench.pace import Pace
from hfpipe.bench.report import Sample
from hfpipe.bench.tasks import Answers, Start
from hfpipe.errors import HFPipeError
from hfpipe.types import Reporter

_TASK = "Measuring"
# The number of the round that is not kept.
_BEFORE = -1


@dataclass(frozen=True, slots=True)
class Rounds:
    """As many rounds as there are `repeats`. `prompts` gives the user's own for a candidate, None for random ones;
    `after_each` is called as a round ends. With `verbose` each line that a measuring process writes is a note."""

    workload: Workload
    repeats: int
    reporter: Reporter
    prompts: Callable[[Candidate], Sequence[Prompt] | None] = lambda _: None
    after_each: Callable[[], None] = lambda: None
    verbose: bool = False

    def measure(self, given: Sequence[Candidate]) -> None:
        """Add the samples of the rounds to the rows of the candidates.

        Before them each is started once, which is not kept: what stands on the disk and is compiled is then the same
        for all rounds. One that fails gets its `error`, and is left out from then on.
        """
        tasks = (0, *sorted({1, *self.workload.batches}))
        rounds = [[(candidate, 0) for candidate in given]]
        for number in range(self.repeats):
            order = given if number % 2 == 0 else given[::-1]
            rounds.append([(candidate, size) for candidate in order for size in tasks])
        pace = Pace([(candidate.row.name, size) for steps in rounds for candidate, size in steps])
        for number, steps in enumerate(rounds, _BEFORE):
            samples = []
            for candidate, size in steps:
                self._say(pace, f"{candidate.row.name}, {self._named(size, number)}")
                sample = self._measure(candidate, size, number)
                pace.step()
                if sample and number != _BEFORE:
                    candidate.row.samples.append(sample)
                samples += [sample] if sample else []
            if number == _BEFORE:
                self._say_whether_busy(samples)
            else:
                self.after_each()
        self._say(pace)

    def _measure(self, candidate: Candidate, size: int, number: int) -> Sample | None:
        """None for one that has failed, which is then in its row."""
        if candidate.row.error is not None:
            return None
        heard = self.reporter if self.verbose else None
        try:
            task = Answers(self.workload, size, self.prompts(candidate)) if size else Start()
            return task.measure(candidate, number, heard)
        except HFPipeError as error:
            candidate.row.error = reason(error)
            return None

    def _named(self, size: int, number: int) -> str:
        what = "its start" if not size else "one answer" if size == 1 else f"{size} at once"
        return f"{what} ({number + 1} of {self.repeats})" if number != _BEFORE else "a first start"

    def _say(self, pace: Pace, detail: str = "") -> None:
        self.reporter.progress(_TASK, pace.done, pace.total, "steps", detail)

    def _say_whether_busy(self, samples: Sequence[Sample]) -> None:
        """While there is still time to wait for a quiet hour."""
        others = [one.others_cpu for one in samples if one.others_cpu is not None]
        if others and median(others) > BUSY:
            used = f"other processes use {median(others):.0%} of its processors"
            self.reporter.note(f"Warning: The machine is busy: {used}. Differences may get lost in that.")
