"""ChatHFPipe: a local model as a LangChain chat model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from typing_extensions import Unpack, override

from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.generator import TextGenerator
from hfpipe.langchain.base import LoadedModel, Options, generation_info
from hfpipe.langchain.batching import BatchedModel
from hfpipe.langchain.compat import of_constructor, over
from hfpipe.langchain.llm import HFPipe
from hfpipe.types import Completion, TextEvent

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}


class ChatHFPipe(BatchedModel, BaseChatModel):  # type: ignore[misc] # what _stream calls prompt is messages here
    """A local model with a chat template as a LangChain chat model.

    Messages in a row from the same role are joined, since many templates insist on turns. A last message of the
    assistant is continued. Only text is supported.

    Args:
        model: A folder, a Hub id, `pypi:PACKAGE`, `smollm2`, or a GGUF file.
        llm: Instead of a model, an HFPipe: both then answer from one loaded model, and its options of generation are
            the defaults here.
        generator: Instead of a model, one that is loaded already.
        options: Those of HFPipe; `system` begins every conversation that has no system message of its own.

    Returns:
        A LangChain chat model.

    Raises:
        HFPipeError: Its message says what is wrong, its `hint` what to do. A TemplateError, at the first call, for a
            model without a chat template.

    Example:
        >>> chat = ChatHFPipe(model="smollm2", max_tokens=50)
        >>> answer = chat.invoke([("system", "Be brief."), ("human", "What is EEG?")])
        >>> tokens = answer.usage_metadata["total_tokens"]
    """

    # LangChain's own: invoke, too, tells its callbacks each token.
    streaming: bool = False

    _takes: ClassVar[str] = "to_messages"
    _begins: ClassVar[str] = "on_chat_model_start"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        llm: HFPipe | None = None,
        generator: TextGenerator | None = None,
        **options: Unpack[Options],
    ) -> None:
        if llm is not None:
            if not isinstance(llm, HFPipe):
                raise UsageError(f"llm must be an HFPipe, not {llm!r}.", hint="ChatHFPipe(model=...) loads a model.")
            model, generator = model or llm.model, llm.generator
            options = cast("Options", over(asdict(llm._options), of_constructor(options)))
        # By name: type checkers see the constructor that pydantic would make of a class between.
        LoadedModel.__init__(self, model, generator=generator, **options)

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        raise UnsupportedOption(
            "hfpipe does not support tools and structured output yet.", hint="Ask for JSON in text."
        )

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = self._called_with(kwargs, stop)
        (completion,) = model._answers([model._request(messages)])
        return ChatResult(generations=[self._said(completion)])

    @override
    def _filled(self, prompt: Sequence[BaseMessage]) -> tuple[str, bool]:
        return self._prompt_template(self.template or "chat").render(turns(prompt)), False

    @override
    def _said(self, answer: TextEvent) -> ChatGeneration:
        facts: dict[str, Any] = {}
        if answer.finish_reason:
            facts["response_metadata"] = {"model_name": self.model, **generation_info(answer)}
        if usage := answer.usage:
            counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
            facts["usage_metadata"] = {**counts, "total_tokens": usage.total_tokens}
        if isinstance(answer, Completion):
            return ChatGeneration(message=AIMessage(answer.text, **facts))
        facts["chunk_position"] = "last" if answer.finish_reason else None
        return ChatGenerationChunk(message=AIMessageChunk(content=answer.text, **facts))

    @property
    def _llm_type(self) -> str:
        return "hfpipe-chat"


def turns(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Messages as a chat template takes them, those of a role in a row joined by a blank line."""
    for message in messages:
        if message.type not in _ROLES:
            raise UsageError(f"Messages of type {message.type} are not supported; system, human and ai are.")
        for block in message.content:
            if isinstance(block, dict) and block.get("type") != "text":
                raise UsageError(f"Content of type {block.get('type')} is not supported; text is.")
    return [
        {"role": role, "content": "\n\n".join(str(message.text) for message in group)}
        for role, group in groupby(messages, key=lambda message: _ROLES[message.type])
    ]
