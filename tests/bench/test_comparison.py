"""Verdicts on made samples whose answer is known."""

import math
import statistics
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.bench.comparison import check_comparable, compare, paired, unpaired
from hfpipe.bench.spec import Metric
from hfpipe.errors import UsageError
from tests.bench import made

RATE = Metric("tg128", "tokens/s", True, "")
TIME = Metric("ttft_ms", "ms", False, "")
MEMORY = Metric("peak_rss_mb", "MB", False, "")
ROUNDS, COMPARISONS = 5, 200

few = settings(max_examples=30, deadline=None)
samples = st.lists(st.floats(0.1, 1e4), min_size=3, max_size=12)


def rounds(values):
    return {number: float(value) for number, value in enumerate(values)}


def by_round(own, reference, metric=RATE):
    return paired(rounds(own), rounds(reference), metric)


def drift(rng, shape):
    """The whole machine gets up to a fifth faster or slower over the rounds."""
    slope = rng.uniform(-0.2, 0.2, (shape[0], 1, 1))
    return 0.02 * rng.standard_normal(shape) + slope * np.linspace(0, 1, shape[2])


NOISES = {
    "normal": lambda rng, shape: np.log1p(0.02 * rng.standard_normal(shape)),
    "wide": lambda rng, shape: 0.3 * rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: 0.02 * rng.standard_t(3, shape),
    "skewed": lambda rng, shape: -0.02 * rng.exponential(1, shape),
    "drift": drift,
    "outliers": lambda rng, shape: 0.02 * rng.standard_normal(shape) - 0.5 * (rng.random(shape) < 0.1),
}


def verdicts(noise, compare, count=COMPARISONS, ratio=1.0, repeats=ROUNDS):
    made = 100 * np.exp(NOISES[noise](np.random.default_rng(1), (count, 2, repeats)))
    return [compare(own * ratio, reference, RATE) for own, reference in made]


@pytest.mark.parametrize("compare", [by_round, unpaired])
@pytest.mark.parametrize("repeats", [3, ROUNDS])
@pytest.mark.parametrize("noise", NOISES)
def test_a_against_a_is_faster_at_most_once_in_twenty(noise, repeats, compare):
    found = verdicts(noise, compare, repeats=repeats)
    assert sum(one.faster for one in found) <= COMPARISONS / 20
    assert sum(one.slower for one in found) <= COMPARISONS / 20
    # The hull is a little wider than 95 %. Three rounds and drift come nearest to it: 94.7 % of 4,000.
    assert sum(one.low <= 1 <= one.high for one in found) >= 0.935 * COMPARISONS


@pytest.mark.parametrize("compare", [by_round, unpaired])
def test_a_tenth_is_found_in_nearly_all(compare):
    found = verdicts("normal", compare, ratio=1.1)
    assert sum(one.faster for one in found) >= 0.98 * len(found)
    assert sum(one.low <= 1.1 <= one.high for one in found) >= 0.94 * len(found)
    assert statistics.median(one.ratio for one in found) == pytest.approx(1.1, rel=0.005)


def test_what_slows_both_sides_of_a_round_hides_nothing():
    """The same samples, taken as unpaired, leave a third of the differences open."""
    assert sum(one.faster for one in verdicts("drift", by_round, ratio=1.1)) >= 0.98 * COMPARISONS
    assert sum(one.faster for one in verdicts("drift", unpaired, ratio=1.1)) <= 0.8 * COMPARISONS


def steady(rng, alternating):
    """The first and the last of 4 in each round, of a machine that slows by a fifth over the run."""
    places = np.arange(ROUNDS * 4).reshape(ROUNDS, 4) / (ROUNDS * 4)
    if alternating:
        places[1::2] = places[1::2, ::-1]
    speeds = 100 * np.exp(-0.2 * places + 0.01 * rng.standard_normal(places.shape))
    return by_round(speeds[:, 0], speeds[:, -1])


def test_a_steady_drift_within_the_rounds_cancels_where_their_order_alternates():
    rng = np.random.default_rng(1)
    assert sum(steady(rng, alternating=True).resolved for _ in range(COMPARISONS)) <= COMPARISONS / 20
    assert sum(steady(rng, alternating=False).faster for _ in range(COMPARISONS)) > COMPARISONS / 2


