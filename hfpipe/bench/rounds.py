"""Round after round over all candidates, A B C A B C: what changes on the machine meanwhile changes for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.tasks import Answers, Start
from hfpipe.errors import HFPipeError
from hfpipe.types import Reporter

_TASK = "Measuring"


def measure(
    given: Sequence[Candidate],
    workload: Workload,
    repeats: int,
    reporter: Reporter,
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
) -> None:
    """Add the samples of `repeats` rounds to the rows of the candidates.

    One that fails gets its `error`, and is left out from then on. `prompts` are the user's own, by the name of the row.
    """
    steps = [
        (number, candidate, size)
        for number in range(repeats)
        for candidate in given
        for size in (0, *sorted({1, *workload.batches}))
    ]
    for done, (number, candidate, size) in enumerate(steps):
        reporter.progress(_TASK, done, len(steps), "steps")
        if candidate.row.error is not None:
            continue
        own = prompts[candidate.row.name] if prompts else None
        task = Answers(workload, size, own) if size else Start()
        try:
            candidate.row.samples.append(task.measure(candidate, number, reporter))
        except HFPipeError as error:
            candidate.row.error = error.message
    reporter.progress(_TASK, len(steps), len(steps), "steps")
