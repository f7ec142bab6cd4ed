"""What an export will take, foretold from the shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from typing_extensions import Self

from hfpipe.backends.base import vocabulary_size
from hfpipe.export.quantization import Quantization, calibration_seconds, gptq_seconds
from hfpipe.export.shapes import Shapes, export_bytes
from hfpipe.quality.effort import START_BYTES
from hfpipe.types import ModelSource

# Measured on two cores, with models of 0.1 and 1 billion parameters.
_READ_TIMES = 1.2
_CALIBRATION_BYTES_PER_WEIGHT = 8
_START_S = 12.0
_CONVERSION_S_PER_WEIGHT = 8e-8
_QUANTIZATION_S_PER_WEIGHT = 8e-8

# The tokens of the held-out text, for each of which the source's log-probabilities stand on disk in 16 bits.
_SCORED_TOKENS = 8000
_COMPILED = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of the result, bytes on disk and in memory at most, seconds on two cores without the verification."""

    size: int
    disk: int
    memory: int
    seconds: float

    def verified(self, source: ModelSource) -> Self:
        """With what a verification takes of the disk."""
        reference = _SCORED_TOKENS * (vocabulary_size(source.config) or 0) * 2
        return replace(self, disk=max(self.disk, self.size * (1 + _COMPILED) + reference))


def foretell_export(shapes: Shapes, weight_format: str, quantization: Quantization | None, own_format: str) -> Estimate:
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


def gigabytes(size: float) -> str:
    """A size for a person, in powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
