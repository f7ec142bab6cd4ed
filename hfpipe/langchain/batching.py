"""Many answers at once from one stream of the engine: what the LLM and the chat model share, and no threads."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections import abc
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, cast

from langchain_core.callbacks import CallbackManager, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from hfpipe.errors import BackendError, HFPipeError, UsageError
from hfpipe.generator import FailedRequest
from hfpipe.langchain.options import OverGenerator, overridden
from hfpipe.types import Completion, GenerationOptions, TextRequest

_END = object()


class Batching(OverGenerator):
    """`stream_batch` and `batch_as_completed` over the engine's own window."""

    _more_options: ClassVar[frozenset[str]] = frozenset()

    def stream_batch(
        self,
        inputs: Iterable[LanguageModelInput | TextRequest | None],
        *,
        stop: Sequence[str] | None = None,
        **options: Any,
    ) -> abc.Generator[tuple[int, Completion], None, None]:
        """Answer `inputs`, pulled as the engine has room, and give each with its index as it is finished.

        One that fails is a Completion with its error. None among the inputs has no index: it means none as yet, as in
        Backend.stream. A TextRequest is taken as it is, its own options before the model's. Closing the generator
        cancels what is in flight. No callbacks run.
        """
        common = self._call_options(stop, options)
        names: dict[str, str] = {}

        def requests() -> Iterator[TextRequest | None]:
            index = -1
            for one in inputs:
                index += one is not None
                if isinstance(one, TextRequest):
                    names[str(index)] = one.id
                    yield _own_options_first(one, str(index), common)
                else:
                    yield None if one is None else self._to_request(str(index), one, stop, options)

        return self._numbered(requests(), names)

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Each answer with its index as it is finished. `max_concurrency` bounds how many are in flight."""
        if _is_cached(self):
            # LangChain's own way, which asks the cache.
            theirs = cast("Any", super()).batch_as_completed
            yield from theirs(inputs, config, return_exceptions=return_exceptions, **kwargs)
            return
        runs: dict[str, CallbackManagerForLLMRun] = {}
        configs = get_config_list(config, len(inputs)) if inputs else []
        try:
            for index, completion in self._numbered(self._begun(inputs, configs, kwargs, runs), {}):
                answer = self._end_run(runs.pop(str(index), None), completion)
                if isinstance(answer, Exception) and not return_exceptions:
                    raise answer
                yield index, answer
        finally:
            for run in runs.values():
                run.on_llm_error(BackendError("The batch was left before this answer was finished."))

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Any]]:
        answers = self.batch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)
        # A task that is cancelled leaves a thread behind that is still waiting for the next answer.
        alone = threading.Lock()

        def pull() -> Any:
            with alone:
                return next(answers, _END)

        def close() -> None:
            with alone:
                cast("abc.Generator[Any, None, None]", answers).close()

        try:
            while (answer := await asyncio.to_thread(pull)) is not _END:
                yield answer
        finally:
            await asyncio.to_thread(close)

    def _begun(
        self,
        inputs: Sequence[LanguageModelInput],
        configs: Sequence[RunnableConfig],
        options: Mapping[str, Any],
        runs: dict[str, CallbackManagerForLLMRun],
    ) -> Iterator[TextRequest | None]:
        """The requests of `inputs`, each with a run of its own from when the engine takes it."""
        rest = {key: value for key, value in options.items() if key != "stop"}
        for index, (one, config) in enumerate(zip(inputs, configs, strict=True)):
            while len(runs) >= (config.get("max_concurrency") or len(inputs)):
                yield None
            try:
                value = _converted(self, one)
            except HFPipeError as error:
                yield FailedRequest(str(index), "", error=error)
                continue
            runs[str(index)] = self._start_run(value, config, options)
            yield self._to_request(str(index), value, options.get("stop"), rest)

    def _numbered(
        self, requests: Iterator[TextRequest | None], names: dict[str, str]
    ) -> abc.Generator[tuple[int, Completion], None, None]:
        """The answers to requests whose ids are numbers, under the names that they had before."""
        for completion in self.generator.generate(requests):
            name = names.pop(completion.id, completion.id)
            yield int(completion.id), replace(completion, id=name)

    def _call_options(self, stop: Sequence[str] | None, options: Mapping[str, Any]) -> GenerationOptions:
        """The model's options with those of a call. Raises UsageError for one that is not known."""
        given = {key: value for key, value in options.items() if key not in self._more_options}
        return overridden(self._options, given if stop is None else {**given, "stop": stop})

    def _to_request(
        self, request_id: str, one: LanguageModelInput, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> TextRequest:
        try:
            return self._value_request(request_id, _converted(self, one), stop, options)
        except HFPipeError as error:
            return FailedRequest(request_id, "", error=error)

    def _end_run(self, run: CallbackManagerForLLMRun | None, completion: Completion) -> Any:
        """What a Runnable gives for a completion: its output, or the error."""
        generation = completion.error or self._generation(completion)
        if isinstance(generation, Exception):
            if run:
                run.on_llm_error(generation)
            return generation
        if run:
            run.on_llm_end(LLMResult(generations=[[generation]]))
        return generation.message if isinstance(generation, ChatGeneration) else generation.text

    @abstractmethod
    def _value_request(
        self, request_id: str, value: PromptValue, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> TextRequest:
        """The request of what a prompt gave. Raises an HFPipeError where it has no place in this model."""

    @abstractmethod
    def _start_run(
        self, value: PromptValue, config: RunnableConfig, options: Mapping[str, Any]
    ) -> CallbackManagerForLLMRun:
        """Tell the callbacks of `config` that a run begins."""

    @abstractmethod
    def _generation(self, completion: Completion) -> Generation | ChatGeneration:
        """A completion in LangChain's words."""


def callback_manager(model: Any, config: RunnableConfig, options: Mapping[str, Any]) -> CallbackManager:
    """The callbacks of one run of `model`."""
    return CallbackManager.configure(
        config.get("callbacks"),
        model.callbacks,
        model.verbose,
        config.get("tags"),
        model.tags,
        {**(config.get("metadata") or {}), **model._get_ls_params(**options)},
        model.metadata,
    )


def run_arguments(model: Any, config: RunnableConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """What callbacks learn of one run, beside its prompt."""
    return {
        "invocation_params": {**model._identifying_params, **options},
        "options": dict(options),
        "name": config.get("run_name"),
        "run_id": config.get("run_id"),
        "batch_size": 1,
    }


def _own_options_first(request: TextRequest, request_id: str, common: GenerationOptions) -> TextRequest:
    own = {name: value for name, value in asdict(request.options).items() if value not in (None, ())}
    return replace(request, id=request_id, options=overridden(common, own))


def _converted(model: Any, one: LanguageModelInput) -> PromptValue:
    """An input as LangChain understands it. Raises UsageError for what is none."""
    try:
        value: PromptValue = model._convert_input(one)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise UsageError(f"This is no input of a model: {str(error).strip().partition(chr(10))[0]}") from error
    return value


def _is_cached(model: Any) -> bool:
    return model.cache is not False and (bool(model.cache) or get_llm_cache() is not None)
