"""Records in, results out, in input order: what drives a generator over an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record, RecordError, outcome_of
from hfpipe.errors import HFPipeError
from hfpipe.types import Completion, TextRequest

# Answers requests as they are pulled, in the order in which they end. None is: nothing for now.
Answers = Callable[[Iterable[TextRequest | None]], Iterator[Completion]]

# How many records, from the oldest unfinished one on, may be in flight or wait for it: a long answer is not to hold up
# the engine, and memory is to be bounded.
AHEAD = 4096

# The exit code of a batch that is finished, with failed records.
RECORDS_FAILED = 3


@dataclass
class Tally:
    """What a run has done so far. `errors` counts the failed by the type of their error."""

    records: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def count(self, outcome: Completion | RecordError) -> None:
        self.records += 1
        if isinstance(outcome, RecordError):
            self.errors[outcome.type] += 1
        elif outcome.usage:
            self.prompt_tokens += outcome.usage.prompt_tokens
            self.completion_tokens += outcome.usage.completion_tokens


class TooManyErrors(HFPipeError):
    """More records failed than max_errors allows."""

    exit_code = RECORDS_FAILED


def results(
    lines: Iterable[Line | None],
    answers: Answers,
    prompts: Prompts,
    form: Format,
    tally: Tally,
    *,
    max_errors: int | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The lines of the output, in the order of the input, each as soon as it and all before it are ready.

    None among the `lines` means that none is ready, as in Backend.stream. What is wrong with one record is its result,
    and the others are answered. So are those before a place at which the input cannot be read, before that error is
    raised. Raises TooManyErrors once more than `max_errors` have failed.
    """
    admission = _Admission(lines, prompts, form)
    waiting: dict[int, bytes] = {}
    for completion in answers(admission):
        position = int(completion.id)
        record, error = admission.flying.pop(position)
        outcome = error or outcome_of(completion)
        tally.count(outcome)
        waiting[position] = form.result_line(record, outcome)
        while (line := waiting.pop(admission.written, None)) is not None:
            admission.written += 1
            yield line
        on_progress()
        if max_errors is not None and tally.failed > max_errors:
            raise TooManyErrors(
                f"{tally.failed:,} records failed ({by_type(tally.errors)}), and --max-errors is {max_errors}."
            )
    if admission.failure:
        raise admission.failure


def by_type(errors: Counter[str]) -> str:
    """How many there are of each, the most first."""
    return ", ".join(f"{count:,} {word}" for word, count in errors.most_common())


class _Admission:
    """Requests as the engine has room for them, each with its position (from 0) as its id: an iterator that gives None
    while too many results wait, or no line is ready.

    `flying` are the records that have no result, `written` counts those whose results are out, and `failure` is what
    ended the input. A record that cannot be asked goes in as an empty prompt, which comes back at once: so its result,
    too, is made when there is room for it.
    """

    def __init__(self, lines: Iterable[Line | None], prompts: Prompts, form: Format) -> None:
        self.flying: dict[int, tuple[Record, RecordError | None]] = {}
        self.written = 0
        self.failure: HFPipeError | None = None
        self._lines = iter(lines)
        self._prompts = prompts
        self._form = form
        self._position = 0

    def __iter__(self) -> Iterator[TextRequest | None]:
        return self

    def __next__(self) -> TextRequest | None:
        if self._position >= self.written + AHEAD:
            return None
        try:
            line = next(self._lines)
        except HFPipeError as failure:
            self.failure = failure
            raise StopIteration from failure
        if line is None:
            return None
        record = self._form.read_record(line)
        position, self._position = self._position, self._position + 1
        request, error = TextRequest(str(position), ""), record.error
        if error is None:
            try:
                request = self._prompts.request(request.id, record)
            except HFPipeError as problem:
                error = RecordError.of(problem)
        self.flying[position] = record, error
        return request
