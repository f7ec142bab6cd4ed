"""The options that commands share, and how their words become values.

A command with a parameter `loading: LoadOptions` or `generation: GenerationOptions` gets the options of its fields: see
`with_options`.
"""

from __future__ import annotations

import codecs
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, get_type_hints

import typer

from hfpipe.backends import BACKENDS
from hfpipe.errors import UsageError
from hfpipe.text.templates import BUILT_IN, json_or_text
from hfpipe.types import TASKS, GenerationOptions, LoadOptions

LOADING = "Loading"
GENERATION = "Generation"
OUTPUT = "Output"
_MODEL = "A folder, a Hub id, pypi:PACKAGE, smollm2, or a GGUF file."


def variable_of(*names: str) -> str:
    """The environment variable of an option: HFPIPE_ and its first long name."""
    long = next(name for name in names if name.startswith("--"))
    return "HFPIPE_" + long.removeprefix("--").replace("-", "_").upper()


def option(words: str, help: str, *, panel: str, **settings: Any) -> Any:
    """An option by the words that its help shows, as in "--device -d DEVICE", in a section of the help and with its
    environment variable."""
    names = words.split()
    metavar = None if names[-1].startswith("-") else names.pop()
    settings = {"metavar": metavar, "envvar": variable_of(*names), "show_envvar": False, **settings}
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def repeatable(words: str, help: str, *, panel: str) -> Any:
    """An option that may be given several times. Its variable holds one value a line: Click would cut it at spaces."""
    variable = variable_of(*words.split())

    def given_or_set(value: list[str] | None) -> list[str]:
        # Not splitlines: a value may hold U+2028 and other line ends of Unicode.
        return value or [line for line in os.environ.get(variable, "").split("\n") if line]

    return option(words, help, panel=panel, envvar=None, callback=given_or_set)


def argument(metavar: str, help: str, **settings: Any) -> Any:
    return typer.Argument(metavar=metavar, help=help, show_default=False, **settings)


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion to one of `names`."""
    known = list(names)
    return lambda incomplete: [name for name in known if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    from hfpipe.models import known_names

    return one_of(known_names())(incomplete)


_loading, _loading_list = partial(option, panel=LOADING), partial(repeatable, panel=LOADING)
_generation, _generation_list = partial(option, panel=GENERATION), partial(repeatable, panel=GENERATION)
_output = partial(option, panel=OUTPUT)

ModelArg = Annotated[str, argument("MODEL", _MODEL, autocompletion=complete_model)]
ModelOrPromptArg = Annotated[str | None, argument("[MODEL]", f"{_MODEL} Not with -m.", autocompletion=complete_model)]
PromptArg = Annotated[str | None, argument("[PROMPT]", "The prompt, after what is on stdin. - is stdin.")]

ModelOpt = Annotated[str | None, _loading("--model -m MODEL", _MODEL, autocompletion=complete_model)]
_BACKENDS = ("auto", *BACKENDS)
BackendOpt = Annotated[str, _loading("--backend -b NAME", f"{', '.join(_BACKENDS)}.", autocompletion=one_of(_BACKENDS))]
_TEMPLATE = "chat, qa, raw, a text with {variables}, or @FILE. Default: chat where the model has one, else qa."
TemplateOpt = Annotated[str | None, _generation("--template -t TEMPLATE", _TEMPLATE, autocompletion=one_of(BUILT_IN))]
VarOpt = Annotated[
    list[str] | None, _generation_list("--var NAME=TEXT", "A variable of the (chat) template. Repeatable.")
]
SystemOpt = Annotated[str | None, _generation("--system -s TEXT", "The system message of a chat template.")]
ChatTemplateNameOpt = Annotated[
    str | None, _generation("--chat-template-name NAME", "Which of several chat templates of a model.")
]
VerboseOpt = Annotated[bool, _output("--verbose", "Show what the libraries write on stderr.")]
QuietOpt = Annotated[bool, _output("--quiet -q", "Write only errors on stderr.")]
JsonOpt = Annotated[bool, _output("--json", "One JSON object instead of text.")]
NoStreamOpt = Annotated[bool, _output("--no-stream", "Write the answer once it is complete.")]
StatsOpt = Annotated[bool, _output("--stats", "Times and counts, on stderr.")]
ShowPromptOpt = Annotated[bool, _output("--show-prompt", "Write the prompt as the model gets it on stderr.")]

# By the names of the fields, whose types and defaults the options have.
OF_LOADING: dict[str, Any] = {
    "device": _loading("--device -d DEVICE", "-1 or cpu (default), 0, cuda:1, mps, xpu; for OpenVINO CPU, GPU, NPU."),
    "device_map": _loading("--device-map MAP", "auto: Accelerate places the model. Not with --device."),
    "dtype": _loading("--dtype DTYPE", "auto, float32, float16 or bfloat16 (torch)."),
    "attn": _loading("--attn KIND", "sdpa, eager, flash_attention_2, ..., or a kernel of the Hub (torch)."),
    "ov_config": _loading_list(
        "--ov-config KEY=VALUE", "An OpenVINO property, or one JSON object of them. Repeatable."
    ),
    "model_kwargs": _loading_list("--model-kwarg KEY=VALUE", "An argument of from_pretrained (torch). Repeatable."),
    "task": _loading(
        "--task TASK", f"{', '.join(TASKS)}. Default: what the model is for.", autocompletion=one_of(TASKS)
    ),
    "source_lang": _loading(
        "--source-lang LANG", "The language to translate from, as in en (T5, mBART, M2M-100, NLLB)."
    ),
    "target_lang": _loading("--target-lang LANG", "The language to translate to."),
    "revision": _loading("--revision REV", "A branch, tag or commit of a Hub model."),
    "trust_remote_code": _loading("--trust-remote-code", "Run Python code that comes with the model."),
    "allow_pickle": _loading("--allow-pickle", "Load pickled weights, which can run code."),
    "exact": _loading("--exact", "Compute in float32, so that an answer depends only on its prompt and options."),
    "prompt_lookup": _loading(
        "--prompt-lookup N",
        "Propose N tokens at a time (5, say): faster where an answer repeats its prompt, else slower.",
    ),
    "endpoint": _loading(
        "--endpoint URL", "A server of the OpenAI protocol that runs MODEL. Default: the Hub's providers."
    ),
    "timeout": _loading("--timeout S", "The most seconds that an answer of an endpoint may take. Default: 600."),
}
_GENERATION: dict[str, Any] = {
    "max_tokens": _generation(
        "--max-tokens --max-new-tokens -n N", "The most tokens to generate. Default: the model's own, else 256."
    ),
    "temperature": _generation("--temperature --temp T", "0 is greedy."),
    "top_p": _generation("--top-p P", "Nucleus sampling."),
    "top_k": _generation("--top-k K", "0 is off."),
    "min_p": _generation("--min-p P", "Least probability, relative to the best token."),
    "repetition_penalty": _generation("--repetition-penalty X", "1 is off."),
    "seed": _generation("--seed N", "The same seed samples the same text."),
    "stop": _generation_list("--stop TEXT", r"Text that ends the answer; \n works. Repeatable."),
}
# A command may add those of its own.
OPTIONS: dict[Any, dict[str, Any]] = {LoadOptions: OF_LOADING, GenerationOptions: _GENERATION}


def parse_ov_config(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, or JSON objects, joined."""
    config: dict[str, Any] = {}
    try:
        for text in given:
            config |= json.loads(text) if text.lstrip().startswith("{") else pairs("--ov-config", [text])
    except ValueError as error:
        raise UsageError(f"--ov-config is not valid JSON: {error}.") from error
    return config


