"""How an option is made: its help, its panel, its environment variable."""

from __future__ import annotations

import os
from typing import Any

import typer

LOADING = "Loading"
GENERATION = "Generation"
OUTPUT = "Output"


def variable_of(*names: str) -> str:
    """The environment variable of an option: HFPIPE_ and its first long name."""
    long = next(name for name in names if name.startswith("--"))
    return "HFPIPE_" + long.removeprefix("--").replace("-", "_").upper()


def option(*names: str, help: str, panel: str, **given: Any) -> Any:
    settings: dict[str, Any] = {"envvar": variable_of(*names), "show_envvar": False, **given}
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def repeatable(*names: str, help: str, panel: str, metavar: str) -> Any:
    """An option that may be given several times. Its variable holds one value a line: Click would cut it at spaces."""
    variable = variable_of(*names)

    def given_or_set(value: list[str] | None) -> list[str] | None:
        return value or os.environ.get(variable, "").splitlines() or None

    return option(*names, help=help, panel=panel, metavar=metavar, envvar=None, callback=given_or_set)
