"""The picture of a choice: decode speed against loss of quality, a bubble as large as what it takes on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfpipe.bench.numbers import number
from hfpipe.bench.plots.axes import WORST, draw_front, drawn_loss, scale, steps
from hfpipe.bench.plots.data import Point, front, megabytes, notes, percent, points
from hfpipe.bench.plots.frame import frame
from hfpipe.bench.plots.labels import LEADER, Box, Bubble, place
from hfpipe.bench.plots.sheet import COLOURS, MARGIN, NORMAL, SMALL, WIDTH, Sheet, shorten, text_width, wrap
from hfpipe.bench.report import Report, several_sources

_HEIGHT = 350.0
_LEFT, _BELOW = 62.0, 36.0
_GROWTH = (1.0, 1.2, 1.45, 1.75, 2.1, 2.6, 3.2, 4.0)
# How large the picture is, and whether labels may cover bubbles and leaders: a little larger is better than that.
_TRIES = (*((growth, False) for growth in _GROWTH[:3]), *((growth, True) for growth in _GROWTH))
_NAME_WIDTH = 170.0
_LINE = 10.5
_FRONT = "Pareto front"

_Circle = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Label:
    """Names in bold, then numbers."""

    names: Sequence[str]
    numbers: str

    @property
    def width(self) -> float:
        widths = [text_width(name, NORMAL, bold=True) for name in self.names]
        return max(*widths, text_width(self.numbers, SMALL)) + 1

    @property
    def height(self) -> float:
        return (len(self.names) + bool(self.numbers)) * _LINE


def tradeoff(report: Report, remarks: Sequence[str] = ()) -> Figure | None:
    """None where nothing has a quality, or where the labels of very many do not fit. `remarks` are further notes."""
    shown = points(report)
    for growth, may_cover in _TRIES if shown else ():
        if figure := _drawn(report, shown, remarks, growth, may_cover):
            return figure
    return None


def _drawn(
    report: Report, shown: Sequence[Point], remarks: Sequence[str], growth: float, may_cover: bool
) -> Figure | None:
    width, height = WIDTH * growth, _BELOW + _HEIGHT * growth
    captions = [*_captions(report, shown), *remarks]
    framed = frame(report, "decode speed against loss of quality", captions, height, width=width)
    sheet = framed.sheet
    axes = sheet.axes(_LEFT, framed.bottom + _BELOW, width - MARGIN, framed.top - 4)
    scale(axes, shown, report.workload.decode)
    draw_front(axes, front(shown))
    circles = _draw_points(sheet, axes, shown, framed.key)
    fits = _draw_labels(sheet, axes, shown, circles, may_cover)
    return sheet.figure if fits else None


def _captions(report: Report, shown: Sequence[Point]) -> list[str]:
    bars = "the range of the samples"
    if any(point.loss_error for point in shown):
        bars += ", and ± 1 standard error of the perplexity"
    size = "Area of a bubble: size on disk. " if any(point.size_mb for point in shown) else ""
    caption = f"{size}Bars: {bars}. Shaded: another choice is at least as fast and loses no more."
    if any(point.loss > WORST for point in shown):
        caption += f" A loss above {WORST:,.0f} % is drawn there."
    if several_sources(row.quality for row in report.configurations):
        caption += " Losses are against each model's own source: they do not tell which model is the better one."
    return [caption, *notes(report, drawn=(point.name for point in shown), missing="speed or quality")]


def _radii(shown: Sequence[Point]) -> list[float]:
    """In points. The areas are in proportion to the sizes, down to the least circle that is seen."""
    largest = max((point.size_mb or 0.0 for point in shown), default=0.0)
    radius = max(10.0, 24.0 - 1.2 * max(len(shown) - 4, 0))
    return [max(2.5, radius * math.sqrt(point.size_mb / largest)) if point.size_mb else 3.0 for point in shown]


def _draw_points(sheet: Sheet, axes: Axes, shown: Sequence[Point], key: dict[str, str]) -> list[_Circle]:
    """Bubbles, the large ones below. Returns x, y and radius of each in points."""
    circles = []
    for point, radius in zip(shown, _radii(shown), strict=True):
        colour, loss, speed = key[point.backend], drawn_loss(point.loss), point.speed
        face = colour if point.size_mb else "none"
        order = 4 - radius / 100
        axes.scatter(
            speed.median, loss, s=(2 * radius) ** 2, color=face, alpha=0.3 if point.size_mb else 1, zorder=order, lw=0
        )
        axes.scatter(speed.median, loss, s=(2 * radius) ** 2, facecolor="none", edgecolor=colour, lw=1, zorder=order)
        axes.plot([speed.low, speed.high], [loss, loss], color=colour, lw=1.1, zorder=5, solid_capstyle="butt")
        ends = [loss - point.loss_error, loss + point.loss_error]
        axes.plot([speed.median] * 2, ends, color=colour, lw=1.1, zorder=5, solid_capstyle="butt")
        axes.scatter(speed.median, loss, s=9, color=colour, zorder=6, lw=0)
        circles.append((*_at(sheet, axes, speed.median, loss), radius))
    return circles


def _at(sheet: Sheet, axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Of data, in points."""
    across, up = axes.transData.transform((x, y)) * 72 / sheet.figure.dpi
    return float(across), float(up)


