"""What a report comes to: medians, verdicts and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hfpipe.bench.metrics import Metric
from hfpipe.bench.noise import BUSY
from hfpipe.bench.report import Configuration, Measured, Quality, Report, Sample
from hfpipe.bench.statistics import FEWEST_ROUNDS, Verdict, paired

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
        yield "The run was interrupted: this is what had been measured."
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
