"""An engine without a model: it answers every prompt with the prompt's own tokens. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from typing_extensions import Self

from hfpipe.backends.base import Backend, Intake, closed, failure, finish_reason, refusal, vocabulary_size
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent, TokenRequest

_WINDOW = 8


class EchoBackend(Backend):
    """Gives the prompt back token by token, then ends. `batch_size` requests are in flight, in turn.

    `steps` counts the tokens generated, so that a test can see that a stop really stopped.
    """

    name = "echo"

    def __init__(self, batch_size: int = _WINDOW, *, vocabulary: int | None = None) -> None:
        self.info = BackendInfo(self.name, "none", "none")
        self.batch_size = batch_size
        self.steps = 0
        self._closed = False
        self._vocabulary = vocabulary
        self._active: dict[str, _Echo] = {}

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        return cls(options.batch_size or _WINDOW, vocabulary=vocabulary_size(source.config))

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        if self._closed:
            raise closed(self.name)
        waiting = Intake(requests)
        mine: list[_Echo] = []
        try:
            while True:
                while len(mine) < self.batch_size and (request := waiting.take()):
                    if refused := refusal(request, self._vocabulary):
                        yield refused
                    else:
                        mine.append(self._start(request))
                if not mine and waiting.ended:
                    return
                for echo in mine:
                    yield self._step(echo)
                mine = [echo for echo in mine if not echo.done]
        finally:
            for echo in mine:
                self._active.pop(echo.request.id, None)

    def cancel(self, request_id: str) -> None:
        if echo := self._active.get(request_id):
            echo.cancelled = True

    def close(self) -> None:
        self._closed = True

    def _start(self, request: TokenRequest) -> _Echo:
        echo = self._active[request.id] = _Echo(request)
        return echo

    def _step(self, echo: _Echo) -> TokenEvent:
        event = failure(echo.request.id, closed(self.name)) if self._closed else echo.step()
        self.steps += len(event.token_ids)
        if event.finish_reason is not None:
            echo.done = True
            self._active.pop(event.request_id, None)
        return event


class _Echo:
    """A request in flight."""

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.generated = 0
        self.cancelled = False
        self.done = False

    def step(self) -> TokenEvent:
        if self.cancelled or self.generated >= len(self.request.token_ids):
            return TokenEvent(self.request.id, finish_reason="stop")
        token = self.request.token_ids[self.generated]
        self.generated += 1
        return TokenEvent(self.request.id, (token,), finish_reason(self.request, self.generated, token))
