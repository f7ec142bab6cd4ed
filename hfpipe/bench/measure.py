"""One measurement, in a process of its own: token ids in, token ids out, on an engine as it is (see process.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.errors import BackendError
from hfpipe.machine import peak_gpu_memory, peak_memory
from hfpipe.models.folder import inspect_folder
from hfpipe.types import LoadOptions, Reporter, TokenRequest

# A warning is due where other processes use this share of the processors, or more.
BUSY = 0.05


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any] | None:
    """Measure the model in `folder`, which the user calls `reference`, loaded with the fields of LoadOptions: `batch`
    answers at once to the `prompts`, token ids with how many are to follow, after those of `warm_up`. With a batch of 1
    those of `short` tell how fast it decodes, and each of `deep`, by name, how fast after it. Gives what a Sample is
    made of, and what the engine says of itself.

    With the `task` "device", raise the HFPipeError of the `backend` where it cannot have the `device`.
    """
    if arguments.get("task") == "device":
        backends.engine(arguments["backend"]).check_device(arguments["device"])
        return None
    options, single = LoadOptions(**arguments["loading"]), arguments["batch"] == 1
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    warm_up, prompts, short = (requests(arguments[name]) for name in ("warm_up", "prompts", "short"))
    backends.engine(options.backend)
    begun = time.perf_counter()
    with backends.load(options.backend, source, options, reporter) as backend:
        load_s = time.perf_counter() - begun
        for together in [[one] for one in warm_up] if single else [warm_up]:
            run(backend, together)
        watch = Watch()
        answers = [run(backend, [one])[0] for one in prompts] if single else run(backend, prompts)
        decoded = [run(backend, [one])[0] for one in short]
        deep = {name: latency(run(backend, requests([one]))) for name, one in arguments.get("deep", {}).items()}
        noise = watch.stop()
        engine = {"device": backend.info.device, "dtype": backend.info.dtype, "detail": dict(backend.info.detail)}
    if not single:
        return {"sample": {"values": {"batch_tps": throughput_tps(answers)}, **noise}, "engine": engine}
    gpu = peak_gpu_memory()
    found = {
        "load_s": load_s,
        **latency(answers),
        "decode_tps": latency(decoded or answers).get("decode_tps"),
        **{name: one.get("decode_tps") for name, one in deep.items()},
        "peak_rss_mb": peak_memory() / 1e6,
        "peak_gpu_mb": None if gpu is None else gpu / 1e6,
    }
    values = {name: value for name, value in found.items() if value is not None}
    times = [round(milliseconds, 4) for one in answers for milliseconds in one.itl_ms]
    return {"sample": {"values": values, "itl_ms": times, **noise}, "engine": engine}


def requests(prompts: Sequence[Any]) -> list[TokenRequest]:
    """Of token ids and how many are to follow."""
    return [TokenRequest(str(i), tuple(token_ids), count) for i, (token_ids, count) in enumerate(prompts)]


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: the length of its prompt, when that was handed over, and when each token came, in seconds."""

    prompt_tokens: int
    start: float
    tokens: Sequence[float]

    @property
    def itl_ms(self) -> list[float]:
        """Between each token and the next."""
        return [1000 * (later - sooner) for sooner, later in zip(self.tokens, self.tokens[1:], strict=False)]


def run(backend: Backend, requests: Sequence[TokenRequest]) -> list[Timed]:
    """Answer all of them at once, greedily and without an end-of-sequence token. Raises the HFPipeError of one that
    fails, and BackendError where one has no token."""
    moments: dict[str, list[float]] = {one.id: [] for one in requests}
    start = time.perf_counter()
    for event in backend.stream(requests):
        if event.error:
            raise event.error
        moments[event.request_id].extend([time.perf_counter()] * len(event.token_ids))
    if not all(moments.values()):
        raise BackendError(f"The {backend.name} backend gave no token.")
    return [Timed(len(one.token_ids), start, moments[one.id]) for one in requests]


def latency(answers: Sequence[Timed]) -> dict[str, float]:
    """Of several answers one at a time: medians of ttft_ms and of tpot_ms, which is (end - first token) / (tokens - 1);
    percentiles of itl_ms over all tokens; prompt tokens a second up to the first token, and generated ones after it."""
    ttft = [one.tokens[0] - one.start for one in answers]
    prompt_tokens = sum(one.prompt_tokens for one in answers)
    values = {"ttft_ms": 1000 * median(ttft), "prefill_tps": prompt_tokens / sum(ttft)}
    times = [one.itl_ms for one in answers if len(one.tokens) > 1]
    if times:
        values["tpot_ms"] = median(sum(one) / len(one) for one in times)
        values["decode_tps"] = 1000 * sum(map(len, times)) / sum(map(sum, times))
        for percent in (50, 95, 99):
            values[f"itl_ms_p{percent}"] = float(np.percentile(np.concatenate(times), percent))
    return values


def throughput_tps(answers: Sequence[Timed]) -> float:
    """Generated tokens a second of all at once, from handing over the prompts to the last token."""
    end = max(one.tokens[-1] for one in answers)
    return sum(len(one.tokens) for one in answers) / (end - min(one.start for one in answers))


class Watch:
    """Whether the machine is quiet, from when this is made until `stop`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._others = _others_seconds()

    def stop(self) -> dict[str, float | None]:
        """`others_cpu`: the share of all processors, 0 to 1, that other processes used, and that a hypervisor gave to
        others; `frequency_mhz` of the processors, None where it cannot be read. Both are fields of a Sample."""
        capacity = (time.perf_counter() - self._begun) * (psutil.cpu_count() or 1)
        others = (_others_seconds() - self._others) / capacity
        try:
            frequency = psutil.cpu_freq()
        except (AttributeError, NotImplementedError, OSError, RuntimeError):
            # Some systems, and most containers, do not tell.
            frequency = None
        mhz = float(frequency.current) if frequency and frequency.current else None
        return {"others_cpu": min(1.0, max(0.0, others)), "frequency_mhz": mhz}


def _others_seconds() -> float:
    """Of all processors since the start of the machine, less those of this process and of its children that have ended.
    Time that another guest of the hypervisor took is among it."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # Those of guests are in user and nice already.
    not_busy = ("idle", "iowait", "guest", "guest_nice")
    busy = sum(seconds for name, seconds in times._asdict().items() if name not in not_busy)
    return float(busy - own.user - own.system - own.children_user - own.children_system)
