"""Is one configuration better than another, or is it noise: ratios of samples, with intervals of 95 %.

With few samples, five as a rule, a percentile bootstrap alone is too narrow, and Student's t is nearer to the truth
(Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, pages 371 to 386).
Student's t in turn trusts the noise to be near normal. An interval here covers both, so that a false difference is
found no more often than by either alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hfpipe.bench.spec import Metric

_CONFIDENCE = 0.95
_RESAMPLES = 4_999
_SEED = 20_240_229
# Nobody would act on a smaller difference.
_SMALLEST = math.log(1.01)
UNRESOLVED, _LITTLE = "no difference resolved", "less than 1% apart"
# A verdict needs as many.
FEWEST_ROUNDS = 3
# exp of more is infinite or 0, which no text or JSON can hold.
_MOST = 700.0

Floats = NDArray[np.float64]


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


def paired(own: Mapping[int, float], reference: Mapping[int, float], metric: Metric) -> Verdict | None:
    """Compare `own` with `reference`, both by round. Rounds that one of them lacks are left out; None if all are.

    Rounds are interleaved over the configurations, so both samples of a round were taken in nearly the same state of
    the machine; what slows both cancels in their ratio. A machine that gets slower all the time would still favour the
    one that each round begins with: rounds of alternating order, A B C C B A, take care of that.

    The ratio is the median of those by round. The interval covers the percentile bootstrap of that median and Student's
    t on the logarithms.
    """
    common = sorted(own.keys() & reference.keys())
    pairs = [(own[one], reference[one]) for one in common if _positive(own[one]) and _positive(reference[one])]
    if not pairs:
        return None
    logs = np.log([ours for ours, _ in pairs]) - np.log([theirs for _, theirs in pairs])
    if len(logs) < FEWEST_ROUNDS:
        return _verdict(metric, float(np.median(logs)), None)
    error = math.sqrt(_variance_of_mean(logs))
    interval = _interval((logs,), np.median, float(logs.mean()), error, len(logs) - 1)
    return _verdict(metric, float(np.median(logs)), interval)


def unpaired(own: Iterable[float], reference: Iterable[float], metric: Metric) -> Verdict | None:
    """Compare `own` with `reference`, which are of two runs. None where one of them is empty.

    The ratio is that of the medians. The interval covers the percentile bootstrap of that ratio and Welch's t on the
    logarithms, with Satterthwaite's degrees of freedom (Welch, Biometrika 34, 1947, pages 28 to 35). It knows the noise
    within the two runs, and not what has changed on the machine between them.
    """
    ours, theirs = _logs(own), _logs(reference)
    if not ours.size or not theirs.size:
        return None
    ratio = float(_difference(ours, theirs))
    if min(ours.size, theirs.size) < FEWEST_ROUNDS:
        return _verdict(metric, ratio, None)
    first, second = _variance_of_mean(ours), _variance_of_mean(theirs)
    # Shares, since the squares of small variances may vanish; samples without any variance need no degrees.
    shares = [one / (first + second) if first + second else 1.0 for one in (first, second)]
    degrees = 1 / (shares[0] ** 2 / (ours.size - 1) + shares[1] ** 2 / (theirs.size - 1))
    mean, error = float(ours.mean() - theirs.mean()), math.sqrt(first + second)
    return _verdict(metric, ratio, _interval((ours, theirs), _difference, mean, error, degrees))


def _difference(ours: Any, theirs: Any, axis: int = -1) -> Any:
    return np.median(ours, axis=axis) - np.median(theirs, axis=axis)


def _interval(
    samples: tuple[Floats, ...], statistic: Callable[..., Any], mean: float, error: float, degrees: float
) -> tuple[float, float]:
    """What covers the bootstrap's interval of the statistic and Student's about the mean."""
    low, high = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, degrees)) * error
    return min(float(low), mean - half), max(float(high), mean + half)


def _variance_of_mean(logs: Floats) -> float:
    return float(logs.var(ddof=1)) / logs.size


def _logs(samples: Iterable[float]) -> Floats:
    return np.log([value for value in samples if _positive(value)])


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _verdict(metric: Metric, log: float, interval: tuple[float, float] | None) -> Verdict:
    better, worse = ("smaller", "larger") if metric.unit == "MB" else ("faster", "slower")
    low, high = interval or (log, log)
    # Rounding may leave the ratio a hair outside of an interval without width.
    low, high = min(low, log), max(high, log)
    if not metric.higher_is_better:
        low, log, high = -high, -log, -low
    if interval is None:
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
