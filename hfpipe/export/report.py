"""hfpipe.json: what an export was made of and how, which files it consists of, and what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfpipe import store
from hfpipe.backends.openvino.optimum_cli import EXPORTERS
from hfpipe.errors import UsageError
from hfpipe.export.card import card, carried, source_name, without_paths
from hfpipe.export.plan import Plan
from hfpipe.models.folder import CARD, REPORT
from hfpipe.quality.compare import change_text
from hfpipe.types import ModelSource

# 2: it lists the files, so that --force can tell them from a stranger's.
FORMAT = 2
_LOUD_LOSS = 0.10
# What to do where an export of this weight format is much worse.
_BETTER = {
    "fp32": "It is not quantized: run it with --exact, or run the source with --backend torch.",
    "fp16": "Try --weight-format fp32.",
    "int8": "Try --weight-format fp16.",
    **dict.fromkeys(
        ("int4", "nf4", "cb4"), "Try --weight-format int8, --calibration FILE, a smaller --ratio or --group-size 32."
    ),
    "mxfp4": "Try --weight-format int8 or int4, or a smaller --ratio.",
}


def described_source(source: ModelSource) -> dict[str, Any]:
    """What the user calls it, and what its card says of its license."""
    return {"model": source.reference, "revision": source.revision, **carried(source)}


def versions() -> dict[str, str]:
    """Of the packages that an export depends on."""
    return {package: version(package) for package in (*EXPORTERS, "openvino-genai")}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """The report of an export in `folder`, without what is measured."""
    return {
        "format": FORMAT,
        "source": described_source(plan.source) | {"sha256": store.identity(plan.source.folder)},
        "weight_format": plan.weight_format,
        "request": plan.request(),
        "calibration": plan.calibration.name if plan.calibration else None,
        "optimum_cli": plan.command(Path("OUTPUT")),
        "versions": versions(),
        "created": now(),
        "files": {name: store.digest(folder / name) for name in _names(folder)},
        "size": store.size_of(folder),
    }


def _names(folder: Path) -> list[str]:
    """The files in a folder and below it, and its empty folders; not the report itself."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir())]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {REPORT, store.ENTRY})


def warnings(measured: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What the user should know before using an export that was measured like this."""
    change = measured.get("quality", {}).get("perplexity_change", 0.0)
    if change > _LOUD_LOSS:
        yield (
            f"This export is much worse than its source: {change_text(change)} perplexity. "
            f"{_BETTER[plan.weight_format]}"
        )
    missing = measured["tokenizer"]["missing"] and not plan.options.passes_on("--disable-convert-tokenizer")
    # A difference in one kind of text is usual; more are another tokenizer.
    if missing or len(measured["tokenizer"].get("differing", ())) > 1:
        said = "is missing" if missing else "gives other ids"
        yield f"OpenVINO's own tokenizer {said}: hfpipe uses the model's, other programs may give wrong answers."


def write(report: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Write the report and the model card of the export that will be called `name`. Gives the report as written."""
    (folder / CARD).write_text(card(report, name), encoding="utf-8", newline="\n")
    written = {**report, "files": dict(sorted({**report["files"], CARD: store.digest(folder / CARD)}.items()))}
    # With the two files themselves.
    (folder / REPORT).unlink(missing_ok=True)
    others = store.size_of(folder)
    # Twice: the number is in the text.
    for _ in range(2):
        written["size"] = others + len(_as_text(written).encode())
    (folder / REPORT).write_text(_as_text(written), encoding="utf-8")
    return written


def _as_text(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def published(report: Mapping[str, Any], folder: Path, repo: str) -> dict[str, Path | bytes]:
    """The files of the export in `folder` for the repository `repo`, without what others have put there.

    The card, unless someone has edited it, names the repository, and hfpipe.json no path of this machine.
    """
    files: dict[str, Path | bytes] = {name: folder / name for name in report["files"] if not (folder / name).is_dir()}
    said = {**_without_paths(report), "answer": report.get("answer")}
    said["source"] = {**report["source"], "model": source_name(report["source"])}
    if _is_edited(report, folder):
        files[CARD] = folder / CARD
    else:
        files[CARD] = text = card(report, repo, published=True).encode()
        said["files"] = {**report["files"], CARD: hashlib.sha256(text).hexdigest()}
    return {**files, REPORT: _as_text({key: value for key, value in said.items() if value is not None}).encode()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        return {key: _without_paths(one) for key, one in value.items()}
    return [_without_paths(one) for one in value] if isinstance(value, list | tuple) else value


def _is_edited(report: Mapping[str, Any], folder: Path) -> bool:
    """Whether someone has written another model card."""
    return (folder / CARD).exists() and store.digest(folder / CARD) != report["files"].get(CARD)


def read(folder: Path) -> dict[str, Any] | None:
    """The report of an export; None where there is none of this format."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(report, dict) and report.get("format") == FORMAT and "request" in report
    return report if known and all(isinstance(report.get(key), dict) for key in ("source", "files")) else None


def difference(plan: Plan, folder: Path, *, verify: bool) -> str | None:
    """How the export in `folder` differs from the one that is planned; None where it does not."""
    existing = read(folder)
    if existing is None:
        return "is not a finished export of this hfpipe"
    if existing["request"] != plan.request():
        return "was made with other options"
    if existing["source"].get("sha256") != store.identity(plan.source.folder):
        return "was made of another model, or of another state of it"
    weights = {name: digest for name, digest in existing["files"].items() if name.endswith(".bin")}
    if not weights or weights != {path.name: store.digest(path) for path in folder.glob("*.bin")}:
        return "has other weights than when it was made"
    return "was made without verification" if verify and "answer" not in existing else None


def check_replaceable(output: Path) -> None:
    """Raise UsageError where `output` holds anything that hfpipe has not made: it is not ours to remove."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    made = read(output)
    if made is None:
        raise UsageError(
            f"{output} is not an export that hfpipe made, and stays as it is.", hint="Choose another output folder."
        )
    if _is_edited(made, output):
        raise UsageError(
            f"{output} has a {CARD} that someone has edited, and stays as it is.",
            hint=f"Move {CARD} away, or choose another output folder.",
        )
    if others := [name for name in _names(output) if name not in made["files"]]:
        raise UsageError(
            f"{output} also holds {others[0]}, which hfpipe did not make, and stays as it is.",
            hint=f"Move {others[0]} away, or choose another output folder.",
        )
