"""How a transformers folder becomes a torch model: device, dtype, weights that are really all there."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AttentionInterface, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.integrations.hub_kernels import is_kernel
from transformers.utils import is_kernels_available

from hfpipe.backends.base import as_backend_error
from hfpipe.backends.torch import attention
from hfpipe.errors import BackendError, HFPipeError, ModelError, OutOfMemory, UnsupportedModel, UsageError
from hfpipe.machine import available_memory, processors
from hfpipe.types import LoadOptions, ModelSource, Reporter

_OWN_CACHE = ("recurrent_gemma",)
_SDPA = "leave --attn out: sdpa, the default, is a part of torch."
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Of from_pretrained: what hfpipe itself decides.
_OURS = ("output_loading_info", "trust_remote_code", "use_safetensors")


def load_model(source: ModelSource, options: LoadOptions, reporter: Reporter) -> Any:
    """The model in evaluation mode, where the options place it."""
    if processors() < torch.get_num_threads():
        # A thread more than a CPU quota keeps busy makes the others wait.
        torch.set_num_threads(processors())
    device = None if options.device_map else parse_device(options.device)
    if options.device is None and options.device_map is None and (kind := _accelerator()):
        name = torch.cuda.get_device_name(0) if kind == "cuda" else kind
        reporter.note(f"Running on the CPU while an accelerator is idle: --device 0 uses {name}.")
    arguments = _arguments(source.config, options, device)
    try:
        auto: Any = AutoModelForSeq2SeqLM if source.is_encoder_decoder else AutoModelForCausalLM
        model, loading = auto.from_pretrained(
            source.folder,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=None if options.allow_pickle else True,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
        if device is not None and "device_map" not in arguments:
            model = model.to(device)
    except Exception as error:
        raise _explanation(source, options, error) from error
    # transformers fills what the checkpoint lacks with random numbers; that is no model.
    if missing := loading["missing_keys"]:
        raise ModelError(
            f"{source.reference}: {len(missing)} tensors are missing from the weights, {min(missing)} among them.",
            hint="It may be a model of another kind (an encoder, say), or an incomplete download.",
        )
    if (asked := _attention(options)) not in (None, "sdpa", "eager"):
        _try_attention(model, asked)
    elif asked is None and model.device.type == "cpu":
        attention.group_heads(model)
    if model.device.type == "meta" and not getattr(model, "hf_device_map", None):
        raise BackendError("The device map leaves no weights in memory.", hint="Give it a place other than the disk.")
    return model.eval()


def parse_device(device: str | None) -> torch.device:
    """`-1`, `cpu` or None is the CPU; `N` the N-th accelerator of whatever kind is here; else torch's own names."""
    if device is None or device.lower() in ("-1", "cpu"):
        return torch.device("cpu")
    kind = _accelerator()
    try:
        parsed = torch.device(f"{kind or 'cuda'}:{device}" if device.isdecimal() else device.lower())
    except RuntimeError as error:
        raise UsageError(
            f"Unknown device {device!r}.", hint="torch knows -1 or cpu, 0 (the first accelerator), cuda:1, mps, xpu."
        ) from error
    available = {"cpu": 1} | ({kind: torch.accelerator.device_count()} if kind else {})
    if (parsed.index or 0) >= available.get(parsed.type, 0):
        here = ", ".join(f"{kind} ({count})" for kind, count in available.items())
        raise BackendError(
            f"There is no device {device!r} on this machine; available: {here}.",
            hint="Leave --device out to run on the CPU.",
        )
    return parsed


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
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return current.type if current else None


def _arguments(config: Mapping[str, Any], options: LoadOptions, device: torch.device | None) -> dict[str, Any]:
    """What from_pretrained is given. model_kwargs go to it as they are, unless an option sets the same: neither is
    dropped in silence."""
    dtypes = ("auto", *_DTYPES, *_DTYPES.values())
    if options.dtype not in (None, *dtypes):
        raise UsageError(f"Unknown dtype {options.dtype!r}; known are {', '.join(dtypes)}.")
    _check_attention(_attention(options))
    theirs = {"dtype" if key == "torch_dtype" else key: value for key, value in options.model_kwargs.items()}
    if reserved := set(_OURS) & set(theirs):
        raise UsageError(
            f"model_kwargs cannot set {', '.join(sorted(reserved))}.",
            hint="--trust-remote-code and --allow-pickle are options of their own.",
        )
    twice = {"dtype": "dtype", "attn": "attn_implementation", "device_map": "device_map", "device": "device_map"}
    for name, key in twice.items():
        if key in theirs and getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} and {key} in model_kwargs exclude each other.")
    own = theirs.get("dtype")
    of_torch = getattr(torch, str(own).removeprefix("torch."), None)
    if own not in (None, "auto") and not isinstance(own, Mapping) and not isinstance(of_torch, torch.dtype):
        names = ", ".join(_DTYPES.values())
        raise UsageError(f"Unknown dtype {own!r} in model_kwargs; known are auto, {names}.")
    for given in (options.dtype, own):
        if options.exact and str(given) not in ("None", "float32", "fp32", "torch.float32"):
            raise UsageError(f"--exact computes in float32; the dtype {given} contradicts it.")
    dtype = _dtype(config, options, device)
    ours = {"dtype": dtype, "device_map": options.device_map, "attn_implementation": options.attn}
    return {key: value for key, value in {**ours, **theirs}.items() if value is not None}


