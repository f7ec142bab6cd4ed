"""Which files of a repository make up the model: a pure choice over their names."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from hfpipe.errors import ModelError, UnsupportedModel
from hfpipe.models.folder import (
    OPENVINO,
    OPENVINO_ENCODER,
    OTHER_WEIGHTS,
    PICKLE,
    PICKLE_HINT,
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
# What another tool reads: the same weights once more, or an adapter beside them.
_DUPLICATES = ("consolidated", "adapter_")


def choose(names: Collection[str], model: str, *, allow_pickle: bool) -> list[str]:
    """The names to fetch, of those directly in the root of the repository of `model`, sorted.

    Raises UnsupportedModel for pickles that are not allowed and for adapters, ModelError where there are no weights.
    """
    root = [name for name in names if "/" not in name]
    weights = _weights(set(root), model, allow_pickle)
    small = [name for name in root if any(fnmatchcase(name, pattern) for pattern in _SMALL)]
    return sorted({*weights, *small})


def _weights(names: set[str], model: str, allow_pickle: bool) -> list[str]:
    if OPENVINO in names or OPENVINO_ENCODER in names:
        return [name for name in names if name.startswith("openvino_")]
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SAFETENSORS_INDEX in names:
        shards = [name for name in names if name.endswith(".safetensors") and not name.startswith(_DUPLICATES)]
        return [SAFETENSORS_INDEX, *shards]
    if "adapter_config.json" in names:
        raise UnsupportedModel(
            f"{model} is an adapter, not a model.", hint="Merge it with its base model first (peft: merge_and_unload)."
        )
    pickles = {PICKLE, PICKLE_INDEX} & names
    if not pickles:
        raise ModelError(f"{model} has no {SAFETENSORS}{_instead(names)}.")
    if not allow_pickle:
        raise UnsupportedModel(f"{model} has its weights as pickles only.", hint=PICKLE_HINT)
    if PICKLE in names:
        return [PICKLE]
    return [PICKLE_INDEX, *(name for name in names if fnmatchcase(name, "pytorch_model-*-of-*.bin"))]


def _instead(names: set[str]) -> str:
    others = sorted(name for name in names if name.endswith(OTHER_WEIGHTS))
    return f", only {others[0]}" if others else ""
