"""HFPipe as LangChain uses it. The engine is echo where its words do not matter, and OpenVINO where they do."""

import asyncio
import copy
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

import hfpipe
from hfpipe.errors import BackendError, TemplateError, UsageError
from hfpipe.langchain import HFPipe
from hfpipe.langchain.chat import ChatHFPipe
from hfpipe.types import GenerationOptions, TextRequest, TokenEvent

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


class Watcher(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.metadata: list[dict] = []
        self.prompts: list[str] = []
        self.tokens: list[str] = []
        self.infos: list[dict] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized, prompts, **kwargs):
        self.prompts += prompts
        self.metadata.append(kwargs["metadata"])
        self.events.append("start")

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.on_llm_start(serialized, [], **kwargs)

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)

    def on_llm_end(self, response, **kwargs):
        self.infos += [one.generation_info for generations in response.generations for one in generations]
        self.events.append("end")

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)
        self.events.append("error")


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


# Answers


def test_a_chain_invokes_streams_and_batches(echo: HFPipe) -> None:
    pipe = PromptTemplate.from_template("Question: {question}\n\nAnswer:") | echo
    assert pipe.invoke({"question": "a {b} {{c}} {"}) == "Question: a {b} {{c}} {\n\nAnswer:"
    assert pipe.batch([{"question": str(i)} for i in range(20)]) == [f"Question: {i}\n\nAnswer:" for i in range(20)]
    parts = list(pipe.stream({"question": "Why?"}))
    assert len(parts) > 3
    assert "".join(parts) == "Question: Why?\n\nAnswer:"


@pytest.mark.parametrize("stop", [["\n\n"], ["n:\x00", "\n"], ["tion"]])
def test_a_bound_stop_ends_invoke_batch_and_stream_alike(echo: HFPipe, stop: list[str]) -> None:
    text = "A question:\n\nAnd its answer."
    expected = min((text.partition(one)[0] for one in stop), key=len)
    bound = echo.bind(stop=stop)
    assert bound.invoke(text) == expected
    assert bound.batch([text, "x"]) == [expected, "x"]
    assert "".join(bound.stream(text)) == expected


def test_call_time_options_override_fields(echo: HFPipe, tiny_gpt2: Path) -> None:
    text = "one two three four five six seven eight"
    short = echo.invoke(text, max_tokens=2)
    assert text.startswith(short)
    assert 0 < len(short) < len(text)
    of_field = hfpipe.load(str(tiny_gpt2), backend="echo", max_tokens=2, stop="four")
    assert of_field.invoke(text) == short
    assert of_field.invoke(text, max_tokens=100) == "one two three "
    assert of_field.invoke(text, max_tokens=100, stop=[]) == text


def test_async_calls_answer_at_once_and_right(tiny_llama_ov: Path) -> None:
    llm = hfpipe.load(str(tiny_llama_ov), max_tokens=8, exact=True)
    prompts = ["The cat", "A dog and", "Two"]
    expected = llm.batch(prompts)

    async def ask() -> list[str]:
        return list(await asyncio.gather(*[llm.ainvoke(prompt) for prompt in prompts]))

    async def stream() -> str:
        return "".join([part async for part in llm.astream(prompts[0])])

    assert asyncio.run(ask()) == expected
    assert asyncio.run(stream()) == expected[0]
    assert asyncio.run(llm.abatch(prompts)) == expected
    assert len(set(expected)) == 3


def test_one_failed_prompt_leaves_the_others_alone(echo: HFPipe) -> None:
    watcher = Watcher()
    answers = echo.batch(["a", "", 5, "c"], {"callbacks": [watcher]}, return_exceptions=True)
    assert (answers[0], answers[3]) == ("a", "c")
    assert [type(error) for error in answers[1:3]] == [UsageError, UsageError]
    assert {str(error).partition(":")[0] for error in watcher.errors} == {"Invalid input", "The prompt is empty."}
    with pytest.raises(UsageError, match="empty"):
        echo.batch(["a", "", "c"])
    pipe = PromptTemplate.from_template("{x}") | echo
    assert isinstance(pipe.batch([{"x": ""}, {"x": "b"}], return_exceptions=True)[0], UsageError)
    assert isinstance(asyncio.run(echo.abatch(["", "b"], return_exceptions=True))[0], UsageError)


