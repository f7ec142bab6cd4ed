"""hfpipe.json: what an export was made of and how, and what came out of measuring it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfpipe.export.plan import Plan
from hfpipe.models.folder import REPORT
from hfpipe.types import ModelSource

_FORMAT = 1
_CHUNK = 1 << 20
_PACKAGES = ("hfpipe", "optimum-intel", "nncf", "openvino", "openvino-genai", "transformers", "torch")
_SOURCE_FILES = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja")
_LOUD_LOSS = 0.10
_FINER = {"int8": "fp16", "fp16": "fp32"}


def sha256_of(files: Iterable[Path]) -> str:
    """One digest of the files' contents, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def source_digest(source: ModelSource) -> str:
    """Of the weights, the configuration and the tokenizer that an export is made of."""
    return sha256_of(path for pattern in _SOURCE_FILES for path in source.folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """Of the weights of an export."""
    return sha256_of(folder.glob("*.bin"))


def described_source(source: ModelSource) -> dict[str, Any]:
    """What the user calls it."""
    return {"model": source.reference, "revision": source.revision}


def versions() -> dict[str, str]:
    """Of the packages that an export depends on."""
    return {package: version(package) for package in _PACKAGES}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """The report of an export in `folder`, but for what is measured."""
    return {
        "format": _FORMAT,
        "source": described_source(plan.source) | {"sha256": source_digest(plan.source)},
        "weight_format": plan.weight_format,
        "request": plan.request(),
        "calibration": plan.calibration.name if plan.calibration else None,
        "optimum_cli": plan.command(Path("OUTPUT")),
        "versions": versions(),
        "created": now(),
        "sha256": weights_digest(folder),
        "size": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def warnings(measured: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What the user should know before using an export that was measured to be like that."""
    change = measured.get("quality", {}).get("perplexity_change", 0.0)
    if change > _LOUD_LOSS:
        yield f"This export is much worse than its source: {change:+.0%} perplexity. {_remedy(plan)}"
    tokenizer = measured["tokenizer"]
    if tokenizer["missing"] and not plan.options.passes_on("--disable-convert-tokenizer"):
        yield (
            f"OpenVINO's own tokenizer could not be made ({', '.join(tokenizer['missing'])} is missing): "
            "hfpipe needs none, other programs may."
        )


def _remedy(plan: Plan) -> str:
    quantization = plan.quantization
    if quantization is None:
        finer = _FINER.get(plan.weight_format)
        return f"Try --weight-format {finer}." if finer else "--backend torch runs the source itself."
    if quantization.calibration is None:
        return "Try it with --calibration FILE or --scale-estimation, or with --weight-format int8."
    return f"Try --ratio {quantization.ratio / 2:.2g}, --group-size 32, or --weight-format int8."


def write(report: Mapping[str, Any], folder: Path) -> None:
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The report of an export; None where there is none that this hfpipe has written."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(report, dict) and report.get("format") == _FORMAT
    return report if known and "request" in report and isinstance(report.get("source"), dict) else None


def is_verified(report: Mapping[str, Any]) -> bool:
    return "answer" in report


def difference(plan: Plan, folder: Path, *, verify: bool) -> tuple[str | None, dict[str, Any] | None]:
    """What tells the export that stands in `folder` from the one that is planned, and its report."""
    existing = read(folder)
    if existing is None:
        return "and is no finished export of hfpipe", None
    if existing["request"] != plan.request():
        return "made with other options", existing
    if existing["source"].get("sha256") != source_digest(plan.source):
        return "made of another model, or of another state of it", existing
    if existing.get("sha256") != weights_digest(folder):
        return "and its weights have changed since it was made", existing
    if verify and not is_verified(existing):
        return "made without verification", existing
    return None, existing
