"""What the LLM and the chat model share: a loaded model, and options that every call may override."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from langchain_core.caches import BaseCache
from langchain_core.callbacks import Callbacks
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from typing_extensions import Self, Unpack

from hfpipe.errors import UsageError
from hfpipe.generator import TextGenerator, open_generator
from hfpipe.langchain.compat import OF_TRANSFORMERS, STOPS, as_pipeline_kwargs, of_constructor, translated
from hfpipe.text.templates import PromptTemplate, prompt_template
from hfpipe.types import (
    OF_GENERATION,
    OF_LOADING,
    GenerationFields,
    GenerationOptions,
    LoadFields,
    LoadOptions,
    Reporter,
    TextEvent,
    TextRequest,
    keyword_options,
)

_T = TypeVar("_T")
_LOADING = OF_LOADING | {"reporter"}
# Their types, strictly: True is no number, and "yes" no boolean. LoadOptions itself checks what prompt_lookup may be.
_TYPES: dict[str, Any] = {name: (kind, None) for name, kind in get_type_hints(LoadOptions).items()}
_LOAD_OPTIONS = create_model(
    "_LOAD_OPTIONS",
    __config__=ConfigDict(strict=True, protected_namespaces=()),
    **(_TYPES | {"prompt_lookup": (Any, None)}),
)
_EXPECTED = {"device": 'a number or text such as "cuda:1"', "device_map": 'text such as "auto" or a dict of places'}
# What every call may override.
_OF_A_CALL = OF_GENERATION | {"template", "system", "chat_template_name", "variables", "add_special_tokens"}
# By all its names.
_CALLED = _OF_A_CALL | OF_TRANSFORMERS | {"pipeline_kwargs", "generation_config"}


class Options(LoadFields, GenerationFields, total=False):
    """The keyword arguments of `hfpipe.load`, HFPipe and ChatHFPipe."""

    reporter: Reporter | None
    template: str | None
    system: str | None
    chat_template_name: str | None
    variables: Mapping[str, Any]
    add_special_tokens: bool | None
    cache: BaseCache | bool | None
    verbose: bool
    callbacks: Callbacks
    tags: list[str] | None
    metadata: dict[str, Any] | None
    name: str | None
    streaming: bool
    custom_get_token_ids: Callable[[str], list[int]] | None


class LoadedModel(BaseModel):
    """A model over a generator. `model` is the reference it was loaded from."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str
    generator: TextGenerator = Field(exclude=True, repr=False)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_length: int | None = None
    do_sample: bool | None = None
    eos_token_id: int | Sequence[int] | None = None
    template: str | None = None
    system: str | None = None
    chat_template_name: str | None = None
    variables: Mapping[str, Any] = Field(default_factory=dict)
    add_special_tokens: bool | None = None
    # Given, it sets other fields, and it is read from them.
    pipeline_kwargs: Mapping[str, Any] | None = Field(default=None, exclude=True, repr=False, frozen=True)

    def __init__(
        self, model: str | Path | None = None, *, generator: TextGenerator | None = None, **options: Unpack[Options]
    ) -> None:
        given = _checked_generation(of_constructor(options), {*_LOADING, *type(self).model_fields})
        loading = {name: given.pop(name) for name in _LOADING & given.keys()}
        if generator is not None and loading:
            raise UsageError(f"{', '.join(sorted(loading))} has no effect: the model is loaded already.")
        if generator is None:
            if model is None:
                raise UsageError("No model is given.", hint='Name one, as in hfpipe.load("smollm2").')
            reporter = loading.pop("reporter", None)
            _checked(lambda: _LOAD_OPTIONS(**loading))
            generator = open_generator(str(model), LoadOptions(**loading), reporter)
            model = generator.source.reference
        reference = generator.source.reference if model is None else str(model)
        _checked(lambda: super(LoadedModel, self).__init__(model=reference, generator=generator, **given))
        self.__dict__.pop("pipeline_kwargs")
        self._check_name()

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline_kwargs":
            return as_pipeline_kwargs(asdict(self._options))
        if name == "pipeline":
            raise AttributeError(
                "There is no transformers pipeline: llm.generator.tokenizer has the tokenizer, on torch "
                "llm.generator.backend.model the model, llm.pipeline_kwargs the options."
            )
        return cast("Any", super()).__getattr__(name)

    @property
    def model_id(self) -> str:
        """`model`, by LangChain's name of it."""
        return self.model

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """The arguments of from_pretrained that the model was loaded with, but for those of the Hub."""
        loading = self.generator.loading
        return dict(loading.model_kwargs) if loading else {}

    @property
    def batch_size(self) -> int:
        """How many requests the engine has in flight at once."""
        return self.generator.batch_size

    def _check_name(self) -> None:
        """Raise UsageError where answers would come under the name of another model: LangChain's configurable_fields
        gives a new name to the model that is loaded."""
        if self.model != (loaded := self.generator.source.reference):
            raise UsageError(
                f"The model that is loaded is {loaded}, not {self.model}.",
                hint="Load the other for itself; configurable_alternatives(...) chooses among models in a call.",
            )

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        # Unpickling has loaded it by a name that holds in every folder.
        self.model = self.generator.source.reference

    def bind(self, **options: Any) -> Runnable[Any, Any]:
        """With options that are as its own: one of a call wins, whatever name each uses. Stops of other names join."""
        stops = {name: options.pop(name) for name in STOPS & options.keys()}
        return _Bound(bound=cast("Any", self._called_with(options)), kwargs=stops, config={})

    def with_config(self, config: Mapping[str, Any] | None = None, **more: Any) -> Runnable[Any, Any]:
        """With a config of LangChain. An option is none: it is for `bind`."""
        return _Bound(bound=cast("Any", self), kwargs={}, config=cast("Any", {**(config or {}), **more}))

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of `text` with the model's own tokenizer, so that get_num_tokens is right."""
        tokenizer = self.generator.tokenizer
        if tokenizer is None:
            raise UsageError("Only the server of an endpoint can count tokens.", hint="Use the usage of its answers.")
        return list(tokenizer.encode(text, add_special_tokens=False))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the loaded model."""
        return self.model_copy()

    def close(self) -> None:
        """Free the model, for every LLM and chat model that shares it."""
        self.generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, prompt: Any, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        for event in self.generator.stream([self._called_with(kwargs, stop)._request(prompt)]):
            if event.error:
                raise event.error
            chunk = self._said(event)
            if run_manager:
                run_manager.on_llm_new_token(event.text, chunk=chunk)
            yield chunk

    @property
    def _options(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in OF_GENERATION})

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What a cache of answers must tell apart, as plain JSON, which LangChain and its callbacks write to files."""
        info, task = self.generator.info, self.generator.source.task
        options = {name: getattr(self, name) for name in _OF_A_CALL}
        engine = {"backend": info.name, "dtype": info.dtype, "detail": dict(info.detail)}
        return {
            "model": self.model,
            "task": {"name": task.name, "source_lang": task.source_lang, "target_lang": task.target_lang},
            **engine,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in sorted(options.items())},
        }

    def _called_with(self, options: Mapping[str, Any], stop: Sequence[str] | None = None) -> Self:
        """This model with the options of a call as its own. Raises UsageError for one that is not known."""
        given = dict(options) if stop is None else {**options, "stop": stop}
        if not given:
            return self
        update = translated(given)
        if late := sorted(OF_LOADING & update.keys()):
            raise UsageError(f"{', '.join(late)} cannot change in a call.", hint="Give it when the model is loaded.")
        update = _checked_generation(update, _OF_A_CALL)
        if "max_length" in update:
            # The model's own max_tokens would hide it.
            update.setdefault("max_tokens", None)
        return self.model_copy(update=update)

    def _prompt_template(self, template: str | None) -> PromptTemplate:
        tokenizer, source, name = self.generator.tokenizer, self.generator.source, self.chat_template_name
        plain = source.plain_template
        return prompt_template(tokenizer, source.reference, template, self.system, self.variables, name, plain)

    def _request(self, prompt: Any) -> TextRequest:
        """The request of a prompt. Raises an HFPipeError where it has no place in this model."""
        self._check_name()
        text, special = self._filled(prompt)
        special = special if self.add_special_tokens is None else self.add_special_tokens
        return TextRequest("", text, self._options, special)

    @abstractmethod
    def _filled(self, prompt: Any) -> tuple[str, bool]:
        """A prompt in its template, and whether the tokenizer should add its own special tokens."""

    @abstractmethod
    def _said(self, answer: TextEvent) -> Any:
        """A Completion, or a part of an answer, in LangChain's words."""


