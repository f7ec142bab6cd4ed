"""Round after round over all candidates: what changes on the machine meanwhile changes for all of them.

Every other round goes backwards, A B C and then C B A: on a machine that steadily slows down, the first of each round
would seem faster than the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hfpipe.bench.candidates import Candidate, reason
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.tasks import Answers, Start
from hfpipe.errors import HFPipeError
from hfpipe.types import Reporter

_TASK = "Measuring"
# The number of the round that is not kept.
_BEFORE = -1


def measure(
    given: Sequence[Candidate],
    workload: Workload,
    repeats: int,
    reporter: Reporter,
    prompts: Callable[[Candidate], Sequence[Prompt] | None] = lambda _: None,
) -> None:
    """Add the samples of `repeats` rounds to the rows of the candidates.

    Before them each is started once, which is not kept: what stands on the disk and is compiled is then the same for
    all rounds. One that fails gets its `error`, and is left out from then on. `prompts` gives the user's own for a
    candidate, None for random ones.
    """
    steps = [(_BEFORE, candidate, 0) for candidate in given]
    steps += [
        (number, candidate, size)
        for number in range(repeats)
        for candidate in (given if number % 2 == 0 else reversed(given))
        for size in (0, *sorted({1, *workload.batches}))
    ]
    for done, (number, candidate, size) in enumerate(steps):
        reporter.progress(_TASK, done, len(steps), "steps")
        if candidate.row.error is not None:
            continue
        try:
            task = Answers(workload, size, prompts(candidate)) if size else Start()
            sample = task.measure(candidate, number)
        except HFPipeError as error:
            candidate.row.error = reason(error)
        else:
            candidate.row.samples += [] if number == _BEFORE else [sample]
    reporter.progress(_TASK, len(steps), len(steps), "steps")
