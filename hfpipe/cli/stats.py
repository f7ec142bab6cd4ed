"""What --stats and --json say of an answer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfpipe.machine import peak_memory
from hfpipe.types import Timing, Usage

if TYPE_CHECKING:
    from hfpipe.generator import Generator


def report(generator: Generator, info: Mapping[str, Any]) -> dict[str, Any]:
    """One flat account of an answer. Times in seconds (`_s`) or milliseconds (`_ms`), rates in tokens a second.

    `load_s` is finding and loading the model; `ttft_ms` runs from the prompt's tokenizing to the first token;
    `cold_ttft_s` from the start of the process; `decode_tps` leaves out the first token.
    """
    usage = Usage(info["usage"]["prompt_tokens"], info["usage"]["completion_tokens"])
    timing = Timing(**info["timing"])
    backend = generator.backend.info
    return {
        "finish_reason": info["finish_reason"],
        "usage": info["usage"],
        "seed": info.get("seed"),
        "model": generator.source.reference,
        "backend": backend.name,
        "why": generator.why,
        "device": backend.device,
        "dtype": backend.dtype,
        "detail": dict(backend.detail),
        "load_s": round(generator.load_s, 3),
        "ttft_ms": round(timing.ttft_s * 1000, 1),
        "cold_ttft_s": _rounded(_since_process_start(timing.first_token), 3),
        "prefill_tps": _rounded(timing.prefill_tps(usage), 1),
        "decode_tps": _rounded(timing.decode_tps(usage), 1),
        "peak_rss_mb": round(peak_memory() / 1e6, 1),
    }


def as_rows(measured: Mapping[str, Any]) -> dict[str, str]:
    """The account for a person: names and texts."""
    usage, detail = measured["usage"], "".join(f", {key} {value}" for key, value in measured["detail"].items())
    return {
        "backend": f"{measured['backend']} ({measured['why']})",
        "runs on": f"{measured['device']}, {measured['dtype']}{detail}",
        "load": f"{measured['load_s']:.2f} s",
        "first token": f"{measured['ttft_ms']:.0f} ms" + _cold(measured["cold_ttft_s"]),
        "prompt": f"{usage['prompt_tokens']} tokens" + _rate(measured["prefill_tps"]),
        "completion": f"{usage['completion_tokens']} tokens" + _rate(measured["decode_tps"]),
        "finish reason": measured["finish_reason"],
        "seed": "none, greedy" if measured["seed"] is None else str(measured["seed"]),
        "peak memory": f"{measured['peak_rss_mb']:.0f} MB",
    }


def _cold(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.2f} s after the process started"


def _rate(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f", {tokens_per_second:.1f} a second"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _since_process_start(moment: float) -> float:
    """Seconds from the start of the process to `moment` of time.perf_counter."""
    return _process_age() - (time.perf_counter() - moment)


def _process_age() -> float:
    if sys.platform == "linux":
        # psutil adds these ticks to a boot time that the kernel gives in whole seconds.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    age: float = time.time() - psutil.Process().create_time()
    return age
