"""Every argument of transformers' generation and loading: honoured as transformers does, or refused by name."""

import asyncio
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextGenerationPipeline, pipeline
from transformers.generation.utils import GenerationMixin

import hfpipe
from hfpipe import ChatHFPipe, HFPipe
from hfpipe.errors import BackendError, ContextLengthError, UnsupportedOption, UsageError
from hfpipe.generator import open_generator
from hfpipe.langchain import compat
from hfpipe.types import OF_GENERATION, LoadOptions

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> HFPipe:
    return HFPipe.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs={"max_new_tokens": 12})


@pytest.fixture(scope="module")
def pipe(tiny_gpt2: Path) -> Callable[..., Any]:
    """transformers' own pipeline, made with arguments."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    return partial(pipeline, "text-generation", model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def of_transformers(pipe: Callable[..., Any]) -> Callable[..., str]:
    """What transformers' own pipeline answers, greedily."""
    settings = {"do_sample": False, "return_full_text": False, "max_new_tokens": 12}

    def answer(**given: Any) -> str:
        own = {name: value for name, value in settings.items() if name != "max_new_tokens" or "max_length" not in given}
        answered: str = pipe(**{**own, **given})(PROMPT)[0]["generated_text"]
        return answered

    return answer


def numbers(llm: HFPipe, **options: Any) -> Any:
    """The tokens and numbers that a call asks the engine for."""
    return llm.generator.prepare(llm._called_with(options)._request(PROMPT), "0")


# The table


def test_every_argument_of_transformers_is_known() -> None:
    """A new version of transformers may bring more: each needs a place in the table."""
    fields = set(GenerationConfig().to_dict())
    generate = set(inspect.signature(GenerationMixin.generate).parameters)
    made = set(inspect.signature(TextGenerationPipeline._sanitize_parameters).parameters)
    prepared = set(inspect.signature(TextGenerationPipeline.preprocess).parameters)
    inputs = {"self", "inputs", "kwargs", "generate_kwargs", "prompt_text", "generation_config", "add_special_tokens"}
    assert (fields | generate | made | prepared) - inputs - compat.OF_TRANSFORMERS == set()


def test_a_name_has_one_place_and_a_refusal_says_what_to_do() -> None:
    places = [OF_GENERATION, compat._RENAMED.keys(), compat._HARMLESS, compat._REFUSED.keys()]
    assert sum(map(len, places)) == len(compat.OF_TRANSFORMERS)
    for name, (neutral, hint) in compat._REFUSED.items():
        assert compat.translated({name: neutral}) == compat.translated({name: None}) == {}
        with pytest.raises(UnsupportedOption, match=f"^{name}=<object .*> is not supported") as raised:
            compat.translated({name: object()})
        assert raised.value.hint == hint
        assert len(hint) > 10
    for name in compat._HARMLESS:
        assert compat.translated({name: object()}) == {}


def test_what_transformers_sets_itself_asks_for_nothing() -> None:
    """The whole of a generation config, with its defaults of every version."""
    config = GenerationConfig(max_new_tokens=7, do_sample=False)
    assert compat.translated({"generation_config": config}) == {"max_tokens": 7, "do_sample": False}
    given = compat.translated(GenerationConfig._get_default_generation_params())
    assert given.keys() <= OF_GENERATION
    assert given["temperature"] == given["top_p"] == given["repetition_penalty"] == 1.0


# Honoured: the answers are those of transformers


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 5},
        {"max_length": 14},
        {"max_length": 14, "max_new_tokens": 9},
        {"repetition_penalty": 1.8},
        {"stop_strings": ["at"]},
        {"eos_token_id": 5},
        {"eos_token_id": [5, 6]},
        {"generation_config": GenerationConfig(max_new_tokens=4)},
        {"num_beams": 1, "num_return_sequences": 1, "top_p": 1.0, "typical_p": 1.0, "no_repeat_ngram_size": 0},
        {"pad_token_id": 0, "use_cache": True, "early_stopping": True, "length_penalty": 0.5},
        {"do_sample": False, "temperature": 0.7, "top_k": 3},
    ],
    ids=lambda given: ",".join(given),
)
def test_an_argument_has_the_effect_that_it_has_in_transformers(
    loaded: HFPipe, of_transformers: Callable[..., str], tiny_gpt2: Path, given: dict[str, Any]
) -> None:
    """When the model is loaded, and in a call, in every form that LangChain has for one."""
    theirs = {name: value for name, value in given.items() if name not in ("stop_strings", "generation_config")}
    if "generation_config" in given:
        theirs["max_new_tokens"] = given["generation_config"].max_new_tokens
    expected = of_transformers(**theirs)
    for end in given.get("stop_strings", ()):
        expected = expected.partition(end)[0]
    calls = [{"pipeline_kwargs": given}, given if "generation_config" not in given else {"max_new_tokens": 4}]
    for call in calls:
        assert loaded.invoke(PROMPT, **call) == expected
        assert loaded.bind(**call).batch([PROMPT, PROMPT]) == [expected] * 2
        assert "".join(loaded.bind(**call).stream(PROMPT)) == expected
        assert asyncio.run(loaded.ainvoke(PROMPT, **call)) == expected
    length = {} if {"max_length", "generation_config"} & given.keys() else {"max_new_tokens": 12}
    made = HFPipe(generator=loaded.generator, template="raw", pipeline_kwargs={**length, **given})
    assert made.invoke(PROMPT) == expected


