"""`hfpipe models`: what the cache holds, and removing it."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from hfpipe import store
from hfpipe.cli import options as o
from hfpipe.cli.options import OUTPUT, option
from hfpipe.cli.terminal import data, shown, tell
from hfpipe.errors import HFPipeError, ModelNotFound, UsageError, nearest

RemoveArg = Annotated[
    list[str] | None,
    typer.Argument(metavar="[rm NAME...]", help="Remove these models from the cache.", show_default=False),
]
PruneOpt = Annotated[
    bool,
    option(
        "--prune",
        help="Remove the least used models until the rest fits into $HFPIPE_CACHE_LIMIT gigabytes (default 50).",
        panel=OUTPUT,
        envvar=None,
    ),
]


def models(
    remove: RemoveArg = None, prune: PruneOpt = False, json: o.JsonOpt = False, quiet: o.QuietOpt = False
) -> None:
    """List what hfpipe has converted and keeps in its cache, or remove it.

    Models of the Hub are in the Hub's own cache: `hf cache ls` lists them.
    """
    names = _names(remove or [])
    gone = _remove(names) if names else []
    gone += store.prune() if prune else []
    rows = gone if names or prune else store.entries()
    if json:
        data(json_format.dumps([_as_data(entry) for entry in rows], ensure_ascii=False))
    elif rows:
        data(_table(rows))
    if not quiet:
        verb = "Removed" if names or prune else "The cache holds"
        size = store.size_text(sum(entry.size for entry in rows))
        tell(f"{verb} {len(rows)} model{'' if len(rows) == 1 else 's'}, {size}, in {store.cache_root()}.")


def _names(words: Sequence[str]) -> Sequence[str]:
    if words and (words[0] != "rm" or len(words) < 2):
        raise UsageError(f"Unexpected: {' '.join(words)}.", hint="hfpipe models lists, hfpipe models rm NAME removes.")
    return words[1:]


def _remove(names: Sequence[str]) -> list[store.Entry]:
    """Remove every entry of these models. Raises ModelNotFound before anything is removed."""
    entries = store.entries()
    known = {entry.model for entry in entries} | {entry.folder.name for entry in entries}
    for name in names:
        if name not in known:
            raise ModelNotFound(
                f"The cache holds no model {name!r}.", hint=nearest(name, known) or "hfpipe models lists what it holds."
            )
    chosen = [entry for entry in entries if entry.model in names or entry.folder.name in names]
    try:
        for entry in chosen:
            store.remove(entry.folder)
    except store.Locked as error:
        raise HFPipeError(f"Another hfpipe is preparing {entry.model}.", hint="Run it again afterwards.") from error
    return chosen


def _as_data(entry: store.Entry) -> dict[str, Any]:
    return {
        "model": entry.model,
        "format": entry.format,
        "size": entry.size,
        "last_used": _last_used(entry).isoformat(timespec="seconds"),
        "folder": str(entry.folder),
    }


def _table(entries: Sequence[store.Entry]) -> str:
    rows = [("MODEL", "FORMAT", "SIZE", "LAST USED")]
    rows += [
        (shown(one.model), one.format, store.size_text(one.size), f"{_last_used(one):%Y-%m-%d %H:%M}")
        for one in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _last_used(entry: store.Entry) -> datetime:
    return datetime.fromtimestamp(entry.last_used).astimezone()
