"""The command line: the app, and `main`, the one place where errors end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

import hfpipe
from hfpipe.cli import output
from hfpipe.cli.run import run
from hfpipe.errors import HFPipeError

app = typer.Typer(
    name="hfpipe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.data(hfpipe.__version__)
        raise typer.Exit


@app.callback()
def hfpipe_(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run Hugging Face language models on your own machine."""


def main() -> NoReturn:
    """Run the command line, and end the process with one of the exit codes 0, 1, 2, 3 and 130."""
    try:
        app()
    except HFPipeError as error:
        if os.environ.get("HFPIPE_DEBUG"):
            raise
        output.error(error)
        _leave(error.exit_code)
    except output.OutputClosed:
        _leave(0)
    except KeyboardInterrupt:
        _leave(130)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """Exit without tearing down what other threads may still be using: an engine at work would hold or abort it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
