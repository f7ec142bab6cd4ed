"""An engine without a model: it answers every prompt with the prompt's own tokens. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import Self

from hfpipe.backends.base import vocabulary_size
from hfpipe.backends.scheduling import Engine, Stream
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent

_WINDOW = 8


class EchoBackend(Engine):
    """Gives the prompt back token by token, then ends. `batch_size` requests are in flight, in turn."""

    name = "echo"

    def __init__(self, batch_size: int = _WINDOW, *, vocabulary: int | None = None) -> None:
        super().__init__()
        self.info = BackendInfo(self.name, "none", "none")
        self.batch_size = batch_size
        self._vocabulary = vocabulary

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        return cls(options.batch_size or _WINDOW, vocabulary=vocabulary_size(source.config))

    def _generate(self, stream: Stream) -> Iterator[TokenEvent]:
        while stream.running or stream.more:
            yield from self._fill(stream, self.batch_size - len(stream.running))
            stream.running += stream.waiting
            stream.waiting.clear()
            for flight in stream.running:
                done = flight.cancelled or len(flight.token_ids) == len(flight.request.token_ids)
                yield flight.end() if done else flight.take(flight.request.token_ids[len(flight.token_ids)])
            stream.running = [flight for flight in stream.running if not flight.done]