def test_an_error_of_the_engine_arrives_as_itself(echo: HFPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = BackendError("the engine is on fire")

    def fail(requests):
        for request in requests:
            yield TokenEvent(request.id, request.token_ids[:1])
            yield TokenEvent(request.id, finish_reason="error", error=cause)

    monkeypatch.setattr(echo.generator.backend, "stream", fail)
    with pytest.raises(BackendError) as raised:
        echo.invoke("abc")
    assert raised.value is cause
    stream = echo.stream("abc")
    assert next(stream)
    with pytest.raises(BackendError) as raised:
        next(stream)
    assert raised.value is cause


def test_callbacks_see_prompts_tokens_results_and_errors(echo: HFPipe) -> None:
    watcher = Watcher()
    config = {"callbacks": [watcher]}
    text = "".join(echo.stream("one two", config))
    assert watcher.prompts == ["one two"]
    assert "".join(watcher.tokens) == text == "one two"
    tokens = echo.get_num_tokens("one two")
    assert tokens == len(echo.get_token_ids("one two")) > 0
    (info,) = watcher.infos
    assert info["finish_reason"] == "stop"
    assert info["usage"] == {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}
    assert info["timing"]["start"] <= info["timing"]["first_token"] <= info["timing"]["end"]
    with pytest.raises(UsageError):
        echo.invoke("", config)
    assert [type(error) for error in watcher.errors] == [UsageError]


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    set_llm_cache(kept := InMemoryCache())
    yield kept
    set_llm_cache(None)


def test_a_cache_of_answers_tells_options_and_models_apart(echo: HFPipe, cache: InMemoryCache) -> None:
    text = "one two three four five"
    for _ in range(2):
        assert echo.invoke(text) == text
        assert echo.invoke(text, stop=["two"]) == "one "
        assert echo.invoke(text, template="{prompt} six") == text + " six"
        assert asyncio.run(echo.ainvoke(text, max_tokens=1)) == echo.invoke(text, max_tokens=1) != text
        assert echo.model_copy(update={"max_tokens": 2}).invoke(text) != echo.invoke(text, max_tokens=1)
        assert echo.batch([text], max_tokens=2) != [text]


def test_a_cache_is_asked_and_keeps_no_failed_answer(
    echo: HFPipe, cache: InMemoryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert echo.batch(["a", ""], return_exceptions=True)[0] == "a"
    assert len(cache._cache) == 1
    with pytest.raises(UsageError, match="empty"):
        echo.invoke("")
    first = dict(echo.batch_as_completed(TEXTS))
    window = Window(echo, monkeypatch)
    assert dict(echo.batch_as_completed(TEXTS)) == first == dict(enumerate(TEXTS))
    assert window.streams == []


# Many at once, over one window of the engine


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
    assert len(list(model.batch_as_completed(TEXTS, {"max_concurrency": 2}))) == 6
    assert window.most == 2
    found = list(model.batch_as_completed(TEXTS))
    assert [index for index, _ in found] != list(range(6))
    assert {index: text_of(answer) for index, answer in found} == dict(enumerate(alone))
    assert (window.streams, window.most) == ([threading.get_ident()] * 2, WINDOW)
    assert list(model.batch_as_completed([])) == []


def test_each_has_its_own_callbacks_and_a_failure_ends_the_runs(model: Any) -> None:
    watchers = [Watcher() for _ in range(3)]
    configs = [{"callbacks": [watcher], "metadata": {"n": n}} for n, watcher in enumerate(watchers)]
    wrong = [ToolMessage("1", tool_call_id="a")] if isinstance(model, ChatHFPipe) else ""
    found = dict(model.batch_as_completed(["a", wrong, "c"], configs, return_exceptions=True))
    assert isinstance(found[1], UsageError)
    assert [watcher.events for watcher in watchers] == [["start", "end"], ["start", "error"], ["start", "end"]]
    assert [watcher.metadata[0]["n"] for watcher in watchers] == [0, 1, 2]
    assert all("ls_provider" in watcher.metadata[0] for watcher in watchers)
    watcher = Watcher()
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


# Where a model comes from


def test_from_model_id_takes_the_arguments_of_huggingfacepipeline(tiny_gpt2: Path, tiny_llama_ov: Path) -> None:
    made = HFPipe.from_model_id(
        model_id=str(tiny_gpt2),
        task="text-generation",
        device=-1,
        model_kwargs={"attn_implementation": "eager"},
        pipeline_kwargs={"max_new_tokens": 4, "do_sample": False, "return_full_text": False},
        batch_size=2,
    )
    assert made.generator.backend.model.config._attn_implementation == "eager"
    assert (made.max_tokens, made.do_sample) == (4, False)
    assert made.generator.backend.batch_size == 2
    assert made.batch(["The cat", "A dog"]) == [made.invoke("The cat"), made.invoke("A dog")]
    with pytest.raises(UsageError, match="exclude each other"):
        HFPipe.from_model_id(str(tiny_gpt2), device=0, device_map="auto")
    with pytest.raises(UsageError, match="num_beams"):
        HFPipe.from_model_id(str(tiny_gpt2), backend="echo", pipeline_kwargs={"num_beams": 4})
    config = {"ov_config": {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}}
    made = HFPipe.from_model_id(str(tiny_llama_ov), backend="openvino", device="CPU", model_kwargs=config, max_tokens=3)
    assert made.generator.backend.info.detail["PERFORMANCE_HINT"] == "LATENCY"
    assert made.invoke("The cat")


@pytest.fixture
def pipeline(tiny_gpt2: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    return partial(pipeline, "text-generation", model=model, tokenizer=tokenizer)


def test_an_existing_pipeline_is_wrapped(pipeline: Any) -> None:
    pipe = pipeline(max_new_tokens=6, do_sample=False)
    wrapped = HFPipe(pipeline=pipe)
    expected = pipe("The cat", return_full_text=False)[0]["generated_text"]
    assert wrapped.invoke("The cat") == expected
    assert wrapped.invoke("The cat", max_tokens=2) == "".join(wrapped.stream("The cat", max_tokens=2)) != expected
    with pytest.raises(UsageError, match="Expected a text-generation pipeline, got object"):
        HFPipe(pipeline=object())


@pytest.mark.parametrize(("settings", "top_k"), [({}, 50), ({"top_k": 7}, 7), ({"top_k": 0}, 0)])
def test_a_wrapped_pipeline_samples_as_it_does_itself(pipeline: Any, settings: dict[str, int], top_k: int) -> None:
    pipe = pipeline(do_sample=True, temperature=1.5, **settings)
    sampling = HFPipe(pipeline=pipe).generator.prepare(TextRequest("0", "The cat"), "0").sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.5, top_k, 1.0)


# Options

CHAT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, CHAT),
        ({"template": "chat", "system": "Be brief."}, "<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT),
        ({"template": "raw"}, "Why?"),
        ({"template": "Say {prompt} in {tone}", "variables": {"tone": "{x}"}}, "Say Why? in {x}"),
    ],
)
def test_the_template_is_an_option_of_the_model_and_of_a_call(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, options: dict, prompt: str
) -> None:
    """As in the command line; a model without a chat template continues its prompt."""
    llm = hfpipe.load(tiny_llama, backend="echo")
    seen = []
    generate = llm.generator.generate
    monkeypatch.setattr(llm.generator, "generate", lambda requests, *_: generate(seen.append(r) or r for r in requests))
    HFPipe(generator=llm.generator, **options).invoke("Why?")
    llm.invoke("Why?", **options)
    llm.batch(["Why?"], **options)
    llm.batch(["Why?"], return_exceptions=True, **options)
    assert [request.prompt for request in seen] == [prompt] * 4
    assert {request.add_special_tokens for request in seen} == {not prompt.endswith("assistant\n")}


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"max_token": 40}, "Unknown option max_token.", "Did you mean 'max_tokens'?"),
        ({"max_tokens": "x"}, "max_tokens must be a number, not text.", None),
        ({"stop": 5}, "stop must be strings, not (5,).", None),
        ({"exact": "perhaps"}, "exact must be a valid boolean, not 'perhaps'.", None),
        ({"cache": 5}, "cache", None),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0.", None),
    ],
)
def test_a_wrong_option_is_a_usage_error(tiny_gpt2: Path, options: dict, error: str, hint: str | None) -> None:
    for make in (hfpipe.load, hfpipe.load_chat, HFPipe):
        with pytest.raises(UsageError) as raised:
            make(tiny_gpt2, backend="echo", **options)
        assert raised.value.message.startswith(error)
        assert hint is None or raised.value.hint == hint


