"""What 4-bit quantization does to a model: the shapes of its weights, the text to calibrate on, and the decision."""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hfpipe import quality
from hfpipe.errors import UsageError
from hfpipe.export import IN_4_BITS, ExportOptions

GROUP_SIZES = (128, 64, 32)
_FALLBACK = "--group-size-fallback"
# The share of the layers' weights that goes into 4 bits where a text tells which.
_RATIO = 0.65
# Parameters: a smaller model gains much by fine groups, and loses little speed.
_SMALL = 1_000_000_000
# Calibration that takes no longer is done by default.
_DEFAULT_UP_TO_S = 600
# Measured on two cores.
_SCALE_ESTIMATION_S_PER_WEIGHT = 3e-7
_GPTQ_S_PER_WEIGHT = 16e-7
_GPTQ_OF_NNCF_S_PER_WEIGHT = 8e-7

# Of a row in 8 bits: a scale and a zero point.
_ROW_BYTES = 3

# nncf leaves the first and the last layer in 8 bits.
_TABLES = re.compile(r"embed|wte\b|wpe\b|lm_head|shared\.weight|^output\.weight|relative_attention_bias|conv")
# Where 4 bits cost most for what they save: on SmolLM2 these, a quarter of the weights, hold two thirds of the damage.
_SENSITIVE = re.compile(r"\b(v_proj|k_proj|down_proj|dense_4h_to_h|fc2|mlp\.c_proj|w2)\.weight$")
# Layers of the class Conv1D store their weight as [in, out].
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_TRANSPOSED_LAYERS = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
# All experts of a layer in one tensor, [experts, in, out].
_EXPERTS = re.compile(r"\bexperts\.\w+_proj$")

# About 128 tokens, and as many samples as scale estimation looks at.
_SAMPLE_CHARACTERS = 511
_MOST_SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight that 4-bit quantization takes: `width` is the number of its inputs, along which groups run. It is stored
    as [out, in] unless it `is_transposed`."""

    name: str
    width: int
    parameters: int
    is_transposed: bool = False

    @property
    def module(self) -> str:
        """Whose weight it is."""
        return self.name.removesuffix(".weight")

    @property
    def short_name(self) -> str:
        """What the same layer of every block is called, such as down_proj."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Shapes:
    """`tables` counts the parameters of embeddings and output layers, `rest` those of norms and biases."""

    layers: tuple[Layer, ...]
    tables: int
    rest: int

    @property
    def quantized(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def rows(self) -> float:
        return sum(layer.parameters / layer.width for layer in self.layers)

    @property
    def parameters(self) -> int:
        return self.quantized + self.tables + self.rest

    def sensitive(self) -> tuple[str, ...]:
        """The names, such as down_proj, of the layers that 4 bits would damage most; none where they are unknown."""
        found = [match[1] for layer in self.layers if (match := _SENSITIVE.search(layer.name))]
        return tuple(dict.fromkeys(found))

    def undivided(self, group_size: int) -> list[Layer]:
        """The layers whose width is not a multiple of the group size."""
        return [layer for layer in self.layers if group_size > 0 and layer.width % group_size]

    def largest_group_size(self) -> int | None:
        """The largest usual group size that divides the width of every layer; None where none does."""
        return next((size for size in GROUP_SIZES if not self.undivided(size)), None)


def classify(tensors: Mapping[str, tuple[int, ...]], model_type: str) -> Shapes:
    """Sort the tensors of a transformers checkpoint by what int4 makes of them."""
    layers, tables, rest = [], 0, 0
    for name, shape in tensors.items():
        count = math.prod(shape)
        if len(shape) == 3 and _EXPERTS.search(name):
            layers.append(Layer(name, shape[-2], count, is_transposed=True))
        elif len(shape) < 2 or not name.endswith("weight"):
            rest += count
        elif _TABLES.search(name):
            tables += count
        else:
            transposed = model_type in _TRANSPOSED_MODELS and bool(_TRANSPOSED_LAYERS.search(name))
            layers.append(Layer(name, shape[-2] if transposed else shape[-1], count, transposed))
    return Shapes(tuple(layers), tables, rest)


def export_bytes(
    shapes: Shapes, weight_format: str, options: ExportOptions | None = None, in_8_bits: tuple[str, ...] = ()
) -> int:
    """The size of the exported weights: in 4 bits with a scale of 16 bits (mxfp4: 8) for each group, and for int4 a
    zero point unless `sym`; in 8 bits with both for each row."""
    if weight_format in ("fp32", "fp16"):
        return shapes.parameters * (4 if weight_format == "fp32" else 2)
    # A row of a table is taken for as wide as the narrowest layer.
    of_tables = shapes.tables / min((layer.width for layer in shapes.layers), default=shapes.tables or 1)
    size = shapes.quantized + shapes.tables + 2 * shapes.rest + _ROW_BYTES * (shapes.rows + of_tables)
    if options and weight_format in IN_4_BITS:
        coarse = {layer for layer in shapes.layers if layer.module.endswith(in_8_bits)}
        coarse.update(shapes.undivided(options.group_size or -1))
        in_4_bits = max(0, shapes.quantized * (options.ratio or 1) - sum(layer.parameters for layer in coarse))
        size -= saved_bytes(in_4_bits, shapes, weight_format, options)
    return round(size)


def saved_bytes(parameters: float, shapes: Shapes, weight_format: str, options: ExportOptions) -> float:
    """How many bytes fewer so many weights take in this format of 4 bits than in 8."""
    group = options.group_size or -1
    group = group if group > 0 else max((layer.width for layer in shapes.layers), default=1)
    rows = shapes.rows * parameters / shapes.quantized if parameters else 0
    return parameters * (0.5 - _group_bytes(weight_format, options) / group) + _ROW_BYTES * rows


def _group_bytes(weight_format: str, options: ExportOptions) -> float:
    """What a group of weights has beside them."""
    if weight_format == "int4":
        return 2 if options.sym else 2.5
    return 1 if weight_format == "mxfp4" else 2


def calibration_seconds(shapes: Shapes, *, gptq: bool = False, ours: bool = True) -> float:
    """What scale estimation, or GPTQ, which may be `ours` or nncf's, takes on two cores."""
    of_gptq = _GPTQ_S_PER_WEIGHT if ours else _GPTQ_OF_NNCF_S_PER_WEIGHT
    return shapes.quantized * (of_gptq if gptq else _SCALE_ESTIMATION_S_PER_WEIGHT)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples of text. `name` is the file or "built-in"."""

    name: str
    samples: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.samples).encode()).hexdigest()


def calibration(options: ExportOptions, shapes: Shapes | None) -> Calibration | None:
    """The text of the user's file, else hfpipe's own where that is asked for, or takes only minutes. Raises
    UsageError for a file that is of no use."""
    if options.data_free or options.weight_format == "mxfp4" or options.passes_on("--dataset"):
        return None
    if path := options.calibration:
        return Calibration(str(path), samples(_documents(path)))
    is_quick = shapes is not None and calibration_seconds(shapes) <= _DEFAULT_UP_TO_S
    if options.scale_estimation or options.gptq or is_quick:
        return Calibration("built-in", samples(quality.calibration().values()))
    return None


def _documents(path: Path) -> list[str]:
    """The text of a file, or of the records of a .jsonl: {"text": ...} or {"prompt": ...}."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read the calibration file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The calibration file {path} is not UTF-8 text (byte {error.start:,}).") from error
    documents = list(_records(path, content)) if path.suffix.lower() in (".jsonl", ".ndjson") else [content]
    if not any(document.strip() for document in documents):
        raise UsageError(
            f"The calibration file {path} is empty.", hint="Give about 30 kB of text that is like the model's work."
        )
    return documents


