"""Is one configuration better than another, or is it noise: ratios of samples, with intervals of 95 %.

With few samples, five as a rule, a percentile bootstrap alone is too narrow, and Student's t is nearer to the truth
(Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, pages 371 to 386).
Student's t in turn trusts the noise to be near normal. An interval here is the hull of both, so that a difference is
found where there is none no more often than by either alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hfpipe.bench.metrics import Metric

_RESAMPLES = 10_000
_SEED = 20_240_229
# A smaller difference is none that anybody would act on.
_SMALLEST = math.log(1.01)
UNRESOLVED, _LITTLE = "no difference resolved", "less than 1% apart"
# Of which a verdict is made.
FEWEST_ROUNDS = 3
# exp of more is infinite or 0, which no text or JSON can hold.
_MOST = 700.0
# Two-sided 95 % quantiles of Student's t by degrees of freedom: NIST/SEMATECH e-Handbook, 1.3.6.7.2.
_DEGREES = (*range(1, 31), 40, 60, 120)
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
    *(2.021, 2.000, 1.980),
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples of one metric: their median, lowest, highest, and how many."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many times as good as the reference, whichever way is better: above 1 is always the better side.

    `low` and `high` are the interval, None from fewer than three rounds: two agree by chance too often. `better` and
    `worse` are the words for the two sides.
    """

    ratio: float
    low: float | None
    high: float | None
    better: str = "faster"
    worse: str = "slower"

    @property
    def resolved(self) -> bool:
        """The interval excludes 1, and the difference is more than 1 %."""
        if self.low is None or self.high is None:
            return False
        return (self.low > 1 or self.high < 1) and abs(math.log(self.ratio)) > _SMALLEST

    @property
    def faster(self) -> bool:
        """It is better, and that is resolved."""
        return self.resolved and self.ratio > 1

    @property
    def slower(self) -> bool:
        """It is worse, and that is resolved."""
        return self.resolved and self.ratio < 1

    @property
    def text(self) -> str:
        """`1.42x faster (1.35 to 1.50)`, `1.10x slower (1.04 to 1.17)`, or `no difference resolved (0.97 to 1.04)`.

        Where 1 is outside of the interval all the same: `less than 1% apart (1.004 to 1.007)`.
        """
        if self.low is None or self.high is None:
            return f"{_times(self.ratio)}x, not resolved (fewer than {FEWEST_ROUNDS} rounds)"
        if self.faster:
            return f"{_times(self.ratio)}x {self.better} ({_times(self.low)} to {_times(self.high)})"
        if self.slower:
            return f"{_times(1 / self.ratio)}x {self.worse} ({_times(1 / self.high)} to {_times(1 / self.low)})"
        tiny = self.low > 1 / 1.01 and self.high < 1.01 and not self.low <= 1 <= self.high
        return f"{_LITTLE if tiny else UNRESOLVED} ({_times(self.low)} to {_times(self.high)})"


def measured(samples: Iterable[float]) -> Measured | None:
    """What the samples come to; those that are no numbers are left out."""
    numbers = [value for value in samples if math.isfinite(value)]
    return Measured(median(numbers), min(numbers), max(numbers), len(numbers)) if numbers else None


def paired(own: Mapping[int, float], reference: Mapping[int, float], metric: Metric) -> Verdict | None:
    """`own` against `reference`, both by round: those that one of them lacks are left out. None without a common one.

    Rounds are interleaved over the configurations, so that both samples of a round were taken in nearly the same state
    of the machine; what slows both cancels in their ratio. A machine that gets slower all the time still favours the
    one that each round begins with: rounds of alternating order, A B C C B A, take care of that.

    The verdict's ratio is the median of those by round, its interval the hull of the percentile bootstrap of that
    median over the rounds and of Student's t on the logarithms.
    """
    common = sorted(own.keys() & reference.keys())
    pairs = [(own[one], reference[one]) for one in common if _positive(own[one]) and _positive(reference[one])]
    if not pairs:
        return None
    logs = np.sort(np.log([ours for ours, _ in pairs]) - np.log([theirs for _, theirs in pairs]))
    if len(logs) < FEWEST_ROUNDS:
        return _verdict(metric, _median(logs), None)
    resampled = _medians(logs, 0, 1)
    half = _t(len(logs) - 1) * math.sqrt(_variance_of_mean(logs))
    return _verdict(metric, _median(logs), _hull(resampled, float(logs.mean()), half))


