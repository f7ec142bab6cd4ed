"""What is asked for and what the model prefers."""

from collections.abc import Mapping
from typing import Any

import pytest

from hfpipe.errors import UsageError
from hfpipe.sampling import end_token_ids, not_applied, resolve_sampling, setting
from hfpipe.types import DEFAULT_MAX_TOKENS, GenerationOptions, Sampling

SAMPLES = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}


def resolved(preferred: Mapping[str, Any], **options: Any) -> Sampling:
    return resolve_sampling(GenerationOptions(**options), preferred)


# Where a value comes from


@pytest.mark.parametrize(
    ("name", "option", "preferred", "value"),
    [
        ("top_p", 0.5, SAMPLES, 0.5),
        ("top_p", None, SAMPLES, 0.9),
        ("top_p", None, {}, 1.0),
        ("top_p", None, {"top_p": None}, 1.0),
        ("top_k", 0, SAMPLES, 0),
        ("min_p", 0, SAMPLES, 0),
        ("max_tokens", None, {}, DEFAULT_MAX_TOKENS),
        ("max_tokens", None, {"max_new_tokens": 33}, 33),
        ("max_tokens", 7, {"max_new_tokens": 33}, 7),
    ],
)
def test_an_option_wins_then_the_model_then_the_default(name, option, preferred, value):
    assert setting(name, GenerationOptions(**{name: option}), preferred) == value


# Greedy, or sampling


@pytest.mark.parametrize(
    "preferred",
    [{}, {"temperature": 0.6}, {"do_sample": False, "temperature": 0.6}, {**SAMPLES, "do_sample": False}],
)
def test_a_model_that_does_not_sample_is_greedy(preferred):
    penalty = preferred.get("repetition_penalty", 1.0)
    assert resolved(preferred) == Sampling(repetition_penalty=penalty)


def test_a_model_that_samples():
    sampling = resolved(SAMPLES, seed=5)
    assert sampling == Sampling(0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1, seed=5)


@pytest.mark.parametrize(
    ("preferred", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": None}, 1.0),
        ({"do_sample": True, "temperature": 0.0}, 0.0),
    ],
)
def test_the_temperature_of_a_model_that_samples(preferred, temperature):
    assert resolved(preferred).temperature == temperature


def test_a_temperature_of_zero_is_greedy_whatever_else_is_given():
    assert resolved(SAMPLES, temperature=0, top_p=0.5, seed=3) == Sampling(repetition_penalty=1.1)


@pytest.mark.parametrize("option", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_an_option_of_sampling_samples(option):
    """At the model's own temperature, where it has one."""
    assert resolved({}, **option).temperature == 1.0
    assert resolved({"temperature": 0.3}, **option).temperature == 0.3


@pytest.mark.parametrize("option", [{"seed": 3}, {"repetition_penalty": 1.5}, {"max_tokens": 3}])
def test_another_option_does_not(option):
    assert resolved({}, **option).temperature == 0


# Seeds


def test_a_seed_that_is_given():
    assert resolved(SAMPLES, seed=0).seed == 0
    assert resolved(SAMPLES, seed=2**63 - 1).seed == 2**63 - 1


def test_without_a_seed_each_request_has_its_own():
    assert len({resolved(SAMPLES).seed for _ in range(20)}) == 20


# What a generation_config.json may hold


@pytest.mark.parametrize(("key", "value"), [("top_p", 1.5), ("top_k", -1), ("repetition_penalty", 0.0)])
def test_a_preference_that_makes_no_sense_is_an_error(key, value):
    with pytest.raises(UsageError, match=f"{key} must be"):
        resolved({**SAMPLES, key: value})


def test_what_is_not_applied():
    preferred = {
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "typical_p": 1.0,
        "suppress_tokens": [1, 2],
        "guidance_scale": None,
        "temperature": 0.6,
        "max_length": 50,
    }
    assert not_applied(preferred) == ["num_beams=4", "no_repeat_ngram_size=3", "suppress_tokens=[1, 2]"]
    assert not_applied({"num_beams": 1, "no_repeat_ngram_size": 0}) == []


def test_what_transformers_writes_for_a_new_model_is_all_applied():
    from transformers import GenerationConfig

    assert not_applied(GenerationConfig().to_dict()) == []


@pytest.mark.parametrize(
    ("configs", "ids"),
    [
        (({"eos_token_id": 2}, {"eos_token_id": 9}), {2, 9}),
        (({"eos_token_id": [2, 3]}, {"eos_token_id": 3}), {2, 3}),
        (({"eos_token_id": [2, 3]}, {}), {2, 3}),
        (({"eos_token_id": None}, {"eos_token_id": 9}), {9}),
        (({}, {"eos_token_id": 0}), {0}),
        (({}, {}), set()),
    ],
)
def test_end_tokens(configs, ids):
    assert end_token_ids(*configs) == ids


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-300])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature: float) -> None:
    assert resolve_sampling(GenerationOptions(temperature=temperature), {}).temperature == 0
    assert resolve_sampling(GenerationOptions(), {"do_sample": True, "temperature": temperature}).temperature == 0
