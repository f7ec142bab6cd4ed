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
# By metric: its heading, and its mark.
_MARKS = {"itl_ms_p50": ("p50", "o"), "itl_ms_p95": ("p95", "|"), "itl_ms_p99": ("p99", "x"), "tpot_ms": ("tpot", "D")}
# From this ratio of the longest time to the shortest on, the axis is logarithmic.
_WIDE = 6.0
_BINS = 90
_FEW = 20


def latency(report: Report, remarks: Sequence[str] = ()) -> Figure | None:
    """The times between tokens, a row each: how often each is, and the medians of the tables. None without any."""
    shown = latencies(report, list(_MARKS))
    if not shown:
        return None
    caption = (
        "One answer at a time. Shapes: the times of all rounds; height: the square root of how often. "
        "Marks and numbers: those of each round, and of these the median, as in the tables. "
        "tpot: time for each token after the first."
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
    medians = [value for row in shown for value in row.medians.values() if value > 0]
    least = min([*medians, *(row.times.min() for row in shown)])
    most = max([*medians, *(row.times.max() for row in shown)])
    if most / least > _WIDE:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.15, most * 1.15)
        axes.xaxis.set_major_locator(FixedLocator(_round_times(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, most * 1.05)
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
    for place, (head, mark) in enumerate(_MARKS.values()):
        sheet.text(_column(place), y, head, bold=True, size=SMALL, ha="right")
        x = _column(place) - (28 if head == "tpot" else 26)
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
    for place, (metric, (_, mark)) in enumerate(_MARKS.items()):
        if metric in row.medians:
            _mark(axes, row.medians[metric], base, mark, colour)
            sheet.text(_column(place), top - _ROW + 9, number(row.medians[metric]), ha="right")


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
