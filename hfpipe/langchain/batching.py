"""Many answers at once from one stream of the engine, without threads, in LangChain's ways of asking for them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from langchain_core.callbacks import CallbackManager, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from typing_extensions import Self

from hfpipe.errors import BackendError, HFPipeError, UsageError
from hfpipe.generator import FailedRequest
from hfpipe.langchain.base import LoadedModel, check_config
from hfpipe.types import Completion, TextRequest

# Whether nobody waits any more for what this context generates.
_IS_CANCELLED: ContextVar[Callable[[], bool]] = ContextVar("_IS_CANCELLED", default=lambda: False)


async def _in_thread(thread: ThreadPoolExecutor | None, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `call` gives in a thread. A cancelled task ends what it generates."""
    context, cancelled = copy_context(), threading.Event()
    context.run(_IS_CANCELLED.set, cancelled.is_set)
    run = partial(context.run, call, *args, **kwargs)
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, run)
    except asyncio.CancelledError:
        cancelled.set()
        raise


async def _steps(steps: Any) -> AsyncIterator[Any]:
    """What the generator `steps` yields in a thread. It is closed at once where a task that waits is cancelled."""
    # One thread: a step that a cancelled task no longer waits for is finished before `steps` is closed.
    with ThreadPoolExecutor(1) as thread:
        try:
            while (step := await _in_thread(thread, next, steps, None)) is not None:
                yield step
        finally:
            await _in_thread(thread, steps.close)


class BatchedModel(LoadedModel):
    """A loaded model whose batches are batches of its engine."""

    # LangChain's names of the methods that make a prompt of what this kind of model takes, and begin its run.
    _takes: ClassVar[str]
    _begins: ClassVar[str]

    def stream_batch(self, requests: Iterable[TextRequest | None]) -> abc.Generator[tuple[int, Completion], None, None]:
        """Answer `requests`, pulled as the engine has room, and yield each with its index as it is finished.

        One that fails is a Completion with its error. None among the requests has no index: it means that none is
        ready, as in Backend.stream. Closing the generator cancels what is in flight. No callbacks run.
        """
        index = itertools.count()
        numbered = (request and replace(request, id=str(next(index))) for request in requests)
        for completion in self.generator.generate(numbered, lambda: _IS_CANCELLED.get()()):
            yield int(completion.id), completion

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **options: Any) -> Any:
        """The answer, as a whole."""
        theirs, stop = self._theirs(config, options)
        return theirs.invoke(input, config, stop=stop)

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **options: Any) -> Any:
        """The answer, as a whole. Cancelling it ends the generation."""
        theirs, stop = self._theirs(config, options)
        return await theirs.ainvoke(input, config, stop=stop)

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **options: Any) -> Iterator[Any]:
        """The answer in pieces, as they are generated."""
        theirs, stop = self._theirs(config, options)
        pieces: Iterator[Any] = theirs.stream(input, config, stop=stop)
        return pieces

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """As stream."""
        theirs, stop = self._theirs(config, options)
        pieces: AsyncIterator[Any] = theirs.astream(input, config, stop=stop)
        return pieces

    def _theirs(self, config: RunnableConfig | None, options: Mapping[str, Any]) -> tuple[Any, list[str] | None]:
        """LangChain's own methods of this model with the options of a call, and its stops: so callbacks hear what is in
        effect, whatever names the call uses. Raises UsageError for an option, before a run begins."""
        check_config(config)
        model = self._called_with(options)
        return super(BatchedModel, model), list(model.stop) or None

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """All in one batch of the engine, where LangChain's default is a thread for each. With `return_exceptions` an
        input that fails has its error in its place; else the first error ends the batch."""
        if self._is_cached() and not return_exceptions:
            answers: list[Any] = cast("Any", super()).batch(inputs, config, **kwargs)
            return answers
        found = dict(self.batch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs))
        return [found[index] for index in range(len(inputs))]

    async def abatch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As batch, in a thread."""
        answers: list[Any] = await _in_thread(None, self.batch, *args, **kwargs)
        return answers

    async def _agenerate(self, prompts: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        model: Any = self
        manager = run_manager and run_manager.get_sync()
        return await _in_thread(None, model._generate, prompts, stop, manager, **kwargs)

    def _astream(self, prompt: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        return _steps(self._stream(prompt, stop, run_manager and run_manager.get_sync(), **kwargs))

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> abc.Generator[tuple[int, Any], None, None]:
        """Each answer with its index as it is finished. `max_concurrency` bounds how many are in flight."""
        check_config(*config if isinstance(config, list | tuple) else [config])
        if self._is_cached():
            # LangChain's own way, which asks the cache.
            theirs = cast("Any", super()).batch_as_completed
            yield from theirs(inputs, config, return_exceptions=return_exceptions, **kwargs)
            return
        runs: dict[int, CallbackManagerForLLMRun] = {}
        left = set(range(len(inputs)))

        def requests(called: Self) -> Iterator[TextRequest | None]:
            for index, own in enumerate(get_config_list(config, len(inputs)) if inputs else ()):
                while len(runs) >= (own.get("max_concurrency") or len(inputs)):
                    yield None
                runs[index], request = called._begin(inputs[index], own, kwargs)
                yield request

        try:
            for index, completion in self.stream_batch(requests(self._called_with(kwargs))):
                run = runs.pop(index)
                left.remove(index)
                if completion.error:
                    run.on_llm_error(completion.error)
                    if not return_exceptions:
                        raise completion.error
                    yield index, completion.error
                else:
                    generation = self._said(completion)
                    run.on_llm_end(LLMResult(generations=[[generation]]))
                    yield index, generation.message if isinstance(generation, ChatGeneration) else generation.text
        except HFPipeError as error:
            # Of an option, or of the engine: each that has no answer has it.
            if not return_exceptions:
                raise
            for index in sorted(left):
                if index in runs:
                    runs.pop(index).on_llm_error(error)
                yield index, error
        finally:
            for run in runs.values():
                run.on_llm_error(BackendError("The batch was left before this answer was finished."))

    def abatch_as_completed(self, *args: Any, **kwargs: Any) -> AsyncIterator[tuple[int, Any]]:
        """As batch_as_completed, in a thread."""
        return _steps(self.batch_as_completed(*args, **kwargs))

    def _answers(self, requests: Iterable[TextRequest]) -> list[Completion]:
        """In the order of `requests`. Raises the first error."""
        completions = [completion for _, completion in sorted(self.stream_batch(requests), key=lambda pair: pair[0])]
        for completion in completions:
            if completion.error:
                raise completion.error
        return completions

    def _begin(
        self, one: LanguageModelInput, config: RunnableConfig, options: Mapping[str, Any]
    ) -> tuple[CallbackManagerForLLMRun, TextRequest]:
        """Tell the callbacks of `config` that a run begins, and give its request."""
        model: Any = self
        prompt = getattr(StringPromptValue(text=str(one)), self._takes)()
        try:
            prompt = getattr(model._convert_input(one), self._takes)()
            request = self._request(prompt)
        except HFPipeError as error:
            request = FailedRequest("", "", error=error)
        except (KeyError, NotImplementedError, TypeError, ValueError) as error:
            request = FailedRequest("", "", error=UsageError(f"Invalid input: {error}"))
        callbacks, tags = config.get("callbacks"), config.get("tags")
        metadata = {**(config.get("metadata") or {}), **model._get_ls_params(**options)}
        manager = CallbackManager.configure(
            callbacks, model.callbacks, model.verbose, tags, model.tags, metadata, model.metadata
        )
        about: dict[str, Any] = {"invocation_params": {**self._identifying_params, "stop": list(self.stop) or None}}
        about |= {"options": dict(options)}
        about |= {"name": config.get("run_name"), "run_id": config.get("run_id"), "batch_size": 1}
        (run,) = getattr(manager, self._begins)(model._serialized, [prompt], **about)
        return run, request

    def _is_cached(self) -> bool:
        cache = getattr(self, "cache", None)
        return cache is not False and (bool(cache) or get_llm_cache() is not None)
