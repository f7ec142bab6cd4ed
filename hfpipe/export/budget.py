"""int4 within a budget: which layers stay in 8 bits, so that an export loses, or takes, no more than is allowed.

What 4 bits do to each group of layers alone is measured once and kept. Divergences of small changes nearly add up: the
layers go into 4 bits in the order of what each byte costs that this saves. An export then shows how much less harm
calibrated quantization does than the rounding that was measured, and how large it is; the next one is chosen by that.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hfpipe import quality, store
from hfpipe.errors import HFPipeError, UnsupportedModel, UsageError
from hfpipe.export import ExportOptions
from hfpipe.export.quantization import GROUP_SIZES, Calibration, Layer, Shapes, export_bytes, samples, saved_bytes
from hfpipe.process import run_child
from hfpipe.types import ModelSource, Reporter

# Exports that are made to find one, at most and usually.
ATTEMPTS, USUAL_ATTEMPTS = 4, 2
# An export that uses so much of what is allowed is not improved on.
_CLOSE = 0.95
# Groups of layers that are measured, at most, and samples that they are measured on: some 500 tokens.
_GROUPS = 60
_SAMPLES = 5
# What calibration leaves of the divergence of rounding: 0.5 on SmolLM2.
_CALIBRATED = 0.5
# Measured on two cores, for a group of whatever size.
_S_PER_WEIGHT = 1e-8
# The card and hfpipe.json, which are written last.
REPORT_BYTES = 25_000
# Of what stands beside the weights: OpenVINO's tokenizer, by the files of the model's own, and a layer in the xml.
_TOKENIZER, _LAYER_BYTES = 1.75, 12_000
# Raised where something else is measured.
_FORMAT = 1
_KIND = "damage"
_NUMBER = re.compile(r"\.(\d+)\.")


def loss_of(kl: float) -> float:
    """The loss that a divergence, in nats a token, stands for: by how much the perplexity of text that the source
    writes rises."""
    return math.expm1(min(kl, 700.0))


@dataclass(frozen=True, slots=True)
class Budget:
    """What to measure: the layers, on texts that nothing is calibrated on. `beside` are the bytes of an export that are
    no weights."""

    shapes: Shapes
    texts: tuple[str, ...]
    beside: int

    @property
    def seconds(self) -> float:
        """What measuring takes on two cores, where it is not done yet."""
        return len(grouped(self.shapes.layers)) * self.shapes.parameters * _S_PER_WEIGHT

    def size(self, weight_format: str, options: ExportOptions) -> int:
        """The bytes of an export with all layers in this format."""
        return self.beside + export_bytes(self.shapes, weight_format, options)


def planned(
    source: ModelSource,
    shapes: Shapes | None,
    texts: Calibration | None,
    options: ExportOptions,
    *,
    is_auto: bool,
    verify: bool,
) -> tuple[Budget, Calibration | None, ExportOptions]:
    """The budget, the text that is left to calibrate on, and the options: where the group size `is_auto`, with the
    smallest with which an export can be small enough.

    Raises UsageError or UnsupportedModel where nothing can keep to it.
    """
    refused = f"--max-loss and --max-size do not work on {source.reference}"
    if source.is_encoder_decoder:
        raise UnsupportedModel(f"{refused}: it is an encoder-decoder model.", hint="Choose a --weight-format.")
    if shapes is None:
        raise UnsupportedModel(
            f"{refused}: its weights are pickles, whose shapes cannot be read first.", hint="Save it as safetensors."
        )
    if len(shapes.undivided(options.group_size or -1)) == len(shapes.layers):
        why = "it has no layers that 4 bits take" if not shapes.layers else "no usual group size divides its layers"
        raise UnsupportedModel(
            f"{refused}: {why}.", hint="Choose a --group-size (-1 is a whole channel), or --weight-format int8."
        )
    if not verify:
        raise UsageError("--max-loss and --max-size are kept by measuring: they need the verification.")
    held, rest = _split(texts or Calibration("built-in", samples(quality.calibration().values())))
    texts = texts and rest
    tokenizer = sum(file.stat().st_size for file in source.folder.glob("tokenizer*"))
    budget = Budget(
        shapes, held, beside=REPORT_BYTES + round(_TOKENIZER * tokenizer) + _LAYER_BYTES * len(shapes.layers)
    )
    allowed = options.max_size
    if allowed is None or (smallest := budget.size("int4", options)) <= allowed:
        return budget, texts, options
    for size in sorted(GROUP_SIZES) if is_auto else ():
        coarser = replace(options, group_size=size)
        if not shapes.undivided(size):
            smallest = min(smallest, budget.size("int4", coarser))
            if smallest <= allowed:
                return budget, texts, coarser
    raise UsageError(
        f"With all layers in 4 bits {source.reference} takes about {store.size_text(smallest)}, "
        f"and --max-size allows {store.size_text(allowed)}.",
        hint="Allow more, or choose a smaller model.",
    )


def _split(texts: Calibration) -> tuple[tuple[str, ...], Calibration]:
    """The samples to measure on, evenly spread, and the rest; all for both where there are hardly more."""
    step = len(texts.samples) // _SAMPLES
    if step < 2:
        return texts.samples, texts
    measured = range(0, step * _SAMPLES, step)
    rest = tuple(text for number, text in enumerate(texts.samples) if number not in measured)
    return tuple(texts.samples[number] for number in measured), replace(texts, samples=rest)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that are in 4 bits together or in 8: bytes that 4 bits save, and the divergence that rounding costs."""

    names: tuple[str, ...]
    saved: float
    kl: float


