"""Completions: the stored scripts are those of today, and the real shells complete with them."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from pexpect.fdpexpect import fdspawn

from tests import docs
from tests.cli.shell import run_hfpipe

FOLDER = docs.ROOT / "completions"
STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], "source completions/hfpipe.bash"),
    # As a user has it: found in $fpath, and read at the first TAB.
    "zsh": (["-f", "-i"], "fpath=($PWD/completions $fpath); autoload -U compinit; compinit -u -D"),
    "fish": (["--no-config", "-i"], "source completions/hfpipe.fish"),
}


@pytest.mark.parametrize(("shell", "name"), docs.COMPLETIONS.items())
def test_the_stored_scripts_are_fresh(shell, name):
    text = (FOLDER / name).read_text()
    assert text == docs.completion(shell), "python -m tests.docs"
    assert "/" not in re.sub(r"[#]!.*", "", text).replace("/dev/null", "")


@pytest.fixture(params=STARTS)
def completed(request, tmp_path):
    """A function: what a line has become after TAB, in an interactive shell."""
    if not shutil.which(request.param):
        pytest.skip(f"there is no {request.param} on this machine")
    arguments, setup = STARTS[request.param]
    shell, process = spawned([request.param, *arguments], shell_environment(tmp_path))
    shell.send(f"{setup}\recho R'EA'DY\r")
    shell.expect("READY\r?\n")

    def press_tab(line: str) -> str:
        # Then, at the beginning of the line, what prints it; only the output has WORDS without quotes.
        shell.send(f"{line}\t\x01echo W'O'RDS \r")
        shell.expect(r"WORDS ([^\r\n]*)\r?\n")
        return shell.match[1].strip()

    yield press_tab
    process.kill()
    process.wait()
    shell.close()


def spawned(command, env):
    """A shell on a terminal of its own. pexpect.spawn would fork, which is not safe in a process where engines have
    threads: its child has died before it was a shell."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=inside, stdout=inside, stderr=inside, env=env, cwd=FOLDER.parent
    )
    os.close(inside)
    return fdspawn(terminal, timeout=30, encoding="utf-8"), process


def shell_environment(home):
    """Where `hfpipe` is the one of this Python; a cache with one model stands for the user's."""
    (home / "hf" / "hub" / "models--openai-community--gpt2").mkdir(parents=True)
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
        "INPUTRC": "/dev/null",
    }


def test_a_real_shell(completed):
    assert completed("hfpipe ru") == "hfpipe run"
    assert completed("hfpipe run smo") == "hfpipe run smollm2"
    assert completed("hfpipe run opena") == "hfpipe run openai-community/gpt2"
    assert completed("hfpipe run smollm2 --back") == "hfpipe run smollm2 --backend"
    assert completed("hfpipe run smollm2 -b openv") == "hfpipe run smollm2 -b openvino"
    assert completed("hfpipe run smollm2 --template ch") == "hfpipe run smollm2 --template chat"
    # Where hfpipe knows nothing, files are offered.
    assert completed("hfpipe run pyproj") == "hfpipe run pyproject.toml"


def test_descriptions_are_one_line_each():
    env = {"_HFPIPE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ended = run_hfpipe(env={**env, "_TYPER_COMPLETE_ARGS": "hfpipe run x --"})
    lines = ended.out.decode().splitlines()
    assert len(lines) > 30
    assert all(re.match(r"--[a-z-]+\t\S", line) for line in lines)
