"""The OpenVINO engine, through openvino-genai: one request at the lowest latency, or many by continuous batching.

One request at a time runs in SDPA mode, whose compiled model is cached and starts in a third of a second; more than one
in paged mode, which shares the steps of the engine among all that are in flight. Both take and give token ids, so that
the folder needs no OpenVINO tokenizer.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
import openvino as ov
import openvino_genai as genai
from typing_extensions import Self

from hfpipe.backends.base import Backend, closed, failure, finish_reason, refusal, vocabulary_size
from hfpipe.backends.kv_cache import bytes_per_token
from hfpipe.backends.openvino import loading
from hfpipe.errors import BackendError
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, Silent, TokenEvent, TokenRequest

_NO_TOKEN = 2**31 - 1


class OpenVINOBackend(Backend):
    """What both modes share. `load` gives the mode that fits `batch_size`."""

    name = "openvino"
    mode: ClassVar[str]
    _vocabulary: int | None = None
    # Of the KV cache; None where it is not known, or not in this machine's memory.
    _bytes_per_token: int | None = None

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        device = loading.check_device(options.device, reporter)
        folder = loading.model_folder(source, options, reporter)
        single = options.batch_size == 1
        # paged is built on this file.
        mode: type[Any] = (
            SingleBackend if single else importlib.import_module("hfpipe.backends.openvino.paged").PagedBackend
        )
        with loading.readable(device, folder):
            # An export's own properties were measured on a CPU.
            used, reasons = loading.properties(options, device, source.runtime if device == "CPU" else {})
            if single:
                used = loading.with_compile_cache(folder, device, used, reporter)
            backend: Self = mode(str(folder), device, used, options.batch_size)
        backend._vocabulary = vocabulary_size(source.config)
        if not device.startswith(("GPU", "NPU")):
            backend._bytes_per_token = bytes_per_token(source.config, loading.bytes_per_cached_value(folder, used))
        detail = {key: str(value) for key, value in used.items() if key != "CACHE_DIR"}
        detail |= {key: f"{used[key]} ({why})" for key, why in reasons.items()}
        window = {} if single else {"window": str(getattr(backend, "batch_size", 1))}
        dtype = loading.weight_format(str(folder))
        backend.info = BackendInfo(cls.name, device, dtype, {"mode": mode.mode, **window, **detail})
        return backend

    @classmethod
    def check_device(cls, device: str) -> None:
        loading.check_device(device, Silent())


class SingleBackend(OpenVINOBackend):
    """One request at a time, in SDPA mode, in the order in which they came.

    An answer is generated whether or not it is read: one that is asked for while another is open waits until that one
    is finished, and what is left of that one can be read afterwards.
    """

    mode = "SDPA"

    def __init__(self, folder: str, device: str, options: dict[str, Any], batch_size: int | None = None) -> None:
        self._worker = _Worker(genai.LLMPipeline(folder, device, ATTENTION_BACKEND="SDPA", **options), device)
        # The process would abort if it ended while the engine works.
        self._close = weakref.finalize(self, self._worker.close)

    @property
    def steps(self) -> int:
        """How many tokens the engine has generated."""
        return self._worker.steps

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        if not self._close.alive:
            raise closed(self.name)
        for request in requests:
            if request is None:
                continue
            if refused := refusal(request, self._vocabulary):
                yield refused
                continue
            answer = self._worker.submit(request)
            try:
                while (event := answer.events.get()).finish_reason is None:
                    yield event
                yield event
            finally:
                answer.cancelled = True

    def cancel(self, request_id: str) -> None:
        if answer := self._worker.answers.get(request_id):
            answer.cancelled = True

    def close(self) -> None:
        self._close()


class _Worker:
    """The thread that generates: the engine holds signals back until an answer is finished. It knows nothing of the
    backend, which can so be freed while it waits."""

    def __init__(self, pipeline: Any, device: str) -> None:
        self.steps = 0
        self.answers: dict[str, _Answer] = {}
        self._device = device
        self._queue: SimpleQueue[_Answer | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        # A token that nobody sees prepares kernels and memory, so that the first answer does not wait for it.
        first = TokenRequest("warm-up", (0,) * 16, max_tokens=1)
        pipeline.generate(tensor(first), generation_config(first))
        self._thread = threading.Thread(target=self._work, args=(pipeline,), name="hfpipe-openvino", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendError(
                "Cannot start the thread that generates.", hint="Raise the limit of processes (ulimit -u)."
            ) from error

    def submit(self, request: TokenRequest) -> _Answer:
        answer = _Answer(request, self)
        with self._closing:
            if self._closed:
                answer.send(failure(request.id, closed(OpenVINOBackend.name)))
            else:
                self.answers[request.id] = answer
                self._queue.put(answer)
        return answer

    def close(self) -> None:
        """End what is generated and what waits, and wait for the thread."""
        with self._closing:
            self._closed = True
            for answer in list(self.answers.values()):
                answer.cancelled = True
            self._queue.put(None)
        self._thread.join()

    def _work(self, pipeline: Any) -> None:
        while answer := self._queue.get():
            request = answer.request
            last = TokenEvent(request.id, finish_reason="stop")
            try:
                if not answer.cancelled:
                    pipeline.generate(tensor(request), generation_config(request), answer)
                if not answer.cancelled and not answer.ended:
                    raise BackendError(f"OpenVINO ended after {answer.generated} tokens without a reason.")
            except Exception as error:
                last = failure(request.id, loading.explained(error, self._device))
            if self.answers.get(request.id) is answer:
                del self.answers[request.id]
            answer.send(failure(request.id, closed(OpenVINOBackend.name)) if self._closed else last)


class _Answer(genai.StreamerBase):  # type: ignore[misc]
    """Takes tokens out of the engine's thread. It must not raise: an exception here aborts the process."""

    def __init__(self, request: TokenRequest, worker: _Worker) -> None:
        super().__init__()
        self.request = request
        self._worker = worker
        self.events: SimpleQueue[TokenEvent] = SimpleQueue()
        self.generated = 0
        self.cancelled = self.ended = False

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        for one in [token] if isinstance(token, int) else token:
            self.generated += 1
            # Before the event: whoever has read the last one finds all counted.
            self._worker.steps += 1
            if not self.cancelled:
                self.send(TokenEvent(self.request.id, (one,), finish_reason(self.request, self.generated, one)))
        return genai.StreamingStatus.STOP if self.cancelled else genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """For the engine, at its end."""

    def send(self, event: TokenEvent) -> None:
        """Give the reader an event; nothing after the last."""
        if not self.ended:
            self.ended = event.finish_reason is not None
            self.events.put(event)


def tensor(request: TokenRequest) -> ov.Tensor:
    """int64 [1, time]"""
    return ov.Tensor(np.array([request.token_ids], dtype=np.int64))


def generation_config(request: TokenRequest) -> genai.GenerationConfig:
    """Everything is set: the engine would take an end token that is not from the folder's own generation config."""
    config, sampling = genai.GenerationConfig(), request.sampling
    config.apply_chat_template = False
    config.max_new_tokens = request.max_tokens
    config.ignore_eos = not request.eos_token_ids
    # Where there is none, an id that no model has: an unset one would be taken from the folder.
    config.eos_token_id = min(request.eos_token_ids, default=_NO_TOKEN)
    config.stop_token_ids = {config.eos_token_id, *request.eos_token_ids}
    config.repetition_penalty = sampling.repetition_penalty
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        config.rng_seed = sampling.seed
        if sampling.top_k > 0:
            config.top_k = sampling.top_k
    return config
