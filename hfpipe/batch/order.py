"""Records in, results out, in input order: what drives a generator over an input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, described
from hfpipe.errors import AccessDenied, HFPipeError, ModelNotFound, ServerUnavailable, UsageError
from hfpipe.generator import FailedRequest
from hfpipe.types import Completion, TextRequest

if TYPE_CHECKING:
    from hfpipe.batch.parity import Parity

# How many records, from the oldest unfinished one on, may be in flight or wait for it: a long answer is not to hold up
# the engine, and memory is to be bounded.
AHEAD = 4096

# So many answers in a row that a server did not begin end the batch; and how many wait to see whether it is there.
_NOT_BEGUN, _HELD = 3, 100

# The exit code of a batch that is finished, with failed records.
RECORDS_FAILED = 3


@dataclass(slots=True)
class Summary:
    """What a batch has done.

    `output` is the file of results, None where they went elsewhere; of its results, `existing` are of earlier runs, and
    `errors` counts the failed by type. `answered` counts the records of this run, failed ones included, and the tokens
    are theirs. `unanswered` tells that the input has records without a result. `set_aside` is the new name of an
    earlier output, `parity` what `verify_parity` found.
    """

    output: Path | None = None
    answered: int = 0
    existing: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    unanswered: bool = False
    set_aside: Path | None = None
    parity: Parity | None = None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def failed_by_type(self) -> str:
        """The most first."""
        by_count = sorted(self.errors.items(), key=lambda one: -one[1])
        return ", ".join(f"{count:,} {kind}" for kind, count in by_count)

    @property
    def exit_code(self) -> int:
        """0, or 3 where a record failed or has no result."""
        return RECORDS_FAILED if self.errors or self.unanswered else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        paths = {name: value and str(value) for name, value in (("output", self.output), ("set_aside", self.set_aside))}
        return {**asdict(self), **paths, "failed": self.failed}


class TooManyErrors(HFPipeError):
    """More records failed than max_errors allows."""

    exit_code = RECORDS_FAILED


def results(
    lines: Iterable[Line | None],
    form: Format,
    ask: Callable[[Record], TextRequest],
    stream_batch: Callable[[Iterable[TextRequest | None]], Iterator[tuple[int, Completion]]],
    summary: Summary,
    max_errors: int | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[bytes, bytes]]:
    """The digests of the input's lines with the lines of the output, each as soon as it and all before it are ready.

    None among the `lines` means that none is ready, as in Backend.stream. What is wrong with one record, also where
    `ask` raises it, is its result, and the others are answered. So are those before a place at which the input cannot
    be read, before that error is raised. Raises TooManyErrors once more than `max_errors` have failed.

    A model that no request can reach ends the batch with its error, and what it did not answer has no result: at once
    where a server denies access or does not have it, else where several records in a row find the server unavailable.
    """
    # From the oldest unfinished one on, by index: a record in flight, or its result.
    waiting: dict[int, tuple[bytes, Record | bytes]] = {}
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
                waiting[written + len(waiting)] = line.digest, record
                try:
                    request = ask(record)
                except HFPipeError as error:
                    request = FailedRequest("", "", error=error)
                yield request
        except HFPipeError as error:
            unreadable = error

    for index, answer in _while_reachable(stream_batch(requests())):
        digest, record = waiting[index]
        assert isinstance(record, Record)
        waiting[index] = digest, form.result_line(record, answer)
        summary.answered += 1
        if answer.error is not None:
            kind = described(answer.error)["type"]
            summary.errors[kind] = summary.errors.get(kind, 0) + 1
        elif answer.usage:
            summary.prompt_tokens += answer.usage.prompt_tokens
            summary.completion_tokens += answer.usage.completion_tokens
        while written in waiting:
            digest, oldest = waiting[written]
            if not isinstance(oldest, bytes):
                break
            del waiting[written]
            written += 1
            yield digest, oldest
        on_progress()
        if max_errors is not None and summary.failed > max_errors:
            raise TooManyErrors(
                f"{summary.failed:,} records failed ({summary.failed_by_type}), and --max-errors is {max_errors}."
            )
    if unreadable:
        raise unreadable


def _while_reachable(answers: Iterable[tuple[int, Completion]]) -> Iterator[tuple[int, Completion]]:
    """The answers, but for those that a server did not give as it was unavailable: they wait for one that it begins
    later, and that shows that the fault was theirs. Raises the error of a server that begins none."""
    waiting: list[tuple[int, Completion]] = []
    down: HFPipeError | None = None
    not_begun, since = 0, 0.0
    for index, answer in answers:
        error = answer.error
        if isinstance(error, AccessDenied | ModelNotFound):
            raise error
        if isinstance(error, ServerUnavailable):
            waiting.append((index, answer))
            since = since if down else time.perf_counter()
            down = error
            not_begun += not answer.text
            if not_begun == _NOT_BEGUN:
                raise error
        else:
            yield index, answer
            # Neither a wrong record nor an answer that had begun says what the server does now.
            if not isinstance(error, UsageError) and not (answer.timing and answer.timing.first_token < since):
                down, not_begun = None, 0
        if down is None or len(waiting) == _HELD:
            yield from waiting
            waiting.clear()
    if down:
        raise down