@dataclass(frozen=True, slots=True)
class Mix:
    """The first `count` of the groups in 4 bits, and what is expected of it: bytes, and nats a token."""

    count: int
    in_8_bits: tuple[str, ...]
    size: int
    kl: float


@dataclass(slots=True)
class Curve:
    """The mixes from all in 8 bits, which have this `size` and `kl`, to all in 4. `gain` is what calibration leaves of
    the divergence of rounding; some layers are `always_in_8_bits`."""

    groups: tuple[Group, ...]
    size: int
    kl: float
    gain: float
    always_in_8_bits: tuple[str, ...] = ()

    def mixes(self) -> list[Mix]:
        return [self.mix(count) for count in range(len(self.groups) + 1)]

    def mix(self, count: int) -> Mix:
        first, rest = self.groups[:count], self.groups[count:]
        in_8_bits = (*(name for group in rest for name in group.names), *self.always_in_8_bits)
        size = round(self.size - sum(group.saved for group in first))
        return Mix(count, in_8_bits, size, self.kl + self.gain * sum(group.kl for group in first))

    def chosen(self, options: ExportOptions) -> Mix:
        """The first mix that is small enough, which loses least of those; without a size, the last one that loses
        little enough. The nearest one where none is expected to."""
        mixes = self.mixes()
        if options.max_size is not None:
            return next((one for one in mixes if one.size <= options.max_size), mixes[-1])
        assert options.max_loss is not None
        return [mixes[0], *(one for one in mixes[1:] if loss_of(one.kl) <= options.max_loss)][-1]

    def correct(self, mix: Mix, size: int, kl: float) -> None:
        """Expect from now on what an export of `mix` has shown."""
        self.size += size - mix.size
        rounded = sum(group.kl for group in self.groups[: mix.count])
        if rounded:
            # No mix loses less than all in 8 bits.
            self.kl = min(self.kl, kl)
            self.gain = (kl - self.kl) / rounded
        else:
            self.kl = kl


@dataclass(frozen=True, slots=True)
class Attempt:
    """An export, measured: bytes, nats a token; whether that is too much, and uses nearly all that is allowed."""

    size: int
    kl: float
    is_too_large: bool
    loses_too_much: bool
    is_close: bool

    @property
    def fits(self) -> bool:
        return not (self.is_too_large or self.loses_too_much)

    @property
    def text(self) -> str:
        wrong = [", too large"] * self.is_too_large + [", which is too much"] * self.loses_too_much
        return f"{store.size_text(self.size)} that lose {loss_of(self.kl):.1%}{''.join(wrong)}"


def attempt(options: ExportOptions, size: int, kl: float) -> Attempt:
    """An export of this size and divergence, judged."""
    of_size = size / options.max_size if options.max_size is not None else None
    of_loss = loss_of(kl) / options.max_loss if options.max_loss is not None else 0.0
    # Where there is a size, it is chosen for, and the loss follows from it.
    used = of_loss if of_size is None else of_size
    return Attempt(size, kl, (of_size or 0) > 1, of_loss > 1, used >= _CLOSE)


