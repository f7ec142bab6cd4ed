"""How a transformers folder becomes a torch model: device, dtype, weights that are really all there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from hfpipe import schema
from hfpipe.backends.base import as_backend_error
from hfpipe.errors import BackendError, HFPipeError, ModelError, UnsupportedModel, UsageError
from hfpipe.machine import available_memory, processors
from hfpipe.types import LoadOptions, ModelSource, Reporter

_OWN_CACHE = ("recurrent_gemma",)
_ATTENTION = ("sdpa", "eager", "flash_attention_2")
_LOADING_ERRORS = (
    ImportError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    ValueError,
)


def load_model(source: ModelSource, options: LoadOptions, reporter: Reporter) -> Any:
    """The model in evaluation mode, where the options place it."""
    if processors() < torch.get_num_threads():
        # A thread more than a CPU quota keeps busy makes the others wait.
        torch.set_num_threads(processors())
    device = None if options.device_map else parse_device(options.device)
    if options.device is None and options.device_map is None:
        _note_idle_accelerator(reporter)
    arguments = _arguments(source.config, options, device)
    with _explained(source, options):
        model, loading = AutoModelForCausalLM.from_pretrained(
            source.folder,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=None if options.allow_pickle else True,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
        _check_weights(source, loading["missing_keys"])
        if device is not None and "device_map" not in arguments:
            model = model.to(device)
    if model.device.type == "meta" and not getattr(model, "hf_device_map", None):
        raise BackendError("The device map leaves no weights in memory.", hint="Give it a place other than the disk.")
    return model.eval()


def parse_device(device: str | None) -> torch.device:
    """`-1`, `cpu` or None is the CPU; `N` the N-th accelerator of whatever kind is here; else torch's own names."""
    if device is None or device.lower() in ("-1", "cpu"):
        return torch.device("cpu")
    try:
        parsed = torch.device(f"{_accelerator() or 'cuda'}:{device}" if device.isdecimal() else device.lower())
    except RuntimeError as error:
        raise UsageError(
            f"Unknown device {device!r}.", hint="torch knows -1 or cpu, 0 (the first accelerator), cuda:1, mps, xpu."
        ) from error
    if parsed.type not in _available() or (parsed.index or 0) >= _available()[parsed.type]:
        here = ", ".join(f"{kind} ({count})" for kind, count in _available().items() if count)
        raise BackendError(
            f"There is no device {device!r} on this machine; available: {here}.",
            hint="Leave --device out to run on the CPU.",
        )
    return parsed


def device_name(model: Any) -> str:
    """Where the model stands, for --stats: one device, or the places Accelerate chose."""
    placed = getattr(model, "hf_device_map", None) or {}
    return ", ".join(sorted({str(place) for place in placed.values()})) or str(model.device)


def hardware(model: Any) -> dict[str, str]:
    """What the GPU that the model stands on calls itself; nothing on a CPU."""
    device = input_device(model)
    return {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def input_device(model: Any) -> torch.device:
    """Where prompts go. A model calls its place `meta` where Accelerate keeps its first weights elsewhere."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    places = [place for place in getattr(model, "hf_device_map", {}).values() if place != "disk"]
    return torch.device(places[0]) if places else torch.device("cpu")


def free_memory(device: torch.device) -> int | None:
    """Bytes that new tensors on `device` can take; None where it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps what was freed, and uses it again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory() if device.type in ("cpu", "mps") else None


def forward_parameters(model: Any) -> Mapping[str, Any]:
    """What the model's forward takes: that of the model inside, where peft has wrapped one."""
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(inside.forward).parameters


def check_cache(model: Any) -> None:
    """Raise UnsupportedModel where what a model remembers is not in the cache it is given: it would answer noise."""
    remembers = "past_key_values" in forward_parameters(model)
    if not remembers or not model._supports_default_dynamic_cache() or model.config.model_type in _OWN_CACHE:
        raise UnsupportedModel(
            f"The torch backend does not run {model.config.model_type} models: they keep no usual key-value cache.",
            hint="Choose a model of another architecture.",
        )


def _accelerator() -> str | None:
    if not torch.accelerator.is_available():
        return None
    current = torch.accelerator.current_accelerator()
    return current.type if current else None


def _available() -> dict[str, int]:
    kind = _accelerator()
    return {"cpu": 1} | ({kind: torch.accelerator.device_count()} if kind else {})


def _note_idle_accelerator(reporter: Reporter) -> None:
    kind = _accelerator()
    if kind:
        name = torch.cuda.get_device_name(0) if kind == "cuda" else kind
        reporter.note(f"Running on the CPU while an accelerator is idle: --device 0 uses {name}.")


def _dtype(config: Mapping[str, Any], options: LoadOptions, device: torch.device | None) -> str:
    """The checkpoint's own dtype, but on a CPU without native arithmetic for it float32."""
    if options.exact:
        return "float32"
    if options.dtype is not None:
        return _dtype_name(options.dtype)
    text = config.get("text_config") or {}
    own = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "auto")
    on_cpu = device is not None and device.type == "cpu"
    native = own == "bfloat16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "float32" if on_cpu and not native else own


