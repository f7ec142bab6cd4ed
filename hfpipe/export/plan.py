"""What an export will do and take, decided and checked before a weight is read: the files' headers alone.

What is certain to fail is refused; an estimate that looks bad is a warning.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfpipe import quality
from hfpipe.backends.base import vocabulary_size
from hfpipe.backends.openvino.optimum_cli import export_command, own_format
from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.export import IN_4_BITS, ExportOptions
from hfpipe.export import budget as budgets
from hfpipe.export.quantization import (
    Calibration,
    Layer,
    Shapes,
    calibration,
    calibration_seconds,
    classify,
    decide,
    export_bytes,
    rounded,
)
from hfpipe.machine import available_memory, free_disk
from hfpipe.models.folder import tensor_shapes
from hfpipe.store import require_space, size_text, writing
from hfpipe.text.tokenizer import require_tokenizer
from hfpipe.types import ModelSource

# Measured on two cores, with models of 0.1 and 1 billion parameters.
# The weights in their own precision, how often they are held at once; nncf compresses to 8 bits beside them.
_HELD = {"int8": 2.2, **dict.fromkeys(IN_4_BITS, 1.6)}
_READ = 1.2
_CALIBRATION_BYTES_PER_WEIGHT = 8
_START_S = 12.0
# Of converting; quantizing takes as long again.
_S_PER_WEIGHT = 8e-8

# The tokens of the held-out text, the source's log-probabilities of which are on disk in 16 bits.
_SCORED_TOKENS = 8000
_COMPILED = 3
# Of the estimated size: with less disk than that it cannot end well.
_CERTAIN = 0.9
_EMBEDDINGS = re.compile("shared|embed_tokens|lm_head")
_FLAGS = ("sym", "awq", "scale_estimation", "gptq")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of the result, bytes on disk and in memory at most, seconds on two cores without the verification."""

    size: int
    disk: int
    memory: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """An export, decided: `options` has None no more where it concerns the weight format.

    Layers named by `in_8_bits` stay there, beside what `ratio` leaves there; with a `budget` it is measured which do.
    With `adjust`, those that the group size does not divide take a smaller one. `rounded` are those that hfpipe rounds
    itself; where there are none, nncf does. Weights in pickles have no estimate.
    """

    source: ModelSource
    output: Path
    options: ExportOptions
    calibration: Calibration | None
    in_8_bits: tuple[str, ...]
    adjust: bool
    estimate: Estimate | None = None
    warnings: tuple[str, ...] = ()
    budget: budgets.Budget | None = None
    rounded: tuple[Layer, ...] = ()

    @property
    def weight_format(self) -> str:
        return self.options.weight_format or own_format(self.source)

    def command(self, folder: Path) -> list[str]:
        """What follows `optimum-cli export openvino`."""
        ours = []
        if self.weight_format == "int8":
            # Any option of compression has optimum-cli leave its table of models' own settings alone.
            ours = ["--group-size", "-1"]
        elif self.weight_format in IN_4_BITS:
            ours = ["--group-size", str(self.options.group_size), "--ratio", str(self.options.ratio)]
        if self.weight_format == "mxfp4":
            # As in the other formats: else what is not in 4 bits would be in mxfp8.
            ours += ["--backup-precision", "int8_asym"]
        ours += ["--group-size-fallback", "adjust"] if self.adjust else []
        flags = [name for name in _FLAGS if getattr(self.options, name) and not (name == "gptq" and self.rounded)]
        ours += ["--" + name.replace("_", "-") for name in flags]
        more, trust = [*ours, *self.options.extra], self.options.trust_remote_code
        return export_command(self.source, folder, self.weight_format, trust_remote_code=trust, more=more)

    def by_bits(self) -> dict[int, list[Layer]]:
        """The rounded layers, by how many bits they get."""
        in_8_bits = [layer for layer in self.rounded if layer.module.endswith(self.in_8_bits)]
        return {4: [layer for layer in self.rounded if layer not in in_8_bits], 8: in_8_bits}

    def request(self) -> dict[str, Any]:
        """What distinguishes one export of a model from another."""
        command = self.command(Path("OUTPUT"))
        return {
            "options": command[command.index("--weight-format") : -1],
            "in_8_bits": list(self.in_8_bits),
            "calibration": self.calibration.digest if self.calibration else None,
            **({"rounded_by": "hfpipe"} if self.rounded else {}),
            **({"max_loss": self.options.max_loss, "max_size": self.options.max_size} if self.budget else {}),
        }


def default_output(reference: str, weight_format: str) -> Path:
    """NAME-ov-FORMAT in the working directory."""
    name = reference.removeprefix("pypi:").partition("==")[0]
    name = os.path.basename(os.path.abspath(name)).removesuffix(".gguf")
    return Path(f"{name}-ov-{weight_format}")


