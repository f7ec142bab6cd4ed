"""`hfpipe export`: a model in, an OpenVINO folder out that is verified; how the plan and the result are shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfpipe.cli import options as o
from hfpipe.cli import options_export as x
from hfpipe.cli.main import unwinding
from hfpipe.cli.startup import silence
from hfpipe.cli.terminal import Answer, Terminal, columns, shown
from hfpipe.export import Report
from hfpipe.store import size_text

if TYPE_CHECKING:
    from hfpipe.export.plan import Plan


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
    """Export a model for OpenVINO, quantize it, and verify that it still works.

    What follows -- goes to optimum-cli as it is.
    """
    given = locals()
    options = x.export_options(given, context.obj or ())
    silence(verbose=verbose)
    import hfpipe
    from hfpipe.export import exporter, planned

    verify = not no_verify
    with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
        if dry_run:
            plan = planned(model, output, revision=revision, verify=verify, force=force, reporter=terminal, **options)
            terminal.stage("Asking the exporter")
            exporter.check(plan, verify=verify, force=force, reporter=terminal)
            terminal.stage(None)
            _print(plan_as_data(plan) if json else plan_as_text(plan), json=json)
            return
        with unwinding():
            done = hfpipe.export(
                model,
                output,
                revision=revision,
                verify=verify,
                force=force,
                verbose=verbose,
                reporter=terminal,
                **options,
            )
        for warning in done.warnings:
            terminal.note(f"Warning: {warning}")
    _print({"folder": str(done.folder), "made": done.made, **done.data} if json else result(done), json=json)


def _print(rows: Mapping[str, Any], *, json: bool) -> None:
    with Answer() as answer:
        if json:
            answer.write_json(rows)
        else:
            answer.write(columns(rows) + "\n")


def plan_as_text(plan: Plan) -> dict[str, str]:
    """The plan, in names and texts."""
    from hfpipe.machine import available_memory, free_disk

    output = f"{plan.output}, which exists" if plan.output.exists() else str(plan.output)
    rows = {"model": plan.source.reference, "output": output, "weights": plan.weight_format}
    if plan.quantization:
        rows["weights"] += f": {plan.quantization.describe()}"
        texts = plan.calibration
        rows["calibration"] = f"{texts.name}, {len(texts.samples)} samples" if texts else "none"
    if plan.estimate:
        rows |= {
            "size": f"about {size_text(plan.estimate.size)}",
            "disk": f"about {size_text(plan.estimate.disk)}; {size_text(free_disk(plan.output.parent))} free",
            "memory": f"about {size_text(plan.estimate.memory)}; {size_text(available_memory())} free",
            "time": f"about {_duration(plan.estimate.seconds)}, and the verification",
        }
    return rows | {"command": shlex.join(["optimum-cli", "export", "openvino", *plan.command(plan.output)])}


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """The plan, for a program: sizes in bytes, null where there is no estimate."""
    from hfpipe.machine import available_memory, free_disk

    return {
        "model": plan.source.reference,
        "revision": plan.source.revision,
        "output": str(plan.output),
        "exists": plan.output.exists(),
        "weight_format": plan.weight_format,
        **plan.request(),
        "estimate": asdict(plan.estimate) if plan.estimate else None,
        "free_disk": free_disk(plan.output.parent),
        "available_memory": available_memory(),
        "warnings": list(plan.warnings),
        "optimum_cli": plan.command(plan.output),
    }


def result(done: Report) -> dict[str, str]:
    """A finished export, in names and texts."""
    report = done.data
    folder = _from_here(done.folder)
    rows = {"export": folder if done.made else f"{folder}, which exists already: nothing to do"}
    rows["size"] = size_text(report["size"])
    if "weights" in report:
        rows["weights"] = ", ".join(f"{share:.1%} {name}" for name, share in report["weights"].items())
    if quality := report.get("quality"):
        rows |= _quality(quality)
    if "answer" in report:
        rows["answer"] = shown(f"{report['answer']['prompt']}{report['answer']['text']}".replace("\n", " "))
    if "tokenizer" in report:
        rows["tokenizer"] = _tokenizer(report["tokenizer"])
    if runtime := report.get("runtime"):
        rows["runtime"] = _runtime(runtime, report["runtime_measured"])
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    made = "copied from the cache; when it was made: " if "copied" in report else ""
    rows["time"] = f"{made}{times}; {size_text(report['peak_memory'])} of memory for the export"
    return rows | {"run it": f'hfpipe run {shlex.quote(folder)} "..."'}


def _from_here(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _quality(quality: Mapping[str, Any]) -> dict[str, str]:
    kinds = ", ".join(f"{kind} {change['perplexity_change']:+.1%}" for kind, change in quality["kinds"].items())
    error = quality["perplexity_change_error"]
    margin = f" (±{error:.1%})" if error else ""
    return {
        "perplexity": f"{quality['perplexity']:.2f}, the source's {quality['reference_perplexity']:.2f}: "
        f"{quality['perplexity_change']:+.1%}{margin}",
        "of it": kinds,
        "next token": f"equal for {quality['same_top']:.1%}; KL divergence {quality['mean_kl']:.4f}",
    }


def _tokenizer(tokenizer: Mapping[str, Any]) -> str:
    if tokenizer["missing"]:
        return "OpenVINO's own is missing; hfpipe uses the model's"
    if tokenizer["differing"]:
        return f"OpenVINO's own gives other ids ({', '.join(tokenizer['differing'])} text); hfpipe uses the model's"
    return "OpenVINO's own gives the same ids as the model's"


def _runtime(runtime: Mapping[str, str], measured: list[Mapping[str, Any]]) -> str:
    chosen = next(one for one in measured if one["properties"] == runtime)
    options = ", ".join(f"{key}={value}" for key, value in runtime.items())
    return f"{options}: prompts {chosen['prefill_ratio']:.2f} times as fast, generation {chosen['decode_ratio']:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"
