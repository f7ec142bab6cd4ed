"""An export: converted and quantized, verified, reported, and only then given its name. Some are kept in the cache."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hfpipe import store
from hfpipe.backends import UNTUNED
from hfpipe.backends.openvino.optimum_cli import run_export
from hfpipe.errors import BackendError, HFPipeError, ModelError, UsageError
from hfpipe.export import ExportOptions, Report
from hfpipe.export import budget as budgets
from hfpipe.export import report as reports
from hfpipe.export.plan import Plan, default_output, make_plan
from hfpipe.process import run_child
from hfpipe.quality import make_reference, reference_dtype
from hfpipe.quality.compare import Reference
from hfpipe.types import ModelSource, Reporter, Silent

_CACHE = "exports"

References = Callable[[], Reference]


def export(
    plan: Plan,
    *,
    force: bool = False,
    verify: bool = True,
    verbose: bool = False,
    reporter: Reporter | None = None,
) -> Report:
    """Do what `plan` says. Afterwards its output is whole, or as it was before.

    An equal one in the cache is copied, unless `force`. Raises HFPipeError where something else has the name, unless
    `force`, and where the export fails or does not work.
    """
    reporter = reporter or Silent()
    if existing := _existing(plan, force=force, verify=verify):
        return existing
    cached = None if force else _cached(plan, verify=verify)
    with _making(plan, reporter) as work:
        if cached:
            report = _copy(cached, plan, work.folder, reporter)
        else:
            report = _made(plan, work.folder, verify, None, verbose, reporter)
        report = reports.write(report, work.folder, plan.output.name)
        reporter.stage(None)
        # Something else may have come there in the meantime.
        work.finish(lambda: reports.check_replaceable(plan.output))
    return Report(plan.output, report)


def export_to_cache(
    source: ModelSource, options: ExportOptions, reference: References | None, reporter: Reporter, label: str
) -> Report:
    """An export in the cache, made where it is not there yet, and verified where there is a `reference`: it gives what
    the source says of the held-out texts. A note calls it `label`. Raises as `make_plan` and `export`."""
    verify = reference is not None
    plan = make_plan(source, store.cache_place(_CACHE, "export"), options, verify=verify, variable="HFPIPE_CACHE")
    if cached := _cached(plan, verify=verify):
        return cached
    reporter.note(f"Exporting {label}.")
    for warning in plan.warnings:
        reporter.note(f"Warning: {warning}")

    def make(folder: Path) -> None:
        reports.write(_made(plan, folder, verify, reference, False, reporter), folder, plan.output.name)
        reporter.stage(None)

    model, form = source.reference, plan.weight_format
    folder = store.build_once(_CACHE, _key(plan, verify), make, model=model, form=form, reporter=reporter)
    return Report(folder, reports.read(folder) or {})


def check(plan: Plan, *, force: bool = False, verify: bool = True, reporter: Reporter | None = None) -> None:
    """Raise what `export` would raise before it reads a weight: also where the output cannot be written, where the
    installed exporter does not know the model, and for options that it does not take."""
    reporter = reporter or Silent()
    if not _existing(plan, force=force, verify=verify):
        with _making(plan, reporter):
            run_export(plan.source, plan.command(plan.output), check_only=True, reporter=reporter)


def _existing(plan: Plan, *, force: bool, verify: bool) -> Report | None:
    """The equal export that has the name of the output already. Raises HFPipeError where something else has it."""
    output = plan.output
    if plan.source.folder.resolve().is_relative_to(output.resolve()):
        raise UsageError(
            f"{output} holds {plan.source.reference}, and stays as it is.", hint="Choose another output folder."
        )
    # The old export may be among them.
    store.remove_leftovers(output.parent)
    if output.exists() and not force:
        difference = reports.difference(plan, output, verify=verify)
        if difference is None:
            return Report(output, reports.read(output) or {}, made=False)
        if not output.is_dir() or any(output.iterdir()):
            raise HFPipeError(
                f"{output} exists and {difference}.",
                hint="Choose another output folder, or replace the export with force (--force).",
            )
    reports.check_replaceable(output)
    return None


@contextmanager
def _making(plan: Plan, reporter: Reporter) -> Iterator[store.Work]:
    try:
        with store.making(plan.output, variable="OUTPUT", reporter=reporter) as work:
            yield work
    except store.Locked as error:
        raise HFPipeError(
            f"Another hfpipe is exporting to {plan.output}.", hint="Wait for it, or choose another output folder."
        ) from error


def _made(
    plan: Plan, folder: Path, verify: bool, reference: References | None, verbose: bool, reporter: Reporter
) -> dict[str, Any]:
    """Fill `folder` as `plan` says, and give the report."""
    make = _make_within if plan.budget else _make
    return make(plan, folder, verify, reference, verbose, reporter)


def _make_within(
    plan: Plan, folder: Path, verify: bool, reference: References | None, verbose: bool, reporter: Reporter
) -> dict[str, Any]:
    """Fill `folder` with the best of some exports that keep to the budget of `plan`. Raises HFPipeError where none
    does, or where the source cannot be scored."""
    assert plan.budget
    options, curve = plan.options, budgets.measure(plan.source, plan.budget, plan.options, reporter, verbose=verbose)
    tried: dict[int, budgets.Attempt] = {}
    best: tuple[budgets.Attempt, Path, dict[str, Any]] | None = None
    with TemporaryDirectory(dir=folder.parent) as scratch:
        once = cache(reference or partial(_scored, plan, Path(scratch, "reference"), verbose, reporter))
        while len(tried) < budgets.ATTEMPTS and (mix := curve.chosen(options)).count not in tried:
            place = Path(scratch, f"{mix.count}")
            place.mkdir()
            report = _make(_of(mix, plan), place, verify, once, verbose, reporter)
            if "quality" not in report:
                raise HFPipeError(
                    report["warnings"][0], hint="A budget is kept by comparing: choose a --weight-format."
                )
            attempt = budgets.attempt(options, report["size"] + budgets.REPORT_BYTES, report["quality"]["mean_kl"])
            tried[mix.count] = attempt
            reporter.note(f"Tried: {attempt.text}.")
            curve.correct(mix, attempt.size, attempt.kl)
            if attempt.fits and (best is None or budgets.is_better(options, attempt, best[0])):
                best, place = (attempt, place, report), best[1] if best else Path(scratch, "none")
            shutil.rmtree(place, ignore_errors=True)
            if attempt.fits and attempt.is_close:
                break
        if best is None:
            raise budgets.none_fits(list(tried.values()))
        for path in best[1].iterdir():
            shutil.move(path, folder)
    asked = {"request": plan.request(), "made_with": best[2].get("made_with", best[2]["request"])}
    return best[2] | asked | {"budget": budgets.described(options, curve, list(tried.values()))}


def _of(mix: budgets.Mix, plan: Plan) -> Plan:
    """The plan of one export among those of a budget."""
    if mix.count:
        return replace(plan, in_8_bits=mix.in_8_bits, budget=None)
    given = plan.options
    options = ExportOptions(
        "int8",
        sym=given.sym,
        trust_remote_code=given.trust_remote_code,
        allow_pickle=given.allow_pickle,
        extra=given.extra,
    )
    return replace(plan, options=options, calibration=None, adjust=False, budget=None, rounded=())


def _make(
    plan: Plan, folder: Path, verify: bool, reference: References | None, verbose: bool, reporter: Reporter
) -> dict[str, Any]:
    """Fill `folder`, and give its report."""
    begun = time.perf_counter()
    # The system's place for temporary files may be too small for a model.
    with TemporaryDirectory(dir=folder.parent) as scratch:
        environment = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
        # Everything is local, except a dataset or code that the user names.
        if not (plan.options.trust_remote_code or plan.options.passes_on("--dataset")):
            environment["HF_HUB_OFFLINE"] = "1"
        made, numbers, peaks = plan, None, list[int]()
        if plan.rounded:
            numbers = Path(scratch, "numbers.npz")
            try:
                peaks.append(_round(plan, numbers, verbose, reporter))
            except (ModelError, BackendError) as error:
                reporter.note(f"Warning: {error.message} nncf quantizes it, which loses more.")
                made, numbers = replace(plan, rounded=()), None
        reporter.stage("Starting optimum-cli")
        exported = run_export(
            made.source,
            made.command(folder),
            calibration=made.calibration.samples if made.calibration and not numbers else (),
            in_8_bits=[f".*{re.escape(name)}/.*" for name in made.in_8_bits],
            numbers=numbers,
            reporter=reporter,
            verbose=verbose,
            environment=environment,
        )
        seconds = {"export": round(time.perf_counter() - begun, 1)}
        report = reports.describe(made, folder) | {
            "seconds": seconds,
            "peak_memory": max([exported, *peaks]),
        }
        if made is not plan:
            report |= {"request": plan.request(), "made_with": made.request()}
        if verify:
            begun = time.perf_counter()
            report |= _verify(plan, folder, Path(scratch), reference, verbose, reporter)
            seconds["verification"] = round(time.perf_counter() - begun, 1)
    return report


def _round(plan: Plan, output: Path, verbose: bool, reporter: Reporter) -> int:
    """Write what the layers are to be into a file. Gives the peak memory of that, in bytes. Raises UnsupportedModel for
    a model that hfpipe does not round."""
    assert plan.calibration
    reporter.stage("Calibrating")
    names = {bits: {layer.name: layer.is_transposed for layer in layers} for bits, layers in plan.by_bits().items()}
    arguments = {
        "source": str(plan.source.folder.absolute()),
        "reference": plan.source.reference,
        "dtype": reference_dtype(plan.source),
        "in_4_bits": names[4],
        "in_8_bits": names[8],
        "group_size": plan.options.group_size,
        "sym": plan.options.sym,
        "texts": list(plan.calibration.samples),
        "output": str(output),
        "trust_remote_code": plan.options.trust_remote_code,
        "allow_pickle": plan.options.allow_pickle,
    }
    what = f"Rounding the weights of {plan.source.reference}"
    peak: int = run_child("hfpipe.export.rounding", arguments, what=what, reporter=reporter, verbose=verbose)
    return peak


def _verify(
    plan: Plan, folder: Path, scratch: Path, reference: References | None, verbose: bool, reporter: Reporter
) -> dict[str, Any]:
    """Compare the export with its source. Where the source cannot be scored, a warning says that this is missing."""
    scored, warnings = scratch / "reference", list[str]()
    made = None
    try:
        made = reference() if reference else _scored(plan, scored, verbose, reporter)
    except HFPipeError as error:
        # What it wrote may be what filled the disk.
        shutil.rmtree(scored, ignore_errors=True)
        reason = error.message.replace(str(scored), str(plan.output.parent))
        warnings.append(f"Not compared with its source, which could not be scored: {reason}")
    reporter.stage("Loading the export")
    arguments = {
        "folder": str(folder),
        "source_folder": str(plan.source.folder.absolute()),
        "reference_folder": str(made.folder) if made else None,
        "temporary": str(scratch),
        "trust_remote_code": plan.options.trust_remote_code,
    }
    what = f"The verification of {folder.name}"
    measured = run_child(
        "hfpipe.export.verify", arguments, what=what, reporter=reporter, verbose=verbose, environment=UNTUNED
    )
    return {**measured, "warnings": [*warnings, *reports.warnings(measured, plan)]}


def _scored(plan: Plan, folder: Path, verbose: bool, reporter: Reporter) -> Reference:
    """What the source says of the held-out texts, written into `folder`."""
    reporter.stage("Scoring the source")
    folder.mkdir()
    trust, pickles = plan.options.trust_remote_code, plan.options.allow_pickle
    return make_reference(
        plan.source, folder, trust_remote_code=trust, allow_pickle=pickles, reporter=reporter, verbose=verbose
    )


def _cached(plan: Plan, *, verify: bool) -> Report | None:
    """The export in the cache that `plan` would make, wherever to; also a verified one where `verify` is False."""
    for verified in (True,) if verify else (True, False):
        if folder := store.cached(_CACHE, _key(plan, verified)):
            if not reports.difference(plan, folder, verify=verify):
                return Report(folder, reports.read(folder) or {}, made=False)
            # It is damaged, which another process may have seen too.
            with suppress(store.Locked):
                store.remove(folder)
    return None


def _key(plan: Plan, verified: bool) -> str:
    """By all that the export depends on."""
    source = store.identity(plan.source.folder)
    key = store.key_of(source, plan.request(), verified, reports.versions(), reports.FORMAT)
    return f"{default_output(plan.source.reference, plan.weight_format).name.lstrip('.')}-{key}"


def _copy(cached: Report, plan: Plan, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Fill the folder with an equal export. Its times and its memory are those of when it was made."""
    reporter.note("Copying an equal export from the cache, where bench has made it. Force (--force) makes it anew.")
    reporter.stage("Copying the export")
    # copytree would not tell a full disk from another error.
    for name in cached.data["files"]:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached.folder / name, copy)
    source = {**cached.data["source"], **reports.described_source(plan.source)}
    return {**cached.data, "source": source, "copied": reports.now()}
