"""What 4-bit quantization does to a model: the shapes of its weights, the text to calibrate on, and the decision."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import UsageError
from hfpipe.export import ExportOptions
from hfpipe.quality import texts

GROUP_SIZES = (128, 64, 32)
# The share of the layers' weights that goes into 4 bits where a text tells which.
_RATIO = 0.65
# Parameters: a smaller model gains much by fine groups, and loses little speed.
_SMALL = 1_000_000_000
# Calibration that takes no longer is done by default.
_DEFAULT_UP_TO_S = 600
# Measured on two cores.
_SCALE_ESTIMATION_S_PER_WEIGHT = 3e-7
_GPTQ_S_PER_WEIGHT = 8e-7

# nncf leaves the first and the last layer in 8 bits.
_TABLES = re.compile(r"embed|wte\b|wpe\b|lm_head|shared\.weight|^output\.weight|relative_attention_bias|conv")
# Where 4 bits cost most for what they save: on SmolLM2 these, a quarter of the weights, hold two thirds of the damage.
_SENSITIVE = re.compile(r"\b(v_proj|k_proj|down_proj|dense_4h_to_h|fc2|mlp\.c_proj|w2)\.weight$")
# Layers of the class Conv1D store their weight as [in, out].
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_TRANSPOSED_LAYERS = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
# All experts of a layer in one tensor, [experts, in, out].
_EXPERTS = re.compile(r"\bexperts\.\w+_proj$")

_KEYS = ("text", "prompt")
_JSON_LINES = (".jsonl", ".ndjson")
# About 128 tokens, and as many samples as scale estimation looks at.
_SAMPLE_CHARACTERS = 512
_MOST_SAMPLES = 128


# The shapes of the weights


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

    def undivided(self, group_size: int) -> list[Layer]:
        """The layers whose width is not a multiple of the group size."""
        return [layer for layer in self.layers if _undivided(layer, group_size)]

    def largest_group_size(self) -> int | None:
        """The largest usual group size that divides the width of every layer; None where none does."""
        return next((size for size in GROUP_SIZES if not self.undivided(size)), None)


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


# The text


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples of text. `name` is the file or "built-in", `digest` a sha256 of the samples."""

    name: str
    samples: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.samples).encode()).hexdigest()


def built_in() -> Calibration:
    """hfpipe's own text."""
    return Calibration("built-in", _samples(texts.calibration().values()))


def from_file(path: Path) -> Calibration:
    """The text of a file, or of the records of a .jsonl: {"text": ...} or {"prompt": ...}. Raises UsageError."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read the calibration file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The calibration file {path} is not UTF-8 text (byte {error.start:,}).") from error
    records = list(_records(path, content)) if path.suffix.lower() in _JSON_LINES else [content]
    if not any(record.strip() for record in records):
        raise UsageError(
            f"The calibration file {path} is empty.", hint="Give about 30 kB of text that is like the model's work."
        )
    return Calibration(str(path), _samples(records))


def _records(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # The error's own words say "line 1".
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise UsageError(f"{path}, line {number}, is not JSON: {reason}.") from error
        texts_in = [record[key] for key in _KEYS if isinstance(record, dict) and isinstance(record.get(key), str)]
        if not texts_in:
            raise UsageError(f'{path}, line {number}, has neither "text" nor "prompt".')
        # JSON can hold half a character, which a tokenizer does not take.
        yield next((text for text in texts_in if text.strip()), "").encode(errors="replace").decode()


def _samples(documents: Iterable[str]) -> tuple[str, ...]:
    """Pieces of similar length; of many, evenly spread ones."""
    pieces = [piece for document in documents for piece in _pieces(document)]
    if len(pieces) <= _MOST_SAMPLES:
        return tuple(pieces)
    return tuple(pieces[number * len(pieces) // _MOST_SAMPLES] for number in range(_MOST_SAMPLES))


def _pieces(document: str) -> Sequence[str]:
    """A document cut at spaces or line ends, about every `_SAMPLE_CHARACTERS`."""
    pieces, rest = [], document.strip()
    while len(rest) > _SAMPLE_CHARACTERS:
        cut = max(rest.rfind(" ", 1, _SAMPLE_CHARACTERS), rest.rfind("\n", 1, _SAMPLE_CHARACTERS))
        cut = cut if cut > 0 else _SAMPLE_CHARACTERS
        pieces.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return [*pieces, rest] if rest else pieces


# The decision


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
    """Choose what the user has not. Raises UsageError for a group size that does not fit, unless `force`."""
    texts = _texts(options, shapes)
    named = options.awq or options.scale_estimation or options.gptq
    gptq = options.gptq or bool(texts and not named and shapes and gptq_seconds(shapes) <= _DEFAULT_UP_TO_S)
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
        adjust=options.group_size is None and not (shapes and not shapes.undivided(group_size)),
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
            f"({len(wrong)} of {len(shapes.layers)} layers are affected).",
            hint=f"Use --group-size {fitting}, or auto."
            if fitting
            else "Use --group-size auto, which fits each layer.",
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
        return from_file(options.calibration)
    asked = options.scale_estimation or options.gptq
    if asked or (shapes and calibration_seconds(shapes) <= _DEFAULT_UP_TO_S):
        return built_in()
    return None
