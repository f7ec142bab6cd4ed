"""Round after round over all candidates: what changes on the machine meanwhile changes for all of them.

Every other round goes backwards, A B C and then C B A: on a machine that steadily slows down, the first of each round
would seem faster than the last. Each measurement has a process of its own, which is told what to do as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from hfpipe.backends.base import vocabulary_size
from hfpipe.batch.records import Record
from hfpipe.bench.candidates import QUESTION, Candidate, check_room, reason
from hfpipe.bench.measure import BUSY, Prompt, Task
from hfpipe.bench.report import Sample
from hfpipe.bench.spec import Spec
from hfpipe.errors import ContextLengthError, HFPipeError, MissingVariable
from hfpipe.process import run_child
from hfpipe.text.templates import PromptTemplate, prompt_template
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from hfpipe.types import GenerationOptions, ModelSource, Reporter

# The number of the round that is not kept, and the size of the task that is a start.
_BEFORE, _START = -1, 0
# Hints that help here: other commands have other options.
_HINTS = {
    MissingVariable: 'A line needs a "prompt", a "question", or "messages".',
    ContextLengthError: "Use a smaller new_tokens (-g), or max_tokens in the line.",
}


@dataclass(frozen=True, slots=True)
class Rounds:
    """`after_each` is called as a round ends. With `verbose` each line that a measuring process writes is a note."""

    spec: Spec
    reporter: Reporter
    tokenized: Callable[[ModelSource], Sequence[Prompt] | None] = lambda _: None
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
        done, total = 0, sum(map(len, rounds))
        for number, steps in enumerate(rounds, _BEFORE):
            samples = []
            for candidate, size in steps:
                name = (
                    "first start" if number == _BEFORE else f"{_described(size)} ({number + 1} of {self.spec.repeats})"
                )
                self.reporter.progress("Measuring", done, total, "steps", f"{candidate.row.name}, {name}")
                sample = self._try(candidate, size, number)
                done += 1
                if sample and number != _BEFORE:
                    candidate.row.samples.append(sample)
                samples += [sample] if sample else []
            if number == _BEFORE:
                self._warn_if_busy(samples)
            else:
                self.after_each()
        self.reporter.progress("Measuring", total, total, "steps")

    def _try(self, candidate: Candidate, size: int, number: int) -> Sample | None:
        """None for one that has failed, which is then in its row."""
        if candidate.row.error is not None:
            return None
        try:
            return self._start(candidate, number) if size == _START else self._answers(candidate, size, number)
        except HFPipeError as error:
            candidate.row.error = reason(error)
            return None

    def _start(self, candidate: Candidate, number: int) -> Sample:
        """A process as `hfpipe run` from its start to its first token."""
        given = {
            "folder": str(candidate.source.folder.absolute()),
            "loading": asdict(replace(candidate.loading, batch_size=1)),
            "question": QUESTION,
        }
        return Sample("start", number, **self._child("hfpipe.cli.bench", f"Starting {candidate.row.name}", given))

    def _answers(self, candidate: Candidate, size: int, number: int) -> Sample:
        """The workload, `size` answers at once. The candidate's row gets what the engine says of itself, too."""
        source, work = candidate.source, self.spec.workload
        prompts = self.tokenized(candidate.source)
        task = Task(
            reference=candidate.row.name,
            folder=str(source.folder.absolute()),
            loading=asdict(replace(candidate.loading, batch_size=size)),
            batch=size,
            prompts=None if prompts is None else [astuple(one) for one in prompts],
            prompt_tokens=work.prompt_tokens,
            new_tokens=work.new_tokens,
            vocabulary=_vocabulary(candidate),
            # The same for all candidates, and others in each round.
            seed=f"round {number}",
            prefill=work.prefill,
            decode=work.decode,
        )
        found = self._child("hfpipe.bench.measure", f"Measuring {candidate.row.name}", asdict(task))
        if size == 1:
            engine = found["engine"]
            candidate.row.device, candidate.row.dtype = engine["device"], engine["dtype"]
            candidate.row.detail = engine["detail"]
        return Sample("single" if size == 1 else f"batch{size}", number, **found["sample"])

    def _child(self, module: str, what: str, given: dict[str, Any]) -> dict[str, Any]:
        reporter = self.reporter if self.verbose else None
        found: dict[str, Any] = run_child(module, given, what=what, reporter=reporter, verbose=self.verbose)
        return found

    def _warn_if_busy(self, samples: Sequence[Sample]) -> None:
        """While there is still time to wait for a quiet hour."""
        others = [one.others_cpu for one in samples if one.others_cpu is not None]
        if others and median(others) > BUSY:
            used = f"other processes use {median(others):.0%} of its processors"
            self.reporter.note(f"Warning: The machine is busy: {used}. Small differences will not be resolved.")


def _described(size: int) -> str:
    return "start" if size == _START else "one answer" if size == 1 else f"{size} at once"


def _vocabulary(candidate: Candidate) -> int:
    source = candidate.source
    known = vocabulary_size(source.config)
    return known or load_tokenizer(source.folder, trust_remote_code=candidate.loading.trust_remote_code).vocab_size


class TokenizedPrompts:
    """The user's own prompts for each model, as `hfpipe batch` puts them to it; tokenized once."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._made: dict[Path, list[Prompt]] = {}

    def __call__(self, source: ModelSource) -> list[Prompt] | None:
        """None where prompts are random. Raises HFPipeError, with its line, for one that does not fit the model's
        template or context."""
        if self._spec.prompts is None:
            return None
        if source.folder not in self._made:
            tokenizer = load_tokenizer(source.folder, trust_remote_code=self._spec.loading.trust_remote_code)
            options = GenerationOptions(max_tokens=self._spec.workload.new_tokens)
            template = prompt_template(tokenizer, source.reference)
            self._made[source.folder] = [
                _tokenized(one, source, template, options, tokenizer) for one in self._spec.prompts
            ]
        return self._made[source.folder]


def _tokenized(
    record: Record, source: ModelSource, template: PromptTemplate, options: GenerationOptions, tokenizer: Tokenizer
) -> Prompt:
    try:
        request = record.request(template, options)
        prompt = Prompt(tokenizer.encode(request.prompt, request.add_special_tokens), request.options.max_tokens or 0)
        check_room(source, len(prompt.token_ids) + prompt.new_tokens)
    except HFPipeError as error:
        hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), None)
        raise type(error)(f"Line {record.number} of the prompts: {error.message}", hint=hint) from error
    return prompt
