"""Values are checked where they are made."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe import types
from hfpipe.errors import UsageError
from hfpipe.types import GenerationOptions, LoadOptions, Sampling, Timing, TokenRequest, Usage

NUMBERS = [
    ("max_tokens", [1, 2**31 - 1], [0, -1, 2.5]),
    ("max_length", [1, 2**31 - 1], [0, -1, 2.5]),
    ("temperature", [0, 0.5, 2], [-0.1, float("inf"), float("nan")]),
    ("top_p", [0.1, 1], [0, -1, 1.1, float("nan")]),
    ("top_k", [0, 1, 1000], [-1]),
    ("min_p", [0, 0.99], [-0.1, 1]),
    ("repetition_penalty", [0.5, 1, 2], [0, -1, float("inf"), float("nan")]),
    ("seed", [0, 2**63 - 1], [-1, 2**63]),
]

OF_A_REQUEST = {"max_tokens", "max_length"}


@pytest.mark.parametrize(("name", "good", "bad"), NUMBERS, ids=[name for name, _, _ in NUMBERS])
def test_numbers_of_a_generation(name, good, bad):
    for kind in (GenerationOptions, Sampling) if name not in OF_A_REQUEST else (GenerationOptions,):
        for value in good:
            assert getattr(kind(**{name: value}), name) == value
        for value in bad:
            with pytest.raises(UsageError, match=f"(?i)^{name} must be .*, not {value}"):
                kind(**{name: value})
        for value, said in (("x", "text"), (True, "a boolean"), ([1], "a list"), ((1,), "tuple"), (math.nan, "NaN")):
            with pytest.raises(UsageError, match=f"^{name} must be a number, not {said}\\.$"):
                kind(**{name: value})


def test_every_number_is_checked():
    names = {name for name, _, _ in NUMBERS}
    assert {field.name for field in fields(Sampling)} == names - OF_A_REQUEST
    assert {field.name for field in fields(GenerationOptions)} == {*names, "stop", "do_sample", "eos_token_id"}
    assert {getattr(GenerationOptions(), name) for name in names} == {None}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GenerationOptions, {"stop": ("a", "")}, "stop string cannot be empty"),
        (GenerationOptions, {"stop": (5,)}, r"stop must be strings, not \(5,\)"),
        (GenerationOptions, {"do_sample": "no"}, "do_sample must be true or false, not 'no'"),
        *(
            (GenerationOptions, {"eos_token_id": wrong}, "eos_token_id must be a token id or a list of them")
            for wrong in (-1, [3, -1], "</s>", [True], 2.0)
        ),
        (LoadOptions, {"device": "0", "device_map": "auto"}, "device and device_map exclude each other"),
        (LoadOptions, {"model_kwargs": [1]}, "model_kwargs must be a dict of options by name, not a list"),
        (LoadOptions, {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (LoadOptions, {"batch_size": -3}, "batch_size must be at least 1, not -3"),
        *(
            (LoadOptions, {"prompt_lookup": wrong}, f"prompt_lookup must be a number from 0 .off. to 64, not {wrong!r}")
            for wrong in (-1, 65, 2.5, "5")
        ),
    ],
)
def test_what_makes_no_sense_is_refused(kind, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        kind(**options)
    assert raised.value.exit_code == 2


def test_prompt_lookup_is_a_number_or_off():
    given = (None, False, 0, True, 1, 64)
    assert [LoadOptions(prompt_lookup=one).prompt_lookup for one in given] == [None, None, None, 5, 1, 64]


@pytest.mark.parametrize("value", [LoadOptions(), GenerationOptions(), Usage(1, 2), TokenRequest("a", (1,), 1)])
def test_values_are_frozen(value):
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)


# Usage and timing

moments = st.tuples(*[st.floats(0, 1e6)] * 3).map(sorted)


@given(moments, st.integers(1, 10_000), st.integers(0, 10_000))
def test_rates(moments, prompt, completion):
    timing, usage = Timing(*moments), Usage(prompt, completion)
    assert usage.total_tokens == prompt + completion
    assert timing.ttft_s == moments[1] - moments[0] >= 0
    prefill, decode = timing.prefill_tps(usage), timing.decode_tps(usage)
    assert (prefill is None) == (timing.ttft_s == 0)
    assert (decode is None) == (completion < 2 or moments[1] == moments[2])
    assert prefill is None or prefill > 0
    assert decode is None or decode > 0


def test_the_first_token_does_not_count_for_decoding():
    timing = Timing(10.0, 10.5, 12.5)
    assert timing.ttft_s == 0.5
    assert timing.prefill_tps(Usage(100, 21)) == 200
    assert timing.decode_tps(Usage(100, 21)) == 10


@pytest.mark.parametrize(
    ("words", "values"), [(types.LoadFields, LoadOptions), (types.GenerationFields, GenerationOptions)]
)
def test_keyword_arguments_are_the_fields_of_the_options(words, values):
    assert [*words.__annotations__] == [field.name for field in fields(values)]
