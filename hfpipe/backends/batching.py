"""Batches: rows of similar length that are answered together, each with its own sampling, and leave when they are done.
Where the model's memory of them allows it, others join meanwhile."""

from __future__ import annotations

import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hfpipe.backends.base import as_backend_error
from hfpipe.backends.drawing import draw, penalize
from hfpipe.backends.scheduling import Engine, Flight, Stream
from hfpipe.errors import HFPipeError
from hfpipe.sampling import NO_RULES, Rules
from hfpipe.types import ModelSource, TokenEvent, TokenRequest

# Batches' worth of requests among which those of similar length are looked for.
_LOOK_AHEAD = 8
# Of prompt lookup: the most of the newest tokens that are looked for. OpenVINO is given it, too.
NGRAM = 3


class Row(Flight):
    """A request with the random generator of its own, so that it draws the same whatever else is in the batch."""

    rules = NO_RULES

    @cached_property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.request.sampling.seed)

    @property
    def banned(self) -> set[int]:
        """The tokens that may not come next."""
        return set() if self.rules is NO_RULES else self.rules.banned(self.request, self.token_ids)

    def take(self, token: int) -> TokenEvent:
        event = super().take(token)
        if self.rules.forced_eos_token_id is not None and len(self.token_ids) == self.request.max_tokens:
            # That token says nothing of whether the answer was complete.
            event = TokenEvent(event.request_id, event.token_ids, "length")
        return event


class Batch(ABC):
    """What an engine computes for rows of one length so far, padding included."""

    # Whether others can join it.
    open = False

    @abstractmethod
    def logits(self, ids: list[tuple[int, ...]]) -> Any:
        """Floats [row, vocabulary]: those of the token after `ids`, which are for each row what followed so far the
        first time, and the newest token after that."""

    @abstractmethod
    def keep(self, rows: list[int]) -> None:
        """Forget the other rows."""

    def join(self, other: Self) -> None:
        """Go on with the rows of `other`, too, after its own. Only where it is open."""
        raise NotImplementedError


class BatchEngine(Engine):
    """Runs `batch_size` rows at once.

    Batches are made of similar requests among `look_ahead`, so that little is padding, and of no more than fit into a
    share of the memory that was available when the stream began. Where memory runs out all the same, `batch_size`
    becomes what is left of it.

    Rows join a running batch once the places that were empty come to a step of all: to join costs about one, since what
    they read of their own they would also read later. So few join often where answers are long, many seldom where they
    are short, and none waits for more than `batch_size` steps beside an empty place.
    """

    # How many places of padding rows that join may bring.
    most_padding = math.inf

    # Of an encoder-decoder model: what its own settings say of each answer, and what each answer begins with.
    rules = NO_RULES
    start: tuple[int, ...] = ()

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.look_ahead = 1 if batch_size == 1 else batch_size * _LOOK_AHEAD

    @abstractmethod
    def _budget(self) -> float:
        """The tokens, prompts and answers, that memory has room for."""

    @abstractmethod
    def _begin(self, rows: list[Any]) -> Batch:
        """A new batch."""

    def begin_as(self, source: ModelSource) -> None:
        """Take the rules and the start of an encoder-decoder model."""
        if source.is_encoder_decoder:
            self.rules, self.start = Rules.of(source.generation_config), source.decoder_start

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        if self.start:
            requests = (one and replace(one, decoder_ids=one.decoder_ids or self.start) for one in requests)
        return super().stream(requests)

    def _explained(self, error: Exception) -> HFPipeError:
        return as_backend_error(error)

    def _generate(self, stream: Stream) -> Iterator[TokenEvent]:
        budget = self._budget()
        batch: Batch | None = None
        rows: list[Row] = []
        # Places that nobody had, counted in each step since rows last joined.
        empty = 0
        while rows or stream.more:
            new: list[Row] = []
            if batch is None or (empty >= self.batch_size and batch.open and not rows[0].alone):
                yield from self._fill(stream, self.look_ahead - len(rows))
                new = similar(stream.waiting, self.batch_size - len(rows), budget, rows, self.most_padding)
                stream.waiting = [row for row in stream.waiting if row not in new]
            stream.running, failed = rows + new, None
            try:
                if new:
                    batch, rows, empty = (yield from self._join(batch, rows, new)), [*rows, *new], 0
                    rows = [row for row in rows if not row.done]
                if batch and rows:
                    rows = yield from self._step(batch, rows, [(row.token_ids[-1],) for row in rows])
                    empty += self.batch_size - len(rows)
            except Exception as error:
                # Its frames would keep the cache and the logits alive.
                traceback.clear_frames(error.__traceback__)
                failed, rows = self._explained(error), []
            if not rows:
                batch = None
            if failed:
                stream.running = [row for row in stream.running if not row.done]
                yield from self._failed(stream.running, failed, stream)

    def _join(self, batch: Batch | None, rows: list[Row], new: list[Row]) -> Generator[TokenEvent, None, Batch]:
        """Prefill `new` rows, which give their first token; those that are not done join the batch of `rows`."""
        for row in new:
            row.rules = self.rules
        joining = self._begin(new)
        left = yield from self._step(joining, new, [row.whole for row in new])
        if batch is None:
            return joining
        if left:
            batch.join(joining)
        return batch

    def _step(
        self, batch: Batch, rows: list[Row], ids: list[tuple[int, ...]]
    ) -> Generator[TokenEvent, None, list[Row]]:
        """A token for every row. Those that are done leave the batch; returns the others."""
        for row, token in zip(rows, self._next(batch.logits(ids), rows), strict=True):
            yield row.take(token)
        yield from [row.end() for row in rows if row.cancelled and not row.done]
        stay = [i for i, row in enumerate(rows) if not row.done]
        if 0 < len(stay) < len(rows):
            batch.keep(stay)
        return [rows[i] for i in stay]

    def _next(self, logits: Any, rows: list[Row]) -> list[int]:
        """A token for each row, from floats [row, vocabulary], which may be on another device."""
        # Those of greedy rows are found there, in one operation.
        tokens: list[int] = logits.argmax(-1).tolist()
        banned, asked = [row.banned for row in rows], [row.request.sampling for row in rows]
        others = [
            i
            for i, one in enumerate(asked)
            if one.temperature > 0 or one.repetition_penalty != 1 or tokens[i] in banned[i]
        ]
        if others:
            scores = self._on_host(logits[others])
            for place, i in enumerate(others):
                scores[place, list(banned[i])] = -np.inf
                if asked[i].repetition_penalty != 1:
                    penalize(scores[place], rows[i].whole, asked[i].repetition_penalty)
            numbers = [rows[i].random.random() if asked[i].temperature > 0 else 0.0 for i in others]
            drawn = draw(scores, [asked[i] for i in others], numbers)
            for i, token in zip(others, drawn, strict=True):
                tokens[i] = token
        for i, row in enumerate(rows):
            if row.rules.forced_eos_token_id is not None and len(row.token_ids) + 1 == row.request.max_tokens:
                tokens[i] = row.rules.forced_eos_token_id
        return tokens

    def _on_host(self, logits: Any) -> NDArray[np.float32]:
        """These in memory, to be written to."""
        return np.array(logits, dtype=np.float32)


