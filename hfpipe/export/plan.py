"""What an export will do and take, decided and checked before a weight is read: the files' headers alone.

What is certain to fail is refused; an estimate that looks bad is a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from hfpipe.backends.base import vocabulary_size
from hfpipe.backends.openvino.optimum_cli import export_command, own_format
from hfpipe.errors import HFPipeError, UnsupportedModel, UsageError
from hfpipe.export import ExportOptions
from hfpipe.export.quantization import (
    Calibration,
    Quantization,
    Shapes,
    calibration_seconds,
    classify,
    decide,
    export_bytes,
    gptq_seconds,
)
from hfpipe.machine import available_memory, free_disk
from hfpipe.models.folder import tensor_shapes
from hfpipe.quality.texts import START_BYTES
from hfpipe.store import real_path, size_text, writing
from hfpipe.text.tokenizer import require_tokenizer
from hfpipe.types import ModelSource

# Measured on two cores, with models of 0.1 and 1 billion parameters.
_READ_TIMES = 1.2
_CALIBRATION_BYTES_PER_WEIGHT = 8
_START_S = 12.0
_CONVERSION_S_PER_WEIGHT = 8e-8
_QUANTIZATION_S_PER_WEIGHT = 8e-8

# The tokens of the held-out text, the source's log-probabilities of which are on disk in 16 bits.
_SCORED_TOKENS = 8000
_COMPILED = 3
# Of the estimated size: with less disk than that it cannot end well.
_CERTAIN = 0.9
# What a user can change: this argument, or a variable.
_OUTPUT = "OUTPUT"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of the result, bytes on disk and in memory at most, seconds on two cores without the verification."""

    size: int
    disk: int
    memory: int
    seconds: float

    def verified(self, source: ModelSource) -> Self:
        """With the disk that a verification takes."""
        reference = _SCORED_TOKENS * (vocabulary_size(source.config) or 0) * 2
        return replace(self, disk=max(self.disk, self.size * (1 + _COMPILED) + reference))


def estimated(shapes: Shapes, weight_format: str, quantization: Quantization | None, own_format: str) -> Estimate:
    """`own_format` is that of the model's own precision, in which optimum-cli writes it before it quantizes."""
    own = export_bytes(shapes, own_format, -1, 1.0)
    seconds = _START_S + shapes.parameters * _CONVERSION_S_PER_WEIGHT
    size = export_bytes(shapes, weight_format, -1, 1.0)
    if weight_format in ("fp32", "fp16"):
        return Estimate(size, size, START_BYTES + round(_READ_TIMES * max(own, size)), seconds)
    if quantization:
        in_8_bits = shapes.share_of(quantization.in_8_bits, quantization.group_size)
        ratio = max(0.0, quantization.ratio - in_8_bits)
        size = export_bytes(shapes, weight_format, quantization.group_size, ratio, sym=quantization.sym)
    seconds += shapes.parameters * _QUANTIZATION_S_PER_WEIGHT
    memory = START_BYTES + round(_READ_TIMES * own)
    if quantization and quantization.calibration:
        memory += _CALIBRATION_BYTES_PER_WEIGHT * shapes.parameters
        seconds += gptq_seconds(shapes) if quantization.gptq else calibration_seconds(shapes)
    return Estimate(size, own + size, memory, seconds)