def _attention(options: LoadOptions) -> Any:
    return options.model_kwargs.get("attn_implementation") if options.attn is None else options.attn


def _check_attention(name: Any) -> None:
    """Raise UsageError for what the installed transformers does not offer, nor a repository of kernels on the Hub."""
    if name == "xformers":
        raise UsageError("transformers has no attention of xformers.", hint=f"sdpa took its place: {_SDPA}")
    # With those for transformers' own batches, which have another cache, answers are noise.
    offered = sorted({"eager", *AttentionInterface().valid_keys()})
    offered = [one for one in offered if not one.startswith(("paged|", attention.PREFIX))]
    if name is None or isinstance(name, Mapping) or name in offered:
        return
    if not isinstance(name, str) or not is_kernel(name) or "|" in name:
        raise UsageError(
            f"Unknown attention {name!r}; known are {', '.join(offered)}.",
            hint="A kernel of the Hub is ORG/NAME, as in kernels-community/flash-attn2.",
        )
    if not is_kernels_available():
        # transformers says so the first time, and runs on without the second.
        raise _absent(name, "the package kernels is not installed", "kernels")


def _absent(name: str, reason: str, package: str) -> BackendError:
    return BackendError(f"{name} is not available: {reason}.", hint=f"pip install {package}, or {_SDPA}")


def _try_attention(model: Any, name: Any) -> None:
    """Raise BackendError where this attention fails on this device or in this dtype, which shows at its first use."""
    try:
        with torch.inference_mode():
            model(torch.zeros((1, 2), dtype=torch.long, device=input_device(model)))
    except Exception as error:
        device, dtype = model.device.type, str(model.dtype).removeprefix("torch.")
        raise BackendError(
            f"{name} does not run here, on {device} in {dtype}: {as_backend_error(error).message}",
            hint=f"Choose another device or dtype, or {_SDPA}",
        ) from error


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16, which is then the faster way."""
    # A private part of torch; tried with 2.13.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _dtype(config: Mapping[str, Any], options: LoadOptions, device: torch.device | None) -> str:
    """The checkpoint's own dtype, but on a CPU without native arithmetic for it float32."""
    if options.exact or options.dtype is not None:
        return "float32" if options.exact else _DTYPES.get(str(options.dtype), str(options.dtype))
    text = config.get("text_config") or {}
    own = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "auto")
    on_cpu = device is not None and device.type == "cpu"
    native = own == "bfloat16" and has_bfloat16()
    return "float32" if on_cpu and not native else own


def _explanation(source: ModelSource, options: LoadOptions, error: Exception) -> HFPipeError:
    """Whatever transformers raises while it loads a folder, as an error of our own."""
    text = str(error)
    if options.allow_pickle and not any(source.folder.glob("model*.safetensors")):
        # transformers does not name the file that it cannot read.
        for file in sorted(source.folder.glob("pytorch_model*.bin")):
            if not _holds_tensors(file):
                return ModelError(
                    f"{file} is damaged, or holds code beside the weights, which torch does not run.",
                    hint="Fetch it again, or choose a model that comes as .safetensors.",
                )
    if (asked := _attention(options)) and isinstance(error, ImportError):
        package = "flash-attn" if asked == "flash_attention_2" else "kernels"
        reason = text.rpartition("following error: ")[2].partition("\n")[0].rstrip(".")
        return _absent(asked, reason, package)
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
    wrapped = as_backend_error(error)
    if (wrong := _blamed(options, error)) and not isinstance(wrapped, OutOfMemory):
        # What follows its first sentence is advice for programs.
        reason = " ".join(re.split(r"\.\s+(?=[A-Z])|\n(?!\s)", text)[0].split())
        hint = "Leave" + _SDPA[5:] if "--attn" in wrong or "attn_impl" in wrong else "Check the value, or leave it out."
        kind = BackendError if isinstance(error, RuntimeError | ImportError) else UsageError
        return kind(f"transformers cannot load {source.reference} with {wrong}.", hint=hint, details=[reason])
    if isinstance(error, StrictDataclassError):
        return ModelError(f"{source.folder / 'config.json'}: {' '.join(text.split())}")
    return wrapped


def _blamed(options: LoadOptions, error: Exception) -> str:
    """The user's arguments with their values that made from_pretrained fail: those that its error names, or all of them
    where it is of a kind that damaged files do not raise. "" where there are none."""
    all_given = {"--attn": options.attn, "--device-map": options.device_map, **options.model_kwargs}
    given = {name: value for name, value in all_given.items() if value is not None}
    text = str(error)
    named = [name for name, value in given.items() if name.strip("-").replace("-", "_") in text or str(value) in text]
    if not named and isinstance(error, TypeError | ValueError | AttributeError | RuntimeError | ImportError):
        named = [*given]
    where = dict.fromkeys(options.model_kwargs, " in model_kwargs")
    return " and ".join(f"{name} {reprlib.repr(given[name])}{where.get(name, '')}" for name in named)


def _holds_tensors(pickle: Path) -> bool:
    # Bytes that are no pickle lead to any kind of error.
    with suppress(Exception):
        return isinstance(torch.load(pickle, map_location="meta", weights_only=True), Mapping)
    return False
