"""Ctrl-C for commands that have something to say or to put in order before they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from hfpipe.cli.output import clear


def ending(say: Callable[[], str]) -> None:
    """From now on have Ctrl-C, and SIGTERM, end the process at once, with a line. For code that leaves nothing to put
    in order, and calls what may swallow a KeyboardInterrupt: imports do (hfpipe.cli)."""

    def end() -> NoReturn:
        # Half of a write to stderr may be under way.
        with suppress(Exception):
            clear()
        with suppress(OSError):
            # The line is not to follow ^C.
            os.write(2, (b"\n" if os.isatty(2) else b"") + say().encode(errors="replace") + b"\n")
        os._exit(130)

    _handle(end)


@contextmanager
def unwinding() -> Iterator[None]:
    """Have Ctrl-C, and SIGTERM, raise a KeyboardInterrupt, the first of them alone. For code that lets it pass: what
    others call back may swallow it."""

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    _handle(interrupt)
    yield


def _handle(first: Callable[[], NoReturn]) -> None:
    """Call it for the first signal; what comes after that does nothing."""
    handled = False

    def handle(*_: object) -> None:
        # To set another handler here would run this one again for a signal that came with the first.
        nonlocal handled
        if not handled:
            handled = True
            first()

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a background job of a script with SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
