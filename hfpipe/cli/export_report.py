"""What `hfpipe export` prints: the plan of an export, and what came out of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hfpipe.cli.terminal import shown
from hfpipe.export.estimate import gigabytes
from hfpipe.export.exporter import Exported
from hfpipe.export.plan import Plan
from hfpipe.machine import available_memory, free_disk


def planned(plan: Plan) -> dict[str, str]:
    """The plan, in names and texts."""
    output = f"{plan.output}, which exists" if plan.output.exists() else str(plan.output)
    rows = {"model": plan.source.reference, "output": output, "weights": plan.weight_format}
    if plan.quantization:
        rows["weights"] += f": {plan.quantization.describe()}"
        texts = plan.calibration
        rows["calibration"] = f"{texts.name}, {len(texts.samples)} samples" if texts else "none"
    if plan.estimate:
        rows |= {
            "size": f"about {gigabytes(plan.estimate.size)}",
            "disk": f"about {gigabytes(plan.estimate.disk)}; {gigabytes(free_disk(plan.output.parent))} free",
            "memory": f"about {gigabytes(plan.estimate.memory)}; {gigabytes(available_memory())} free",
            "time": f"about {_duration(plan.estimate.seconds)}, and the verification",
        }
    return rows | {"command": shlex.join(["optimum-cli", "export", "openvino", *plan.command(plan.output)])}


def planned_as_data(plan: Plan) -> dict[str, Any]:
    """The plan, for a program: sizes in bytes, null where there is no estimate."""
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


def result(done: Exported) -> dict[str, str]:
    """A finished export, in names and texts."""
    report = done.report
    folder = _from_here(done.folder)
    rows = {"export": folder if done.made else f"{folder}, which stands already: nothing was done"}
    rows["size"] = gigabytes(report["size"])
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
    made = "when it was made, and now copied from the cache: " if "copied" in report else ""
    rows["time"] = f"{made}{times}; {gigabytes(report['peak_memory'])} of memory for the export"
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
