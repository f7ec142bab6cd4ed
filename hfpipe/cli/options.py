"""The options that commands share, as Annotated aliases, and how their words become values."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from hfpipe.backends import BACKENDS
from hfpipe.errors import UsageError
from hfpipe.export.options import WEIGHT_FORMATS, ExportOptions
from hfpipe.text.templates import BUILT_IN
from hfpipe.types import GenerationOptions, LoadOptions

_LOADING = "Loading"
_GENERATION = "Generation"
_OUTPUT = "Output"
_QUANTIZATION = "Quantization"
_EXPORT = "Export"
_AS_IN = {
    "--ov-config": """As in --ov-config PERFORMANCE_HINT=LATENCY, or --ov-config '{"PERFORMANCE_HINT": "LATENCY"}'.""",
    "--model-kwarg": "As in --model-kwarg low_cpu_mem_usage=true.",
    "--var": """As in --var language=French, for a template with {language}.""",
}


def _complete_model(incomplete: str) -> list[str]:
    from hfpipe.sources.names import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


def _complete_backend(incomplete: str) -> list[str]:
    return [name for name in ("auto", *BACKENDS) if name.startswith(incomplete)]


def _complete_weight_format(incomplete: str) -> list[str]:
    return [name for name in WEIGHT_FORMATS if name.startswith(incomplete)]


def _complete_template(incomplete: str) -> list[str]:
    return [name for name in BUILT_IN if name.startswith(incomplete)]


def variable_of(*names: str) -> str:
    """The environment variable of an option: HFPIPE_ and its first long name."""
    long = next(name for name in names if name.startswith("--"))
    return "HFPIPE_" + long.removeprefix("--").replace("-", "_").upper()


def _option(*names: str, help: str, panel: str, **given: Any) -> Any:
    settings: dict[str, Any] = {"envvar": variable_of(*names), "show_envvar": False, **given}
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def _repeatable(*names: str, help: str, panel: str, metavar: str) -> Any:
    """An option that may be given several times. Its variable holds one value a line: Click would cut it at spaces."""
    variable = variable_of(*names)

    def given_or_set(value: list[str] | None) -> list[str] | None:
        return value or os.environ.get(variable, "").splitlines() or None

    return _option(*names, help=help, panel=panel, metavar=metavar, envvar=None, callback=given_or_set)


ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file.",
        autocompletion=_complete_model,
        show_default=False,
    ),
]
PromptArg = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="The prompt; - or nothing reads it from stdin.", show_default=False),
]

BackendOpt = Annotated[
    str,
    _option(
        "--backend",
        "-b",
        help=f"auto, {', '.join(BACKENDS)}.",
        panel=_LOADING,
        metavar="NAME",
        autocompletion=_complete_backend,
    ),
]
DeviceOpt = Annotated[
    str | None,
    _option(
        "--device",
        "-d",
        help="-1 or cpu (default), 0, cuda:1, mps, xpu; for OpenVINO CPU, GPU, NPU.",
        panel=_LOADING,
        metavar="DEVICE",
    ),
]
DeviceMapOpt = Annotated[
    str | None,
    _option("--device-map", help="auto: Accelerate places it. Not with --device.", panel=_LOADING, metavar="MAP"),
]
DtypeOpt = Annotated[
    str | None,
    _option("--dtype", help="auto, float32, float16 or bfloat16 (torch).", panel=_LOADING, metavar="DTYPE"),
]
AttnOpt = Annotated[
    str | None,
    _option("--attn", help="sdpa, eager or flash_attention_2 (torch).", panel=_LOADING, metavar="KIND"),
]
OvConfigOpt = Annotated[
    list[str] | None,
    _repeatable(
        "--ov-config",
        help="An OpenVINO property, or one JSON object of them. Repeatable.",
        panel=_LOADING,
        metavar="KEY=VALUE",
    ),
]
ModelKwargOpt = Annotated[
    list[str] | None,
    _repeatable(
        "--model-kwarg", help="An argument of from_pretrained (torch). Repeatable.", panel=_LOADING, metavar="KEY=VALUE"
    ),
]
TaskOpt = Annotated[
    str | None, _option("--task", help="text-generation, the one there is.", panel=_LOADING, metavar="TASK")
]
RevisionOpt = Annotated[
    str | None,
    _option("--revision", help="A branch, tag or commit of a Hub model.", panel=_LOADING, metavar="REV"),
]
TrustOpt = Annotated[
    bool,
    _option("--trust-remote-code", help="Run Python code that comes with the model.", panel=_LOADING),
]
PickleOpt = Annotated[
    bool,
    _option("--allow-pickle", help="Load pickled weights, which can run code.", panel=_LOADING),
]
ExactOpt = Annotated[
    bool,
    _option(
        "--exact",
        help="Compute in float32, so that an answer depends on its prompt and options alone.",
        panel=_LOADING,
    ),
]

MaxTokensOpt = Annotated[
    int | None,
    _option(
        "--max-tokens",
        "--max-new-tokens",
        "-n",
        help="The most tokens to generate. Default: the model's own, else 256.",
        panel=_GENERATION,
        metavar="N",
        show_default=False,
    ),
]
TemperatureOpt = Annotated[
    float | None,
    _option("--temperature", "--temp", help="0 is greedy.", panel=_GENERATION, metavar="T"),
]
TopPOpt = Annotated[float | None, _option("--top-p", help="Nucleus sampling.", panel=_GENERATION, metavar="P")]
TopKOpt = Annotated[int | None, _option("--top-k", help="0 is off.", panel=_GENERATION, metavar="K")]
MinPOpt = Annotated[
    float | None,
    _option("--min-p", help="Least probability, relative to the best token.", panel=_GENERATION, metavar="P"),
]
RepetitionPenaltyOpt = Annotated[
    float | None, _option("--repetition-penalty", help="1 is off.", panel=_GENERATION, metavar="X")
]
SeedOpt = Annotated[
    int | None, _option("--seed", help="The same seed samples the same text.", panel=_GENERATION, metavar="N")
]
StopOpt = Annotated[
    list[str] | None,
    _repeatable("--stop", help=r"Text that ends the answer; \n works. Repeatable.", panel=_GENERATION, metavar="TEXT"),
]
TemplateOpt = Annotated[
    str | None,
    _option(
        "--template",
        "-t",
        help="chat, qa, raw, a text with {variables}, or @FILE. Default: chat where the model has one, else qa.",
        panel=_GENERATION,
        metavar="TEMPLATE",
        autocompletion=_complete_template,
        show_default=False,
    ),
]
VarOpt = Annotated[
    list[str] | None,
    _repeatable("--var", help="A template variable. Repeatable.", panel=_GENERATION, metavar="NAME=TEXT"),
]
SystemOpt = Annotated[
    str | None,
    _option("--system", "-s", help="The system message of a chat template.", panel=_GENERATION, metavar="TEXT"),
]

OutputFolderArg = Annotated[
    Path | None,
    typer.Argument(metavar="[OUTPUT]", help="The folder to make. Default: NAME-ov-FORMAT.", show_default=False),
]
WeightFormatOpt = Annotated[
    str | None,
    _option(
        "--weight-format",
        help=f"{', '.join(WEIGHT_FORMATS)}. Default: the model's own precision.",
        panel=_QUANTIZATION,
        metavar="FORMAT",
        autocompletion=_complete_weight_format,
        show_default=False,
    ),
]
GroupSizeOpt = Annotated[
    str,
    _option(
        "--group-size",
        help="Weights that share a scale (int4); auto: the largest of 128, 64, 32 that divides every layer; "
        "-1: a whole channel.",
        panel=_QUANTIZATION,
        metavar="N|auto",
    ),
]
SymOpt = Annotated[bool, _option("--sym", help="Symmetric, without zero points.", panel=_QUANTIZATION)]
RatioOpt = Annotated[
    float | None,
    _option(
        "--ratio",
        help="The share of the layers' weights in 4 bits; the rest is in 8.",
        panel=_QUANTIZATION,
        metavar="R",
        show_default=False,
    ),
]
AwqOpt = Annotated[bool, _option("--awq", help="Activation-aware scaling (int4).", panel=_QUANTIZATION)]
ScaleEstimationOpt = Annotated[
    bool,
    _option(
        "--scale-estimation",
        help="Scales that fit the activations (int4); the default where there is text to calibrate on.",
        panel=_QUANTIZATION,
    ),
]
GptqOpt = Annotated[bool, _option("--gptq", help="GPTQ (int4), which takes longest.", panel=_QUANTIZATION)]
CalibrationOpt = Annotated[
    Path | None,
    _option(
        "--calibration",
        help="Text, or JSONL with text or prompt, like the model's work to be. Default: a text of hfpipe's own.",
        panel=_QUANTIZATION,
        metavar="FILE",
        show_default=False,
    ),
]
DataFreeOpt = Annotated[
    bool, _option("--data-free", help="Without calibration: quick, and it loses more.", panel=_QUANTIZATION)
]
NoVerifyOpt = Annotated[
    bool, _option("--no-verify", help="Do not run the export, nor compare it with its source.", panel=_EXPORT)
]
DryRunOpt = Annotated[bool, _option("--dry-run", help="Print the plan, and export nothing.", panel=_EXPORT)]
ForceOpt = Annotated[
    bool, _option("--force", help="Replace an export that stands, and try what is bound to fail.", panel=_EXPORT)
]

InputArg = Annotated[
    str,
    typer.Argument(metavar="INPUT", help="A file of JSON lines, also gzipped; - is stdin.", show_default=False),
]
ModelOpt = Annotated[
    str,
    _option(
        "--model",
        "-m",
        help="A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file.",
        panel=_LOADING,
        metavar="MODEL",
        autocompletion=_complete_model,
    ),
]
BatchSizeOpt = Annotated[
    int | None,
    _option(
        "--batch-size",
        help="Requests in flight at once. Default: the backend's own.",
        panel=_LOADING,
        metavar="N",
        show_default=False,
    ),
]
ResultsOpt = Annotated[
    Path | None,
    _option(
        "--output",
        "-o",
        help="The file of results, which the same command again goes on with. Default: stdout.",
        panel=_OUTPUT,
        metavar="FILE",
        show_default=False,
    ),
]
FormatOpt = Annotated[
    str,
    _option("--format", help="hfpipe, or openai: the envelope of OpenAI's Batch API.", panel=_OUTPUT, metavar="FORMAT"),
]
RestartOpt = Annotated[bool, _option("--restart", help="Begin anew, and keep the old results aside.", panel=_OUTPUT)]
RetryErrorsOpt = Annotated[
    bool, _option("--retry-errors", help="Answer the failed records again, in their places.", panel=_OUTPUT)
]
MaxErrorsOpt = Annotated[
    int | None,
    _option("--max-errors", help="Stop once more have failed.", panel=_OUTPUT, metavar="N", show_default=False),
]

VerboseOpt = Annotated[bool, _option("--verbose", help="Let the libraries speak on stderr.", panel=_OUTPUT)]
QuietOpt = Annotated[bool, _option("--quiet", "-q", help="Nothing on stderr but errors.", panel=_OUTPUT)]


JsonOpt = Annotated[bool, _option("--json", help="One JSON object instead of text.", panel=_OUTPUT)]
NoStreamOpt = Annotated[bool, _option("--no-stream", help="Write the answer once it is complete.", panel=_OUTPUT)]
StatsOpt = Annotated[bool, _option("--stats", help="Times and counts, on stderr.", panel=_OUTPUT)]
ShowPromptOpt = Annotated[bool, _option("--show-prompt", help="What the model gets, on stderr.", panel=_OUTPUT)]


def load_options(given: Mapping[str, Any], *, batch_size: int | None) -> LoadOptions:
    """LoadOptions from a command's parameters, by name. Raises UsageError for what is malformed."""
    as_they_are = {name: given[name] for name in _names(LoadOptions) - {"batch_size", "ov_config", "model_kwargs"}}
    model_kwargs = _pairs("--model-kwarg", given["model_kwarg"])
    return LoadOptions(
        batch_size=batch_size,
        ov_config=parse_ov_config(given["ov_config"] or ()),
        model_kwargs={key: _json_or_text(value) for key, value in model_kwargs.items()},
        **as_they_are,
    )


