"""The app: its commands, their help, and Click's errors as ours."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import hfpipe
from hfpipe.cli import terminal
from hfpipe.cli.batch import batch
from hfpipe.cli.bench import bench
from hfpipe.cli.export import export
from hfpipe.cli.models import models
from hfpipe.cli.options import with_options
from hfpipe.cli.run import run
from hfpipe.errors import UsageError

# In the environment where a shell asks for completions, by the name that Typer gives it.
_COMPLETE = "_HFPIPE_COMPLETE"
# By this way, since a later Typer carries a Click of its own.
_Misuse: Any = typer.BadParameter.__base__
# Commands of other tools, and what does the same here.
_LISTS = "hfpipe models lists the models in the cache."
_INSTEAD = {
    "pull": "hfpipe run MODEL downloads a model that is not in the cache yet.",
    "list": _LISTS,
    "ls": _LISTS,
    "rm": "hfpipe models rm NAME removes a model from the cache.",
    "chat": "hfpipe run MODEL PROMPT answers one prompt.",
}


class Group(TyperGroup):
    """hfpipe itself: `hfpipe help COMMAND` is `hfpipe COMMAND --help`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, *rest = args
        if name == "help":
            if not rest:
                terminal.data(ctx.get_help())
                ctx.exit()
            args = [rest[0], "--help"]
        elif name in _INSTEAD:
            raise UsageError(f"hfpipe has no command {name!r}.", hint=_INSTEAD[name])
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose help is in sections: Typer has them only with Rich, which takes 0.1 s to import."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What follows `--` goes to the exporter: export has it as `context.obj`."""
        if self.name == "export" and "--" in args:
            here = args.index("--")
            ctx.obj, args = args[here + 1 :], args[:here]
        try:
            return list(super().parse_args(ctx, args))
        except _Misuse as error:
            # Click leaves it out where an option has no value.
            error.ctx = ctx
            raise


app = typer.Typer(
    name="hfpipe",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # Click suggests them too.
    suggest_commands=False,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _command in (run, batch, export, bench, models):
    app.command(cls=Command)(with_options(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.data(hfpipe.__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def hfpipe_(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run Hugging Face language models on your own machine."""
    if context.invoked_subcommand is None:
        terminal.tell(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def invoke() -> int:
    """Run the command that the process was started with. Raises HFPipeError; gives the exit code."""
    if os.environ.get(_COMPLETE):
        # Typer would have Rich break the descriptions into lines, each of which is an answer to fish.
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        return app(standalone_mode=False, prog_name="hfpipe") or 0
    except _Misuse as error:
        raise UsageError(error.format_message(), hint=_hint(error)) from error


def _hint(error: Any) -> str:
    """Where a wrong value came from if it was not typed, else the help of the command."""
    context, option = error.ctx, getattr(error, "param", None)
    if context and option and getattr(context.get_parameter_source(option.name), "name", "") == "ENVIRONMENT":
        return f"It comes from the environment: {option.envvar}={os.environ[option.envvar]}"
    is_run = context and context.info_name == "run"
    if is_run and "unexpected extra argument" in error.message:
        return "Quote a prompt of several words."
    begins = "; write -- before a prompt that begins with -" if is_run and hasattr(error, "possibilities") else ""
    return f"{context.command_path if context else 'hfpipe'} --help lists what can be given{begins}."
