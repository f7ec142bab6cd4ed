"""What a user may ask of an export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import UsageError

WEIGHT_FORMATS = ("fp32", "fp16", "int8", "int4")
GROUP_SIZES = (128, 64, 32)
_PER_CHANNEL = -1
# What optimum-cli is told by hfpipe itself: another word of it would make the plan and the report wrong.
_OURS = re.compile(r"-m|--(?:model|weight-format)(?![a-z-])")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """None means: chosen for the model. `weight_format` None is the model's own precision.

    `group_size` counts weights that share a scale, -1 a whole channel; `ratio` is the share of the quantized weights in
    4 bits, the rest is in 8; `calibration` is a file of text. `extra` goes to optimum-cli as it is.
    """

    weight_format: str | None = None
    group_size: int | None = None
    sym: bool = False
    ratio: float | None = None
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    calibration: Path | None = None
    data_free: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight_format not in (None, *WEIGHT_FORMATS):
            raise UsageError(
                f"Unknown weight format {self.weight_format!r}.", hint=f"There are {', '.join(WEIGHT_FORMATS)}."
            )
        if self.group_size is not None and self.group_size != _PER_CHANNEL and self.group_size < 1:
            raise UsageError(f"--group-size must be positive, or -1 for whole channels, not {self.group_size}.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(
                f"--ratio must be above 0 and at most 1 (all in 4 bits), not {self.ratio}.",
                hint="--weight-format int8 has all in 8 bits.",
            )
        if self.weight_format != "int4":
            self._refuse("--weight-format int4", self._int4_options())
        if self.weight_format not in ("int4", "int8"):
            self._refuse("--weight-format int4 or int8", {"--sym": self.sym})
        if self.data_free:
            self._refuse("calibration text, which --data-free leaves out", self._data_options())
        for word in self.extra:
            if named := _OURS.match(word):
                raise UsageError(f"{named[0]} is hfpipe's own, and does not go after --.")

    def passes_on(self, name: str) -> bool:
        """Whether an option of optimum-cli's own is in `extra`."""
        return any(word.partition("=")[0] == name for word in self.extra)

    def _int4_options(self) -> dict[str, bool]:
        return {
            "--group-size": self.group_size is not None,
            "--ratio": self.ratio is not None,
            "--awq": self.awq,
            "--data-free": self.data_free,
            **self._data_options(),
        }

    def _data_options(self) -> dict[str, bool]:
        return {
            "--calibration": self.calibration is not None,
            "--scale-estimation": self.scale_estimation,
            "--gptq": self.gptq,
        }

    def _refuse(self, needed: str, given: dict[str, bool]) -> None:
        for name, is_given in given.items():
            if is_given:
                raise UsageError(f"{name} needs {needed}.")