@pytest.mark.parametrize(
    ("own", "reference", "metric", "text"),
    [
        ([1e300, 1.0, 1e-300], [1e-300, 1.0, 1e300], RATE, "no difference resolved (0.00 to 1e+304)"),
        ([142, 150, 135, 142, 142], [100] * 5, RATE, "1.42x faster (1.35 to 1.50)"),
        ([100] * 5, [142, 150, 135, 142, 142], RATE, "1.42x slower (1.35 to 1.50)"),
        ([100] * 5, [142, 150, 135, 142, 142], TIME, "1.42x faster (1.35 to 1.50)"),
        ([100] * 5, [142, 150, 135, 142, 142], MEMORY, "1.42x smaller (1.35 to 1.50)"),
        ([142, 150, 135, 142, 142], [100] * 5, MEMORY, "1.42x larger (1.35 to 1.50)"),
        ([100, 97, 104, 101, 99], [100] * 5, RATE, "no difference resolved (0.97 to 1.04)"),
        ([100.8] * 5, [100] * 5, RATE, "less than 1% apart (1.008 to 1.008)"),
        ([102] * 5, [100] * 5, RATE, "1.02x faster (1.02 to 1.02)"),
        ([100] * 5, [100] * 5, RATE, "no difference resolved (1.00 to 1.00)"),
        ([101.5, 102, 103, 101, 102], [100, 101, 101, 100.3, 99.6], RATE, "1.01x faster (1.006 to 1.02)"),
        ([150, 160], [100, 100], RATE, "1.55x, not resolved (fewer than 3 rounds)"),
        ([200], [100], RATE, "2.00x, not resolved (fewer than 3 rounds)"),
        ([20_000, 20_200, 20_400], [100] * 3, RATE, "202x faster (197 to 207)"),
        ([1e6] * 3, [1] * 3, RATE, "1e+06x faster (1e+06 to 1e+06)"),
    ],
)
def test_texts(own, reference, metric, text):
    found = by_round(own, reference, metric)
    assert found.text == text


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=3, max_size=12), st.floats(1e-3, 1e3))
@few
def test_paired_verdicts(pairs, scale):
    own, reference = (list(side) for side in zip(*pairs, strict=True))
    found = by_round(own, reference)
    assert 0 < found.low <= found.ratio <= found.high < math.inf
    assert found.ratio == pytest.approx(math.exp(statistics.median(math.log(a / b) for a, b in pairs)))
    assert_inverse(found, by_round(reference, own))
    assert_inverse(found, by_round(own, reference, TIME))
    assert_equal(found, by_round([scale * one for one in own], [scale * one for one in reference]))


@given(samples, samples, st.floats(1e-3, 1e3))
@few
def test_unpaired_verdicts(own, reference, scale):
    found = unpaired(own, reference, RATE)
    assert 0 < found.low <= found.ratio <= found.high < math.inf
    assert_inverse(found, unpaired(own, reference, TIME))
    assert_equal(found, unpaired([scale * one for one in own], [scale * one for one in reference], RATE))


def assert_equal(one, other):
    assert (one.ratio, one.low, one.high) == pytest.approx((other.ratio, other.low, other.high), rel=1e-6)


def assert_inverse(one, other):
    assert (one.ratio, one.low, one.high) == pytest.approx((1 / other.ratio, 1 / other.high, 1 / other.low), rel=1e-6)


@given(samples, st.sets(st.integers(0, 11)))
@few
def test_rounds_that_one_side_lacks_are_left_out(values, missing):
    own = {number: value for number, value in rounds(values).items() if number not in missing}
    reference = {number: value * 1.5 for number, value in rounds(values).items()}
    found = paired(own, reference, RATE)
    if own:
        assert found == paired(own, {number: reference[number] for number in own}, RATE)
        assert found.ratio == pytest.approx(1 / 1.5)
        assert (found.low is None) == (len(own) < 3)
    else:
        assert found is None


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_measurement_is_left_out(nothing):
    own, reference = [100.0, 101.0, 102.0, nothing], [50.0, 50.0, 50.0, 50.0]
    assert by_round(own, reference) == by_round(own[:3], reference[:3])
    assert unpaired(own, reference, RATE) == unpaired(own[:3], reference, RATE)
    assert unpaired([nothing], reference, RATE) is None
    assert unpaired([200.0], reference, RATE).low is None


