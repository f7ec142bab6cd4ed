"""An engine without a model: it answers every prompt with the prompt's own tokens. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from typing_extensions import Self

from hfpipe.backends.base import Backend, finish_reason
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent, TokenRequest

_WINDOW = 8


class EchoBackend(Backend):
    """Gives the prompt back token by token, then ends. `batch_size` requests are in flight, in turn.

    `steps` counts the tokens generated, so that a test can see that a stop really stopped.
    """

    name = "echo"

    def __init__(self, batch_size: int = _WINDOW) -> None:
        self.info = BackendInfo(self.name, "none", "none")
        self.batch_size = batch_size
        self.steps = 0
        self._cancelled: set[str] = set()

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        return cls(options.batch_size or _WINDOW)

    def stream(self, requests: Iterable[TokenRequest]) -> Iterator[TokenEvent]:
        waiting = iter(requests)
        active: list[tuple[TokenRequest, int]] = []
        while True:
            active += [(request, 0) for request in islice(waiting, self.batch_size - len(active))]
            if not active:
                return
            events = [self._step(request, done) for request, done in active]
            active = [
                (request, done + 1)
                for (request, done), event in zip(active, events, strict=True)
                if event.finish_reason is None
            ]
            yield from events

    def _step(self, request: TokenRequest, done: int) -> TokenEvent:
        if request.id in self._cancelled:
            self._cancelled.discard(request.id)
            return TokenEvent(request.id, finish_reason="stop")
        if done >= len(request.token_ids):
            return TokenEvent(request.id, finish_reason="stop")
        self.steps += 1
        token = request.token_ids[done]
        return TokenEvent(request.id, (token,), finish_reason(request, done + 1, token))

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)
