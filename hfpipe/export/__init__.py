"""Exports for OpenVINO that are planned, atomic and verified: `hfpipe.export(model, output)`.

plan.py decides what will be done, exporter.py does it, verify.py measures it in a child, report.py is hfpipe.json, and
card.py the model card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from typing_extensions import Unpack

from hfpipe.errors import HFPipeError, UsageError
from hfpipe.types import ModelSource, Reporter, Silent

if TYPE_CHECKING:
    from hfpipe.export.plan import Plan
    from hfpipe.models.upload import Target

IN_4_BITS = ("int4", "nf4", "cb4", "mxfp4")
WEIGHT_FORMATS = ("fp32", "fp16", "int8", *IN_4_BITS)
_OF_TEXT = ("calibration", "scale_estimation", "gptq")
# By option, the formats that take it. nncf does not calibrate mxfp4.
_TAKEN_BY = {
    **dict.fromkeys(("group_size", "ratio", "data_free"), IN_4_BITS),
    **dict.fromkeys(("awq", *_OF_TEXT), ("int4", "nf4", "cb4")),
    **dict.fromkeys(("max_loss", "max_size"), ("int4",)),
    "sym": ("int4", "int8"),
}
# What hfpipe itself tells optimum-cli: a second value would make the plan and the report wrong.
_RESERVED = re.compile(r"-m|--(?:model|weight-format|task|library|quant-mode)(?![a-z-])")


class Options(TypedDict, total=False):
    """The options of an export: see `ExportOptions`."""

    weight_format: str | None
    group_size: int | None
    sym: bool
    ratio: float | None
    max_loss: float | None
    max_size: int | None
    awq: bool
    scale_estimation: bool
    gptq: bool
    calibration: Path | None
    data_free: bool
    trust_remote_code: bool
    allow_pickle: bool
    extra: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """None means: chosen for the model. `weight_format` None is the model's own precision.

    `group_size` counts weights that share a scale, -1 a whole channel; `ratio` is the share of the quantized weights in
    4 bits, the rest is in 8; `calibration` is a file of text. `extra` goes to optimum-cli as it is.

    `max_loss` and `max_size` are a budget, within which layers are in 4 bits or in 8: the loss is exp(KL) - 1, where KL
    is the mean divergence of the next token in nats, by which the perplexity of text that the source writes rises; the
    size is that of the folder in bytes. With one of them `weight_format` None is int4.
    """

    weight_format: str | None = None
    group_size: int | None = None
    sym: bool = False
    ratio: float | None = None
    max_loss: float | None = None
    max_size: int | None = None
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    calibration: Path | None = None
    data_free: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.has_budget and self.weight_format is None:
            object.__setattr__(self, "weight_format", "int4")
        if self.weight_format not in (None, *WEIGHT_FORMATS):
            raise UsageError(
                f"Unknown weight format {self.weight_format!r}.", hint=f"Known formats: {', '.join(WEIGHT_FORMATS)}."
            )
        if self.group_size is not None and self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"--group-size must be positive, or -1 for whole channels, not {self.group_size}.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"--ratio must be above 0 and at most 1 (all in 4 bits), not {self.ratio}.")
        for name, kinds, what in (("max_loss", (int, float), "a share such as 0.02"), ("max_size", (int,), "bytes")):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise UsageError(f"--{name.replace('_', '-')} must be a number, {what}, not {value!r}.")
        if self.max_loss is not None and not 0 < self.max_loss <= 1:
            raise UsageError(f"--max-loss must be above 0 and at most 1 (100%), not {self.max_loss}.")
        if self.max_size is not None and self.max_size < 1:
            raise UsageError(f"--max-size must be positive, not {self.max_size}.")
        if self.has_budget and self.ratio not in (None, 1):
            raise UsageError("--ratio cannot be combined with --max-loss or --max-size, which choose the layers.")
        for name, formats in _TAKEN_BY.items():
            if self.weight_format not in formats:
                taken = " or ".join(filter(None, (", ".join(formats[:-1]), formats[-1])))
                self._refuse(f"--weight-format {taken}", name)
        if self.weight_format == "mxfp4" and self.group_size not in (None, 32):
            raise UsageError(
                f"--group-size {self.group_size} does not work with --weight-format mxfp4.",
                hint="Leave it out: groups of mxfp4 are of 32 weights. int4, nf4 and cb4 take others.",
            )
        if self.data_free:
            self._refuse("calibration text, which --data-free leaves out", *_OF_TEXT)
        for word in self.extra:
            if named := _RESERVED.match(word):
                raise UsageError(f"`{named[0]}` is set by hfpipe and cannot be given after --.")

    @property
    def has_budget(self) -> bool:
        return self.max_loss is not None or self.max_size is not None

    def _refuse(self, needed: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, False):
                raise UsageError(f"--{name.replace('_', '-')} needs {needed}.")

    def passes_on(self, name: str) -> bool:
        """Whether an option of optimum-cli's own is in `extra`."""
        return any(word.partition("=")[0] == name for word in self.extra)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished export in `folder`. `data` is its hfpipe.json; `made` is False where it existed already. One that was
    copied from the cache is made, and `data` says when it was copied. `pushed` has the `repo`, `url` and `commit` on
    the Hub, and whether it is `private`; None where nothing was to be pushed."""

    folder: Path
    data: Mapping[str, Any]
    made: bool = True
    pushed: Mapping[str, Any] | None = None

    @property
    def verified(self) -> bool:
        return "answer" in self.data

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.data.get("warnings", ()))


def run(
    model: str | Path | ModelSource,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    verify: bool = True,
    force: bool = False,
    push: str | None = None,
    verbose: bool = False,
    reporter: Reporter | None = None,
    **options: Unpack[Options],
) -> Report:
    """Export a model for OpenVINO, quantize it, and verify that it still works.

    Args:
        model: A transformers folder, a Hub id, `pypi:PACKAGE`, `smollm2` or a GGUF file.
        output: The folder to make; NAME-ov-FORMAT in the working directory by default.
        revision: A branch, tag or commit of a Hub id.
        verify: Whether to run the export and compare it with its source.
        force: Whether to replace an export that hfpipe made, and to try what will probably fail.
        push: The repository ORG/NAME on the Hub that the finished export is uploaded to; created private if it does not
            exist.
        verbose: Whether the reporter gets each line that the libraries write.
        reporter: Gets notes, stages and progress; nobody by default.
        **options: The fields of `ExportOptions`, such as `weight_format="int8"`.

    Returns:
        The report. An equal export that exists already is left as it is.

    Raises:
        UsageError: The options contradict each other, or `output` holds something that hfpipe did not make.
        ModelError: The model is missing, damaged, or cannot be exported.
        HFPipeError: The export failed, or does not work. Nothing is left of it. Or the upload failed: the export stays,
            and the same call again only uploads it.

    Example:
        >>> import hfpipe
        >>> report = hfpipe.export(model, folder / "out", weight_format="int8", verify=False)
        >>> report.data["weight_format"]
        'int8'
    """
    from hfpipe.export.exporter import export

    target = checked(push) if push is not None else None
    plan = planned(model, output, revision=revision, verify=verify, force=force, reporter=reporter, **options)
    report = export(plan, verify=verify, force=force, verbose=verbose, reporter=reporter)
    return replace(report, pushed=_push(report, target, reporter or Silent())) if target else report


def checked(repo: str) -> Target:
    """The repository ORG/NAME, if an export can be pushed there. Raises HFPipeError, as `upload.check`."""
    from hfpipe.models import upload

    return upload.check(repo)


def _push(report: Report, target: Target, reporter: Reporter) -> Mapping[str, Any]:
    from hfpipe.export.report import published
    from hfpipe.models import upload

    reporter.stage(f"Uploading to {target.repo}")
    try:
        files = published(report.data, report.folder, target.repo)
        return upload.push(target, files, f"Export with hfpipe ({report.data['weight_format']})", reporter)
    except HFPipeError as error:
        again = "The export is finished: the same command, without --force, only uploads it."
        error.hint = f"{error.hint} {again}" if error.hint else again
        raise
    finally:
        reporter.stage(None)


def planned(
    model: str | Path | ModelSource,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    verify: bool = True,
    force: bool = False,
    reporter: Reporter | None = None,
    **options: Unpack[Options],
) -> Plan:
    """What `run` with the same arguments would do. Its warnings are notes. Raises as `run`, for what can be known
    before the work."""
    from hfpipe import models
    from hfpipe.export.plan import make_plan

    reporter = reporter or Silent()
    chosen = ExportOptions(**options)
    if not isinstance(model, ModelSource):
        model = models.resolve(str(model), revision=revision, allow_pickle=chosen.allow_pickle, reporter=reporter)
    plan = make_plan(model, Path(output) if output else None, chosen, force=force, verify=verify)
    for warning in plan.warnings:
        reporter.note(f"Warning: {warning}")
    return plan
