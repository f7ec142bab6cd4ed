"""A summary as tables of texts, as Markdown, as CSV, and as an HTML page."""

from __future__ import annotations

import base64
import csv
import io
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hfpipe.bench.baseline import Comparison
from hfpipe.bench.report import Quality, Report, several_sources
from hfpipe.bench.spec import Metric
from hfpipe.bench.summary import Advice, Row, Summary, change, number, summarize

# What has a table of its own beside the speeds, in this order.
_LATENCY = ("load_s", "ttft_ms", "tpot_ms", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99", "peak_rss_mb", "peak_gpu_mb")
_REFERENCE = "reference"
_ABOUT = ("name", "model", "backend", "weight_format", "device", "dtype", "size_mb")


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and a text for each row, empty where there is nothing; at the right, unless they are words."""

    head: str
    cells: Sequence[str]
    words: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """`names` are the configurations, one a row; `notes` are lines below."""

    title: str
    names: Sequence[str]
    columns: Sequence[Column]
    notes: Sequence[str] = ()


def tables(summary: Summary) -> list[Table]:
    """Speed, verdicts, latency and memory, quality: with the columns and rows that have anything in them.

    The first has all rows, and the reasons of those that failed.
    """
    if not summary.rows:
        return []
    failed = [f"{row.name} failed: {row.error}" for row in summary.rows if row.error]
    others = [_verdicts(summary), _latency(summary), _quality(summary)]
    return [_table("Speed", summary.rows, _speed(summary), failed), *filter(None, map(_filled, others))]


def markdown(summary: Summary, advice: Advice | None = None) -> str:
    """Tables as GitHub draws them, the warnings, the advice, and what is timed."""
    parts = [_markdown_table(table) for table in tables(summary)]
    if summary.warnings:
        parts.append("\n".join(f"- {_escaped(line)}" for line in summary.warnings))
    if advice:
        parts.append(_escaped(advice.text))
        if advice.commands:
            parts.append("\n".join(f"    {_one_line(line)}" for line in advice.commands))
    if measured := meanings(summary):
        parts.append("What is timed:\n\n" + "\n".join(f"- `{name}`: {meaning}" for name, meaning in measured.items()))
    return "\n\n".join(parts) + "\n"


def page(report: Report, pictures: Sequence[bytes], advice: Advice | None) -> str:
    """A page that needs nothing from elsewhere: the pictures, the advice, the tables and the facts."""
    import jinja2

    summary = summarize(report)
    environment = jinja2.Environment(autoescape=True, finalize=_printable)
    environment.filters["command"] = shlex.join
    template = environment.from_string(files("hfpipe.bench").joinpath("page.html.j2").read_text(encoding="utf-8"))
    encoded = [base64.b64encode(one).decode() for one in pictures]
    return template.render(
        models=models(report), circumstances=circumstances(report), report=report, advice=advice, summary=summary,
        pictures=encoded, tables=tables(summary), meanings=meanings(summary),
    )  # fmt: skip


def _printable(value: Any) -> Any:
    # What has __html__ is markup, and clean.
    return clean(value.replace("\n", " ")) if isinstance(value, str) and not hasattr(value, "__html__") else value


def models(report: Report) -> str:
    """Their names, without the folders that they are in."""
    names = list(dict.fromkeys(clean(Path(row.model).name or row.model) for row in report.configurations))
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def circumstances(report: Report) -> str:
    """Where and when, in one line."""
    host, repeats = report.host, report.arguments.get("repeats")
    facts = [str(host.get("processor") or ""), f"{host.get('cores')} cores" if host.get("cores") else ""]
    facts += dict.fromkeys(row.detail.get("gpu", "") for row in report.configurations)
    facts += [f"{repeats} round{'' if repeats == 1 else 's'}" if repeats else "", report.created[:10]]
    return " · ".join(filter(None, facts)).replace("(R)", "").replace("(TM)", "")


def clean(text: str) -> str:
    """Without what a picture or a page cannot hold: control characters, lone surrogates, changes of direction."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def remarks(summary: Summary, advice: Advice | None = None) -> list[str]:
    """What CSV leaves out, in lines: the warnings, the advice, and its commands as they are."""
    lines = [_one_line(line) for line in (*summary.warnings, *([advice.text] if advice else ()))]
    return [*lines, *(f"  {command}" for command in (advice.commands if advice else ()))]


def csv_text(summary: Summary) -> str:
    """One line for each configuration. The header depends on what was to be measured, not on what was.

    Each metric has its median, the lowest and the highest sample, and the ratio to the first configuration
    with its interval, above 1 where it is better; then the fields of a report's quality, and the error.
    """
    qualities = [field.name for field in fields(Quality)]
    suffixes = ("", "_low", "_high", "_ratio", "_ratio_low", "_ratio_high")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = [f"{metric.name}{suffix}" for metric in summary.metrics for suffix in suffixes]
    writer.writerow([*_ABOUT, *metrics, *qualities, "error"])
    for row in summary.rows:
        cells = [getattr(row, name) for name in _ABOUT]
        for metric in summary.metrics:
            cells += _numbers(row, metric.name)
        cells += [getattr(row.quality, name, None) for name in qualities]
        writer.writerow([f"{one:.6g}" if isinstance(one, float) else one for one in [*cells, row.error]])
    return text.getvalue()


def meanings(summary: Summary) -> dict[str, str]:
    """What was timed, by the name of each metric that any configuration has."""
    return {
        metric.name: f"{metric.meaning}, in {metric.unit}"
        for metric in summary.metrics
        if any(metric.name in row.values for row in summary.rows)
    }


def changes(comparison: Comparison) -> Table | None:
    """The resolved differences from an earlier run; None without any."""
    found = [one for one in comparison.differences if one.verdict.resolved]
    columns = [
        Column("metric", [one.metric.name for one in found], words=True),
        Column("against the baseline", [one.verdict.text for one in found], words=True),
    ]
    return Table("Since the baseline", [one.name for one in found], columns) if found else None


def compared(comparison: Comparison) -> list[str]:
    """Sentences about the comparison with an earlier run: what its table leaves out."""
    open_ones = sum(not one.verdict.resolved for one in comparison.differences)
    lines = [f"{open_ones} of {len(comparison.differences)} differences from the baseline are not resolved."]
    if not comparison.differences:
        lines = ["The baseline has nothing in common with this run."]
    elif comparison.fail_slower is not None and not comparison.judged:
        lines.append("No speed was measured in both often enough to be judged.")
    if comparison.only_here:
        lines.append(f"Not in the baseline: {', '.join(comparison.only_here)}.")
    if comparison.only_there:
        lines.append(f"Only in the baseline: {', '.join(comparison.only_there)}.")
    if comparison.lost:
        lines.append(f"Failed or missing now: {', '.join(comparison.lost)}.")
    if comparison.changed_host:
        lines.append(f"The machine differs from the baseline's: {', '.join(comparison.changed_host)}.")
    slow = {one.name: [each for each in comparison.too_slow if each.name == one.name] for one in comparison.too_slow}
    return lines + [
        f"Slower than allowed: {name} ({', '.join(one.metric.name for one in found)})." for name, found in slow.items()
    ]


def _speed(summary: Summary) -> list[Column]:
    rates = [metric for metric in summary.metrics if metric.higher_is_better]
    shown = [metric for metric in summary.metrics if metric.name == "cold_ttft_s"] + rates
    return [
        _column("size MB", summary.rows, lambda row: row.size_mb and number(row.size_mb)),
        *_medians(summary, shown),
        _column("loss", summary.rows, lambda row: row.quality and change(row.quality.perplexity_change)),
    ]


def _verdicts(summary: Summary) -> Table:
    def cells(metric: Metric) -> list[str]:
        verdicts = [row.verdicts.get(metric.name) for row in summary.rows[1:]]
        return [_REFERENCE if any(verdicts) else "", *(one.text if one else "" for one in verdicts)]

    columns = [Column(metric.name, cells(metric), words=True) for metric in summary.headline]
    return Table(f"Against {summary.rows[0].name}", [row.name for row in summary.rows], columns)


def _latency(summary: Summary) -> Table:
    metrics = {metric.name: metric for metric in summary.metrics}
    columns = _medians(summary, [metrics[name] for name in _LATENCY if name in metrics])
    return _table("Latency and memory", summary.rows, columns)


def _quality(summary: Summary) -> Table:
    def column(head: str, text: Callable[[Quality], str]) -> Column:
        return _column(head, summary.rows, lambda row: row.quality and text(row.quality))

    columns = [
        column("perplexity", lambda one: _perplexity(one.perplexity)),
        column("loss", lambda one: change(one.perplexity_change) + _margin(one.perplexity_change_error)),
        column("equal tokens", lambda one: f"{one.same_top:.1%}"),
        column("KL nats", lambda one: f"{one.mean_kl:.4f}"),
        column("equal answers", lambda one: f"{one.same_answers} of {one.answers}" if one.answers else ""),
        column(
            "first divergence", lambda one: f"{one.first_divergence:g} of {one.answer_tokens}" if one.answers else ""
        ),
    ]
    reference = next((row.quality.reference_perplexity for row in summary.rows if row.quality), None)
    notes = []
    if several_sources(row.quality for row in summary.rows):
        notes = ["loss: how far the perplexity is above that of each model's own source."]
    elif reference is not None:
        notes = [f"loss: how far the perplexity is above that of the source model, {_perplexity(reference)}."]
    return _table("Quality", summary.rows, columns, notes)


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else number(value)


def _margin(error: float | None) -> str:
    return "" if error is None else f" ±{error:.1%}"


def _medians(summary: Summary, metrics: Sequence[Metric]) -> list[Column]:
    def cell(row: Row, metric: Metric) -> str:
        found = row.values.get(metric.name)
        return number(found.median) if found else ""

    return [Column(_head(metric), [cell(row, metric) for row in summary.rows]) for metric in metrics]


def _head(metric: Metric) -> str:
    """The unit is in most names."""
    return f"{metric.name} tok/s" if metric.unit == "tokens/s" and not metric.name.endswith("_tps") else metric.name


def _column(head: str, rows: Sequence[Row], text: Callable[[Row], object]) -> Column:
    return Column(head, [str(text(row) or "") for row in rows])


def _table(title: str, rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str] = ()) -> Table:
    return Table(title, [row.name for row in rows], [one for one in columns if any(one.cells)], notes)


