"""openvino-genai's continuous batching: all that are in flight share the steps of the engine."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import openvino_genai as genai

from hfpipe.backends.base import Intake, closed, failure, finish_reason, refusal
from hfpipe.backends.kv_cache import token_budget
from hfpipe.backends.openvino.loading import explained
from hfpipe.backends.openvino.single import OpenVINOBackend, generation_config, tensor
from hfpipe.errors import BackendError, HFPipeError, OutOfMemory
from hfpipe.machine import available_memory
from hfpipe.types import TokenEvent, TokenRequest

# Measured over 256 prompts with answers of 8 to 120 tokens: 5 % faster than 64, and 2 % slower than 256.
DEFAULT_WINDOW = 128

# What the engine raises, through its binding, and what says that it is closed.
FAILURES = (RuntimeError, ValueError, IndexError, MemoryError, BackendError)


class PagedBackend(OpenVINOBackend):
    """Up to `batch_size` requests in flight, in paged mode. Streams in several threads share the engine's steps.

    Of a stream one is always in flight. More are, in the order in which they came, only while the prompts and answers
    of all in the engine fit into a share of the memory that was available when the stream began. Where memory runs out
    all the same, `batch_size` becomes half of what was in flight, and that is given to the engine again.
    """

    mode = "paged"

    def __init__(self, folder: str, device: str, options: dict[str, Any], batch_size: int | None = None) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = self.batch_size = batch_size or DEFAULT_WINDOW
        self._pipeline: Any = genai.ContinuousBatchingPipeline(folder, scheduler, device, options)
        self._numbers = itertools.count()
        self._stepping = threading.Lock()
        self._active: dict[str, Flight] = {}
        self.steps = 0

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        waiting = _Waiting(requests)
        mine: dict[str, Flight] = {}
        budget = self._token_budget()
        try:
            while mine or not waiting.ended:
                while len(mine) < self.batch_size and (flight := waiting.take()):
                    if mine and not flight.cancelled and flight.tokens > budget - self._tokens_in_flight():
                        self._active[flight.request.id] = flight
                        waiting.give_back([flight])
                        break
                    yield from self._add(flight, mine, waiting)
                if mine:
                    yield from self._step(mine, waiting)
        finally:
            self._drop({**mine, **{flight.request.id: flight for flight in waiting.back}})

    def cancel(self, request_id: str) -> None:
        if flight := self._active.get(request_id):
            flight.cancelled = True

    def close(self) -> None:
        self._drop(dict(self._active))
        with self._stepping:
            self._pipeline = None

    def _token_budget(self) -> float:
        """The tokens that all in flight may come to. What the engine's cache has taken it keeps, and uses again."""
        with self._open() as pipeline:
            taken: int = pipeline.get_metrics().cache_size_in_bytes
        return token_budget(available_memory() + taken, self._bytes_per_token)

    def _tokens_in_flight(self) -> int:
        """Of all streams: the engine reserves an answer's memory when it takes the request."""
        return sum(flight.tokens for flight in list(self._active.values()) if flight.handle is not None)

    def _add(self, flight: Flight, mine: dict[str, Flight], waiting: _Waiting) -> Iterator[TokenEvent]:
        """Give the engine a request. Where it does not take it, say so."""
        refused = refusal(flight.request, self._vocabulary)
        if refused or flight.cancelled:
            # It may have waited, where it can be cancelled.
            self._active.pop(flight.request.id, None)
            yield refused or TokenEvent(flight.request.id, finish_reason="stop")
            return
        left = flight.left()
        mine[left.id] = self._active[left.id] = flight
        try:
            with self._open() as pipeline:
                flight.handle = pipeline.add_request(next(self._numbers), tensor(left), generation_config(left))
        except FAILURES as error:
            yield from self._fail([flight], explained(error, self.info.device), mine, waiting)

    def _drop(self, flights: Mapping[str, Flight]) -> None:
        """Stop what is still in flight of these."""
        self._stop([flight for request_id, flight in flights.items() if self._active.pop(request_id, None)])

    def _stop(self, flights: list[Flight]) -> None:
        """Stop those of these that are in the engine and let it see it, so that their memory is freed."""
        if not any(flight.handle for flight in flights):
            return
        with suppress(*FAILURES), self._open() as pipeline:
            for flight in flights:
                flight.stop()
            pipeline.step()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The engine, for one thread at a time."""
        with self._stepping:
            if self._pipeline is None:
                raise closed(self.name)
            yield self._pipeline

    def _step(self, mine: dict[str, Flight], waiting: _Waiting) -> Iterator[TokenEvent]:
        """One step of the engine, and what it gave to this stream's requests."""
        try:
            with self._open() as pipeline:
                # Just before a step, which frees what a stopped request holds.
                for flight in mine.values():
                    if flight.cancelled:
                        flight.stop()
                pipeline.step()
        except FAILURES as error:
            yield from self._fail(list(mine.values()), explained(error, self.info.device), mine, waiting)
            return
        without_room: dict[str, HFPipeError] = {}
        for request_id, flight in list(mine.items()):
            for event in flight.read():
                self.steps += len(event.token_ids)
                if isinstance(event.error, OutOfMemory):
                    without_room[request_id] = event.error
                    continue
                if event.finish_reason is not None:
                    del mine[request_id]
                    self._active.pop(request_id, None)
                yield event
        if without_room:
            flights = [mine[request_id] for request_id in without_room]
            yield from self._fail(flights, next(iter(without_room.values())), mine, waiting)

    def _fail(
        self, flights: list[Flight], error: HFPipeError, mine: dict[str, Flight], waiting: _Waiting
    ) -> Iterator[TokenEvent]:
        """What an error did to `flights`. What memory was too short for among others is tried again in a smaller
        window; what does not fit alone was to blame, and the window is again what it was."""
        again: list[Flight] = []
        if isinstance(error, OutOfMemory):
            shared = len(mine) > 1
            again = [flight for flight in flights if flight.cancelled or (shared and flight.can_go_on)]
            self._stop(flights)
            self._resize(flights, len(mine))
        failed = [flight for flight in flights if flight not in again]
        waiting.give_back(again)
        for flight in flights:
            del mine[flight.request.id]
        for flight in failed:
            self._active.pop(flight.request.id, None)
        yield from [failure(flight.request.id, error) for flight in failed]

    def _resize(self, flights: list[Flight], in_flight: int) -> None:
        """The window after memory was too short for `flights` among those in flight."""
        if in_flight == 1:
            self.batch_size = max(self.batch_size, flights[0].window)
            return
        for flight in flights:
            flight.window = max(flight.window, self.batch_size)
        self.batch_size = min(self.batch_size, in_flight // 2)


class Flight:
    """A request on its way through the engine, with the tokens that it has given. Its handle must be kept: dropping it
    stops the request."""

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.handle: Any = None
        self.cancelled = False
        # The largest in which memory was too short for it.
        self.window = 0

    @property
    def tokens(self) -> int:
        """What it may come to: its prompt and the longest answer."""
        return len(self.request.token_ids) + self.request.max_tokens

    @property
    def can_go_on(self) -> bool:
        """Whether the engine could be given what is left: what was drawn so far cannot be drawn again."""
        return not self.token_ids or self.request.sampling.temperature == 0

    def left(self) -> TokenRequest:
        """What is still to be generated, as a request: from the prompt and the tokens so far."""
        if not self.token_ids:
            return self.request
        whole = (*self.request.token_ids, *self.token_ids)
        return replace(self.request, token_ids=whole, max_tokens=self.request.max_tokens - len(self.token_ids))

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.stop()

    def read(self) -> Iterator[TokenEvent]:
        """The tokens that are ready. `read` of the handle with nothing queued would wait for ever."""
        reason = None
        while reason is None and self.handle.can_read():
            for output in self.handle.read().values():
                for token in output.generated_ids:
                    self.token_ids.append(token)
                    reason = finish_reason(self.request, len(self.token_ids), token)
                    yield TokenEvent(self.request.id, (token,), reason)
        status = self.handle.get_status()
        if reason is not None or status == genai.GenerationStatus.RUNNING:
            return
        # A step that had nothing else to do calls a stopped request IGNORED.
        if self.cancelled or status in (genai.GenerationStatus.STOP, genai.GenerationStatus.CANCEL):
            yield TokenEvent(self.request.id, finish_reason="stop")
        elif status == genai.GenerationStatus.IGNORED:
            yield failure(self.request.id, OutOfMemory("The KV cache has no room for this request."))
        else:
            yield failure(
                self.request.id, BackendError(f"OpenVINO ended after {len(self.token_ids)} tokens: {status}.")
            )


class _Waiting:
    """What is not in the engine: first what came back from it, then what is still to come."""

    def __init__(self, requests: Iterable[TokenRequest | None]) -> None:
        self.back: deque[Flight] = deque()
        self._intake = Intake(requests)

    @property
    def ended(self) -> bool:
        return not self.back and self._intake.ended

    def take(self) -> Flight | None:
        if self.back:
            return self.back.popleft()
        request = self._intake.take()
        return Flight(request) if request else None

    def give_back(self, flights: list[Flight]) -> None:
        """The older first, as they came."""
        self.back.extendleft(reversed(flights))
        for flight in flights:
            flight.handle = None
