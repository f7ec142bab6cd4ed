"""The options of `hfpipe bench` alone, and how their words become values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from hfpipe.backends import BACKENDS
from hfpipe.cli.options import LOADING, OUTPUT, complete_model, option
from hfpipe.errors import UsageError
from hfpipe.export import WEIGHT_FORMATS

_T = TypeVar("_T")
_MEASURED = "What is measured"
_QUALITY = "Quality"

ModelsArg = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Folders, Hub ids, pypi:PACKAGE, smollm2, or GGUF files.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
BackendsOpt = Annotated[
    str | None,
    option(
        "--backend",
        "-b",
        help=f"Of {', '.join(BACKENDS)}, with commas between. Default: torch and openvino, where they fit.",
        panel=LOADING,
        metavar="NAMES",
        show_default=False,
    ),
]
WeightFormatsOpt = Annotated[
    str | None,
    option(
        "--weight-format",
        help=f"Of {', '.join(WEIGHT_FORMATS)}, for OpenVINO, with commas between; exported where they are not there "
        "yet. Default: the model's own precision, int8 and int4.",
        panel=LOADING,
        metavar="FORMATS",
        show_default=False,
    ),
]
PromptTokensOpt = Annotated[
    int | None,
    option(
        "--prompt-tokens",
        "-p",
        help="The length of the prompts, which are random. Default: 512.",
        panel=_MEASURED,
        metavar="N",
        show_default=False,
    ),
]
NewTokensOpt = Annotated[int, option("--new-tokens", "-g", help="The tokens generated.", panel=_MEASURED, metavar="N")]
BatchOpt = Annotated[
    str,
    option(
        "--batch",
        help="Numbers of answers at once, with commas between; one at a time is always measured.",
        panel=_MEASURED,
        metavar="SIZES",
    ),
]
RepeatsOpt = Annotated[
    int, option("--repeats", "-r", help="Rounds over all configurations.", panel=_MEASURED, metavar="N")
]
PromptsOpt = Annotated[
    Path | None,
    option(
        "--prompts",
        help="Measure the prompts of a file of JSON lines, as batch reads it, instead of random ones.",
        panel=_MEASURED,
        metavar="FILE",
        show_default=False,
    ),
]
QualityOpt = Annotated[
    bool,
    typer.Option(
        "--quality/--no-quality",
        help="Compare each with its source: perplexity, next tokens, answers.",
        rich_help_panel=_QUALITY,
        envvar="HFPIPE_QUALITY",
        show_envvar=False,
    ),
]
TextOpt = Annotated[
    Path | None,
    option(
        "--text",
        help="The text that quality is measured on. Default: one of hfpipe's own.",
        panel=_QUALITY,
        metavar="FILE",
        show_default=False,
    ),
]
ReferenceOpt = Annotated[
    str | None,
    option(
        "--reference",
        help="The source of an OpenVINO folder, where it is not among the MODELs.",
        panel=_QUALITY,
        metavar="MODEL",
        show_default=False,
    ),
]
MaxLossOpt = Annotated[
    str, option("--max-loss", help="The most perplexity that the advice may cost.", panel=_QUALITY, metavar="SHARE")
]
JsonFileOpt = Annotated[
    Path | None,
    option(
        "--json",
        help="Write all samples, the host and the versions.",
        panel=OUTPUT,
        metavar="FILE",
        # HFPIPE_JSON is the switch of other commands.
        envvar="HFPIPE_BENCH_JSON",
        show_default=False,
    ),
]
MarkdownOpt = Annotated[bool, option("--markdown", help="Print tables in Markdown.", panel=OUTPUT)]
CsvOpt = Annotated[bool, option("--csv", help="Print CSV, one line a configuration.", panel=OUTPUT)]
PlotOpt = Annotated[
    Path | None,
    option(
        "--plot",
        help="Draw speed against quality, and times of tokens: .png, .svg or .html.",
        panel=OUTPUT,
        metavar="FILE",
        show_default=False,
    ),
]
BaselineOpt = Annotated[
    Path | None,
    option(
        "--baseline",
        help="Compare with an earlier --json FILE.",
        panel=OUTPUT,
        metavar="FILE",
        show_default=False,
    ),
]
FailSlowerOpt = Annotated[
    str | None,
    option(
        "--fail-slower",
        help="Exit with 1 where something is slower than the baseline by more than that.",
        panel=OUTPUT,
        metavar="SHARE",
        show_default=False,
    ),
]


def listed(name: str, text: str | None, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    """The values of an option that takes several with commas between, each once. Raises UsageError for an empty one."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"{name} takes values with commas between, not {text!r}.")
    return tuple(dict.fromkeys(map(parse, words)))


def size(text: str) -> int:
    """How many answers at once."""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch takes numbers from 1 on, not {text!r}.", hint="As in --batch 1,8,32.")
    return int(text)


def share(name: str, text: str) -> float:
    """2% or 0.02 as 0.02. Raises UsageError for what is no such number."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{name} is a share, not {text!r}.", hint=f"As in {name} 2%.") from error
    if not 0 <= value < math.inf:
        raise UsageError(f"{name} must be a number from 0% on, not {text}.")
    if value > 1 and not number.endswith("%"):
        raise UsageError(f"{name} {text} is {value:.0%}.", hint=f"As in {name} {text}%.")
    return value
