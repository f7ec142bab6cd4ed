"""Records in, results out, in input order: what drives a generator over an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, described
from hfpipe.errors import HFPipeError
from hfpipe.generator import FailedRequest
from hfpipe.types import Completion, TextRequest

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

    def count(self, answer: Completion) -> None:
        self.records += 1
        if answer.error is not None:
            self.errors[described(answer.error)["type"]] += 1
        elif answer.usage:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.completion_tokens += answer.usage.completion_tokens


class TooManyErrors(HFPipeError):
    """More records failed than max_errors allows."""

    exit_code = RECORDS_FAILED


def results(
    lines: Iterable[Line | None],
    form: Format,
    ask: Callable[[Record], TextRequest],
    stream_batch: Callable[[Iterable[TextRequest | None]], Iterator[tuple[int, Completion]]],
    tally: Tally,
    max_errors: int | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The lines of the output, in the order of the input, each as soon as it and all before it are ready.

    None among the `lines` means that none is ready, as in Backend.stream. What is wrong with one record, also where
    `ask` raises it, is its result, and the others are answered. So are those before a place at which the input cannot
    be read, before that error is raised. Raises TooManyErrors once more than `max_errors` have failed.
    """
    # From the oldest unfinished one on, by index: a record in flight, or the line of its result.
    waiting: dict[int, Record | bytes] = {}
    written, unreadable = 0, None

    def requests() -> Iterator[TextRequest | None]:
        nonlocal unreadable
        try:
            for line in lines:
                while len(waiting) >= AHEAD:
                    yield None
                if line is None:
                    yield None
                    continue
                record = form.read_record(line)
                waiting[written + len(waiting)] = record
                try:
                    request = ask(record)
                except HFPipeError as error:
                    request = FailedRequest("", "", error=error)
                yield request
        except HFPipeError as error:
            unreadable = error

    for index, answer in stream_batch(requests()):
        record = waiting[index]
        assert isinstance(record, Record)
        waiting[index] = form.result_line(record, answer)
        tally.count(answer)
        while isinstance(line := waiting.get(written), bytes):
            del waiting[written]
            written += 1
            yield line
        on_progress()
        failed = tally.errors.total()
        if max_errors is not None and failed > max_errors:
            by_type = ", ".join(f"{count:,} {word}" for word, count in tally.errors.most_common())
            raise TooManyErrors(f"{failed:,} records failed ({by_type}), and --max-errors is {max_errors}.")
    if unreadable:
        raise unreadable
