"""The texts that come with hfpipe, to calibrate a quantization on or to measure a model on, and how much work a model
is worth: a large one is scored in less precision, and on less text."""

from __future__ import annotations

from importlib.resources import files

from hfpipe.backends.openvino.optimum_cli import own_format
from hfpipe.machine import available_memory
from hfpipe.types import ModelSource

# What a process takes that runs torch, without the weights; measured.
START_BYTES = 1_300_000_000
# Parameters from which on scoring all of the text, in 32 bits, would take many minutes.
_LARGE = 300_000_000


def calibration() -> dict[str, str]:
    """What a quantization may look at, by kind (prose, code, ...)."""
    return _texts("calibration")


def held_out(share: float = 1.0) -> dict[str, str]:
    """What a model is measured on, by kind; none of it is calibrated on. With `share` the first paragraphs of each
    kind, at least that share of its characters."""
    return {kind: _beginning(text, share) for kind, text in _texts("held_out").items()}


def _beginning(text: str, share: float) -> str:
    end = text.find("\n\n", int(len(text) * share))
    return text if end < 0 else text[:end]


def _texts(name: str) -> dict[str, str]:
    folder = files("hfpipe.quality") / "corpus" / name
    found = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".txt"))
    return {file_name.removesuffix(".txt"): file.read_text(encoding="utf-8") for file_name, file in found}


def parameters(source: ModelSource) -> float:
    """How many numbers a transformers model has, as its files' sizes have it."""
    files = [*source.folder.glob("*.safetensors"), *source.folder.glob("pytorch_model*.bin")]
    return sum(path.stat().st_size for path in files) / (2 if own_format(source) == "fp16" else 4)


def reference_dtype(source: ModelSource) -> str:
    """What a model is scored in: 32 bits, unless it is of 16 and too large for time or memory."""
    count = parameters(source)
    fits = 4 * count + START_BYTES < available_memory()
    return "float32" if own_format(source) == "fp32" or (fits and count < _LARGE) else "bfloat16"


def held_out_share(source: ModelSource) -> float:
    """How much of the held-out text is scored: all of it up to `_LARGE` parameters, then less, at least a tenth."""
    return min(1.0, max(0.1, _LARGE / parameters(source)))
