"""Records in, results out: what drives a generator over a file of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record, RecordError
from hfpipe.batch.results import error_of
from hfpipe.batch.sequencer import Sequencer
from hfpipe.errors import HFPipeError
from hfpipe.types import Completion, TextRequest

# Answers requests as they are pulled, in the order in which they end. None is: nothing for now.
Answers = Callable[[Iterable[TextRequest | None]], Iterator[Completion]]

# How many results may wait for the oldest unfinished one: a long answer is not to hold up the engine.
AHEAD = 4096

# The exit code of a batch that is finished, with failed records.
RECORDS_FAILED = 3


@dataclass
class Tally:
    """What a run has done so far. `errors` counts the failed by the word of their error."""

    records: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def count(self, outcome: Completion | RecordError) -> None:
        self.records += 1
        if (error := error_of(outcome)) is not None:
            self.errors[error.type] += 1
        if isinstance(outcome, Completion) and outcome.usage:
            self.prompt_tokens += outcome.usage.prompt_tokens
            self.completion_tokens += outcome.usage.completion_tokens


class TooManyErrors(HFPipeError):
    """More records failed than --max-errors allows."""

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
    """The lines of the output, in the order of the input, each as soon as it and all before it are there.

    None among the `lines` is: none as yet, as in Backend.stream. What is wrong with one record is its result, and the
    others go on. Raises TooManyErrors once more than `max_errors` have failed, and an HFPipeError for what no record is
    to blame for.
    """
    ready = _Ready()
    sequencer = Sequencer(ready, AHEAD)
    admission = _Admission(lines, prompts, form, sequencer)
    for completion in answers(admission):
        position, record, outcome = admission.end(completion)
        tally.count(outcome)
        sequencer.put(position, form.result_line(record, outcome))
        yield from ready.take()
        on_progress()
        if max_errors is not None and tally.failed > max_errors:
            raise TooManyErrors(f"{tally.failed:,} failed ({by_type(tally.errors)}), and --max-errors is {max_errors}.")


def by_type(errors: Counter[str]) -> str:
    """How many there are of each, the most first."""
    return ", ".join(f"{count:,} {word}" for word, count in errors.most_common())


class _Ready:
    """The sink of a sequencer: lines whose turn has come."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: list[bytes] = []

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        self.count += 1

    def take(self) -> list[bytes]:
        taken, self._lines = self._lines, []
        return taken


class _Admission:
    """Requests as the engine has room for them: an iterator that gives None while too many results wait, or no line is
    there.

    A record that cannot be asked goes in as an empty prompt, which comes back at once: so its result, too, is made when
    there is room for it.
    """

    def __init__(self, lines: Iterable[Line | None], prompts: Prompts, form: Format, sequencer: Sequencer) -> None:
        self._flying: dict[int, tuple[Record, RecordError | None]] = {}
        self._lines = iter(lines)
        self._prompts = prompts
        self._form = form
        self._sequencer = sequencer
        self._position = 0

    def __iter__(self) -> Iterator[TextRequest | None]:
        return self

    def __next__(self) -> TextRequest | None:
        if not self._sequencer.room(self._position):
            return None
        if (line := next(self._lines)) is None:
            return None
        record = self._form.read_record(line)
        position, self._position = self._position, self._position + 1
        request, error = self._asked(str(position), record)
        self._flying[position] = record, error
        return request

    def end(self, completion: Completion) -> tuple[int, Record, Completion | RecordError]:
        """Whose completion it is: the position, the record, and what came of it."""
        position = int(completion.id)
        record, error = self._flying.pop(position)
        return position, record, error or completion

    def _asked(self, request_id: str, record: Record) -> tuple[TextRequest, RecordError | None]:
        try:
            if record.error is None:
                return self._prompts.request(request_id, record), None
            error = record.error
        except HFPipeError as problem:
            error = RecordError.of(problem)
        return TextRequest(request_id, ""), error
