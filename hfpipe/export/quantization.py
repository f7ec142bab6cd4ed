"""4-bit quantization, decided."""

from __future__ import annotations

from dataclasses import dataclass

from hfpipe.export.calibration import Calibration


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
