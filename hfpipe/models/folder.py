"""A local folder -> ModelSource: its format, its configuration, and whether everything that it needs is there."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfpipe import schema
from hfpipe.errors import ModelError, ModelNotFound, UnsupportedModel
from hfpipe.types import ModelFormat, ModelSource

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
OPENVINO = "openvino_model.xml"
# What `hfpipe export` writes beside a model.
REPORT = "hfpipe.json"
OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")
PICKLE_HINT = "A pickle can run code. If you trust its author, pass --allow-pickle."
OPENVINO_ENCODER, OPENVINO_DECODER = "openvino_encoder_model.xml", "openvino_decoder_model.xml"

RUNTIME_PROPERTIES = ("DYNAMIC_QUANTIZATION_GROUP_SIZE",)

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
# As safetensors has it.
_MAX_HEADER = 100_000_000
_POINTER = b"version https://git-lfs"


def inspect_folder(
    folder: Path, reference: str, revision: str | None = None, allow_pickle: bool = False
) -> ModelSource:
    """The model in `folder`, checked file by file; no weights are read.

    Raises ModelError where something is missing or damaged, UnsupportedModel for an adapter, pickles and the like.
    """
    if not folder.is_dir():
        raise ModelNotFound(f"There is no folder {folder}.")
    _refuse_other_kinds(folder)
    config = schema.read_object(folder / "config.json", schema.CONFIG)
    form = _format(folder, allow_pickle)
    if form == "transformers":
        _require_plain(folder, config)
    preferred = folder / "generation_config.json"
    return ModelSource(
        reference=reference,
        folder=folder,
        format=form,
        config=config,
        generation_config=schema.read_object(preferred, schema.GENERATION_CONFIG) if preferred.is_file() else {},
        context_length=context_length(config),
        revision=revision,
        runtime=_runtime(folder),
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
    nested = config.get("text_config")
    return context_length(nested) if isinstance(nested, Mapping) else None


def _stretched(config: Mapping[str, Any]) -> int:
    """The context that YaRN stretches rotary positions to, 0 where it does not."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    is_yarn = "yarn" in (rope.get("rope_type"), rope.get("type"))
    return int(factor * original) if is_yarn and isinstance(factor, (int, float)) and isinstance(original, int) else 0


