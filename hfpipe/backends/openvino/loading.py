"""What an OpenVINO model needs before it is loaded: its folder, its device, its properties and its compile cache."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import opset13

from hfpipe import machine, schema, store
from hfpipe.backends.base import as_backend_error
from hfpipe.backends.openvino.tuning import ISA_VARIABLES, Choice, processor
from hfpipe.errors import BackendError, HFPipeError, ModelError, UsageError
from hfpipe.models.folder import openvino_models
from hfpipe.types import LoadOptions, Reporter

# The settings with which greedy answers equal torch's in float32, whatever else is in flight.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

_KEPT_COMPILE_CACHES = 8

# The flags of processors that have AMX for a precision.
_AMX = {"bf16": "amx_bf16", "f16": "amx_fp16"}
# So many processors are two threads at least, also where each core is two of them, unless properties say otherwise.
_MANY = 8
_NOT_OF_THREADS = {"INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "CACHE_DIR"}

# A constant in the model's xml, as OpenVINO writes it.
_CONSTANT = re.compile(rb'name="([^"]*)" type="Const"[^>]*>\s*<data element_type="(\w+)"[^>]* size="(\d+)"')
# Those that belong to a weight and are not weights themselves.
_OF_A_WEIGHT = (b"/scale", b"/zero_point", b"/fq_weights_1")
PRECISIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
PRECISIONS |= {"u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4"}
PRECISIONS |= {"f8e4m3": "fp8", "f8e5m2": "fp8", "f4e2m1": "fp4"}
# A weight of cb4, as nncf 3.4 names it: numbers of the values in a codebook, which has the name without this.
_IN_CODEBOOK = b"_nncf_codebook_idxs"
_CACHE_PRECISION = re.compile(rb'<KV_CACHE_PRECISION value="(\w+)"')
# Of keys and values. u8 comes with scales: for each token's head, and for each channel of 32 tokens.
_BYTES_PER_VALUE = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.25}


def properties(options: LoadOptions, device: str, tuned: Choice | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """What the engine is given: the user's ov_config over what is `tuned`, and the exact settings where they are asked
    for. With it, why those were chosen that the user did not set."""
    given, tuned = options.ov_config, tuned or Choice()
    for key, value in given.items():
        # openvino-genai would take these for arguments of its own.
        if key != key.upper() or not key or key == "ATTENTION_BACKEND" or value is None:
            raise UsageError(
                f"--ov-config {key}={value}: this is not a property that can be set.",
                hint="Properties of OpenVINO are written in capitals, and have a value.",
            )
        if options.exact and str(value) != EXACT.get(key, str(value)):
            raise UsageError(f"--exact sets {key}={EXACT[key]}; --ov-config {key}={value} contradicts it.")
    chosen, reasons = dict(EXACT if options.exact else tuned.properties), dict[str, str]()
    if not options.exact:
        reasons = dict.fromkeys(tuned.properties, tuned.why)
    if device == "CPU" and machine.processors() < machine.affinity():
        # OpenVINO knows the affinity of the process, and no quota.
        chosen["INFERENCE_NUM_THREADS"] = str(machine.processors())
        reasons["INFERENCE_NUM_THREADS"] = "the CPU quota"
    used = {**chosen, **given}
    if why := _needs_f32(device, used):
        if "INFERENCE_PRECISION_HINT" in given:
            raise UsageError(
                f"INFERENCE_PRECISION_HINT={used['INFERENCE_PRECISION_HINT']} cannot be used here: {why}.",
                hint="Leave it out to compute in f32.",
            )
        used["INFERENCE_PRECISION_HINT"], reasons["INFERENCE_PRECISION_HINT"] = "f32", why
    return used, {key: why for key, why in reasons.items() if key not in given}


def _needs_f32(device: str, used: Mapping[str, Any]) -> str | None:
    """Why arithmetic in 16 bits would fail on this processor; None where it works.

    On a processor with AMX for the precision, OpenVINO runs an MLP as one node, and divides its down projection among
    half of a stream's threads: with one thread it divides by zero, which kills the process (OpenVINO issue 33300, seen
    in 2026.4.1). And where oneDNN is told to use fewer instructions, OpenVINO does not know.
    """
    if device.startswith(("GPU", "NPU")) or str(used.get("INFERENCE_PRECISION_HINT")).lower() == "f32":
        return None
    allowed = next(filter(None, map(os.environ.get, ISA_VARIABLES)), "DEFAULT").upper()
    masked = not any(name in allowed for name in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10"))
    flags = "" if machine.processors() >= _MANY and used.keys() <= _NOT_OF_THREADS else _processors()
    crashing = [precision for precision, flag in _AMX.items() if flag in flags]
    if not masked and not crashing:
        return None
    # What these properties come to on the CPU is asked of a tiny model.
    core, parameter = ov.Core(), opset13.parameter([1], ov.Type.f32)
    known = {key: used[key] for key in core.get_property("CPU", "SUPPORTED_PROPERTIES") if key in used}
    compiled = core.compile_model(ov.Model([opset13.relu(parameter)], [parameter]), "CPU", {**known, "CACHE_DIR": ""})
    threads, streams = (int(compiled.get_property(key)) for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if masked and precision in _AMX:
        return f"{precision} does not work with ONEDNN_MAX_CPU_ISA={allowed}"
    if precision in crashing and threads // max(streams, 1) < 2:
        return f"{precision} with one thread crashes OpenVINO on this processor"
    return None


def _processors() -> str:
    """What Linux says of the processors; nothing elsewhere."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


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
    first = number in ("", "0") and any(one.partition(".")[0] == kind for one in available)
    if name not in available and not first and kind.partition(":")[0] not in ("AUTO", "HETERO", "MULTI"):
        raise BackendError(
            f"Device {device!r} not found. Available: {', '.join(available)}.",
            hint="Leave --device out to run on the CPU. GPU and NPU need their drivers; cuda is of --backend torch.",
        )
    return name


