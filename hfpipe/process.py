"""Child processes: what they allocate is given back, and a crash or Ctrl-C in them cannot hurt the parent.

`run_child` calls `main(arguments, reporter)` of a module in a child and gives its result; `serve` is the child's side.
One line of JSON goes in; lines come out: calls of the reporter, and at last what `main` returned or a known error.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from hfpipe.errors import ConversionError, HFPipeError, is_disk_full
from hfpipe.types import Reporter, Silent, Unit

_KEPT_LINES = 60
_SHOWN_LINES = 3
# What a traceback consists of, but for the error at its end.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\s+|During handling of|The above exception")
_MEMORY_HINT = "Close other programs, or use a smaller model."
_TELEMETRY_OFF = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class ChildOutput(Exception):
    """The last lines that a failed child wrote: the cause of its error, for HFPIPE_DEBUG=1."""


def quiet_environment(*, verbose: bool) -> dict[str, str]:
    """The variables that keep the libraries from sending anything and, unless `verbose`, from talking; less those that
    the user has set."""
    wanted = _TELEMETRY_OFF if verbose else _TELEMETRY_OFF | _QUIET
    return {name: value for name, value in wanted.items() if name not in os.environ}


def silence_openvino_telemetry() -> None:
    """Keep openvino and nncf, imported after this, from sending anything, unless the user has opted in.

    openvino_telemetry has no variable that turns it off and sends at import by default; both libraries fall back to
    stubs of their own where it cannot be imported. `opt_in_out --opt_in` writes the consent file.
    """
    # Path.home() raises an error for a user without one.
    consent = Path(os.path.expanduser("~"), "intel", "openvino_telemetry")
    with suppress(OSError):
        if consent.read_text().strip() == "1":
            return
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def start_thread(run: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Call `run` in a thread that keeps no process from its end. Raises HFPipeError where the system starts no more."""
    thread = threading.Thread(target=run, args=arguments, name=f"hfpipe {run.__name__}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        message, hint = "The system starts no more threads.", "Raise the limit of processes (ulimit -u)."
        raise HFPipeError(message, hint=hint) from error
    return thread


def run_child(
    module: str,
    arguments: Mapping[str, Any],
    *,
    what: str,
    reporter: Reporter | None = None,
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call `main(arguments, reporter)` of `module` in a child process, and give what it returns.

    The arguments are values of JSON, paths in them absolute; so is the result. `what` begins the messages: "The
    conversion of x.gguf". With `verbose` each line that the child writes is a note. `environment` adds variables.
    Raises the HFPipeError that `main` raised, OSError for a full disk, and ConversionError for any other failure.
    """
    reporter = reporter or Silent()
    # Libraries raise an error for a user without a home folder, as containers have them.
    home = {"HOME": tempfile.gettempdir()} if os.path.expanduser("~") == "~" else {}
    quiet = quiet_environment(verbose=verbose)
    # The parent's own path: `-m` would put the working directory first, and import a stray torch.py from there.
    source = f"import sys; sys.path[:] = {sys.path!r}; from hfpipe.process import serve; serve({module!r})"
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    end: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **home, **quiet, **(environment or {})},
        # Out of reach of the terminal's Ctrl-C.
        start_new_session=True,
    ) as process:
        stdin, stdout, stderr = cast(tuple[IO[bytes], ...], (process.stdin, process.stdout, process.stderr))
        try:
            # Ctrl-C may come at any point: while this thread reads stderr, only the child's end lets that be closed.
            listener = start_thread(_listen, stderr, lines, reporter, verbose)
            with suppress(BrokenPipeError):
                stdin.write(json.dumps(dict(arguments)).encode() + b"\n")
                stdin.flush()
            for line in stdout:
                # A child that was killed may have written half of its last line.
                if line.endswith(b"\n"):
                    name, *values = json.loads(line)
                    if name in ("result", "error", "full"):
                        end = {name: values[0]}
                    else:
                        getattr(reporter, name)(*values)
            process.wait()
            listener.join(timeout=1)
        finally:
            # With its own children.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                stdin.close()
    if process.returncode == 0 and "result" in end:
        return end["result"]
    if "full" in end:
        raise OSError(errno.ENOSPC, end["full"])
    error = HFPipeError.from_data(end["error"]) if "error" in end else _death(process.returncode, what, lines)
    raise error from ChildOutput("\n".join(lines))


def _listen(stream: IO[bytes], lines: deque[str], reporter: Reporter, verbose: bool) -> None:
    for raw in stream:
        # Of a bar that was drawn over and over, its last state.
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
        if line:
            lines.append(line)
            if verbose:
                reporter.note(line)


def _death(code: int, what: str, lines: Sequence[str]) -> ConversionError:
    if code == -signal.SIGKILL:
        return ConversionError(f"{what} was killed, probably for lack of memory.", hint=_MEMORY_HINT)
    said = [line for line in lines if not _TRACEBACK.match(line)]
    if any("std::bad_alloc" in line or "allocate memory" in line for line in said):
        return ConversionError(f"{what} ran out of memory.", hint=_MEMORY_HINT)
    if code < 0:
        reason = f"it crashed with {signal.Signals(-code).name}"
    else:
        reason = said.pop() if said else f"exit status {code}"
    hint = "HFPIPE_DEBUG=1 (--verbose) shows more."
    return ConversionError(f"{what} failed: {reason}", details=said[-_SHOWN_LINES:], hint=hint)


class _Messages:
    """The child's reporter: each call is a line of JSON to the parent, a name and values."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        self.send("note", text)

    def progress(self, task: str, done: int, total: int | None, unit: Unit = "bytes", detail: str = "") -> None:
        self.send("progress", task, done, total, unit, detail)

    def stage(self, text: str | None) -> None:
        self.send("stage", text)

    def send(self, *message: Any) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


def serve(module: str) -> NoReturn:
    """Be the child: call the module's `main(arguments, reporter)`, tell the parent a known error, end the process.

    The module is imported after telemetry is off and stdout is redirected.
    """
    messages = _Messages(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    # What libraries print would break the lines of JSON.
    os.dup2(2, 1)
    silence_openvino_telemetry()
    # When memory ends, the kernel takes this process and leaves the parent, which says so.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    arguments = json.loads(sys.stdin.buffer.readline())
    code = 1
    try:
        start_thread(_die_with_parent)
        messages.send("result", importlib.import_module(module).main(arguments, messages))
        code = 0
    except HFPipeError as error:
        messages.send("error", error.as_data())
    except MemoryError:
        messages.send("error", ConversionError("This machine has too little memory.", hint=_MEMORY_HINT).as_data())
    except Exception as error:
        if not is_disk_full(error):
            raise
        messages.send("full", str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: tearing down torch takes time, and its threads have crashed while at it.
    os._exit(code)


def _die_with_parent() -> None:
    # stdin stays open after the line of arguments: its end says that the parent is gone.
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
