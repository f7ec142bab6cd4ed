"""The command line. `main` is the one place where errors end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from hfpipe.errors import HFPipeError


def main() -> NoReturn:
    """Run the command line, and end the process with one of the exit codes 0, 1, 2, 3 and 130."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupted)
    code = 1
    try:
        _open_standard_streams()
        code = _run()
    except KeyboardInterrupt:
        # Of a command that had something to clean up.
        _interrupted()
    except Exception:
        _print_traceback()
    _leave(code)


def _interrupted(*_: object) -> NoReturn:
    """Ctrl-C, or SIGTERM, ends the process at once. A KeyboardInterrupt would be lost in callbacks, as importlib and
    pydantic have them: they print what is raised in there, and go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Half of a write to stderr may be under way.
    with suppress(Exception):
        sys.modules["hfpipe.cli.output"].clear()
    with suppress(OSError):
        # The next prompt of the shell is not to follow ^C or half an answer.
        os.write(2, b"\n" if os.isatty(2) else b"")
    os._exit(130)


def _run() -> int:
    # Late, so that Ctrl-C while they are imported is seen to.
    from hfpipe.cli import output
    from hfpipe.cli.app import invoke

    try:
        return invoke()
    except output.OutputClosed:
        return 0
    except HFPipeError as error:
        return _report(error)
    except OSError as error:
        return _report(HFPipeError(f"{error}.", hint="HFPIPE_DEBUG=1 shows where."))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _report(error: HFPipeError) -> int:
    from hfpipe.cli import output

    if os.environ.get("HFPIPE_DEBUG"):
        _print_traceback()
    output.clear()
    output.error(error)
    return error.exit_code


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _open_standard_streams() -> None:
    """Where the shell closed one (`<&-`), a file opened later would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # stdout is not to be written: an answer that nobody can have is an error.
            mode = "w" if name == "stderr" else "r"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open)
            with suppress(OSError):
                os.dup2(getattr(sys, name).fileno(), number)


def _leave(code: int) -> NoReturn:
    """Exit without tearing down what other threads may still be using: an engine at work would hold or abort it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
