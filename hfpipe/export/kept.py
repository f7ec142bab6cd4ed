"""Exports that are kept in the cache. An export is found there by what it was made of, and with which options."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfpipe.export import report as reports
from hfpipe.export.options import ExportOptions
from hfpipe.export.plan import Plan, default_output, make_plan
from hfpipe.store import cache_root, identity
from hfpipe.types import ModelSource


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole export in the cache, and its hfpipe.json."""

    folder: Path
    report: Mapping[str, Any]

    def copy(self, plan: Plan, folder: Path) -> dict[str, Any]:
        """Fill an empty folder with it, and give its report as that of `plan`: `copied` says when. When it was
        `created`, in how many `seconds` and how much memory, is what it was in the cache."""
        # copytree would not tell a full disk from another error.
        for path in self.folder.rglob("*"):
            if path.is_file():
                copy = folder / path.relative_to(self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        source = {**self.report["source"], **reports.described_source(plan.source)}
        return {**self.report, "source": source, "copied": reports.now()}


def plan_to_keep(source: ModelSource, options: ExportOptions, *, verify: bool) -> Plan:
    """The plan of an export into the cache. Raises as `make_plan`."""
    plan = make_plan(source, _exports() / "export", options, verify=verify, variable="HFPIPE_CACHE")
    return replace(plan, output=_place(plan, verified=verify))


def find(plan: Plan, *, verify: bool) -> Kept | None:
    """What `plan` would make, wherever to, where it is kept: also a verified one, where `verify` asks for none. One of
    other versions of the packages is none."""
    for verified in (True,) if verify else (True, False):
        folder = _place(plan, verified=verified)
        if folder.is_dir():
            difference, report = reports.difference(plan, folder, verify=verify)
            if report and not difference and report["versions"] == reports.versions():
                return Kept(folder, report)
    return None


def _place(plan: Plan, *, verified: bool) -> Path:
    parts = [identity(plan.source.folder), plan.request(), *([] if verified else ["not verified"])]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return _exports() / key / default_output(plan.source.reference, plan.weight_format).name


def _exports() -> Path:
    return cache_root() / "exports"