class _Bound(RunnableBinding[Any, Any]):
    """What `LoadedModel.bind` gives: options that are bound later are the model's own, too."""

    def bind(self, **options: Any) -> Runnable[Any, Any]:
        again = cast("_Bound", self.bound.bind(**{**self.kwargs, **options}))
        return self.model_copy(update={"bound": again.bound, "kwargs": again.kwargs})

    def _merge_configs(self, *configs: RunnableConfig | None) -> RunnableConfig:
        # Private to LangChain, which calls it in all that a binding does; tried with langchain-core 1.8.
        check_config(self.config, *configs)
        return super()._merge_configs(*configs)


def check_config(*configs: Mapping[str, Any] | None) -> None:
    """Raise UsageError for an option in a config, where LangChain drops it without a word."""
    for config in configs:
        if options := sorted(_CALLED & set(config or ())):
            hint = f"Give it as an option: llm.bind({options[0]}=...), or llm.invoke(prompt, {options[0]}=...)."
            raise UsageError(f"{', '.join(options)} in a config has no effect.", hint=hint)


def generation_info(answer: TextEvent) -> dict[str, Any]:
    """What LangChain carries beside a text: finish_reason, the seed if it was sampled, usage, and timing in seconds
    of time.perf_counter."""
    info: dict[str, Any] = {"finish_reason": answer.finish_reason}
    if answer.seed is not None:
        info["seed"] = answer.seed
    if answer.usage is not None:
        info["usage"] = {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens}
    if answer.timing is not None:
        info["timing"] = asdict(answer.timing)
    return info


def _checked_generation(options: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """As keyword_options. Raises UsageError also for a value of generation that is wrong."""
    given = keyword_options(options, known)
    GenerationOptions(**{name: given[name] for name in OF_GENERATION & given.keys()})
    return given


def _checked(make: Callable[[], _T]) -> _T:
    """What `make` makes. Raises UsageError, with the name and the value, where pydantic refuses one."""
    try:
        return make()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        expected = _EXPECTED.get(name, first["msg"].removeprefix("Input should be ").partition(",")[0])
        raise UsageError(f"{name} must be {expected}, not {first['input']!r}.") from None
