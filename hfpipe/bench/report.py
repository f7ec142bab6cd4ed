"""What a run has measured, all of it raw: samples by configuration, the host, JSON of both; files, written whole."""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil
from pydantic import TypeAdapter, ValidationError

from hfpipe.bench.spec import Workload
from hfpipe.errors import UsageError
from hfpipe.export.report import versions
from hfpipe.quality.compare import Change
from hfpipe.quality.tasks import TaskScore
from hfpipe.store import replace_file, unwritable

# Up to this two perplexities are of one source model: engines round differently.
_SAME_SOURCE = 1e-4


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process has measured in one round: `values` by the name of a metric.

    `task` is what the process did: "start" (a cold start), "single", or "batch8". `itl_ms` are the times between
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
    """Samples of one metric."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality(Change):
    """How far a configuration is from the reference, which is the source model, exact and in its own precision.

    Greedy answers to `answers` prompts: `same_answers` of them equal the reference's, and `first_divergence` is the
    median of the number of equal tokens before an answer diverges, all `answer_tokens` where it does not.
    """

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
    tasks: TaskScore | None = None
    error: str | None = None

    def values(self, metric: str) -> dict[int, float]:
        """The samples of a metric by round."""
        return {sample.round: sample.values[metric] for sample in self.samples if metric in sample.values}

    def measured(self, metric: str) -> Measured | None:
        """What the samples of a metric come to; those that are not finite numbers are left out. None without any."""
        numbers = [value for value in self.values(metric).values() if math.isfinite(value)]
        return Measured(median(numbers), min(numbers), max(numbers)) if numbers else None

    @property
    def rounds(self) -> int:
        """How many rounds have samples."""
        return len({sample.round for sample in self.samples})

    @property
    def is_measured(self) -> bool:
        """To the end."""
        return bool(self.samples) and self.error is None


@dataclass(slots=True)
class Report:
    """A run. The first of `configurations` is what the others are compared with.

    `arguments` are prompt_tokens, new_tokens, batches, repeats and all else that was asked for; `host` the facts and
    versions of the machine; `interrupted` says that it ended before all was measured. `version` changes when a reader
    of the old JSON would understand the new one wrongly.
    """

    arguments: Mapping[str, Any]
    host: Mapping[str, Any]
    created: str
    configurations: list[Configuration]
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    version: Literal[1] = 1

    @property
    def workload(self) -> Workload:
        """What it was measured with."""
        return _WORKLOAD.validate_python(self.arguments)

    @property
    def has_samples(self) -> bool:
        return any(one.samples for one in self.configurations)


_WORKLOAD = TypeAdapter(Workload)


def several_sources(qualities: Iterable[Quality | None]) -> bool:
    """They are against more than one source model."""
    found = [one.reference_perplexity for one in qualities if one]
    return any(not math.isclose(one, found[0], rel_tol=_SAME_SOURCE) for one in found)


def read_report(path: Path) -> Report:
    """The report in a file of JSON. Raises UsageError where it is not one, or one of another version."""
    try:
        report = TypeAdapter(Report).validate_json(path.read_bytes(), strict=True)
        _WORKLOAD.validate_python(report.arguments)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValidationError, UsageError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": error.message}
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        message = f"{path} is not a report of this version of hfpipe bench: {reason}"
        raise UsageError(message, hint="Measure it again.") from error
    return report


def host() -> dict[str, Any]:
    """Facts that a time depends on: the processor, its cores, memory, the system, and versions."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def _processor() -> str:
    """As the kernel names it; on Linux, platform knows only the architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_output(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError for an unsupported suffix, and for a place where nothing can be written."""
    if path.suffix.lower() not in suffixes:
        supported = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UsageError(f"{option}: unsupported file type {path.suffix or path.name} (use {supported}).")
    reason = "it is a folder" if path.is_dir() else None
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UsageError(f"Cannot write to {path}: {reason}.", hint="Choose another file.")


def write_file(path: Path, data: bytes) -> None:
    """Raises HFPipeError where that fails; an old file is then whole."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise unwritable(path, error) from error
