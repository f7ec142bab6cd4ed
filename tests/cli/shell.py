"""hfpipe as a shell starts it: in a process of its own, on pipes, files and terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pytest

from tests.cli.forks import Forks

HFPIPE = [sys.executable, "-m", "hfpipe"]


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    out: bytes
    err: bytes

    @property
    def error(self) -> str:
        """The first line on stderr; that there is no more than a hint after it, and no traceback, is asserted."""
        text = self.err.decode()
        first, *rest = text.splitlines()
        assert first.startswith("Error: "), text
        assert len(rest) <= 1, text
        return first.removeprefix("Error: ")

    @property
    def hint(self) -> str:
        """The second line on stderr."""
        assert self.error
        return [*self.err.decode().splitlines(), ""][1]


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The tests' own environment, with `changes`; None removes a variable."""
    wanted = {**os.environ, "TERM": "xterm-256color", "COLUMNS": None, "LINES": None, **(changes or {})}
    return {name: value for name, value in wanted.items() if value is not None}


def run_hfpipe(
    *args: str | Path,
    input: bytes | str | None = None,
    env: Mapping[str, str | None] | None = None,
    tty: str = "",
    columns: int = 80,
    cwd: Path | None = None,
    command: Sequence[str] = HFPIPE,
    timeout: float = 120,
) -> Ended:
    """Run hfpipe, or `command`, to its end. `tty` names the streams that are terminals, each its own: "stdout stderr".

    Terminals pass bytes on as they are: \\n does not become \\r\\n. hfpipe is a fork of a process that has imported
    what it needs, but where `env` has a variable that may be read at an import.
    """
    if isinstance(input, str):
        input = input.encode()
    with Terminals(tty.split(), columns) as terminals:
        if command is HFPIPE and all(name.startswith("HFPIPE_") or name == "NO_COLOR" for name in env or {}):
            code, out, err = _forked(list(map(str, args)), input, environment(env), cwd, terminals, timeout)
        else:
            process = subprocess.Popen(
                [*command, *map(str, args)],
                stdin=terminals.streams.get("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE),
                stdout=terminals.streams.get("stdout", subprocess.PIPE),
                stderr=terminals.streams.get("stderr", subprocess.PIPE),
                env=environment(env),
                cwd=cwd,
            )
            try:
                out, err = process.communicate(input, timeout)
            finally:
                process.kill()
            code = process.returncode
        shown = terminals.shown()
    return Ended(code, shown.get("stdout", out), shown.get("stderr", err))


_forks = cache(Forks)


def _forked(
    words: list[str],
    input: bytes | None,
    env: Mapping[str, str],
    cwd: Path | None,
    terminals: Terminals,
    timeout: float,
) -> tuple[int, bytes, bytes]:
    written = {name: bytearray() for name in ("stdout", "stderr")}
    ends, threads = dict(terminals.streams), []
    if "stdin" not in ends:
        ends["stdin"], inside = os.pipe()
        threads.append(threading.Thread(target=_fill, args=(inside, input or b"")))
    for name in written.keys() - ends.keys():
        inside, ends[name] = os.pipe()
        threads.append(threading.Thread(target=_drain, args=(inside, written[name])))
    _forks().start(words, env, str(cwd or Path.cwd()), [ends[name] for name in ("stdin", "stdout", "stderr")])
    for name in ends.keys() - terminals.streams.keys():
        os.close(ends[name])
    for thread in threads:
        thread.start()
    code = _forks().code(timeout)
    for thread in threads:
        thread.join()
    return code, bytes(written["stdout"]), bytes(written["stderr"])


def _fill(inside: int, data: bytes) -> None:
    with suppress(BrokenPipeError), open(inside, "wb") as file:
        file.write(data)


_ON_A_DISK = """
mount -t tmpfs -o "$0" tmpfs "$1" || exit 99
folder=$1; shift
"$@"
code=$?
ls -A "$folder"
exit $code
"""


def on_a_disk_of(options: str, folder: Path) -> list[str]:
    """hfpipe with a file system of its own in `folder`, of `options` such as size=1m: after its end, what is in there
    is listed on stdout. Skips the test where nobody but root may mount one, and root neither."""
    for start in (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        with suppress(OSError):
            if subprocess.run([*start, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0:
                return [*start, "bash", "-c", _ON_A_DISK, options, str(folder), *HFPIPE]
    pytest.skip("no file system can be mounted here")


class Terminals:
    """One pseudo-terminal for each of `names`: `streams` holds the ends for a child, `shown()` what it wrote."""

    def __init__(self, names: list[str], columns: int = 80) -> None:
        self.streams: dict[str, int] = {}
        self._written: dict[str, bytearray] = {}
        self._readers: list[threading.Thread] = []
        for name in names:
            master, self.streams[name] = pty.openpty()
            _make_plain(self.streams[name], columns)
            self._written[name] = bytearray()
            reader = threading.Thread(target=_drain, args=(master, self._written[name]), daemon=True)
            reader.start()
            self._readers.append(reader)

    def shown(self) -> dict[str, bytes]:
        """What was written, once all who could write are gone."""
        self._close()
        for reader in self._readers:
            reader.join(timeout=5)
        return {name: bytes(written) for name, written in self._written.items()}

    def so_far(self, name: str) -> bytes:
        return bytes(self._written[name])

    def __enter__(self) -> Terminals:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        while self.streams:
            os.close(self.streams.popitem()[1])


def _make_plain(terminal: int, columns: int) -> None:
    settings = termios.tcgetattr(terminal)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def _drain(master: int, written: bytearray) -> None:
    """On Linux a read fails once the other end is closed everywhere."""
    try:
        while block := os.read(master, 65536):
            written += block
    except OSError:
        pass
    finally:
        os.close(master)


@contextmanager
def started(
    *args: str | Path, env: Mapping[str, str | None] | None = None, **streams: object
) -> Iterator[subprocess.Popen[bytes]]:
    """hfpipe at work, on pipes. Whatever happens, it and its children are gone afterwards."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    process = subprocess.Popen([*HFPIPE, *map(str, args)], env=environment(env), **pipes)
    try:
        yield process
    finally:
        family = _family(process)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        for member in family:
            member.kill()


def end_by(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> float:
    """Send the signal, wait for the end of the process and of all that it had started; the seconds that it took."""
    family = _family(process)
    start = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=30)
    taken = time.monotonic() - start
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
    return taken


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    """Until the condition holds: a fixed sleep would be too short on a busy machine and too long on an idle one."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
