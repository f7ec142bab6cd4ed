"""What is to be compared: each model on each engine, in each format, as rows of the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hfpipe import backends, models
from hfpipe.backends.openvino.optimum_cli import own_format
from hfpipe.bench.choices import Choices, without_device
from hfpipe.bench.exports import Exports
from hfpipe.bench.labelled import Labelled
from hfpipe.bench.origins import check_reference, origin_of
from hfpipe.bench.report import Configuration
from hfpipe.errors import ContextLengthError, HFPipeError, UsageError
from hfpipe.export.plan import default_output
from hfpipe.types import LoadOptions, ModelSource, Reporter

_QUANTIZED = ("int8", "int4")
# What a transformers model is loaded from.
_FILES = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.jinja", "*.txt", "*.py")
_TEXTS = ("device", "device_map", "dtype", "attn")
_FLAGS = ("trust_remote_code", "allow_pickle", "exact")
# What a model is started with.
QUESTION = "What is EEG?"


@dataclass(slots=True)
class Candidate:
    """A row of the report, and what it takes to measure it: the `source` that is loaded with `loading`, and `origin`,
    the transformers model that it comes from, None where that is not known."""

    row: Configuration
    source: ModelSource
    loading: LoadOptions
    origin: ModelSource | None


def candidates(
    choices: Choices,
    exports: Exports,
    reporter: Reporter,
    *,
    check: Callable[[ModelSource], object] = lambda _: None,
    complain: Callable[[str], None] = lambda _: None,
) -> Iterator[Candidate | Configuration]:
    """Each as soon as it is there: an export that does not stand yet is made. Where that fails, the row with its error.

    `check` raises HFPipeError for a model that cannot do what is to be measured; `complain` is told what is doubtful.
    Raises HFPipeError for a model that is not there, and for a reference that cannot be one.
    """
    refused = without_device(choices)
    found = [_resolve(model, choices, reporter) for model in choices.models]
    if choices.weight_formats and all(source.format == "openvino" for source in found):
        raise UsageError(
            "--weight-format is for models that can be exported.", hint="An OpenVINO folder is measured as it is."
        )
    reference = _resolve(choices.reference, choices, reporter) if choices.reference else None
    if reference:
        compared = [source for source in found if origin_of(source, found, reference) is reference]
        for warning in check_reference(reference, compared):
            complain(warning)
    names = _Names([source.reference for source in found])
    wanted = [(source, *variant) for source in found for variant in _variants(source, choices)]
    number, total = 0, sum(weight_format is not None for *_, weight_format in wanted)
    for source, backend, weight_format in wanted:
        loading = _of_backend(choices.loading, backend)
        row = _row(names, source, weight_format, replace(loading, revision=choices.revision(source.reference)))
        number += weight_format is not None
        heard = Labelled(reporter, f"{row.name} (export {number} of {total})")
        try:
            if backend in refused:
                raise refused[backend]
            check_room(source, choices.tokens, hint="--prompt-tokens and --new-tokens make them shorter.")
            check(source)
            yield _candidate(row, source, origin_of(source, found, reference), loading, exports, heard)
        except HFPipeError as error:
            row.error = reason(error)
            yield row


def reason(error: HFPipeError) -> str:
    """An error in one line, for a row."""
    return f"{error.message} {error.hint}" if error.hint else error.message


def check_room(source: ModelSource, tokens: int, *, hint: str | None = None) -> None:
    """Raise ContextLengthError: a model may go on where its context ends, and answer noise."""
    limit = source.context_length
    if limit is not None and tokens > limit:
        raise ContextLengthError(
            f"A prompt and its answer have {tokens} tokens, and its context is {limit}.", hint=hint
        )


def _resolve(model: str, choices: Choices, reporter: Reporter) -> ModelSource:
    return models.resolve(
        model, revision=choices.revision(model), allow_pickle=choices.loading.allow_pickle, reporter=reporter
    )


def _variants(source: ModelSource, choices: Choices) -> Iterator[tuple[str, str | None]]:
    """The engines and the weight formats for a model. What is no OpenVINO model yet is exported for OpenVINO."""
    for backend in choices.engines:
        fits = source.format in backends.BACKENDS[backend].formats
        if not fits and not choices.backends:
            continue
        if backend == "openvino" and source.format == "transformers":
            yield from ((backend, name) for name in choices.weight_formats or _formats(source))
        else:
            yield backend, None


def _formats(source: ModelSource) -> Iterable[str]:
    return (own_format(source), *_QUANTIZED)


def _row(names: _Names, source: ModelSource, weight_format: str | None, loading: LoadOptions) -> Configuration:
    model, kept = source.reference, ["--revision", loading.revision] if loading.revision else []
    prepare: list[str] = []
    command = ["hfpipe", "run", model, *kept]
    if weight_format:
        kept += [_flag(name) for name in ("trust_remote_code", "allow_pickle") if getattr(loading, name)]
        prepare = ["hfpipe", "export", model, "--weight-format", weight_format, *kept]
        command = ["hfpipe", "run", str(default_output(model, weight_format))]
    return Configuration(
        name=names.make(model, loading.backend, weight_format),
        model=model,
        backend=loading.backend,
        weight_format=weight_format,
        prepare=prepare,
        command=[*command, *flags(loading), QUESTION],
    )


def flags(loading: LoadOptions) -> list[str]:
    """The options of `hfpipe run` that mean `loading`, but for its revision."""
    words = ["--backend", loading.backend]
    for name in _TEXTS:
        if (value := getattr(loading, name)) is not None:
            words += [_flag(name), value]
    for name in _FLAGS:
        words += [_flag(name)] if getattr(loading, name) else []
    if loading.ov_config:
        words += ["--ov-config", json.dumps(dict(loading.ov_config))]
    for key, value in loading.model_kwargs.items():
        words += ["--model-kwarg", f"{key}={json.dumps(value)}"]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _candidate(
    row: Configuration,
    source: ModelSource,
    origin: ModelSource | None,
    loading: LoadOptions,
    exports: Exports,
    reporter: Reporter,
) -> Candidate:
    """Raises HFPipeError where the engine does not fit the model, or the export fails."""
    backends.choose(row.backend, source.format)
    if row.weight_format:
        export = exports.make(source, row.weight_format, loading, reporter)
        # The user is to get what was measured: a verification also chooses runtime options.
        row.prepare = [*row.prepare, *([] if export.verified else ["--no-verify"])]
        source = models.resolve(str(export.folder))
    row.size_mb = _size(source) / 1e6
    return Candidate(row, source, loading, origin)


def _size(source: ModelSource) -> int:
    """Bytes of a model, and of its tokenizer; a folder may have more in it."""
    patterns = ("*",) if source.format == "openvino" else _FILES
    files = {path for pattern in patterns for path in source.folder.glob(pattern) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def _of_backend(loading: LoadOptions, backend: str) -> LoadOptions:
    """Of the options for all engines those that this one knows."""
    honours, default = backends.BACKENDS[backend].honours, LoadOptions()
    of_others = frozenset().union(*(spec.honours for spec in backends.BACKENDS.values())) - honours
    return replace(loading, backend=backend, **{name: getattr(default, name) for name in of_others})


class _Names:
    """Names of rows that are short, and each other than those before: with the last part of a model's where there are
    several models, with all of it where these would be equal."""

    def __init__(self, models: Sequence[str]) -> None:
        self._several = len(models) > 1
        self._short = Counter(_last_part(model) for model in set(models))
        self._made: Counter[str] = Counter()

    def make(self, model: str, backend: str, weight_format: str | None) -> str:
        label = _last_part(model) if self._short[_last_part(model)] == 1 else model
        parts = [label if self._several else "", backend, weight_format or ""]
        name = " ".join(filter(None, parts))
        self._made[name] += 1
        return name if self._made[name] == 1 else f"{name} ({self._made[name]})"


def _last_part(model: str) -> str:
    return Path(model).name or model
