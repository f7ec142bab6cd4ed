"""What the pictures show of a report: numbers, the Pareto front, and texts. Nothing here draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hfpipe.bench.numbers import change
from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.statistics import Measured, measured

# Of these the front takes no notice, and a label rounds them away. In percent.
_SEEN_LOSS = 0.1
# In letters: more are counted.
_LONGEST_FACT = 500


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration with a speed and a quality. `loss` is the change of the perplexity in percent."""

    name: str
    backend: str
    speed: Measured
    loss: float
    loss_error: float
    size_mb: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """The times between tokens of a configuration in ms, of all rounds; and by name the medians of its metrics."""

    name: str
    backend: str
    times: np.ndarray
    medians: Mapping[str, float]


def spread(configuration: Configuration, metric: str) -> Measured | None:
    """None where it was not measured."""
    return measured(configuration.values(metric).values())


def speed_metrics(report: Report) -> list[str]:
    """The speeds that at least one configuration has, in the order of a table."""
    return [name for name in report.workload.speeds if any(spread(row, name) for row in report.configurations)]


def points(report: Report) -> list[Point]:
    """The configurations that have both a decode speed and a quality."""
    return [point for row in report.configurations if (point := _point(row, report.workload.decode))]


def _point(row: Configuration, metric: str) -> Point | None:
    speed = spread(row, metric)
    if speed is None or row.quality is None or not math.isfinite(row.quality.perplexity_change):
        return None
    error = row.quality.perplexity_change_error or 0.0
    loss = 100 * row.quality.perplexity_change
    return Point(clean(row.name), row.backend, speed, loss, 100 * error if math.isfinite(error) else 0.0, row.size_mb)


def latencies(report: Report, metrics: Sequence[str]) -> list[Latency]:
    """The configurations that have times between tokens, each without those of batches, and their medians."""
    found = []
    for row in report.configurations:
        samples = [sample.itl_ms for sample in row.samples if not sample.task.startswith("batch")]
        times = np.asarray([time for sample in samples for time in sample if math.isfinite(time) and time > 0])
        medians = {metric: one.median for metric in metrics if (one := spread(row, metric))}
        if times.size:
            found.append(Latency(clean(row.name), row.backend, times, medians))
    return found


def pareto(choices: Sequence[tuple[float, float]]) -> list[int]:
    """Which (speed, loss) no other beats, by speed. What beats another is no worse in both, and better in one."""
    best: list[int] = []
    for index in sorted(range(len(choices)), key=lambda one: (-choices[one][0], choices[one][1])):
        speed, loss = choices[index]
        if not best or loss < choices[best[-1]][1] or (speed, loss) == choices[best[-1]]:
            best.append(index)
    return best[::-1]


def front(shown: Sequence[Point]) -> list[Point]:
    """The points on the Pareto front, by speed. Losses that a label shows as equal are."""
    rounded = [(point.speed.median, round(point.loss / _SEEN_LOSS)) for point in shown]
    return [shown[index] for index in pareto(rounded)]


def clean(text: str) -> str:
    """Without what a picture or a page cannot hold: control characters, lone surrogates, changes of direction."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def percent(value: float) -> str:
    """5.3 as +5.3%, and a loss with the sign that is as wide as a plus."""
    return minus(change(value / 100))


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def megabytes(value: float) -> str:
    return f"{value / 1000:.1f} GB" if value >= 9999.5 else f"{value:,.0f} MB" if value >= 9.95 else f"{value:.1f} MB"


def models(report: Report) -> str:
    return ", ".join(dict.fromkeys(clean(row.model) for row in report.configurations)) or "no model"


def circumstances(report: Report) -> str:
    """Where and when, in one line."""
    facts = [str(report.host["processor"])] if report.host.get("processor") else []
    facts += dict.fromkeys(row.detail["gpu"] for row in report.configurations if row.detail.get("gpu"))
    cores = report.host.get("cores")
    facts += [f"{cores} cores" if cores != 1 else "1 core"] if cores else []
    repeats = report.arguments.get("repeats")
    rounds = [f"{repeats} rounds" if repeats != 1 else "1 round"] if repeats else []
    return clean(" · ".join([*facts, *rounds, report.created[:10]])).replace("(R)", "").replace("(TM)", "")


def notes(report: Report, *, drawn: Iterable[str], missing: str) -> list[str]:
    """What the picture does not show: configurations that failed, those that are `missing` something, an early end."""
    names = set(drawn)
    failed = [f"{clean(row.name)} ({clean(_first_line(row.error))})" for row in report.configurations if row.error]
    left = [clean(row.name) for row in report.configurations if not row.error and clean(row.name) not in names]
    lines = [f"Failed: {', '.join(failed)}."] if failed else []
    lines += [f"Without {missing}: {', '.join(left)}."] if left else []
    return lines + (["The run was interrupted before everything was measured."] if report.interrupted else [])


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason"])[0].rstrip(".")


def flat(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Facts and those within them, as pairs of texts."""
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name} ")
        elif isinstance(value, (list, tuple)):
            several = ", ".join(map(str, value))
            pairs.append((name, several if len(several) <= _LONGEST_FACT else f"{len(value)} of them"))
        elif value is not None:
            pairs.append((name, str(value)))
    return pairs
