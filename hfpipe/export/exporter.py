"""An export: converted and quantized, verified, reported, and only then given its name."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfpipe.backends.openvino.optimum_cli import run_export
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.export import report as reports
from hfpipe.export.kept import Kept, find
from hfpipe.export.plan import Plan
from hfpipe.process import run_child
from hfpipe.quality import Reference, make_reference
from hfpipe.store import Locked, Work, making, remove_leftovers
from hfpipe.types import Reporter, Silent

# A folder with one of these was made by an exporter.
_MARKS = ("hfpipe.json", "openvino_model.xml", "openvino_encoder_model.xml")


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export. `report` is its hfpipe.json; `made` is False where it stood already. One that was copied from
    the cache is made, and its report says that too."""

    folder: Path
    report: Mapping[str, Any]
    made: bool = True

    @property
    def verified(self) -> bool:
        return reports.is_verified(self.report)


def export(
    plan: Plan,
    *,
    force: bool = False,
    verify: bool = True,
    reference: Callable[[], Reference] | None = None,
    verbose: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Do what `plan` says. Afterwards its output stands whole, or is as it was.

    An equal one that is kept in the cache is copied, unless `force`. `reference` gives what its source says of the
    held-out texts, where that is known: else it is scored here.
    Raises HFPipeError where something else stands there, unless `force`, and where the export fails or does not work.
    """
    reporter = reporter or Silent()
    if plan.source.folder.resolve().is_relative_to(plan.output.resolve()):
        raise UsageError(
            f"{plan.output} holds {plan.source.reference}, and stays as it is.", hint="Name another OUTPUT."
        )
    # The old export may be among them.
    remove_leftovers(plan.output.parent)
    if plan.output.exists() and not force:
        difference, existing = reports.difference(plan, plan.output, verify=verify)
        if existing and not difference:
            return Exported(plan.output, existing, made=False)
        if not plan.output.is_dir() or any(plan.output.iterdir()):
            raise HFPipeError(
                f"{plan.output} exists, {difference}.", hint="Name another OUTPUT, or replace it with --force."
            )
    check_replaceable(plan.output)
    kept = None if force else find(plan, verify=verify)
    try:
        with making(plan.output, variable=plan.variable, reporter=reporter) as work:
            report = (
                _copy(kept, plan, work, reporter) if kept else _make(plan, work, verify, reference, verbose, reporter)
            )
            reports.write(report, work.folder)
            reporter.stage(None)
            # Something else may have come there while the export was made.
            work.finish(lambda: check_replaceable(plan.output))
    except Locked as error:
        raise HFPipeError(
            f"Another hfpipe is exporting to {plan.output}.", hint=f"Wait for it, or name another {plan.variable}."
        ) from error
    return Exported(plan.output, report)


def check_replaceable(output: Path) -> None:
    """Raise UsageError where `output` holds something else than an export: it is not for us to remove."""
    is_export = output.is_dir() and (any((output / name).exists() for name in _MARKS) or not any(output.iterdir()))
    if output.exists() and not is_export:
        raise UsageError(f"{output} is not an export, and stays as it is.", hint="Name another OUTPUT.")


def check(plan: Plan, *, reporter: Reporter | None = None) -> None:
    """Raise UnsupportedModel where the installed exporter does not know the model, and UsageError for its options."""
    run_export(plan.source, plan.command(plan.output), check_only=True, reporter=reporter or Silent())


def _copy(kept: Kept, plan: Plan, work: Work, reporter: Reporter) -> dict[str, Any]:
    reporter.note("An equal export stands in the cache, where bench has made it: copied; --force makes it anew.")
    reporter.stage("Copying the export")
    return kept.copy(plan, work.folder)


def _make(
    plan: Plan,
    work: Work,
    verify: bool,
    reference: Callable[[], Reference] | None,
    verbose: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    with _timed(seconds, "export"):
        peak_memory = _convert(plan, work, verbose, reporter)
    measured = {"seconds": seconds, "peak_memory": peak_memory}
    report = reports.describe(plan, work.folder) | measured
    if verify:
        with _timed(seconds, "verification"):
            report |= _verify(plan, work, reference, verbose, reporter)
    return report


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 1)


def _convert(plan: Plan, work: Work, verbose: bool, reporter: Reporter) -> int:
    """Gives the bytes of memory that the export held at most."""
    reporter.stage("Starting optimum-cli")
    # All that it needs is here, but for a dataset or code that the user names.
    downloads = plan.options.trust_remote_code or plan.options.passes_on("--dataset")
    offline = {} if downloads else {"HF_HUB_OFFLINE": "1"}
    return run_export(
        plan.source,
        plan.command(work.folder),
        calibration=plan.calibration.samples if plan.calibration else (),
        in_8_bits=[f".*{re.escape(name)}/.*" for name in plan.in_8_bits],
        reporter=reporter,
        verbose=verbose,
        environment=dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work.scratch)) | offline,
        disk=plan.output.parent,
        variable=plan.variable,
    )


def _verify(
    plan: Plan, work: Work, reference: Callable[[], Reference] | None, verbose: bool, reporter: Reporter
) -> dict[str, Any]:
    """What the export is like beside its source. A source that cannot be scored takes that part away, and is said."""
    folder, warnings = None, []
    try:
        folder = str((reference() if reference else _score_source(plan, work, verbose, reporter)).folder)
    except HFPipeError as error:
        reason = error.message.replace(str(_reference_folder(work)), str(plan.output.parent))
        warnings.append(f"Not compared with its source, which could not be scored: {reason}")
    reporter.stage("Loading the export")
    arguments = {
        "reference": plan.output.name,
        "folder": str(work.folder),
        "reference_folder": folder,
        "temporary": str(work.scratch),
        "trust_remote_code": plan.options.trust_remote_code,
    }
    what = f"The verification of {plan.output.name}"
    measured = run_child("hfpipe.export.verify", arguments, what=what, reporter=reporter, verbose=verbose)
    return {**measured, "warnings": [*warnings, *reports.warnings(measured, plan)]}


def _score_source(plan: Plan, work: Work, verbose: bool, reporter: Reporter) -> Reference:
    reporter.stage("Scoring the source")
    folder = _reference_folder(work)
    folder.mkdir()
    try:
        return make_reference(
            plan.source,
            folder,
            trust_remote_code=plan.options.trust_remote_code,
            allow_pickle=plan.options.allow_pickle,
            reporter=reporter,
            verbose=verbose,
        )
    except HFPipeError:
        # What it wrote may be what filled the disk.
        shutil.rmtree(folder)
        raise


def _reference_folder(work: Work) -> Path:
    return work.scratch / "reference"
