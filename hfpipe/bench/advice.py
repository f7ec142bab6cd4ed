"""What a report comes to in sentences: warnings, and which choice to take; and numbers as a person reads them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hfpipe.bench.comparison import FEWEST_ROUNDS, versus
from hfpipe.bench.measure import BUSY
from hfpipe.bench.report import Configuration, Report, several_sources
from hfpipe.bench.spec import Metric
from hfpipe.quality.compare import change_text

# Above these a warning is due: shares of the frequency of processors, and of a speed.
_FREQUENCY, _SPREAD = 0.10, 0.15
_OWN = ("fp32", "fp16")


def warnings(report: Report) -> list[str]:
    """Those of the report, and those of its samples."""
    said = list(report.warnings)
    if report.interrupted:
        said.append("The run was interrupted: the report has what was measured until then.")
    rows = [one for one in report.configurations if one.samples]
    others = {one.name: [each.others_cpu for each in one.samples if each.others_cpu is not None] for one in rows}
    if busy := {name: max(shares) for name, shares in others.items() if shares and median(shares) > BUSY}:
        most = f"other processes used up to {max(busy.values()):.0%} of its processors"
        said.append(f"The machine was busy while {', '.join(busy)} ran: {most}.")
    clocks = [each.frequency_mhz for one in rows for each in one.samples if each.frequency_mhz]
    if clocks and max(clocks) > (1 + _FREQUENCY) * min(clocks):
        said.append(f"The processors' frequency changed: {min(clocks):,.0f} to {max(clocks):,.0f} MHz.")
    if few := [one.name for one in rows if one.rounds < FEWEST_ROUNDS]:
        names = "every configuration" if len(few) == len(rows) > 1 else ", ".join(few)
        said.append(f"Fewer than {FEWEST_ROUNDS} rounds for {names}: no difference can be resolved.")
    for one in rows:
        found = {name: one.measured(name) for name in report.workload.speeds}
        shares = {name: each.high / each.low - 1 for name, each in found.items() if each and each.low > 0}
        if wide := [f"{name} by {share:.0%}" for name, share in shares.items() if share > _SPREAD]:
            said.append(f"The samples of {one.name} spread: {', '.join(wide)} from the slowest to the fastest.")
    metrics = {metric.name: metric for metric in report.workload.metrics}
    said += _slow_formats(rows, metrics, report.workload.decode)
    if len(rows) > 1 and rows[0] is not report.configurations[0]:
        said.append(f"{report.configurations[0].name} has no samples, so nothing is compared with it.")
    return said


def _slow_formats(rows: Sequence[Configuration], metrics: Mapping[str, Metric], decode: str) -> Iterator[str]:
    """Of quantized models that decode slower than the same model in its own precision."""
    own = {(one.model, one.backend): one for one in reversed(rows) if one.weight_format in _OWN}
    for one in rows:
        source = own.get((one.model, one.backend))
        if source is None or one.weight_format in (None, *_OWN):
            continue
        speed, memory = (versus(one, source, metrics[name]) for name in (decode, "peak_rss_mb"))
        if speed and speed.slower:
            yield (
                f"{one.name} decodes {speed.ratio:.2g} times as fast as {source.weight_format} on this processor: "
                f"it saves {'memory' if memory and memory.faster else 'disk space'} alone."
            )


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
    metrics = {metric.name: metric for metric in report.workload.metrics}
    decode = metrics[report.workload.decode]
    fit = [one for one in report.configurations if one.error is None and one.measured(decode.name)]
    if not fit:
        return Advice(None, "No decode speed was measured, so there is no advice.")
    judged = [one for one in fit if one.quality] or fit
    allowed = [one for one in judged if _loss(one) <= max_loss]
    several = several_sources(one.quality for one in fit)
    sources = "Losses are against each model's own source." if several else ""
    if not allowed:
        least = min(judged, key=_loss)
        lost = f"{least.name} loses least: {change_text(_loss(least))}."
        return Advice(None, f"No configuration is known to lose at most {100 * max_loss:g}%. {lost} {sources}".strip())
    equal = [one for one in allowed if not any(_is_faster(other, one, decode) for other in allowed)]
    # Verdicts of noise may go round in a circle.
    equal = equal or [max(allowed, key=lambda one: _middle(one, decode))]
    best = min(equal, key=lambda one: (round(_loss(one), 3), one.size_mb or 0))
    speed = f"{decode.name} {number(_middle(best, decode))} tokens/s"
    speed += f", perplexity {change_text(_loss(best))}" if best.quality else ""
    kind = "fastest" if len(allowed) > 1 else "only configuration"
    text = f"{best.name} is the {kind}{f' that loses at most {100 * max_loss:g}%' if best.quality else ''}: {speed}."
    if len(equal) > 1:
        others = sorted((one for one in equal if one is not best), key=lambda one: -_middle(one, decode))
        names = ", ".join(f"{one.name} ({number(_middle(one, decode))})" for one in others)
        text = f"Take {best.name}: {speed}. No difference is resolved from {names}."
    faster = [one for one in fit if one not in allowed and _is_faster(one, best, decode)]
    worse = ", ".join(f"{one.name} ({change_text(_loss(one))})" for one in faster if one.quality)
    unknown = ", ".join(one.name for one in faster if not one.quality)
    sentences = [
        text,
        _in_batches(best, allowed, metrics[report.workload.speeds[-1]]),
        f"Faster, but losing more: {worse}." if worse else "",
        f"Faster, quality unknown: {unknown}." if unknown else "",
        sources if best.quality else "Quality was not measured.",
    ]
    commands = [shlex.join(words) for words in (best.prepare, best.command) if words]
    return Advice(best.name, " ".join(filter(None, sentences)), commands)


def _is_faster(one: Configuration, other: Configuration, metric: Metric) -> bool:
    """The difference is resolved."""
    verdict = versus(one, other, metric)
    return verdict is not None and verdict.faster


def _loss(one: Configuration) -> float:
    return one.quality.perplexity_change if one.quality else 0.0


def _middle(one: Configuration, metric: Metric) -> float:
    """The median, 0 where nothing was measured."""
    found = one.measured(metric.name)
    return found.median if found else 0.0


def _in_batches(best: Configuration, allowed: Sequence[Configuration], metric: Metric) -> str:
    """Where another one is faster in the largest batch."""
    first = max(allowed, key=lambda one: _middle(one, metric))
    verdict = versus(first, best, metric)
    if first is best or verdict is None or not verdict.faster:
        return ""
    size = metric.name.removeprefix("batch").removesuffix("_tps")
    return f"With {size} answers at once, {first.name} is {verdict.text}: {number(_middle(first, metric))} tokens/s."


def number(value: float) -> str:
    """Three digits, or all of those before the point: 0.123, 4.56, 78.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"
