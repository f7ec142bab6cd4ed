"""What a report comes to: medians, verdicts, warnings, the advice, and what has changed since an earlier report."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

from hfpipe.bench.metrics import Metric, Workload, batch_metric
from hfpipe.bench.report import Configuration, Quality, Report, Sample
from hfpipe.bench.statistics import FEWEST_ROUNDS, Measured, Verdict, measured, paired, unpaired
from hfpipe.errors import UsageError

# Above these a warning is due: shares of the processors, of their frequency, and of a speed.
_BUSY, _FREQUENCY, _SPREAD = 0.05, 0.10, 0.15
# As many of the choices that are as good as the best are named.
_NAMED = 3
# The latencies that may be too slow, beside the speeds. The others have more noise.
_JUDGED_LATENCIES = {"ttft_ms", "tpot_ms"}
# Up to this two perplexities are of one source model: engines round differently.
_SAME_SOURCE = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration: its medians and its verdicts against the first one, both by the name of a metric."""

    name: str
    model: str
    backend: str
    weight_format: str | None
    device: str | None
    dtype: str | None
    size_mb: float | None
    values: Mapping[str, Measured]
    verdicts: Mapping[str, Verdict]
    quality: Quality | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A row for each configuration, and `warnings` in sentences: those of the report and those of its samples.

    `headline` are the metrics that have verdicts in a table: prefill, decode and the largest batch.
    """

    metrics: Sequence[Metric]
    headline: Sequence[Metric]
    rows: Sequence[Row]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Advice:
    """Which configuration to take, None where there is none; why, in sentences; and the commands to get it."""

    name: str | None
    text: str
    commands: Sequence[str] = ()


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


def summarize(report: Report) -> Summary:
    """The report in numbers, one row for each configuration."""
    work = report.workload
    rows = [_row(one, report.configurations[0], work.metrics) for one in report.configurations]
    speeds = _speeds(work)
    return Summary(
        metrics=work.metrics,
        headline=[*speeds[:2], *speeds[2:][-1:]],
        rows=rows,
        warnings=[*report.warnings, *_warnings(report, speeds)],
    )


def advice(report: Report, max_loss: float) -> Advice:
    """The fastest at decoding, of those whose perplexity is at most `max_loss` (0.02 for 2 %) above the reference's."""
    work = report.workload
    fit = [one for one in report.configurations if one.error is None and measured(one.values(work.decode).values())]
    if not fit:
        if any(map(_is_measured, report.configurations)):
            return Advice(None, "No decode speed was measured, so there is no advice.")
        return Advice(None, "Nothing was measured to the end, so there is no advice.")
    judged = any(one.quality for one in fit)
    allowed = [one for one in fit if not judged or _within(one, max_loss)]
    sources = "Losses are against each model's own source." if several_sources(fit) else ""
    if not allowed:
        return Advice(None, " ".join(filter(None, [_none_within(fit, max_loss), sources])))
    metrics = {metric.name: metric for metric in work.metrics}
    best = max(allowed, key=lambda one: _middle(one, work.decode))
    sentences = [
        _praise(best, work.decode, max_loss if judged else None),
        _rivals(best, [one for one in allowed if one is not best], metrics[work.decode]),
        _in_batches(best, allowed, metrics, max(work.batches, default=1)),
        *_faster_but_worse(best, fit, allowed, work.decode),
        sources,
    ]
    commands = [shlex.join(words) for words in (best.prepare, best.command) if words]
    return Advice(best.name, " ".join(filter(None, sentences)), commands)


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
    judged = {metric.name for metric in _speeds(work)} | _JUDGED_LATENCIES
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
            if _is_measured(there[key]) and not (key in here and _is_measured(here[key]))
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


def several_sources(rows: Iterable[Row | Configuration]) -> bool:
    """The qualities are against more than one source model."""
    found = [row.quality.reference_perplexity for row in rows if row.quality]
    return any(not math.isclose(one, found[0], rel_tol=_SAME_SOURCE) for one in found)


