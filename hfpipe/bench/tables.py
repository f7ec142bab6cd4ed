"""A report as tables: for a terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import rich.table
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.text import Text

from hfpipe.bench.advice import Advice, number, warnings
from hfpipe.bench.comparison import Comparison, versus
from hfpipe.bench.report import Configuration, Quality, Report, several_sources
from hfpipe.bench.spec import Metric
from hfpipe.quality.compare import change_text

_TASKS = ("right", "items", "low", "high", "against", "difference", "difference_low", "difference_high")
_ABOUT = ("name", "model", "backend", "weight_format", "device", "dtype", "size_mb")
_TIMED = "What is timed, from token ids to token ids, after a warm-up of the same shape:"
# The share of a terminal's width that names may have, and at least so many columns.
_NAMES, _SHORTEST_NAME = 0.4, 12
_QUALITY: dict[str, Callable[[Quality], str]] = {
    "perplexity": lambda one: _perplexity(one.perplexity),
    "loss": lambda one: change_text(one.perplexity_change) + _margin(one.perplexity_change_error),
    "equal tokens": lambda one: f"{one.same_top:.1%}",
    "KL nats": lambda one: f"{one.mean_kl:.4f}",
    "equal answers": lambda one: f"{one.same_answers} of {one.answers}" if one.answers else "",
    "first divergence": lambda one: f"{one.first_divergence:g} of {one.answer_tokens}" if one.answers else "",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by the `names` of configurations, and by heading a cell for each, empty where there is nothing: numbers, or
    `words`. `notes` are lines below."""

    title: str
    names: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()
    words: bool = False


def tables(report: Report) -> list[Table]:
    """Speed, verdicts, latency and memory, quality: with the columns and rows that have anything in them.

    The first has all rows, and the reasons of those that failed.
    """
    rows, work = report.configurations, report.workload
    if not rows:
        return []
    speeds = [one for one in work.metrics if one.higher_is_better or one.name == "cold_ttft_s"]
    speed = {
        "size MB": [number(row.size_mb) if row.size_mb else "" for row in rows],
        **_medians(rows, speeds),
        "loss": [change_text(row.quality.perplexity_change) if row.quality else "" for row in rows],
        "tasks": [f"{row.tasks.right / row.tasks.items:.0%}" if row.tasks else "" for row in rows],
    }
    # Prefill, decode and the largest batch.
    judged = {*work.speeds[:2], work.speeds[-1]}
    verdicts = {metric.name: _verdicts(rows, metric) for metric in work.metrics if metric.name in judged}
    latency = _medians(rows, [one for one in work.metrics if one not in speeds])
    source = next((row.quality.reference_perplexity for row in rows if row.quality), 0.0)
    several = several_sources(row.quality for row in rows)
    whose = "each model's own source" if several else f"the source model, {_perplexity(source)}"
    quality = {head: [text(row.quality) if row.quality else "" for row in rows] for head, text in _QUALITY.items()}
    failed = [f"{row.name} failed: {row.error}" for row in rows if row.error]
    names = [row.name for row in rows]
    return [
        Table("Speed", names, {head: cells for head, cells in speed.items() if any(cells)}, failed),
        *_filled(Table(f"Against {names[0]}", names, verdicts, words=True)),
        *_filled(Table("Latency and memory", names, latency)),
        *_filled(Table("Quality", names, quality, [f"loss: how far the perplexity is above that of {whose}."])),
        *_filled(_tasks(rows)),
    ]


def _tasks(rows: Sequence[Configuration]) -> Table:
    """How many items are right, with the interval of the share, and against another configuration; by kind."""
    scores = [row.tasks for row in rows]
    kinds = list(dict.fromkeys(kind for one in scores if one for kind in one.kinds))
    columns = {
        "right": [f"{one.right} of {one.items} ({one.low:.0%} to {one.high:.0%})" if one else "" for one in scores],
        "difference": [one.versus if one else "" for one in scores],
        **{kind: [f"{one.kinds[kind][0]} of {one.kinds[kind][1]}" if one else "" for one in scores] for kind in kinds},
    }
    against = list(dict.fromkeys(one.against for one in scores if one and one.against))
    notes = [f"difference: from {' and '.join(against)}, on the same items; with intervals of 95%."] if against else []
    return Table("Tasks", [row.name for row in rows], columns, notes)


