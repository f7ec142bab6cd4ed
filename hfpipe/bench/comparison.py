"""Is one configuration better than another, here or in an earlier run, or is it noise: ratios with 95 % intervals.

With few samples, five as a rule, a percentile bootstrap alone is too narrow, and Student's t is nearer to the truth
(Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, pages 371 to 386).
Student's t in turn trusts the noise to be near normal. An interval here covers both, so that a false difference is
found no more often than by either alone.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
from scipy import stats

from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.spec import Metric
from hfpipe.errors import UsageError

_CONFIDENCE, _RESAMPLES, _SEED = 0.95, 4_999, 20_240_229
# Nobody would act on a smaller difference.
_SMALLEST = math.log(1.01)
# A verdict needs as many: two agree by chance too often.
FEWEST_ROUNDS = 3
# exp of more is infinite or 0, which no text or JSON can hold.
_MOST = 700.0
# The latencies that may be too slow, beside the speeds. The others have more noise.
_JUDGED_LATENCIES = {"ttft_ms", "tpot_ms"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many times as good as the reference, whichever way is better: above 1 is always the better side.

    `low` and `high` are the interval, None from fewer than three rounds. `better` and `worse` name the two sides.
    """

    ratio: float
    low: float | None
    high: float | None
    better: str = "faster"
    worse: str = "slower"

    @property
    def resolved(self) -> bool:
        """The interval excludes 1, and the difference is more than 1 %."""
        certain = self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)
        return certain and abs(math.log(self.ratio)) > _SMALLEST

    @property
    def faster(self) -> bool:
        return self.resolved and self.ratio > 1

    @property
    def slower(self) -> bool:
        return self.resolved and self.ratio < 1

    @property
    def text(self) -> str:
        """`1.42x faster (1.35 to 1.50)`, `1.10x slower (1.04 to 1.17)`, or `no difference resolved (0.97 to 1.04)`.

        Where 1 is outside of the interval all the same: `less than 1% apart (1.004 to 1.007)`.
        """
        if self.low is None or self.high is None:
            return f"{_times(self.ratio)}x, not resolved (fewer than {FEWEST_ROUNDS} rounds)"
        if self.slower:
            return f"{_times(1 / self.ratio)}x {self.worse} ({_times(1 / self.high)} to {_times(1 / self.low)})"
        tiny = self.low > 1 / 1.01 and self.high < 1.01 and not self.low <= 1 <= self.high
        said = "less than 1% apart" if tiny else "no difference resolved"
        said = f"{_times(self.ratio)}x {self.better}" if self.faster else said
        return f"{said} ({_times(self.low)} to {_times(self.high)})"


def versus(one: Configuration, other: Configuration, metric: Metric) -> Verdict | None:
    """Two configurations of one run."""
    return paired(one.values(metric.name), other.values(metric.name), metric)


def paired(own: Mapping[int, float], reference: Mapping[int, float], metric: Metric) -> Verdict | None:
    """Compare `own` with `reference`, both by round. Rounds that one of them lacks are left out; None if all are.

    Both samples of a round were taken in nearly the same state of the machine: what slows both cancels in their ratio.
    The ratio is the median of those by round.
    """
    pairs = [[*_logs([own[one]]), *_logs([reference[one]])] for one in sorted(own.keys() & reference.keys())]
    return _verdict(metric, [pair[0] - pair[1] for pair in pairs if len(pair) == 2])


def unpaired(own: Iterable[float], reference: Iterable[float], metric: Metric) -> Verdict | None:
    """Compare `own` with `reference`, which are of two runs. None where one of them is empty.

    The ratio is that of the medians. The interval knows the noise within the two runs, and not what has changed on the
    machine between them.
    """
    return _verdict(metric, _logs(own), _logs(reference))


def _verdict(metric: Metric, *samples: Sequence[float]) -> Verdict | None:
    """Of logarithms: differences, or those of either side."""
    if not all(samples):
        return None
    low = middle = high = float(_difference(*samples))
    several = min(map(len, samples)) >= FEWEST_ROUNDS
    if several:
        # Samples without any noise are none to be warned of.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            test = stats.ttest_ind(*samples, equal_var=False) if len(samples) > 1 else stats.ttest_1samp(*samples, 0)
            resampled = stats.bootstrap(
                samples, _difference, n_resamples=_RESAMPLES, confidence_level=_CONFIDENCE, method="percentile",
                vectorized=True, rng=np.random.default_rng(_SEED),
            )  # fmt: skip
        intervals = test.confidence_interval(_CONFIDENCE), resampled.confidence_interval
        # Rounding may leave the ratio a hair outside of an interval without width.
        low, high = min(middle, *(one.low for one in intervals)), max(middle, *(one.high for one in intervals))
    if not metric.higher_is_better:
        low, middle, high = -high, -middle, -low
    low, middle, high = (math.exp(max(-_MOST, min(log, _MOST))) for log in (low, middle, high))
    words = ("smaller", "larger") if metric.unit == "MB" else ("faster", "slower")
    return Verdict(middle, low if several else None, high if several else None, *words)


