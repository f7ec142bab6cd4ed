"""The OpenVINO engine, through openvino-genai: one request at the lowest latency, or many by continuous batching.

One request at a time runs in SDPA mode, whose compiled model is cached and starts in a third of a second; more than one
in paged mode, which shares the steps of the engine among all that are in flight. Both take and give token ids, so that
the folder needs no OpenVINO tokenizer.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, ClassVar

import openvino_genai as genai
from typing_extensions import Self

from hfpipe.backends.base import Backend, closed, failure, finish_reason, refusal, vocabulary_size
from hfpipe.backends.kv_cache import bytes_per_token
from hfpipe.backends.openvino.loading import (
    bytes_per_cached_value,
    check_device,
    explained,
    model_folder,
    properties,
    readable,
    weight_format,
    with_compile_cache,
)
from hfpipe.backends.openvino.requests import generation_config, tensor
from hfpipe.errors import BackendError
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, Silent, TokenEvent, TokenRequest


class OpenVINOBackend(Backend):
    """What both modes share. `load` gives the mode that fits `batch_size`."""

    name = "openvino"
    mode: ClassVar[str]
    _vocabulary: int | None = None
    # Of the KV cache; None where it is not known, or not in this machine's memory.
    _bytes_per_token: int | None = None

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        device = check_device(options.device, reporter)
        folder = model_folder(source, options, reporter)
        mode: type[Any] = SingleBackend
        if options.batch_size != 1:
            # It is built on this file.
            mode = importlib.import_module("hfpipe.backends.openvino.paged").PagedBackend
        # It was measured on a CPU.
        runtime = source.runtime if device == "CPU" else {}
        used = properties(options, runtime)
        if mode is SingleBackend:
            used = with_compile_cache(folder, used, reporter)
        with readable(device):
            backend: Self = mode(str(folder), device, used, options.batch_size)
        backend._vocabulary = vocabulary_size(source.config)
        if not device.startswith(("GPU", "NPU")):
            backend._bytes_per_token = bytes_per_token(source.config, bytes_per_cached_value(folder, used))
        brought = {key: f"{value} (from the export)" for key, value in used.items() if _brought(key, options, runtime)}
        backend.info = replace(backend.info, detail={**backend.info.detail, **brought})
        return backend

    @classmethod
    def check_device(cls, device: str) -> None:
        check_device(device, Silent())

    def _describe(self, folder: str, device: str, options: dict[str, Any]) -> None:
        detail = {"mode": self.mode} | {key: str(value) for key, value in options.items() if key != "CACHE_DIR"}
        self.info = BackendInfo(self.name, device, weight_format(folder), detail)


def _brought(key: str, options: LoadOptions, runtime: Mapping[str, str]) -> bool:
    return key in runtime and key not in options.ov_config and not options.exact


class SingleBackend(OpenVINOBackend):
    """One request at a time, in SDPA mode. A thread generates: the engine holds signals back until it is done."""

    mode = "SDPA"

    def __init__(self, folder: str, device: str, options: dict[str, Any], batch_size: int | None = None) -> None:
        self._pipeline: Any = genai.LLMPipeline(folder, device, ATTENTION_BACKEND="SDPA", **options)
        self._busy = threading.Lock()
        self._open_in: list[int] = []
        self._streamers: dict[str, _Streamer] = {}
        self.steps = 0
        self._describe(folder, device, options)
        # The process would abort if it ended while the engine works.
        weakref.finalize(self, _end_work, self._streamers, self._busy)
        self._warm_up()

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        for request in requests:
            if request is None:
                continue
            if refused := refusal(request, self._vocabulary):
                yield refused
            else:
                yield from self._generate(request)

    def cancel(self, request_id: str) -> None:
        if streamer := self._streamers.get(request_id):
            streamer.cancelled = True

    def close(self) -> None:
        _end_work(self._streamers, self._busy)
        self._pipeline = None

    def _warm_up(self) -> None:
        """Prepare kernels and memory with a token that nobody sees, so that the first answer does not wait for it."""
        warm_up = TokenRequest("warm-up", (0,) * 16, max_tokens=1)
        self._pipeline.generate(tensor(warm_up), generation_config(warm_up))

    def _generate(self, request: TokenRequest) -> Iterator[TokenEvent]:
        thread = self._enter()
        streamer = self._streamers[request.id] = _Streamer()
        threading.Thread(target=self._work, args=(request, streamer), daemon=True).start()
        try:
            yield from _events(request, streamer)
        finally:
            streamer.cancelled = True
            self._open_in.remove(thread)

    def _enter(self) -> int:
        """Wait for another thread's answer to end. Waiting for one that this thread holds open would be for ever."""
        thread = threading.get_ident()
        if thread in self._open_in:
            raise BackendError(
                "This model was loaded for one answer at a time, and one is still open.",
                hint="Finish or close that stream first, or load with a batch_size above 1.",
            )
        self._busy.acquire()
        if self._pipeline is None:
            self._busy.release()
            raise closed(self.name)
        self._open_in.append(thread)
        return thread

    def _work(self, request: TokenRequest, streamer: _Streamer) -> None:
        """In the thread: whatever happens, the last item in the queue says how it ended."""
        end: Exception | None = None
        try:
            self._pipeline.generate(tensor(request), generation_config(request), streamer)
        except Exception as error:
            end = explained(error, self.info.device)
        self.steps += streamer.written
        del self._streamers[request.id]
        self._busy.release()
        streamer.queue.put(_End(end))


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


class _Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Takes tokens out of the engine's thread. It must not raise: an exception here aborts the process."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: SimpleQueue[int | _End] = SimpleQueue()
        self.written = 0
        self.cancelled = False

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        tokens = [token] if isinstance(token, int) else token
        self.written += len(tokens)
        for one in tokens:
            self.queue.put(one)
        return genai.StreamingStatus.STOP if self.cancelled else genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def _events(request: TokenRequest, streamer: _Streamer) -> Iterator[TokenEvent]:
    """What comes out of the engine's thread, until it has ended."""
    generated, reason = 0, None
    while not isinstance(item := streamer.queue.get(), _End):
        if reason is None and not streamer.cancelled:
            generated += 1
            reason = finish_reason(request, generated, item)
            yield TokenEvent(request.id, (item,), reason)
    if item.error is not None and reason is None:
        yield failure(request.id, item.error)
    elif streamer.cancelled and reason is None:
        yield TokenEvent(request.id, finish_reason="stop")
    elif reason is None:
        yield failure(request.id, BackendError(f"OpenVINO ended after {generated} tokens without a reason."))


def _end_work(streamers: Mapping[str, _Streamer], busy: threading.Lock) -> None:
    """Cancel what is being generated, and wait until the engine has seen it."""
    for streamer in list(streamers.values()):
        streamer.cancelled = True
    with busy:
        pass