def test_what_has_no_place_is_refused_for_a_loaded_model(echo: HFPipe) -> None:
    for options, message in (({"best_of": 3}, "best_of"), ({"system": "Be brief."}, "A system message needs")):
        with pytest.raises(UsageError, match=message):
            echo.invoke("a", **options)
    with pytest.raises(TemplateError, match="The prompt could be any of"):
        echo.invoke("a", template="{tone}: {text}")
    with pytest.raises(UsageError, match="device has no effect"):
        HFPipe(generator=echo.generator, device="cpu")
    with pytest.raises(UsageError, match="No model is given"):
        HFPipe()


def test_a_copy_shares_the_model(echo: HFPipe) -> None:
    for made in (copy.copy(echo), copy.deepcopy(echo)):
        assert made is not echo
        assert made.generator is echo.generator
        assert made.invoke("one") == "one"


# Cancelled, misplaced and heard


@pytest.mark.parametrize(
    "wait",
    [
        lambda model, prompt: model.ainvoke(prompt),
        lambda model, prompt: model.agenerate([prompt]),
        lambda model, prompt: model.abatch([prompt]),
        lambda model, prompt: first(model.abatch_as_completed([prompt])),
        lambda model, prompt: first(model.astream(prompt, stop=["x"])),
        lambda model, prompt: model.model_copy(update={"cache": InMemoryCache()}).abatch([prompt]),
    ],
    ids=["ainvoke", "agenerate", "abatch", "abatch_as_completed", "astream", "with a cache"],
)
def test_cancelling_ends_the_generation(model: Any, monkeypatch: pytest.MonkeyPatch, wait: Any) -> None:
    """And callbacks hear of it. The model then answers as before."""
    inside, left = model.generator.backend.stream, list[str]()
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def stream(requests: Any) -> Iterator[TokenEvent]:
        events = inside(requests)
        try:
            yield next(events)
            begun.set()
            assert go.wait(10)
            yield from events
            left.append("finished")
        finally:
            events.close()
            ended.set()

    async def cancelled() -> None:
        prompt = [HumanMessage("a " * 20)] if isinstance(model, ChatHFPipe) else "a " * 20
        task = asyncio.ensure_future(wait(model, prompt))
        await asyncio.to_thread(begun.wait, 10)
        asyncio.get_running_loop().call_later(0.2, go.set)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.01)

    monkeypatch.setattr(model.generator.backend, "stream", stream)
    watcher = Watcher()
    model.callbacks = [watcher]
    asyncio.run(cancelled())
    assert ended.wait(10)
    assert left == []
    assert model.generator.backend._active == {}
    # LangChain itself tells nobody where it gathers the answers of a chat model.
    heard = [] if isinstance(model, ChatHFPipe) and {"ainvoke", "agenerate"} & {*wait.__code__.co_names} else ["error"]
    assert watcher.events == ["start", *heard]
    monkeypatch.undo()
    assert text_of(model.invoke("dog")) == text_of(asyncio.run(model.ainvoke("dog")))


