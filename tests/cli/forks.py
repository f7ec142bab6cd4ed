"""A process that has imported what most commands import, and forks a hfpipe for every request: a tenth of its start.

What a request passes are file descriptors: of its JSON, and of the new process's stdin, stdout and stderr.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

_MODULES = (
    "hfpipe.cli.app",
    "hfpipe.batch",
    "hfpipe.langchain",
    "hfpipe.backends.echo",
    "hfpipe.text.chat",
    "jinja2.sandbox",
    "langchain_core.tracers.langchain",
    "numpy",
)
_ROOT = Path(__file__).parents[2]


class Forks:
    """The side of the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.cli.forks", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_ROOT)
        theirs.close()

    def start(self, words: Sequence[str], env: Mapping[str, str], cwd: str, streams: Sequence[int]) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps([words, env, cwd]).encode())
            file.seek(0)
            socket.send_fds(self._socket, [b"1"], [file.fileno(), *streams])

    def code(self, timeout: float) -> int:
        """The exit code of what was started last. Where it takes too long, nothing can be started any more."""
        self._socket.settimeout(timeout)
        try:
            return json.loads(self._socket.recv(100))
        except BaseException:
            self._process.kill()
            raise


def main(connection: socket.socket) -> None:
    for module in _MODULES:
        import_module(module)
    while files := socket.recv_fds(connection, 1, 4)[1]:
        if (process := os.fork()) == 0:
            _become_hfpipe(files)
        for file in files:
            os.close(file)
        connection.sendall(json.dumps(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())


def _become_hfpipe(files: Sequence[int]) -> None:
    with os.fdopen(os.dup(files[0])) as file:
        words, environment, folder = json.load(file)
    for target, stream in enumerate(files[1:]):
        os.dup2(stream, target)
    os.closerange(3, max(files) + 1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["hfpipe", *words]
    runpy.run_module("hfpipe", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
