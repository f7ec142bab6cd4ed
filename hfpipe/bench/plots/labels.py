"""Where the labels of bubbles stand: none over another, none outside the frame, each near its own bubble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# All in points, 72 to an inch.
_STEP, _COARSE_STEP = 3.0, 7.0
_APART = 3.0
_GAP = 3.0
LEADER = 9.0
# From here on less is tried, since time goes with the square of the number.
_MANY = 16

# What a label had better not do, each as the distance that it would rather go.
_COVERS_BUBBLE = 90.0
_COVERS_LINE = 26.0
_NEARER_TO_ANOTHER = 25.0
_LEADER_CROSSES = 60.0
# So much of a leader is taken to be within its bubble.
_WITHIN_BUBBLE = 0.1


@dataclass(frozen=True, slots=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to another."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def meets(self, other: Box) -> bool:
        across = self.left <= other.right and other.left <= self.right
        return across and self.bottom <= other.top and other.bottom <= self.top


@dataclass(frozen=True, slots=True)
class Bubble:
    """A circle, with the size of its label."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    def gap(self, box: Box) -> float:
        """How far a box is from the circle."""
        x, y = box.nearest(self.x, self.y)
        return max(float(np.hypot(x - self.x, y - self.y)) - self.radius, 0.0)


def place(
    bubbles: Sequence[Bubble],
    frame: Box,
    *,
    kept_free: Sequence[Box] = (),
    lines: Sequence[Box] = (),
    may_cover: bool = True,
) -> list[Box] | None:
    """A box for the label of each bubble, or None where they do not fit.

    Nothing stands over `kept_free`, and nothing over `lines` where there is another place; nor over a bubble or
    the leader of another label, unless it `may_cover` them. The labels are set one after the other, each where it costs
    least, in several orders; the cheapest of these is taken.
    """
    best: list[Box] | None = None
    least = np.inf
    for order in _orders(bubbles):
        boxes: dict[int, Box] = {}
        total = 0.0
        for index in order:
            box, cost = _cheapest(index, bubbles, frame, kept_free, boxes, lines, may_cover)
            total += cost
            if not total < least:
                break
            boxes[index] = box
        else:
            best, least = [boxes[index] for index in range(len(bubbles))], total
    return best


def _orders(bubbles: Sequence[Bubble]) -> list[list[int]]:
    """Those in a crowd first; from each side; and some by chance, the same ones each time."""
    every = list(range(len(bubbles)))
    away = [sorted(np.hypot(a.x - b.x, a.y - b.y) for b in bubbles)[1:4] for a in bubbles]
    chance = np.random.default_rng(0)
    orders = [
        sorted(every, key=lambda one: sum(away[one])),
        sorted(every, key=lambda one: bubbles[one].x),
        sorted(every, key=lambda one: -bubbles[one].x),
        sorted(every, key=lambda one: -bubbles[one].y),
        *(chance.permutation(len(bubbles)).tolist() for _ in range(4)),
    ]
    return orders if len(bubbles) <= _MANY else orders[:1]


def _cheapest(
    index: int,
    bubbles: Sequence[Bubble],
    frame: Box,
    kept_free: Sequence[Box],
    placed: Mapping[int, Box],
    lines: Sequence[Box],
    may_cover: bool,
) -> tuple[Box, float]:
    bubble = bubbles[index]
    x, y = _corners(bubble, frame, _STEP if len(bubbles) <= _MANY else _COARSE_STEP)
    if not x.size:
        return frame, np.inf
    covers, crosses = (_COVERS_BUBBLE, _LEADER_CROSSES) if may_cover else (np.inf, np.inf)
    own = _distance(x, y, bubble, bubble)
    cost = np.maximum(own - _GAP, 0) + np.where(own < _GAP, covers + _GAP - own, 0)
    # Of places that are as near: on the right, at the same height.
    cost += 0.03 * np.abs(y + bubble.height / 2 - bubble.y) + 0.02 * np.maximum(bubble.x - x, 0)
    for other in bubbles:
        if other is not bubble:
            far = _distance(x, y, bubble, other)
            cost += np.where(far < 1, covers, 0) + np.where(far < own, _NEARER_TO_ANOTHER, 0)
    for line in lines:
        cost += np.where(_overlaps(x, y, bubble, line, 2.0), _COVERS_LINE, 0)
    for which, box in placed.items():
        over = _leader_meets(x, y, bubble, own, box) | _covers_leader(x, y, bubble, bubbles[which], box)
        cost += np.where(over, crosses, 0)
    for box in (*placed.values(), *kept_free):
        cost += np.where(_overlaps(x, y, bubble, box, _APART), np.inf, 0)
    at = int(np.argmin(cost))
    left, bottom = float(x[at]), float(y[at])
    return Box(left, bottom, left + bubble.width, bottom + bubble.height), float(cost[at])


