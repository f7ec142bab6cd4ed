"""Results come as the engine ends them; they go out as the input has them."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Where lines go, one after the other: a Journal, or stdout. `count` lines are there."""

    @property
    def count(self) -> int: ...

    def append(self, line: bytes) -> None: ...


class Sequencer:
    """Lines in any order in, in input order out. What comes before its time waits here.

    A record may be admitted while there is `room`: at most `window` records from the oldest unfinished one on are
    under way or waiting, however long that one takes. For one thread at a time.
    """

    def __init__(self, sink: Sink, window: int) -> None:
        if window < 1:
            raise ValueError(f"a window of {window} admits nothing")
        self._sink = sink
        self._window = window
        self._waiting: dict[int, bytes] = {}

    @property
    def next(self) -> int:
        """The position of the oldest record without a result."""
        return self._sink.count

    @property
    def waiting(self) -> int:
        """How many results wait for one before them."""
        return len(self._waiting)

    def room(self, position: int) -> int:
        """How many records, that at `position` the first of them, may be admitted now."""
        return max(0, self.next + self._window - position)

    def put(self, position: int, line: bytes) -> None:
        """Take the result at `position` (from 0), and write what is ready. Raises what the sink raises; what could not
        be written then still waits."""
        if position < self.next or position in self._waiting:
            raise ValueError(f"there is a result at {position} already")
        if not self.room(position):
            raise ValueError(f"there was no room at {position}")
        self._waiting[position] = line
        self.flush()

    def flush(self) -> None:
        """Write what is ready."""
        # The count alone says what is written: an interrupt in between writes nothing twice.
        while (line := self._waiting.get(self.next)) is not None:
            position = self.next
            self._sink.append(line)
            self._waiting.pop(position, None)
