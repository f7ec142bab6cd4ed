"""`hfpipe export`: a model in, an OpenVINO folder out that is verified; how the plan and the result are shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hfpipe.cli import options as o
from hfpipe.cli.main import unwinding
from hfpipe.cli.startup import silence
from hfpipe.cli.terminal import Answer, Terminal, columns, shown
from hfpipe.errors import UsageError
from hfpipe.export import IN_4_BITS, WEIGHT_FORMATS, ExportOptions, Options, Report
from hfpipe.store import size_text

if TYPE_CHECKING:
    from hfpipe.export.plan import Plan
    from hfpipe.models.upload import Target


_quantization, _export = partial(o.option, panel="Quantization"), partial(o.option, panel="Export")
_FORMAT = f"{', '.join(WEIGHT_FORMATS)}. Default: the model's own precision."
_GROUP = (
    "Weights that share a scale (4 bits); auto: the largest of 128, 64, 32 that divides every layer; -1: a channel."
)
_RATIO = "The share of the layers' weights in 4 bits; the rest is in 8."
_LOSS = "The most that may be lost, exp(KL divergence) - 1, as in 2%: layers are in 4 bits as far as that allows."
_SIZE = "The most that the folder may take, as in 95MB: as few layers as that needs are in 4 bits."
_SCALES = "Scales that fit the activations (4 bits); the default where GPTQ would take long."
_GPTQ = "GPTQ (4 bits), of int4 hfpipe's own; the slowest, and the default where it takes minutes."
_TEXT = "Text that is like the model's work, or JSONL with text or prompt. Default: hfpipe's own text."
_NO_VERIFY = "Do not run the export or compare it with its source."
_PUSH = "Upload the finished export to the Hub; the repository is created private if it does not exist."
_FORCE = "Replace an export that hfpipe made, and try what will probably fail."

# Of a curve of sizes and losses, what a line shows.
_POINTS = 7
# From here on a perplexity is shown by its power of ten.
_LONG = 1_000_000


def _group_size(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be a number or auto.") from None


def _size(text: str) -> int:
    """95MB or 1.2GB in bytes; a number alone is bytes."""
    found = re.fullmatch(r"([0-9.]+) ?([kMG]?)B?", text.strip(), re.IGNORECASE)
    try:
        return round(float(found[1]) * 1000 ** " kmg".index(found[2].lower() or " ")) if found else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size, as in 95MB.") from None


o.OPTIONS[ExportOptions] = {
    "weight_format": _quantization("--weight-format FORMAT", _FORMAT, autocompletion=o.one_of(WEIGHT_FORMATS)),
    "group_size": _quantization("--group-size N|auto", _GROUP, parser=_group_size),
    "sym": _quantization("--sym", "Symmetric, without zero points."),
    "ratio": _quantization("--ratio R", _RATIO),
    "max_loss": _quantization("--max-loss SHARE", _LOSS, parser=o.share),
    "max_size": _quantization("--max-size SIZE", _SIZE, parser=_size),
    "awq": _quantization("--awq", "Activation-aware scaling (4 bits)."),
    "scale_estimation": _quantization("--scale-estimation", _SCALES),
    "gptq": _quantization("--gptq", _GPTQ),
    "calibration": _quantization("--calibration FILE", _TEXT),
    "data_free": _quantization("--data-free", "No calibration: quick, but loses more quality."),
    **{name: o.OF_LOADING[name] for name in ("trust_remote_code", "allow_pickle")},
}


def export(
    context: typer.Context,
    model: o.ModelArg,
    output: Annotated[Path | None, o.argument("[OUTPUT]", "The folder to make. Default: NAME-ov-FORMAT.")] = None,
    *,
    revision: Annotated[str | None, o.OF_LOADING["revision"]] = None,
    options: ExportOptions,
    no_verify: Annotated[bool, _export("--no-verify", _NO_VERIFY)] = False,
    plot: Annotated[Path | None, _export("--plot FILE", "Draw the sizes and losses of a budget: .png or .svg.")] = None,
    dry_run: Annotated[bool, _export("--dry-run", "Print the plan and export nothing.")] = False,
    force: Annotated[bool, _export("--force", _FORCE)] = False,
    push: Annotated[str | None, _export("--push ORG/NAME", _PUSH)] = None,
    json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Export a model for OpenVINO, quantize it, and verify that it still works.

    What follows -- goes to optimum-cli as it is.
    """
    given = cast(Options, asdict(replace(options, extra=tuple(context.obj or ()))))
    if plot:
        from hfpipe.bench.plot import SUFFIXES
        from hfpipe.bench.report import check_output

        if not options.has_budget:
            raise UsageError("--plot needs --max-loss or --max-size.")
        check_output("--plot", plot, SUFFIXES[:2])
    silence(verbose=verbose)
    import hfpipe
    from hfpipe.export import checked, exporter, planned

    how: Any = {"verify": not no_verify, "force": force}
    rows: Mapping[str, Any]
    with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
        how["reporter"] = terminal
        if dry_run:
            target = checked(push) if push is not None else None
            plan = planned(model, output, revision=revision, **how, **given)
            terminal.stage("Asking the exporter")
            exporter.check(plan, **how)
            terminal.stage(None)
            rows = plan_as_data(plan) if json else plan_as_text(plan)
            if target:
                rows = {**rows, "push": target.as_dict() if json else _target_text(target)}
        else:
            with unwinding():
                done = hfpipe.export(model, output, revision=revision, push=push, verbose=verbose, **how, **given)
            for warning in done.warnings:
                terminal.note(f"Warning: {warning}")
            if plot:
                from hfpipe.bench.plot import plot_budget

                plot_budget(done.data["source"]["model"], done.data["budget"], plot)
            pushed = {"pushed": done.pushed} if done.pushed else {}
            rows = {"folder": str(done.folder), "made": done.made, **done.data, **pushed} if json else result(done)
    with Answer() as answer:
        if json:
            answer.write_json(rows)
        else:
            answer.write(columns(rows) + "\n")


