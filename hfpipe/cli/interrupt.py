"""Ctrl-C for commands that have something to put in order before they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def unwinding() -> Iterator[None]:
    """Have Ctrl-C, and SIGTERM, raise a KeyboardInterrupt, the first of them alone. For code that lets it pass: what
    others call back may swallow it."""

    def interrupt(*_: object) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Of one that came with this one and is to be ignored Python would print a traceback.
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a background job of a script with SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    yield