def _difference(ours: Any, theirs: Any = (0.0,), *, axis: int = -1) -> Any:
    return np.median(ours, axis=axis) - np.median(theirs, axis=axis)


def _logs(samples: Iterable[float]) -> list[float]:
    """Of those that are measurements."""
    return [math.log(value) for value in samples if math.isfinite(value) and value > 0]


def _times(ratio: float) -> str:
    """Three digits, and one more near 1."""
    if 0.99 < ratio < 1.01 and ratio != 1:
        return f"{ratio:.3f}"
    digits = 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:.{digits}f}" if ratio < 10_000 else f"{ratio:.0e}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A report against an earlier one: the verdicts by the name of a configuration and of a metric; what else there is
    to say, in sentences; and whether it passed: something was judged, and nothing is slower than allowed or lost."""

    differences: Mapping[tuple[str, str], Verdict]
    lines: Sequence[str]
    passed: bool


def compare(report: Report, baseline: Report, fail_slower: float | None = None) -> Comparison:
    """`report` against `baseline`, an earlier one: the same models on the same engines in the same formats, in all that
    both have measured. Where one was measured more than once, the first with the first, and so on.

    Too slow is a prefill, a decode, a batch, ttft_ms or tpot_ms that is slower by more than `fail_slower` (0.10 for
    10 %) with the whole of its interval. Lost is what was measured to the end there, and has failed or is missing here.
    """
    work, here, there = report.workload, _identified(report), _identified(baseline)
    differences: dict[tuple[str, str], Verdict] = {}
    for key, metric in product([key for key in here if key in there], work.metrics):
        own, reference = (one[key].values(metric.name).values() for one in (here, there))
        if verdict := unpaired(own, reference, metric):
            differences[here[key].name, metric.name] = verdict
    judging = {*work.speeds, *map(work.deep, work.depths), *_JUDGED_LATENCIES}
    judged = {key: one.high for key, one in differences.items() if key[1] in judging and one.high is not None}
    slow: dict[str, list[str]] = {}
    for (name, metric_name), high in judged.items():
        if fail_slower is not None and differences[name, metric_name].slower and 1 / high > 1 + fail_slower:
            slow.setdefault(name, []).append(metric_name)
    lost = [key for key in there if there[key].is_measured and not (key in here and here[key].is_measured)]
    unresolved = sum(not one.resolved for one in differences.values())
    lines = [f"{unresolved} of {len(differences)} differences from the baseline are not resolved."]
    if not differences:
        lines = ["The baseline has nothing in common with this run."]
    elif fail_slower is not None and not judged:
        lines.append("No speed was measured in both often enough to be judged.")
    ours, theirs = ({**one.host, **one.host.get("versions", {})} for one in (report, baseline))
    found = {
        "Not in the baseline": [here[key].name for key in here if key not in there],
        "Only in the baseline": [there[key].name for key in there if key not in here and key not in lost],
        "Failed or missing now": [here.get(key, there[key]).name for key in lost],
        "The machine differs from the baseline's": [
            key for key in {**theirs, **ours} if key != "versions" and ours.get(key) != theirs.get(key)
        ],
        "Slower than allowed": [f"{name} ({', '.join(metrics)})" for name, metrics in slow.items()],
    }
    lines += [f"{title}: {', '.join(names)}." for title, names in found.items() if names]
    return Comparison(differences, lines, fail_slower is None or bool(judged and not slow and not lost))


def check_comparable(report: Report, baseline: Report, *, decidable: bool) -> None:
    """Raise UsageError where they have other prompts or numbers of tokens; batches may differ. And, for a `decidable`
    comparison, where one of them has too few rounds for anything to be slower: nothing would ever fail."""
    asked = ("prompt_tokens", "new_tokens", "prompts")
    if any(report.arguments.get(name) != baseline.arguments.get(name) for name in asked):
        tokens, new_tokens = baseline.workload.prompt_tokens, baseline.workload.new_tokens
        prompts = "its --prompts" if tokens is None else f"-p {tokens}, without --prompts"
        raise UsageError(
            "The baseline was measured with different prompts or numbers of tokens.",
            hint=f"Compare with a run with -g {new_tokens} and {prompts}.",
        )
    rounds = max((one.rounds for one in baseline.configurations), default=FEWEST_ROUNDS)
    if decidable and min(rounds, report.arguments["repeats"]) < FEWEST_ROUNDS:
        raise UsageError(
            f"--fail-slower needs {FEWEST_ROUNDS} rounds or more, in this run and in the baseline.",
            hint=f"Measure with --repeats {FEWEST_ROUNDS} or more.",
        )


def _identified(report: Report) -> dict[tuple[str, str, str | None, int], Configuration]:
    """By what makes a configuration the same one in another run, where it may have another name and folder."""
    found, counts = {}, Counter[tuple[str, str, str | None]]()
    for one in report.configurations:
        key = (PurePath(one.model).name or one.model, one.backend, one.weight_format)
        counts[key] += 1
        numbered = (*key, counts[key])
        found[numbered] = one
    return found
