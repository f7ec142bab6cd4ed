"""HFPipe as LangChain uses it. The engine is echo where its words do not matter, and OpenVINO where they do."""

import asyncio
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.prompts import PromptTemplate

import hfpipe
from hfpipe.errors import BackendError, TemplateError, UsageError
from hfpipe.langchain import HFPipe
from hfpipe.types import TextRequest, TokenEvent


@pytest.fixture
def echo(tiny_gpt2: Path) -> HFPipe:
    return hfpipe.load(str(tiny_gpt2), backend="echo")


@pytest.fixture(scope="module")
def llm(tiny_llama_ov: Path) -> HFPipe:
    return hfpipe.load(str(tiny_llama_ov), max_tokens=8, exact=True)


def test_a_chain_invokes_streams_and_batches(echo: HFPipe) -> None:
    pipe = PromptTemplate.from_template("Question: {question}\n\nAnswer:") | echo
    assert pipe.invoke({"question": "Why?"}) == "Question: Why?\n\nAnswer:"
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


def test_an_unknown_option_is_an_error_wherever_it_is_given(echo: HFPipe, tiny_gpt2: Path) -> None:
    with pytest.raises(UsageError, match="best_of"):
        echo.invoke("a", best_of=3)
    with pytest.raises(UsageError, match="best_of"):
        hfpipe.load(str(tiny_gpt2), backend="echo", best_of=3)


def test_async_calls_answer_at_once_and_right(llm: HFPipe) -> None:
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
    answers = echo.batch(["a", "", "c"], return_exceptions=True)
    assert answers[0] == "a"
    assert isinstance(answers[1], UsageError)
    assert answers[2] == "c"
    with pytest.raises(UsageError, match="empty"):
        echo.batch(["a", "", "c"])
    watcher = Watcher()
    answers = echo.batch(["a", 5], {"callbacks": [watcher]}, return_exceptions=True)
    assert answers[0] == "a"
    assert isinstance(answers[1], UsageError)
    assert [str(error).partition(":")[0] for error in watcher.errors] == ["Invalid input"]
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


class Watcher(BaseCallbackHandler):
    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.tokens: list[str] = []
        self.infos: list[dict] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized, prompts, **kwargs):
        self.prompts += prompts

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)

    def on_llm_end(self, response, **kwargs):
        self.infos += [one.generation_info for generations in response.generations for one in generations]

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)


def test_callbacks_see_prompts_tokens_results_and_errors(echo: HFPipe) -> None:
    watcher = Watcher()
    config = {"callbacks": [watcher]}
    text = "".join(echo.stream("one two", config))
    assert watcher.prompts == ["one two"]
    assert "".join(watcher.tokens) == text == "one two"
    tokens = len(echo.get_token_ids("one two"))
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


def test_a_cache_keeps_no_failed_answer(echo: HFPipe, cache: InMemoryCache) -> None:
    assert isinstance(echo.batch([""], return_exceptions=True)[0], UsageError)
    assert cache._cache == {}
    assert echo.batch(["a", ""], return_exceptions=True)[0] == "a"
    assert len(cache._cache) == 1
    with pytest.raises(UsageError, match="empty"):
        echo.invoke("")


def test_token_counts_are_the_models_own(echo: HFPipe) -> None:
    assert echo.get_num_tokens("one two three") == len(echo.get_token_ids("one two three")) > 0


def test_from_model_id_takes_the_arguments_of_huggingfacepipeline(tiny_gpt2: Path) -> None:
    made = HFPipe.from_model_id(
        model_id=str(tiny_gpt2),
        task="text-generation",
        device=-1,
        model_kwargs={"attn_implementation": "eager"},
        pipeline_kwargs={"max_new_tokens": 4, "do_sample": False, "return_full_text": False},
        batch_size=2,
    )
    assert made.generator.backend.model.config._attn_implementation == "eager"
    assert (made.max_tokens, made.temperature) == (4, 0.0)
    assert made.generator.backend.batch_size == 2
    assert made.batch(["The cat", "A dog"]) == [made.invoke("The cat"), made.invoke("A dog")]
    with pytest.raises(UsageError, match="exclude each other"):
        HFPipe.from_model_id(str(tiny_gpt2), device=0, device_map="auto")
    with pytest.raises(UsageError, match="num_beams"):
        HFPipe.from_model_id(str(tiny_gpt2), backend="echo", pipeline_kwargs={"num_beams": 4})