@dataclass(frozen=True, slots=True)
class Plan:
    """An export, decided. Weights in pickles have no estimate. `variable` is what the user can set to have the output
    elsewhere."""

    source: ModelSource
    output: Path
    options: ExportOptions
    weight_format: str
    quantization: Quantization | None
    estimate: Estimate | None
    warnings: tuple[str, ...] = ()
    variable: str = _OUTPUT

    def command(self, folder: Path) -> list[str]:
        """What follows `optimum-cli export openvino`."""
        # Any option of compression has optimum-cli leave its table of models' own settings alone.
        ours = ["--group-size", "-1"] if self.weight_format == "int8" else []
        ours += ["--sym"] if self.weight_format == "int8" and self.options.sym else []
        ours += self.quantization.arguments() if self.quantization else []
        return export_command(
            self.source,
            folder,
            self.weight_format,
            trust_remote_code=self.options.trust_remote_code,
            more=[*ours, *self.options.extra],
        )

    @property
    def calibration(self) -> Calibration | None:
        return self.quantization.calibration if self.quantization else None

    @property
    def in_8_bits(self) -> tuple[str, ...]:
        return self.quantization.in_8_bits if self.quantization else ()

    @property
    def is_cached(self) -> bool:
        """Whether the output is in hfpipe's own cache."""
        return self.variable != _OUTPUT

    def request(self) -> dict[str, Any]:
        """What distinguishes one export of a model from another."""
        command = self.command(Path("OUTPUT"))
        return {
            "options": command[command.index("--weight-format") : -1],
            "in_8_bits": list(self.in_8_bits),
            "calibration": self.calibration.digest if self.calibration else None,
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
    variable: str = _OUTPUT,
) -> Plan:
    """Decide, and check what can be checked. Raises UsageError or UnsupportedModel for what is certain to fail, unless
    `force`."""
    _check_source(source)
    weight_format = options.weight_format or own_format(source)
    tensors = tensor_shapes(source.folder)
    shapes = classify(tensors, source.config.get("model_type", "")) if tensors else None
    quantization = decide(options, shapes, force=force) if weight_format == "int4" else None
    output = (output or default_output(source.reference, weight_format)).absolute()
    with writing(output.parent, variable=variable):
        output = real_path(output) if output.is_symlink() else output
    estimate = None
    if shapes:
        export = estimated(shapes, weight_format, quantization, own_format(source))
        estimate = export.verified(source) if verify else export
        _check_disk(estimate, output, force, variable)
    warnings = tuple(_warnings(shapes, quantization, estimate, output, options))
    return Plan(source, output, options, weight_format, quantization, estimate, warnings, variable)


def _check_source(source: ModelSource) -> None:
    if source.format == "openvino":
        raise UsageError(
            f"{source.reference} is already an OpenVINO model.", hint="Export the model that it was made from."
        )
    if source.is_encoder_decoder:
        raise UnsupportedModel(f"{source.reference} is an encoder-decoder model, which hfpipe does not export.")
    # Without one, optimum-cli would make a tokenizer that knows no word.
    require_tokenizer(source.folder)


def _check_disk(estimate: Estimate, output: Path, force: bool, variable: str) -> None:
    free = free_disk(output.parent)
    if free < _CERTAIN * estimate.size and not force:
        elsewhere = "choose an output folder on another disk, or try it with force (--force)"
        if variable != _OUTPUT:
            elsewhere = f"or set {variable} to a folder on another disk"
        raise HFPipeError(
            f"The export needs about {size_text(estimate.size)}, and {output.parent} has {size_text(free)} left.",
            hint=f"Free some space, {elsewhere}.",
        )


def _warnings(
    shapes: Shapes | None,
    quantization: Quantization | None,
    estimate: Estimate | None,
    output: Path,
    options: ExportOptions,
) -> Iterator[str]:
    if estimate:
        free, available = free_disk(output.parent), available_memory()
        if free < estimate.disk:
            yield f"The export may need {size_text(estimate.disk)} of disk; {output.parent} has {size_text(free)} left."
        if available < estimate.memory:
            yield f"The export may need {size_text(estimate.memory)} of memory; {size_text(available)} is free."
    if shapes and quantization and quantization.adjust:
        yield "No usual group size divides every layer: some get a smaller one, or stay in 8 bits."
    if quantization and not quantization.calibration and not (options.data_free or options.passes_on("--dataset")):
        minutes = round(calibration_seconds(shapes) / 60) if shapes else None
        reason = f"would take about {minutes} minutes" if minutes else "takes an unknown time for this model"
        yield f"Quantizing without calibration, which {reason}. --scale-estimation calibrates, and loses less quality."