def _filled(table: Table) -> Table | None:
    """Without the rows and columns that are empty, None where all are."""
    rows = [index for index in range(len(table.names)) if any(one.cells[index] for one in table.columns)]
    columns = [Column(one.head, [one.cells[i] for i in rows], one.words) for one in table.columns if any(one.cells)]
    return Table(table.title, [table.names[i] for i in rows], columns, table.notes) if rows else None


def _numbers(row: Row, metric: str) -> list[float | None]:
    """As csv_text has them, with None for what there is not."""
    found, verdict = row.values.get(metric), row.verdicts.get(metric)
    return [
        *((found.median, found.low, found.high) if found else (None,) * 3),
        *((verdict.ratio, verdict.low, verdict.high) if verdict else (None,) * 3),
    ]


def _markdown_table(table: Table) -> str:
    heads = ["configuration", *(one.head for one in table.columns)]
    lines = [_line(heads), "|---|" + "".join("---|" if one.words else "---:|" for one in table.columns)]
    for index, name in enumerate(table.names):
        lines.append(_line([name, *(one.cells[index] for one in table.columns)]))
    notes = "".join(f"\n\n{_escaped(note)}" for note in table.notes)
    return f"**{_escaped(table.title)}**\n\n" + "\n".join(lines) + notes


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """In one line, with nothing that Markdown would take for its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
