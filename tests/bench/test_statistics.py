"""Verdicts on made samples whose answer is known."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.bench.spec import Metric
from hfpipe.bench.statistics import Verdict, paired, unpaired

RATE = Metric("tg128", "tokens/s", True, "")
TIME = Metric("ttft_ms", "ms", False, "")
MEMORY = Metric("peak_rss_mb", "MB", False, "")
ROUNDS, COMPARISONS = 5, 400

few = settings(max_examples=60, deadline=None)
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
    found = verdicts("normal", compare, count=500, ratio=1.1)
    assert sum(one.faster for one in found) >= 0.98 * len(found)
    assert statistics.median(one.ratio for one in found) == pytest.approx(1.1, rel=0.005)


def test_what_slows_both_sides_of_a_round_hides_nothing():
    """The same samples, taken as unpaired, leave a third of the differences open."""
    assert sum(one.faster for one in verdicts("drift", by_round, count=500, ratio=1.1)) >= 490
    assert sum(one.faster for one in verdicts("drift", unpaired, count=500, ratio=1.1)) <= 400


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


@pytest.mark.parametrize("ratio", [0.25, 0.95, 1.42, 10])
@pytest.mark.parametrize("compare", [by_round, unpaired])
def test_a_known_ratio_is_within_the_interval(ratio, compare):
    found = verdicts("normal", compare, count=400, ratio=ratio)
    assert sum(one.low <= ratio <= one.high for one in found) >= 0.94 * len(found)


@pytest.mark.parametrize(
    ("own", "reference", "metric", "text"),
    [
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


def test_the_words_for_either_side():
    assert Verdict(2.0, 1.5, 3.0).faster
    assert not Verdict(2.0, 1.5, 3.0).slower
    assert Verdict(0.5, 0.4, 0.6).slower
    assert not Verdict(0.5, 0.4, 0.6).faster
    assert not Verdict(1.1, 0.9, 1.2).resolved
    assert not Verdict(1.009, 1.005, 1.02).resolved
    assert not Verdict(3.0, None, None).resolved


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


def test_two_runs_exchanged_give_the_inverse():
    """But for chance: the resamples differ."""
    for own, reference in 100 * np.exp(NOISES["normal"](np.random.default_rng(1), (50, 2, ROUNDS))):
        found, back = unpaired(own, reference, RATE), unpaired(reference, own, RATE)
        assert found.ratio == pytest.approx(1 / back.ratio)
        assert (found.low, found.high) == pytest.approx((1 / back.high, 1 / back.low), rel=0.005)


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


def test_one_round_has_no_interval():
    found = by_round([200.0], [100.0])
    assert (found.ratio, found.low, found.high) == (pytest.approx(2.0), None, None)
    assert unpaired([200.0], [100.0, 101.0, 99.0], RATE).low is None
    assert by_round([], [100.0]) is None


def test_nothing_but_rounding_overflows():
    assert by_round([1e300, 1.0, 1e-300], [1e-300, 1.0, 1e300]).high < math.inf
