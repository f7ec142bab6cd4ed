"""What an OpenVINO model needs before it is loaded: its folder, its device, its properties and its compile cache."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import opset13

from hfpipe import machine, schema, store
from hfpipe.backends.base import as_backend_error
from hfpipe.backends.kv_cache import BYTES_PER_VALUE
from hfpipe.backends.openvino.optimum_cli import EXPORTERS, export_command, own_format, run_export
from hfpipe.errors import BackendError, HFPipeError, ModelError, OutOfMemory, UsageError
from hfpipe.types import LoadOptions, ModelSource, Reporter

# The settings with which greedy answers equal torch's in float32, whatever else is in flight.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

_KEPT_COMPILE_CACHES = 8

# What OpenVINO's names of precisions are called in a processor's flags.
_AMX = {"bf16": "bf16", "f16": "fp16"}
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Without a property of _THREADS, so many processors make at least two threads: cores may run two each.
_SURELY_TWO_THREADS = 8
_THREADS = {
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
    "PERFORMANCE_HINT_NUM_REQUESTS",
    "ENABLE_HYPER_THREADING",
    "SCHEDULING_CORE_TYPE",
}
_PRECISION = {"INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT"}

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


def properties(options: LoadOptions, device: str, runtime: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the engine is given: the user's ov_config over the export's own `runtime`, and the exact settings where they
    are asked for. With it, why those were chosen that the user did not set."""
    _check_keys(options.ov_config)
    chosen, reasons = dict(runtime), dict.fromkeys(runtime, "from the export")
    if options.exact:
        for key, value in EXACT.items():
            if str(options.ov_config.get(key, value)) != value:
                given = options.ov_config[key]
                raise UsageError(f"--exact sets {key}={value}; --ov-config {key}={given} contradicts it.")
        chosen, reasons = dict(EXACT), {}
    if device == "CPU" and machine.processors() < machine.affinity():
        # OpenVINO knows the affinity of the process, and no quota.
        chosen["INFERENCE_NUM_THREADS"] = str(machine.processors())
        reasons["INFERENCE_NUM_THREADS"] = "the CPU quota"
    used = {**chosen, **options.ov_config}
    if why := _needs_f32(device, used):
        if "INFERENCE_PRECISION_HINT" in options.ov_config:
            raise UsageError(
                f"INFERENCE_PRECISION_HINT={used['INFERENCE_PRECISION_HINT']} cannot be used here: {why}.",
                hint="Leave it out to compute in f32.",
            )
        used["INFERENCE_PRECISION_HINT"], reasons["INFERENCE_PRECISION_HINT"] = "f32", why
    return used, {key: why for key, why in reasons.items() if key not in options.ov_config}


