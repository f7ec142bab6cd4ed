"""A report as pictures: --plot FILE.png, FILE.svg or FILE.html."""

from __future__ import annotations

import base64
import io
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfpipe.bench.advice import Advice, number, warnings
from hfpipe.bench.report import Configuration, Report, check_output, several_sources, write_file
from hfpipe.bench.tables import clean, meanings, tables
from hfpipe.quality.compare import change_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")
# Okabe and Ito's hues, which the colour-blind tell apart.
_COLOURS = {"openvino": "#0072b2", "torch": "#d55e00", "echo": "#b6598f"}
_GREEN, _GREY = "#009e73", "#59636e"
_SETTINGS: Any = {
    "font.size": 8.5, "text.parse_math": False, "axes.axisbelow": True, "axes.edgecolor": _GREY,
    "grid.color": "#e3e7eb", "svg.fonttype": "none", "svg.hashsalt": "hfpipe",
}  # fmt: skip
# For names in other scripts, where they are installed.
_FONTS = {"Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "Malgun Gothic"}
# In percent: the losses that a linear axis can show, the worst that is told apart, and the least that a label shows.
_LINEAR_TO, _WORST, _SEEN = 12.0, 1000.0, 0.1
# By metric: its name in the legend, and its mark.
_MARKS = {"itl_ms_p50": ("p50", "o"), "itl_ms_p95": ("p95", "|"), "itl_ms_p99": ("p99", "x"), "tpot_ms": ("tpot", "D")}


def plot(report: Report, path: Path, *, advice: Advice | None = None) -> list[Path]:
    """Draw a report. Returns the files that were written: FILE.png or FILE.svg, with FILE-latency.png or .svg where
    there are times between tokens; FILE.html has both pictures, the numbers and the advice."""
    check_output("--plot", path, SUFFIXES)
    html = path.suffix.lower() == ".html"
    with _settings():
        figures = filter(None, [_tradeoff(report) or _speeds(report), _latency(report)])
        pictures = [_drawn(figure, "svg" if html else path.suffix[1:]) for figure in figures]
    contents = [_page(report, pictures, advice).encode()] if html else pictures
    paths = [path, path.with_name(f"{path.stem}-latency{path.suffix}")][: len(contents)]
    for file, data in zip(paths, contents, strict=True):
        write_file(file, data)
    return paths


def plot_budget(model: str, budget: Mapping[str, Any], path: Path) -> None:
    """Draw the curve of an export within a budget, as hfpipe.json has it: the loss against the size."""
    check_output("--plot", path, SUFFIXES[:2])
    with _settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.2), layout="constrained")
        figure.suptitle(f"{clean(model)}: size against loss", x=0.01, ha="left", fontsize=11, fontweight="bold")
        axes = figure.subplots()
        for points, mark, what in ((budget["curve"], "-", "expected"), (budget["tried"], "o", "tried")):
            sizes, losses = [one["size"] / 1e6 for one in points], [100 * one["loss"] for one in points]
            axes.plot(sizes, losses, mark, color=_COLOURS["openvino"], label=what)
        if budget["max_size"]:
            axes.axvline(budget["max_size"] / 1e6, color=_GREY, linestyle=":", label="allowed")
        if budget["max_loss"]:
            axes.axhline(100 * budget["max_loss"], color=_GREY, linestyle=":", label="allowed")
        axes.set(xlabel="MB", ylabel="% lost", ylim=(0, None))
        axes.grid()
        axes.legend(frameon=False)
        write_file(path, _drawn(figure, path.suffix[1:]))


@contextmanager
def _settings() -> Iterator[None]:
    """With matplotlib's own settings and ours, not the user's."""
    # Late: it takes half a second to import, and on its first start some seconds to list the fonts.
    import matplotlib
    from matplotlib import font_manager

    fonts = ["DejaVu Sans", *sorted(_FONTS.intersection(font_manager.get_font_names()))]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"font.family": fonts})
        yield