def _records(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        record = None
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
        found = [record.get(key) for key in ("text", "prompt")] if isinstance(record, dict) else []
        texts = [text for text in found if isinstance(text, str)]
        if not texts:
            raise UsageError(f'{path}, line {number}, is not a JSON object with a "text" or a "prompt".')
        # JSON can hold half a character, which a tokenizer does not take.
        yield next((text for text in texts if text.strip()), "").encode(errors="replace").decode()


def samples(documents: Iterable[str]) -> tuple[str, ...]:
    """Pieces of similar length, cut at white space; of many, evenly spread ones."""
    cut = textwrap.TextWrapper(_SAMPLE_CHARACTERS, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False)
    pieces = [piece for document in documents for piece in cut.wrap(document.strip())]
    if len(pieces) <= _MOST_SAMPLES:
        return tuple(pieces)
    return tuple(pieces[number * len(pieces) // _MOST_SAMPLES] for number in range(_MOST_SAMPLES))


def rounded(options: ExportOptions, shapes: Shapes | None, texts: Calibration | None) -> tuple[Layer, ...]:
    """The layers that hfpipe rounds itself (see rounding.py), with the decided options: none where nncf does, which is
    to choose layers by `ratio`, or to do more than GPTQ, or finds experts, which not every token comes to."""
    takes = options.weight_format == "int4" and options.gptq and options.ratio == 1.0
    others = options.awq or options.scale_estimation or options.extra
    if not (takes and texts and shapes) or others or any(_EXPERTS.search(layer.name) for layer in shapes.layers):
        return ()
    undivided = shapes.undivided(options.group_size or -1)
    return tuple(layer for layer in shapes.layers if layer not in undivided)


def decide(
    options: ExportOptions, shapes: Shapes | None, texts: Calibration | None, in_8_bits: tuple[str, ...], force: bool
) -> ExportOptions:
    """Choose what the user of 4 bits has not. Raises UsageError for a group size that does not fit, unless `force`."""
    choose = texts and not (options.awq or options.scale_estimation or options.gptq)
    ours = options.weight_format == "int4"
    gptq = bool(choose and shapes and calibration_seconds(shapes, gptq=True, ours=ours) <= _DEFAULT_UP_TO_S)
    group_size = options.group_size
    if options.weight_format == "mxfp4":
        group_size = 32
    elif group_size is None:
        # The smallest where much is done for a small model's quality.
        coarse = shapes and not (texts and shapes.parameters < _SMALL)
        group_size = (shapes.largest_group_size() if shapes and coarse else None) or GROUP_SIZES[-1]
    elif shapes and (wrong := shapes.undivided(group_size)) and not (force or options.passes_on(_FALLBACK)):
        raise UsageError(
            f"Group size {group_size} does not divide {wrong[0].width}, the width of {wrong[0].name} "
            f"({len(wrong)} of {len(shapes.layers)} layers are affected).",
            hint=f"Use --group-size {shapes.largest_group_size() or 'auto, which fits each layer'}.",
        )
    return replace(
        options,
        group_size=group_size,
        # Where the names of the layers say nothing, nncf finds the sensitive ones by the texts.
        ratio=options.ratio or (_RATIO if texts and not in_8_bits and not options.has_budget else 1.0),
        scale_estimation=options.scale_estimation or bool(choose and not gptq),
        gptq=options.gptq or gptq,
    )
