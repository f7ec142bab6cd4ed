"""The advice: which choice to take, and why."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hfpipe.bench.metrics import Metric, batch_metric
from hfpipe.bench.numbers import change, number, share
from hfpipe.bench.report import Configuration, Report, several_sources
from hfpipe.bench.statistics import paired

# As many of the choices that are as good as the best are named.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Advice:
    """Which configuration to take, None where there is none; why, in sentences; and the commands to get it."""

    name: str | None
    text: str
    commands: Sequence[str] = ()


def advice(report: Report, max_loss: float) -> Advice:
    """The fastest at decoding, of those whose perplexity is at most `max_loss` (0.02 for 2 %) above the reference's.
    None after an interrupt: what was not measured yet might be it."""
    if report.interrupted:
        return Advice(None, "The run was interrupted, so there is no advice.")
    work = report.workload
    fit = [one for one in report.configurations if one.error is None and one.measured(work.decode)]
    if not fit:
        if any(one.is_measured for one in report.configurations):
            return Advice(None, "No decode speed was measured, so there is no advice.")
        return Advice(None, "Nothing was measured to the end, so there is no advice.")
    judged = any(one.quality for one in fit)
    allowed = [one for one in fit if not judged or _within(one, max_loss)]
    sources = "Losses are against each model's own source." if several_sources(one.quality for one in fit) else ""
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


def _middle(one: Configuration, metric: str) -> float:
    """The median, 0 where there is none."""
    found = one.measured(metric)
    return found.median if found else 0.0