def is_better(options: ExportOptions, one: Attempt, other: Attempt) -> bool:
    """Whether `one` loses less within the size, or where none is given, is smaller."""
    return one.kl < other.kl if options.max_size is not None else one.size < other.size


def none_fits(tried: Sequence[Attempt]) -> HFPipeError:
    """The error where no export keeps to the budget."""
    larger = all(one.loses_too_much and not one.is_too_large for one in tried)
    return HFPipeError(
        f"No export keeps to the budget. Tried: {'; '.join(one.text for one in tried)}.",
        hint="Allow more, or take --weight-format fp16, which loses nothing." if larger else "Allow more.",
    )


def described(options: ExportOptions, curve: Curve, tried: Sequence[Attempt]) -> dict[str, Any]:
    """What hfpipe.json says of a budget: what was allowed, what was tried, and what each mix is expected to lose."""
    points = [{"size": one.size, "kl": one.kl, "loss": loss_of(one.kl)} for one in curve.mixes()]
    attempts = [{"size": one.size, "kl": one.kl, "loss": loss_of(one.kl), "fits": one.fits} for one in tried]
    return {"max_loss": options.max_loss, "max_size": options.max_size, "tried": attempts, "curve": points}


def grouped(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers of one kind in neighbouring blocks, some `_GROUPS` groups at most."""
    kinds: dict[str, list[tuple[int, Layer]]] = {}
    for layer in layers:
        number = _NUMBER.search(layer.name)
        kind = _NUMBER.sub("..", layer.name, count=1)
        kinds.setdefault(kind, []).append((int(number[1]) if number else 0, layer))
    found = []
    for members in kinds.values():
        of_kind = [layer for _, layer in sorted(members, key=lambda member: member[0])]
        count = min(max(1, _GROUPS // len(kinds)), len(of_kind))
        bounds = [number * len(of_kind) // count for number in range(count + 1)]
        found += [of_kind[start:end] for start, end in pairwise(bounds)]
    return found


def measure(
    source: ModelSource, budget: Budget, options: ExportOptions, reporter: Reporter, *, verbose: bool = False
) -> Curve:
    """What 4 bits cost each group of layers, measured once for a model and kept. Raises HFPipeError where it fails."""
    undivided = budget.shapes.undivided(options.group_size or -1)
    groups = grouped([layer for layer in budget.shapes.layers if layer not in undivided])
    arguments: dict[str, Any] = {
        "dtype": quality.reference_dtype(source),
        "layers": {layer.name: layer.is_transposed for layer in budget.shapes.layers},
        "groups": [[layer.name for layer in group] for group in groups],
        "group_size": options.group_size,
        "sym": options.sym,
        "texts": list(budget.texts),
        "trust_remote_code": options.trust_remote_code,
        "allow_pickle": options.allow_pickle,
    }
    key = store.key_of(_FORMAT, store.identity(source.folder), arguments)
    place = {"source": str(source.folder.absolute()), "reference": source.reference}

    def make(folder: Path) -> None:
        reporter.stage("Measuring what 4 bits cost each layer, once")
        what = f"Measuring the layers of {source.reference}"
        found = run_child(
            "hfpipe.quality.score_layers", arguments | place, what=what, reporter=reporter, verbose=verbose
        )
        (folder / "kl.json").write_text(json.dumps(found), encoding="utf-8")

    with TemporaryDirectory() as temporary:
        try:
            folder = store.build_once(_KIND, key, make, model=source.reference, form="damage", reporter=reporter)
        except (HFPipeError, OSError):
            if os.access(store.cache_root(), os.W_OK):
                raise
            # Without a cache it is measured each time.
            make(folder := Path(temporary))
        in_8_bits, *found = json.loads((folder / "kl.json").read_text(encoding="utf-8"))
    costs = []
    for group, kl in zip(groups, found, strict=True):
        saved = saved_bytes(sum(layer.parameters for layer in group), budget.shapes, "int4", options)
        costs.append(Group(tuple(layer.name.removesuffix(".weight") for layer in group), saved, kl))
    costs.sort(key=lambda group: group.kl / group.saved)
    gain = 1.0 if options.data_free else _CALIBRATED
    always = tuple(layer.name.removesuffix(".weight") for layer in undivided)
    return Curve(tuple(costs), budget.size("int8", options), in_8_bits, gain, always)
