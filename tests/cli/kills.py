"""A process that starts hfpipe and kills it, again and again: `python -m tests.cli.kills`.

What takes long to import is imported once, and most of the hfpipes are forks that run what `python -m hfpipe` runs; now
and then, and at the end, one is started as a shell does it. Two chains go on side by side, each with its own output.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from hfpipe import backends
from hfpipe.cli.startup import leave_out_unused, silence
from hfpipe.process import silence_openvino_telemetry
from tests.cli.shell import HFPIPE, wait_for

ROOT = Path(__file__).parents[2]
CHAINS = 2
# Of the kills, the share that comes at any moment of a start.
ANY_MOMENT = 0.1
_MODULES = ("hfpipe.cli.app", "hfpipe.batch", "hfpipe.generator", "hfpipe.langchain")


def killed_until_done(folder: Path, arguments: Sequence[object], whole: bytes, kills: int, engine: str) -> int:
    """Start hfpipe with `arguments` and an output in `folder`, and kill it, at least `kills` times in all; go on until
    the file is `whole`. How many of the kills left a part of it."""
    (folder / "whole").write_bytes(whole)
    asked = json.dumps([str(folder), [str(word) for word in arguments], kills, engine])
    command = [sys.executable, "-m", "tests.cli.kills", asked]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    seen = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(seen) == CHAINS
    assert sum(killed for killed, _ in seen) >= kills
    return sum(cut for _, cut in seen)


class Chain:
    """hfpipe, started and killed until it has been killed often enough and its output is there."""

    def __init__(self, output: Path, arguments: Sequence[str], whole: bytes, *, ends_as_a_fork: bool) -> None:
        self.output = output
        self.whole = whole
        self.kills = self.cut = 0
        self._arguments = [*arguments, "-q", "-o", str(output)]
        self._ends_as_a_fork = ends_as_a_fork
        self._chance = random.Random()

    def go(self, kills: int) -> None:
        while self.kills < kills:
            if self._chance.random() < ANY_MOMENT:
                process = self._shell_start()
                time.sleep(self._chance.random())
            else:
                before, process = self.size(), self._fork()
                wait_for(lambda before=before, process=process: self.size() > before or _has_ended(process))
                time.sleep(self._chance.random() * 0.01)
            os.kill(process, signal.SIGKILL)
            self._look(_code(process))
        if self.stands() != self.whole:
            code = _code(self._fork() if self._ends_as_a_fork else self._shell_start())
            assert (code, self.stands()) == (3, self.whole)

    def stands(self) -> bytes:
        return self.output.read_bytes() if self.output.exists() else b""

    def size(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def _fork(self) -> int:
        process = os.fork()
        if process == 0:
            sys.argv = ["hfpipe", *self._arguments]
            runpy.run_module("hfpipe", run_name="__main__", alter_sys=True)
        return process

    def _shell_start(self) -> int:
        return os.posix_spawn(HFPIPE[0], [*HFPIPE, *self._arguments], os.environ)

    def _look(self, code: int) -> None:
        stands = self.stands()
        assert self.whole.startswith(stands)
        self.cut += 0 < len(stands) < len(self.whole)
        if code == -signal.SIGKILL:
            self.kills += 1
        else:
            # It was quicker than the kill.
            assert (code, stands) == (3, self.whole)
        if stands == self.whole:
            self.output.unlink()


def _has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _code(process: int) -> int:
    """Wait for its end."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _chain(folder: Path, arguments: Sequence[str], whole: bytes, kills: int) -> None:
    folder.mkdir()
    # One start from a shell shows what others would.
    chain = Chain(folder / "out.jsonl", arguments, whole, ends_as_a_fork=folder.name != "0")
    chain.go(kills)
    assert [path.name for path in folder.iterdir() if path.suffix == ".tmp"] == []
    print(json.dumps([chain.kills, chain.cut]), flush=True)


def main(asked: str) -> int:
    folder, arguments, kills, engine = json.loads(asked)
    # As hfpipe does before it imports them.
    silence(verbose=False)
    silence_openvino_telemetry()
    leave_out_unused()
    for module in _MODULES:
        import_module(module)
    backends.engine(engine)
    if engine == "torch":
        # transformers imports it as it loads a model.
        import_module("transformers.models.llama.modeling_llama")
    whole = Path(folder, "whole").read_bytes()
    chains = []
    for number in range(CHAINS):
        if process := os.fork():
            chains.append(process)
        else:
            _chain(Path(folder, str(number)), arguments, whole, -(-kills // CHAINS))
            sys.exit()
    return max(map(abs, map(_code, chains)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
