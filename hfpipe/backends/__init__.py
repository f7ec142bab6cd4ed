"""The backend factory: a name becomes a loaded engine. Engines are imported only when they are chosen."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields

from hfpipe.backends.base import Backend
from hfpipe.errors import BackendError, UnsupportedModel, UnsupportedOption, UsageError, nearest
from hfpipe.process import silence_openvino_telemetry
from hfpipe.types import LoadOptions, ModelFormat, ModelSource, Reporter, Silent


@dataclass(frozen=True, slots=True)
class Spec:
    """Where a backend's class stands, the model formats it runs, the load options it honours beside the common, and the
    packages that its answers depend on."""

    target: str
    formats: frozenset[ModelFormat]
    honours: frozenset[str]
    packages: tuple[str, ...] = ()


_COMMON = frozenset({"backend", "batch_size", "task", "revision", "trust_remote_code", "allow_pickle", "exact"})

BACKENDS = {
    "torch": Spec(
        "hfpipe.backends.torch.decoding:TorchBackend",
        frozenset({"transformers"}),
        frozenset({"device", "device_map", "dtype", "attn", "model_kwargs"}),
        ("torch", "transformers"),
    ),
    "openvino": Spec(
        "hfpipe.backends.openvino.decoding:OpenVINOBackend",
        frozenset({"transformers", "openvino"}),
        frozenset({"device", "ov_config"}),
        ("openvino", "openvino-genai"),
    ),
    "echo": Spec(
        "hfpipe.backends.echo:EchoBackend",
        frozenset({"transformers", "openvino"}),
        frozenset(),
    ),
}

# What names of architectures end in that are trained for something other than the next token.
_OTHER_TASKS = (
    "MaskedLM",
    "PreTraining",
    "SequenceClassification",
    "TokenClassification",
    "QuestionAnswering",
    "MultipleChoice",
    "NextSentencePrediction",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen backend and, for --stats, why."""

    name: str
    why: str


def choose(requested: str, model_format: ModelFormat) -> Choice:
    """The backend for a model of `model_format`; `requested` is a name of BACKENDS or "auto"."""
    if requested == "auto":
        if model_format == "openvino":
            return Choice("openvino", "the folder holds an OpenVINO model")
        return Choice("torch", "the folder holds a transformers model")
    check_name(requested)
    if model_format not in BACKENDS[requested].formats:
        raise UnsupportedModel(
            f"The {requested} backend does not run {model_format} models.",
            hint="Leave --backend out to have the fitting one chosen.",
        )
    return Choice(requested, "asked for")


def check_name(requested: str) -> None:
    """Raise a UsageError for a backend that does not exist: this needs no model."""
    if requested not in ("auto", *BACKENDS):
        known = ", ".join(("auto", *BACKENDS))
        raise UsageError(f"Unknown backend {requested!r}; known are {known}.", hint=nearest(requested, BACKENDS))


def engine(name: str) -> type[Backend]:
    """The class of the backend `name`. The engine itself is imported here, which takes the time that it takes."""
    if name == "openvino":
        silence_openvino_telemetry()
    module, _, attribute = BACKENDS[name].target.partition(":")
    try:
        backend: type[Backend] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"The {name} backend needs the package {error.name}.", hint=f"pip install {error.name}"
        ) from error
    return backend


def versions(name: str) -> dict[str, str]:
    """The versions of what the answers of the backend `name` depend on."""
    # 15 ms, which --help has not to spare.
    from importlib import metadata

    return {package: metadata.version(package) for package in BACKENDS[name].packages}


def load(name: str, source: ModelSource, options: LoadOptions, reporter: Reporter | None = None) -> Backend:
    """Load `source` on the backend `name`. An option that it cannot honour is an error, never dropped."""
    check_options(name, options)
    _check_kind(source)
    return engine(name).load(source, options, reporter or Silent())


def _check_kind(source: ModelSource) -> None:
    """Raise UnsupportedModel for what does not write text from left to right. Some such models would answer noise."""
    hint = "Choose a decoder-only (text-generation) model."
    if source.is_encoder_decoder:
        kind = source.config.get("model_type", "this model")
        raise UnsupportedModel(
            f"{source.reference}: {kind} is an encoder-decoder model, which no backend runs yet.", hint=hint
        )
    for architecture in source.config.get("architectures") or ():
        if str(architecture).endswith(_OTHER_TASKS):
            raise UnsupportedModel(f"{source.reference} is a {architecture}, which does not write text.", hint=hint)


def check_options(name: str, options: LoadOptions) -> None:
    """Raise UnsupportedOption for the first option set that the backend `name` cannot honour."""
    check_name(name)
    if options.task not in (None, "text-generation"):
        raise UnsupportedOption(
            f"The {name} backend cannot do --task {options.task!r}.", hint="The one task is text-generation."
        )
    default = LoadOptions()
    for field in fields(LoadOptions):
        honoured = field.name in _COMMON or field.name in BACKENDS[name].honours
        if not honoured and getattr(options, field.name) != getattr(default, field.name):
            flag = "--model-kwarg" if field.name == "model_kwargs" else "--" + field.name.replace("_", "-")
            able = [other for other, spec in BACKENDS.items() if field.name in spec.honours]
            raise UnsupportedOption(
                f"The {name} backend cannot honour {flag}.", hint=f"It belongs to --backend {' or '.join(able)}."
            )
