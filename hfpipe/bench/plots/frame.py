"""What every picture of a report begins with: a sheet with its head, its notes, and the colours of its engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hfpipe.bench.plots.data import circumstances, models
from hfpipe.bench.plots.sheet import HEAD, WIDTH, Sheet, foot_height, foot_lines, hues
from hfpipe.bench.report import Report


@dataclass(frozen=True, slots=True)
class Frame:
    """A sheet, where between `bottom` and `top` there is room to draw, and a colour for each backend."""

    sheet: Sheet
    bottom: float
    top: float
    key: dict[str, str]


def frame(report: Report, about: str, notes: Sequence[str], height: float, *, width: float = WIDTH) -> Frame:
    """A sheet that has the title and the notes already, with room of a height between them."""
    lines = foot_lines(notes, width)
    bottom = foot_height(lines)
    sheet = Sheet(bottom + height + HEAD, width=width)
    key = hues([row.backend for row in report.configurations])
    top = sheet.head(models(report), about, circumstances(report), key)
    sheet.foot(lines)
    return Frame(sheet, bottom, top, key)
