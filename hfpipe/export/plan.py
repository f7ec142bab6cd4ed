"""What an export will do, decided and checked before a weight is read: no heavy import, the files' headers alone.

What is certain to fail is refused; an estimate that looks bad is a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfpipe.backends.openvino.optimum_cli import export_command, own_format
from hfpipe.errors import HFPipeError, UnsupportedModel, UsageError
from hfpipe.export.calibration import Calibration
from hfpipe.export.estimate import Estimate, foretell_export, gigabytes
from hfpipe.export.options import ExportOptions
from hfpipe.export.quantization import Quantization, calibration_seconds, decide
from hfpipe.export.shapes import Shapes, classify
from hfpipe.machine import available_memory, free_disk
from hfpipe.models.folder import tensor_shapes
from hfpipe.text.tokenizer import require_tokenizer
from hfpipe.types import ModelSource

# Of the estimated size: with less disk than that it cannot end well.
_CERTAIN = 0.9
# The argument of the command line.
_OUTPUT = "OUTPUT"


@dataclass(frozen=True, slots=True)
class Plan:
    """An export, decided. There is no estimate of what has its weights in pickles. `variable` is what the user can set
    to have the output elsewhere."""

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

    def request(self) -> dict[str, Any]:
        """What tells one export of a model from another."""
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
    if output.is_symlink():
        output = output.resolve()
    estimate = None
    if shapes:
        export = foretell_export(shapes, weight_format, quantization, own_format(source))
        estimate = export.verified(source) if verify else export
        _check_disk(estimate, output, force, variable)
    warnings = tuple(_warnings(shapes, quantization, estimate, output, options))
    return Plan(source, output, options, weight_format, quantization, estimate, warnings, variable)


def _check_source(source: ModelSource) -> None:
    if source.format == "openvino":
        raise UsageError(
            f"{source.reference} is an OpenVINO model already.", hint="Export the model that it was made of."
        )
    if source.is_encoder_decoder:
        raise UnsupportedModel(f"{source.reference} is an encoder-decoder model, which hfpipe does not export.")
    # Without one, optimum-cli would make one that knows no word.
    require_tokenizer(source.folder)


def _check_disk(estimate: Estimate, output: Path, force: bool, variable: str) -> None:
    free = free_disk(output.parent)
    if free < _CERTAIN * estimate.size and not force:
        elsewhere = "name an OUTPUT on another disk, or try it with --force"
        if variable != _OUTPUT:
            elsewhere = f"or set {variable} to a folder on another disk"
        raise HFPipeError(
            f"The export takes about {gigabytes(estimate.size)}, and {output.parent} has {gigabytes(free)} left.",
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
            yield f"It may need {gigabytes(estimate.disk)} of disk; {output.parent} has {gigabytes(free)} left."
        if available < estimate.memory:
            yield f"It may need {gigabytes(estimate.memory)} of memory; {gigabytes(available)} is free."
    if shapes and quantization and quantization.adjust:
        yield "No usual group size divides every layer: some get a smaller one, or stay in 8 bits."
    if quantization and not quantization.calibration and not (options.data_free or options.passes_on("--dataset")):
        minutes = round(calibration_seconds(shapes) / 60) if shapes else None
        reason = f"would take about {minutes} minutes" if minutes else "has a cost that cannot be foretold here"
        yield f"Quantized without calibration text, which {reason}: --scale-estimation asks for it, and loses less."