def _corners(bubble: Bubble, frame: Box, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower left corners that a label can have: a grid that has the places right beside the bubble in it."""
    x = np.arange(frame.left, frame.right - bubble.width, step)
    y = np.arange(frame.bottom, frame.top - bubble.height, step)
    beside = bubble.radius + _GAP + 0.5
    x = np.append(x, [bubble.x + beside, bubble.x - beside - bubble.width, bubble.x - bubble.width / 2])
    y = np.append(y, [bubble.y + beside, bubble.y - beside - bubble.height, bubble.y - bubble.height / 2])
    x = x[(x >= frame.left) & (x <= frame.right - bubble.width)]
    y = y[(y >= frame.bottom) & (y <= frame.top - bubble.height)]
    columns, rows = np.meshgrid(x, y)
    return columns.ravel(), rows.ravel()


def _distance(x: np.ndarray, y: np.ndarray, label: Bubble, circle: Bubble) -> np.ndarray:
    """From labels at corners to the edge of a circle; negative inside."""
    across = np.maximum(np.maximum(x - circle.x, circle.x - (x + label.width)), 0)
    up = np.maximum(np.maximum(y - circle.y, circle.y - (y + label.height)), 0)
    return np.hypot(across, up) - circle.radius


def _overlaps(x: np.ndarray, y: np.ndarray, label: Bubble, box: Box, apart: float) -> np.ndarray:
    across = (x < box.right + apart) & (x + label.width > box.left - apart)
    return across & (y < box.top + apart) & (y + label.height > box.bottom - apart)


def _leader_meets(x: np.ndarray, y: np.ndarray, label: Bubble, own: np.ndarray, box: Box) -> np.ndarray:
    """Whether the line from the bubble to its label passes over a box."""
    end_x = np.clip(label.x, x, x + label.width)
    end_y = np.clip(label.y, y, y + label.height)
    across = _within(label.x, end_x, box.left, box.right)
    return _both(across, _within(label.y, end_y, box.bottom, box.top)) & (own > LEADER)


def _covers_leader(x: np.ndarray, y: np.ndarray, label: Bubble, other: Bubble, box: Box) -> np.ndarray:
    """Whether the label would stand on the line from another bubble to its box."""
    if other.gap(box) <= LEADER:
        return np.zeros(x.shape, dtype=bool)
    end_x, end_y = box.nearest(other.x, other.y)
    across = _within(other.x, np.asarray(end_x), x, x + label.width)
    return _both(across, _within(other.y, np.asarray(end_y), y, y + label.height))


_Ends = tuple[np.ndarray, np.ndarray]


def _within(start: float, end: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> _Ends:
    """From which part of a line to which its one coordinate lies between two others."""
    far = np.where(end == start, 1e-9, end - start)
    first, second = (low - start) / far, (high - start) / far
    return np.minimum(first, second), np.maximum(first, second)


def _both(across: _Ends, up: _Ends) -> np.ndarray:
    """Whether some part of a line, behind its beginning within the bubble, lies in a box."""
    enters = np.maximum(np.maximum(across[0], up[0]), _WITHIN_BUBBLE)
    meets: np.ndarray = enters < np.minimum(np.minimum(across[1], up[1]), 1)
    return meets
