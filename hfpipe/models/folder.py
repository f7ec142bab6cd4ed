"""Which files make up a model, and a local folder -> ModelSource, if everything that it needs is there."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hfpipe import schema
from hfpipe.errors import ModelError, ModelNotFound, UnsupportedModel
from hfpipe.types import ModelSource

OPENVINO = "openvino_model.xml"
# What `hfpipe export` writes beside a model.
REPORT = "hfpipe.json"
# It has the license of a model.
CARD = "README.md"

_OPENVINO_ENCODER, _OPENVINO_DECODER = "openvino_encoder_model.xml", "openvino_decoder_model.xml"
_SAFETENSORS, _PICKLE, _INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
_ADAPTER = "adapter_config.json"
_SMALL = (".jinja", ".json", ".model", ".py", ".spm", ".tiktoken", ".txt")
_OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".xml")
# What another tool reads: the same weights once more, or an adapter beside them.
_DUPLICATES = ("consolidated", "adapter_")

_CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
    "max_encoder_position_embeddings",
)
_POINTER = b"version https://git-lfs"
_MERGE = "Merge the adapter with its base model first (peft: merge_and_unload)."


def choose(names: Collection[str], model: str, *, allow_pickle: bool) -> list[str]:
    """The files to fetch, of those directly in the root of the repository of `model`, sorted.

    Raises UnsupportedModel for pickles that are not allowed, adapters and weights of other tools, ModelError where
    there are no weights.
    """
    root = {name for name in names if "/" not in name}
    small = {name for name in root if name.endswith(_SMALL) and not name.endswith(_INDEX)} | (root & {CARD})
    return sorted({*_weights(root, model, allow_pickle), *small})


def _weights(names: set[str], model: str, allow_pickle: bool) -> list[str]:
    """One set of weights, an index of shards first."""
    if OPENVINO in names or _OPENVINO_ENCODER in names:
        return [name for name in names if name.startswith("openvino_")]
    for whole, parts in ((_SAFETENSORS, "*.safetensors"), (_PICKLE, "pytorch_model-*-of-*.bin")):
        chosen = [whole] if whole in names else []
        if not chosen and whole + _INDEX in names:
            shards = [name for name in fnmatch.filter(names, parts) if not name.startswith(_DUPLICATES)]
            chosen = [whole + _INDEX, *shards]
        if chosen and whole == _PICKLE and not allow_pickle:
            hint = "A pickle can run code. If you trust its author, pass --allow-pickle."
            raise UnsupportedModel(f"{model} has its weights as pickles only ({chosen[0]}).", hint=hint)
        if chosen:
            return chosen
    if _ADAPTER in names:
        raise UnsupportedModel(f"{model} is an adapter, not a model.", hint=_MERGE)
    if others := sorted(name for name in names if name.endswith(_OTHER_WEIGHTS)):
        raise UnsupportedModel(f"{model} has no weights that hfpipe reads, only {others[0]}.")
    raise ModelError(f"{model} has no weights: neither {_SAFETENSORS} nor {OPENVINO}.", hint=schema.AGAIN)


def inspect_folder(
    folder: Path, reference: str, revision: str | None = None, allow_pickle: bool = False
) -> ModelSource:
    """The model in `folder`, checked file by file; no weights are read.

    Raises ModelError where something is missing or damaged, UnsupportedModel for an adapter, pickles and the like.
    """
    if not folder.is_dir():
        raise ModelNotFound(f"There is no folder {folder}.")
    names = {path.name for path in folder.iterdir()}
    if not names & {"config.json", _ADAPTER}:
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"Name the file: {ggufs[0]}" if ggufs else "Name the folder that from_pretrained would take."
        raise ModelError(f"{folder} is not a model: it has no config.json.", hint=hint)
    files = _weight_files(folder, allow_pickle)
    config = schema.read_object(folder / "config.json", schema.Config)
    is_openvino = files[0].suffix == ".xml"
    if _ADAPTER in names and not is_openvino:
        raise UnsupportedModel(f"{folder} has an adapter beside the model, which hfpipe does not apply.", hint=_MERGE)
    # transformers names the package that is missing, but for this method.
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "gptq" and not is_openvino and find_spec("gptqmodel") is None:
        message = f"{folder} is quantized with gptq, and the package gptqmodel is not installed."
        raise UnsupportedModel(message, hint="Install gptqmodel, or choose the model without quantization.")
    for file in files:
        _require_whole(file)
    preferred = folder / "generation_config.json"
    if not preferred.is_file() and config.get("is_encoder_decoder"):
        # As transformers reads models from before that file.
        preferred = folder / "config.json"
    return ModelSource(
        reference=reference,
        folder=folder,
        format="openvino" if is_openvino else "transformers",
        config=config,
        generation_config=schema.read_object(preferred, schema.GenerationConfig) if preferred.is_file() else {},
        context_length=context_length(config),
        revision=revision,
    )


def inspect_cached(
    folder: Path, reference: str, revision: str | None = None, allow_pickle: bool = False, *, remove: Path | None = None
) -> ModelSource:
    """`inspect_folder` for what a cache counts as complete: fetching again would not mend it, removing it does."""
    try:
        return inspect_folder(folder, reference, revision, allow_pickle)
    except UnsupportedModel:
        raise
    except ModelError as error:
        error.hint = f"Remove {remove or folder} and run it again."
        raise


def context_length(config: Mapping[str, Any]) -> int | None:
    """The most tokens that the model takes, prompt and answer together; None where it sets no limit."""
    # T5 and its kin carry n_positions, but their positions are relative.
    if "relative_attention_num_buckets" in config:
        return None
    for key in _CONTEXT_KEYS:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return max(value, _stretched(config))
    nested = config.get("text_config") or config.get("decoder")
    return context_length(nested) if isinstance(nested, Mapping) else None


def _stretched(config: Mapping[str, Any]) -> int:
    """The context that YaRN stretches rotary positions to, 0 where it does not."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    is_yarn = "yarn" in (rope.get("rope_type"), rope.get("type"))
    return int(factor * original) if is_yarn and isinstance(factor, (int, float)) and isinstance(original, int) else 0


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checked transformers folder by its name, empty where its weights are pickles."""
    files = [file for file in _weight_files(folder, allow_pickle=True) if file.suffix == ".safetensors"]
    return {
        name: tuple(weights.get_slice(name).get_shape())
        for weights in map(_opened, files)
        for name in weights.keys()  # noqa: SIM118 (it is no dict)
    }


def openvino_models(folder: Path | str) -> list[Path]:
    """The models of a checked OpenVINO folder: one, or an encoder and a decoder."""
    whole, folder = Path(folder) / OPENVINO, Path(folder)
    return [whole] if whole.is_file() else [folder / _OPENVINO_ENCODER, folder / _OPENVINO_DECODER]


def _weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The files of the weights in `folder`, all of which exist."""
    names = {path.name for path in folder.iterdir()}
    chosen = _weights(names, str(folder), allow_pickle)
    if chosen[0].startswith("openvino_"):
        stems = [OPENVINO] if OPENVINO in names else [_OPENVINO_ENCODER, _OPENVINO_DECODER]
        chosen = [name for stem in stems for name in (stem, stem.replace(".xml", ".bin"))]
    elif chosen[0].endswith(_INDEX):
        index = schema.read_object(folder / chosen[0], schema.WeightIndex)
        chosen = sorted(set(index["weight_map"].values()))
    if missing := [name for name in chosen if not (folder / name).is_file()]:
        count = f"{len(missing)} of {len(chosen)} weight files are missing"
        raise ModelError(f"{folder} is half-downloaded: {count} ({missing[0]}).", hint="Fetch it again.")
    return [folder / name for name in chosen]


def _require_whole(path: Path) -> None:
    """Raise ModelError for a Git LFS pointer, and for safetensors that are cut off."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if start == _POINTER:
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself.", hint="Run: git lfs pull")
    if path.suffix == ".safetensors":
        _opened(path)


def _opened(path: Path) -> Any:
    """The header of a safetensors file, which is compared with the file's size."""
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelError(f"{path} is not a whole safetensors file: {reason}.", hint=schema.AGAIN) from error
