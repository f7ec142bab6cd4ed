"""What the user wants compared, checked before a model is looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from hfpipe import backends
from hfpipe.errors import HFPipeError, UsageError, nearest
from hfpipe.export import WEIGHT_FORMATS
from hfpipe.models.names import is_hub_id
from hfpipe.process import run_child
from hfpipe.types import LoadOptions

_BACKENDS = ("torch", "openvino")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user wants compared. Empty `backends` are torch and OpenVINO where they fit; empty `weight_formats` the
    model's own precision, int8 and int4. `loading` is for all, of which each engine takes what it knows. `reference` is
    the transformers model that OpenVINO folders are compared with, where hfpipe.json names none of `models`. `tokens`
    is how many a model must have room for."""

    models: Sequence[str]
    backends: Sequence[str] = ()
    weight_formats: Sequence[str] = ()
    loading: LoadOptions = field(default_factory=LoadOptions)
    reference: str | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("There is no model to measure.")
        for name in self.backends:
            backends.check_name(name)
        for name in self.weight_formats:
            if name not in WEIGHT_FORMATS:
                raise UsageError(
                    f"Unknown weight format {name!r}.",
                    hint=nearest(name, WEIGHT_FORMATS) or f"There are {', '.join(WEIGHT_FORMATS)}.",
                )
        if self.weight_formats and self.backends and "openvino" not in self.backends:
            raise UsageError(
                f"{' and '.join(self.backends)} cannot honour --weight-format.",
                hint="It belongs to --backend openvino.",
            )
        self._check_options()
        self._check_revision()

    @property
    def engines(self) -> Sequence[str]:
        return self.backends or _BACKENDS

    def revision(self, model: str) -> str | None:
        """That of the one Hub model among the others, which have none."""
        return self.loading.revision if is_hub_id(model, os.path.expanduser(model)) else None

    def _check_revision(self) -> None:
        named = {*self.models, self.reference or ""}
        count = sum(self.revision(model) is not None for model in named)
        if self.loading.revision is not None and count != 1:
            raise UsageError(
                f"--revision goes with one Hub id, and here are {count or 'none'}.",
                hint="Measure one at a time, and compare with --baseline." if count else None,
            )

    def _check_options(self) -> None:
        """Raise UnsupportedOption for an option that none of the engines can honour."""
        for one in fields(LoadOptions):
            given = replace(LoadOptions(), **{one.name: getattr(self.loading, one.name)})
            refusals = [error for name in self.engines if (error := _refusal(name, given))]
            if len(refusals) == len(self.engines):
                raise refusals[0]


def _refusal(backend: str, options: LoadOptions) -> HFPipeError | None:
    try:
        backends.check_options(backend, options)
    except HFPipeError as error:
        return error
    return None


def without_device(choices: Choices) -> dict[str, HFPipeError]:
    """Why engines cannot have the device that is asked for. Raises that where none of them can."""
    device = choices.loading.device
    if device is None:
        return {}
    asked = [name for name in choices.engines if "device" in backends.BACKENDS[name].honours]
    refused = {name: error for name in asked if (error := _device_error(name, device))}
    if len(refused) == len(choices.engines):
        raise next(iter(refused.values()))
    return refused


def _device_error(backend: str, device: str) -> HFPipeError | None:
    """An engine's import takes seconds, and memory: it is left to a child."""
    try:
        run_child("hfpipe.bench.device", {"backend": backend, "device": device}, what=f"Looking for {device}")
    except HFPipeError as error:
        return error
    return None