def test_max_length_counts_the_prompt_and_yields_to_max_new_tokens(loaded: HFPipe) -> None:
    tokens = len(numbers(loaded).token_ids)
    assert numbers(loaded).max_tokens == 12
    assert numbers(loaded, max_length=tokens + 3).max_tokens == 3
    assert numbers(loaded, max_length=1000).max_tokens == 128 - tokens, "the model's context is the end"
    assert numbers(loaded, max_length=tokens + 3, max_new_tokens=5).max_tokens == 5
    with pytest.raises(ContextLengthError, match=rf"The prompt has {tokens} tokens, and max_length={tokens} counts"):
        loaded.invoke(PROMPT, max_length=tokens)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": False, "temperature": 0.3}, 0.0),
        ({"do_sample": False, "top_k": 3}, 0.0),
        ({"do_sample": None, "temperature": 0.3}, 0.3),
        ({"temperature": 0}, 0.0),
        ({"top_k": None, "top_p": None}, 0.0),
        ({"min_p": 0.1}, 1.0),
    ],
)
def test_do_sample_and_temperature_together(loaded: HFPipe, given: dict[str, Any], temperature: float) -> None:
    assert numbers(loaded, pipeline_kwargs=given).sampling.temperature == temperature


def test_eos_token_id_takes_the_place_of_the_models_own(loaded: HFPipe) -> None:
    assert numbers(loaded).eos_token_ids == {0}
    assert numbers(loaded, eos_token_id=7).eos_token_ids == {7}
    assert numbers(loaded, eos_token_id=[7, 9]).eos_token_ids == {7, 9}
    assert numbers(loaded, eos_token_id=[]).eos_token_ids == set()
    ids = [token for event in loaded.generator.backend.stream([numbers(loaded)]) for token in event.token_ids]
    assert ids.index(ids[2]) == 2
    ended = loaded.generate([PROMPT], eos_token_id=ids[2]).generations[0][0]
    assert ended.text == loaded.generator.tokenizer.decode(ids[:3]), "as transformers shows it"
    assert (ended.generation_info["finish_reason"], ended.generation_info["usage"]["completion_tokens"]) == ("stop", 3)
    assert numbers(loaded, eos_token_id=7, stop=["<|im_end|>"]).eos_token_ids == {7, 2}


def test_options_are_set_by_with_config_and_configurable_fields(loaded: HFPipe) -> None:
    expected = loaded.invoke(PROMPT, max_tokens=3)
    assert loaded.bind(max_new_tokens=3).with_config(tags=["short"]).invoke(PROMPT) == expected
    field = ConfigurableField(id="length")
    configurable = PromptTemplate.from_template("{x}") | loaded.configurable_fields(max_tokens=field)
    assert configurable.with_config(configurable={"length": 3}).invoke({"x": PROMPT}) == expected
    assert configurable.invoke({"x": PROMPT}) == loaded.invoke(PROMPT) != expected
    either = loaded.configurable_alternatives(ConfigurableField(id="which"), short=loaded.bind(max_new_tokens=3))
    assert either.with_config(configurable={"which": "short"}).invoke(PROMPT) == expected


# Attributes