def test_from_model_id_for_openvino(tiny_llama_ov: Path) -> None:
    made = HFPipe.from_model_id(
        model_id=str(tiny_llama_ov),
        backend="openvino",
        device="CPU",
        model_kwargs={"ov_config": {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}},
        pipeline_kwargs={"max_new_tokens": 3},
    )
    assert made.generator.backend.info.detail["PERFORMANCE_HINT"] == "LATENCY"
    assert made.invoke("The cat")


def test_an_existing_pipeline_is_wrapped(tiny_gpt2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=6, do_sample=False)
    wrapped = HFPipe(pipeline=pipe)
    expected = pipe("The cat", return_full_text=False)[0]["generated_text"]
    assert wrapped.invoke("The cat") == expected
    assert wrapped.invoke("The cat", max_tokens=2) == "".join(wrapped.stream("The cat", max_tokens=2)) != expected
    with pytest.raises(UsageError, match="Expected a text-generation pipeline, got object"):
        HFPipe(pipeline=object())


@pytest.mark.parametrize(("settings", "top_k"), [({}, 50), ({"top_k": 7}, 7), ({"top_k": 0}, 0)])
def test_a_wrapped_pipeline_samples_as_it_does_itself(tiny_gpt2: Path, settings: dict[str, int], top_k: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, do_sample=True, temperature=1.5, **settings)
    sampling = HFPipe(pipeline=pipe).generator.prepare(TextRequest("0", "The cat"), "0").sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.5, top_k, 1.0)


CHAT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, CHAT),
        ({"template": "chat", "system": "Be brief."}, "<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT),
        ({"template": "raw"}, "Why?"),
        ({"template": "qa"}, "Question: Why?\n\nAnswer: Let's think step by step."),
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
    monkeypatch.setattr(llm.generator, "generate", lambda requests: generate(seen.append(r) or r for r in requests))
    HFPipe(generator=llm.generator, **options).invoke("Why?")
    llm.invoke("Why?", **options)
    llm.batch(["Why?"], **options)
    llm.batch(["Why?"], return_exceptions=True, **options)
    assert [request.prompt for request in seen] == [prompt] * 4
    assert {request.add_special_tokens for request in seen} == {not prompt.endswith("assistant\n")}


def test_a_template_refuses_what_has_no_place(echo: HFPipe) -> None:
    with pytest.raises(UsageError, match="system message"):
        echo.invoke("a", system="Be brief.")
    with pytest.raises(TemplateError, match="no chat template"):
        echo.invoke("a", template="chat")
    with pytest.raises(TemplateError, match="The prompt could be any of"):
        echo.invoke("a", template="{tone}: {text}")


def test_braces_of_a_prompt_are_text(echo: HFPipe) -> None:
    assert echo.invoke("a {b} {{c}} {") == "a {b} {{c}} {"


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"max_token": 40}, "Unknown option max_token.", "Did you mean 'max_tokens'?"),
        ({"max_tokens": "x"}, "max_tokens must be from 1 to 2**31 - 1, not x.", None),
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


def test_an_option_of_loading_is_refused_for_a_loaded_model(echo: HFPipe) -> None:
    with pytest.raises(UsageError, match="device has no effect"):
        HFPipe(generator=echo.generator, device="cpu")
    with pytest.raises(UsageError, match="No model is given"):
        HFPipe()


def test_a_copy_shares_the_model_and_a_pickle_is_refused(echo: HFPipe) -> None:
    for made in (copy.copy(echo), copy.deepcopy(echo)):
        assert made is not echo
        assert made.generator is echo.generator
        assert made.invoke("one") == "one"
    with pytest.raises(UsageError, match="cannot be pickled"):
        pickle.dumps(echo)
