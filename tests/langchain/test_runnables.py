"""HFPipe and ChatHFPipe inside of what LangChain builds of models. The engine is echo: an answer is its prompt."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from langchain_core.caches import BaseCache
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumps, loads
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.vectorstores import InMemoryVectorStore

from hfpipe import ChatHFPipe, HFPipe
from hfpipe.errors import BackendError, ContextLengthError, UsageError
from hfpipe.types import TokenEvent


@pytest.fixture
def llm(tiny_gpt2: Path) -> HFPipe:
    return HFPipe(model=tiny_gpt2, backend="echo")


@pytest.fixture
def chat(tiny_llama: Path) -> ChatHFPipe:
    return ChatHFPipe(model=tiny_llama, backend="echo")


def test_branches_in_parallel_share_the_model(llm: HFPipe, chat: ChatHFPipe) -> None:
    both = RunnableParallel(
        first=PromptTemplate.from_template("{x} one") | llm,
        second=PromptTemplate.from_template("{x} two") | llm.bind(stop=["two"]),
        third=ChatPromptTemplate([("human", "{x}")]) | chat | StrOutputParser(),
    )
    said = both.invoke({"x": "dog"})
    assert (said["first"], said["second"]) == ("dog one", "dog ")
    assert "dog" in said["third"]
    assert [one["first"] for one in both.batch([{"x": "a"}, {"x": "b"}])] == ["a one", "b one"]
    assert asyncio.run(both.ainvoke({"x": "dog"})) == said
    parts = dict.fromkeys(said, "")
    for part in both.stream({"x": "dog"}):
        for name, text in part.items():
            parts[name] += text
    assert parts == said


@pytest.mark.filterwarnings("ignore:.*(RunnableWithMessageHistory|InMemoryChatMessageHistory).* deprecated")
def test_a_history_of_messages_comes_before_the_question(chat: ChatHFPipe) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{question}")])
    talking = RunnableWithMessageHistory(
        prompt | chat.bind(max_tokens=100),
        lambda session: histories.setdefault(session, InMemoryChatMessageHistory()),
        input_messages_key="question",
        history_messages_key="history",
    )
    config = {"configurable": {"session_id": "a"}}
    talking.invoke({"question": "one"}, config)
    second = talking.invoke({"question": "two"}, config)
    assert "one" in second.content
    assert [message.type for message in histories["a"].messages] == ["human", "ai", "human", "ai"]


@pytest.fixture
def failing_once(llm: HFPipe, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An engine whose first stream fails; the list has an entry for each stream."""
    streams: list[str] = []
    inside = llm.generator.backend.stream

    def stream(requests: Any) -> Iterator[TokenEvent]:
        streams.append("failed" if not streams else "answered")
        if streams[-1] == "answered":
            yield from inside(requests)
            return
        for request in requests:
            yield TokenEvent(request.id, finish_reason="error", error=BackendError("the engine is on fire"))

    monkeypatch.setattr(llm.generator.backend, "stream", stream)
    return streams


def test_with_retry_asks_again_after_an_error_of_the_engine(llm: HFPipe, failing_once: list[str]) -> None:
    again = llm.with_retry(retry_if_exception_type=(BackendError,), wait_exponential_jitter=False, stop_after_attempt=2)
    assert again.invoke("one") == "one"
    assert failing_once == ["failed", "answered"]


def test_with_fallbacks_goes_on_with_another_model(llm: HFPipe, chat: ChatHFPipe) -> None:
    other = RunnableLambda(lambda prompt: f"too long: {len(prompt)}")
    safe = llm.with_fallbacks([other], exceptions_to_handle=(ContextLengthError,))
    assert safe.batch(["one", "a " * 500]) == ["one", "too long: 1000"]
    with pytest.raises(UsageError, match="The prompt is empty"):
        safe.invoke("")


