"""What an engine must do: token ids in, token events out. Text is written once, above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import ClassVar

from typing_extensions import Self

from hfpipe.errors import BackendError, HFPipeError, OutOfMemory
from hfpipe.types import BackendInfo, FinishReason, LoadOptions, ModelSource, Reporter, TokenEvent, TokenRequest


class Backend(ABC):
    """A loaded model that turns token requests into token events.

    `stream` pulls requests only as it has room for them and yields their tokens as they appear, those of several
    requests interleaved. Every request ends in exactly one event with a finish_reason; a request that fails ends with
    "error" and leaves the others alone.
    """

    name: ClassVar[str]
    info: BackendInfo

    @classmethod
    @abstractmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        """Load the model of `source`. Raises an HFPipeError where it cannot be run as `options` say."""

    @abstractmethod
    def stream(self, requests: Iterable[TokenRequest]) -> Iterator[TokenEvent]:
        """Generate for `requests`, in any number and order."""

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """End a request that is in flight; its last event, with finish_reason "stop", follows. Others go on."""

    def close(self) -> None:  # noqa: B027 (most engines have nothing to close)
        """Free what the model holds. The backend cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finish_reason(request: TokenRequest, generated: int, last: int) -> FinishReason | None:
    """Whether a request is done after `generated` tokens, of which `last` is the newest."""
    if last in request.eos_token_ids:
        return "stop"
    return "length" if generated >= request.max_tokens else None


def failure(request_id: str, error: Exception) -> TokenEvent:
    """The last event of a request that `error` ended."""
    return TokenEvent(request_id, finish_reason="error", error=as_backend_error(error))


def as_backend_error(error: Exception) -> HFPipeError:
    """An engine's exception as one line of our own, with the original as its cause."""
    if isinstance(error, HFPipeError):
        return error
    first_line = str(error).strip().partition("\n")[0] or "no message"
    kind = OutOfMemory if _is_out_of_memory(error) else BackendError
    wrapped = kind(f"{type(error).__name__}: {first_line}")
    wrapped.__cause__ = error
    return wrapped


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text
