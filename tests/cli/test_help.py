"""Help, and the promise that each option can be set in the environment."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import hfpipe
from hfpipe.cli.app import app
from hfpipe.cli.options import parse_ov_config, unescaped, variable_of
from hfpipe.errors import UsageError
from tests.cli.shell import run_hfpipe

COMMANDS = typer.main.get_command(app).commands
OPTIONS = [
    pytest.param(command, option, id=f"{name}{option.opts[0]}")
    for name, command in COMMANDS.items()
    for option in command.params
    # To remove models is asked for each time.
    if option.param_type_name == "option" and option.opts != ["--prune"]
]
SAMPLES = {"integer": ("7", 7), "float": ("0.5", 0.5), "boolean": ("1", True), "text": ("a b", "a b")}
SAMPLES["path"] = ("a b", "a b")
WITH_DEFAULTS = {"model", "prompt", "input", "output", "remove", "backend", "format"}
SAMPLES |= {
    "_group_size": ("64", 64),
    "names": ("a,b", ("a", "b")),
    "sizes": ("1,4", (1, 4)),
    "_size": ("95MB", 95_000_000),
    "share": ("5%", 0.05),
    "integer range": ("7", 7),
}
WITH_DEFAULTS |= {"models", "prompt_tokens", "new_tokens", "batch", "repeats", "quality", "max_loss"}


def test_every_command_and_parameter_is_described():
    for command in COMMANDS.values():
        assert command.help
        for parameter in command.params:
            assert parameter.help, parameter.name


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_has_a_variable(command, option, monkeypatch):
    text, value = SAMPLES[option.type.name]
    if option.multiple:
        text, value = "a b\nc=d\n", ["a b", "c=d"]
    monkeypatch.setenv(variable_of(*option.opts), text)
    arguments = [one.name for one in command.params if one.param_type_name == "argument"]
    with command.make_context("hfpipe", arguments) as context:
        assert context.params[option.name] == value
        others = {name for name, given in context.params.items() if given not in (None, False, [])}
    assert others <= WITH_DEFAULTS | {option.name}


def test_what_is_typed_wins_over_the_variable(plain_model):
    env = {"HFPIPE_BACKEND": "echo", "HFPIPE_TEMPLATE": "raw", "HFPIPE_STOP": "two\nthr", "HFPIPE_JSON": "0"}
    assert run_hfpipe("run", plain_model, "one two three", env=env).out == b"one \n"
    assert run_hfpipe("run", plain_model, "one two three", "--stop", "thr", env=env).out == b"one two \n"
    ended = run_hfpipe("run", plain_model, "one", env={**env, "HFPIPE_JSON": "1"})
    assert json.loads(ended.out)["text"] == "one"


def test_a_variable_of_several_values_is_cut_at_newlines_alone(plain_model):
    """Not at the other line ends of Unicode, which str.splitlines knows."""
    env = {"HFPIPE_STOP": "x\u2028y\nx\x0by\x0c"}
    for text in ("a x y", "a x\u2028y b", "a x\x0by\x0c b"):
        ended = run_hfpipe("run", plain_model, text, "-b", "echo", "-t", "raw", env=env)
        assert ended.out.decode() == (text if text == "a x y" else "a ") + "\n"


def test_empty_variables_are_as_good_as_none(plain_model):
    env = {variable_of(*option.opts): "" for option in COMMANDS["run"].params if option.param_type_name == "option"}
    ended = run_hfpipe("run", plain_model, "hi", "-b", "echo", "-t", "raw", env=env)
    assert (ended.code, ended.out, ended.err) == (0, b"hi\n", b"")


def test_version():
    assert run_hfpipe("--version").out.decode() == f"{hfpipe.__version__}\n"
    script = subprocess.run([Path(sys.executable).with_name("hfpipe"), "--version"], capture_output=True)
    assert script.stdout.decode() == f"{hfpipe.__version__}\n"


def test_hfpipe_alone_shows_its_help():
    alone = run_hfpipe()
    assert (alone.code, alone.out) == (2, b"")
    assert alone.err == run_hfpipe("--help").out
    assert alone.err.startswith(b"Usage: hfpipe [OPTIONS] COMMAND [ARGS]...\n")


def test_help_as_a_command():
    assert run_hfpipe("help", "run").out == run_hfpipe("run", "--help").out
    assert run_hfpipe("help").out == run_hfpipe("--help").out


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_help_fits_the_terminal(columns):
    text = run_hfpipe("run", "-h", tty="stdout stderr", columns=columns).out.decode()
    assert "\x1b" not in text
    # Narrower than 50, Click leaves the breaking of lines to the terminal.
    assert max(map(len, text.splitlines())) <= max(columns, 50)
    words = " ".join(text.split())
    for section in ("Arguments:", "Loading:", "Generation:", "Output:", "Options:"):
        assert section in words
    assert "The prompt, after what is on stdin. - is stdin." in words


def test_an_error_on_a_narrow_terminal_is_not_cut():
    shown = run_hfpipe("run", "x", "hi", "--ov-config", "a", tty="stderr", columns=40).err.decode()
    assert shown.splitlines()[0] == "Error: --ov-config takes KEY=VALUE, not 'a'."


def test_names_in_help_are_those_of_the_registries():
    from hfpipe.backends import BACKENDS
    from hfpipe.text.templates import BUILT_IN

    words = set(re.findall(r"\w+", run_hfpipe("run", "--help").out.decode()))
    assert {*BACKENDS, *BUILT_IN} <= words


def test_ov_config_may_be_pairs_and_objects():
    given = ["A=1", ' {"B": 2, "A": "x"}', "C=d=e", " D = f"]
    assert parse_ov_config(given) == {"A": "x", "B": 2, "C": "d=e", "D": " f"}
    for wrong in ("A", "=1", '{"A"', "[1]"):
        with pytest.raises(UsageError):
            parse_ov_config([wrong])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"\\n", r"\n"),
        (r"a\tb", "a\tb"),
        (r"\x41é\u00e9", "Aéé"),
        (r"\d \q", r"\d \q"),
        ("\\", "\\"),
        ("你好\\n", "你好\n"),
        (r"\x4", r"\x4"),
        ("\n", "\n"),
    ],
)
def test_unescaped(typed, meant):
    assert unescaped(typed) == meant