def _dtype_name(dtype: str) -> str:
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    known = ("auto", *names, *names.values())
    if dtype not in known:
        raise UsageError(f"Unknown dtype {dtype!r}; known are {', '.join(known)}.")
    return names.get(dtype, dtype)


def _arguments(config: Mapping[str, Any], options: LoadOptions, device: torch.device | None) -> dict[str, Any]:
    """What from_pretrained is given. model_kwargs go to it as they are, but for what hfpipe itself decides."""
    _check_attention(options.attn)
    theirs = {"dtype" if key == "torch_dtype" else key: value for key, value in options.model_kwargs.items()}
    _check_model_kwargs(theirs, options)
    ours = {
        "dtype": _dtype(config, options, device),
        "device_map": options.device_map,
        "attn_implementation": options.attn,
    }
    return {key: value for key, value in {**ours, **theirs}.items() if value is not None}


def _check_attention(attn: str | None) -> None:
    if attn not in (None, *_ATTENTION):
        raise UsageError(f"Unknown attention {attn!r}; known are {', '.join(_ATTENTION)}.")


def _check_model_kwargs(theirs: Mapping[str, Any], options: LoadOptions) -> None:
    """Raise a UsageError where model_kwargs set what an option sets too: neither is dropped in silence."""
    reserved = {"trust_remote_code", "use_safetensors", "local_files_only", "output_loading_info"} & set(theirs)
    if reserved:
        raise UsageError(
            f"model_kwargs cannot set {', '.join(sorted(reserved))}.",
            hint="--trust-remote-code and --allow-pickle are options of their own.",
        )
    _exclude("--dtype", options.dtype, "dtype", theirs)
    _exclude("--attn", options.attn, "attn_implementation", theirs)
    _exclude("--device-map", options.device_map, "device_map", theirs)
    _exclude("--device", options.device, "device_map", theirs)
    for given in (options.dtype, theirs.get("dtype")):
        if options.exact and str(given) not in ("None", "float32", "fp32", "torch.float32"):
            raise UsageError(f"--exact computes in float32; the dtype {given} contradicts it.")


def _exclude(option: str, value: str | None, key: str, model_kwargs: Mapping[str, Any]) -> None:
    if value is not None and key in model_kwargs:
        raise UsageError(f"{option} and {key} in model_kwargs exclude each other.")


@contextmanager
def _explained(source: ModelSource, options: LoadOptions) -> Iterator[None]:
    """Whatever transformers raises while it loads a folder, as an error of our own."""
    try:
        yield
    except HFPipeError:
        raise
    except Exception as error:
        if options.allow_pickle and (damaged := _damaged_pickle(source.folder)):
            raise damaged from error
        if isinstance(error, (TypeError, AttributeError)) and options.model_kwargs:
            names = ", ".join(options.model_kwargs)
            raise UsageError(f"transformers cannot load the model with {names} in model_kwargs: {error}") from error
        if isinstance(error, _LOADING_ERRORS):
            raise _explanation(source, error) from error
        raise


def _damaged_pickle(folder: Path) -> ModelError | None:
    """What is wrong with the first of the folder's pickles that torch cannot read: transformers names none."""
    if any(folder.glob("model*.safetensors")):
        # Which transformers prefers.
        return None
    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            weights = torch.load(file, map_location="meta", weights_only=True)
        except MemoryError:
            return None
        except Exception as error:
            # Bytes that are no pickle lead to any kind of error.
            if "GLOBAL" in str(error):
                hint = "Choose a model that comes as .safetensors."
                return ModelError(f"{file} holds more than weights, and torch does not run code from it.", hint=hint)
            return ModelError(f"{file} cannot be read: torch finds no weights in it.", hint=schema.AGAIN)
        if not isinstance(weights, Mapping):
            return ModelError(f"{file} holds a {type(weights).__name__} instead of tensors by name.")
    return None


def _explanation(source: ModelSource, error: Exception) -> HFPipeError:
    text = str(error)
    if "trust_remote_code" in text:
        return UnsupportedModel(
            f"{source.reference} runs code that comes with it.",
            hint="If you trust its author, pass --trust-remote-code.",
        )
    if any(phrase in text for phrase in ("does not recognize this arch", "Unrecognized model", "Unrecognized config")):
        kind = source.config.get("model_type", "no model_type")
        return UnsupportedModel(
            f"{source.reference}: transformers {transformers.__version__} does not know this kind of model ({kind}).",
            hint="A newer transformers may; check config.json, too.",
        )
    if "ignore_mismatched_sizes" in text:
        return ModelError(f"{source.reference}: the weights have other shapes than config.json says.")
    if isinstance(error, StrictDataclassError):
        return ModelError(f"{source.folder / 'config.json'}: {' '.join(text.split())}")
    return as_backend_error(error)


def _check_weights(source: ModelSource, missing: Any) -> None:
    """transformers fills what the checkpoint lacks with random numbers; that is no model."""
    if missing:
        raise ModelError(
            f"{source.reference}: {len(missing)} tensors are missing from the weights, {min(missing)} among them.",
            hint="It may be a model of another kind (an encoder, say), or an incomplete download.",
        )