def make_plan(
    source: ModelSource,
    output: Path | None,
    options: ExportOptions,
    *,
    force: bool = False,
    verify: bool = True,
    variable: str = "OUTPUT",
) -> Plan:
    """Decide, and check what can be checked. `variable` is what the user can set to have the output elsewhere. Raises
    UsageError or UnsupportedModel for what is certain to fail, unless `force`."""
    if source.format == "openvino":
        raise UsageError(
            f"{source.reference} is already an OpenVINO model.", hint="Export the model that it was made from."
        )
    # Without one, optimum-cli would make a tokenizer that knows no word.
    require_tokenizer(source.folder)
    weight_format = options.weight_format or own_format(source)
    output = (output or default_output(source.reference, weight_format)).absolute()
    with writing(output.parent, variable=variable):
        if output.is_symlink():
            # A loop of links is an error here.
            with suppress(FileNotFoundError):
                output.stat()
            output = output.resolve()
    tensors = tensor_shapes(source.folder)
    shapes = classify(tensors, source.config.get("model_type", "")) if tensors else None
    if source.is_encoder_decoder:
        options = _without_calibration(source, options)
        # The encoder and the decoder have them each.
        twice = sum(math.prod(shape) for name, shape in tensors.items() if _EMBEDDINGS.search(name))
        shapes = shapes and replace(shapes, tables=shapes.tables + twice)
    texts, in_8_bits, adjust, budget = None, tuple[str, ...](), False, None
    if weight_format in IN_4_BITS:
        is_auto, texts = options.group_size is None, calibration(options, shapes)
        is_fixed = weight_format == "mxfp4"
        careful = texts or (is_fixed and not options.data_free)
        in_8_bits = shapes.sensitive() if shapes and careful and options.ratio is None else ()
        options = decide(options, shapes, texts, in_8_bits, force)
        if options.has_budget:
            budget, texts, options = budgets.planned(source, shapes, texts, options, is_auto=is_auto, verify=verify)
            in_8_bits = ()
        undivided = shapes.undivided(options.group_size or -1) if shapes else []
        adjust = is_auto and not is_fixed and (shapes is None or bool(undivided))
        if is_fixed:
            in_8_bits = tuple(dict.fromkeys((*in_8_bits, *(layer.short_name for layer in undivided))))
    by_us = rounded(options, shapes, texts)
    plan = Plan(source, output, options, texts, in_8_bits, adjust, budget=budget, rounded=by_us)
    estimate = _estimate(plan, shapes, verify) if shapes else None
    if estimate and not force:
        require_space(output.parent, round(_CERTAIN * estimate.size), "The export", variable=variable)
    return replace(plan, estimate=estimate, warnings=tuple(_warnings(plan, shapes, estimate)))


def _without_calibration(source: ModelSource, options: ExportOptions) -> ExportOptions:
    """The options for an encoder-decoder model, for which optimum-intel 2.2 does not calibrate 4 bits."""
    for name in ("calibration", "awq", "scale_estimation", "gptq"):
        if getattr(options, name):
            raise UnsupportedOption(
                f"--{name.replace('_', '-')} does not work on {source.reference}, an encoder-decoder model.",
                hint="Leave it out: such a model is quantized without calibration.",
            )
    return replace(options, data_free=options.weight_format in IN_4_BITS)


def _estimate(plan: Plan, shapes: Shapes, verify: bool) -> Estimate:
    # optimum-cli writes a model in its own precision before it quantizes.
    own = export_bytes(shapes, own_format(plan.source))
    size = disk = export_bytes(shapes, plan.weight_format, plan.options, plan.in_8_bits)
    seconds, held = _START_S + shapes.parameters * _S_PER_WEIGHT, _READ * max(own, size)
    if plan.weight_format in _HELD:
        held = _HELD[plan.weight_format] * own
        # What is rounded is a file of a byte a weight.
        numbers = sum(layer.parameters for layer in plan.rounded)
        seconds, disk = seconds + shapes.parameters * _S_PER_WEIGHT, own + size + numbers
    memory = quality.START_BYTES + round(held)
    if plan.calibration:
        memory += _CALIBRATION_BYTES_PER_WEIGHT * shapes.parameters
        seconds += calibration_seconds(shapes, gptq=plan.options.gptq, ours=bool(plan.rounded))
    if plan.budget:
        seconds = plan.budget.seconds + budgets.USUAL_ATTEMPTS * seconds
        # The best so far, and the next.
        disk += size
    if verify:
        reference = _SCORED_TOKENS * (vocabulary_size(plan.source.config) or 0) * 2
        disk = max(disk, size * (1 + _COMPILED) + reference)
    return Estimate(size, disk, memory, seconds)


def _warnings(plan: Plan, shapes: Shapes | None, estimate: Estimate | None) -> Iterator[str]:
    options = plan.options
    if estimate:
        free, available = free_disk(plan.output.parent), available_memory()
        if free < estimate.disk:
            yield f"The export may need {size_text(estimate.disk)} of disk; {size_text(free)} is free."
        if available < estimate.memory:
            yield f"The export may need {size_text(estimate.memory)} of memory; {size_text(available)} is free."
    if shapes and plan.adjust:
        yield "No usual group size divides every layer: some get a smaller one, or stay in 8 bits."
    is_calibrated = plan.calibration or options.data_free or options.passes_on("--dataset")
    if plan.weight_format in IN_4_BITS and plan.weight_format != "mxfp4" and not is_calibrated:
        minutes = f"about {calibration_seconds(shapes) / 60:.0f}" if shapes else "an unknown number of"
        yield (
            f"Quantizing without calibration, which would take {minutes} minutes. --scale-estimation calibrates, "
            "and loses less quality."
        )
