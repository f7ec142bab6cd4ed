"""The OpenVINO engine, through openvino-genai: one request at the lowest latency in SDPA mode, whose compiled model is
cached and starts in a third of a second; or many by continuous batching, in paged mode. Both take and give token ids,
so that the folder needs no OpenVINO tokenizer. Prompt lookup is of the paged mode."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
import openvino as ov
import openvino_genai as genai
from typing_extensions import Self

from hfpipe.backends.base import vocabulary_size
from hfpipe.backends.batching import NGRAM, BatchEngine
from hfpipe.backends.openvino import loading, tuning
from hfpipe.backends.openvino.optimum_cli import own_export
from hfpipe.backends.scheduling import Engine, Flight, Stream, bytes_per_token, token_budget
from hfpipe.errors import BackendError, HFPipeError, OutOfMemory
from hfpipe.machine import available_memory
from hfpipe.process import start_thread
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, Silent, TokenEvent, TokenRequest

# Measured over 256 prompts with answers of 8 to 120 tokens: 5 % faster than 64, and 2 % slower than 256.
DEFAULT_WINDOW = 128

# What the engine raises, through its binding, and what says that it is closed.
FAILURES = (RuntimeError, ValueError, IndexError, MemoryError, BackendError)

_NO_TOKEN = 2**31 - 1


def _no_tokenizer() -> Any:
    """A tokenizer that is none: the one of a folder that has none. It saves the 0.05 s that compiling the model's own
    takes, and a fault of it is none of ours."""
    return genai.Tokenizer(str(Path(__file__).parent))


class OpenVINOBackend(Engine):
    """What both modes share. `load` gives the mode that fits `batch_size`."""

    name = "openvino"
    mode: ClassVar[str]
    # Of the KV cache; None where it is not known, or not in this machine's memory.
    _bytes_per_token: int | None = None

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        device = loading.check_device(options.device, reporter)
        folder = own_export(source, options, reporter)
        alone = options.batch_size == 1
        mode: type[Any] = SingleBackend if alone and not options.prompt_lookup else PagedBackend
        if source.is_encoder_decoder:
            from hfpipe.backends.openvino.seq2seq import Seq2SeqBackend as mode

            # The rows of a static batch are computed together, and not to the last bit as alone.
            alone |= options.exact
        with loading.readable(device, folder):

            def make(choice: tuning.Choice, *, is_kept: bool = True) -> tuple[Any, dict[str, Any], dict[str, str]]:
                used, reasons = loading.properties(options, device, choice)
                if alone and is_kept and mode is not PagedBackend:
                    used = loading.with_compile_cache(folder, device, used, reporter, model=source.reference)
                lookup = {"lookup": options.prompt_lookup} if mode is PagedBackend else {}
                return mode(str(folder), device, used, 1 if alone else options.batch_size, **lookup), used, reasons

            def load(properties: Mapping[str, str]) -> OpenVINOBackend:
                backend: OpenVINOBackend = make(tuning.Choice(properties), is_kept=False)[0]
                return backend

            choice = tuning.chosen(folder, device, options)
            backend: Self
            backend, used, reasons = make(choice or tuning.Choice())
            if choice is None and tuning.is_due(folder, options, device):
                vocabulary = vocabulary_size(source.config) or tuning.FEW_TOKENS
                choice = tuning.at_first_load(folder, options, backend, load, vocabulary, reporter)
                if choice and choice.properties:
                    backend.close()
                    backend, used, reasons = make(choice)
        if isinstance(backend, BatchEngine):
            backend.begin_as(source)
        backend._vocabulary = vocabulary_size(source.config)
        if not device.startswith(("GPU", "NPU")):
            backend._bytes_per_token = bytes_per_token(source.config, loading.bytes_per_cached_value(folder, used))
        detail = {"mode": mode.mode}
        if mode is not SingleBackend:
            detail["window"] = str(backend.batch_size)
        if options.prompt_lookup:
            detail["prompt lookup"] = str(options.prompt_lookup)
        if choice and choice.is_measured:
            detail["settings"] = "the fastest measured here"
        detail |= {key: str(value) for key, value in used.items() if key != "CACHE_DIR"}
        detail |= {key: f"{used[key]} ({why})" for key, why in reasons.items()}
        backend.info = BackendInfo(cls.name, device, loading.weight_format(folder), detail)
        return backend

    @classmethod
    def check_device(cls, device: str) -> None:
        loading.check_device(device, Silent())


class _Answer(Flight):
    """A request, with the events that the engine's thread has made of it."""

    def __init__(self, request: TokenRequest) -> None:
        super().__init__(request)
        self.events: SimpleQueue[TokenEvent] = SimpleQueue()


