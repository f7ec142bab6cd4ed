"""A page with the pictures and the numbers of a report: no script, nothing from elsewhere, dark where wanted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape

from hfpipe.bench.numbers import number
from hfpipe.bench.plots.data import circumstances, clean, flat, models, percent, spread
from hfpipe.bench.plots.sheet import COLOURS, DARK
from hfpipe.bench.report import Configuration, Report

_ALTERNATIVES = ("Speed, and loss of quality, of each configuration", "Times between tokens of each configuration")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { color: var(--grey); margin: .3rem 0; } figure { margin: 1.5rem 0; }
figure svg { width: 100%; max-width: 60rem; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { color: var(--grey); font-weight: 600; } th small { font-weight: 400; display: block; white-space: nowrap; }
td:first-child { font-weight: 600; white-space: nowrap; } .numbers { margin-bottom: .7rem; }
.numbers td + td, .numbers th + th { text-align: right; white-space: nowrap; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def page(report: Report, pictures: Sequence[bytes]) -> str:
    """The text of the page; `pictures` are SVG."""
    title = f"hfpipe bench: {models(report)}"
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(circumstances(report))}</p>"]
    parts += [f"<p>Warning: {_text(one)}</p>" for one in report.warnings]
    for place, (picture, alternative) in enumerate(zip(pictures, _ALTERNATIVES, strict=False)):
        parts.append(f"<figure>{_inline(picture.decode(), f'picture{place}', alternative)}</figure>")
    parts += ["<h2>Medians</h2>", _medians(report), *_meanings(report), *_failures(report)]
    parts += ["<h2>Commands</h2>", _commands(report)]
    parts += ["<h2>Machine and versions</h2>", _table([], flat(report.host))]
    parts += ["<h2>Arguments</h2>", _table([], [*flat(report.arguments), ("created", report.created)])]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_style()}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _text(text: object) -> str:
    return escape(clean(str(text)))


def _style() -> str:
    light, dark = (" ".join(f"--{name}: {value};" for name, value in one.items()) for one in (COLOURS, DARK))
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def _inline(picture: str, prefix: str, alternative: str) -> str:
    """An SVG within a page: with the page's colours, and ids that no other picture has."""
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    tag, rest = picture.split(">", 1)
    rest = re.sub(r"<[^>]*>", lambda match: _own_tag(match[0], prefix), rest)
    return f'{tag} role="img" aria-label="{escape(alternative)}">{rest}'


def _own_tag(tag: str, prefix: str) -> str:
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    for name, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag


def _measured(report: Report) -> list[tuple[str, str, str]]:
    """Name, unit and meaning of each metric that a configuration has."""
    rows = report.configurations
    known = report.workload.metrics
    return [(one.name, one.unit, one.meaning) for one in known if any(spread(row, one.name) for row in rows)]


def _medians(report: Report) -> str:
    measured = _measured(report)
    heads = [("Configuration", ""), ("size", "MB"), *((name, unit) for name, unit, _ in measured)]
    heads += [("perplexity", "against the reference"), ("same next token", "%"), ("KL", "nats")]
    rows = []
    for row in report.configurations:
        middles = [one.median if (one := spread(row, name)) else None for name, _, _ in measured]
        cells = ["" if value is None else number(value) for value in (row.size_mb, *middles)]
        rows.append((row.name, *cells, *_quality(row)))
    return _table(heads, rows, kind="numbers")


def _quality(row: Configuration) -> tuple[str, str, str]:
    if row.quality is None:
        return "", "", ""
    change = percent(100 * row.quality.perplexity_change)
    return change, f"{100 * row.quality.same_top:.1f}", f"{row.quality.mean_kl:.2g}"


def _meanings(report: Report) -> list[str]:
    return [f"<p><small>{_text(name)}: {_text(meaning)}.</small></p>" for name, _, meaning in _measured(report)]


def _failures(report: Report) -> list[str]:
    failed = [(row.name, " ".join(row.error.split())) for row in report.configurations if row.error]
    parts = ["<h2>Failed</h2>", _table([], failed)] if failed else []
    return parts + (["<p>The run was interrupted before everything was measured.</p>"] if report.interrupted else [])


def _commands(report: Report) -> str:
    rows = []
    for row in report.configurations:
        lines = [shlex.join(words) for words in (row.prepare, row.command) if words]
        rows.append(
            f"<tr><td>{_text(row.name)}</td><td>{'<br>'.join(f'<code>{_text(one)}</code>' for one in lines)}</td></tr>"
        )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _table(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]], *, kind: str = "facts") -> str:
    head = "".join(f"<th>{_text(name)}<small>{_text(unit)}</small></th>" for name, unit in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'
