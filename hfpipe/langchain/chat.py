"""ChatHFPipe: a local model as a LangChain chat model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from typing_extensions import Unpack, override

from hfpipe.errors import UsageError
from hfpipe.generator import Generator
from hfpipe.langchain.base import LoadedModel, Options, callback_manager, generation_info, run_arguments
from hfpipe.langchain.llm import HFPipe
from hfpipe.types import Completion, TextEvent, TextRequest

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}


class ChatHFPipe(LoadedModel, BaseChatModel):
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

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        llm: HFPipe | None = None,
        generator: Generator | None = None,
        **options: Unpack[Options],
    ) -> None:
        if llm is not None:
            defaults: Any = asdict(llm._options)
            model, generator, options = model or llm.model, llm.generator, {**defaults, **options}
        super().__init__(model, generator=generator, **options)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        (completion,) = self.generator.generate([self._called_with(kwargs, stop)._message_request("0", messages)])
        if completion.error:
            raise completion.error
        return ChatResult(generations=[self._generation(completion)])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for event in self.generator.stream([self._called_with(kwargs, stop)._message_request("0", messages)]):
            if event.error:
                raise event.error
            chunk = ChatGenerationChunk(message=_chunk(event, self.model))
            if run_manager:
                run_manager.on_llm_new_token(event.text, chunk=chunk)
            yield chunk

    def _message_request(self, request_id: str, messages: Sequence[BaseMessage]) -> TextRequest:
        template = self.generator.prompt_template(
            self.template or "chat", self.system, self.variables, self.chat_template_name
        )
        return TextRequest(request_id, template.render(turns(messages)), self._options, add_special_tokens=False)

    @override
    def _request(self, request_id: str, value: PromptValue) -> TextRequest:
        return self._message_request(request_id, value.to_messages())

    @override
    def _start_run(
        self, value: PromptValue, config: RunnableConfig, options: Mapping[str, Any]
    ) -> CallbackManagerForLLMRun:
        manager = callback_manager(self, config, options)
        arguments = run_arguments(self, config, options)
        (run,) = manager.on_chat_model_start(self._serialized, [value.to_messages()], **arguments)
        return run

    @override
    def _generation(self, completion: Completion) -> ChatGeneration:
        usage, metadata = _usage(completion), _metadata(completion, self.model)
        return ChatGeneration(message=AIMessage(completion.text, usage_metadata=usage, response_metadata=metadata))

    @property
    def _llm_type(self) -> str:
        return "hfpipe-chat"


def turns(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Messages as a chat template takes them, those of a role in a row joined by a blank line. Raises UsageError for
    what is not text, and for roles such as tool."""
    said = [(_role(message), _text(message)) for message in messages]
    return [
        {"role": role, "content": "\n\n".join(text for _, text in group)}
        for role, group in groupby(said, key=lambda one: one[0])
    ]


def _role(message: BaseMessage) -> str:
    if message.type not in _ROLES:
        raise UsageError(f"Messages of type {message.type} are not supported; system, human and ai are.")
    return _ROLES[message.type]


def _text(message: BaseMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else [message.content]
    for block in blocks:
        if isinstance(block, dict) and block.get("type") != "text":
            raise UsageError(f"Content of type {block.get('type')} is not supported; text is.")
    return "".join(block if isinstance(block, str) else block["text"] for block in blocks)


def _chunk(event: TextEvent, model: str) -> AIMessageChunk:
    if event.finish_reason is None:
        return AIMessageChunk(content=event.text)
    return AIMessageChunk(
        content=event.text,
        usage_metadata=_usage(event),
        response_metadata=_metadata(event, model),
        chunk_position="last",
    )


def _usage(answer: Completion | TextEvent) -> UsageMetadata | None:
    if answer.usage is None:
        return None
    usage = {
        "input_tokens": answer.usage.prompt_tokens,
        "output_tokens": answer.usage.completion_tokens,
        "total_tokens": answer.usage.total_tokens,
    }
    # The details, which LangChain does not require, mypy does.
    return cast("UsageMetadata", usage)


def _metadata(answer: Completion | TextEvent, model: str) -> dict[str, Any]:
    return {"model_name": model, **generation_info(answer)}
