"""The axes of speed and loss, and the Pareto front on them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from hfpipe.bench.plots.data import Point, minus
from hfpipe.bench.plots.sheet import COLOURS

# In percent: the least that an axis spans, where it stops being linear, and the worst that is told apart.
_LEAST_SPAN = 0.6
_LINEAR_TO = 12.0
WORST = 1000.0
_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_STEPS = (1, 2, 2.5, 5, 10)


def drawn_loss(value: float) -> float:
    """Where a loss is drawn."""
    return min(value, WORST)


def scale(axes: Axes, shown: Sequence[Point], metric: str) -> None:
    """Both axes, with room around the points."""
    low = min(point.speed.low for point in shown)
    high = max(point.speed.high for point in shown)
    span = max(high - low, 0.1 * high)
    middle = (low + high) / 2
    axes.set_xlim(max(middle - 0.68 * span, -0.06 * high), middle + 0.68 * span)
    axes.set_xlabel(f"Decode speed ({metric}), tokens/s", labelpad=4)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value >= 0 else ""))
    _scale_loss(axes, shown)
    axes.set_ylabel("Perplexity above the reference's, %  (up is better)", labelpad=4)
    axes.yaxis.set_label_coords(-46 / (axes.bbox.width * 72 / axes.figure.dpi), 0.5)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: minus(f"{value:+,.4g}") if abs(value) > 1e-9 else "0")
    )
    axes.grid(True)
    axes.axhline(0, color=COLOURS["line"], linewidth=0.9, zorder=1)


def _scale_loss(axes: Axes, shown: Sequence[Point]) -> None:
    """Linear, or from 1 % on logarithmic where one choice is so bad that the others could not be told apart."""
    least = min(0.0, *(drawn_loss(point.loss - point.loss_error) for point in shown))
    most = max(0.0, *(drawn_loss(point.loss + point.loss_error) for point in shown))
    if most > _LINEAR_TO and sum(drawn_loss(point.loss) < most / 4 for point in shown) > 1:
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.yaxis.set_major_locator(FixedLocator(sorted({sign * tick for tick in _TICKS for sign in (-1, 1)})))
        axes.yaxis.set_minor_locator(FixedLocator([]))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    transform = axes.yaxis.get_transform()
    low, high = (float(transform.transform([value])[0]) for value in (least, most))
    span = max(high - low, _LEAST_SPAN)
    ends = [(low + high) / 2 + side * 0.68 * span for side in (1, -1)]
    axes.set_ylim(*(float(transform.inverted().transform([end])[0]) for end in ends))


def draw_front(axes: Axes, best: Sequence[Point]) -> None:
    """A stair through the best, with what is beaten on its lower left shaded."""
    stair = steps(axes, best)
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.fill([x for x, _ in stair] + [left], [y for _, y in stair] + [bottom], color=COLOURS["shade"], zorder=0)
    axes.plot(*zip(*stair, strict=True), color=COLOURS["green"], linewidth=1.6, zorder=2, solid_joinstyle="round")


def steps(axes: Axes, best: Sequence[Point]) -> list[tuple[float, float]]:
    """The corners of the stair, from the left end of the axes to the bottom."""
    corners: list[tuple[float, float]] = []
    x = axes.get_xlim()[0]
    for point in best:
        corners += [(x, drawn_loss(point.loss)), (point.speed.median, drawn_loss(point.loss))]
        x = point.speed.median
    return [*corners, (x, axes.get_ylim()[0])]
