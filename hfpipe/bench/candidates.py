"""What is to be compared: each model on each engine, in each format, as rows of the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hfpipe import backends, sources
from hfpipe.bench.report import Configuration
from hfpipe.cache import cache_root
from hfpipe.conversion.optimum_cli import own_format
from hfpipe.errors import HFPipeError, UsageError, nearest
from hfpipe.export import exporter
from hfpipe.export.options import WEIGHT_FORMATS, ExportOptions
from hfpipe.export.plan import default_output, make_plan
from hfpipe.export.report import read as read_export_report
from hfpipe.sources.fingerprint import fingerprint
from hfpipe.types import LoadOptions, ModelSource, Reporter

_QUANTIZED = ("int8", "int4")
_QUESTION = "What is EEG?"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user wants compared. Empty `backends` are torch and OpenVINO where they fit; empty `weight_formats` the
    model's own precision, int8 and int4. `loading` is for all, of which each engine takes what it knows. `reference` is
    the transformers model that OpenVINO folders are compared with, where hfpipe.json names none of `models`."""

    models: Sequence[str]
    backends: Sequence[str] = ()
    weight_formats: Sequence[str] = ()
    loading: LoadOptions = field(default_factory=LoadOptions)
    reference: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("There is no model to measure.")
        for name in self.backends:
            backends.check_name(name)
        for name in self.weight_formats:
            if name not in WEIGHT_FORMATS:
                raise UsageError(
                    f"Unknown weight format {name!r}.",
                    hint=nearest(name, WEIGHT_FORMATS) or f"There are {', '.join(WEIGHT_FORMATS)}.",
                )
        if self.weight_formats and self.backends and "openvino" not in self.backends:
            raise UsageError(
                f"{' and '.join(self.backends)} cannot honour --weight-format.",
                hint="It belongs to --backend openvino.",
            )


@dataclass(slots=True)
class Candidate:
    """A row of the report, and what it takes to measure it: the `source` that is loaded with `loading`, and `origin`,
    the transformers model that it comes from, None where that is not known."""

    row: Configuration
    source: ModelSource
    loading: LoadOptions
    origin: ModelSource | None


def candidates(choices: Choices, reporter: Reporter) -> Iterator[Candidate | Configuration]:
    """Each as soon as it is there: an export that does not stand yet is made. Where that fails, the row with its error.

    Raises HFPipeError for a model that is not there.
    """
    found = [_resolve(model, choices.loading, reporter) for model in choices.models]
    if choices.weight_formats and all(source.format == "openvino" for source in found):
        raise UsageError(
            "--weight-format is for models that can be exported.", hint="An OpenVINO folder is measured as it is."
        )
    reference = _resolve(choices.reference, choices.loading, reporter) if choices.reference else None
    names = _Names(len(found) > 1)
    for source in found:
        origin = _origin(source, found) or reference
        for backend, weight_format in _variants(source, choices):
            row = _row(source, backend, weight_format, names)
            try:
                yield _candidate(row, source, origin, choices.loading, reporter)
            except HFPipeError as error:
                row.error = error.message
                yield row


def _resolve(model: str, loading: LoadOptions, reporter: Reporter) -> ModelSource:
    return sources.resolve(model, revision=loading.revision, allow_pickle=loading.allow_pickle, reporter=reporter)


def _variants(source: ModelSource, choices: Choices) -> Iterator[tuple[str, str | None]]:
    """The engines and the weight formats for a model. What is no OpenVINO model yet is exported for OpenVINO."""
    wanted = choices.backends or ("torch", "openvino")
    for backend in wanted:
        fits = source.format in backends.BACKENDS[backend].formats
        if not fits and not choices.backends:
            continue
        if backend == "openvino" and source.format == "transformers":
            yield from ((backend, name) for name in choices.weight_formats or _formats(source))
        else:
            yield backend, None


def _formats(source: ModelSource) -> Iterable[str]:
    return (own_format(source), *_QUANTIZED)


def _origin(source: ModelSource, found: Sequence[ModelSource]) -> ModelSource | None:
    """The transformers model that `source` is, or was made of: it may be worth a download, but not unasked."""
    if source.format == "transformers":
        return source
    made = read_export_report(source.folder)
    of = made["source"].get("model") if made else None
    return next((one for one in found if one.format == "transformers" and one.reference == of), None)


def _row(source: ModelSource, backend: str, weight_format: str | None, names: _Names) -> Configuration:
    return Configuration(
        name=names.make(source.reference, backend, weight_format),
        model=source.reference,
        backend=backend,
        weight_format=weight_format,
        prepare=_prepare(source.reference, weight_format),
        command=_command(source.reference, backend, weight_format),
    )


def _candidate(
    row: Configuration, source: ModelSource, origin: ModelSource | None, loading: LoadOptions, reporter: Reporter
) -> Candidate:
    """Raises HFPipeError where the engine does not fit the model, or the export fails."""
    backends.choose(row.backend, source.format)
    made = _exported(source, row.weight_format, loading, reporter) if row.weight_format else source
    row.size_mb = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file()) / 1e6
    return Candidate(row, made, _of_backend(loading, row.backend), origin)


def _prepare(model: str, weight_format: str | None) -> list[str]:
    return ["hfpipe", "export", model, "--weight-format", weight_format] if weight_format else []


def _command(model: str, backend: str, weight_format: str | None) -> list[str]:
    if weight_format:
        return ["hfpipe", "run", str(default_output(model, weight_format)), _QUESTION]
    return ["hfpipe", "run", model, "--backend", backend, _QUESTION]


def _exported(source: ModelSource, weight_format: str, loading: LoadOptions, reporter: Reporter) -> ModelSource:
    """The export of a model, from the cache where it stands there."""
    options = ExportOptions(
        weight_format, trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
    )
    name = default_output(source.reference, weight_format).name
    folder = cache_root() / "exports" / f"{fingerprint(source.folder)[:24]}" / name
    plan = make_plan(source, folder, options)
    exported = exporter.export(plan, reporter=reporter)
    return sources.resolve(str(exported.folder))


def _of_backend(loading: LoadOptions, backend: str) -> LoadOptions:
    """Of the options for all engines those that this one knows."""
    honours, default = backends.BACKENDS[backend].honours, LoadOptions()
    of_others = frozenset().union(*(spec.honours for spec in backends.BACKENDS.values())) - honours
    return replace(loading, backend=backend, **{name: getattr(default, name) for name in of_others})


class _Names:
    """Names of rows that are short, and each other than those before."""

    def __init__(self, with_model: bool) -> None:
        self._with_model = with_model
        self._made: dict[str, int] = {}

    def make(self, model: str, backend: str, weight_format: str | None) -> str:
        short = Path(model).name or model
        parts = [short] if self._with_model else []
        name = " ".join([*parts, backend, *([weight_format] if weight_format else [])])
        count = self._made[name] = self._made.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"