def _medians(rows: Sequence[Configuration], metrics: Sequence[Metric]) -> dict[str, list[str]]:
    found = {}
    for metric in metrics:
        # The unit is in most names.
        unit = " tok/s" if metric.unit == "tokens/s" and not metric.name.endswith("_tps") else ""
        measured = [row.measured(metric.name) for row in rows]
        found[metric.name + unit] = [number(one.median) if one else "" for one in measured]
    return found


def _verdicts(rows: Sequence[Configuration], metric: Metric) -> list[str]:
    verdicts = [versus(row, rows[0], metric) for row in rows[1:]]
    return ["reference" if any(verdicts) else "", *(one.text if one else "" for one in verdicts)]


def _filled(table: Table) -> Iterator[Table]:
    """Without the rows and columns that are empty, nothing where all are."""
    rows = [index for index in range(len(table.names)) if any(cells[index] for cells in table.columns.values())]
    if rows:
        columns = {head: [cells[i] for i in rows] for head, cells in table.columns.items() if any(cells)}
        yield replace(table, names=[table.names[index] for index in rows], columns=columns)


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else number(value)


def _margin(error: float | None) -> str:
    return "" if error is None else f" ±{error:.1%}"


def changes(comparison: Comparison) -> Table:
    """The resolved differences from an earlier run, and what else there is to say."""
    found = [(*key, one.text) for key, one in comparison.differences.items() if one.resolved]
    names, metrics, texts = zip(*found, strict=True) if found else ((), (), ())
    columns = {"metric": metrics, "against the baseline": texts}
    return Table("Since the baseline", names, columns, comparison.lines, words=True)


def meanings(report: Report) -> dict[str, str]:
    """What was timed, by the name of each metric that any configuration has."""
    return {
        metric.name: f"{metric.meaning}, in {metric.unit}"
        for metric in report.workload.metrics
        if any(row.values(metric.name) for row in report.configurations)
    }


