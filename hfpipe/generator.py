"""Text in, text events out: everything about text that stands between a prompt and an engine of token ids."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.errors import ContextLengthError, HFPipeError, TemplateError, UsageError, nearest
from hfpipe.models.folder import context_length
from hfpipe.sampling import end_token_ids, not_applied, resolve_max_tokens, resolve_sampling, stop_strings
from hfpipe.text.decoder import IncrementalDecoder
from hfpipe.text.stops import StopScanner
from hfpipe.text.templates import PromptTemplate, Template, parse_template
from hfpipe.text.tokenizer import Tokenizer, from_transformers, load_tokenizer
from hfpipe.types import (
    Completion,
    FinishReason,
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

if TYPE_CHECKING:
    from hfpipe.text.chat import ChatTemplate

# Unique in the process: streams in several threads may share one backend.
_numbers = itertools.count()
# Characters beyond which a prompt is measured before it is tokenized, which takes seconds a megabyte.
_LONG = 1_000_000


@dataclass(frozen=True, slots=True)
class FailedRequest(TextRequest):
    """What failed before it was a request: it is answered with `error`, in its turn."""

    error: HFPipeError = field(kw_only=True)


def prompt_template(
    tokenizer: Tokenizer,
    model: str,
    template: str | Template | None = None,
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
    chat_template_name: str | None = None,
) -> PromptTemplate:
    """How prompts are put to `model`. A `template` of None is chat where the model has a chat template, else qa.

    Raises TemplateError where the model has no such chat template, or several and none was named; UsageError for a
    `system` message where it has no place.
    """
    if isinstance(template, str):
        template = parse_template(template)
    must_choose = template is None or template.kind == "chat"
    chat = _chat_template(tokenizer, model, chat_template_name, must_choose=must_choose)
    chosen = template or parse_template("chat" if chat else "qa")
    return PromptTemplate(chosen, model, chat, system, variables or {})


def _chat_template(tokenizer: Tokenizer, model: str, name: str | None, *, must_choose: bool) -> ChatTemplate | None:
    """The chat template called `name`; without a name the default one, or the only one; None where there is none."""
    templates = tokenizer.chat_templates
    if name is None and ("default" in templates or len(templates) == 1):
        name = "default" if "default" in templates else next(iter(templates))
    if name is not None and name in templates:
        # Jinja2 is needed only here.
        from hfpipe.text.chat import ChatTemplate

        return ChatTemplate(templates[name], tokenizer.special_tokens, model)
    known = ", ".join(templates) or "none"
    if name is not None:
        raise TemplateError(
            f"{model} has no chat template {name!r}.", hint=nearest(name, templates) or f"It has: {known}."
        )
    if templates and must_choose:
        raise TemplateError(
            f"{model} has several chat templates: {known}.", hint="Choose one by its name (--chat-template-name)."
        )
    return None


class Generator:
    """A loaded model that answers prompts. `load_s` is how long loading took, `why` why this backend was chosen."""

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, source: ModelSource, *, why: str = "", load_s: float = 0.0
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.source = source
        self.why = why
        self.load_s = load_s
        config = source.config
        self._ends = end_token_ids(source.generation_config, config, config.get("text_config") or {})
        self._ends |= self._special_stops([tokenizer.special_tokens.get("eos_token", "")])
        self._stops = stop_strings(source.generation_config)

    def stream(self, requests: Iterable[TextRequest | None]) -> Iterator[TextEvent]:
        """Answer `requests`, pulled as the backend has room; the events of several are interleaved.

        Each request ends in one event with a finish_reason. One that fails does so in an event with its error. None
        means none as yet, as in Backend.stream.
        """
        answers: dict[str, _Answer | _Refused] = {}
        for event in self.backend.stream(self._admit(requests, answers)):
            answer = answers[event.request_id]
            text = answer.take(event)
            if event.finish_reason is not None:
                del answers[event.request_id]
            elif answer.finished:
                self.backend.cancel(event.request_id)
            if text is not None:
                yield text

    def generate(self, requests: Iterable[TextRequest | None]) -> Iterator[Completion]:
        """Answer `requests`, each as a whole, in the order in which they end."""
        texts: dict[str, list[str]] = {}
        for event in self.stream(requests):
            texts.setdefault(event.request_id, []).append(event.text)
            if event.finish_reason is not None:
                text = "".join(texts.pop(event.request_id))
                yield _completion(event, text)

    def prepare(self, request: TextRequest, request_id: str) -> TokenRequest:
        """The tokens of a prompt and the numbers of its generation. Raises where the prompt is empty or too long."""
        if isinstance(request, FailedRequest):
            raise request.error
        if len(request.prompt) > _LONG and self.source.context_length is not None:
            self._room(self.tokenizer.least_tokens(request.prompt), "at least ")
        token_ids = self.tokenizer.encode(request.prompt, request.add_special_tokens)
        if not request.prompt or not token_ids:
            raise UsageError("The prompt is empty.")
        options, preferred = request.options, self.source.generation_config
        return TokenRequest(
            request_id,
            token_ids,
            min(resolve_max_tokens(options, preferred), self._room(len(token_ids))),
            self._ends | self._special_stops((*options.stop, *self._stops)),
            resolve_sampling(options, preferred),
        )

    def prompt_template(
        self,
        template: str | Template | None = None,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        chat_template_name: str | None = None,
    ) -> PromptTemplate:
        """`prompt_template` for this model."""
        return prompt_template(self.tokenizer, self.source.reference, template, system, variables, chat_template_name)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit(
        self, requests: Iterable[TextRequest | None], answers: dict[str, _Answer | _Refused]
    ) -> Iterator[TokenRequest | None]:
        """What the backend is given. In place of a bad prompt an empty one, which it refuses at once."""
        for request in requests:
            if request is None:
                yield None
                continue
            start = time.perf_counter()
            number = str(next(_numbers))
            try:
                tokens = self.prepare(request, number)
            except HFPipeError as error:
                tokens = TokenRequest(number, (), 1)
                answers[number] = _Refused(request.id, error)
            else:
                stops = (*request.options.stop, *self._stops)
                answers[number] = _Answer(request.id, tokens, self.tokenizer, stops, start)
            yield tokens

    def _room(self, prompt_tokens: int, about: str = "") -> int:
        """How many tokens the context leaves for the answer."""
        limit = self.source.context_length
        if limit is None:
            return 2**31
        if prompt_tokens >= limit:
            raise ContextLengthError(
                f"The prompt has {about}{prompt_tokens} tokens, and the context of {self.source.reference} is {limit}.",
                hint="Shorten the prompt, or choose a model with a longer context.",
            )
        return limit - prompt_tokens

    def _special_stops(self, stops: Sequence[str]) -> frozenset[int]:
        """Stop strings that are special tokens: they have no text to be found in."""
        ids = (self.tokenizer.special_id(stop) for stop in stops)
        return frozenset(token_id for token_id in ids if token_id is not None)


def _completion(last: TextEvent, text: str) -> Completion:
    assert last.finish_reason is not None
    return Completion(last.request_id, text, last.finish_reason, last.usage, last.timing, last.error, last.seed)


class _Answer:
    """What is known of one answer while it is generated."""

    def __init__(
        self, request_id: str, tokens: TokenRequest, tokenizer: Tokenizer, stops: Sequence[str], start: float
    ) -> None:
        self.finished = False
        self._id = request_id
        self._request = tokens
        self._decoder = IncrementalDecoder(tokenizer, tokens.token_ids)
        self._scanner = StopScanner(stops)
        self._generated = 0
        self._start = self._first = self._last = start

    def take(self, event: TokenEvent) -> TextEvent | None:
        """The text that `event` makes final. After a stop string there is none, whatever the backend still sends."""
        if self.finished:
            return None
        if event.error is not None:
            self.finished = True
            return TextEvent(self._id, finish_reason="error", error=event.error)
        self._count(event)
        text, stopped = self._scanner.feed(self._text(event))
        if stopped:
            return self._end(text, "stop")
        if event.finish_reason is not None:
            return self._end(text + self._scanner.flush(), event.finish_reason)
        return TextEvent(self._id, text) if text else None

    def _count(self, event: TokenEvent) -> None:
        if not event.token_ids:
            return
        self._last = time.perf_counter()
        if self._generated == 0:
            self._first = self._last
        self._generated += len(event.token_ids)

    def _text(self, event: TokenEvent) -> str:
        ids = [token for token in event.token_ids if token not in self._request.eos_token_ids]
        text = self._decoder.feed(ids)
        return text if event.finish_reason is None else text + self._decoder.flush()

    def _end(self, text: str, reason: FinishReason) -> TextEvent:
        self.finished = True
        usage = Usage(len(self._request.token_ids), self._generated)
        timing = Timing(self._start, self._first, self._last)
        sampling = self._request.sampling
        return TextEvent(self._id, text, reason, usage, timing, seed=sampling.seed if sampling.temperature else None)


class _Refused:
    """A request that never reaches the engine."""

    finished = True

    def __init__(self, request_id: str, error: HFPipeError) -> None:
        self._event = TextEvent(request_id, finish_reason="error", error=error)

    def take(self, event: TokenEvent) -> TextEvent:
        return self._event


@dataclass(frozen=True, slots=True)
class Found:
    """A model that is here, with the backend that will run it; `start` is when the search began (perf_counter)."""

    source: ModelSource
    choice: backends.Choice
    start: float


def open_generator(reference: str, options: LoadOptions, reporter: Reporter | None = None) -> Generator:
    """Find the model, choose the backend, load it and the tokenizer. Raises an HFPipeError that says what failed."""
    return load_generator(find_model(reference, options, reporter), options, reporter)


def find_model(reference: str, options: LoadOptions, reporter: Reporter | None = None) -> Found:
    """What comes before anything heavy: resolve the reference, and choose the backend."""
    start = time.perf_counter()
    if options.backend != "auto":
        backends.check_options(options.backend, options)
    source = models.resolve(reference, revision=options.revision, allow_pickle=options.allow_pickle, reporter=reporter)
    choice = backends.choose(options.backend, source.format)
    backends.check_options(choice.name, options)
    return Found(source, choice, start)


def load_generator(found: Found, options: LoadOptions, reporter: Reporter | None = None) -> Generator:
    """Load the tokenizer and the weights."""
    reporter, source = reporter or Silent(), found.source
    tokenizer = load_tokenizer(source.folder, trust_remote_code=options.trust_remote_code)
    for ignored in not_applied(source.generation_config):
        reporter.note(f"generation_config.json of {source.reference} asks for {ignored}, which hfpipe does not apply.")
    backend = backends.load(found.choice.name, source, options, reporter)
    return Generator(backend, tokenizer, source, why=found.choice.why, load_s=time.perf_counter() - found.start)


def wrap_pipeline(pipeline: Any) -> Generator:
    """A generator over an existing transformers text-generation pipeline: its model, tokenizer and options."""
    if getattr(pipeline, "task", None) != "text-generation":
        raise UsageError(
            f"Expected a text-generation pipeline, got {getattr(pipeline, 'task', type(pipeline).__name__)}."
        )
    model, config = pipeline.model, pipeline.model.config.to_dict()
    settings = pipeline.generation_config.to_dict()
    # transformers samples from the 50 likeliest tokens where the settings leave it open.
    preferred = {"top_k": 50} | {name: value for name, value in settings.items() if value is not None}
    folder = Path(model.name_or_path)
    source = ModelSource(model.name_or_path, folder, "transformers", config, preferred, context_length(config))
    backend = import_module("hfpipe.backends.torch.decoding").TorchBackend(model.eval())
    return Generator(backend, from_transformers(pipeline.tokenizer), source, why="an existing pipeline")
