"""Ctrl-C for commands that have something to put in order before they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwinding() -> Iterator[None]:
    """Have Ctrl-C, and SIGTERM, raise a KeyboardInterrupt, the first of them alone. For code that lets it pass: what
    others call back may swallow it."""

    raised = False

    def interrupt(*_: object) -> None:
        # To set another handler here would run this one again for a signal that came with the first.
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a background job of a script with SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    yield
