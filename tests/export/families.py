"""Exports of a model of each family, all in this one process: its imports take longer than the exports.

Runs in a child process (see hfpipe/process.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfpipe import models, quality
from hfpipe.backends.openvino import optimum_cli
from hfpipe.export import ExportOptions, exporter, verify
from hfpipe.export.plan import make_plan
from hfpipe.types import Reporter
from tests import tiny
from tests.tiny_exports import in_this_process

LENGTH = 1500
SPREAD = 0.1


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Make a model of each family, and its exports in fp32, which is verified, and int4, in `arguments["folder"]`.

    Gives for each family and format the `folder`, the `report`, and the `estimate` of the size.
    """
    for module in (optimum_cli, exporter, quality):
        module.run_child = in_this_process
    short = {kind: text[:LENGTH] for kind, text in quality.held_out().items()}
    quality.held_out = verify.held_out = lambda share=1.0: short
    return {name: _exports(name, make, Path(arguments["folder"])) for name, make in tiny.FAMILIES.items()}


def _exports(name: str, make: Any, folder: Path) -> dict[str, Any]:
    source = models.resolve(str(make(folder / name, spread=SPREAD)))
    return {
        weight_format: _export(source, folder / f"{name}-{weight_format}", options)
        for weight_format, options in {
            "fp32": ExportOptions("fp32"),
            "int4": ExportOptions("int4", data_free=True),
        }.items()
    }


def _export(source: Any, output: Path, options: ExportOptions) -> dict[str, Any]:
    plan = make_plan(source, output, options)
    done = exporter.export(plan, verify=options.weight_format == "fp32")
    return {"folder": str(done.folder), "report": done.data, "estimate": plan.estimate.size}
