"""A page with the pictures and the numbers of a report: no script, nothing from elsewhere, dark where wanted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hfpipe.bench.advice import Advice
from hfpipe.bench.plots.data import circumstances, flat, models
from hfpipe.bench.plots.markup import facts, inline, numbers, prose, quoted
from hfpipe.bench.plots.sheet import COLOURS, DARK
from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.summary import summarize
from hfpipe.bench.text import meanings, tables

_ALTERNATIVES = ("Speed, and loss of quality, of each configuration", "Times between tokens of each configuration")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1, h2, p { overflow-wrap: anywhere; } p { color: var(--grey); margin: .3rem 0; } figure { margin: 1.5rem 0; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
figure svg { width: 100%; max-width: 60rem; height: auto; }
.advice { color: var(--ink); font-weight: 600; margin-top: 1rem; }
.warning { border-left: 3px solid var(--orange); padding-left: .6rem; margin: .8rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { color: var(--grey); font-weight: 600; } .advised { background: var(--shade); }
td:first-child { font-weight: 600; min-width: 9rem; overflow-wrap: anywhere; }
.numbers td + td, .numbers th + th { text-align: right; white-space: nowrap; }
.numbers td.words, .numbers th.words { text-align: left; }
pre { margin: .3rem 0; white-space: pre-wrap; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def page(report: Report, pictures: Sequence[bytes], advice: Advice | None = None) -> str:
    """The text of the page; `pictures` are SVG."""
    summary = summarize(report)
    parts = _head(report, summary.warnings, advice)
    for place, (picture, alternative) in enumerate(zip(pictures, _ALTERNATIVES, strict=False)):
        drawn = inline(picture.decode(), f"picture{place}", alternative)
        parts.append(f'<figure class="wide">{drawn}</figure>')
    parts += [numbers(table, advice.name if advice else None) for table in tables(summary)]
    arguments = flat({**report.arguments, "created": report.created})
    parts += [
        facts("What is timed", ((name, prose(meaning)) for name, meaning in meanings(summary).items())),
        facts("Commands", ((row.name, _commands(row)) for row in report.configurations)),
        facts("Machine and versions", ((name, quoted(fact)) for name, fact in flat(report.host))),
        facts("Arguments", ((name, quoted(fact)) for name, fact in arguments)),
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{quoted(_title(report))}</title><style>{_style()}</style>"
    )
    body = "\n".join(filter(None, parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _title(report: Report) -> str:
    return f"hfpipe bench: {models(report)}"


def _style() -> str:
    light, dark = (" ".join(f"--{name}: {value};" for name, value in one.items()) for one in (COLOURS, DARK))
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def _head(report: Report, warnings: Sequence[str], advice: Advice | None) -> list[str]:
    """What was measured, what to take, and why not to trust it."""
    parts = [f"<h1>{quoted(_title(report))}</h1>", f"<p>{quoted(circumstances(report))}</p>"]
    if advice:
        parts.append(f'<p class="advice">{prose(advice.text)}</p>')
        parts += [f"<pre><code>{quoted(command)}</code></pre>" for command in advice.commands]
    return parts + [f'<p class="warning">{prose(one)}</p>' for one in warnings]


def _commands(row: Configuration) -> str:
    return "<br>".join(f"<code>{quoted(shlex.join(words))}</code>" for words in (row.prepare, row.command) if words)
