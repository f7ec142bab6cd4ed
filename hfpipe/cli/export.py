"""`hfpipe export`: a model in, an OpenVINO folder out that is proven to work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from hfpipe.cli import options as o
from hfpipe.cli import options_export as x
from hfpipe.cli.main import unwinding
from hfpipe.cli.startup import silence
from hfpipe.cli.terminal import Answer, Terminal, columns, tell


def export(
    context: typer.Context,
    model: o.ModelArg,
    output: x.OutputFolderArg = None,
    weight_format: x.WeightFormatOpt = None,
    group_size: x.GroupSizeOpt = "auto",
    sym: x.SymOpt = False,
    ratio: x.RatioOpt = None,
    awq: x.AwqOpt = False,
    scale_estimation: x.ScaleEstimationOpt = False,
    gptq: x.GptqOpt = False,
    calibration: x.CalibrationOpt = None,
    data_free: x.DataFreeOpt = False,
    no_verify: x.NoVerifyOpt = False,
    dry_run: x.DryRunOpt = False,
    force: x.ForceOpt = False,
    revision: o.RevisionOpt = None,
    trust_remote_code: o.TrustOpt = False,
    allow_pickle: o.PickleOpt = False,
    json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Export a model for OpenVINO, quantize it, and prove that it still works.

    What follows -- goes to optimum-cli as it is.
    """
    given = locals()
    wanted = x.export_options(given, context.obj or ())
    silence(verbose=verbose)
    from hfpipe import models
    from hfpipe.cli.export_report import planned, planned_as_data, result
    from hfpipe.export import exporter
    from hfpipe.export.plan import make_plan

    with Terminal(quiet=quiet, verbose=verbose, plain=True) as talk:
        source = models.resolve(model, revision=revision, allow_pickle=allow_pickle, reporter=talk)
        plan = make_plan(source, output, wanted, force=force, verify=not no_verify)
        _warn(plan.warnings, quiet=quiet)
        if dry_run:
            talk.stage("Asking the exporter")
            exporter.check(plan, reporter=talk)
            talk.stage(None)
            _print(planned_as_data(plan) if json else planned(plan), json=json)
            return
        with unwinding():
            done = exporter.export(plan, force=force, verify=not no_verify, verbose=verbose, reporter=talk)
    _warn(done.report.get("warnings", ()), quiet=quiet)
    _print({"folder": str(done.folder), "made": done.made, **done.report} if json else result(done), json=json)


def _warn(lines: Sequence[str], *, quiet: bool) -> None:
    for line in () if quiet else lines:
        tell(f"Warning: {line}")


def _print(rows: Mapping[str, Any], *, json: bool) -> None:
    with Answer() as answer:
        if json:
            answer.write_json(rows)
        else:
            answer.write(columns(rows) + "\n")