@pytest.mark.parametrize("kind", ["llm", "chat_model"])
def test_events_name_the_model_and_carry_its_tokens(llm: HFPipe, chat: ChatHFPipe, kind: str) -> None:
    model = llm if kind == "llm" else chat
    chain = PromptTemplate.from_template("{x} two three") | model

    async def collect() -> list[Any]:
        return [event async for event in chain.astream_events({"x": "one"}, version="v2")]

    events = [event for event in asyncio.run(collect()) if event["event"].startswith(f"on_{kind}")]
    assert (events[0]["event"], events[-1]["event"]) == (f"on_{kind}_start", f"on_{kind}_end")
    chunks = [event["data"]["chunk"] for event in events if event["event"].endswith("stream")]
    assert len(chunks) > 3
    text = "".join(chunk.text for chunk in chunks)
    assert "one two three" in text


def test_json_is_parsed_from_an_answer_and_as_it_streams(llm: HFPipe) -> None:
    chain = llm | JsonOutputParser()
    text = '{"name": "EEG", "parts": [1, 2]}'
    assert chain.invoke(text) == {"name": "EEG", "parts": [1, 2]}
    partial = list(chain.stream(text))
    assert partial[-1] == {"name": "EEG", "parts": [1, 2]}
    assert len(partial) > 2


def test_a_retrieval_chain_puts_what_it_found_into_the_prompt(llm: HFPipe) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document("EEG records the brain."), Document("ECG records the heart.")])
    chain = (
        {
            "context": store.as_retriever(search_kwargs={"k": 1})
            | (lambda documents: "\n".join(document.page_content for document in documents)),
            "question": RunnablePassthrough(),
        }
        | PromptTemplate.from_template("{context}\nQuestion: {question}\nAnswer:")
        | llm
    )
    assert chain.invoke("EEG records the brain.").startswith("EEG records the brain.\nQuestion: EEG")


class SQLite(BaseCache):
    """As langchain_community's SQLiteCache, which comes with SQLAlchemy and aiohttp."""

    def __init__(self, path: Path) -> None:
        self.table = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.table.execute("CREATE TABLE IF NOT EXISTS said (prompt, llm, answer, PRIMARY KEY (prompt, llm))")

    def lookup(self, prompt: str, llm_string: str) -> Any:
        where = "SELECT answer FROM said WHERE prompt = ? AND llm = ?"
        row = self.table.execute(where, (prompt, llm_string)).fetchone()
        return row and loads(row[0], allowed_objects="core")

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.table.execute("REPLACE INTO said VALUES (?, ?, ?)", (prompt, llm_string, dumps(return_val)))

    def clear(self, **_: Any) -> None:
        self.table.execute("DELETE FROM said")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SQLite]:
    kept = SQLite(tmp_path / "answers.sqlite")
    set_llm_cache(kept)
    yield kept
    set_llm_cache(None)
    kept.table.close()


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_answers_are_kept_in_sqlite_by_prompt_and_options(
    llm: HFPipe, chat: ChatHFPipe, cache: SQLite, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (llm, chat):
        cache.clear()
        first = model.invoke("one two")
        monkeypatch.setattr(model.generator.backend, "stream", None)
        again = model.invoke("one two")
        assert getattr(again, "content", again) == getattr(first, "content", first)
        with pytest.raises(TypeError):
            model.invoke("one two", pipeline_kwargs={"max_new_tokens": 1})
    assert HFPipe(model=tiny_gpt2, backend="echo", eos_token_id=7).invoke("one two") == "one two"


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_what_identifies_a_model_is_plain_json(llm: HFPipe, chat: ChatHFPipe, tmp_path: Path, suffix: str) -> None:
    """Callbacks, LangChain's own `save` and its cache of answers write it, and read it again."""
    for model in (llm, chat, llm._called_with({"stop": ["a"], "eos_token_id": (1, 2), "variables": {"a": "b"}})):
        said = model._identifying_params
        assert json.loads(json.dumps(said)) == said
        assert said["task"] == {"name": "text-generation", "source_lang": None, "target_lang": None}
        assert "Task(" not in str(model)
        if isinstance(model, HFPipe):
            model.save(path := tmp_path / f"model{suffix}")
            saved = yaml.safe_load(path.read_text())
            assert {name: saved[name] for name in said} == said
