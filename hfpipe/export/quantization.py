"""4-bit quantization, decided."""

from __future__ import annotations

from dataclasses import dataclass

from hfpipe.errors import UsageError
from hfpipe.export import calibration
from hfpipe.export.calibration import Calibration
from hfpipe.export.options import GROUP_SIZES, ExportOptions
from hfpipe.export.shapes import Shapes

# The share of the layers' weights that goes into 4 bits where there is a text to tell which.
_RATIO = 0.65
# Parameters: a smaller model gains much by fine groups, and loses little speed.
_SMALL = 1_000_000_000
# Calibration that takes no longer is done without being asked for.
_UNASKED_S = 600

# Measured on two cores.
_SCALE_ESTIMATION_S_PER_WEIGHT = 3e-7
_GPTQ_S_PER_WEIGHT = 8e-7


@dataclass(frozen=True, slots=True)
class Quantization:
    """int4, decided: see ExportOptions. Layers named by `in_8_bits` stay there, beside what `ratio` leaves there; with
    `adjust`, those that the group size does not divide take a smaller one."""

    group_size: int
    ratio: float
    in_8_bits: tuple[str, ...]
    sym: bool
    awq: bool
    scale_estimation: bool
    gptq: bool
    calibration: Calibration | None
    adjust: bool

    def arguments(self) -> list[str]:
        """As options of optimum-cli."""
        flags = {"--sym": self.sym, "--awq": self.awq, "--scale-estimation": self.scale_estimation, "--gptq": self.gptq}
        return [
            "--group-size",
            str(self.group_size),
            "--ratio",
            str(self.ratio),
            *(["--group-size-fallback", "adjust"] if self.adjust else []),
            *(flag for flag, is_on in flags.items() if is_on),
        ]

    def describe(self) -> str:
        """In one line, for a person."""
        method = {"AWQ": self.awq, "scale estimation": self.scale_estimation, "GPTQ": self.gptq}
        words = [f"groups of {self.group_size}" if self.group_size > 0 else "whole channels"]
        words += ["symmetric"] if self.sym else []
        words += [f"{self.ratio:.0%} of the layers' weights in 4 bits"] if self.ratio < 1 else []
        words += [f"{', '.join(self.in_8_bits)} in 8 bits"] if self.in_8_bits else []
        words += [name for name, is_on in method.items() if is_on]
        return ", ".join(words)


def decide(options: ExportOptions, shapes: Shapes | None, *, force: bool = False) -> Quantization:
    """Fill in what the user has left open. Raises UsageError for a group size that does not fit, unless `force`."""
    texts = _texts(options, shapes)
    named = options.awq or options.scale_estimation or options.gptq
    gptq = options.gptq or bool(texts and not named and shapes and gptq_seconds(shapes) <= _UNASKED_S)
    group_size = options.group_size or _group_size(shapes, fine=bool(texts))
    if options.group_size and shapes and not force and not options.passes_on("--group-size-fallback"):
        _check_group_size(group_size, shapes)
    in_8_bits = shapes.sensitive() if shapes and texts and options.ratio is None else ()
    return Quantization(
        group_size=group_size,
        # Where the names of the layers say nothing, nncf finds the sensitive ones by the texts.
        ratio=options.ratio or (_RATIO if texts and not in_8_bits else 1.0),
        in_8_bits=in_8_bits,
        sym=options.sym,
        awq=options.awq,
        scale_estimation=options.scale_estimation or bool(texts and not named and not gptq),
        gptq=gptq,
        calibration=texts,
        adjust=options.group_size is None and not (shapes and shapes.divisible(group_size)),
    )


def _group_size(shapes: Shapes | None, *, fine: bool) -> int:
    """The largest usual one that divides every layer; the smallest where much is done for a small model's quality."""
    smallest = GROUP_SIZES[-1]
    if shapes is None or (fine and shapes.parameters < _SMALL):
        return smallest
    return shapes.largest_group_size() or smallest


def _check_group_size(group_size: int, shapes: Shapes) -> None:
    if wrong := shapes.undivided(group_size):
        fitting = shapes.largest_group_size()
        raise UsageError(
            f"Group size {group_size} does not divide {wrong[0].width}, the width of {wrong[0].name} "
            f"(so it is with {len(wrong)} of {len(shapes.layers)} layers).",
            hint=f"--group-size {fitting} fits, and auto chooses by itself."
            if fitting
            else "--group-size auto lets each layer have its own.",
        )


def calibration_seconds(shapes: Shapes) -> float:
    """What scale estimation takes on two cores."""
    return shapes.quantized * _SCALE_ESTIMATION_S_PER_WEIGHT


def gptq_seconds(shapes: Shapes) -> float:
    return shapes.quantized * _GPTQ_S_PER_WEIGHT


def _texts(options: ExportOptions, shapes: Shapes | None) -> Calibration | None:
    if options.data_free or options.passes_on("--dataset"):
        return None
    if options.calibration:
        return calibration.from_file(options.calibration)
    asked = options.scale_estimation or options.gptq
    if asked or (shapes and calibration_seconds(shapes) <= _UNASKED_S):
        return calibration.built_in()
    return None
