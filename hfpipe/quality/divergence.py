"""Where two answers part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of what two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
