"""A report for a terminal: tables as wide as it is, warnings, and the advice.

Rich takes time to import: this is imported once there is something to show.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Column, Table
from rich.text import Text

from hfpipe.bench import tables as texts
from hfpipe.bench.baseline import Comparison
from hfpipe.bench.summary import Advice, Summary

# Between two columns.
_GAP = 2
# The share of the width that names may have, in a table that is too wide otherwise.
_NAMES = 0.3
_SHORTEST_NAME = 12
_TIMED = "What is timed, from token ids to token ids, after a warm-up of the same shape:"
_VERDICT = re.compile(r" (?=\()|(?<=difference) |(?<=than 1%) |(?<=,) ")


def benchmark(summary: Summary, advice: Advice | None = None, *, width: int = 80, colour: bool = False) -> str:
    """All of a report, in lines of at most `width` columns; in colour, with the row that is advised in bold."""
    parts: list[RenderableType] = []
    for table in texts.tables(summary):
        parts += _table(table, width, advice.name if advice else None)
    if summary.warnings:
        parts += [_bullet("!", line) for line in summary.warnings]
        parts.append(Text())
    if advice:
        parts.append(_text(advice.text, "bold"))
        lines = [line for command in advice.commands for line in _command(command, width)]
        # A word that is too long stays whole: it is to be copied.
        parts += [Text(line, no_wrap=True, overflow="ignore") for line in lines]
    return _rendered(parts, width, colour)


def baseline(comparison: Comparison, *, width: int = 80, colour: bool = False) -> str:
    """What has changed since an earlier report, in lines of at most `width` columns."""
    table = texts.changes(comparison)
    parts = _table(table, width) if table else []
    parts += [_text(line) for line in texts.compared(comparison)]
    return _rendered(parts, width, colour)


def meanings(summary: Summary, *, width: int = 80) -> str:
    """What is timed, metric by metric, in lines of at most `width` columns, with an empty one at the end; nothing where
    nothing was timed."""
    lines = [_bullet("-", f"{name}: {meaning}") for name, meaning in texts.meanings(summary).items()]
    return _rendered([_text(_TIMED), *lines], width, colour=False) + "\n" if lines else ""


def _rendered(parts: Sequence[RenderableType], width: int, colour: bool) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        height=25,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _table(table: texts.Table, width: int, advised: str | None = None) -> list[RenderableType]:
    """The table, in as many pieces beside each other as the width asks for; each has the names."""
    names = [_one_line(name) for name in table.names]
    longest = max(map(cell_len, ["configuration", *names]))
    columns, wanted = list(table.columns), [_width(one) for one in table.columns]
    if longest + sum(_GAP + one for one in wanted) > width:
        columns = [replace(one, cells=[_VERDICT.sub("\n", cell) for cell in one.cells]) for one in columns]
        wanted = [_width(one) for one in columns]
    room = width - sum(_GAP + one for one in wanted)
    first = min(longest, width, max(_SHORTEST_NAME, int(_NAMES * width), room))
    parts: list[RenderableType] = [_text(table.title, "bold")]
    for piece in _pieces(wanted, width - first):
        drawn = Table(
            Column("configuration" if first >= len("configuration") else "name", width=first, overflow="fold"),
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )
        for index in piece:
            side: JustifyMethod = "left" if columns[index].words else "right"
            drawn.add_column(Text(_broken_head(columns[index].head)), justify=side, overflow="fold")
        for row, name in enumerate(names):
            cells = [Text(columns[index].cells[row]) for index in piece]
            drawn.add_row(Text(name), *cells, style="bold" if table.names[row] == advised else "")
        parts += [drawn, Text()]
    if table.notes:
        parts += [*map(_text, table.notes), Text()]
    return parts


def _pieces(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Which columns are side by side: as many as fit, and at least one."""
    piece: list[int] = []
    used = 0
    for index, width in enumerate(widths):
        if piece and used + _GAP + width > room:
            yield piece
            piece, used = [], 0
        piece.append(index)
        used += _GAP + width
    yield piece


def _broken_head(head: str) -> str:
    """In two lines: the unit, or the percentile, below the name."""
    return re.sub(r"[ _](?=[^ _]*$)", "\n", head)


def _width(column: texts.Column) -> int:
    return max(cell_len(line) for text in (_broken_head(column.head), *column.cells) for line in text.split("\n"))


def _text(text: str, style: str = "") -> Text:
    return Text(_one_line(text), style=style, overflow="fold")


def _bullet(mark: str, text: str) -> RenderableType:
    """A text whose second and further lines begin below the first."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text(mark), _text(text))
    return table


def _command(command: str, width: int) -> Iterator[str]:
    """A command in lines that a shell reads as one, where none of its words is too long."""
    line = "  "
    for word in map(shlex.quote, shlex.split(command)):
        word = texts.clean(word)
        if line.strip() and cell_len(line) + cell_len(word) + 3 > width:
            yield f"{line}\\"
            line = "    "
        line += f"{word} "
    yield line.rstrip()


def _one_line(text: str) -> str:
    return texts.clean(" ".join(text.split()))
