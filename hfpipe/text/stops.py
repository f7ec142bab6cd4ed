"""Stop strings over a stream of text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from hfpipe.errors import UsageError


class StopScanner:
    """Ends one answer before its first stop string, and holds back only text that may be the beginning of one.

    The text counts as read character by character, however it is cut: the stop that is complete first wins; of several
    that end together, the one that began first. Time is linear in the text, whatever the number of stops.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = _automaton(tuple(stops))
        self._state = 0
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop was found. After a stop nothing more is shown."""
        if self._stopped:
            return "", True
        text, start = self._held + text, len(self._held)
        for end, character in enumerate(text[start:], start + 1):
            self._state = self._stops.step(self._state, character)
            if length := self._stops.complete[self._state]:
                self._held, self._stopped = "", True
                return text[: end - length], True
        shown = len(text) - self._stops.depth[self._state]
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """The text still held back, at the end of an answer that no stop ended."""
        held, self._held, self._state = self._held, "", 0
        return held


class _Automaton:
    """Aho and Corasick's (1975): a state is the longest suffix of the text that begins some stop; 0 is the empty one.

    `depth` is its length by state, and `complete` the length of the longest stop that ends there, or 0.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.depth = [0]
        self.complete = [0]
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, character: str) -> int:
        """The state after one more character: constant time, averaged over a text."""
        while character not in self._next[state]:
            if state == 0:
                return 0
            state = self._shorter[state]
        return self._next[state][character]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = self._new(self.depth[state] + 1)
            state = self._next[state][character]
        self.complete[state] = len(stop)

    def _new(self, depth: int) -> int:
        self.depth.append(depth)
        self.complete.append(0)
        self._next.append({})
        self._shorter.append(0)
        return len(self.depth) - 1

    def _link(self) -> None:
        """Link every state to its longest proper suffix that is a state too, shorter states first."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self.complete[state] = self.complete[state] or self.complete[self._shorter[state]]
            for character, longer in self._next[state].items():
                self._shorter[longer] = self.step(self._shorter[state], character)
                queue.append(longer)


@lru_cache(maxsize=64)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    if "" in stops:
        raise UsageError("A stop string cannot be empty.")
    return _Automaton(stops)