def test_the_attributes_of_langchains_pipeline_say_what_is_so(tiny_gpt2: Path) -> None:
    kwargs = {"temperature": 0, "attn_implementation": "eager", "token": None}
    made = {"model_kwargs": kwargs, "pipeline_kwargs": {"max_new_tokens": 5, "stop_strings": ["x"]}, "batch_size": 2}
    for llm in (HFPipe.from_model_id(str(tiny_gpt2), "text-generation", **made), ChatHFPipe(tiny_gpt2, **made)):
        assert (llm.model_id, llm.batch_size) == (llm.model, 2) == (str(tiny_gpt2), 2)
        assert llm.model_kwargs == {"attn_implementation": "eager"}
        assert llm.pipeline_kwargs == {"max_new_tokens": 5, "temperature": 0, "stop_strings": ("x",)}
        llm.seed = 3
        same = [type(llm)(generator=llm.generator, pipeline_kwargs=llm.pipeline_kwargs), llm.model_copy()]
        same += [pickle.loads(pickle.dumps(llm))]
        assert all(one.pipeline_kwargs == llm.pipeline_kwargs for one in same)
        assert llm.pipeline_kwargs["seed"] == 3
        assert "pipeline_kwargs" not in llm.model_dump()
        with pytest.raises(ValueError, match="frozen"):
            llm.pipeline_kwargs = {"seed": 4}
        with pytest.raises(AttributeError, match="no_such"):
            llm.no_such  # noqa: B018
        secret = {**llm.generator.loading.model_kwargs, "token": "hf_secret"}
        llm.generator.loading = replace(llm.generator.loading, model_kwargs=secret)
        assert llm.model_kwargs == {"attn_implementation": "eager"}


def test_attributes_of_what_hfpipe_has_not_loaded_itself(pipe: Callable[..., Any]) -> None:
    wrapped = HFPipe(pipeline=pipe(max_length=14, batch_size=3))
    assert (wrapped.batch_size, wrapped.model_kwargs, wrapped.pipeline_kwargs["max_length"]) == (3, {}, 14)
    with HFPipe("org/name", endpoint="http://127.0.0.1:9/v1", batch_size=5) as hosted:
        assert (hosted.model_id, hosted.batch_size, hosted.model_kwargs) == ("org/name", 5, {})


@pytest.mark.parametrize("given", [{"max_new_tokens": 3}, {"max_length": 14}, {"stop_strings": ["row"], "top_k": 1}])
def test_pipeline_kwargs_is_a_configurable_field(loaded: HFPipe, given: dict[str, Any]) -> None:
    """It wins over the model's own options, as in a call."""
    llm = loaded.configurable_fields(
        pipeline_kwargs=ConfigurableField(id="kwargs"), max_tokens=ConfigurableField(id="length")
    )
    expected = loaded.invoke(PROMPT, pipeline_kwargs=given)
    assert llm.with_config(configurable={"kwargs": given}).invoke(PROMPT) == expected != llm.invoke(PROMPT)
    assert llm.with_config(configurable={"length": 4}).invoke(PROMPT) == loaded.invoke(PROMPT, max_tokens=4)
    assert llm.invoke(PROMPT) == loaded.invoke(PROMPT)
    (default,) = [spec.default for spec in llm.config_specs if spec.id == "kwargs"]
    assert default == loaded.pipeline_kwargs == {"max_new_tokens": 12}


# Refused


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"num_beams": 4}, "no beam search"),
        ({"streamer": object()}, "llm.stream"),
        ({"no_repeat_ngram_size": 3}, "repetition_penalty"),
        ({"return_full_text": True}, "prompt \\+ llm.invoke"),
        ({"skip_prompt": False}, "prompt \\+ llm.invoke"),
        ({"num_return_sequences": 3}, "llm.batch"),
        ({"max_time": 5.0}, "Leave llm.stream"),
        ({"assistant_model": object()}, "drafts"),
        ({"max_new_token": 5}, "Did you mean"),
    ],
)
def test_what_is_not_honoured_is_refused_when_loading_and_in_a_call(
    loaded: HFPipe, given: dict[str, Any], hint: str
) -> None:
    (name,) = given
    for call in (
        lambda: HFPipe.from_model_id("no/model", "text-generation", pipeline_kwargs=given),
        lambda: loaded.invoke(PROMPT, pipeline_kwargs=given),
        lambda: loaded.bind(**given).batch([PROMPT]),
        lambda: next(loaded.stream(PROMPT, **given)),
    ):
        with pytest.raises(UsageError, match=f"(?s){name}.*{hint}"):
            call()


