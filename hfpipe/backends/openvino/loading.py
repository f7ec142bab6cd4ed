"""What an OpenVINO model needs before it is loaded: its folder, its device, its properties and its compile cache."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openvino as ov

from hfpipe import store
from hfpipe.backends.base import as_backend_error
from hfpipe.backends.kv_cache import BYTES_PER_VALUE
from hfpipe.backends.openvino.optimum_cli import EXPORTERS, export_command, own_format, run_export
from hfpipe.errors import BackendError, HFPipeError, OutOfMemory, UsageError
from hfpipe.types import LoadOptions, ModelSource, Reporter

# The settings with which greedy answers equal torch's in float32, whatever else is in flight.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

_KEPT_COMPILE_CACHES = 8
_KEPT_BLOBS = 4

# A constant in the model's xml, as OpenVINO writes it.
_CONSTANT = re.compile(rb'<data element_type="(\w+)"[^>]* size="(\d+)"')
_CACHE_PRECISION = re.compile(rb'<KV_CACHE_PRECISION value="(\w+)"')
PRECISIONS = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "u8": "int8",
    "i8": "int8",
    "u4": "int4",
    "i4": "int4",
}


def properties(options: LoadOptions, runtime: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The user's ov_config over the export's own `runtime`; the exact settings where they are asked for."""
    _check_keys(options.ov_config)
    if not options.exact:
        return {**(runtime or {}), **options.ov_config}
    for key, value in EXACT.items():
        if str(options.ov_config.get(key, value)) != value:
            raise UsageError(f"--exact sets {key}={value}; --ov-config {key}={options.ov_config[key]} contradicts it.")
    return {**options.ov_config, **EXACT}


def _check_keys(ov_config: Mapping[str, Any]) -> None:
    """Raise a UsageError for what openvino-genai would take for an argument of its own, not of the device."""
    for key, value in ov_config.items():
        if key != key.upper() or not key or key == "ATTENTION_BACKEND" or value is None:
            raise UsageError(
                f"--ov-config {key}={value}: this is not a property that can be set.",
                hint="Properties of OpenVINO are written in capitals, and have a value.",
            )


def check_device(device: str | None, reporter: Reporter) -> str:
    """OpenVINO's name of a device: `-1`, `cpu` or None is CPU, `N` is GPU.N, else its own names."""
    available = ov.Core().available_devices
    if device is None:
        idle = [name for name in available if name != "CPU"]
        if idle:
            reporter.note(f"Running on the CPU while {', '.join(idle)} stands idle: --device {idle[0]} uses it.")
        return "CPU"
    name = "CPU" if device in ("-1", "cpu") else f"GPU.{device}" if device.isdecimal() else device.upper()
    kind, _, number = name.partition(".")
    matching = [one for one in available if one.partition(".")[0] == kind]
    here = name in available or (matching and number in ("", "0"))
    if not here and kind.partition(":")[0] not in ("AUTO", "HETERO", "MULTI"):
        raise BackendError(
            f"OpenVINO finds no device {device!r} on this machine; here are: {', '.join(available)}.",
            hint=_device_hint(device),
        )
    return name


def _device_hint(device: str) -> str:
    if device.lower().startswith(("cuda", "mps", "xpu")):
        return "That is a device of --backend torch."
    return "Leave --device out to run on the CPU. GPU and NPU need their drivers."


@contextmanager
def readable(device: str) -> Iterator[None]:
    """Raise OpenVINO's errors, a trail of source lines, as one line of our own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise explained(error, device) from error


def explained(error: Exception, device: str) -> HFPipeError:
    """The message at the end of OpenVINO's trail."""
    known = as_backend_error(error)
    if known is error or isinstance(known, OutOfMemory):
        return known
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    message = (said[-1] if said else str(error)).removeprefix("NotFound: ")
    kind = UsageError if _blames_a_property(message) else BackendError
    wrapped = kind(f"OpenVINO on {device}: {message}", hint=_hint(kind, device))
    wrapped.__cause__ = error
    return wrapped


def _blames_a_property(message: str) -> bool:
    phrases = ("Unsupported property", "Wrong value", "Could not read number", "for property key")
    return any(phrase in message for phrase in phrases)


def _hint(kind: type[Exception], device: str) -> str | None:
    if kind is not UsageError:
        return None
    known = ("PERFORMANCE_HINT", "NUM_STREAMS", "CACHE_DIR", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    return f"Usual keys of --ov-config on {device} are {', '.join(known)}."


def with_compile_cache(folder: Path, used: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The properties `used`, and a place for the compiled model where they name none. A place that cannot be written
    is left out, and said: the model runs all the same."""
    if "CACHE_DIR" in used:
        return dict(used)
    try:
        with store.writing(store.cache_root()):
            return {"CACHE_DIR": str(compile_cache(str(folder))), **used}
    except HFPipeError as error:
        reporter.note(f"{error.message} The model is compiled anew at each start, which takes longer. {error.hint}")
        return dict(used)


def compile_cache(folder: str) -> Path:
    """The folder of the compiled blobs of one model file, a blob for each set of properties. A changed model gets
    another folder. Of folders the least used are removed, of blobs the oldest: each is as large as its model."""
    key = store.key_of(store.identity(Path(folder)), ov.__version__)
    place = store.cache_folder(
        "openvino-compiled", key, model=Path(folder).name, form="compiled", keep=_KEPT_COMPILE_CACHES
    )
    store.keep_newest(place, _KEPT_BLOBS)
    return place


def model_folder(source: ModelSource, options: LoadOptions, reporter: Reporter) -> Path:
    """The folder of the OpenVINO model: the source's own, or an export of it that is made once and kept."""
    if source.format == "openvino":
        return source.folder
    dtype = "fp32" if options.exact else own_format(source)

    def export(folder: Path) -> None:
        reporter.note(f"Exporting {source.reference} for OpenVINO ({dtype}), once; the result is kept.")
        # Text goes in as token ids, which tokenizer.json gives.
        command = export_command(
            source,
            folder,
            dtype,
            trust_remote_code=options.trust_remote_code,
            more=["--disable-convert-tokenizer"],
        )
        run_export(source, command, reporter=reporter)

    versions = {package: version(package) for package in EXPORTERS}
    key = store.key_of(store.identity(source.folder, reporter=reporter), dtype, options.trust_remote_code, versions)
    return store.build_once("openvino", f"{key}-{dtype}", export, model=source.reference, form=dtype, reporter=reporter)


def weight_format(folder: str) -> str:
    """What most of the weights are stored as: float32, float16, bfloat16, int8, int4."""
    counts: Counter[str] = Counter()
    for kind, size in _CONSTANT.findall((Path(folder) / "openvino_model.xml").read_bytes()):
        precision = PRECISIONS.get(kind.decode(), kind.decode())
        counts[precision] += int(size) * 8 // int(re.sub(r"\D", "", precision) or 8)
    return counts.most_common(1)[0][0] if counts else "unknown"


def bytes_per_cached_value(folder: Path, used: Mapping[str, Any]) -> float:
    """What the engine keeps a key or a value in, on a CPU: as the properties say, else the model, else 8 bits. The most
    for a precision that is not known here."""
    keys = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")
    named = [str(used[key]).lower() for key in keys if key in used]
    if not named and str(used.get("EXECUTION_MODE_HINT")).upper() == "ACCURACY":
        named = ["f32"]
    if not named:
        own = _CACHE_PRECISION.search((folder / "openvino_model.xml").read_bytes())
        named = [own[1].decode() if own else "u8"]
    return max(BYTES_PER_VALUE.get(precision, max(BYTES_PER_VALUE.values())) for precision in named)