def _refuse_other_kinds(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModel(*_adapter(folder))
    if (folder / "model_index.json").is_file():
        raise UnsupportedModel(f"{folder} is a diffusers pipeline, not a language model.")
    if ggufs := sorted(folder.glob("*.gguf")):
        raise ModelError(f"{folder} has no config.json.", hint=f"Name the file: {ggufs[0]}")
    raise ModelError(
        f"{folder} is not a model: it has no config.json.",
        hint="Name the folder that from_pretrained or an export would take.",
    )


def _adapter(folder: Path) -> tuple[str]:
    content = schema.read_object(folder / "adapter_config.json", schema.ANY_OBJECT)
    base = content.get("base_model_name_or_path") or "its base model"
    return (f"{folder} is an adapter for {base}, not a model: merge the two first (peft: merge_and_unload).",)


def _format(folder: Path, allow_pickle: bool) -> ModelFormat:
    if (folder / OPENVINO).is_file():
        _require_openvino(folder, OPENVINO)
        return "openvino"
    if (folder / OPENVINO_ENCODER).is_file():
        _require_openvino(folder, OPENVINO_ENCODER)
        _require_openvino(folder, OPENVINO_DECODER)
        return "openvino"
    if (folder / SAFETENSORS).is_file():
        _require_whole(folder / SAFETENSORS)
    elif (folder / SAFETENSORS_INDEX).is_file():
        for shard in _shards(folder / SAFETENSORS_INDEX):
            _require_whole(shard)
    else:
        _require_pickle(folder, allow_pickle)
    return "transformers"


# What transformers imports to read weights of a quant_method.
_QUANTIZERS = {
    "aqlm": "aqlm",
    "auto-round": "auto_round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "eetq": "eetq",
    "gptq": "gptqmodel",
    "higgs": "flute",
    "hqq": "hqq",
    "quanto": "optimum.quanto",
    "quark": "quark",
    "spqr": "spqr_quant",
    "torchao": "torchao",
    "vptq": "vptq",
}


def _require_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel for what transformers would leave out without a word, or fail at with a traceback."""
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModel(
            f"{folder} has an adapter beside the model (adapter_config.json), which hfpipe does not apply.",
            hint="Merge the two first (peft: merge_and_unload), or remove adapter_config.json to run the model alone.",
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    package = _QUANTIZERS.get(method) if isinstance(method, str) else None
    if package and not _is_installed(package):
        raise UnsupportedModel(
            f"{folder} is quantized with {method}, and the package {package} that reads it is not installed.",
            hint=f"Install {package}, or choose the model without quantization.",
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _require_openvino(folder: Path, xml: str) -> None:
    for path in (folder / xml, (folder / xml).with_suffix(".bin")):
        if not path.is_file():
            raise ModelError(f"{path} is missing.", hint=schema.AGAIN)
        _refuse_pointer(path)


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of which exist."""
    weights = schema.read_object(index, schema.WEIGHT_INDEX)["weight_map"]
    shards = [index.parent / name for name in sorted(set(weights.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} is half-downloaded: {len(missing)} of {len(shards)} weight files are missing "
            f"({missing[0]}).",
            hint="Fetch it again.",
        )
    return shards


def _require_pickle(folder: Path, allow_pickle: bool) -> None:
    if (folder / PICKLE).is_file():
        pickles = [folder / PICKLE]
    elif (folder / PICKLE_INDEX).is_file():
        pickles = _shards(folder / PICKLE_INDEX)
    else:
        raise _no_weights(folder)
    if not allow_pickle:
        raise UnsupportedModel(f"{folder} has its weights as pickles only ({pickles[0].name}).", hint=PICKLE_HINT)
    for path in pickles:
        _refuse_pointer(path)


def _no_weights(folder: Path) -> ModelError:
    if (folder / "adapter_config.json").is_file():
        return UnsupportedModel(*_adapter(folder))
    if (folder / "openvino_language_model.xml").is_file():
        return UnsupportedModel(f"{folder} is an OpenVINO model of images and text, which hfpipe does not run.")
    others = sorted(path.name for path in folder.iterdir() if path.name.endswith(OTHER_WEIGHTS))
    found = f", only {others[0]}" if others else ""
    return ModelError(f"{folder} has no weights: neither {SAFETENSORS} nor {OPENVINO}{found}.", hint=schema.AGAIN)


def _require_whole(path: Path) -> None:
    """Compare the file's size with the end of the last tensor that its header announces."""
    _refuse_pointer(path)
    header, start = read_header(path)
    size, end = path.stat().st_size, start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size < end:
        raise ModelError(f"{path} is cut off: {size:,} of {end:,} bytes are there.", hint=schema.AGAIN)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checked transformers folder by its name, empty where its weights are pickles."""
    if (folder / SAFETENSORS_INDEX).is_file() and not (folder / SAFETENSORS).is_file():
        files = _shards(folder / SAFETENSORS_INDEX)
    else:
        files = [path for path in [folder / SAFETENSORS] if path.is_file()]
    return {name: tuple(tensor["shape"]) for path in files for name, tensor in read_header(path)[0].items()}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors that a safetensors file announces, each with `dtype`, `shape` and `data_offsets`, and where its data
    begins. Raises ModelError where it is not one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER, path.stat().st_size):
            raise ModelError(f"{path} is not a safetensors file.", hint=schema.AGAIN)
        content = file.read(length)
    try:
        return schema.parse_object(content, path, schema.TENSORS), 8 + length
    except ModelError as error:
        reason = error.message.removeprefix(str(path)).strip(": .")
        raise ModelError(f"{path} is not a safetensors file: {reason}.", hint=schema.AGAIN) from error


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if pointer:
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself.", hint="Run: git lfs pull")


def _runtime(folder: Path) -> dict[str, str]:
    """The properties that an export was measured to run best with. A report may come from anywhere: of what it asks for
    only what concerns arithmetic is taken, and no path or device."""
    report = schema.read_object(folder / REPORT, schema.ANY_OBJECT) if (folder / REPORT).is_file() else {}
    runtime = report.get("runtime")
    if not isinstance(runtime, dict):
        return {}
    return {key: value for key, value in runtime.items() if key in RUNTIME_PROPERTIES and isinstance(value, str)}