@contextmanager
def readable(device: str, folder: Path | None = None) -> Iterator[None]:
    """Raise OpenVINO's errors, a trail of source lines, as one line of our own. It names the model in `folder` where
    that is what cannot be read."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = explained(error, device)
        if folder and type(known) is BackendError:
            known = next(filter(None, map(_unreadable, openvino_models(folder))), known)
        raise known from error


def _unreadable(file: Path) -> ModelError | None:
    """Why OpenVINO cannot read a model, None where it can."""
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
    if known is error or isinstance(error, MemoryError):
        return known
    message, hint, kind = _last_line(error), None, type(known)
    phrases = ("Unsupported property", "Wrong value", "Could not read number", "for property key")
    if any(phrase in message for phrase in phrases):
        usual = "PERFORMANCE_HINT, NUM_STREAMS, CACHE_DIR, KV_CACHE_PRECISION, DYNAMIC_QUANTIZATION_GROUP_SIZE"
        kind, hint = UsageError, f"Usual keys of --ov-config are {usual}."
    known = kind(f"OpenVINO on {device}: {message}", hint=hint)
    known.__cause__ = error
    return known


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return (said[-1] if said else str(error)).removeprefix("NotFound: ")


def with_compile_cache(
    folder: Path, device: str, used: Mapping[str, Any], reporter: Reporter, *, model: str = ""
) -> dict[str, Any]:
    """The properties `used`, and a folder for the compiled model where they name none. Where it cannot be written, the
    model runs without, and a note says so. The least used are removed: each is as large as its model.

    There is a folder for everything that compiling depends on. OpenVINO itself looks for a compiled model by few
    properties: one compiled in f16, or on AMX in bf16, would be used where f32 is asked for.
    """
    if "CACHE_DIR" in used:
        return dict(used)
    properties = {key: str(value) for key, value in used.items()}
    try:
        with store.writing(store.cache_root()):
            key = store.key_of(store.identity(folder), device, properties, *processor())
            place = store.cache_folder(
                "openvino-compiled", key, model=model or folder.name, form="compiled", keep=_KEPT_COMPILE_CACHES
            )
    except HFPipeError as error:
        reporter.note(f"{error.message} The model is compiled at each start, which takes longer. {error.hint}")
        return dict(used)
    return {"CACHE_DIR": str(place), **used}


def weight_shares(folder: Path) -> dict[str, float]:
    """The share of the weights in each precision (float32, float16, bfloat16, int8, int4, nf4, cb4, fp4 which is that
    of mxfp4, fp8), the largest first, without the scales and codebooks of quantized ones."""
    counts: Counter[str] = Counter()
    constants = _CONSTANT.findall(b"".join(file.read_bytes() for file in openvino_models(folder)))
    codebooks = {name.removesuffix(_IN_CODEBOOK) for name, *_ in constants if name.endswith(_IN_CODEBOOK)}
    for name, kind, size in constants:
        precision = "cb4" if name.endswith(_IN_CODEBOOK) else PRECISIONS.get(kind.decode(), kind.decode())
        bits = re.search(r"\d+", precision)
        if bits and kind not in (b"i32", b"i64") and not name.endswith(_OF_A_WEIGHT) and name not in codebooks:
            counts[precision] += int(size) * 8 // int(bits[0])
    return {precision: count / sum(counts.values()) for precision, count in counts.most_common()}


def weight_format(folder: Path) -> str:
    """What most of the weights are stored as."""
    return next(iter(weight_shares(folder)), "unknown")


def bytes_per_cached_value(folder: Path, used: Mapping[str, Any]) -> float:
    """What the engine keeps a key or a value in, on a CPU: as the properties say, else the model, else 8 bits. The most
    for a precision that is not known here."""
    keys = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")
    named = [str(used[key]).lower() for key in keys if key in used]
    if not named and str(used.get("EXECUTION_MODE_HINT")).upper() == "ACCURACY":
        named = ["f32"]
    if not named:
        own = _CACHE_PRECISION.search(openvino_models(folder)[-1].read_bytes())
        named = [own[1].decode() if own else "u8"]
    return max(_BYTES_PER_VALUE.get(precision, 4.0) for precision in named)