def _target_text(target: Target) -> str:
    new, others = "which will be created, private", "which is " + ("private" if target.is_private else "public")
    return f"to {target.url}, {others if target.exists else new}"


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


def plan_as_text(plan: Plan) -> dict[str, str]:
    """The plan, in names and texts."""
    from hfpipe.export.budget import ATTEMPTS

    data, texts = plan_as_data(plan), plan.calibration
    in_8_bits = [f"{name} in 8 bits" for name in plan.in_8_bits]
    rows = {
        "model": data["model"],
        "output": f"{plan.output}, which exists" if data["exists"] else data["output"],
        "weights": ", ".join([plan.weight_format, *in_8_bits]),
    }
    if plan.weight_format in IN_4_BITS:
        rows["calibration"] = f"{texts.name}, {len(texts.samples)} samples" if texts else "none"
        rows["calibration"] += ", and what the model writes" if plan.rounded else ""
    if plan.options.has_budget:
        rows["budget"] = (
            f"{_budget_text(asdict(plan.options))}: the layers are measured, and 1 to {ATTEMPTS} exports tried"
        )
    if estimate := plan.estimate:
        rows |= {
            "size": f"about {size_text(estimate.size)}",
            "disk": f"about {size_text(estimate.disk)}; {size_text(data['free_disk'])} free",
            "memory": f"about {size_text(estimate.memory)}; {size_text(data['available_memory'])} free",
            "time": f"about {timedelta(seconds=round(estimate.seconds))}, and the verification",
        }
    return rows | {"command": shlex.join(["optimum-cli", "export", "openvino", *data["optimum_cli"]])}


def result(done: Report) -> dict[str, str]:
    """A finished export, in names and texts."""
    from hfpipe.quality.compare import change_text

    report, here = done.data, Path.cwd()
    folder = str(done.folder.relative_to(here) if done.folder.is_relative_to(here) else done.folder)
    rows = {"export": folder if done.made else f"{folder}, which exists already: nothing to do"}
    rows["size"] = size_text(report["size"])
    if "weights" in report:
        rows["weights"] = ", ".join(f"{share:.1%} {name}" for name, share in report["weights"].items())
    if quality := report.get("quality"):
        error = quality["perplexity_change_error"]
        change = change_text(quality["perplexity_change"])
        ours, theirs = (
            f"{value:.2f}" if value < _LONG else f"{value:.2g}"
            for value in (quality["perplexity"], quality["reference_perplexity"])
        )
        margin = f" (±{error:.1%})" if error and not change.startswith("over") else ""
        rows["perplexity"] = f"{ours}, the source's {theirs}: {change}{margin}"
        kinds = quality["kinds"].items()
        rows["of it"] = ", ".join(f"{kind} {change_text(one['perplexity_change'])}" for kind, one in kinds)
        rows["next token"] = f"equal for {quality['same_top']:.1%}; KL divergence {quality['mean_kl']:.4f}"
    if budget := report.get("budget"):
        rows["budget"] = _budget_text(budget)
        rows["tried"] = "; ".join(_point(one) for one in budget["tried"])
        rows["curve"] = ", ".join(_point(one) for one in _few(budget["curve"]))
    if answer := report.get("answer"):
        rows["answer"] = shown(f"{answer['prompt']}{answer['text']}".replace("\n", " "))
    if tokenizer := report.get("tokenizer"):
        differing = ", ".join(tokenizer.get("differing", ()))
        gives = f"gives other ids ({differing} text)" if differing else "gives the same ids as the model's"
        used = "; hfpipe uses the model's" if differing or tokenizer["missing"] else ""
        rows["tokenizer"] = f"OpenVINO's own {'is missing' if tokenizer['missing'] else gives}{used}"
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    made = "copied from the cache; when it was made: " if "copied" in report else ""
    rows["time"] = f"{made}{times}; {size_text(report['peak_memory'])} of memory for the export"
    if pushed := done.pushed:
        private = f"; private, {pushed['url']}/settings makes it public" if pushed["private"] else ""
        rows["pushed"] = f"{pushed['url']}, commit {pushed['commit']}{private}"
    language = " --target-lang LANG" if report.get("needs_target_lang") else ""
    return rows | {"run it": f'hfpipe run {shlex.quote(folder)}{language} "..."'}


def _budget_text(budget: Mapping[str, Any]) -> str:
    size, loss = budget["max_size"], budget["max_loss"]
    limits = [f"at most {size_text(size)}"] if size else []
    return " and ".join([*limits, *([f"a loss (exp(KL) - 1) of at most {loss:.1%}"] if loss else [])])


def _point(one: Mapping[str, Any]) -> str:
    return f"{size_text(one['size'])} {one['loss']:.1%}"


def _few(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some points of a curve, from end to end."""
    last = len(points) - 1
    return [points[index] for index in sorted({number * last // _POINTS for number in range(_POINTS + 1)})]
