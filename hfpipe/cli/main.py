"""Where the command line begins, and the one place where errors and signals end it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from hfpipe.errors import HFPipeError

INTERRUPTED = 130
# Ctrl-C, kill, and a terminal that is closed. Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def main() -> NoReturn:
    """Run the command line, and end the process with one of the exit codes 0, 1, 2, 3 and 130."""
    for number in _SIGNALS:
        # A shell starts a background job of a script with SIGINT ignored, and nohup ignores SIGHUP.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, INTERRUPTS.handle)
    code = 1
    try:
        _open_standard_streams()
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    if code == INTERRUPTED:
        # Typer makes a KeyboardInterrupt that code.
        INTERRUPTS.end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # Without tearing down what other threads may still be using: an engine at work would hold or abort it.
    os._exit(code)


class _Interrupts:
    """What a signal does: it ends the process at once, with exit code 130.

    A KeyboardInterrupt would be lost in callbacks, as importlib and pydantic have them: they print what is raised in
    there, and continue. So only code that has something to clean up asks for one, by `unwinding`, and only the first
    signal raises it: the second ends the process.
    """

    def __init__(self) -> None:
        # The line that a process says that a signal ends.
        self.farewell: Callable[[], str] = str
        self._unwinds = self._raised = self._ending = False

    @contextmanager
    def unwinding(self) -> Iterator[None]:
        """Have the first signal raise a KeyboardInterrupt: for code that cleans up."""
        self._unwinds = True
        try:
            yield
        finally:
            self._unwinds = False

    def handle(self, *_: object) -> None:
        if self._unwinds and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
        self.end()

    def end(self) -> NoReturn:
        if self._ending:
            os._exit(INTERRUPTED)
        self._ending = True
        # Half of a write to stderr may be under way.
        with suppress(Exception):
            sys.modules["hfpipe.cli.terminal"].clear()
        with suppress(OSError):
            last = self.farewell()
            # The prompt of the shell, or this line, is not to follow ^C or half an answer.
            newline = "\n" if os.isatty(2) else ""
            os.write(2, f"{newline}{last}{last and chr(10)}".encode(errors="replace"))
        os._exit(INTERRUPTED)


INTERRUPTS = _Interrupts()
unwinding = INTERRUPTS.unwinding


def _run() -> int:
    # Late, so that a signal while they are imported is handled.
    from hfpipe.cli import terminal
    from hfpipe.cli.app import invoke

    try:
        return invoke()
    except terminal.OutputClosed:
        return 0
    except (HFPipeError, OSError) as error:
        if os.environ.get("HFPIPE_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, OSError):
            error = HFPipeError(f"{error}.", hint="HFPIPE_DEBUG=1 shows where.")
        terminal.clear()
        terminal.error(error)
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _open_standard_streams() -> None:
    """Where the shell closed one (`<&-`), a file opened later would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # stdout is not to be written: an answer that nobody can have is an error.
            mode = "w" if name == "stderr" else "r"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open)
            with suppress(OSError):
                os.dup2(getattr(sys, name).fileno(), number)