def proposed(ids: Sequence[int], count: int) -> Sequence[int]:
    """What may come next: at most `count` tokens that followed where the newest of `ids`, as many of NGRAM as can be
    found, came first."""
    if count < 1 or not ids:
        return ()
    best = longest = 0
    for end in range(1, len(ids)):
        if ids[end - 1] == ids[-1]:
            length = next((n for n in range(1, NGRAM) if n == end or ids[end - 1 - n] != ids[-1 - n]), NGRAM)
            best, longest = (end, length) if length > longest else (best, longest)
    return ids[best : best + count] if longest else ()


def similar(
    waiting: list[Row], size: int, budget: float, beside: Sequence[Row] = (), most_padding: float = math.inf
) -> list[Row]:
    """The row that has waited longest, so that none waits for ever, and those most like it: at most `size`, and of them
    as many as come to no more than `budget` tokens. Answers of an encoder-decoder model, which begin where a decoder
    does, are of one length so far.

    Those that are to run `beside` others are none where there is no room for the first, or it is to run alone, and
    bring at most so many places of padding."""
    if not waiting or (beside and waiting[0].alone):
        return []
    if waiting[0].alone:
        return waiting[:1]
    if begun := waiting[0].request.decoder_ids:
        begun_length = len(begun) + len(waiting[0].token_ids)
        waiting = [row for row in waiting if len(row.whole) == begun_length]
    if len(waiting) > size or _tokens([*beside, *waiting]) > budget:
        oldest = waiting[0].request

        def waste(row: Row) -> int:
            """The places in a batch of both that one leaves empty: before its prompt, and after its answer."""
            one = row.request
            return abs(len(one.token_ids) - len(oldest.token_ids)) + abs(one.max_tokens - oldest.max_tokens)

        waiting = sorted(waiting, key=waste)[:size]
    rows, least = [*waiting], 0 if beside else 1
    while len(rows) > least and (
        _tokens([*beside, *rows]) > budget or (beside and _padding([*beside, *rows]) - _padding(beside) > most_padding)
    ):
        rows.pop()
    return rows


def _tokens(rows: Sequence[Row]) -> int:
    """What a batch of these may come to, padding included."""
    widest = max((len(row.request.token_ids) for row in rows), default=0)
    return len(rows) * (widest + max((row.request.max_tokens for row in rows), default=0))


def _padding(rows: Sequence[Row]) -> int:
    """The empty places before rows of a decoder, so far."""
    lengths = [len(row.whole) for row in rows]
    return len(rows) * max(lengths) - sum(lengths)
