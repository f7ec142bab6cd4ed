"""Text in, text events out: everything about text between a prompt and an engine of token ids."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.errors import BackendError, ContextLengthError, HFPipeError, UsageError
from hfpipe.models import is_hub_id
from hfpipe.models.folder import context_length
from hfpipe.process import start_thread
from hfpipe.sampling import end_token_ids, not_applied, resolve_sampling, setting, stop_strings
from hfpipe.text.decoder import IncrementalDecoder, StopScanner
from hfpipe.text.tasks import PromptEncoder, for_task
from hfpipe.text.tokenizer import Tokenizer, from_transformers, is_read_alone, load_tokenizer
from hfpipe.types import (
    CHOSEN,
    BackendInfo,
    Completion,
    HostedModel,
    LoadOptions,
    ModelSource,
    Reporter,
    Silent,
    TextEvent,
    TextRequest,
    Timing,
    TokenEvent,
    TokenRequest,
    Usage,
)

# Unique in the process: streams in several threads may share one backend.
_numbers = itertools.count()
# Characters of a prompt, and for each token of the context, beyond which it is measured before all of it is tokenized,
# which takes seconds and 200 MB a megabyte.
_LONG, _PER_TOKEN = 1_000_000, 8


@dataclass(frozen=True, slots=True)
class FailedRequest(TextRequest):
    """A request that failed before it had a prompt: it is answered with `error`, in its turn."""

    error: HFPipeError = field(kw_only=True)


class TextGenerator(AbstractContextManager["TextGenerator"]):
    """What answers prompts of text: a loaded model (Generator), or one that a server runs (hfpipe.endpoint.Endpoint).

    `info` says what it runs on, `why` why this backend was chosen, `load_s` how long loading took, `loading` how it was
    loaded (None: by somebody else), `batch_size` how many requests are in flight at once. The `tokenizer` is None where
    only a server has it.
    """

    source: ModelSource | HostedModel
    tokenizer: Tokenizer | None
    info: BackendInfo
    why: str
    load_s: float
    loading: LoadOptions | None
    # What goes before each prompt, and what the answers of an encoder-decoder model begin with.
    prefix: str = ""
    decoder_ids: tuple[int, ...] = ()

    @property
    @abstractmethod
    def batch_size(self) -> int: ...

    @abstractmethod
    def stream(self, requests: Iterable[TextRequest | None]) -> Iterator[TextEvent]:
        """Answer `requests`, pulled as there is room; the events of several are interleaved.

        Each request ends in one event with a finish_reason; one that fails, in an event with its error. A request of
        None means that none is ready, as in Backend.stream.
        """

    def generate(
        self, requests: Iterable[TextRequest | None], is_cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Completion]:
        """Answer `requests`, each as a whole, in the order in which they end. Raises BackendError once `is_cancelled`,
        which is asked with every piece of text."""
        texts: dict[str, list[str]] = {}
        for event in self.stream(requests):
            if is_cancelled():
                raise BackendError("The answer was cancelled before it was finished.")
            texts.setdefault(event.id, []).append(event.text)
            if event.finish_reason is not None:
                text, timing = "".join(texts.pop(event.id)), event.timing
                yield Completion(event.id, text, event.finish_reason, event.usage, timing, event.error, event.seed)

    @abstractmethod
    def close(self) -> None:
        """Free what the model holds, and end what is in flight."""

    def __exit__(self, *_: object) -> None:
        self.close()


class Generator(TextGenerator):
    """A loaded model that answers prompts. With `loading`, the options that it was loaded with, it can be pickled:
    unpickling loads the model again."""

    source: ModelSource
    tokenizer: Tokenizer

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        source: ModelSource,
        *,
        loading: LoadOptions | None = None,
        encoder: PromptEncoder | None = None,
        why: str = "",
        load_s: float = 0.0,
    ) -> None:
        self.backend = backend
        self.info = backend.info
        self.tokenizer = tokenizer
        self.source = source
        self.encoder = encoder or PromptEncoder(tokenizer, source)
        self.prefix, self.decoder_ids = self.encoder.prefix, self.encoder.decoder_ids
        self.loading = loading
        self.why = why
        self.load_s = load_s
        config = source.config
        self._ends = end_token_ids(source.generation_config, config, config.get("text_config") or {})
        self._stops = stop_strings(source.generation_config)
        self._ends |= self._special_stops([tokenizer.special_tokens.get("eos_token", ""), *self._stops])

    @property
    def batch_size(self) -> int:
        return self.backend.batch_size

    def stream(self, requests: Iterable[TextRequest | None]) -> Iterator[TextEvent]:
        answers: dict[str, _Answer] = {}
        for event in self.backend.stream(self._admit(requests, answers)):
            answer = answers[event.request_id]
            text = answer.take(event)
            if event.finish_reason is not None:
                del answers[event.request_id]
            elif answer.finished:
                self.backend.cancel(event.request_id)
            if text is not None:
                yield text

    def prepare(self, request: TextRequest, request_id: str) -> TokenRequest:
        """The tokens of a prompt and the numbers of its generation; its `max_tokens` are 0 where what the answer begins
        with is all of it. Raises where the prompt is empty or too long."""
        if isinstance(request, FailedRequest):
            raise request.error
        source, options = self.source, request.options
        preferred, limit = source.generation_config, source.context_length or 2**31
        # A decoder-only model needs room for an answer; another has as much again for it.
        most = limit if source.is_encoder_decoder else limit - 1
        token_ids: tuple[int, ...] = ()
        about, beyond = "at least ", max(_LONG, _PER_TOKEN * limit)
        if len(request.prompt) > beyond:
            # Without the last spaces: a token that follows may swallow them.
            token_ids = self.encoder.encode(request.prompt[:beyond].rstrip(), False)
        if len(token_ids) <= most:
            token_ids, about = self.encoder.encode(request.prompt, request.add_special_tokens), ""
        if not request.prompt or not token_ids:
            raise UsageError("The prompt is empty.")
        if len(token_ids) > most:
            raise ContextLengthError(
                f"The prompt has {about}{len(token_ids)} tokens, and the context of {source.reference} is {limit}.",
                hint="Shorten the prompt, or choose a model with a longer context.",
            )
        # As in transformers, a forced first token, such as a language, is one of the answer.
        forced = len(self.decoder_ids[1:])
        before = len(self.decoder_ids or token_ids) - forced
        longest = int(setting("max_tokens", options, preferred))
        if options.max_length is not None and options.max_tokens is None:
            longest = options.max_length - before
        if longest < 1:
            raise ContextLengthError(
                f"The prompt has {len(token_ids)} tokens, and max_length={options.max_length} counts them too.",
                hint="Raise max_length, or give max_new_tokens (max_tokens), which counts the answer alone.",
            )
        ends = self._ends
        if options.eos_token_id is not None:
            ends = end_token_ids({"eos_token_id": options.eos_token_id}) | self._special_stops(self._stops)
        ends = ends | self._special_stops(options.stop) if options.stop else ends
        # LED takes long prompts, and no long answers.
        room = min(limit, source.config.get("max_decoder_position_embeddings") or limit) - before
        longest = min(longest, room) - forced
        sampling = resolve_sampling(options, preferred)
        return TokenRequest(request_id, token_ids, longest, ends, sampling, self.decoder_ids)

    def close(self) -> None:
        self.backend.close()

    def __reduce__(self) -> Any:
        if self.loading is None:
            raise UsageError(
                "A model that was wrapped after it was loaded, as a transformers pipeline is, cannot be pickled.",
                hint='Load it by its name, as in hfpipe.load("gpt2"): unpickling then loads it again.',
            )
        reference, loading = self.source.reference, self.loading
        if Path(reference).expanduser().exists():
            reference = str(Path(reference).expanduser().absolute())
        elif is_hub_id(reference):
            loading = replace(loading, revision=self.source.revision)
        return open_generator, (reference, loading)

    def _admit(
        self, requests: Iterable[TextRequest | None], answers: dict[str, _Answer]
    ) -> Iterator[TokenRequest | None]:
        """What the backend is given. In place of a bad prompt, and of one with nothing to generate, an empty one, which
        it refuses at once."""
        for request in requests:
            if request is None:
                yield None
                continue
            start, number, refused = time.perf_counter(), str(next(_numbers)), None
            try:
                tokens = self.prepare(request, number)
            except HFPipeError as error:
                tokens, refused = TokenRequest(number, (), 1), error
            decoder = IncrementalDecoder(self.tokenizer, tokens.decoder_ids or tokens.token_ids)
            stops = (*request.options.stop, *self._stops)
            scanner = StopScanner(stops) if stops else None
            forced = len(tokens.decoder_ids[1:])
            answers[number] = _Answer(request.id, tokens, decoder, scanner, start, refused, forced, self._ends)
            yield tokens if tokens.max_tokens else replace(tokens, token_ids=(), max_tokens=1)

    def _special_stops(self, stops: Sequence[str]) -> frozenset[int]:
        """Stop strings that are special tokens: they have no text to be found in."""
        ids = (self.tokenizer.special_id(stop) for stop in stops)
        return frozenset(token_id for token_id in ids if token_id is not None)


@dataclass(slots=True)
class _Answer:
    """What is known of one answer while it is generated; `refused` is the error of a bad prompt, and `generated` counts
    a forced first token. The model's own ends are `hidden`; one that a request names is shown, as transformers does."""

    id: str
    request: TokenRequest
    decoder: IncrementalDecoder
    scanner: StopScanner | None
    start: float
    refused: HFPipeError | None
    generated: int
    hidden: frozenset[int]
    finished: bool = False
    first: float = 0.0
    last: float = 0.0
    steps: int = 0

    def take(self, event: TokenEvent) -> TextEvent | None:
        """The text that `event` makes final; nothing after a stop string, whatever the backend still sends."""
        if self.finished:
            return None
        if not self.request.max_tokens:
            event = TokenEvent(event.request_id, finish_reason="length")
        if error := self.refused or event.error:
            self.finished = True
            return TextEvent(self.id, finish_reason="error", error=error)
        if event.token_ids:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.generated += len(event.token_ids)
            self.steps += not event.same_step
        reason, last = event.finish_reason, event.finish_reason is not None
        text = self.decoder.feed((token for token in event.token_ids if token not in self.hidden), last)
        if self.scanner:
            text, stopped = self.scanner.feed(text, last)
            reason = "stop" if stopped else reason
        if reason is None:
            return TextEvent(self.id, text) if text else None
        self.finished = True
        usage = Usage(len(self.request.token_ids), self.generated)
        timing = Timing(self.start, self.first or self.start, self.last or self.start, self.steps)
        seed = self.request.sampling.seed if self.request.sampling.temperature else None
        return TextEvent(self.id, text, reason, usage, timing, seed=seed)


