"""What a quantization does to each weight of a model, foretold from the shapes that its files announce."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hfpipe.export.options import GROUP_SIZES

# nncf leaves the first and the last layer in 8 bits.
_TABLES = re.compile(r"embed|wte\b|wpe\b|lm_head|shared\.weight|^output\.weight|relative_attention_bias|conv")
# Where 4 bits cost most for what they save: on SmolLM2 these, a quarter of the weights, hold two thirds of the damage.
_SENSITIVE = re.compile(r"\b(v_proj|k_proj|down_proj|dense_4h_to_h|fc2|mlp\.c_proj|w2)\.weight$")
# Layers of the class Conv1D store their weight as [in, out].
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_TRANSPOSED_LAYERS = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
# All experts of a layer in one tensor, [experts, in, out].
_EXPERTS = re.compile(r"\bexperts\.\w+_proj$")


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight that 4-bit quantization takes: `width` is the number of its inputs, along which groups run."""

    name: str
    width: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """`tables` counts the parameters of embeddings and output layers, `rest` those of norms and biases."""

    layers: tuple[Layer, ...]
    tables: int
    rest: int

    @property
    def parameters(self) -> int:
        return self.quantized + self.tables + self.rest

    @property
    def quantized(self) -> int:
        """The parameters of the layers."""
        return _count(self.layers)

    def sensitive(self) -> tuple[str, ...]:
        """The names, such as down_proj, of the layers that 4 bits would damage most; none where they are unknown."""
        found = [match[1] for layer in self.layers if (match := _SENSITIVE.search(layer.name))]
        return tuple(dict.fromkeys(found))

    def share_of(self, names: Collection[str], group_size: int = -1) -> float:
        """The share of the layers' weights that is in layers of these names, or of widths that the group size does not
        divide."""
        inside = [
            layer
            for layer in self.layers
            if layer.name.removesuffix(".weight").endswith(tuple(names)) or _undivided(layer, group_size)
        ]
        return _count(inside) / max(1, _count(self.layers))

    def divisible(self, group_size: int) -> bool:
        return not self.undivided(group_size)

    def undivided(self, group_size: int) -> list[Layer]:
        """The layers whose width is not a multiple of the group size."""
        return [layer for layer in self.layers if _undivided(layer, group_size)]

    def largest_group_size(self) -> int | None:
        """The largest usual group size that divides the width of every layer; None where none does."""
        return next((size for size in GROUP_SIZES if self.divisible(size)), None)


def _undivided(layer: Layer, group_size: int) -> bool:
    return group_size > 0 and layer.width % group_size != 0


def _count(layers: Iterable[Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def classify(tensors: Mapping[str, tuple[int, ...]], model_type: str) -> Shapes:
    """Sort the tensors of a transformers checkpoint by what int4 makes of them."""
    layers, tables, rest = [], 0, 0
    for name, shape in tensors.items():
        count = math.prod(shape)
        if len(shape) == 3 and _EXPERTS.search(name):
            layers.append(Layer(name, shape[-2], count))
        elif len(shape) < 2 or not name.endswith("weight"):
            rest += count
        elif _TABLES.search(name):
            tables += count
        else:
            transposed = model_type in _TRANSPOSED_MODELS and _TRANSPOSED_LAYERS.search(name)
            layers.append(Layer(name, shape[-2] if transposed else shape[-1], count))
    return Shapes(tuple(layers), tables, rest)


def export_bytes(shapes: Shapes, weight_format: str, group_size: int, ratio: float, *, sym: bool = False) -> int:
    """The size of the exported weights: a scale of 16 bits, and unless `sym` a zero point, for each group."""
    matrices, floats = shapes.quantized, 2 * shapes.rest
    if weight_format in ("fp32", "fp16"):
        return shapes.parameters * (4 if weight_format == "fp32" else 2)
    if weight_format == "int8":
        return matrices + shapes.tables + floats
    group = group_size if group_size > 0 else max((layer.width for layer in shapes.layers), default=1)
    in_4_bits = 0.5 + (2 if sym else 2.5) / group
    return round(matrices * (ratio * in_4_bits + (1 - ratio)) + shapes.tables + floats)
