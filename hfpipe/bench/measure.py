"""One measurement, in a process of its own: token ids in, token ids out, on an engine as it is (see process.py)."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.bench.spec import batch_metric
from hfpipe.errors import BackendError
from hfpipe.machine import peak_gpu_memory, peak_memory
from hfpipe.models.folder import inspect_folder
from hfpipe.types import LoadOptions, Reporter, TokenRequest

# Of the answers before the measured ones: as much as makes an engine compile and allocate for a shape.
_WARM_UP_TOKENS = 16
# A warning is due where other processes use this share of the processors, or more.
BUSY = 0.05


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and how many tokens are to follow."""

    token_ids: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Task:
    """What a process measures, as JSON goes to it: the model in `folder`, which the user calls `reference`, loaded with
    the fields of LoadOptions; `batch` answers at once, to the user's `prompts` or to random ones of `prompt_tokens`
    with `new_tokens`, drawn from `vocabulary` with `seed`. `prefill` and `decode` are the names of these metrics."""

    reference: str
    folder: str
    loading: Mapping[str, Any]
    batch: int
    prompts: Sequence[Sequence[Any]] | None
    prompt_tokens: int | None
    new_tokens: int
    vocabulary: int
    seed: str
    prefill: str
    decode: str

    def drawn(self, count: int) -> list[Prompt]:
        """The user's own prompts, all of them, or `count` random ones."""
        if self.prompts is not None:
            return [Prompt(tuple(token_ids), new_tokens) for token_ids, new_tokens in self.prompts]
        return random_prompts(self.seed, self.vocabulary, self.prompt_tokens or 1, self.new_tokens, count)


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any] | None:
    """Measure the Task in `arguments`. Gives what a Sample is made of, and what the engine says of itself.

    With the `task` "device", raise the HFPipeError of the `backend` where it cannot have the `device`.
    """
    if arguments.get("task") == "device":
        backends.engine(arguments["backend"]).check_device(arguments["device"])
        return None
    task, options = Task(**arguments), LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(task.folder), task.reference, allow_pickle=options.allow_pickle)
    backends.engine(options.backend)
    begun = time.perf_counter()
    with backends.load(options.backend, source, options, reporter) as backend:
        load_s = time.perf_counter() - begun
        sample = _one_at_a_time(backend, task, load_s) if task.batch == 1 else _at_once(backend, task)
        engine = {"device": backend.info.device, "dtype": backend.info.dtype, "detail": dict(backend.info.detail)}
    return {"sample": sample, "engine": engine}


def _one_at_a_time(backend: Backend, task: Task, load_s: float) -> dict[str, Any]:
    prompts, short = task.drawn(1), list[Prompt]()
    if task.prompts is None:
        # Decoding alone, as llama-bench has it.
        short = random_prompts(f"{task.seed}, short", task.vocabulary, 1, task.new_tokens)
    for prompt in (*prompts, *short):
        warm_up(backend, [prompt], task.vocabulary)
    watch = Watch()
    answers = [run(backend, [prompt])[0] for prompt in prompts]
    decoded = [run(backend, [prompt])[0] for prompt in short] or answers
    noise = watch.stop()
    values = {"load_s": load_s, **latency(answers), task.prefill: prefill_tps(answers)}
    if (rate := decode_tps(decoded)) is not None:
        values[task.decode] = rate
    values["peak_rss_mb"] = peak_memory() / 1e6
    if (gpu := peak_gpu_memory()) is not None:
        values["peak_gpu_mb"] = gpu / 1e6
    times = [round(milliseconds, 4) for one in answers for milliseconds in one.itl_ms]
    return {"values": values, "itl_ms": times, **noise}


def _at_once(backend: Backend, task: Task) -> dict[str, Any]:
    prompts = task.drawn(task.batch)
    warm_up(backend, prompts[: task.batch], task.vocabulary)
    watch = Watch()
    answers = run(backend, prompts)
    return {"values": {batch_metric(task.batch): throughput_tps(answers)}, **watch.stop()}


