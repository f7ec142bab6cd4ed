"""Exports of a model of each family, all in this one process: its imports take longer than the exports.

Runs in a child process (see hfpipe/process.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hfpipe import models, quality
from hfpipe.backends.openvino import optimum_cli
from hfpipe.export import ExportOptions, exporter, rounding, verify
from hfpipe.export.plan import make_plan
from hfpipe.types import Reporter
from tests import tiny
from tests.tiny_exports import in_this_process

LENGTH = 1500
# Encoder-decoder models.
SEQ2SEQ = ["t5", "bart"]
OPTIONS = [ExportOptions("fp32"), ExportOptions("int4", group_size=16)]
# gpt2 with groups that divide next to none of its widths.
ODD = "odd"
# Of one family alone, as they are by default.
OTHER_FORMATS = ["nf4", "cb4", "mxfp4"]


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Make a model of each family, and its exports in fp32 and int4 in `arguments["folder"]`; of Llama also those in
    other formats.

    Gives for each family and format the `folder`, the `report`, the `estimate` of the size, and an `answer`.
    """
    for module in (optimum_cli, exporter, quality):
        module.run_child = in_this_process
    short = {kind: text[:LENGTH] for kind, text in quality.held_out().items()}
    quality.held_out = verify.held_out = lambda share=1.0: short
    rounding._TOKENS = 2048
    folder = Path(arguments["folder"])
    made: dict[str, dict[str, Any]] = {}
    makers = tiny.FAMILIES | {kind: partial(tiny.seq2seq, kind=kind) for kind in SEQ2SEQ}
    for name, make in makers.items():
        source = models.resolve(str(make(folder / name, spread=0.1)))
        others = [ExportOptions(weight_format) for weight_format in OTHER_FORMATS if name == "llama"]
        others += [ExportOptions("int4", data_free=True)] if name == "gpt2" else []
        for options in OPTIONS + others:
            key = ODD if options.data_free else str(options.weight_format)
            plan = make_plan(source, folder / f"{name}-{key}", options)
            done = exporter.export(plan, verify=True)
            made.setdefault(name, {})[key] = {
                "folder": str(done.folder),
                "report": done.data,
                "estimate": plan.estimate.size,
                "answer": verify._answer(done.folder, folder / "compiled", trust_remote_code=False),
            }
    return made
