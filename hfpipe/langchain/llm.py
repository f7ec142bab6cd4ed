"""HFPipe: a local model as a LangChain LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import model_validator
from typing_extensions import Self, override

from hfpipe.errors import HFPipeError, UsageError
from hfpipe.generator import wrap_pipeline
from hfpipe.langchain.batching import Batching, callback_manager, run_arguments
from hfpipe.langchain.options import generation_info
from hfpipe.types import Completion, TextRequest

_BACKENDS_OF_LANGCHAIN = {"default": "auto"}


class HFPipe(Batching, BaseLLM):
    """A local model as a LangChain LLM: `HFPipe.load("gpt2")`, or `HFPipe(pipeline=pipe)` over a transformers pipeline.

    The generation options are fields, and every call may override them: `llm.bind(stop=["\\n\\n"], max_tokens=20)`.
    An option that is not known is an error. `generation_info` holds finish_reason, usage and timing.
    """

    add_special_tokens: bool = True
    _more_options: ClassVar[frozenset[str]] = frozenset({"add_special_tokens"})

    @model_validator(mode="before")
    @classmethod
    def _take_pipeline(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "pipeline" not in values:
            return values
        generator = wrap_pipeline(values["pipeline"])
        rest = {key: value for key, value in values.items() if key != "pipeline"}
        return {"model": generator.source.reference, "generator": generator, **rest}

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
        return LLMResult(
            generations=[[Generation(text=one.text, generation_info=generation_info(one))] for one in completions]
        )

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
            chunk = GenerationChunk(
                text=event.text, generation_info=generation_info(event) if event.finish_reason else None
            )
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _request(
        self, request_id: str, prompt: str, stop: Sequence[str] | None, overrides: Mapping[str, Any]
    ) -> TextRequest:
        rest = {key: value for key, value in overrides.items() if key != "add_special_tokens"}
        special = overrides.get("add_special_tokens", self.add_special_tokens)
        return self._text_request(request_id, prompt, stop, rest, special)

    @override
    def _value_request(
        self, request_id: str, value: PromptValue, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> TextRequest:
        return self._request(request_id, value.to_string(), stop, options)

    @override
    def _start_run(
        self, value: PromptValue, config: RunnableConfig, options: Mapping[str, Any]
    ) -> CallbackManagerForLLMRun:
        manager = callback_manager(self, config, options)
        (run,) = manager.on_llm_start(self._serialized, [value.to_string()], **run_arguments(self, config, options))
        return run

    @override
    def _generation(self, completion: Completion) -> Generation:
        return _generation(completion)

    @property
    def _llm_type(self) -> str:
        return "hfpipe"


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


def _generation(completion: Completion) -> Generation:
    return Generation(text=completion.text, generation_info=generation_info(completion))


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
