"""ChatHFPipe: a local model as a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from hfpipe.errors import UsageError
from hfpipe.langchain.batching import Batching, callback_manager, run_arguments
from hfpipe.langchain.options import generation_info
from hfpipe.types import Completion, TextEvent, TextRequest

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}


class ChatHFPipe(Batching, BaseChatModel):
    """A local model with a chat template as a LangChain chat model: `ChatHFPipe.load("smollm2")`.

    Messages in a row from the same role are joined, since many templates insist on turns. Text alone is understood.
    """

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """All in one batch of the engine, where the default would be a thread for each."""
        found = dict(self.batch_as_completed(inputs, config, return_exceptions=True, **kwargs))
        answers = [found[index] for index in range(len(inputs))]
        failed = next((answer for answer in answers if isinstance(answer, Exception)), None)
        if failed and not return_exceptions:
            raise failed
        return answers

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        return await asyncio.to_thread(self.batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        (completion,) = self.generator.generate([self._request("0", messages, stop, kwargs)])
        if completion.error:
            raise completion.error
        return ChatResult(generations=[_chat_generation(completion, self.model)])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for event in self.generator.stream([self._request("0", messages, stop, kwargs)]):
            if event.error:
                raise event.error
            chunk = ChatGenerationChunk(message=_chunk(event, self.model))
            if run_manager:
                run_manager.on_llm_new_token(event.text, chunk=chunk)
            yield chunk

    def _request(
        self, request_id: str, messages: Sequence[BaseMessage], stop: Sequence[str] | None, overrides: Mapping[str, Any]
    ) -> TextRequest:
        prompt = self.generator.prompt_template("chat").render(turns(messages))
        return self._text_request(request_id, prompt, stop, overrides, special=False)

    @override
    def _value_request(
        self, request_id: str, value: PromptValue, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> TextRequest:
        return self._request(request_id, value.to_messages(), stop, options)

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
        return _chat_generation(completion, self.model)

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


def _chat_generation(completion: Completion, model: str) -> ChatGeneration:
    message = AIMessage(
        completion.text, usage_metadata=_usage(completion), response_metadata=_metadata(completion, model)
    )
    return ChatGeneration(message=message)


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
