"""What the engines share: requests in flight and those that wait, and how many tokens memory has room for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from hfpipe.backends.base import Backend, as_backend_error
from hfpipe.errors import BackendError, HFPipeError, OutOfMemory, UsageError
from hfpipe.types import FinishReason, TokenEvent, TokenRequest

# Of the memory that is available, what keys and values may take. The rest is for activations, the tokenizer, others.
SHARE = 0.5

_NO_MORE: Any = object()


class Flight:
    """A request on its way through an engine, with the tokens that it has given."""

    # Whether it is to run by itself, and the largest window in which memory was too short for it.
    alone, window = False, 0

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.cancelled = self.done = False

    @property
    def tokens(self) -> int:
        """What it may come to: its prompt and the longest answer."""
        return len(self.request.token_ids) + self.request.max_tokens

    @property
    def can_go_on(self) -> bool:
        """Whether the engine could be given what is left."""
        return True

    @property
    def whole(self) -> tuple[int, ...]:
        """Its prompt and what followed; of an encoder-decoder model, what its decoder has been given."""
        return (*(self.request.decoder_ids or self.request.token_ids), *self.token_ids)

    def take(self, token: int) -> TokenEvent:
        """The event of its next token, which may be its last."""
        self.token_ids.append(token)
        reason: FinishReason | None = "length" if len(self.token_ids) >= self.request.max_tokens else None
        if token in self.request.eos_token_ids:
            reason = "stop"
        self.done = reason is not None
        return TokenEvent(self.request.id, (token,), reason)

    def take_all(self, tokens: Iterable[int]) -> Iterator[TokenEvent]:
        """The events of tokens that one step gave, up to its last."""
        for number, token in enumerate(tokens):
            event = self.take(token)
            yield replace(event, same_step=True) if number else event
            if self.done:
                return

    def end(self, error: Exception | None = None) -> TokenEvent:
        """The last event where no token ends it: it was cancelled, or `error` ended it."""
        self.done = True
        if error is None:
            return TokenEvent(self.request.id, finish_reason="stop")
        return TokenEvent(self.request.id, finish_reason="error", error=as_backend_error(error))


class Stream:
    """The requests of one stream: those waiting for the engine or given back by it, in order, those running, and as
    `open` all that have not ended, by id."""

    def __init__(self, requests: Iterable[TokenRequest | None]) -> None:
        self.waiting: list[Any] = []
        self.running: list[Any] = []
        self.open: dict[str, Flight] = {}
        self.requests = iter(requests)
        self.ended = False

    @property
    def more(self) -> bool:
        """Whether a request waits, or may still come."""
        return bool(self.waiting) or not self.ended


class Engine(Backend):
    """A backend that keeps its requests as Flights, from when they are pulled until their last event."""

    flight: ClassVar[type[Flight]] = Flight
    _vocabulary: int | None = None

    def __init__(self) -> None:
        self._active: dict[str, Any] = {}
        self._closed = False

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        if self._closed:
            raise self._closed_error()
        stream = Stream(requests)
        try:
            for event in self._generate(stream):
                if self._closed:
                    break
                if event.finish_reason is not None and (flight := stream.open.pop(event.request_id, None)):
                    self._forget(flight)
                yield event
            if self._closed:
                yield from [flight.end(self._closed_error()) for flight in stream.open.values()]
                stream.waiting.clear()
                while not stream.ended:
                    yield from self._fill(stream, 1)
        finally:
            self._drop(list(stream.open.values()))

    def cancel(self, request_id: str) -> None:
        if flight := self._active.get(request_id):
            flight.cancelled = True

    def close(self) -> None:
        self._closed = True

    @abstractmethod
    def _generate(self, stream: Stream) -> Iterator[TokenEvent]:
        """The events of one stream."""

    def _fill(self, stream: Stream, count: int) -> Iterator[TokenEvent]:
        """Have `count` requests wait, where so many are ready. Gives the last events of those that are not run."""
        while len(stream.waiting) < count and (request := next(stream.requests, _NO_MORE)):
            if request is _NO_MORE:
                stream.ended = True
                break
            flight = self._active[request.id] = stream.open[request.id] = self.flight(request)
            if refused := self._refusal(request):
                yield flight.end(refused)
            else:
                stream.waiting.append(flight)
        for flight in [flight for flight in stream.waiting if flight.cancelled]:
            stream.waiting.remove(flight)
            yield flight.end()

    def _failed(self, flights: list[Any], error: HFPipeError, stream: Stream) -> Iterator[TokenEvent]:
        """What an error did to `flights` among those running. They are tried again: where memory was too short, in half
        of the window; else each alone. One that fails alone was to blame, and the window is what it was."""
        shared = len(stream.running) > 1
        again = [flight for flight in flights if flight.cancelled or (shared and flight.can_go_on)]
        for flight in flights:
            if not isinstance(error, OutOfMemory):
                flight.alone = True
            elif shared:
                flight.window = max(flight.window, self.batch_size)
            else:
                self.batch_size = max(self.batch_size, flight.window)
        if isinstance(error, OutOfMemory) and shared:
            self.batch_size = min(self.batch_size, (len(stream.running) + 1) // 2)
        stream.running = [flight for flight in stream.running if flight not in flights]
        stream.waiting[:0] = again
        yield from [flight.end(error) for flight in flights if flight not in again]

    def _refusal(self, request: TokenRequest) -> HFPipeError | None:
        """Why the engine may not be given a request: it could fail all that run beside it, or answer noise."""
        if self._closed:
            return self._closed_error()
        if not request.token_ids:
            return UsageError("The prompt is empty.")
        limit, ids = self._vocabulary, (*request.token_ids, *request.decoder_ids)
        if min(ids) < 0 or (limit is not None and max(ids) >= limit):
            return BackendError(f"The prompt has token ids outside of the model's {limit}.")
        return None

    def _closed_error(self) -> BackendError:
        return BackendError(f"The {self.name} backend has been closed.")

    def _drop(self, flights: list[Any]) -> None:
        """Stop these where they are in flight: nobody reads them any more."""
        for flight in flights:
            flight.cancelled = True
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        if self._active.get(flight.request.id) is flight:
            del self._active[flight.request.id]


def bytes_per_token(config: Mapping[str, Any], bytes_per_value: float) -> int | None:
    """What one token of one request takes, at most, for a model of this config.json; None where it does not say.

    It is too much where layers share keys, compress them, or keep a sliding window of them.
    """
    text = config.get("text_config") or config

    def number(*names: str) -> int:
        """The first of these entries that is a number above 0, else 0."""
        return next((value for name in names if isinstance(value := text.get(name), int) and value > 0), 0)

    layers = number("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = number("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = number("hidden_size", "n_embd", "d_model")
    if not (layers and heads and hidden):
        return None
    # Falcon calls multi_query what has groups, too: there, and only there, num_kv_heads counts.
    grouped = text.get("new_decoder_architecture")
    shared = 1 if text.get("multi_query") and not grouped else heads
    kept = number("num_key_value_heads") or (grouped and number("num_kv_heads")) or shared
    # Of keys and values, what is wider. With latent attention head_dim is only a part of a key.
    latent = number("qk_nope_head_dim") + number("qk_rope_head_dim")
    width = max(number("head_dim", "d_kv") or hidden // heads, number("v_head_dim"), latent)
    return math.ceil(2 * layers * kept * width * bytes_per_value)


def token_budget(available: int | None, per_token: int | None) -> float:
    """The tokens, prompts and answers, that may be in flight in `available` bytes; without an end where a number is
    not known."""
    return math.inf if available is None or per_token is None else SHARE * available // per_token
