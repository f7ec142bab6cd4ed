"""The command line of optimum-cli, and the child process that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfpipe.conversion.child import run_child
from hfpipe.types import ModelSource, Reporter

_TASK = "text-generation-with-past"


def export_command(
    source: ModelSource, folder: Path, weight_format: str, *, trust_remote_code: bool = False, more: Sequence[str] = ()
) -> list[str]:
    """What follows `optimum-cli export openvino`. Of an option that `more` repeats, the last one counts."""
    trust = ["--trust-remote-code"] if trust_remote_code else []
    plain = ["--task", _TASK, "--library", "transformers", "--weight-format", weight_format]
    return ["--model", str(source.folder.absolute()), *plain, *trust, *more, str(folder)]


def run_export(
    source: ModelSource,
    command: Sequence[str],
    *,
    reporter: Reporter,
    calibration: Sequence[str] = (),
    in_8_bits: Sequence[str] = (),
    check_only: bool = False,
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
    disk: Path | None = None,
    variable: str = "HFPIPE_CACHE",
) -> None:
    """Run the command in a child process: see `hfpipe.conversion.openvino.main`. Raises HFPipeError.

    Where `disk`, by default the folder that the command names, is full, or may not be written, `variable` is what the
    user can change.
    """
    arguments: dict[str, Any] = {
        "reference": source.reference,
        "command": list(command),
        "calibration": list(calibration),
        "in_8_bits": list(in_8_bits),
        "check_only": check_only,
        "disk": str(disk or Path(command[-1]).parent),
        "variable": variable,
    }
    run_child(
        "hfpipe.conversion.openvino",
        arguments,
        what=f"The export of {source.reference}",
        reporter=reporter,
        verbose=verbose,
        environment=environment,
    )
