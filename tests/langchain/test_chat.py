"""ChatHFPipe as LangChain uses it."""

import asyncio
from pathlib import Path

import jinja2
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate

import hfpipe
from hfpipe.errors import TemplateError, UsageError
from hfpipe.langchain.chat import ChatHFPipe, turns


@pytest.fixture
def echo(tiny_llama: Path) -> ChatHFPipe:
    return hfpipe.load_chat(str(tiny_llama), backend="echo")


def test_messages_of_a_role_in_a_row_are_joined_and_what_is_no_text_is_refused() -> None:
    messages = [SystemMessage("a"), SystemMessage("b"), HumanMessage("c"), AIMessage("d"), HumanMessage("e")]
    assert turns(messages) == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ]
    assert turns([HumanMessage([{"type": "text", "text": "x"}, "y"])]) == [{"role": "user", "content": "xy"}]
    with pytest.raises(UsageError, match="image_url"):
        turns([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(UsageError, match="tool"):
        turns([ToolMessage("1", tool_call_id="a")])


def test_invoke_stream_and_batch_agree(echo: ChatHFPipe) -> None:
    alone = echo.invoke("one two")
    streamed = None
    for chunk in echo.stream("one two"):
        streamed = chunk if streamed is None else streamed + chunk
    batched = echo.batch(["one two", "three"])
    assert alone.content == streamed.content == batched[0].content
    assert "one two" in alone.content
    assert "three" in batched[1].content
    assert alone.usage_metadata == streamed.usage_metadata == batched[0].usage_metadata
    for answer in (alone, streamed, batched[0]):
        assert answer.response_metadata["model_name"] == echo.model
        assert answer.response_metadata["finish_reason"] == "stop"
        assert set(answer.response_metadata["timing"]) == {"start", "first_token", "end", "steps"}
    assert asyncio.run(echo.abatch(["one two", "three"]))[1].content == batched[1].content


def test_an_llm_and_a_chat_model_over_one_loaded_model(tiny_llama: Path) -> None:
    llm = hfpipe.load(tiny_llama, backend="echo", stop="two")
    chat = ChatHFPipe(llm=llm)
    assert chat.generator is llm.generator
    chain = ChatPromptTemplate([("human", "{question}")]) | chat.bind(stop=["three"])
    assert chain.invoke({"question": "one two three"}).content.endswith("one two ")
    assert chat.invoke("one two").content.endswith("one ")
    assert ChatHFPipe(llm=llm, stop=["one"]).invoke("one two").content.endswith("user\n")


def test_the_assistants_last_message_is_continued_and_the_template_compiled_once(
    echo: ChatHFPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, seen = echo.generator.generate, []
    monkeypatch.setattr(echo.generator, "generate", lambda them, *_: generate(seen.append(r) or r for r in them))
    echo.invoke([("human", "one"), ("ai", "two")])
    assert seen[0].prompt.endswith("<|im_start|>assistant\ntwo")

    monkeypatch.setattr(jinja2.Environment, "compile", None)
    assert "two" in echo.invoke("two").content


def test_without_a_chat_template_there_is_no_chat(tiny_gpt2: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        hfpipe.load_chat(str(tiny_gpt2), backend="echo").invoke("a")


def test_streaming_has_invoke_tell_its_callbacks_the_tokens(tiny_llama: Path) -> None:
    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **kwargs: object) -> None:
            seen.append(token)

    seen: list[str] = []
    chat = ChatHFPipe(tiny_llama, backend="echo", streaming=True)
    assert "".join(seen) == "" != chat.invoke("one two", {"callbacks": [Tokens()]}).content == "".join(seen)
    assert len(seen) > 2