@dataclass(frozen=True)
class Found:
    """A model, with the backend that will run it, and how it is to be loaded; `start` is when the search began
    (perf_counter)."""

    source: ModelSource | HostedModel
    choice: backends.Choice
    loading: LoadOptions
    start: float

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The tokenizer of a model that is not hosted, read when it is first asked for. Raises HFPipeError where it
        cannot be read, or a language must be chosen."""
        assert isinstance(self.source, ModelSource)
        tokenizer = load_tokenizer(self.source.folder, trust_remote_code=self.loading.trust_remote_code)
        encoder = PromptEncoder(tokenizer, self.source)
        encoder.check_language(self.source.reference)
        return encoder


def open_generator(reference: str, options: LoadOptions, reporter: Reporter | None = None) -> TextGenerator:
    """Find the model, choose the backend, load it and the tokenizer."""
    return load_generator(find_model(reference, options, reporter), reporter)


def find_model(
    reference: str, options: LoadOptions, reporter: Reporter | None = None, *, resumed: str | None = None
) -> Found:
    """Find the model and choose the backend, before anything heavy is imported. Where two would do, it is the one that
    answers are `resumed` with."""
    start = time.perf_counter()
    if options.backend not in CHOSEN:
        backends.check_options(options.backend, options)
    if options.backend == "endpoint":
        hosted = import_module("hfpipe.endpoint").find(reference, options)
        return Found(hosted, backends.Choice("endpoint", "asked for"), options, start)
    revision, pickles = options.revision, options.allow_pickle
    source = models.resolve(reference, revision=revision, allow_pickle=pickles, reporter=reporter, access=options.hub)
    source = for_task(source, options)
    choice = backends.choose(options, source, reporter or Silent(), resumed=resumed)
    backends.check_options(choice.name, options)
    return Found(source, choice, options, start)


def load_generator(found: Found, reporter: Reporter | None = None) -> TextGenerator:
    """Load the tokenizer and the weights."""
    if isinstance(found.source, HostedModel):
        why, load_s = found.choice.why, time.perf_counter() - found.start
        endpoint = import_module("hfpipe.endpoint").Endpoint
        hosted: TextGenerator = endpoint(found.source, found.loading, why=why, load_s=load_s)
        return hosted
    # What it raises is told before the weights are read.
    _ = found.encoder
    reporter = reporter or Silent()
    return _generator(found, backends.load(found.choice.name, found.source, found.loading, reporter), reporter)


def load_in_thread(found: Found, reporter: Reporter) -> Callable[[], TextGenerator]:
    """Read the weights while this thread imports what is needed next, and reads the tokenizer: it does so as it calls
    what it is given. A process that ends does not wait for the weights."""
    source = found.source
    if isinstance(source, HostedModel):
        return lambda: load_generator(found, reporter)
    loaded: Future[Backend] = Future()

    def load() -> None:
        try:
            loaded.set_result(backends.load(found.choice.name, source, found.loading, reporter))
        except BaseException as error:
            loaded.set_exception(error)

    def wait() -> TextGenerator:
        if not is_read_alone(source.folder):
            # By transformers, whose parts are not to be imported by two threads at once.
            loaded.exception()
        _ = found.encoder
        return _generator(found, loaded.result(), reporter)

    start_thread(load)
    return wait


def _generator(found: Found, backend: Backend, reporter: Reporter) -> Generator:
    source, encoder = found.source, found.encoder
    assert isinstance(source, ModelSource)
    for ignored in not_applied(source.generation_config, encoder_decoder=source.is_encoder_decoder):
        reporter.note(f"generation_config.json of {source.reference} asks for {ignored}, which hfpipe does not apply.")
    why, load_s = found.choice.why, time.perf_counter() - found.start
    return Generator(backend, encoder.tokenizer, source, loading=found.loading, encoder=encoder, why=why, load_s=load_s)


def wrap_pipeline(pipeline: Any, batch_size: int | None = None) -> Generator:
    """A generator over an existing transformers text-generation pipeline: its model, tokenizer and options."""
    task = getattr(pipeline, "task", type(pipeline).__name__)
    if task != "text-generation":
        raise UsageError(f"Expected a text-generation pipeline, got {task}.")
    model, config, settings = pipeline.model, pipeline.model.config.to_dict(), pipeline.generation_config.to_dict()
    # transformers samples from the 50 likeliest tokens where the settings leave it open.
    preferred = {"top_k": 50} | {name: value for name, value in settings.items() if value is not None}
    name, length = model.name_or_path, context_length(config)
    source = ModelSource(name, Path(name), "transformers", config, preferred, length)
    backend = import_module("hfpipe.backends.torch.decoding").TorchBackend(
        model.eval(), batch_size=batch_size or pipeline._batch_size
    )
    return Generator(backend, from_transformers(pipeline.tokenizer), source, why="an existing pipeline")
