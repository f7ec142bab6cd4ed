"""The picture of the times between tokens, a row for each configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from hfpipe.bench.numbers import number
from hfpipe.bench.plots.data import Latency, latencies, notes
from hfpipe.bench.plots.frame import frame
from hfpipe.bench.plots.sheet import COLOURS, MARGIN, NORMAL, SMALL, WIDTH, Sheet, shorten
from hfpipe.bench.report import Report

_ROW = 46.0
_HEADS, _BELOW = 26.0, 34.0
_COLUMN = 46.0
_PERCENTILES = ((50, "o"), (95, "|"), (99, "x"))
# From this ratio of the longest time to the shortest on, the axis is logarithmic.
_WIDE = 6.0
_BINS = 90
_FEW = 20


def latency(report: Report, remarks: Sequence[str] = ()) -> Figure | None:
    """The distribution of the times between tokens, a row each. None where none were measured."""
    shown = latencies(report)
    if not shown:
        return None
    caption = (
        "Of all rounds, one answer at a time. Height: the square root of how often. "
        "tpot: time for each token after the first, median of the rounds."
    )
    missing = notes(report, drawn=(row.name for row in shown), missing="times between tokens")
    height = _BELOW + _ROW * len(shown) + _HEADS
    framed = frame(report, "time per token", [caption, *missing, *remarks], height)
    sheet, top = framed.sheet, framed.top - _HEADS
    axes = sheet.axes(MARGIN, framed.bottom + _BELOW, WIDTH - MARGIN - 4 * _COLUMN - 8, top)
    _scale_times(axes, shown)
    _draw_heads(sheet, top + 12)
    for place, row in enumerate(shown):
        base = _ROW * (len(shown) - place - 1) + 10
        _draw_latency(sheet, axes, row, top - _ROW * place, base, framed.key[row.backend])
    return sheet.figure


def _scale_times(axes: Axes, shown: Sequence[Latency]) -> None:
    least = min(float(row.times.min()) for row in shown)
    most = max(float(row.times.max()) for row in shown)
    tpots = [row.tpot for row in shown if row.tpot]
    if max(most, *tpots, 0) / min(least, *tpots, most) > _WIDE:
        axes.set_xscale("log")
        axes.set_xlim(min(least, *tpots, most) / 1.15, max(most, *tpots, 0) * 1.15)
        axes.xaxis.set_major_locator(FixedLocator(_round_times(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, max(most, *tpots, 0) * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    kind = "logarithmic, " if axes.get_xscale() == "log" else ""
    axes.set_xlabel(f"Time between tokens, ms  ({kind}left is better)", labelpad=4)
    axes.set_ylim(0, _ROW * len(shown))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")


def _round_times(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, that have room beside each other."""
    decades = np.log10(high / low)
    parts = (1, 2, 5) if decades < 3 else (1,)
    every = max(1, round(decades / 6))
    return [part * 10.0**power for power in range(-6, 13, every) for part in parts]


def _column(place: int) -> float:
    """The right end of a column of numbers."""
    return WIDTH - MARGIN - (3 - place) * _COLUMN


def _draw_heads(sheet: Sheet, y: float) -> None:
    """What the marks mean, above their numbers."""
    for place, (percent, _) in enumerate(_PERCENTILES):
        sheet.text(_column(place), y, f"p{percent}", bold=True, size=SMALL, ha="right")
    sheet.text(_column(3), y, "tpot", bold=True, size=SMALL, ha="right")
    for place, mark in enumerate([*(mark for _, mark in _PERCENTILES), "D"]):
        x = _column(place) - (26 if place < 3 else 28)
        _mark(sheet.figure.axes[0], x, y + 2.7, mark, COLOURS["grey"], transform=sheet.points, clip_on=False)
    sheet.text(MARGIN, y, "Every time between two tokens", size=SMALL, colour="grey")
    sheet.text(_column(0) - _COLUMN + 8, y, "ms", size=SMALL, colour="grey", ha="right")


def _mark(axes: Axes, x: float, y: float, mark: str, colour: str, **more: Any) -> None:
    if mark in "oD":
        more["edgecolor"] = colour
    face = COLOURS["paper"] if mark == "D" else colour
    size = {"o": 22, "|": 70, "x": 26, "D": 17}[mark]
    axes.scatter([x], [y], s=size, marker=mark, color=face, linewidth=1.3, zorder=5, **more)


def _draw_latency(sheet: Sheet, axes: Axes, row: Latency, top: float, base: float, colour: str) -> None:
    """The name over the row, how often each time is, the marks under it, and the numbers on the right."""
    room = _column(0) - 30 - MARGIN
    sheet.text(MARGIN, top - 12, shorten(row.name, room, NORMAL, bold=True), bold=True, label="name")
    _draw_density(axes, row.times, base, colour)
    axes.plot([row.times.min(), row.times.max()], [base, base], color=colour, lw=0.9, zorder=4)
    values = [row.percentile(percent) for percent, _ in _PERCENTILES]
    for place, (value, (_, mark)) in enumerate(zip(values, _PERCENTILES, strict=True)):
        _mark(axes, value, base, mark, colour)
        sheet.text(_column(place), top - _ROW + 9, number(value), ha="right")
    if row.tpot:
        _mark(axes, row.tpot, base, "D", colour)
        sheet.text(_column(3), top - _ROW + 9, number(row.tpot), ha="right")


def _draw_density(axes: Axes, times: np.ndarray, base: float, colour: str) -> None:
    """How often each time is; a few are drawn one by one."""
    if times.size < _FEW:
        axes.scatter(times, np.full(times.size, base + 6), s=10, color=colour, alpha=0.5, lw=0, zorder=3)
        return
    low, high = axes.get_xlim()
    edges = np.geomspace(low, high, _BINS) if axes.get_xscale() == "log" else np.linspace(low, high, _BINS)
    counts, _ = np.histogram(times, edges)
    # The root lets one slow token in a thousand be seen.
    heights = np.sqrt(counts / counts.max()) * 20
    axes.stairs(base + heights, edges, baseline=base, fill=True, color=colour, alpha=0.35, zorder=3, lw=0)
