"""Round after round over all candidates: what changes on the machine meanwhile changes for all of them.

Every other round goes backwards, A B C and then C B A: on a machine that steadily slows down, the first of each round
would seem faster than the last. Each measurement has a process of its own, which is told what to do as JSON.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from hfpipe.backends import UNTUNED
from hfpipe.backends.base import vocabulary_size
from hfpipe.bench import hosted
from hfpipe.bench.candidates import QUESTION, Candidate, Prompt, reason
from hfpipe.bench.measure import BUSY
from hfpipe.bench.report import Sample
from hfpipe.bench.spec import Spec
from hfpipe.errors import HFPipeError
from hfpipe.process import run_child
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import ModelSource, Reporter

# The number of the round that is not kept, and the size of the task that is a start.
_BEFORE, _START = -1, 0
# Of the answers before the measured ones: as much as makes an engine compile and allocate for a shape.
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Rounds:
    """`after_each` is called as a round ends. With `verbose` each line that a measuring process writes is a note."""

    spec: Spec
    reporter: Reporter
    after_each: Callable[[], None] = lambda: None
    verbose: bool = False

    def measure(self, given: Sequence[Candidate]) -> None:
        """Add the samples of all rounds to the rows of the candidates.

        Before them each is started once, which is not kept: what is on the disk and compiled is then the same for all
        rounds. One that fails gets its `error`, and is left out afterwards.
        """
        sizes = (_START, *sorted({1, *self.spec.workload.batches}))
        rounds = [[(candidate, _START) for candidate in given]]
        for number in range(self.spec.repeats):
            order = given if number % 2 == 0 else given[::-1]
            rounds.append([(candidate, size) for candidate in order for size in sizes])
        done, total, others = 0, sum(map(len, rounds)), list[float]()
        for number, steps in enumerate(rounds, _BEFORE):
            for candidate, size in steps:
                what = "start" if size == _START else "one answer" if size == 1 else f"{size} at once"
                name = "first start" if number == _BEFORE else f"{what} ({number + 1} of {self.spec.repeats})"
                self.reporter.progress("Measuring", done, total, "steps", f"{candidate.row.name}, {name}")
                done += 1
                if candidate.row.error is not None:
                    continue
                try:
                    sample = (
                        self._start(candidate, number) if size == _START else self._answers(candidate, size, number)
                    )
                except HFPipeError as error:
                    candidate.row.error = reason(error)
                else:
                    if number == _BEFORE:
                        others.append(sample.others_cpu or 0)
                    else:
                        candidate.row.samples.append(sample)
            if number != _BEFORE:
                self.after_each()
            elif others and median(others) > BUSY:
                # While there is still time to wait for a quiet hour.
                used = f"other processes use {median(others):.0%} of its processors"
                self.reporter.note(f"Warning: The machine is busy: {used}. Small differences will not be resolved.")
        self.reporter.progress("Measuring", total, total, "steps")

    def _start(self, candidate: Candidate, number: int) -> Sample:
        """A process as `hfpipe run` from its start to its first token."""
        return Sample("start", number, **self._child("hfpipe.cli.bench", "Starting", candidate, 1, question=QUESTION))

    def _answers(self, candidate: Candidate, size: int, number: int) -> Sample:
        """The workload, `size` answers at once. The candidate's row gets what the engine says of itself, too."""
        source, work = candidate.source, self.spec.workload
        module, draw = "hfpipe.bench.hosted", partial(hosted.drawn)
        if isinstance(source, ModelSource):
            trusted = candidate.loading.trust_remote_code
            known = vocabulary_size(source.config)
            vocabulary = known or load_tokenizer(source.folder, trust_remote_code=trusted).vocab_size
            module, draw = "hfpipe.bench.measure", partial(drawn, vocabulary=vocabulary)
        # The same for all candidates, and others in each round. Decoding is measured alone, as llama-bench does it.
        shape = (work.prompt_tokens or 1, work.new_tokens)
        asked = candidate.prompts or draw(f"round {number}", shapes=[shape] * size)
        short = [] if candidate.prompts or size > 1 else draw(f"round {number}, short", shapes=[(1, work.new_tokens)])
        shapes = [(len(token_ids), min(new_tokens, _WARM_UP_TOKENS)) for token_ids, new_tokens in (*asked, *short)]
        warm_up = draw("warm-up", shapes=shapes if size == 1 else shapes[:size])
        prompts: dict[str, Any] = {"warm_up": warm_up, "prompts": asked, "short": short}
        room = (source.context_length or math.inf) - work.new_tokens
        if size == 1 and (depths := [depth for depth in work.depths if depth <= room]):
            deep = draw(f"round {number}, deep", shapes=[(depth, work.new_tokens) for depth in depths])
            prompts["deep"] = dict(zip(map(work.deep, depths), deep, strict=True))
        found = self._child(module, "Measuring", candidate, size, **prompts)
        names = {"prefill_tps": work.prefill, "decode_tps": work.decode, "batch_tps": f"batch{size}_tps"}
        sample = found["sample"]
        sample["values"] = {names.get(name, name): value for name, value in sample["values"].items()}
        row, engine = candidate.row, found["engine"]
        if size == 1:
            row.device, row.dtype, row.detail = engine["device"], engine["dtype"], engine["detail"]
        return Sample("single" if size == 1 else f"batch{size}", number, **sample)

    def _child(self, module: str, what: str, candidate: Candidate, size: int, **more: Any) -> dict[str, Any]:
        source = candidate.source
        given = {
            "reference": candidate.row.name,
            "folder": str(source.folder.absolute()) if isinstance(source, ModelSource) else source.reference,
            "loading": asdict(
                replace(candidate.loading, batch_size=size, prompt_tokens=self.spec.workload.prompt_tokens)
            ),
            "batch": size,
            **more,
        }
        reporter = self.reporter if self.verbose else None
        what = f"{what} {candidate.row.name}"
        return dict(run_child(module, given, what=what, reporter=reporter, verbose=self.verbose, environment=UNTUNED))


def tune_each(
    given: Sequence[Candidate], reporter: Reporter, warn: Callable[[str], None], *, verbose: bool = False
) -> None:
    """Keep for this machine what settings run each OpenVINO model fastest on the CPU."""
    for one in given:
        device, source = one.loading.device or "cpu", one.source
        if isinstance(source, ModelSource) and source.format == "openvino" and device.lower() in ("-1", "cpu"):
            reporter.stage(f"Measuring settings of {one.row.name}")
            trust = one.loading.trust_remote_code
            arguments = {"folder": str(source.folder.absolute()), "reference": one.row.name, "trust_remote_code": trust}
            try:
                run_child(
                    "hfpipe.quality.tune_openvino",
                    arguments,
                    what=f"Measuring settings of {one.row.name}",
                    reporter=reporter,
                    verbose=verbose,
                    environment=UNTUNED,
                )
            except HFPipeError as error:
                warn(f"The settings of {one.row.name} were not measured: {error.message}")


def drawn(seed: str, vocabulary: int, shapes: Sequence[tuple[int, int]]) -> list[Prompt]:
    """Prompts of random token ids, so that no cache of prefixes knows them, the same for the same seed. The shape of
    one is its length, and how many tokens are to follow."""
    draw = random.Random(seed)
    return [(draw.choices(range(vocabulary), k=tokens), new_tokens) for tokens, new_tokens in shapes]