@pytest.mark.parametrize("place", ["pipeline_kwargs", "model_kwargs"])
def test_prompt_lookup_is_an_option_of_loading(tiny_gpt2: Path, loaded: HFPipe, place: str) -> None:
    llm = HFPipe.from_model_id(str(tiny_gpt2), **{place: {"prompt_lookup_num_tokens": 4}})
    assert llm.generator.info.detail["prompt lookup"] == "4, for a prompt alone"
    of_load = hfpipe.load(str(tiny_gpt2), prompt_lookup_num_tokens=4)
    assert of_load.generator.loading == replace(llm.generator.loading, backend="auto")
    with pytest.raises(UsageError, match="prompt_lookup is given twice, as 3 and as 4"):
        HFPipe.from_model_id("no/model", **{place: {"prompt_lookup": 3, "prompt_lookup_num_tokens": 4}})
    for given in ({"prompt_lookup_num_tokens": 4}, {"generation_config": {"prompt_lookup_num_tokens": 4}}):
        with pytest.raises(UnsupportedOption, match=r"(?s)prompt_lookup_num_tokens=4 .*when the model is loaded"):
            loaded.invoke(PROMPT, pipeline_kwargs=given)


def test_the_same_thing_said_in_two_names_must_agree(loaded: HFPipe) -> None:
    assert numbers(loaded, max_tokens=3, max_new_tokens=3).max_tokens == 3
    with pytest.raises(UsageError, match="max_tokens is given twice, as 3 and as 4"):
        loaded.invoke(PROMPT, max_tokens=3, max_new_tokens=4)
    assert loaded._called_with({"stop": ["a"], "stop_strings": "b"}).stop == ("a", "b")


def test_stops_of_several_names_join_in_every_call(loaded: HFPipe) -> None:
    """Also one that is bound by another name."""
    whole = loaded.invoke(PROMPT)
    first = whole[2:5]
    expected = whole.partition(first)[0]
    assert expected != whole
    for bound, call in ((loaded, {"stop_strings": [first]}), (loaded.bind(stop_strings=[first]), {})):
        call["stop"] = ["no such text"]
        assert bound.invoke(PROMPT, **call) == "".join(bound.stream(PROMPT, **call)) == expected
        assert bound.batch([PROMPT], **call) == [asyncio.run(bound.ainvoke(PROMPT, **call))] == [expected]
    assert loaded.generate([PROMPT], ["no such text"], stop_strings=[first]).generations[0][0].text == expected
    assert loaded.bind(stop=[first]).invoke(PROMPT, stop=["no such text"]) == whole, "a name said again is replaced"


@pytest.mark.parametrize(
    "bound", [{"max_tokens": 3}, {"max_new_tokens": 3}, {"pipeline_kwargs": {"max_new_tokens": 3}}]
)
@pytest.mark.parametrize("call", [{"max_tokens": 4}, {"max_new_tokens": 4}, {"pipeline_kwargs": {"max_new_tokens": 4}}])
def test_an_option_of_a_call_wins_over_a_bound_one_by_any_name(loaded: HFPipe, bound: Any, call: Any) -> None:
    expected = loaded.invoke(PROMPT, max_tokens=4)
    llm = loaded.bind(stop=["no such text"]).with_config(tags=["short"]).bind(max_tokens=7).bind(**bound)
    assert llm.invoke(PROMPT) == loaded.invoke(PROMPT, max_tokens=3) != expected
    assert llm.invoke(PROMPT, **call) == "".join(llm.stream(PROMPT, **call)) == llm.batch([PROMPT], **call)[0]
    assert llm.invoke(PROMPT, **call) == expected
    tokens = len(numbers(loaded).token_ids)
    assert llm.invoke(PROMPT, max_length=tokens + 4) == expected


