"""The picture of speeds as bars, where no quality is known."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hfpipe.bench.numbers import number
from hfpipe.bench.plots.data import clean, notes, speed_metrics, spread
from hfpipe.bench.plots.frame import frame
from hfpipe.bench.plots.sheet import COLOURS, MARGIN, NORMAL, SMALL, WIDTH, Sheet, shorten
from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.statistics import Measured

_ROW = 30.0
# Of the title of a panel and its axis.
_AROUND = 52.0
_PER_LINE = 3


def speeds(report: Report, remarks: Sequence[str] = ()) -> Figure:
    """Bars of each speed, with the range of the samples."""
    metrics = speed_metrics(report)
    shown = [row for row in report.configurations if any(spread(row, metric) for metric in metrics)]
    names = [clean(row.name) for row in shown]
    caption = ["Bars: median of the rounds. Lines: range of the samples."] if shown else ["Nothing was measured."]
    missing = notes(report, drawn=names, missing="speed")
    rows = -(-len(metrics) // _PER_LINE)
    each = _ROW * len(shown) + _AROUND
    framed = frame(report, "speed", [*caption, *missing, *remarks], each * rows + 4)
    for place in range(rows):
        some = metrics[place * _PER_LINE : (place + 1) * _PER_LINE]
        _draw_line_of_panels(framed.sheet, shown, some, framed.top - 4 - each * place, framed.key)
    return framed.sheet.figure


def _draw_line_of_panels(
    sheet: Sheet, shown: Sequence[Configuration], metrics: Sequence[str], top: float, key: dict[str, str]
) -> None:
    width = (WIDTH - 2 * MARGIN + 18) / len(metrics)
    low = top - 16 - _ROW * len(shown)
    for place, metric in enumerate(metrics):
        left = MARGIN + place * width
        sheet.text(left, top - 8, _panel_title(metric), bold=True, colour="grey", size=SMALL + 0.5)
        axes = sheet.axes(left, low, left + width - 18, top - 16)
        _scale_bars(axes, [spread(row, metric) for row in shown], _ROW * len(shown))
        for line, row in enumerate(shown):
            _draw_bar(axes, spread(row, metric), _ROW * (len(shown) - line), key[row.backend])
    for line, row in enumerate(shown):
        name = shorten(clean(row.name), WIDTH - 2 * MARGIN, NORMAL, bold=True)
        sheet.text(MARGIN + 1, top - 16 - _ROW * line - 11, name, bold=True, label="name", zorder=6)


def _panel_title(metric: str) -> str:
    if metric.startswith("batch"):
        return f"{metric.removesuffix('_tps').removeprefix('batch')} answers at once"
    return f"Prompt ({metric})" if metric.startswith("pp") else f"Decode ({metric})"


def _scale_bars(axes: Axes, spreads: Sequence[Measured | None], height: float) -> None:
    most = max((one.high for one in spreads if one), default=1.0)
    axes.set_xlim(0, most * 1.32)
    axes.set_ylim(0, height)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_xlabel("tokens/s", labelpad=2, size=SMALL)


def _draw_bar(axes: Axes, one: Measured | None, top: float, colour: str) -> None:
    y = top - 21
    if one is None:
        axes.text(0, y, "  not measured", va="center", size=SMALL, color=COLOURS["grey"])
        return
    axes.barh(y, one.median, height=10, color=colour, alpha=0.45, lw=0)
    axes.plot([one.low, one.high], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    axes.text(one.high, y - 0.3, f" {number(one.median)}", va="center", size=SMALL + 0.5)