def generation_options(given: Mapping[str, Any]) -> GenerationOptions:
    """GenerationOptions from a command's parameters, by name. Raises UsageError for a value out of range."""
    as_they_are = {name: given[name] for name in _names(GenerationOptions) - {"stop"}}
    return GenerationOptions(stop=tuple(unescaped(text) for text in given["stop"] or ()), **as_they_are)


def export_options(given: Mapping[str, Any], extra: Sequence[str]) -> ExportOptions:
    """ExportOptions from a command's parameters, by name; `extra` is what followed `--`."""
    as_they_are = {name: given[name] for name in _names(ExportOptions) - {"group_size", "extra"}}
    return ExportOptions(group_size=_group_size(given["group_size"]), extra=tuple(extra), **as_they_are)


def _group_size(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--group-size is a number or auto, not {text!r}.") from error


def _names(options: type[LoadOptions | GenerationOptions | ExportOptions]) -> set[str]:
    return {field.name for field in fields(options)}


def parse_ov_config(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, or JSON objects, joined."""
    config: dict[str, Any] = {}
    for text in given:
        if text.lstrip().startswith("{"):
            config.update(_json_object("--ov-config", text))
        else:
            config.update(_pairs("--ov-config", [text]))
    return config


def parse_variables(given: Sequence[str] | None) -> dict[str, str]:
    return _pairs("--var", given)


def unescaped(text: str) -> str:
    r"""`\n`, `\t`, `\\` and their like as one types them in a shell; other text, Unicode too, stays as it is."""
    return re.sub(r"\\(?:[abfnrtv\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})", _unescape, text)


def _unescape(match: re.Match[str]) -> str:
    return codecs.decode(match[0], "unicode_escape")


def _pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{option} takes KEY=VALUE, not {text!r}.", hint=_AS_IN.get(option))
        pairs[key.strip()] = value
    return pairs


def _json_object(option: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} is not valid JSON: {error}.", hint=_AS_IN.get(option)) from error
    assert isinstance(value, dict)  # it begins with a brace
    return value


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
