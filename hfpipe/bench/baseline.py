"""A report against an earlier one: what has become faster, slower, or is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.spec import Metric
from hfpipe.bench.statistics import FEWEST_ROUNDS, Verdict, unpaired
from hfpipe.errors import UsageError

# The latencies that may be too slow, beside the speeds. The others have more noise.
_JUDGED_LATENCIES = {"ttft_ms", "tpot_ms"}


@dataclass(frozen=True, slots=True)
class Difference:
    """A configuration, of a metric, against itself in an earlier run."""

    name: str
    metric: Metric
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """A report against an earlier one. `judged` are those of the differences that can be too slow, of rounds enough to
    tell, and `too_slow` those of them that are more than `fail_slower`.

    `lost` are the names of those that were measured to the end there, and have failed or are missing here; `only_here`
    and `only_there` the others that one report alone has; `changed_host` the facts of the machine that differ. Names
    are those of the later report, where it has one.
    """

    differences: Sequence[Difference]
    judged: Sequence[Difference]
    too_slow: Sequence[Difference]
    only_here: Sequence[str]
    only_there: Sequence[str]
    lost: Sequence[str]
    changed_host: Sequence[str]
    fail_slower: float | None = None

    @property
    def passed(self) -> bool:
        """With a `fail_slower`: something was judged, and nothing is slower than that or lost."""
        return self.fail_slower is None or bool(self.judged and not self.too_slow and not self.lost)


def compare(report: Report, baseline: Report, fail_slower: float | None = None) -> Comparison:
    """`report` against `baseline`, an earlier one: the same models on the same engines in the same formats, in all that
    both have measured. Where one was measured more than once, the first with the first, and so on.

    Too slow is a prefill, a decode, a batch, ttft_ms or tpot_ms that is slower by more than `fail_slower` (0.10 for
    10 %) with the whole of its interval. Raises UsageError where the two were measured with other prompts.
    """
    work = report.workload
    check_comparable(report, baseline)
    here, there = _identified(report), _identified(baseline)
    differences = [
        Difference(here[key].name, metric, verdict)
        for key in here
        if key in there
        for metric in work.metrics
        if (verdict := unpaired(_samples(here[key], metric), _samples(there[key], metric), metric))
    ]
    judging = {*work.speeds, *_JUDGED_LATENCIES}
    judged = [one for one in differences if one.metric.name in judging and one.verdict.low is not None]
    lost = [key for key in there if there[key].is_measured and not (key in here and here[key].is_measured)]
    return Comparison(
        differences=differences,
        judged=judged,
        too_slow=[one for one in judged if fail_slower is not None and _too_slow(one.verdict, fail_slower)],
        only_here=[here[key].name for key in here if key not in there],
        only_there=[there[key].name for key in there if key not in here and key not in lost],
        lost=[here.get(key, there[key]).name for key in lost],
        changed_host=list(_changed(report.host, baseline.host)),
        fail_slower=fail_slower,
    )


def check_comparable(report: Report, baseline: Report) -> None:
    """Raises UsageError where they have other prompts or other numbers of tokens. Batches may differ."""
    here, there = report.workload, baseline.workload
    if here.prompt_tokens is None and there.prompt_tokens is not None:
        raise UsageError(
            "The baseline was measured with random prompts.",
            hint=f"Compare with a run with -p {there.prompt_tokens} -g {there.new_tokens}, without --prompts.",
        )
    if here.prompt_tokens is not None and there.prompt_tokens is None:
        raise UsageError(
            "The baseline was measured with prompts of --prompts.",
            hint=f"Compare with a run with its --prompts -g {there.new_tokens}.",
        )
    if here.prompt_tokens != there.prompt_tokens or here.new_tokens != there.new_tokens:
        prompt = f"-p {there.prompt_tokens}" if there.prompt_tokens is not None else "its --prompts"
        raise UsageError(
            "The baseline was measured with different numbers of tokens.",
            hint=f"Compare with a run with {prompt} -g {there.new_tokens}.",
        )
    if report.arguments.get("prompts") != baseline.arguments.get("prompts"):
        raise UsageError(
            "The baseline was measured with different prompts.", hint="Compare with a run with its --prompts."
        )


def check_decidable(report: Report, baseline: Report) -> None:
    """Raises UsageError where one of them has too few rounds for anything to be slower: nothing would ever fail."""
    if report.arguments["repeats"] < FEWEST_ROUNDS:
        raise UsageError(f"--fail-slower needs {FEWEST_ROUNDS} rounds or more.", hint=f"Use --repeats {FEWEST_ROUNDS}.")
    if baseline.configurations and max(one.rounds for one in baseline.configurations) < FEWEST_ROUNDS:
        raise UsageError(
            f"The baseline has fewer than {FEWEST_ROUNDS} rounds, so no difference can be resolved.",
            hint="Measure it again, with more --repeats.",
        )


def _identified(report: Report) -> dict[tuple[str, str, str | None, int], Configuration]:
    """By what makes a configuration the same one in another run. Its name has the model only beside others, and the
    model may be in another folder there."""
    found: dict[tuple[str, str, str | None, int], Configuration] = {}
    counts: Counter[tuple[str, str, str | None]] = Counter()
    for one in report.configurations:
        model = PurePath(one.model).name or one.model
        key = (model, one.backend, one.weight_format)
        counts[key] += 1
        found[model, one.backend, one.weight_format, counts[key]] = one
    return found


def _samples(one: Configuration, metric: Metric) -> list[float]:
    return list(one.values(metric.name).values())


def _changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    """The facts that differ, and of versions whose."""
    for key in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(key), there.get(key)
        if key == "versions" and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            packages = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
            if packages:
                yield f"versions of {', '.join(packages)}"
        elif ours != theirs:
            yield key


def _too_slow(verdict: Verdict, fail_slower: float) -> bool:
    return verdict.slower and verdict.high is not None and 1 / verdict.high > 1 + fail_slower
