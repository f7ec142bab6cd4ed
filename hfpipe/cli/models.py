"""`hfpipe models`: what hfpipe's cache and the Hub's hold, and removing it."""

from __future__ import annotations

import dataclasses
import json as json_format
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated

from hfpipe import store
from hfpipe.cli import options as o
from hfpipe.cli.options import OUTPUT, argument, option
from hfpipe.cli.terminal import data, shown, tell
from hfpipe.errors import HFPipeError, ModelNotFound, UsageError, nearest

_HUB = "hub"
_PRUNE = "Remove the least used, but those of the Hub, until the rest fits into $HFPIPE_CACHE_LIMIT GB (default 50), "
_PRUNE += "but nothing used within the last hour."
RemoveArg = Annotated[list[str] | None, argument("[rm NAME...]", "Remove these models from the caches.")]
PruneOpt = Annotated[bool, option("--prune", _PRUNE, panel=OUTPUT)]


def models(
    remove: RemoveArg = None, prune: PruneOpt = False, json: o.JsonOpt = False, quiet: o.QuietOpt = False
) -> None:
    """List what the cache of hfpipe and that of the Hub hold, or remove it."""
    if remove and (remove[0] != "rm" or len(remove) < 2):
        hint = "hfpipe models lists, hfpipe models rm NAME removes."
        raise UsageError(f"Unexpected: {' '.join(remove)}.", hint=hint)
    rows, kept = _remove(remove[1:]) if remove else [], 0
    if prune:
        pruned, kept = store.prune()
        rows += pruned
    if not (remove or prune):
        rows = _entries()
    if json:
        whole = [dataclasses.asdict(one) | {"last_used": _last_used(one).isoformat(timespec="seconds")} for one in rows]
        data(json_format.dumps(whole, default=str, ensure_ascii=False))
    elif rows:
        data(_table(rows))
    if not quiet:
        verb = "Removed" if remove or prune else f"{store.cache_root()} and the Hub's cache hold"
        size = store.size_text(sum(entry.size for entry in rows))
        tell(f"{verb} {len(rows)} model{'' if len(rows) == 1 else 's'}, {size}.")
        if kept:
            tell(f"Kept {kept} model{'' if kept == 1 else 's'} used within the last hour.")


def _entries() -> list[store.Entry]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    found = store.entries()
    with suppress(CacheNotFound):
        found += [
            store.Entry(repo.repo_id, _HUB, repo.size_on_disk, repo.last_accessed, repo.repo_path)
            for repo in scan_cache_dir().repos
            if repo.repo_type == "model"
        ]
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def _remove(names: Sequence[str]) -> list[store.Entry]:
    """Remove every entry of these models. Raises ModelNotFound before anything is removed."""
    entries = _entries()
    known = {entry.model for entry in entries} | {entry.folder.name for entry in entries}
    for name in names:
        if name not in known:
            hint = nearest(name, known) or "hfpipe models lists what they hold."
            raise ModelNotFound(f"The caches hold no model {name!r}.", hint=hint)
    chosen = [entry for entry in entries if entry.model in names or entry.folder.name in names]
    try:
        for entry in chosen:
            _remove_from_hub(entry) if entry.format == _HUB else store.remove(entry.folder)
    except store.Locked as error:
        raise HFPipeError(f"Another hfpipe is preparing {entry.model}.", hint="Run it again afterwards.") from error
    return chosen


def _remove_from_hub(entry: store.Entry) -> None:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    repos = frozenset(repo for repo in cache.repos if repo.repo_path == entry.folder)
    hashes = [revision.commit_hash for repo in repos for revision in repo.revisions]
    # Of this repository alone: a copy of it has the same commits.
    dataclasses.replace(cache, repos=repos).delete_revisions(*hashes).execute()


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
