"""The backend factory: a name becomes a loaded engine. Engines are imported only when they are chosen."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, fields
from typing import NamedTuple

from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import optimum_cli
from hfpipe.errors import BackendError, UnsupportedModel, UnsupportedOption, UsageError, nearest
from hfpipe.process import silence_openvino_telemetry
from hfpipe.types import CHOSEN, TASKS, HubAccess, LoadOptions, ModelFormat, ModelSource, Reporter, Silent

# Packages name their own backends in this group of entry points: a name, and the class as module:Class.
GROUP = "hfpipe.backends"
# The environment in which no load measures settings.
UNTUNED = {"HFPIPE_TUNE": "0"}


_ALWAYS = frozenset({"backend", "batch_size", "task", "prompt_tokens", "tuned"})
_OF_A_FOLDER = frozenset({"source_lang", "target_lang", "revision", "trust_remote_code", "allow_pickle", "exact"})


@dataclass(frozen=True, slots=True)
class Spec:
    """Where a backend's class stands, the model formats it runs, the load options it honours beside the `common`, and
    the packages that its answers depend on."""

    target: str
    formats: frozenset[ModelFormat]
    honours: frozenset[str]
    packages: tuple[str, ...] = ()
    common: frozenset[str] = _ALWAYS | _OF_A_FOLDER


BACKENDS = {
    "torch": Spec(
        "hfpipe.backends.torch.decoding:TorchBackend",
        frozenset({"transformers"}),
        frozenset({"device", "device_map", "dtype", "attn", "model_kwargs", "prompt_lookup"}),
        ("torch", "transformers"),
    ),
    "openvino": Spec(
        "hfpipe.backends.openvino.decoding:OpenVINOBackend",
        frozenset({"transformers", "openvino"}),
        frozenset({"device", "ov_config", "prompt_lookup"}),
        ("openvino", "openvino-genai"),
    ),
    "echo": Spec("hfpipe.backends.echo:EchoBackend", frozenset({"transformers", "openvino"}), frozenset()),
    # It speaks text, so it is no Backend: hfpipe.generator uses it in the place of a Generator.
    "endpoint": Spec("hfpipe.endpoint:Endpoint", frozenset(), frozenset({"endpoint", "timeout"}), common=_ALWAYS),
}

# What names of architectures end in that are trained for something other than the next token.
_OTHER_TASKS = re.compile(
    "(MaskedLM|PreTraining|EncoderModel|(Sequence|Token)Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)$"
)
# Encoder-decoder models that take, or give, something other than text.
_OF_OTHER_MEDIA = frozenset(
    (
        *("bark", "cohere_asr", "donut-swin", "florence2", "kyutai_speech_to_text", "moonshine", "musicgen"),
        *("musicgen_melody", "nougat", "pix2struct", "pop2piano", "seamless_m4t", "seamless_m4t_v2"),
        *("speech-encoder-decoder", "speech_to_text", "speecht5", "t5gemma2", "trocr", "udop"),
        *("vision-encoder-decoder", "whisper"),
    )
)


class Choice(NamedTuple):
    """The chosen backend and, for --stats, why."""

    name: str
    why: str


def choose(options: LoadOptions, source: ModelSource, reporter: Reporter, *, resumed: str | None = None) -> Choice:
    """The backend for a model, where `options` name none: OpenVINO for an OpenVINO folder, and on a CPU for a model of
    which the cache has an export in its own precision; else torch. Answers that are `resumed` keep their backend.
    "default" is as LangChain has it: as "auto", but whatever the cache holds."""
    requested = options.backend
    if requested not in CHOSEN:
        check_format(requested, source.format)
        return Choice(requested, "asked for")
    if source.format == "openvino":
        return Choice("openvino", "the folder holds an OpenVINO model")
    free = requested == "auto" and resumed is None and fits_openvino(options)
    if resumed == "openvino" or (free and optimum_cli.is_exported(source, options, reporter)):
        return Choice("openvino", "its OpenVINO export is in the cache")
    return Choice("torch", "the folder holds a transformers model")


def check_format(name: str, model_format: ModelFormat) -> None:
    """Raise UnsupportedModel where the backend `name` does not run models of this format."""
    if model_format not in spec(name).formats:
        raise UnsupportedModel(
            f"The {name} backend does not run {model_format} models.",
            hint="Leave --backend out to have the fitting one chosen.",
        )


def spec(name: str) -> Spec:
    """What is known of the backend `name`, hfpipe's own or of an installed package. Raises a UsageError where there is
    none."""
    if name in BACKENDS:
        return BACKENDS[name]
    # 15 ms, which --help has not to spare.
    from importlib import metadata

    others = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in others:
        known = ("auto", *BACKENDS, *others)
        raise UsageError(f"Unknown backend {name!r}; known are {', '.join(known)}.", hint=nearest(name, known))
    backend, package = _imported(name, others[name].value), others[name].dist
    return Spec(others[name].value, backend.formats, backend.honours, (package.name,) if package else ())


def engine(name: str) -> type[Backend]:
    """The class of the backend `name`. The engine itself is imported here, which takes the time that it takes."""
    if name == "openvino":
        silence_openvino_telemetry()
    return _imported(name, spec(name).target)


def _imported(name: str, target: str) -> type[Backend]:
    module, _, attribute = target.partition(":")
    try:
        backend: type[Backend] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise BackendError(f"The {name} backend needs the package {package}.", hint=f"pip install {package}") from error
    return backend


def versions(name: str) -> dict[str, str]:
    """The versions of what the answers of the backend `name` depend on."""
    from importlib import metadata

    return {package: metadata.version(package) for package in spec(name).packages}


def load(name: str, source: ModelSource, options: LoadOptions, reporter: Reporter | None = None) -> Backend:
    """Load `source` on the backend `name`. An option that it cannot honour is an error, never dropped; so is a model
    that does not write text from left to right. Some such models would answer noise."""
    check_options(name, options)
    hint = "Choose a model that writes text: text-generation, or text2text-generation."
    if (kind := source.config.get("model_type")) in _OF_OTHER_MEDIA:
        raise UnsupportedModel(f"{source.reference}: {kind} is a model of sound or images, not of text.", hint=hint)
    if options.prompt_lookup and source.is_encoder_decoder:
        raise UnsupportedOption(
            f"--prompt-lookup is not supported for encoder-decoder models such as {source.reference}.",
            hint="Leave it out: the answer is the same.",
        )
    for architecture in source.config.get("architectures") or ():
        if _OTHER_TASKS.search(architecture):
            raise UnsupportedModel(f"{source.reference} is a {architecture}, which does not write text.", hint=hint)
    return engine(name).load(source, options, reporter or Silent())


def fits_openvino(options: LoadOptions) -> bool:
    """Whether these options are of a CPU, and OpenVINO can honour them all there."""
    try:
        check_options("openvino", options)
    except UnsupportedOption:
        return False
    return (options.device or "cpu").lower() in ("-1", "cpu")


def honoured(name: str) -> frozenset[str]:
    """The load options that the backend `name` honours."""
    return spec(name).common | spec(name).honours


def check_options(name: str, options: LoadOptions) -> None:
    """Raise UnsupportedOption for the first option set that the backend `name` cannot honour."""
    if not spec(name).formats and options.task not in (None, TASKS[0]):
        raise UnsupportedOption(
            f"The {name} backend cannot do --task {options.task!r}.", hint=f"Only {TASKS[0]} is supported."
        )
    if not spec(name).formats and options.hub != HubAccess():
        given = [one.name for one in fields(HubAccess) if getattr(options.hub, one.name) != one.default]
        raise UnsupportedOption(
            f"The {name} backend cannot honour {', '.join(given)} in model_kwargs.",
            hint="Leave it out. The token of a server is set as HFPIPE_ENDPOINT_TOKEN, that of the Hub as HF_TOKEN.",
        )
    default = LoadOptions()
    for field in fields(LoadOptions):
        if field.name not in honoured(name) and getattr(options, field.name) != getattr(default, field.name):
            names = f"--model-kwarg {', '.join(options.model_kwargs)}"
            flag = names if field.name == "model_kwargs" else "--" + field.name.replace("_", "-")
            able = [other for other in BACKENDS if field.name in honoured(other)]
            raise UnsupportedOption(
                f"The {name} backend cannot honour {flag}.", hint=f"It belongs to --backend {' or '.join(able)}."
            )
