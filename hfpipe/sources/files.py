"""Which files of a repository make up the model: a pure choice over their names."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from hfpipe.errors import ModelError, UnsupportedModel
from hfpipe.sources.folder import (
    OPENVINO,
    OPENVINO_ENCODER,
    PICKLE,
    PICKLE_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
)

_SMALL = (
    "*.jinja",
    "*.model",
    "*.py",
    "*.tiktoken",
    "*.txt",
    "added_tokens.json",
    "adapter_config.json",
    "chat_template.json",
    "config.json",
    "configuration.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "quantization_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_HINT_PICKLE = "A pickle can run code. If you trust its author, pass --allow-pickle."


def choose(names: Collection[str], *, allow_pickle: bool) -> list[str]:
    """The names to fetch, of those directly in the repository's root, sorted.

    Raises UnsupportedModel for pickles that are not allowed and for adapters, ModelError where there are no weights.
    """
    root = [name for name in names if "/" not in name]
    weights = _weights(set(root), allow_pickle)
    small = [name for name in root if any(fnmatchcase(name, pattern) for pattern in _SMALL)]
    return sorted({*weights, *small})


def _weights(names: set[str], allow_pickle: bool) -> list[str]:
    if OPENVINO in names or OPENVINO_ENCODER in names:
        return [name for name in names if name.startswith("openvino_")]
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SAFETENSORS_INDEX in names:
        return [SAFETENSORS_INDEX, *_matching(names, "model-*-of-*.safetensors")]
    if "adapter_config.json" in names:
        raise UnsupportedModel("it is an adapter, not a model: merge it with its base model (peft: merge_and_unload)")
    pickles = {PICKLE, PICKLE_INDEX} & names
    if not pickles:
        raise ModelError(_nothing(names))
    if not allow_pickle:
        raise UnsupportedModel("its weights are pickles only", hint=_HINT_PICKLE)
    return [PICKLE] if PICKLE in names else [PICKLE_INDEX, *_matching(names, "pytorch_model-*-of-*.bin")]


def _matching(names: set[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _nothing(names: set[str]) -> str:
    others = sorted(name for name in names if name.endswith((".gguf", ".onnx", ".h5", ".msgpack", ".pt", ".pth")))
    return f"it has no {SAFETENSORS}" + (f", only {others[0]}" if others else "")
