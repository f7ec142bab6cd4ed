"""What an engine must do: token ids in, token events out. Text is written once, above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, ClassVar

from typing_extensions import Self

from hfpipe.errors import BackendError, HFPipeError, OutOfMemory
from hfpipe.types import BackendInfo, LoadOptions, ModelFormat, ModelSource, Reporter, TokenEvent, TokenRequest


class Backend(ABC):
    """A loaded model that turns token requests into token events.

    `stream` pulls requests only as it has room for them and yields their tokens as they appear, those of several
    requests interleaved. Every request ends in exactly one event with a finish_reason; a request that fails ends with
    "error" and leaves the others alone.
    """

    name: ClassVar[str]
    info: BackendInfo
    # How many requests are in flight at once.
    batch_size: int = 1

    # Of a backend from another package: the model formats that it runs, and the load options that it honours beside
    # the common. Those of hfpipe have them in BACKENDS, so that the engine need not be imported for them.
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"transformers"})
    honours: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @abstractmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        """Load the model of `source`. Raises an HFPipeError where it cannot be run as `options` say."""

    @classmethod  # noqa: B027 (an engine without devices has nothing to check)
    def check_device(cls, device: str) -> None:
        """Raise the HFPipeError of a `device` that this machine does not have. No model is needed for that."""

    @abstractmethod
    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        """Generate for `requests`, in any number and order.

        None means that no request is ready: the engine continues with those it has and asks again later. An iterable
        yields None only while a request of its own is unfinished, so that the asking comes to an end.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """End a request that is in flight; its last event, with finish_reason "stop", follows. Others go on.

        Any other id is ignored.
        """

    def close(self) -> None:  # noqa: B027 (most engines have nothing to close)
        """Free what the model holds. Closing again does nothing.

        An open stream ends each of its requests, in flight or still to come, with an error event; a stream that begins
        afterwards raises BackendError.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """How many token ids a model of this config.json knows; None where it does not say."""
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def as_backend_error(error: Exception) -> HFPipeError:
    """An engine's exception as one line of our own, with the original as its cause."""
    if isinstance(error, HFPipeError):
        return error
    text = str(error).strip()
    phrases = ("out of memory", "not enough memory", "allocate memory", "exceeded max size of memory", "bad_alloc")
    full = isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in phrases)
    first_line = text.partition("\n")[0] or "no message"
    wrapped = (OutOfMemory if full else BackendError)(f"{type(error).__name__}: {first_line}")
    wrapped.__cause__ = error
    return wrapped
