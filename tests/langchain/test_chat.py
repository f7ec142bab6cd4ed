"""ChatHFPipe as LangChain uses it, and LangChain's own suite for chat models."""

import asyncio
from pathlib import Path

import jinja2
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests.chat_models import ChatModelTests

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
        assert set(answer.response_metadata["timing"]) == {"start", "first_token", "end"}
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
    monkeypatch.setattr(echo.generator, "generate", lambda requests: generate(seen.append(r) or r for r in requests))
    echo.invoke([("human", "one"), ("ai", "two")])
    assert seen[0].prompt.endswith("<|im_start|>assistant\ntwo")

    monkeypatch.setattr(jinja2.Environment, "compile", None)
    assert "two" in echo.invoke("two").content


def test_without_a_chat_template_there_is_no_chat(tiny_gpt2: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        hfpipe.load_chat(str(tiny_gpt2), backend="echo").invoke("a")


class TestStandard(ChatModelTests):
    """LangChain's standard suite, on a tiny model on OpenVINO: all of it but tools, structured output and pictures."""

    loaded: ChatHFPipe

    @property
    def chat_model_class(self) -> type[ChatHFPipe]:
        return ChatHFPipe

    @property
    def chat_model_params(self) -> dict:
        return {"model": self.loaded.model, "generator": self.loaded.generator}

    @property
    def standard_chat_model_params(self) -> dict:
        return {"temperature": 0, "max_tokens": 30, "stop": []}

    test_invoke = ChatModelIntegrationTests.test_invoke
    test_ainvoke = ChatModelIntegrationTests.test_ainvoke
    test_stream = ChatModelIntegrationTests.test_stream
    test_astream = ChatModelIntegrationTests.test_astream
    test_stream_events = ChatModelIntegrationTests.test_stream_events_v3
    test_astream_events = ChatModelIntegrationTests.test_astream_events_v3
    test_batch = ChatModelIntegrationTests.test_batch
    test_abatch = ChatModelIntegrationTests.test_abatch
    test_conversation = ChatModelIntegrationTests.test_conversation
    test_double_messages_conversation = ChatModelIntegrationTests.test_double_messages_conversation
    test_usage_metadata = ChatModelIntegrationTests.test_usage_metadata
    test_usage_metadata_streaming = ChatModelIntegrationTests.test_usage_metadata_streaming
    test_stop_sequence = ChatModelIntegrationTests.test_stop_sequence
    test_message_with_name = ChatModelIntegrationTests.test_message_with_name


@pytest.fixture(scope="module", autouse=True)
def _load_once(tiny_llama_ov: Path) -> None:
    TestStandard.loaded = hfpipe.load_chat(str(tiny_llama_ov))