# Against an earlier run


def report(**speeds):
    return made.report(*(made.configuration(name, speed) for name, speed in speeds.items()))


def said(comparison, start):
    """Of the lines, that which begins like this; None without it."""
    return next((line for line in comparison.lines if line.startswith(start)), None)


def test_a_baseline():
    old, now = report(a=60, b=60, gone=60), report(a=60, b=50, new=60)
    now.host["processor"] = "EPYC"
    found = compare(now, old, 0.10)
    assert [name for name, _ in found.differences] == ["a"] * 10 + ["b"] * 10
    assert found.differences["b", "tg128"].ratio == pytest.approx(5 / 6)
    assert found.differences["b", "tg128"].text.startswith("1.20x slower (1.1")
    assert found.differences["b", "itl_ms_p99"].slower
    assert found.lines == [
        "12 of 20 differences from the baseline are not resolved.",
        "Not in the baseline: new.",
        "Failed or missing now: gone.",
        "The machine differs from the baseline's: processor.",
        "Slower than allowed: b (ttft_ms, tpot_ms, pp512, tg128).",
    ]
    assert not found.passed
    assert compare(old, old).lines == ["30 of 30 differences from the baseline are not resolved."]


def test_a_baseline_of_another_model_has_nothing_in_common():
    old = made.report(made.configuration("torch", 60, model="org/one"))
    now = made.report(made.configuration("torch", 50, model="org/two"))
    found = compare(now, old)
    assert not found.differences
    assert found.lines[0] == "The baseline has nothing in common with this run."
    assert found.passed
    assert not compare(now, old, 0.10).passed


def test_the_same_model_has_another_name_beside_others():
    old = made.report(
        made.configuration("m torch", 60, model="org/m"),
        made.configuration("other torch", 60, model="org/other"),
        made.configuration("m torch (2)", 90, model="org/m"),
    )
    now = made.report(
        made.configuration("torch", 50, model="/models/m/"), made.configuration("torch (2)", 90, model="/models/m/")
    )
    found = compare(now, old, 0.10)
    assert said(found, "Slower") == "Slower than allowed: torch (ttft_ms, tpot_ms, pp512, tg128)."
    assert {name for name, _ in found.differences} == {"torch", "torch (2)"}
    assert said(found, "Failed") == "Failed or missing now: other torch."


def test_an_engine_and_a_format_are_compared_with_themselves():
    old, now = (made.report(*(made.configuration(name, 60, model="m") for name in "ab")) for _ in range(2))
    old.configurations[0].backend = now.configurations[1].backend = "torch"
    old.configurations[1].weight_format = now.configurations[0].weight_format = "int4"
    assert {name for name, _ in compare(now, old).differences} == {"a", "b"}
    now.configurations[0].weight_format = None
    assert {name for name, _ in compare(now, old).differences} == {"b"}


def test_what_is_lost():
    there = [
        *(made.configuration(name, 60) for name in ("fine", "fails", "empty", "gone")),
        made.configuration("failed", error="no"),
        made.configuration("failed and gone", 60, error="no"),
    ]
    here = [
        made.configuration("fine", 60),
        made.configuration("fails now", 60, error="no", model="fails"),
        made.configuration("empty"),
        made.configuration("failed", error="no"),
        made.configuration("failed and new", error="no"),
    ]
    found = compare(made.report(*here), made.report(*there), 0.10)
    assert said(found, "Failed") == "Failed or missing now: fails now, empty, gone."
    assert said(found, "Only") == "Only in the baseline: failed and gone."
    assert (said(found, "Slower"), found.passed) == (None, False)
    assert compare(made.report(*here), made.report(*there)).passed
    found = compare(made.report(*there), made.report(*here), 0.10)
    assert (said(found, "Failed"), found.passed) == (None, True)


