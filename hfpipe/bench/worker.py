"""One configuration measured once, in a process of its own (see process.py)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.bench.measure import (
    Prompt,
    Timed,
    decode_tps,
    latency,
    prefill_tps,
    random_prompts,
    run,
    throughput_tps,
    warm_up,
)
from hfpipe.bench.metrics import batch_metric
from hfpipe.bench.noise import Watch
from hfpipe.machine import peak_gpu_memory, peak_memory
from hfpipe.models.folder import inspect_folder
from hfpipe.types import LoadOptions, Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Load the model in `arguments["folder"]` with `arguments["loading"]`, the fields of LoadOptions, and measure it.

    `reference` is what the user calls it. `batch` answers at once are measured, or with 1 one at a time: each of the
    `prompts` (token ids and the number of new tokens), null for random ones of `prompt_tokens` with `new_tokens`, drawn
    from `vocabulary` with `seed`. `metrics` names the rates of "prefill" and "decode". Gives what a Sample is made of,
    and what the engine says of itself.
    """
    options = LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    backends.engine(options.backend)
    begun = time.perf_counter()
    with backends.load(options.backend, source, options, reporter) as backend:
        load_s = time.perf_counter() - begun
        measure = _one_at_a_time if arguments["batch"] == 1 else _at_once
        sample = measure(backend, arguments, load_s)
        engine = {"device": backend.info.device, "dtype": backend.info.dtype, "detail": dict(backend.info.detail)}
    return {"sample": sample, "engine": engine}


def _one_at_a_time(backend: Backend, arguments: dict[str, Any], load_s: float) -> dict[str, Any]:
    vocabulary, metrics = arguments["vocabulary"], arguments["metrics"]
    prompts, short = _prompts(arguments, 1), []
    if arguments["prompts"] is None:
        # Decoding alone, as llama-bench has it.
        short = random_prompts(f"{arguments['seed']}, short", vocabulary, 1, arguments["new_tokens"])
    for prompt in (*prompts, *short):
        warm_up(backend, [prompt], vocabulary)
    watch = Watch()
    answers = [_alone(backend, prompt) for prompt in prompts]
    decoded = [_alone(backend, prompt) for prompt in short] or answers
    noise = watch.stop()
    values = {"load_s": load_s, **latency(answers), metrics["prefill"]: prefill_tps(answers)}
    if (rate := decode_tps(decoded)) is not None:
        values[metrics["decode"]] = rate
    times = [round(milliseconds, 4) for one in answers for milliseconds in one.itl_ms]
    return {"values": {**values, **_peaks()}, "itl_ms": times, **noise.as_dict()}


def _at_once(backend: Backend, arguments: dict[str, Any], load_s: float) -> dict[str, Any]:
    size = arguments["batch"]
    prompts = _prompts(arguments, size)
    warm_up(backend, prompts[:size], arguments["vocabulary"])
    watch = Watch()
    answers = run(backend, prompts)
    return {"values": {batch_metric(size): throughput_tps(answers)}, **watch.stop().as_dict()}


def _alone(backend: Backend, prompt: Prompt) -> Timed:
    (answer,) = run(backend, [prompt])
    return answer


def _prompts(arguments: dict[str, Any], count: int) -> list[Prompt]:
    """The user's own, all of them, or random ones."""
    if arguments["prompts"] is not None:
        return [Prompt(tuple(token_ids), new_tokens) for token_ids, new_tokens in arguments["prompts"]]
    return random_prompts(
        arguments["seed"], arguments["vocabulary"], arguments["prompt_tokens"], arguments["new_tokens"], count
    )


def _peaks() -> dict[str, float]:
    gpu = peak_gpu_memory()
    return {"peak_rss_mb": peak_memory() / 1e6} | ({} if gpu is None else {"peak_gpu_mb": gpu / 1e6})