def clean(text: str) -> str:
    """Without what a terminal, a picture or a page cannot hold: control characters, lone surrogates, changes of
    direction."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def line(text: str) -> str:
    """In one line, and clean."""
    return clean(" ".join(text.split()))


# For a terminal


def meanings_text(report: Report, *, width: int = 80) -> str:
    """What is timed, metric by metric; nothing where nothing was timed."""
    lines = [f"- {name}: {meaning}" for name, meaning in meanings(report).items()]
    return _rendered([_text(line) for line in [_TIMED, *lines]], _console(width)) if lines else ""


def as_text(report: Report, advice: Advice, tables: Sequence[Table], *, width: int = 80, colour: bool = False) -> str:
    """Tables, the warnings and the advice, in lines of at most `width` columns; in colour, with the row that is advised
    in bold."""
    console, parts = _console(width, colour), list[RenderableType]()
    for table in tables:
        parts.append(_text(table.title, "bold"))
        for piece in _pieces(table, console, advice.name):
            parts += [piece, Text()]
        parts += [_text(note) for note in table.notes]
        parts += [Text()] if table.notes else []
    parts += [_text(f"! {warning}") for warning in warnings(report)]
    # Commands whole: they are to be copied.
    commands = [Text(f"  {clean(line)}", no_wrap=True, overflow="ignore") for line in advice.commands]
    return _rendered([*parts, _text(advice.text, "bold"), *commands], console)


def _console(width: int, colour: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=25, force_terminal=colour, no_color=not colour, legacy_windows=False,
        color_system="standard" if colour else None,
    )  # fmt: skip


def _rendered(parts: Iterable[RenderableType], console: Console) -> str:
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _pieces(table: Table, console: Console, advised: str | None) -> Iterator[rich.table.Table]:
    """A table as tables below each other, where it is too wide: each with the names and as many columns as fit."""
    piece: list[str] = []
    unlimited = console.options.update_width(10_000)
    for head in table.columns if table.names else ():
        wider = Measurement.get(console, unlimited, _grid(table, [*piece, head], console.width)).maximum
        if piece and wider > console.width:
            yield _grid(table, piece, console.width, advised)
            piece = []
        piece.append(head)
    if table.names:
        yield _grid(table, piece, console.width, advised)


def _grid(table: Table, heads: Sequence[str], width: int, advised: str | None = None) -> rich.table.Table:
    names = rich.table.Column("configuration", overflow="fold", max_width=max(_SHORTEST_NAME, int(_NAMES * width)))
    grid = rich.table.Table(names, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        # In two lines: the unit, or the percentile, below the name.
        text = Text(re.sub(r"[ _](?=[^ _]*$)", "\n", head))
        grid.add_column(text, justify="left" if table.words else "right", overflow="fold")
    for index, name in enumerate(table.names):
        # The interval of a verdict is below it.
        cells = [Text(re.sub(r" (?=\()", "\n", table.columns[head][index])) for head in heads]
        grid.add_row(_text(name), *cells, style="bold" if name == advised else "")
    return grid


def _text(text: str, style: str = "") -> Text:
    return Text(line(text), style=style, overflow="fold")


# For files


def as_markdown(report: Report, advice: Advice, tables: Sequence[Table]) -> str:
    """Tables as GitHub draws them, the warnings, the advice, and what is timed."""
    parts = []
    for table in tables:
        lines = [["configuration", *table.columns], *zip(table.names, *table.columns.values(), strict=True)]
        head, *body = [f"| {' | '.join(map(_escaped, cells))} |" for cells in lines]
        rule = "|---|" + ("---|" if table.words else "---:|") * len(table.columns)
        grid = ["\n".join([head, rule, *body])] if body else []
        parts += [f"**{_escaped(table.title)}**", *grid, *map(_escaped, table.notes)]
    parts.append("\n".join(f"- {_escaped(line)}" for line in warnings(report)))
    parts += [_escaped(advice.text), "\n".join(f"    {clean(line)}" for line in advice.commands)]
    if measured := meanings(report):
        parts.append("What is timed:\n\n" + "\n".join(f"- `{name}`: {meaning}" for name, meaning in measured.items()))
    return "\n\n".join(filter(None, parts)) + "\n"


def _escaped(text: str) -> str:
    """In one line, with nothing that Markdown would take for its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", line(text))


def as_csv(report: Report) -> str:
    """One line for each configuration. The header depends on what was to be measured, not on what was.

    Each metric has its median, the lowest and the highest sample, and the ratio to the first configuration
    with its interval, above 1 where it is better; then the fields of a report's quality, those of its tasks that are no
    tables, and the error.
    """
    metrics, qualities = report.workload.metrics, [field.name for field in fields(Quality)]
    suffixes = {"": "median", "_low": "low", "_high": "high"}
    ratios = {"_ratio": "ratio", "_ratio_low": "low", "_ratio_high": "high"}
    heads = [f"{metric.name}{suffix}" for metric in metrics for suffix in (*suffixes, *ratios)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_ABOUT, *heads, *qualities, *(f"tasks_{name}" for name in _TASKS), "error"])
    for row in report.configurations:
        cells = [getattr(row, name) for name in _ABOUT]
        for metric in metrics:
            found, first = row.measured(metric.name), report.configurations[0]
            verdict = None if row is first else versus(row, first, metric)
            cells += [getattr(found, name, None) for name in suffixes.values()]
            cells += [getattr(verdict, name, None) for name in ratios.values()]
        cells += [getattr(row.quality, name, None) for name in qualities]
        cells += [getattr(row.tasks, name, None) for name in _TASKS]
        writer.writerow([f"{one:.6g}" if isinstance(one, float) else one for one in [*cells, row.error]])
    return text.getvalue()