def _drawn(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    # Without a date, the same report gives the same bytes.
    figure.savefig(buffer, format=form, dpi=160, metadata={"Date": None})
    return buffer.getvalue()


def _page(report: Report, pictures: Sequence[bytes], advice: Advice | None) -> str:
    """A page that needs nothing from elsewhere: the pictures, the advice, the tables and the facts."""
    import jinja2

    def printable(value: Any) -> Any:
        # What has __html__ is markup, and clean.
        return clean(value.replace("\n", " ")) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(autoescape=True, finalize=printable)
    environment.filters["command"] = shlex.join
    template = environment.from_string(files("hfpipe.bench").joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        models=_models(report), circumstances=_circumstances(report), report=report, advice=advice,
        warnings=warnings(report), tables=tables(report), meanings=meanings(report),
        pictures=[base64.b64encode(one).decode() for one in pictures],
    )  # fmt: skip


def _models(report: Report) -> str:
    """Their names, without the folders that they are in."""
    names = list(dict.fromkeys(clean(Path(row.model).name or row.model) for row in report.configurations))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _circumstances(report: Report) -> str:
    """Where and when, in one line."""
    host = report.host
    facts = [host.get("processor"), *(row.detail.get("gpu") for row in report.configurations)]
    facts += [f"{host['cores']} cores" if host.get("cores") else None, report.created[:10]]
    return " · ".join(dict.fromkeys(str(one) for one in facts if one)).replace("(R)", "").replace("(TM)", "")


def _figure(
    report: Report, about: str, notes: Sequence[str], height: float, drawn: Sequence[Configuration], what: str
) -> Figure:
    """A figure with its title and, below, its notes; those without `what`, which are not `drawn`, are named."""
    from matplotlib.figure import Figure

    failed = [f"{row.name} ({row.error.splitlines()[0].rstrip('.')})" for row in report.configurations if row.error]
    notes = [_circumstances(report), *notes, *([f"Failed: {', '.join(failed)}."] if failed else [])]
    missing = [row.name for row in report.configurations if not row.error and row not in drawn]
    notes += [f"Without {what}: {', '.join(missing)}."] if missing else []
    notes += ["The run was interrupted before everything was measured."] if report.interrupted else []
    lines = [line for note in notes for line in textwrap.wrap(clean(note), 115)]
    figure = Figure(figsize=(8, height + 0.15 * len(lines) + 0.5), layout="constrained")
    figure.suptitle(textwrap.fill(f"{_models(report)}: {about}", 64), x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color=_GREY)
    return figure


def pareto(choices: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (speed, loss) that no other beats, by speed. Losses that a label shows as equal are equal."""
    best: list[tuple[float, float]] = []
    for speed, loss in sorted(choices, key=lambda one: (-one[0], one[1])):
        if not best or round(loss / _SEEN) < round(best[-1][1] / _SEEN):
            best.append((speed, loss))
    return best[::-1]


def _tradeoff(report: Report) -> Figure | None:
    """Decode speed against loss of quality, bubbles as large as the sizes on disk. None where nothing has a quality."""
    found = [(row, row.measured(report.workload.decode), row.quality) for row in report.configurations]
    shown = [(row, speed, quality) for row, speed, quality in found if speed and quality]
    if not shown:
        return None
    notes = [
        "Area: size on disk. Bars: range of the samples, and ± 1 standard error of the perplexity. "
        "Line: the Pareto front; no other choice is at least as fast and loses no more."
    ]
    if several_sources(row.quality for row in report.configurations):
        notes.append("Losses are against each model's own source: they do not tell which model is the better one.")
    title, drawn = "decode speed against loss of quality", [row for row, *_ in shown]
    figure = _figure(report, title, notes, 4.2 + 0.17 * len(shown), drawn, "speed or quality")
    axes, legend = figure.subplots(2, height_ratios=[4.2, 0.17 * len(shown) + 0.2])
    largest = max(row.size_mb or 0 for row, *_ in shown) or 1
    points = [(speed.median, min(100 * quality.perplexity_change, _WORST)) for _, speed, quality in shown]
    for place, ((row, speed, quality), (x, y)) in enumerate(zip(shown, points, strict=True), 1):
        colour, spread = _COLOURS.get(row.backend, _GREY), [[x - speed.low], [speed.high - x]]
        error = 100 * (quality.perplexity_change_error or 0)
        axes.errorbar(x, y, xerr=spread, yerr=error, fmt="none", ecolor=colour, elinewidth=1)
        axes.scatter(x, y, 1200 * (row.size_mb or 0) / largest, colour, alpha=0.3, linewidth=0)
        axes.annotate(str(place), (x, y), (4, 3), textcoords="offset points", fontweight="bold")
        size = f" · {row.size_mb:,.3g} MB" if row.size_mb else ""
        label = f"{place}  {_shown(row.name)}: {number(x)} tok/s{size} · {change_text(quality.perplexity_change)}"
        axes.scatter(x, y, 12, colour, label=label, zorder=3)
    best, losses = pareto(points), [loss for _, loss in points]
    steps = zip((axes.get_xlim()[0], best[0][1]), *best, strict=True)
    axes.step(*steps, where="pre", color=_GREEN, linewidth=1.2, label="Pareto front", zorder=1)
    if max(losses) > _LINEAR_TO and sum(loss < _LINEAR_TO / 2 for loss in losses) > 1:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(0.12)
    axes.invert_yaxis()
    axes.grid(True)
    axes.set_xlabel(f"Decode speed ({report.workload.decode}), tokens/s  (right is better)")
    axes.set_ylabel("Perplexity above the source's, %  (up is better)")
    legend.axis("off")
    legend.legend(*axes.get_legend_handles_labels(), loc="upper left", frameon=False, borderaxespad=0)
    return figure


def _latency(report: Report) -> Figure | None:
    """The times between tokens, a row for each configuration. None without any."""
    itl = [(row, [one for sample in row.samples for one in sample.itl_ms if one > 0]) for row in report.configurations]
    shown = [(row, times) for row, times in itl if times]
    if not shown:
        return None
    notes = [
        "One answer at a time. Boxes: the middle half of all times; lines: the 1st to the 99th percentile. "
        "Marks and numbers: medians of the rounds, as in the tables. tpot: time for each token after the first."
    ]
    drawn = [row for row, _ in shown]
    figure = _figure(report, "time per token", notes, 0.9 + 0.45 * len(shown), drawn, "times between tokens")
    axes, labels = figure.subplots(), []
    style: Any = {"whis": (1, 99), "orientation": "horizontal", "patch_artist": True, "medianprops": {"linewidth": 0}}
    boxes = axes.boxplot([times for _, times in shown], flierprops={"marker": ".", "markersize": 2}, **style)
    for place, (row, _) in enumerate(shown, 1):
        boxes["boxes"][place - 1].set(facecolor=_COLOURS.get(row.backend, _GREY), alpha=0.4, linewidth=0.5)
        numbers = []
        for name, (short, mark) in _MARKS.items():
            if found := row.measured(name):
                label = None if any(short in one for one in axes.get_legend_handles_labels()[1]) else short
                axes.plot(found.median, place, mark, color="black", markersize=5, fillstyle="none", label=label)
                numbers.append(f"{short} {number(found.median)}")
        labels.append(f"{_shown(row.name)}\n{' · '.join(numbers)}{' ms' if numbers else ''}")
    axes.set_yticks(range(1, len(shown) + 1), labels, fontsize=7.5)
    if max(max(times) for _, times in shown) > 6 * min(min(times) for _, times in shown):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_xlabel("Time between tokens, ms  (left is better)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_MARKS), frameon=False)
    return figure


def _speeds(report: Report) -> Figure:
    """Bars of each speed, with the range of the samples."""
    work = report.workload
    metrics = [name for name in work.speeds if any(row.measured(name) for row in report.configurations)]
    shown = [row for row in report.configurations if any(row.measured(name) for name in metrics)]
    notes = ["Bars: median of the rounds. Lines: range of the samples." if shown else "Nothing was measured."]
    figure = _figure(report, "speed", notes, len(metrics) * (0.7 + 0.28 * len(shown)), shown, "speed")
    for place, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(len(metrics), 1, place)
        at_once = f"{metric.removesuffix('_tps').removeprefix('batch')} answers at once"
        title = {work.prefill: f"Prompt ({metric})", work.decode: f"Decode ({metric})"}.get(metric, at_once)
        axes.set_title(f"{title}, tokens/s", fontsize=8.5, loc="left")
        for line, row in enumerate(shown):
            if one := row.measured(metric):
                colour = _COLOURS.get(row.backend, _GREY)
                axes.barh(line, one.median, height=0.6, color=colour, alpha=0.5)
                axes.plot([one.low, one.high], [line, line], color=colour)
            text, end = (number(one.median), one.high) if one else ("not measured", 0.0)
            axes.annotate(text, (end, line), (3, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(shown)), [_shown(row.name) for row in shown])
        axes.margins(x=0.3)
        axes.set_xlim(left=0)
        axes.invert_yaxis()
    return figure


def _shown(name: str) -> str:
    """A name that a picture has room for: of a long one, both ends."""
    name = clean(name)
    return name if len(name) <= 60 else f"{name[:30]}…{name[-30:]}"