def number(value: float) -> str:
    """Three digits, or all of those before the point: 0.123, 4.56, 78.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def change(value: float) -> str:
    """A share with its sign: +0.9%, and 0.0% for what rounds to that."""
    text = f"{value:+.1%}" if abs(value) < 100 else f"{100 * value:+.1g}%"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def share(value: float) -> str:
    """A share as it was given: 2%, 0.5%."""
    return f"{100 * value:g}%"


def _row(one: Configuration, reference: Configuration, metrics: Sequence[Metric]) -> Row:
    values = {metric.name: found for metric in metrics if (found := measured(_samples(one, metric)))}
    verdicts = {
        metric.name: verdict
        for metric in metrics
        if one is not reference and (verdict := paired(one.values(metric.name), reference.values(metric.name), metric))
    }
    return Row(
        name=one.name,
        model=one.model,
        backend=one.backend,
        weight_format=one.weight_format,
        device=one.device,
        dtype=one.dtype,
        size_mb=one.size_mb,
        values=values,
        verdicts=verdicts,
        quality=one.quality,
        error=one.error,
    )


def _samples(one: Configuration, metric: Metric) -> list[float]:
    return list(one.values(metric.name).values())


def _middle(one: Configuration, metric: str) -> float:
    """The median, 0 where there is none."""
    found = measured(one.values(metric).values())
    return found.median if found else 0.0


def _speeds(work: Workload) -> list[Metric]:
    """Prefill, decode, and batches from the smallest on."""
    names = [work.prefill, work.decode, *(batch_metric(size) for size in sorted(work.batches) if size > 1)]
    metrics = {metric.name: metric for metric in work.metrics}
    return [metrics[name] for name in names]


def _warnings(report: Report, speeds: Sequence[Metric]) -> Iterator[str]:
    if report.interrupted:
        yield "The run was interrupted: this is what had been measured."
    yield from _noise(report)
    rows = [one for one in report.configurations if one.samples]
    few = {one.name: _rounds(one) for one in rows if _rounds(one) < FEWEST_ROUNDS}
    if few:
        names = "every configuration" if len(few) == len(rows) > 1 else ", ".join(few)
        yield f"Fewer than {FEWEST_ROUNDS} rounds for {names}: no difference can be resolved."
    for one in rows:
        if wide := [f"{metric.name} by {over:.0%}" for metric in speeds if (over := _spread(one, metric)) > _SPREAD]:
            yield f"The samples of {one.name} spread: {', '.join(wide)} from the slowest to the fastest."
    if len(rows) > 1 and rows[0] is not report.configurations[0]:
        yield f"{report.configurations[0].name} has no samples, so nothing is compared with it."


def _noise(report: Report) -> Iterator[str]:
    samples = [sample for one in report.configurations for sample in one.samples]
    busy = [one for one in report.configurations if median(_others(one.samples) or [0]) > _BUSY]
    everywhere = median(_others(samples) or [0]) > _BUSY
    if busy or everywhere:
        when = "" if everywhere else f" while {', '.join(one.name for one in busy)} ran"
        others = _others(samples if everywhere else [sample for one in busy for sample in one.samples])
        used = f"{median(others):.0%} of its processors (median; up to {max(others):.0%})"
        yield f"The machine was busy{when}: other processes used {used}."
    clocks = [sample.frequency_mhz for sample in samples if sample.frequency_mhz]
    if clocks and max(clocks) > (1 + _FREQUENCY) * min(clocks):
        yield f"The processors' frequency changed: {min(clocks):,.0f} to {max(clocks):,.0f} MHz."


def _others(samples: Sequence[Sample]) -> list[float]:
    return [sample.others_cpu for sample in samples if sample.others_cpu is not None]


def _rounds(one: Configuration) -> int:
    return len({sample.round for sample in one.samples})


def _spread(one: Configuration, metric: Metric) -> float:
    found = measured(_samples(one, metric))
    return found.high / found.low - 1 if found and found.low > 0 else 0.0


def _within(one: Configuration, max_loss: float) -> bool:
    """False where the loss is not known."""
    return one.quality is not None and one.quality.perplexity_change <= max_loss


def _loss(one: Configuration) -> float:
    return one.quality.perplexity_change if one.quality else 0.0


def _none_within(fit: Sequence[Configuration], max_loss: float) -> str:
    """At least one of `fit` has a quality."""
    unknown = [one.name for one in fit if not one.quality]
    least = min((one for one in fit if one.quality), key=_loss)
    loses = "is known to lose" if unknown else "loses"
    text = f"No configuration {loses} at most {share(max_loss)}. {least.name} loses least: {change(_loss(least))}."
    return f"{text} Quality unknown: {', '.join(unknown)}." if unknown else text


def _praise(best: Configuration, decode: str, max_loss: float | None) -> str:
    speed = f"{decode} {number(_middle(best, decode))} tokens/s"
    if max_loss is None:
        return f"{best.name} is the fastest: {speed}. Quality was not measured."
    loss = f", perplexity {change(_loss(best))}" if best.quality else ""
    return f"{best.name} is the fastest that loses at most {share(max_loss)}: {speed}{loss}."


def _rivals(best: Configuration, others: Sequence[Configuration], metric: Metric) -> str:
    """Those that may be as fast, the fastest first, with what speaks for them."""
    verdicts = [(one, paired(best.values(metric.name), one.values(metric.name), metric)) for one in others]
    equal = [one for one, verdict in verdicts if verdict is None or not verdict.resolved]
    equal.sort(key=lambda one: -_middle(one, metric.name))
    names = [one.name + _virtues(one, best) for one in equal[:_NAMED]]
    if len(equal) > _NAMED:
        names.append(f"{len(equal) - _NAMED} more")
    return f"No difference resolved to {', '.join(names)}." if names else ""


def _virtues(one: Configuration, best: Configuration) -> str:
    virtues = []
    if one.size_mb and best.size_mb and one.size_mb < best.size_mb:
        virtues.append("smaller")
    if one.quality and best.quality and change(_loss(one)) != change(_loss(best)) and _loss(one) < _loss(best):
        virtues.append("loses less")
    return f" ({', '.join(virtues)})" if virtues else ""


def _in_batches(best: Configuration, allowed: Sequence[Configuration], metrics: Mapping[str, Metric], size: int) -> str:
    metric = metrics.get(batch_metric(size))
    if metric is None:
        return ""
    name = metric.name
    first = max(allowed, key=lambda one: _middle(one, name))
    verdict = paired(first.values(name), best.values(name), metric)
    if first is best or verdict is None:
        return ""
    speed = f"{number(_middle(first, name))} tokens/s"
    return f"For batches of {size} the fastest is {first.name}: {speed}, {verdict.text}."


def _faster_but_worse(
    best: Configuration, fit: Sequence[Configuration], allowed: Sequence[Configuration], decode: str
) -> Iterator[str]:
    faster = [one for one in fit if one not in allowed and _middle(one, decode) > _middle(best, decode)]
    if worse := [f"{one.name} ({change(_loss(one))})" for one in faster if one.quality]:
        yield f"Faster, but losing more: {', '.join(worse)}."
    if unknown := [one.name for one in faster if not one.quality]:
        yield f"Faster, quality unknown: {', '.join(unknown)}."


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


def _is_measured(one: Configuration) -> bool:
    return bool(one.samples) and one.error is None


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
