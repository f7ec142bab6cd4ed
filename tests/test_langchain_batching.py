"""Many answers at once in LangChain's words, over one window of the engine. The engine is echo, but where noted."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

import hfpipe
from hfpipe.errors import UsageError
from hfpipe.langchain import HFPipe
from hfpipe.langchain.chat import ChatHFPipe
from hfpipe.types import GenerationOptions, TextRequest

WINDOW = 4
TEXTS = ["one two three", "a", "four five", "six", "The quick brown fox", "dog"]


@pytest.fixture
def echo(tiny_gpt2: Path) -> HFPipe:
    return hfpipe.load(str(tiny_gpt2), backend="echo", batch_size=WINDOW)


@pytest.fixture
def chat(tiny_llama: Path) -> ChatHFPipe:
    return hfpipe.load_chat(str(tiny_llama), backend="echo", batch_size=WINDOW)


@pytest.fixture(params=["llm", "chat"])
def model(request: pytest.FixtureRequest, echo: HFPipe, chat: ChatHFPipe) -> Any:
    return echo if request.param == "llm" else chat


class Window:
    """How many streams the engine was asked for, and how many requests were in flight at most."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams: list[int] = []
        self.most = 0
        self.backend = model.generator.backend
        self.inside = self.backend.stream
        monkeypatch.setattr(self.backend, "stream", self.stream)

    def stream(self, requests: Any) -> Iterator[Any]:
        self.streams.append(threading.get_ident())
        for event in self.inside(requests):
            self.most = max(self.most, len(self.backend._active))
            yield event


def text_of(answer: Any) -> str:
    return answer.content if isinstance(answer, AIMessage) else answer


# stream_batch


def test_requests_come_back_with_their_index(echo: HFPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may share an id, and have the options that are theirs."""
    alone = [echo.invoke(text, template="raw") for text in TEXTS]
    window = Window(echo, monkeypatch)
    requests = [TextRequest("x", text, add_special_tokens=False) for text in TEXTS]
    requests += [TextRequest("x", ""), TextRequest("x", "one two three", GenerationOptions(stop=("two",)))]
    found = list(echo.stream_batch(requests))
    assert [index for index, _ in found] != list(range(8)), "short ones are finished first"
    texts = {index: completion.text for index, completion in found}
    assert texts == {**dict(enumerate(alone)), 6: "", 7: "one "}
    assert [type(completion.error) for index, completion in found if completion.error] == [UsageError]
    assert (len(window.streams), window.most) == (1, WINDOW)


# batch and batch_as_completed


def test_a_chain_batches_truly(echo: HFPipe, chat: ChatHFPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream, in which the engine's window is full."""
    inputs = [{"x": text} for text in TEXTS]
    for prompt, model in ((PromptTemplate.from_template("{x}"), echo), (ChatPromptTemplate([("human", "{x}")]), chat)):
        window = Window(model, monkeypatch)
        answers = (prompt | model).batch(inputs)
        assert all(text in text_of(answer) for text, answer in zip(TEXTS, answers, strict=True))
        assert (len(window.streams), window.most) == (1, WINDOW)


def test_a_chain_on_torch_makes_steps_of_a_whole_batch(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = hfpipe.load(str(tiny_gpt2), backend="torch", max_tokens=5, batch_size=3)
    backend, rows = llm.generator.backend, []
    forward = backend._forward
    monkeypatch.setattr(backend, "_forward", lambda ids, *rest: rows.append(len(ids)) or forward(ids, *rest))
    assert len((PromptTemplate.from_template("{x}") | llm).batch([{"x": text} for text in TEXTS])) == 6
    assert rows == [3] * 10


def test_batch_as_completed_is_one_stream_and_in_this_thread(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [text_of(model.invoke(text)) for text in TEXTS]
    window = Window(model, monkeypatch)
    found = list(model.batch_as_completed(TEXTS))
    assert [index for index, _ in found] != list(range(6))
    assert {index: text_of(answer) for index, answer in found} == dict(enumerate(alone))
    assert (window.streams, window.most) == ([threading.get_ident()], WINDOW)
    assert list(model.batch_as_completed([])) == []


def test_max_concurrency_bounds_the_window(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(model, monkeypatch)
    assert len(list(model.batch_as_completed(TEXTS, {"max_concurrency": 2}))) == 6
    assert window.most == 2


class Watcher(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.metadata: list[dict] = []

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        self.metadata.append(kwargs["metadata"])
        self.events.append("start")

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.on_llm_start(serialized, [], **kwargs)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.events.append("end")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append("error")


def test_each_has_its_own_callbacks(model: Any) -> None:
    watchers = [Watcher() for _ in range(3)]
    configs = [{"callbacks": [watcher], "metadata": {"n": n}} for n, watcher in enumerate(watchers)]
    wrong = [ToolMessage("1", tool_call_id="a")] if isinstance(model, ChatHFPipe) else ""
    found = dict(model.batch_as_completed(["a", wrong, "c"], configs, return_exceptions=True))
    assert isinstance(found[1], UsageError)
    assert [watcher.events for watcher in watchers] == [["start", "end"], ["start", "error"], ["start", "end"]]
    assert [watcher.metadata[0]["n"] for watcher in watchers] == [0, 1, 2]
    assert all("ls_provider" in watcher.metadata[0] for watcher in watchers)


def test_a_failure_is_raised_and_ends_the_runs(model: Any) -> None:
    watcher = Watcher()
    wrong = [ToolMessage("1", tool_call_id="a")] if isinstance(model, ChatHFPipe) else ""
    with pytest.raises(UsageError):
        list(model.batch_as_completed([TEXTS[4], wrong, TEXTS[0]], {"callbacks": [watcher]}))
    assert watcher.events.count("start") == watcher.events.count("error") + watcher.events.count("end")
    assert model.generator.backend._active == {}


def test_async_gives_the_same_and_may_be_left(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(model, monkeypatch)

    async def whole() -> dict[int, str]:
        return {index: text_of(answer) async for index, answer in model.abatch_as_completed(TEXTS)}

    async def left() -> None:
        answers = model.abatch_as_completed(TEXTS)
        async for _ in answers:
            break
        await answers.aclose()

    assert asyncio.run(whole()) == {index: text_of(model.invoke(text)) for index, text in enumerate(TEXTS)}
    assert window.most == WINDOW
    asyncio.run(left())
    assert model.generator.backend._active == {}


def test_with_a_cache_it_is_asked(echo: HFPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    set_llm_cache(InMemoryCache())
    try:
        first = dict(echo.batch_as_completed(TEXTS))
        window = Window(echo, monkeypatch)
        assert dict(echo.batch_as_completed(TEXTS)) == first == dict(enumerate(TEXTS))
        assert window.streams == []
    finally:
        set_llm_cache(None)
