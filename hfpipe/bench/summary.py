"""What a report comes to: medians, verdicts, warnings, and the advice which choice to take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hfpipe.bench.measure import BUSY
from hfpipe.bench.report import Configuration, Measured, Quality, Report, Sample, several_sources
from hfpipe.bench.spec import Metric, batch_metric
from hfpipe.bench.statistics import FEWEST_ROUNDS, Verdict, paired

# As many configurations that are as good as the best are named.
_NAMED = 3
# Above these a warning is due: shares of the frequency of processors, and of a speed.
_FREQUENCY, _SPREAD = 0.10, 0.15


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


def summarize(report: Report) -> Summary:
    """The report in numbers, one row for each configuration."""
    work = report.workload
    rows = [_row(one, report.configurations[0], work.metrics) for one in report.configurations]
    metrics = {metric.name: metric for metric in work.metrics}
    speeds = [metrics[name] for name in work.speeds]
    return Summary(
        metrics=work.metrics,
        headline=[*speeds[:2], *speeds[2:][-1:]],
        rows=rows,
        warnings=[*report.warnings, *_warnings(report, speeds)],
    )


def _row(one: Configuration, reference: Configuration, metrics: Sequence[Metric]) -> Row:
    values = {metric.name: found for metric in metrics if (found := one.measured(metric.name))}
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


def _warnings(report: Report, speeds: Sequence[Metric]) -> Iterator[str]:
    if report.interrupted:
        yield "The run was interrupted: the report has what was measured until then."
    yield from _noise(report)
    rows = [one for one in report.configurations if one.samples]
    few = {one.name: one.rounds for one in rows if one.rounds < FEWEST_ROUNDS}
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
    busy = [one for one in report.configurations if median(_others(one.samples) or [0]) > BUSY]
    everywhere = median(_others(samples) or [0]) > BUSY
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


def _spread(one: Configuration, metric: Metric) -> float:
    found = one.measured(metric.name)
    return found.high / found.low - 1 if found and found.low > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Advice:
    """Which configuration to take, None where none can be advised; why, in sentences; and the commands to get it."""

    name: str | None
    text: str
    commands: Sequence[str] = ()


def advice(report: Report, max_loss: float) -> Advice:
    """The fastest at decoding, of those whose perplexity is at most `max_loss` (0.02 for 2 %) above the reference's.

    Only a resolved difference makes one faster than another: of several that may be the fastest, the one that loses
    least is advised, or else the smallest. None after an interrupt: what was not measured might be better.
    """
    if report.interrupted:
        return Advice(None, "The run was interrupted, so there is no advice.")
    decode = next(metric for metric in report.workload.metrics if metric.name == report.workload.decode)
    fit = [one for one in report.configurations if one.error is None and one.measured(decode.name)]
    if not fit:
        missing = (
            "No decode speed was" if any(one.is_measured for one in report.configurations) else "Nothing was fully"
        )
        return Advice(None, f"{missing} measured, so there is no advice.")
    has_quality = any(one.quality for one in fit)
    allowed = [one for one in fit if not has_quality or (one.quality and _loss(one) <= max_loss)]
    sources = "Losses are against each model's own source." if several_sources(one.quality for one in fit) else ""
    if not allowed:
        return Advice(None, f"{_none_within(fit, max_loss)} {sources}".strip())
    equal = [one for one in allowed if not any(_is_faster(other, one, decode) for other in allowed)]
    # Verdicts of noise may go round in a circle.
    equal = equal or [max(allowed, key=lambda one: _middle(one, decode))]
    best = min(equal, key=lambda one: (round(_loss(one), 3), one.size_mb or 0))
    sentences = [
        _praise(best, equal, len(allowed), decode, _share(max_loss) if has_quality else None),
        _in_batches(best, allowed, report),
        *_faster_but_worse(best, [one for one in fit if one not in allowed], decode),
        sources if has_quality else "Quality was not measured.",
    ]
    commands = [shlex.join(words) for words in (best.prepare, best.command) if words]
    return Advice(best.name, " ".join(filter(None, sentences)), commands)


def _is_faster(one: Configuration, other: Configuration, metric: Metric) -> bool:
    """The difference is resolved."""
    verdict = paired(one.values(metric.name), other.values(metric.name), metric)
    return verdict is not None and verdict.faster


def _loss(one: Configuration) -> float:
    return one.quality.perplexity_change if one.quality else 0.0


def _middle(one: Configuration, metric: Metric) -> float:
    """The median, 0 where nothing was measured."""
    found = one.measured(metric.name)
    return found.median if found else 0.0


def _none_within(fit: Sequence[Configuration], max_loss: float) -> str:
    """At least one of `fit` has a quality."""
    unknown = [one.name for one in fit if not one.quality]
    least = min((one for one in fit if one.quality), key=_loss)
    loses = "is known to lose" if unknown else "loses"
    text = f"No configuration {loses} at most {_share(max_loss)}. {least.name} loses least: {change(_loss(least))}."
    return f"{text} Quality unknown: {', '.join(unknown)}." if unknown else text


def _praise(best: Configuration, equal: Sequence[Configuration], among: int, decode: Metric, most: str | None) -> str:
    speed = f"{decode.name} {number(_middle(best, decode))} tokens/s"
    speed += f", perplexity {change(_loss(best))}" if best.quality else ""
    if len(equal) == 1:
        kind = "fastest" if among > 1 else "only configuration"
        return f"{best.name} is the {kind}{f' that loses at most {most}' if most else ''}: {speed}."
    others = sorted((one for one in equal if one is not best), key=lambda one: -_middle(one, decode))
    names = [f"{one.name} ({number(_middle(one, decode))})" for one in others[:_NAMED]]
    names += [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
    why = "is named first"
    if any(round(_loss(one), 3) > round(_loss(best), 3) for one in others):
        why = "loses least"
    elif any((one.size_mb or 0) > (best.size_mb or 0) for one in others):
        why = "is the smallest"
    also = f", which also lose at most {most}" if most else ""
    return f"Take {best.name}: {speed}. No difference is resolved from {', '.join(names)}{also}; {best.name} {why}."


def _in_batches(best: Configuration, allowed: Sequence[Configuration], report: Report) -> str:
    size = max(report.workload.batches, default=1)
    metric = next((one for one in report.workload.metrics if one.name == batch_metric(size)), None)
    if metric is None:
        return ""
    first = max(allowed, key=lambda one: _middle(one, metric))
    verdict = paired(first.values(metric.name), best.values(metric.name), metric)
    if first is best or verdict is None or not verdict.faster:
        return ""
    speed = f"{number(_middle(first, metric))} tokens/s"
    return f"In batches of {size}, {first.name} is {verdict.text}: {speed}."


def _faster_but_worse(best: Configuration, refused: Sequence[Configuration], decode: Metric) -> Iterator[str]:
    faster = [one for one in refused if _is_faster(one, best, decode)]
    if worse := [f"{one.name} ({change(_loss(one))})" for one in faster if one.quality]:
        yield f"Faster, but losing more: {', '.join(worse)}."
    if unknown := [one.name for one in faster if not one.quality]:
        yield f"Faster, quality unknown: {', '.join(unknown)}."


# Numbers as a person reads them


def number(value: float) -> str:
    """Three digits, or all of those before the point: 0.123, 4.56, 78.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def change(value: float) -> str:
    """A share with its sign: +0.9%, +234%, and 0.0% for what rounds to that."""
    if abs(value) >= 100:
        return f"{100 * value:+.1g}%"
    text = f"{value:+,.0%}" if abs(value) >= 0.9995 else f"{value:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def _share(value: float) -> str:
    """A share as it was given: 2%, 0.5%."""
    return f"{100 * value:g}%"