def _label(point: Point) -> _Label:
    names = wrap(point.name, _NAME_WIDTH, NORMAL, bold=True)
    room = 2 * _NAME_WIDTH
    while len(names) > 2:
        room *= 0.95
        names = wrap(shorten(point.name, room, NORMAL, bold=True), _NAME_WIDTH, NORMAL, bold=True)
    numbers = [f"{number(point.speed.median)} tok/s", percent(point.loss)]
    numbers[1:1] = [megabytes(point.size_mb)] if point.size_mb else []
    return _Label(names, " · ".join(numbers))


def _draw_labels(sheet: Sheet, axes: Axes, shown: Sequence[Point], circles: Sequence[_Circle], may_cover: bool) -> bool:
    """False where there is no place for one."""
    labels = [_label(point) for point in shown]
    bubbles = [
        Bubble(x, y, radius, label.width, label.height) for (x, y, radius), label in zip(circles, labels, strict=True)
    ]
    stair = [_at(sheet, axes, *step) for step in steps(axes, front(shown))]
    bubbles.append(Bubble(*_longest(stair), 0.0, text_width(_FRONT, SMALL), _LINE))
    box = axes.bbox.transformed(sheet.points.inverted())
    frame = Box(box.x0 + 3, box.y0 + 3, box.x1 - 1, box.y1 - 1)
    lines = _thin(sheet, axes, shown, stair)
    boxes = place(bubbles, frame, kept_free=[_draw_better(sheet, frame)], lines=lines, may_cover=may_cover)
    if boxes is None:
        return False
    for label, bubble, spot in zip(labels, bubbles, boxes, strict=False):
        _draw_label(sheet, label, bubble, spot, over=any(spot.meets(line) for line in lines))
    sheet.text(boxes[-1].left, boxes[-1].bottom + 2.5, _FRONT, size=SMALL, colour="green", label="front")
    return True


def _longest(stair: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The middle of the longest step."""
    (x, y), (to_x, to_y) = max(pairwise(stair), key=lambda pair: math.dist(*pair))
    return (x + to_x) / 2, (y + to_y) / 2


def _thin(sheet: Sheet, axes: Axes, shown: Sequence[Point], stair: Sequence[tuple[float, float]]) -> list[Box]:
    """The boxes of the lines, which labels had better not cover."""
    left, right = axes.get_xlim()
    ends = [*pairwise(stair), (_at(sheet, axes, left, 0), _at(sheet, axes, right, 0))]
    for point in shown:
        speed, loss = point.speed, drawn_loss(point.loss)
        ends.append((_at(sheet, axes, speed.low, loss), _at(sheet, axes, speed.high, loss)))
        error = point.loss_error
        ends.append((_at(sheet, axes, speed.median, loss + error), _at(sheet, axes, speed.median, loss - error)))
    return [Box(min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)) for (x, y), (to_x, to_y) in ends]


def _draw_better(sheet: Sheet, frame: Box) -> Box:
    """An arrow to the upper right corner. Returns its box."""
    x, y, size = frame.right - 4, frame.top - 4, 22.0
    style = {"arrowstyle": "-|>,head_width=0.25,head_length=0.5", "color": COLOURS["line"], "lw": 1.4}
    axes = sheet.figure.axes[0]
    axes.annotate(
        "", (x, y), (x - size, y - size), xycoords=sheet.points, textcoords=sheet.points, arrowprops=style, zorder=1
    )
    word = text_width("better", SMALL)
    sheet.text(x - size - 3, y - size - 1, "better", size=SMALL, colour="grey", ha="right", label="better")
    return Box(x - size - word - 5, y - size - 4, frame.right, frame.top)


def _draw_label(sheet: Sheet, label: _Label, bubble: Bubble, spot: Box, *, over: bool) -> None:
    """`over` says that something is under it."""
    if bubble.gap(spot) > LEADER:
        _draw_leader(sheet, bubble, spot)
    across = "left" if spot.right > bubble.x else "right"
    x = spot.left if across == "left" else spot.right
    ground = {"facecolor": COLOURS["paper"], "alpha": 0.8, "pad": 0.5, "linewidth": 0} if over else None
    y = spot.top - _LINE + 2.5
    for name in label.names:
        sheet.text(x, y, name, bold=True, ha=across, label="name", bbox=ground)
        y -= _LINE
    sheet.text(x, y, label.numbers, size=SMALL, colour="grey", ha=across, label="numbers", bbox=ground)


def _draw_leader(sheet: Sheet, bubble: Bubble, spot: Box) -> None:
    x, y = spot.nearest(bubble.x, bubble.y)
    far = math.hypot(x - bubble.x, y - bubble.y)
    part = bubble.radius / far
    start = (bubble.x + part * (x - bubble.x), bubble.y + part * (y - bubble.y))
    style = {"arrowstyle": "-", "color": COLOURS["line"], "lw": 0.7, "shrinkA": 0, "shrinkB": 1}
    axes = sheet.figure.axes[0]
    axes.annotate("", (x, y), start, xycoords=sheet.points, textcoords=sheet.points, arrowprops=style, zorder=3)
