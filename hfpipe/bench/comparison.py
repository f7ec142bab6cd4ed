"""A report against an earlier one: what has become faster, slower, or is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hfpipe.bench.metrics import Metric, Workload
from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.statistics import Verdict, unpaired
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
    """A report against an earlier one. `too_slow` are those of the differences that are more than `fail_slower`.

    `only_here` and `only_there` are the names that the other report does not have; `lost` are those that were measured
    to the end there, and have failed here or are not there; `changed_host` the facts of the machine that differ. Names
    are those of the later report, where it has one.
    """

    differences: Sequence[Difference]
    too_slow: Sequence[Difference]
    only_here: Sequence[str]
    only_there: Sequence[str]
    lost: Sequence[str]
    changed_host: Sequence[str]
    fail_slower: float | None = None

    @property
    def passed(self) -> bool:
        """With a `fail_slower`: something was compared, and nothing is slower than that or lost."""
        return self.fail_slower is None or bool(self.differences and not self.too_slow and not self.lost)


def compare(report: Report, baseline: Report, fail_slower: float | None = None) -> Comparison:
    """`report` against `baseline`, an earlier one: the same models on the same engines in the same formats, in all that
    both have measured. Where one was measured more than once, the first with the first, and so on.

    Too slow is a prefill, a decode, a batch, ttft_ms or tpot_ms that is slower by more than `fail_slower` (0.10 for
    10 %) with the whole of its interval. Raises UsageError where the two were measured with other prompts.
    """
    work = report.workload
    check_comparable(work, baseline.workload)
    here, there = _identified(report), _identified(baseline)
    differences = [
        Difference(here[key].name, metric, verdict)
        for key in here
        if key in there
        for metric in work.metrics
        if (verdict := unpaired(_samples(here[key], metric), _samples(there[key], metric), metric))
    ]
    judged = {*work.speeds} | _JUDGED_LATENCIES
    return Comparison(
        differences=differences,
        too_slow=[
            one
            for one in differences
            if fail_slower is not None and one.metric.name in judged and _too_slow(one.verdict, fail_slower)
        ],
        only_here=[here[key].name for key in here if key not in there],
        only_there=[there[key].name for key in there if key not in here],
        lost=[
            here.get(key, there[key]).name
            for key in there
            if there[key].is_measured and not (key in here and here[key].is_measured)
        ],
        changed_host=list(_changed(report.host, baseline.host)),
        fail_slower=fail_slower,
    )


def check_comparable(here: Workload, there: Workload) -> None:
    """Raises UsageError where a run and `there`, the baseline, have other prompts or other numbers of tokens. Batches
    may differ."""
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
            "The baseline was measured with other numbers of tokens.",
            hint=f"Compare with a run with {prompt} -g {there.new_tokens}.",
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