def test_a_model_never_answers_under_the_name_of_another(loaded: HFPipe, tiny_gpt2: Path) -> None:
    said = "The model that is loaded is .*, not /no/such.\nLoad the other.*configurable_alternatives"
    configurable = loaded.configurable_fields(model=ConfigurableField(id="m"))
    assert configurable.with_config(configurable={"m": str(tiny_gpt2)}).invoke(PROMPT) == loaded.invoke(PROMPT)
    for call in (
        lambda: configurable.with_config(configurable={"m": "/no/such"}).invoke(PROMPT),
        lambda: loaded.model_copy(update={"model": "/no/such"}).invoke(PROMPT),
        lambda: list(loaded.model_copy(update={"model": "/no/such"}).stream(PROMPT)),
        lambda: ChatHFPipe("/no/such", llm=loaded),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    again = pickle.loads(pickle.dumps(loaded)).configurable_fields(max_tokens=ConfigurableField(id="n"))
    assert again.with_config(configurable={"n": 2}).invoke(PROMPT) == loaded.invoke(PROMPT, max_tokens=2)


@pytest.mark.parametrize("closed", [True, False])
def test_a_fault_of_the_whole_batch_is_an_error_for_each_input(tiny_gpt2: Path, closed: bool) -> None:
    llm = HFPipe(tiny_gpt2, backend="echo")
    if closed:
        llm.close()
    options: Any = {} if closed else {"num_beams": 4}
    error = BackendError if closed else UnsupportedOption
    assert [type(one) for one in llm.batch(["a", "b"], return_exceptions=True, **options)] == [error] * 2
    with pytest.raises(error):
        llm.batch(["a", "b"], **options)
    if closed:
        chain = PromptTemplate.from_template("{x}") | llm
        assert [type(one) for one in chain.batch([{"x": "a"}] * 2, return_exceptions=True)] == [error] * 2
    assert [index for index, _ in llm.batch_as_completed(["a", "b"], return_exceptions=True, **options)] == [0, 1]


# A pipeline that stands


@pytest.mark.parametrize(
    "given",
    [{"max_length": 14}, {"max_new_tokens": 5}, {"max_new_tokens": 12, "eos_token_id": 98}, {"max_new_tokens": 12}],
    ids=lambda given: ",".join(given),
)
def test_a_wrapped_pipeline_keeps_its_own_arguments(pipe: Callable[..., Any], given: dict[str, Any]) -> None:
    made = pipe(do_sample=False, return_full_text=False, batch_size=3, **given)
    llm = HFPipe(pipeline=made)
    assert llm.invoke(PROMPT) == made(PROMPT)[0]["generated_text"]
    assert llm.generator.backend.batch_size == 3
    assert HFPipe(pipeline=made, batch_size=2, model_id="mine").generator.backend.batch_size == 2
    assert HFPipe(pipeline=made, pipeline_kwargs={"max_new_tokens": 2}).max_tokens == 2


@pytest.mark.parametrize(
    "given", [{"num_beams": 2}, {"streamer": object()}, {"return_full_text": True}, {"skip_special_tokens": False}]
)
def test_a_pipeline_that_does_what_hfpipe_does_not_is_refused(pipe: Callable[..., Any], given: dict[str, Any]) -> None:
    name = "return_type" if "return_full_text" in given else next(iter(given))
    with pytest.raises(UnsupportedOption, match=name):
        HFPipe(pipeline=pipe(**given))


# Loading


def test_generation_among_model_kwargs_is_honoured_below_pipeline_kwargs(tiny_gpt2: Path) -> None:
    kwargs = {"temperature": 0, "max_length": 64, "do_sample": True, "pad_token_id": 0, "torch_dtype": "float32"}
    llm = HFPipe.from_model_id(str(tiny_gpt2), "text-generation", model_kwargs=kwargs)
    asked = numbers(llm)
    assert (asked.sampling.temperature, asked.max_tokens) == (0.0, 64 - len(asked.token_ids))
    given = compat.of_constructor({"model_kwargs": kwargs, "pipeline_kwargs": {"temperature": 0.5, "batch_size": 2}})
    assert (given["temperature"], given["batch_size"], given["model_kwargs"]) == (0.5, 2, {"torch_dtype": "float32"})
    with pytest.raises(UnsupportedOption, match="num_beams=4 is not supported"):
        HFPipe.from_model_id(str(tiny_gpt2), "text-generation", model_kwargs={"num_beams": 4})


@pytest.mark.parametrize("make", [HFPipe, hfpipe.load, ChatHFPipe, HFPipe.from_model_id], ids=repr)
def test_model_kwargs_and_pipeline_kwargs_mean_the_same_to_every_constructor(
    tiny_gpt2: Path, make: Callable[..., Any]
) -> None:
    kwargs = {"temperature": 0, "max_length": 64, "device": "cpu", "torch_dtype": "bfloat16", "low_cpu_mem_usage": True}
    llm = make(str(tiny_gpt2), model_kwargs=kwargs, pipeline_kwargs={"top_k": 3, "batch_size": 2}, seed=1)
    assert llm.pipeline_kwargs == {"temperature": 0, "max_length": 64, "top_k": 3, "seed": 1}
    assert (llm.batch_size, llm.generator.info.dtype) == (2, "bfloat16")
    with pytest.raises(UnsupportedOption, match="load_in_8bit in model_kwargs"):
        make(str(tiny_gpt2), model_kwargs={"load_in_8bit": True})
    with pytest.raises(UsageError, match="device is given twice"):
        make(str(tiny_gpt2), device=0, model_kwargs={"device": "cpu"})


def test_a_chat_model_over_an_llm_has_its_options_beneath_its_own(loaded: HFPipe) -> None:
    for own in ({"max_tokens": 3}, {"max_new_tokens": 3}, {"pipeline_kwargs": {"max_new_tokens": 3}}):
        assert ChatHFPipe(llm=loaded, **own).max_tokens == 3
    assert ChatHFPipe(llm=loaded, max_length=20).pipeline_kwargs == {"max_length": 20}
    assert ChatHFPipe(llm=loaded).max_tokens == 12


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_of_loading_reach_the_model(tiny_gpt2: Path, name: str, as_text: bool) -> None:
    import torch

    kwargs = {name: "bfloat16" if as_text else torch.bfloat16, "low_cpu_mem_usage": True, "trust_remote_code": False}
    kwargs |= {"attn_implementation": "eager", "use_safetensors": True, "token": None, "local_files_only": False}
    llm = HFPipe.from_model_id(str(tiny_gpt2), "text-generation", model_kwargs=kwargs)
    info = llm.generator.backend.info
    assert (info.dtype, info.detail["attention"]) == ("bfloat16", "eager")
    assert llm.invoke(PROMPT, max_new_tokens=2)


@pytest.mark.parametrize(
    ("backend", "kwargs", "said"),
    [
        ("default", {"proxies": {"https": "x"}}, "proxies in model_kwargs is not supported.\nSet HTTPS_PROXY"),
        ("default", {"load_in_8bit": True}, "load_in_8bit in model_kwargs.*BitsAndBytesConfig"),
        ("default", {"use_safetensors": False}, "use_safetensors in model_kwargs.*allow_pickle=True"),
        ("default", {"revision": "v2"}, "has no revisions"),
        ("default", {"no_such": 1}, "cannot load .* with no_such 1 in model_kwargs"),
        ("openvino", {"quantization_config": {"bits": 4}}, "quantization_config in .*hfpipe export MODEL"),
        ("openvino", {"torch_dtype": "float16"}, "torch_dtype in model_kwargs.*INFERENCE_PRECISION_HINT"),
        ("openvino", {"no_such": 1}, "openvino backend cannot honour model_kwargs no_such"),
    ],
)
def test_an_argument_of_loading_that_is_not_honoured_is_refused(
    tiny_gpt2: Path, backend: str, kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        HFPipe.from_model_id(str(tiny_gpt2), "text-generation", backend=backend, model_kwargs=kwargs)


@pytest.mark.parametrize(
    ("arguments", "model_kwargs", "pipeline_kwargs", "said"),
    [
        ({"device": 0}, {}, {"device": "cpu"}, "device is given twice, as 0 and as 'cpu'"),
        ({"device": 0}, {"device": "CPU"}, {}, "device is given twice, as 0 and as 'CPU'"),
        ({"backend": "echo"}, {}, {"backend": "torch"}, "backend is given twice, as 'echo' and as 'torch'"),
        ({"task": "text-generation"}, {}, {"task": "summarization"}, "task is given twice"),
        ({"device_map": "auto"}, {"device_map": "cpu"}, {}, "device_map is given twice"),
        ({"device_map": "auto"}, {}, {"device_map": "cpu"}, "device_map is given twice"),
        ({"dtype": "float16"}, {"torch_dtype": "float32"}, {}, "dtype is given twice, as 'float16' and as 'float32'"),
        ({}, {"dtype": "float16", "torch_dtype": "float32"}, {}, "dtype is given twice"),
        ({"torch_dtype": "float16"}, {}, {"dtype": "float32"}, "dtype is given twice"),
        ({}, {"dtype": "float16"}, {"torch_dtype": "float32"}, "dtype is given twice"),
        ({}, {}, {"dtype": "float16", "torch_dtype": "float32"}, "dtype is given twice"),
        ({"batch_size": 2}, {}, {"batch_size": 3}, "batch_size is given twice, as 2 and as 3"),
        ({"batch_size": 2}, {"batch_size": 3}, {}, "batch_size is given twice"),
        ({"ov_config": {"A": "1"}}, {"ov_config": {"A": "2"}}, {}, "ov_config is given twice"),
        ({}, {}, {"model": "b"}, "model in pipeline_kwargs has no place"),
        ({}, {}, {"model_kwargs": {}}, "model_kwargs in pipeline_kwargs has no place"),
        ({}, {}, {"tokenizer": "b"}, "Unknown option tokenizer"),
        ({}, {}, "x", "pipeline_kwargs must be a dict of options by name, not 'x'"),
        ({}, {}, [1], r"pipeline_kwargs must be a dict of options by name, not \[1\]"),
        ({}, {}, {1: 2}, "pipeline_kwargs must be a dict"),
        ({}, "x", {}, "model_kwargs must be a dict of options by name, not 'x'"),
        ({}, [1], {}, "model_kwargs must be a dict"),
        ({}, {}, {"generation_config": "x"}, "generation_config must be a dict of options by name, not 'x'"),
    ],
)
def test_an_option_of_loading_is_given_once_and_by_its_own_type(
    arguments: dict[str, Any], model_kwargs: Any, pipeline_kwargs: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        HFPipe.from_model_id("no/model", model_kwargs=model_kwargs, pipeline_kwargs=pipeline_kwargs, **arguments)


def test_options_of_loading_are_honoured_wherever_they_stand(tiny_gpt2: Path) -> None:
    import torch

    places = [
        ({"device": torch.device("cpu"), "dtype": torch.bfloat16, "batch_size": 2}, {}, {"dtype": "bfloat16"}),
        ({}, {"device": torch.device("cpu"), "dtype": "bfloat16", "batch_size": 2}, {"torch_dtype": torch.bfloat16}),
        ({}, {}, {"device": -1, "torch_dtype": torch.bfloat16, "batch_size": 2, "task": "text-generation"}),
        ({"device_map": {"": "cpu"}, "batch_size": 2}, {"torch_dtype": torch.bfloat16}, {"backend": "torch"}),
        ({}, {"torch_dtype": "bfloat16"}, {"device_map": {"": "cpu"}, "batch_size": 2}),
    ]
    for arguments, of_model, of_pipeline in places:
        llm = HFPipe.from_model_id(str(tiny_gpt2), model_kwargs=of_model, pipeline_kwargs=of_pipeline, **arguments)
        info = llm.generator.backend.info
        assert (info.device, info.dtype, llm.generator.backend.batch_size) == ("cpu", "bfloat16", 2)
    assert HFPipe.from_model_id(str(tiny_gpt2), pipeline_kwargs={"backend": "echo"}).invoke("one") == "one"
    with pytest.raises(UsageError, match="device is given twice, as 'cpu' and as 0"):
        HFPipe(tiny_gpt2, device="cpu", pipeline_kwargs={"device": 0})
    with pytest.raises(UsageError, match="device_map is given twice"):
        HFPipe(tiny_gpt2, device_map={"": "cpu"}, model_kwargs={"device_map": "auto"})
    with pytest.raises(UsageError, match="must be"):
        HFPipe(tiny_gpt2, device_map={"": "cpu"}, model_kwargs="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="openvino backend cannot honour model_kwargs device_map"):
        HFPipe(tiny_gpt2, backend="openvino", device_map={"": "cpu"})


def test_quantization_config_needs_its_package_and_says_so(tiny_gpt2: Path) -> None:
    from transformers import BitsAndBytesConfig

    kwargs = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    with pytest.raises((BackendError, UsageError), match="bitsandbytes"):
        HFPipe.from_model_id(str(tiny_gpt2), "text-generation", model_kwargs=kwargs)


# Closing and pickling


def test_a_closed_model_answers_no_more_and_with_closes_it(tiny_gpt2: Path) -> None:
    with HFPipe(tiny_gpt2, backend="echo") as llm:
        chat = ChatHFPipe(llm=llm)
        assert llm.invoke("one") == "one"
    for call in (lambda: llm.invoke("one"), lambda: list(llm.stream("one")), lambda: llm.batch(["one"])):
        with pytest.raises(BackendError, match="The echo backend has been closed"):
            call()
    chat.close()


def test_a_pickle_loads_the_model_again_in_the_other_process(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all that share it, from a name that holds in every folder."""
    monkeypatch.chdir(tiny_gpt2.parent)
    llm = HFPipe(tiny_gpt2.name, backend="torch", dtype="bfloat16", batch_size=2, max_tokens=5, stop="xyz")
    again = pickle.loads(pickle.dumps(llm))
    assert again.generator is not llm.generator
    assert again.generator.loading == LoadOptions(backend="torch", dtype="bfloat16", batch_size=2)
    assert (again.max_tokens, again.stop, again.model) == (5, ("xyz",), str(tiny_gpt2))
    assert again.invoke(PROMPT) == llm.invoke(PROMPT)
    bound = PromptTemplate.from_template("{x}") | llm.bind(stop=["\n"])
    first, second = pickle.loads(pickle.dumps((bound, ChatHFPipe(llm=llm))))
    assert first.last.bound.generator is second.generator


def test_what_was_wrapped_cannot_be_pickled_and_says_so(tiny_gpt2: Path, pipe: Callable[..., Any]) -> None:
    opened = open_generator(str(tiny_gpt2), LoadOptions(backend="echo"))
    assert pickle.loads(pickle.dumps(HFPipe(generator=opened))).invoke("one") == "one"
    with pytest.raises(UsageError, match="as a transformers pipeline is, cannot be pickled"):
        pickle.dumps(HFPipe(pipeline=pipe()))


# Refused, with what to do


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda g: HFPipe(g, token="hf_x"), "Unknown option token.", "model_kwargs"),
        (lambda g: ChatHFPipe(g, attn_implementation="eager"), "Unknown option attn_implementation.", "model_kwargs"),
        (lambda g: hfpipe.load(g, local_files_only=True), "Unknown option local_files_only.", "model_kwargs"),
        (lambda g: ChatHFPipe(llm=3), "llm must be an HFPipe, not 3", "model="),
        (lambda g: HFPipe.from_model_id(model_id=g, model="x"), "model is given twice", "Leave model out"),
        (lambda g: HFPipe(g, batch_size=True), "batch_size must be a valid integer, not True", None),
        (lambda g: HFPipe(g, batch_size="2"), "batch_size must be a valid integer, not '2'", None),
        (lambda g: HFPipe(g, trust_remote_code="yes"), "trust_remote_code must be a valid boolean, not 'yes'", None),
        (lambda g: HFPipe(g, device=1.5), "device must be a number or text .*, not 1.5", None),
        (lambda g: HFPipe(g, device_map=3), "device_map must be text .* or a dict of places, not 3", None),
        (lambda g: HFPipe(g, max_new_tokens=5.0), "max_tokens must be a whole number from 1 to .*, not 5.0", None),
        (lambda g: HFPipe(g, top_k=0.5), "top_k must be a whole number from 0 .*, not 0.5", None),
    ],
)
def test_a_wrong_argument_of_loading_is_said_before_the_model_is_loaded(make: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        make("no/model")
    assert (hint or "") in (raised.value.hint or "")


def test_what_is_not_there_says_what_to_use(loaded: HFPipe) -> None:
    for options in ({"src_lang": "en"}, {"pipeline_kwargs": {"src_lang": "en"}}):
        with pytest.raises(UsageError, match="source_lang cannot change in a call"):
            loaded.invoke(PROMPT, **options)
    with pytest.raises(AttributeError, match=r"llm\.generator\.tokenizer"):
        _ = loaded.pipeline
    assert loaded.generator.tokenizer.encode(PROMPT, False)
    assert loaded.generator.backend.model.config.model_type == "gpt2"
    for ask in (lambda chat: chat.bind_tools([]), lambda chat: chat.with_structured_output({"title": "a"})):
        with pytest.raises(UnsupportedOption, match="does not support tools"):
            ask(ChatHFPipe(llm=loaded))


def test_the_languages_of_a_translation_pipeline(tiny_seq2seq: Callable[[str], Path]) -> None:
    languages = {"src_lang": "en_XX", "tgt_lang": "de_DE"}
    for place in ({"pipeline_kwargs": languages}, {"model_kwargs": languages}):
        llm = HFPipe.from_model_id(str(tiny_seq2seq("mbart")), "translation", backend="echo", **place)
        task = llm.generator.source.task
        assert (task.source_lang, task.target_lang) == ("en_XX", "de_DE")


def test_an_eos_token_with_text_is_shown_as_transformers_shows_it(loaded: HFPipe, of_transformers: Any) -> None:
    """It ends the answer, and only special tokens are hidden."""
    ids = loaded.generator.tokenizer.encode(loaded.invoke(PROMPT), False)
    for end in set(ids):
        assert loaded.invoke(PROMPT, eos_token_id=end) == of_transformers(eos_token_id=end)