def unescaped(text: str) -> str:
    r"""`\n`, `\t`, `\\` and their like as one types them in a shell; other text, Unicode too, stays as it is."""
    escape = r"\\(?:[abfnrtv\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})"
    return re.sub(escape, lambda match: codecs.decode(match[0], "unicode_escape"), text)


def share(text: str) -> float:
    """2% or 0.02 as 0.02."""
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1
    if not 0 <= value <= (100 if percent else 1):
        raise typer.BadParameter(f"{text!r} is not a share, as in 2%.")
    return value


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """The names and values of an option that takes KEY=VALUE. Raises UsageError."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{option} takes KEY=VALUE, not {text!r}.")
        found[key.strip()] = value
    return found


_PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "ov_config": parse_ov_config,
    "model_kwargs": lambda given: {key: json_or_text(text) for key, text in pairs("--model-kwarg", given).items()},
    "stop": lambda given: tuple(map(unescaped, given)),
}


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` as Typer reads it, which knows only plain parameters: with those of `OPTIONS` in the place of a
    parameter of their type, which is made of them before it is called."""
    parameters: list[inspect.Parameter] = []
    made: dict[str, Any] = {}
    for one in inspect.signature(command, eval_str=True).parameters.values():
        kind = one.annotation
        if kind not in OPTIONS:
            parameters.append(one.replace(kind=one.KEYWORD_ONLY))
            continue
        made[one.name] = kind
        types, defaults = get_type_hints(kind), {field.name: field.default for field in fields(kind)}
        for name, words in OPTIONS[kind].items():
            typed: Any = list[str] | None if name in _PARSERS else types[name]
            annotation, default = Annotated[typed, words], None if name in _PARSERS else defaults[name]
            parameters.append(inspect.Parameter(name, one.KEYWORD_ONLY, default=default, annotation=annotation))

    def flat(**given: Any) -> Any:
        for name, kind in made.items():
            values = {field: given.pop(field) for field in OPTIONS[kind]}
            values |= {field: parse(values[field] or ()) for field, parse in _PARSERS.items() if field in values}
            given[name] = kind(**values)
        return command(**given)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat
