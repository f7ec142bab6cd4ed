"""What a run has measured, all of it raw: samples by configuration, the host, and JSON of both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hfpipe.bench.metrics import Workload
from hfpipe.errors import UsageError

# Of the JSON. It changes when a reader of the old one would understand the new one wrongly.
VERSION = 1
# Up to this two perplexities are of one source model: engines round differently.
_SAME_SOURCE = 1e-4


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process has measured in one round: `values` by the name of a metric.

    `task` is what the process did: "start" (`hfpipe run`), "single", or "batch8". `itl_ms` are the times between
    tokens, in their order. `others_cpu` is how much of the machine's processors other processes used meanwhile, from
    0 to 1; `frequency_mhz` what the processors ran at, None where it cannot be read.
    """

    task: str
    round: int
    values: Mapping[str, float]
    itl_ms: Sequence[float] = ()
    others_cpu: float | None = None
    frequency_mhz: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples of one metric: their median, lowest, highest, and how many."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a configuration is from the reference, which is the source model, exact and in its own precision.

    `perplexity_change` is the ratio of the perplexities less 1, `perplexity_change_error` its standard error;
    `same_top` the share of equal most likely next tokens, `mean_kl` the KL divergence in nats: see hfpipe.quality.
    Greedy answers to `answers` prompts: `same_answers` of them equal the reference's, and `first_divergence` is the
    median of the number of equal tokens before an answer parts, all `answer_tokens` where it does not.
    """

    perplexity: float
    reference_perplexity: float
    perplexity_change: float
    perplexity_change_error: float | None
    same_top: float
    mean_kl: float
    answers: int
    same_answers: int
    answer_tokens: int
    first_divergence: float


@dataclass(slots=True)
class Configuration:
    """One row: a model on an engine in a format, and all that was measured of it.

    `name` is unique in its report. `command` is how to run it, as words, after those of `prepare`, which is empty where
    nothing has to be made. `error` is why it could not be measured, or not to the end.
    """

    name: str
    model: str
    backend: str
    weight_format: str | None
    prepare: Sequence[str]
    command: Sequence[str]
    device: str | None = None
    dtype: str | None = None
    detail: Mapping[str, str] = field(default_factory=dict)
    size_mb: float | None = None
    samples: list[Sample] = field(default_factory=list)
    quality: Quality | None = None
    error: str | None = None

    def values(self, metric: str) -> dict[int, float]:
        """The samples of a metric by round."""
        return {sample.round: sample.values[metric] for sample in self.samples if metric in sample.values}

    def measured(self, metric: str) -> Measured | None:
        """What the samples of a metric come to; those that are not finite numbers are left out. None without any."""
        numbers = [value for value in self.values(metric).values() if math.isfinite(value)]
        return Measured(median(numbers), min(numbers), max(numbers), len(numbers)) if numbers else None

    @property
    def rounds(self) -> int:
        """Those that have samples."""
        return len({sample.round for sample in self.samples})

    @property
    def is_measured(self) -> bool:
        """It has samples, and did not fail."""
        return bool(self.samples) and self.error is None


@dataclass(slots=True)
class Report:
    """A run. The first of `configurations` is what the others are compared with.

    `arguments` are prompt_tokens, new_tokens, batches, repeats; `host` the facts and versions of the machine;
    `interrupted` says that it was ended before all was measured.
    """

    arguments: Mapping[str, Any]
    host: Mapping[str, Any]
    created: str
    configurations: list[Configuration] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def workload(self) -> Workload:
        """What it was measured with."""
        arguments = self.arguments
        return Workload(arguments["prompt_tokens"], arguments["new_tokens"], tuple(arguments["batches"]))

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON."""
        return {"version": VERSION, **asdict(self)}


def several_sources(qualities: Iterable[Quality | None]) -> bool:
    """They are against more than one source model."""
    found = [one.reference_perplexity for one in qualities if one]
    return any(not math.isclose(one, found[0], rel_tol=_SAME_SOURCE) for one in found)


def read_report(path: Path) -> Report:
    """The report in a file of `--json`. Raises UsageError where there is none, or one of another version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is no report of hfpipe bench: it is not JSON.") from error
    if not isinstance(data, dict) or "configurations" not in data or "version" not in data:
        raise UsageError(f"{path} is no report of hfpipe bench.")
    if data.pop("version") != VERSION:
        raise UsageError(f"{path} was written by another version of hfpipe bench.", hint="Measure it again.")
    for name in ("arguments", "host", "created"):
        if name not in data:
            raise UsageError(f"{path} is no report of hfpipe bench: it has no {name}.")
    try:
        rows = [_configuration(row) for row in data.pop("configurations")]
        report = Report(configurations=rows, **data)
        _check(report)
    except KeyError as error:
        raise UsageError(f"{path} is no report of hfpipe bench: it has no {error.args[0]}.") from error
    except (TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no report of hfpipe bench: {error}.") from error
    return report


def _configuration(row: Mapping[str, Any]) -> Configuration:
    quality = Quality(**row["quality"]) if row["quality"] else None
    return Configuration(**{**row, "samples": [Sample(**one) for one in row["samples"]], "quality": quality})


def _check(report: Report) -> None:
    """Raises TypeError for values that are none of a report, KeyError for those that it lacks."""
    work = report.workload
    counts = [work.new_tokens, *work.batches, *([] if work.prompt_tokens is None else [work.prompt_tokens])]
    if not all(type(count) is int and count > 0 for count in counts):
        raise TypeError("prompt_tokens, new_tokens and batches have to be numbers from 1 on")
    if not isinstance(report.host, Mapping):
        raise TypeError("host has to be an object")
    for one in report.configurations:
        if not all(isinstance(text, str) for text in (one.name, one.model, one.backend, one.weight_format or "")):
            raise TypeError("name, model, backend and weight_format have to be texts")
