"""The options of `hfpipe export` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from hfpipe.cli.options import option
from hfpipe.errors import UsageError
from hfpipe.export import WEIGHT_FORMATS, ExportOptions, Options

_QUANTIZATION = "Quantization"
_EXPORT = "Export"


def _complete_weight_format(incomplete: str) -> list[str]:
    return [name for name in WEIGHT_FORMATS if name.startswith(incomplete)]


OutputFolderArg = Annotated[
    Path | None,
    typer.Argument(metavar="[OUTPUT]", help="The folder to make. Default: NAME-ov-FORMAT.", show_default=False),
]
WeightFormatOpt = Annotated[
    str | None,
    option(
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
    option(
        "--group-size",
        help="Weights that share a scale (int4); auto: the largest of 128, 64, 32 that divides every layer; "
        "-1: a whole channel.",
        panel=_QUANTIZATION,
        metavar="N|auto",
    ),
]
SymOpt = Annotated[bool, option("--sym", help="Symmetric, without zero points.", panel=_QUANTIZATION)]
RatioOpt = Annotated[
    float | None,
    option(
        "--ratio",
        help="The share of the layers' weights in 4 bits; the rest is in 8.",
        panel=_QUANTIZATION,
        metavar="R",
        show_default=False,
    ),
]
AwqOpt = Annotated[bool, option("--awq", help="Activation-aware scaling (int4).", panel=_QUANTIZATION)]
ScaleEstimationOpt = Annotated[
    bool,
    option(
        "--scale-estimation",
        help="Scales that fit the activations (int4); the default where there is text to calibrate on.",
        panel=_QUANTIZATION,
    ),
]
GptqOpt = Annotated[bool, option("--gptq", help="GPTQ (int4); the slowest.", panel=_QUANTIZATION)]
CalibrationOpt = Annotated[
    Path | None,
    option(
        "--calibration",
        help="Text that is like the model's work, or JSONL with text or prompt. Default: hfpipe's own text.",
        panel=_QUANTIZATION,
        metavar="FILE",
        show_default=False,
    ),
]
DataFreeOpt = Annotated[
    bool, option("--data-free", help="No calibration: quick, but loses more quality.", panel=_QUANTIZATION)
]
NoVerifyOpt = Annotated[
    bool, option("--no-verify", help="Do not run the export or compare it with its source.", panel=_EXPORT)
]
DryRunOpt = Annotated[bool, option("--dry-run", help="Print the plan and export nothing.", panel=_EXPORT)]
ForceOpt = Annotated[
    bool, option("--force", help="Replace an export that hfpipe made, and try what will probably fail.", panel=_EXPORT)
]


def export_options(given: Mapping[str, Any], extra: Sequence[str]) -> Options:
    """The options of `hfpipe.export` from a command's parameters, by name; `extra` is what followed `--`. Raises
    UsageError."""
    named = {field.name: given[field.name] for field in fields(ExportOptions) if field.name in given}
    return cast(Options, {**named, "group_size": _group_size(given["group_size"]), "extra": tuple(extra)})


def _group_size(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--group-size must be a number or auto, not {text!r}.") from error