class _Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Takes tokens out of the engine. It must not raise: an exception here aborts the process."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__()
        self._answer = answer

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        for one in [token] if isinstance(token, int) else token:
            if not self._answer.cancelled and not self._answer.done:
                self._answer.events.put(self._answer.take(one))
        return genai.StreamingStatus.STOP if self._answer.cancelled else genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """For the engine, at its end."""


class SingleBackend(OpenVINOBackend):
    """One request at a time, in SDPA mode, in the order in which they came.

    An answer is generated whether or not it is read: one that is asked for while another is open waits until that one
    is finished, and what is left of that one can be read afterwards.
    """

    mode = "SDPA"
    flight = _Answer

    def __init__(self, folder: str, device: str, options: dict[str, Any], batch_size: int | None = None) -> None:
        super().__init__()
        pipeline = genai.LLMPipeline(folder, _no_tokenizer(), device, ATTENTION_BACKEND="SDPA", **options)
        # A token that nobody sees prepares kernels and memory, so that the first answer does not wait for it.
        first = TokenRequest("warm-up", (0,) * 16, max_tokens=1)
        pipeline.generate(tensor(first), generation_config(first))
        self._queue: SimpleQueue[_Answer | None] = SimpleQueue()
        # In a thread: the engine holds signals back until an answer is finished. It knows nothing of the backend, which
        # can so be freed while it waits.
        thread = start_thread(_answer_all, pipeline, device, self._queue)
        # The process would abort if it ended while the engine works.
        self._stop = weakref.finalize(self, _stop, thread, self._queue, self._active)

    def _generate(self, stream: Stream) -> Iterator[TokenEvent]:
        while stream.more:
            yield from self._fill(stream, 1)
            if stream.waiting:
                answer = stream.waiting.pop()
                self._queue.put(answer)
                # What was put before the backend was closed ends with an event; what was put later may not.
                event = None
                while not self._closed and (event is None or event.finish_reason is None):
                    yield (event := answer.events.get())

    def close(self) -> None:
        super().close()
        self._stop()


def _answer_all(pipeline: Any, device: str, queue: SimpleQueue[_Answer | None]) -> None:
    """Answer what comes, until None does. Every answer ends with an event."""
    while answer := queue.get():
        failed: Exception | None = None
        try:
            if not answer.cancelled:
                pipeline.generate(tensor(answer.request), generation_config(answer.request), _Streamer(answer))
            if not answer.cancelled and not answer.done:
                failed = BackendError(f"OpenVINO ended after {len(answer.token_ids)} tokens without a reason.")
        except Exception as error:
            failed = loading.explained(error, device)
        if not answer.done:
            answer.events.put(answer.end(failed))


def _stop(thread: threading.Thread, queue: SimpleQueue[_Answer | None], active: dict[str, Flight]) -> None:
    """End what is generated and what waits, and wait for the thread."""
    for answer in list(active.values()):
        answer.cancelled = True
    queue.put(None)
    thread.join()


class PagedFlight(Flight):
    """A request in continuous batching. Its handle must be kept: dropping it stops the request."""

    handle: Any = None

    @property
    def can_go_on(self) -> bool:
        """What was drawn so far cannot be drawn again."""
        return not self.token_ids or self.request.sampling.temperature == 0

    def read(self) -> Iterator[TokenEvent]:
        """The tokens that are ready. `read` of the handle with nothing queued would wait for ever; that of a stopped
        request may give what was only proposed."""
        while not self.done and not self.cancelled and self.handle.can_read():
            for output in self.handle.read().values():
                yield from self.take_all(output.generated_ids)
        status = self.handle.get_status()
        if self.done or status == genai.GenerationStatus.RUNNING:
            return
        # A step that had nothing else to do calls a stopped request IGNORED.
        if self.cancelled or status in (genai.GenerationStatus.STOP, genai.GenerationStatus.CANCEL):
            yield self.end()
        elif status != genai.GenerationStatus.IGNORED:
            yield self.end(BackendError(f"OpenVINO ended after {len(self.token_ids)} tokens: {status}."))


class PagedBackend(OpenVINOBackend):
    """Up to `batch_size` requests in flight, in paged mode. Streams in several threads share the engine's steps.

    Of a stream one is always in flight. More are, in the order in which they came, only while the prompts and answers
    of all in the engine fit into a share of the memory that was available when the stream began. Where memory runs out
    all the same, `batch_size` becomes half of what was in flight, and that is given to the engine again. With `lookup`,
    so many tokens are proposed to a step for each request; tokens are drawn as without.
    """

    mode = "paged"
    flight = PagedFlight

    def __init__(
        self,
        folder: str,
        device: str,
        options: dict[str, Any],
        batch_size: int | None = None,
        *,
        lookup: int | None = None,
    ) -> None:
        super().__init__()
        self._lookup = lookup
        options = {**options, "prompt_lookup": True} if lookup else options
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = self.batch_size = batch_size or DEFAULT_WINDOW
        self._pipeline: Any = genai.ContinuousBatchingPipeline(folder, _no_tokenizer(), scheduler, device, **options)
        self._numbers = itertools.count()
        self._stepping = threading.Lock()

    def _generate(self, stream: Stream) -> Iterator[TokenEvent]:
        budget = self._token_budget()
        while stream.running or stream.more:
            while len(stream.running) < self.batch_size:
                yield from self._fill(stream, 1)
                if not stream.waiting or (stream.running and not self._fits(stream, budget)):
                    break
                yield from self._add(stream.waiting.pop(0), stream)
            if stream.running:
                yield from self._step(stream)

    def close(self) -> None:
        super().close()
        self._drop(list(self._active.values()))
        with self._stepping:
            self._pipeline = None

    def _token_budget(self) -> float:
        """The tokens that all in flight may come to. What the engine's cache has taken it keeps, and uses again."""
        with self._open() as pipeline:
            taken: int = pipeline.get_metrics().cache_size_in_bytes
        return token_budget(available_memory() + taken, self._bytes_per_token)

    def _fits(self, stream: Stream, budget: float) -> bool:
        """Whether the next may run beside the others. The engine reserves an answer's memory when it takes the
        request."""
        taken = sum(flight.tokens for flight in list(self._active.values()) if flight.handle is not None)
        following = stream.waiting[0]
        return not (following.alone or stream.running[0].alone) and following.tokens <= budget - taken

    def _drop(self, flights: list[Any]) -> None:
        super()._drop(flights)
        self._end(flights)

    def _end(self, flights: list[PagedFlight]) -> None:
        """Stop those of these that are in the engine and let it see it, so that their memory is freed."""
        handles = [flight.handle for flight in flights if flight.handle is not None]
        if handles:
            with suppress(*FAILURES), self._open() as pipeline:
                for handle in handles:
                    handle.stop()
                pipeline.step()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The engine, for one thread at a time."""
        with self._stepping:
            if self._pipeline is None:
                raise self._closed_error()
            yield self._pipeline

    def _add(self, flight: PagedFlight, stream: Stream) -> Iterator[TokenEvent]:
        """Give the engine what is left of a request: it goes on from the prompt and the tokens so far."""
        remaining = flight.request.max_tokens - len(flight.token_ids)
        left = replace(flight.request, token_ids=flight.whole, max_tokens=remaining)
        stream.running.append(flight)
        try:
            config = generation_config(left)
            if self._lookup:
                config.num_assistant_tokens, config.max_ngram_size = self._lookup, NGRAM
            with self._open() as pipeline:
                flight.handle = pipeline.add_request(next(self._numbers), tensor(left), config)
        except FAILURES as error:
            yield from self._failed([flight], loading.explained(error, self.info.device), stream)

    def _step(self, stream: Stream) -> Iterator[TokenEvent]:
        """One step of the engine, and what it gave to this stream's requests."""
        try:
            with self._open() as pipeline:
                # Just before a step, which frees what a stopped request holds.
                for flight in stream.running:
                    if flight.cancelled:
                        flight.handle.stop()
                pipeline.step()
        except FAILURES as error:
            yield from self._failed(stream.running, loading.explained(error, self.info.device), stream)
            return
        for flight in stream.running:
            yield from flight.read()
        stream.running = [flight for flight in stream.running if not flight.done]
        if ignored := [one for one in stream.running if one.handle.get_status() == genai.GenerationStatus.IGNORED]:
            yield from self._failed(ignored, OutOfMemory("The KV cache has no room for this request."), stream)

    def _failed(self, flights: list[PagedFlight], error: HFPipeError, stream: Stream) -> Iterator[TokenEvent]:
        self._end(flights)
        for flight in flights:
            flight.handle = None
        yield from super()._failed(flights, error, stream)


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