async def first(answers: Any) -> Any:
    return [answer async for answer in answers]


MISPLACED = {
    "with_config": lambda model, config: model.with_config(**config).invoke("dog"),
    "after bind": lambda model, config: model.bind(stop=["x"]).with_config(config).invoke("dog"),
    "of a bound call": lambda model, config: model.bind(stop=["x"]).invoke("dog", config),
    "of a configured call": lambda model, config: model.with_config(tags=["a"]).invoke("dog", config),
    "invoke": lambda model, config: model.invoke("dog", config),
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke("dog", config)),
    "stream": lambda model, config: list(model.stream("dog", config)),
    "astream": lambda model, config: asyncio.run(first(model.astream("dog", config))),
    "batch": lambda model, config: model.batch(["dog", "cat"], config),
    "a config each": lambda model, config: model.batch(["dog", "cat"], [{}, config]),
}


@pytest.mark.parametrize("call", MISPLACED.values(), ids=MISPLACED)
@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "num_beams", "template"])
def test_an_option_in_a_config_is_an_error_that_names_bind(model: Any, call: Any, name: str) -> None:
    """Names that only LangChain may know are its own."""
    with pytest.raises(UsageError, match=f"{name} in a config has no effect") as raised:
        call(model, {name: 3})
    assert f"bind({name}=" in str(raised.value.hint)
    call(model, {"tags": ["a"], "thread_id": 3})


HEARD = {
    "invoke": lambda model, **options: model.invoke("dog", **options),
    "ainvoke": lambda model, **options: asyncio.run(model.ainvoke("dog", **options)),
    "stream": lambda model, **options: list(model.stream("dog", **options)),
    "astream": lambda model, **options: asyncio.run(first(model.astream("dog", **options))),
    "batch": lambda model, **options: model.batch(["dog"], **options),
    "abatch": lambda model, **options: asyncio.run(model.abatch(["dog"], **options)),
    "bind": lambda model, **options: list(model.bind(**options).stream("dog")),
}


@pytest.mark.parametrize("call", HEARD.values(), ids=HEARD)
def test_callbacks_hear_the_options_in_effect(model: Any, call: Any) -> None:
    """By hfpipe's names, in every way to call; an option that is refused begins no run."""
    heard: list[dict[str, Any]] = []
    watcher = Watcher()
    watcher.on_llm_start = lambda *_, **given: heard.append(given["invocation_params"])  # type: ignore[method-assign]
    model = model.model_copy(update={"callbacks": [watcher], "max_tokens": 10})
    call(model, max_new_tokens=3, stop_strings=["3"], pipeline_kwargs={"top_k": 5})
    (params,) = heard
    assert params["model"] == model.model
    assert (params["max_tokens"], params["stop"], params["top_k"]) == (3, ["3"], 5)
    assert not {"max_new_tokens", "stop_strings", "pipeline_kwargs"} & params.keys()
    with pytest.raises(UsageError, match="num_beams"):
        call(model, num_beams=3)
    assert (len(heard), watcher.errors) == (1, [])
