"""What is asked for and what the model prefers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from transformers import GenerationConfig

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

OWN = Sampling(0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1, seed=5)


@pytest.mark.parametrize(
    ("preferred", "options", "sampling"),
    [
        ({}, {}, Sampling()),
        ({"temperature": 0.6}, {}, Sampling()),
        ({"do_sample": False, "temperature": 0.6}, {}, Sampling()),
        ({**SAMPLES, "do_sample": False}, {}, Sampling(repetition_penalty=1.1)),
        (SAMPLES, {"seed": 5}, OWN),
        (SAMPLES, {"seed": 0}, replace(OWN, seed=0)),
        (SAMPLES, {"seed": 2**63 - 1}, replace(OWN, seed=2**63 - 1)),
        (SAMPLES, {"temperature": 0, "top_p": 0.5, "seed": 3}, Sampling(repetition_penalty=1.1)),
    ],
)
def test_a_model_is_greedy_where_neither_it_nor_an_option_samples(preferred, options, sampling):
    """A temperature of zero is greedy whatever else is given."""
    assert resolved(preferred, **options) == sampling


@pytest.mark.parametrize(
    ("preferred", "options", "temperature"),
    [
        ({"do_sample": True}, {}, 1.0),
        ({"do_sample": True, "temperature": None}, {}, 1.0),
        *(({"do_sample": True, "temperature": little}, {}, 0.0) for little in (0.0, 1e-6, 1e-300)),
        *(({}, {"temperature": little}, 0.0) for little in (0.0, 1e-6, 1e-300)),
        *(({}, option, 1.0) for option in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1})),
        *(({"temperature": 0.3}, option, 0.3) for option in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1})),
        *(({}, option, 0.0) for option in ({"seed": 3}, {"repetition_penalty": 1.5}, {"max_tokens": 3})),
    ],
)
def test_the_temperature(preferred, options, temperature):
    """An option of sampling samples, at the model's own temperature, where it has one."""
    assert resolved(preferred, **options).temperature == temperature


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