def unpaired(own: Iterable[float], reference: Iterable[float], metric: Metric) -> Verdict | None:
    """`own` against `reference`, which are of two runs. None where one of them is empty.

    The verdict's ratio is that of the medians, its interval the hull of the percentile bootstrap of that ratio and of
    Welch's t on the logarithms (Welch, Biometrika 34, 1947, pages 28 to 35). It knows the noise within the two runs,
    and not what has changed on the machine between them.
    """
    ours, theirs = _logs(own), _logs(reference)
    if not ours.size or not theirs.size:
        return None
    ratio = _median(ours) - _median(theirs)
    if min(ours.size, theirs.size) < FEWEST_ROUNDS:
        return _verdict(metric, ratio, None)
    # Each stream of resamples serves each side once: with the sides exchanged the result is the same, inverted.
    resampled = _medians(ours, 0, 1) - _medians(theirs, 1, 0)
    return _verdict(metric, ratio, _hull(resampled, float(ours.mean() - theirs.mean()), _welch(ours, theirs)))


def _welch(ours: Floats, theirs: Floats) -> float:
    """Half the width of Welch's interval, with Satterthwaite's degrees of freedom."""
    first, second = _variance_of_mean(ours), _variance_of_mean(theirs)
    total = first + second
    if not total:
        return 0.0
    # Shares, since the squares of small variances may vanish.
    shares = (first / total) ** 2 / (ours.size - 1) + (second / total) ** 2 / (theirs.size - 1)
    return _t(1 / shares) * math.sqrt(total)


def _t(degrees: float) -> float:
    """The quantile, on straight lines between those of the table: the curve is convex, so it is never too small."""
    return float(np.interp(degrees, _DEGREES, _T))


def _variance_of_mean(logs: Floats) -> float:
    return float(logs.var(ddof=1)) / logs.size


def _hull(resampled: Floats, mean: float, half: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return min(float(low), mean - half), max(float(high), mean + half)


def _medians(logs: Floats, *streams: int) -> Floats:
    """The medians of resamples of `logs`, which are sorted."""
    middles = np.concatenate([_middles(logs.size, stream) for stream in streams], axis=1)
    medians: Floats = logs[middles].mean(axis=0)
    return medians


@lru_cache(maxsize=64)
def _middles(count: int, stream: int) -> NDArray[np.int64]:
    """Resamples of `count` sorted values: int64 [2, resamples], the positions of the two in the middle of each.

    For each resample there is its mirror image (antithetic resampling; Hall, Biometrika 76, 1989, pages 713 to 724), so
    that the ratio of A to B is exactly the inverse of B to A.
    """
    rng = np.random.default_rng([_SEED, stream])
    drawn = np.sort(rng.integers(count, size=(_RESAMPLES // 4, count)), axis=1)
    middles = drawn[:, [(count - 1) // 2, count // 2]].T
    return np.concatenate([middles, count - 1 - middles], axis=1)


def _median(logs: Floats) -> float:
    return float(np.median(logs))


def _logs(samples: Iterable[float]) -> Floats:
    return np.sort(np.log([value for value in samples if _positive(value)]))


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _verdict(metric: Metric, log: float, hull: tuple[float, float] | None) -> Verdict:
    better, worse = ("smaller", "larger") if metric.unit == "MB" else ("faster", "slower")
    low, high = hull or (log, log)
    # Rounding may leave the ratio a hair outside of an interval without width.
    low, high = min(low, log), max(high, log)
    if not metric.higher_is_better:
        low, log, high = -high, -log, -low
    if hull is None:
        return Verdict(_exp(log), None, None, better, worse)
    return Verdict(_exp(log), _exp(low), _exp(high), better, worse)


def _exp(log: float) -> float:
    return math.exp(max(-_MOST, min(log, _MOST)))


def _times(ratio: float) -> str:
    """Three digits, and one more near 1."""
    if 0.99 < ratio < 1.01 and ratio != 1:
        return f"{ratio:.3f}"
    digits = 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:.{digits}f}" if ratio < 10_000 else f"{ratio:.0e}"