@pytest.mark.parametrize(("fail_slower", "passed"), [(0.10, False), (0.15, False), (0.19, True), (None, True)])
def test_slower_than_is_allowed(fail_slower, passed):
    assert compare(report(a=50), report(a=60), fail_slower).passed == passed
    assert compare(report(a=60), report(a=50), fail_slower).passed


def test_noise_and_more_memory_fail_no_baseline():
    noisy = [made.report(made.configuration("a", speed, wobble=wobble)) for speed, wobble in ((60, 100), (54, -100))]
    assert compare(noisy[1], noisy[0], 0.05).passed
    found = compare(made.report(made.configuration("a", 60, peak_rss_mb=2_048.0)), report(a=60), 0.10)
    assert (found.differences["a", "peak_rss_mb"].text, found.passed) == ("4.00x larger (4.00 to 4.00)", True)


def test_other_batches_are_compared_in_what_is_common():
    old = made.report(made.configuration("a", 60, batches=[8]), batches=(1, 8))
    now = made.report(made.configuration("a", 60, batches=[8, 32]), batches=(1, 8, 32))
    check_comparable(now, old, decidable=True)
    assert [name for _, name in compare(now, old).differences if name.startswith("batch")] == ["batch8_tps"]


@pytest.mark.parametrize(
    ("versions", "named"),
    [({"torch": "2.10", "openvino": "2026.2"}, "torch, openvino"), ({"torch": "2.9", "openvino": "2026.1"}, None)],
)
def test_versions_that_changed_have_names(versions, named):
    old, now = report(a=60), report(a=60)
    old.host["versions"] = {"torch": "2.9", "openvino": "2026.1"}
    now.host["versions"] = versions
    assert said(compare(now, old), "The machine") == (named and f"The machine differs from the baseline's: {named}.")


@pytest.mark.parametrize(
    ("now", "old", "hint"),
    [
        ({}, {"prompt_tokens": 256}, "-g 128 and -p 256, without --prompts."),
        ({}, {"new_tokens": 64}, "-g 64 and -p 512, without --prompts."),
        ({"prompt_tokens": None}, {}, "-g 128 and -p 512, without --prompts."),
        ({}, {"prompt_tokens": None}, "-g 128 and its --prompts."),
        ({"prompts": [{"prompt": "One."}]}, {"prompt_tokens": None, "prompts": []}, "-g 128 and its --prompts."),
    ],
)
def test_other_prompts_cannot_be_compared(now, old, hint):
    ours, theirs = report(a=60), report(a=60)
    ours.arguments.update(now)
    theirs.arguments.update(old)
    with pytest.raises(UsageError, match="different prompts or numbers of tokens") as caught:
        check_comparable(ours, theirs, decidable=False)
    assert caught.value.hint == f"Compare with a run with {hint}"


def test_where_no_speed_is_in_both_nothing_passes():
    old, now = report(a=60), report(a=60)
    old.configurations[0].samples = [one for one in old.configurations[0].samples if one.task == "start"]
    found = compare(now, old, 0.10)
    assert {metric for _, metric in found.differences} == {"cold_ttft_s"}
    assert found.lines[1] == "No speed was measured in both often enough to be judged."
    assert not found.passed
    assert compare(now, old).passed
    # Nor do too few rounds.
    found = compare(made.report(made.configuration("a", 6, rounds=2)), report(a=60), 0.10)
    assert (bool(found.differences), found.passed) == (True, False)


@pytest.mark.parametrize(
    ("repeats", "rounds", "decidable"), [(3, 3, True), (2, 5, False), (5, 2, False), (5, 0, False)]
)
def test_too_few_rounds_are_refused_where_something_could_fail(repeats, rounds, decidable):
    now = made.report(repeats=repeats)
    old = made.report(made.configuration("a", 60, rounds=rounds), made.configuration("b", error="no"))
    check_comparable(now, old, decidable=False)
    with nullcontext() if decidable else pytest.raises(UsageError, match="3 rounds"):
        check_comparable(now, old, decidable=True)
