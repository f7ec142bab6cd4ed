"""hfpipe as LangChain Runnables: what `prompt | llm` needs, over a generator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self, override

from hfpipe.errors import HFPipeError, TemplateError, UsageError
from hfpipe.generator import Generator, open_generator, wrap_pipeline
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import Template, parse_template
from hfpipe.types import Completion, GenerationOptions, LoadOptions, Reporter, TextEvent, TextRequest

_GENERATION_FIELDS = frozenset(field.name for field in fields(GenerationOptions))
_LOAD_FIELDS = frozenset(field.name for field in fields(LoadOptions))
_BACKENDS_OF_LANGCHAIN = {"default": "auto"}


class HFPipe(BaseLLM):
    """A local model as a LangChain LLM: `HFPipe.load("gpt2")`, or `HFPipe(pipeline=pipe)` over a transformers pipeline.

    The generation options are fields, and every call may override them: `llm.bind(stop=["\\n\\n"], max_tokens=20)`.
    An option that is not known is an error. `generation_info` holds finish_reason, usage and timing.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str
    generator: Generator = Field(exclude=True, repr=False)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    add_special_tokens: bool = True

    @model_validator(mode="before")
    @classmethod
    def _take_pipeline(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "pipeline" not in values:
            return values
        generator = wrap_pipeline(values["pipeline"])
        rest = {key: value for key, value in values.items() if key != "pipeline"}
        return {"model": generator.source.reference, "generator": generator, **rest}

    @classmethod
    def load(cls, model: str, *, reporter: Reporter | None = None, **options: Any) -> Self:
        """Load `model` (any reference that `hfpipe run` takes). `options` are the fields of LoadOptions and of
        GenerationOptions. Raises UsageError for one that is neither."""
        loading = {key: value for key, value in options.items() if key in _LOAD_FIELDS}
        rest = {key: value for key, value in options.items() if key not in _LOAD_FIELDS}
        generation = asdict(_overridden(GenerationOptions(), rest))
        if isinstance(loading.get("device"), int):
            loading["device"] = str(loading["device"])
        return cls(model=model, generator=open_generator(model, LoadOptions(**loading), reporter), **generation)

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str | None = None,
        backend: str = "default",
        device: int | str | None = None,
        device_map: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Self:
        """Load with the arguments of LangChain's HuggingFacePipeline. `pipeline_kwargs` are generation options; for
        OpenVINO, `ov_config` in `model_kwargs` is understood."""
        model_kwargs = dict(model_kwargs or {})
        if "ov_config" in model_kwargs:
            options["ov_config"] = model_kwargs.pop("ov_config")
        return cls.load(
            model_id,
            task=task,
            backend=_BACKENDS_OF_LANGCHAIN.get(backend, backend),
            device=device,
            device_map=device_map,
            model_kwargs=model_kwargs,
            batch_size=batch_size,
            **_translated(pipeline_kwargs or {}),
            **options,
        )

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of `text` with the model's own tokenizer, so that get_num_tokens is right."""
        return list(self.generator.tokenizer.encode(text, add_special_tokens=False))

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """All in one batch of the engine. With `return_exceptions` a prompt that fails leaves the others alone."""
        if not return_exceptions or not inputs:
            return super().batch(inputs, config, **kwargs)
        configs = get_config_list(config, len(inputs))
        result = self.generate_prompt(
            [self._convert_input(one) for one in inputs], **_split(configs), keep_errors=True, **kwargs
        )
        return _texts_or_errors(result)

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await asyncio.to_thread(self.batch, inputs, config, return_exceptions=True, **kwargs)

    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        keep_errors: bool = False,
        **kwargs: Any,
    ) -> LLMResult:
        requests = [self._request(str(i), prompt, stop, kwargs) for i, prompt in enumerate(prompts)]
        done = {completion.id: completion for completion in self.generator.generate(requests)}
        completions = [done[request.id] for request in requests]
        for completion in completions:
            if completion.error and not keep_errors:
                raise completion.error
        return LLMResult(generations=[[Generation(text=one.text, generation_info=_info(one))] for one in completions])

    @override
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for event in self.generator.stream([self._request("0", prompt, stop, kwargs)]):
            if event.error:
                raise event.error
            chunk = GenerationChunk(text=event.text, generation_info=_info(event) if event.finish_reason else None)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _request(
        self, request_id: str, prompt: str, stop: Sequence[str] | None, overrides: Mapping[str, Any]
    ) -> TextRequest:
        overrides = dict(overrides)
        special = overrides.pop("add_special_tokens", self.add_special_tokens)
        if stop is not None:
            overrides["stop"] = stop
        return TextRequest(request_id, prompt, _overridden(self._options, overrides), special)

    @property
    def _options(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in _GENERATION_FIELDS})

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What a cache of answers must tell apart."""
        info = self.generator.backend.info
        return {"model": self.model, "backend": info.name, "dtype": info.dtype, **asdict(self._options)}

    @property
    def _llm_type(self) -> str:
        return "hfpipe"


class Recorder(BaseCallbackHandler):
    """Keeps what passes through a chain beside the text: the prompt that the model gets, and generation_info."""

    raise_error = True

    def __init__(self, on_prompt: Callable[[str], None] | None = None) -> None:
        self.info: dict[str, Any] = {}
        self._on_prompt = on_prompt

    @override
    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        if self._on_prompt:
            self._on_prompt(prompts[0])

    @override
    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.info = response.generations[0][0].generation_info or {}


def chain(llm: HFPipe, template: Template | None, system: str | None) -> Runnable[dict[str, Any], str]:
    """`prompt | llm`, from the template's variables to the answer. Without a template: chat where the model has a chat
    template, else qa. Raises UsageError for `system` where it has no place."""
    tokenizer = llm.generator.tokenizer
    template = template or parse_template("chat" if tokenizer.chat_template else "qa")
    if template.kind != "chat":
        if system is not None:
            raise UsageError(f"A system message needs the chat template, and this run uses {template.name}.")
        return PromptTemplate(template=template.text, input_variables=list(template.variables)) | llm
    if tokenizer.chat_template is None:
        raise TemplateError(f"{llm.model} has no chat template.", hint="Use --template qa, raw, or a text of your own.")
    chat = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens, llm.model)

    def render(variables: dict[str, Any]) -> StringPromptValue:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return StringPromptValue(text=chat.render([*messages, {"role": "user", "content": variables["prompt"]}]))

    return RunnableLambda(render) | llm.bind(add_special_tokens=False)


def _overridden(options: GenerationOptions, overrides: Mapping[str, Any]) -> GenerationOptions:
    unknown = sorted(set(overrides) - _GENERATION_FIELDS)
    if unknown:
        raise UsageError(
            f"Unknown option {', '.join(unknown)}.", hint=f"Known are {', '.join(sorted(_GENERATION_FIELDS))}."
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    return GenerationOptions(**{**asdict(options), **given, "stop": tuple(given.get("stop", options.stop))})


def _translated(pipeline_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The words of transformers' pipeline in ours. Greedy is temperature 0; the prompt is never part of the answer."""
    options = dict(pipeline_kwargs)
    if "max_new_tokens" in options:
        options["max_tokens"] = options.pop("max_new_tokens")
    do_sample = options.pop("do_sample", None)
    if do_sample is False:
        options["temperature"] = 0.0
    elif do_sample:
        options.setdefault("temperature", 1.0)
    if options.pop("return_full_text", False):
        raise UsageError("return_full_text is not supported: the prompt is yours already.")
    return options


def _info(answer: Completion | TextEvent) -> dict[str, Any]:
    """What LangChain carries beside a text."""
    info: dict[str, Any] = {"finish_reason": answer.finish_reason}
    if answer.error is not None:
        info["error"] = answer.error
    if answer.usage is not None and answer.timing is not None:
        info["usage"] = {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens}
        info["timing"] = asdict(answer.timing)
    return info


def _split(configs: Sequence[RunnableConfig]) -> dict[str, Any]:
    """One config a prompt, as generate_prompt takes them."""
    names = ("callbacks", "tags", "metadata", "run_name")
    return {name: [cast("dict[str, Any]", config).get(name) for config in configs] for name in names}


def _texts_or_errors(result: LLMResult) -> list[str]:
    answers: list[Any] = []
    for generations in result.generations:
        error: HFPipeError | None = (generations[0].generation_info or {}).get("error")
        answers.append(error or generations[0].text)
    return answers