def _needs_f32(device: str, used: Mapping[str, Any]) -> str | None:
    """Why arithmetic in 16 bits would fail on this processor; None where it works.

    On a processor with AMX for the precision, OpenVINO runs an MLP as one node, and divides its down projection among
    half of a stream's threads: with one thread it divides by zero, which kills the process (OpenVINO issue 33300, seen
    in 2026.4.1). And where oneDNN is told to use fewer instructions, OpenVINO does not know.
    """
    if device.startswith(("GPU", "NPU")) or str(used.get("INFERENCE_PRECISION_HINT")).lower() == "f32":
        return None
    allowed = next(filter(None, map(os.environ.get, _ISA_VARIABLES)), "DEFAULT").upper()
    masked = not any(name in allowed for name in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10"))
    amx = {kind for kind in ("bf16", "f16") if f"amx_{_AMX[kind]}" in _processor_flags()}
    many = machine.processors() >= _SURELY_TWO_THREADS and not _THREADS & used.keys()
    if not masked and (not amx or many):
        return None
    precision, threads = _resolved(used)
    if masked and precision in _AMX:
        return f"{precision} does not work with ONEDNN_MAX_CPU_ISA={allowed}"
    if precision in amx and threads < 2:
        return f"{precision} with one thread crashes OpenVINO on this processor"
    return None


def _resolved(used: Mapping[str, Any]) -> tuple[str, int]:
    """The precision and the threads of a stream that these properties come to on the CPU, asked of a tiny model."""
    parameter = opset13.parameter([1], ov.Type.f32)
    model = ov.Model([opset13.relu(parameter)], [parameter])
    asked = {key: used[key] for key in used if key in _THREADS or key in _PRECISION}
    compiled = ov.Core().compile_model(model, "CPU", asked)
    threads, streams = (int(compiled.get_property(key)) for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"))
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), threads // max(streams, 1)


def _processor_flags() -> set[str]:
    """Of the first processor; empty where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


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
            reporter.note(f"Running on the CPU; {', '.join(idle)} is available (--device {idle[0]}).")
        return "CPU"
    name = "CPU" if device in ("-1", "cpu") else f"GPU.{device}" if device.isdecimal() else device.upper()
    kind, _, number = name.partition(".")
    matching = [one for one in available if one.partition(".")[0] == kind]
    found = name in available or (matching and number in ("", "0"))
    if not found and kind.partition(":")[0] not in ("AUTO", "HETERO", "MULTI"):
        raise BackendError(
            f"Device {device!r} not found. Available: {', '.join(available)}.",
            hint=_device_hint(device),
        )
    return name


def _device_hint(device: str) -> str:
    if device.lower().startswith(("cuda", "mps", "xpu")):
        return "That is a device of --backend torch."
    return "Leave --device out to run on the CPU. GPU and NPU need their drivers."


@contextmanager
def readable(device: str, folder: Path | None = None) -> Iterator[None]:
    """Raise OpenVINO's errors, a trail of source lines, as one line of our own. It names the model in `folder` where
    that is what cannot be read."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = explained(error, device)
        raise (_damaged(folder) if folder and type(known) is BackendError else None) or known from error


def _damaged(folder: Path) -> ModelError | None:
    """What is wrong with the files of a model that OpenVINO cannot read: its own message names none."""
    file = folder / "openvino_model.xml"
    try:
        ov.Core().read_model(file)
    except RuntimeError as error:
        message = _last_line(error)
        # Functions of C++ that read a number.
        reason = "a number in it is too large, or is none" if message.startswith("sto") else message
        return ModelError(f"OpenVINO cannot read {file}: {reason}", hint=schema.AGAIN)
    return None


def explained(error: Exception, device: str) -> HFPipeError:
    """The message at the end of OpenVINO's trail."""
    known = as_backend_error(error)
    if known is error or isinstance(known, OutOfMemory):
        return known
    message = _last_line(error)
    kind = UsageError if _blames_a_property(message) else BackendError
    wrapped = kind(f"OpenVINO on {device}: {message}", hint=_hint(kind, device))
    wrapped.__cause__ = error
    return wrapped


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return (said[-1] if said else str(error)).removeprefix("NotFound: ")


def _blames_a_property(message: str) -> bool:
    phrases = ("Unsupported property", "Wrong value", "Could not read number", "for property key")
    return any(phrase in message for phrase in phrases)


def _hint(kind: type[Exception], device: str) -> str | None:
    if kind is not UsageError:
        return None
    known = ("PERFORMANCE_HINT", "NUM_STREAMS", "CACHE_DIR", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    return f"Usual keys of --ov-config on {device} are {', '.join(known)}."


def with_compile_cache(folder: Path, device: str, used: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The properties `used`, and a folder for the compiled model where they name none. Where it cannot be written, the
    model runs without, and a note says so."""
    if "CACHE_DIR" in used:
        return dict(used)
    try:
        with store.writing(store.cache_root()):
            return {"CACHE_DIR": str(compile_cache(folder, device, used)), **used}
    except HFPipeError as error:
        reporter.note(f"{error.message} The model is compiled at each start, which takes longer. {error.hint}")
        return dict(used)


def compile_cache(folder: Path, device: str, used: Mapping[str, Any]) -> Path:
    """The folder of the compiled model for everything that compiling depends on. The least used are removed: each is as
    large as its model.

    OpenVINO itself looks for a compiled model by few properties: one compiled in f16, or on AMX in bf16, would be used
    where f32 is asked for.
    """
    processor = ov.Core().get_property("CPU", "FULL_DEVICE_NAME")
    machine_state = [processor, machine.processors(), {name: os.environ.get(name) for name in _ISA_VARIABLES}]
    properties = {key: str(value) for key, value in used.items()}
    key = store.key_of(store.identity(folder), ov.__version__, device, properties, machine_state)
    return store.cache_folder("openvino-compiled", key, model=folder.name, form="compiled", keep=_KEPT_COMPILE_CACHES)


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