def random_prompts(seed: str, vocabulary: int, tokens: int, new_tokens: int, count: int = 1) -> list[Prompt]:
    """Prompts of token ids drawn anew, so that no cache of prefixes knows them; the same for the same seed."""
    draw = random.Random(seed)
    return [Prompt(tuple(draw.choices(range(vocabulary), k=tokens)), new_tokens) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: when its prompt was handed over, and when each of its tokens came, in seconds of perf_counter."""

    prompt: Prompt
    start: float
    tokens: Sequence[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.tokens[0] - self.start

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.tokens[-1] - self.tokens[0]

    @property
    def itl_ms(self) -> list[float]:
        """Between each token and the next."""
        return [1000 * (later - sooner) for sooner, later in zip(self.tokens, self.tokens[1:], strict=False)]


def run(backend: Backend, prompts: Sequence[Prompt]) -> list[Timed]:
    """Answer all of them at once, greedily and without an end-of-sequence token. Raises the HFPipeError of one that
    fails, and BackendError where one has no token."""
    moments: list[list[float]] = [[] for _ in prompts]
    requests = [TokenRequest(str(i), one.token_ids, one.new_tokens) for i, one in enumerate(prompts)]
    start = time.perf_counter()
    for event in backend.stream(requests):
        if event.error:
            raise event.error
        moments[int(event.request_id)].extend([time.perf_counter()] * len(event.token_ids))
    if not all(moments):
        raise BackendError(f"The {backend.name} backend gave no token.")
    return [Timed(prompt, start, times) for prompt, times in zip(prompts, moments, strict=True)]


def warm_up(backend: Backend, shapes: Sequence[Prompt], vocabulary: int) -> None:
    """Answer other prompts of the same lengths, all at once, with a few tokens each."""
    others = [
        random_prompts(f"warm-up {i}", vocabulary, len(one.token_ids), min(one.new_tokens, _WARM_UP_TOKENS))[0]
        for i, one in enumerate(shapes)
    ]
    run(backend, others)


def latency(answers: Sequence[Timed]) -> dict[str, float]:
    """ttft_ms, tpot_ms and the percentiles of itl_ms: of several answers the medians, and all their tokens' times.

    tpot_ms is (end - first token) / (tokens - 1).
    """
    values = {"ttft_ms": statistics.median(1000 * one.ttft_s for one in answers)}
    several = [one for one in answers if len(one.tokens) > 1]
    if several:
        values["tpot_ms"] = statistics.median(1000 * one.decode_s / (len(one.tokens) - 1) for one in several)
        times = [time_ms for one in several for time_ms in one.itl_ms]
        for percent in (50, 95, 99):
            values[f"itl_ms_p{percent}"] = float(np.percentile(times, percent))
    return values


def prefill_tps(answers: Sequence[Timed]) -> float:
    """Prompt tokens a second up to the first token."""
    return sum(len(one.prompt.token_ids) for one in answers) / sum(one.ttft_s for one in answers)


def decode_tps(answers: Sequence[Timed]) -> float | None:
    """Generated tokens a second, the first of each answer excluded; None where there are no others."""
    tokens = sum(len(one.tokens) - 1 for one in answers)
    return tokens / sum(one.decode_s for one in answers) if tokens else None


def throughput_tps(answers: Sequence[Timed]) -> float:
    """Generated tokens a second of all at once, from handing over the prompts to the last token."""
    end = max(one.tokens[-1] for one in answers)
    return sum(len(one.tokens) for one in answers) / (end - min(one.start for one in answers))


class Watch:
    """Whether the machine is quiet, from when this is made until `stop`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._others = _busy_seconds() - _own_seconds()

    def stop(self) -> dict[str, float | None]:
        """`others_cpu`: the share of all processors, 0 to 1, that other processes used, and that a hypervisor gave to
        others; `frequency_mhz` of the processors, None where it cannot be read. Both are fields of a Sample."""
        capacity = (time.perf_counter() - self._begun) * (psutil.cpu_count() or 1)
        others = (_busy_seconds() - _own_seconds() - self._others) / capacity
        try:
            frequency = psutil.cpu_freq()
        except (AttributeError, NotImplementedError, OSError, RuntimeError):
            # Some systems, and most containers, do not tell.
            frequency = None
        mhz = float(frequency.current) if frequency and frequency.current else None
        return {"others_cpu": min(1.0, max(0.0, others)), "frequency_mhz": mhz}


def _busy_seconds() -> float:
    """Of all processors since the start of the machine. Time that another guest of the hypervisor took is among it."""
    times: Any = psutil.cpu_times()
    # Those of guests are in user and nice already.
    not_busy = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(seconds for name, seconds in times._asdict().items() if name not in not_busy))


def _own_seconds() -> float:
    """Of this process, and of those of its children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
