"""The options that commands share, as Annotated aliases, and how their words become values.

Typer reads a command's options from its signature, so run, batch and bench each list what they share: an alias a line.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated, Any

import typer

from hfpipe.backends import BACKENDS
from hfpipe.errors import UsageError
from hfpipe.text.templates import BUILT_IN
from hfpipe.types import GenerationOptions, LoadOptions

LOADING = "Loading"
GENERATION = "Generation"
OUTPUT = "Output"

_EXAMPLES = {
    "--ov-config": """As in --ov-config PERFORMANCE_HINT=LATENCY, or --ov-config '{"PERFORMANCE_HINT": "LATENCY"}'.""",
    "--model-kwarg": "As in --model-kwarg low_cpu_mem_usage=true.",
    "--var": """As in --var language=French, for a template with {language}.""",
}


def variable_of(*names: str) -> str:
    """The environment variable of an option: HFPIPE_ and its first long name."""
    long = next(name for name in names if name.startswith("--"))
    return "HFPIPE_" + long.removeprefix("--").replace("-", "_").upper()


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    """An option with its section of the help and its environment variable."""
    return typer.Option(
        *names, help=help, rich_help_panel=panel, **{"envvar": variable_of(*names), "show_envvar": False, **settings}
    )


def repeatable(*names: str, help: str, panel: str, metavar: str) -> Any:
    """An option that may be given several times. Its variable holds one value a line: Click would cut it at spaces."""
    variable = variable_of(*names)

    def given_or_set(value: list[str] | None) -> list[str] | None:
        # Not splitlines: a value may hold U+2028 and other line ends of Unicode.
        return value or [line for line in os.environ.get(variable, "").split("\n") if line] or None

    return option(*names, help=help, panel=panel, metavar=metavar, envvar=None, callback=given_or_set)


_loading, _loading_list = partial(option, panel=LOADING), partial(repeatable, panel=LOADING)
_generation, _generation_list = partial(option, panel=GENERATION), partial(repeatable, panel=GENERATION)
_output = partial(option, panel=OUTPUT)


def complete_model(incomplete: str) -> list[str]:
    from hfpipe.models.names import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


def _complete_backend(incomplete: str) -> list[str]:
    return [name for name in ("auto", *BACKENDS) if name.startswith(incomplete)]


def _complete_template(incomplete: str) -> list[str]:
    return [name for name in BUILT_IN if name.startswith(incomplete)]


ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
ModelOrPromptArg = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file. Not with -m.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
PromptArg = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="The prompt, after what is on stdin. - is stdin.", show_default=False),
]

BackendOpt = Annotated[
    str,
    _loading("--backend", "-b", help=f"auto, {', '.join(BACKENDS)}.", metavar="NAME", autocompletion=_complete_backend),
]
DeviceOpt = Annotated[
    str | None,
    _loading(
        "--device", "-d", help="-1 or cpu (default), 0, cuda:1, mps, xpu; for OpenVINO CPU, GPU, NPU.", metavar="DEVICE"
    ),
]
DeviceMapOpt = Annotated[
    str | None, _loading("--device-map", help="auto: Accelerate places the model. Not with --device.", metavar="MAP")
]
DtypeOpt = Annotated[
    str | None, _loading("--dtype", help="auto, float32, float16 or bfloat16 (torch).", metavar="DTYPE")
]
AttnOpt = Annotated[str | None, _loading("--attn", help="sdpa, eager or flash_attention_2 (torch).", metavar="KIND")]
OvConfigOpt = Annotated[
    list[str] | None,
    _loading_list(
        "--ov-config", help="An OpenVINO property, or one JSON object of them. Repeatable.", metavar="KEY=VALUE"
    ),
]
ModelKwargOpt = Annotated[
    list[str] | None,
    _loading_list("--model-kwarg", help="An argument of from_pretrained (torch). Repeatable.", metavar="KEY=VALUE"),
]
TaskOpt = Annotated[str | None, _loading("--task", help="Only text-generation is supported.", metavar="TASK")]
RevisionOpt = Annotated[
    str | None, _loading("--revision", help="A branch, tag or commit of a Hub model.", metavar="REV")
]
TrustOpt = Annotated[bool, _loading("--trust-remote-code", help="Run Python code that comes with the model.")]
PickleOpt = Annotated[bool, _loading("--allow-pickle", help="Load pickled weights, which can run code.")]
ExactOpt = Annotated[
    bool, _loading("--exact", help="Compute in float32, so that an answer depends only on its prompt and options.")
]

MaxTokensOpt = Annotated[
    int | None,
    _generation(
        "--max-tokens",
        "--max-new-tokens",
        "-n",
        help="The most tokens to generate. Default: the model's own, else 256.",
        metavar="N",
        show_default=False,
    ),
]
TemperatureOpt = Annotated[float | None, _generation("--temperature", "--temp", help="0 is greedy.", metavar="T")]
TopPOpt = Annotated[float | None, _generation("--top-p", help="Nucleus sampling.", metavar="P")]
TopKOpt = Annotated[int | None, _generation("--top-k", help="0 is off.", metavar="K")]
MinPOpt = Annotated[
    float | None, _generation("--min-p", help="Least probability, relative to the best token.", metavar="P")
]
RepetitionPenaltyOpt = Annotated[float | None, _generation("--repetition-penalty", help="1 is off.", metavar="X")]
SeedOpt = Annotated[int | None, _generation("--seed", help="The same seed samples the same text.", metavar="N")]
StopOpt = Annotated[
    list[str] | None,
    _generation_list("--stop", help=r"Text that ends the answer; \n works. Repeatable.", metavar="TEXT"),
]
TemplateOpt = Annotated[
    str | None,
    _generation(
        "--template",
        "-t",
        help="chat, qa, raw, a text with {variables}, or @FILE. Default: chat where the model has one, else qa.",
        metavar="TEMPLATE",
        autocompletion=_complete_template,
        show_default=False,
    ),
]
VarOpt = Annotated[
    list[str] | None,
    _generation_list("--var", help="A variable of the (chat) template. Repeatable.", metavar="NAME=TEXT"),
]
SystemOpt = Annotated[
    str | None, _generation("--system", "-s", help="The system message of a chat template.", metavar="TEXT")
]
ChatTemplateNameOpt = Annotated[
    str | None, _generation("--chat-template-name", help="Which of several chat templates of a model.", metavar="NAME")
]

ModelOpt = Annotated[
    str | None,
    _loading(
        "--model",
        "-m",
        help="A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file.",
        metavar="MODEL",
        autocompletion=complete_model,
    ),
]

VerboseOpt = Annotated[bool, _output("--verbose", help="Show what the libraries write on stderr.")]
QuietOpt = Annotated[bool, _output("--quiet", "-q", help="Write only errors on stderr.")]


JsonOpt = Annotated[bool, _output("--json", help="One JSON object instead of text.")]
NoStreamOpt = Annotated[bool, _output("--no-stream", help="Write the answer once it is complete.")]
StatsOpt = Annotated[bool, _output("--stats", help="Times and counts, on stderr.")]
ShowPromptOpt = Annotated[bool, _output("--show-prompt", help="Write the prompt as the model gets it on stderr.")]


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


def _names(options: type[LoadOptions | GenerationOptions]) -> set[str]:
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
            raise UsageError(f"{option} takes KEY=VALUE, not {text!r}.", hint=_EXAMPLES.get(option))
        pairs[key.strip()] = value
    return pairs


def _json_object(option: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} is not valid JSON: {error}.", hint=_EXAMPLES.get(option)) from error
    assert isinstance(value, dict)  # it begins with a brace
    return value


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
