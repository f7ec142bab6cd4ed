"""The parts of a page: text, tables, pictures. All that is not from here is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from hfpipe.bench.plots.data import clean
from hfpipe.bench.plots.sheet import COLOURS
from hfpipe.bench.text import Table


def quoted(text: str) -> str:
    return escape(clean(text))


def prose(text: str) -> str:
    """Sentences, in one line, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", quoted(" ".join(text.split())))


def numbers(table: Table, advised: str | None) -> str:
    """A table as on the terminal, with the row that is advised on another ground."""
    kinds = [' class="words"' if one.words else "" for one in table.columns]
    heads = "".join(f"<th{kind}>{quoted(one.head)}</th>" for kind, one in zip(kinds, table.columns, strict=True))
    rows = ""
    for place, name in enumerate(table.names):
        cells = (f"<td{kind}>{quoted(one.cells[place])}</td>" for kind, one in zip(kinds, table.columns, strict=True))
        row = '<tr class="advised">' if name == advised else "<tr>"
        rows += f"{row}<td>{quoted(name)}</td>{''.join(cells)}</tr>"
    notes = "".join(f"<p>{prose(note)}</p>" for note in table.notes)
    drawn = f'<table class="numbers"><tr><th>configuration</th>{heads}</tr>{rows}</table>'
    return f'<h2>{prose(table.title)}</h2><div class="wide">{drawn}</div>{notes}'


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs of a name and what stands in the page for it."""
    rows = "".join(f"<tr><td>{quoted(name)}</td><td>{fact}</td></tr>" for name, fact in pairs)
    return f'<h2>{title}</h2><div class="wide"><table>{rows}</table></div>' if rows else ""


def inline(picture: str, prefix: str, alternative: str) -> str:
    """An SVG within a page: with the page's colours, ids that no other picture has, and letters that can be read."""
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    tag, rest = picture.split(">", 1)
    rest = re.sub(r"<[^>]*>", lambda match: _own_tag(match[0], prefix), rest)
    width = re.search(r' width="([\d.]+pt)"', tag)
    least = f' style="min-width: calc(.9 * {width[1]})"' if width else ""
    return f'{tag}{least} role="img" aria-label="{escape(alternative)}">{rest}'


def _own_tag(tag: str, prefix: str) -> str:
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    for name, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag
