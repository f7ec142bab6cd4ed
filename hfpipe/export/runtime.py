"""Which of OpenVINO's runtime options make an export faster, and change its results no more than its format has."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.backends.openvino import SingleBackend
from hfpipe.quality.compare import Quality
from hfpipe.quality.reference import Reference
from hfpipe.quality.score_openvino import score
from hfpipe.types import Reporter, TokenRequest

# The weights that share a scale when a product is computed in integers; OpenVINO's own choice on a CPU is 32.
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CANDIDATES: tuple[dict[str, str], ...] = ({}, {_GROUP: "64"}, {_GROUP: "128"})
_TASK = "Measuring"
_ROUNDS = 3
_PROMPT_TOKENS, _NEW_TOKENS = 256, 48
# Less than that is not told from noise.
_FASTER, _NOT_SLOWER = 1.05, 0.98
# How much more of KL divergence than the format has cost, and what rounding alone may do.
_MORE_KL, _NOISE_KL = 1.05, 5e-4

Speed = tuple[float, float]


def choose_options(
    folder: Path, quality: Quality, reference: Reference, temporary: Path, *, reporter: Reporter
) -> dict[str, Any]:
    """`runtime`: the properties to run the export with; `runtime_measured`: prompt and generated tokens a second of
    each that was tried, medians of alternating rounds, and the KL divergence of what was considered."""
    speeds = _measure(folder, reference.vocabulary, temporary, reporter)
    measured: list[dict[str, Any]] = [
        {"properties": properties, "prefill_tps": round(speed[0], 1), "decode_tps": round(speed[1], 1)}
        for properties, speed in zip(_CANDIDATES, speeds, strict=True)
    ]
    measured[0]["mean_kl"] = quality.mean_kl
    for number in sorted(range(1, len(speeds)), key=lambda one: -_gain(speeds[one], speeds[0])):
        if not _is_faster(speeds[number], speeds[0]):
            break
        properties = _CANDIDATES[number]
        kl = measured[number]["mean_kl"] = score(folder, properties, reference, reporter=reporter).mean_kl
        if kl <= quality.mean_kl * _MORE_KL + _NOISE_KL:
            return {"runtime": properties, "runtime_measured": measured}
    return {"runtime": {}, "runtime_measured": measured}


def _gain(speed: Speed, default: Speed) -> float:
    return speed[0] / default[0] * speed[1] / default[1]


def _is_faster(speed: Speed, default: Speed) -> bool:
    ratios = [one / other for one, other in zip(speed, default, strict=True)]
    return min(ratios) >= _NOT_SLOWER and max(ratios) >= _FASTER


def _measure(folder: Path, vocabulary: int, temporary: Path, reporter: Reporter) -> list[Speed]:
    """The median speeds of each candidate, loaded anew in each round, so that one is in memory at a time."""
    samples: list[list[Speed]] = [[] for _ in _CANDIDATES]
    turns = _ROUNDS * len(_CANDIDATES)
    for turn in range(turns):
        reporter.progress(_TASK, turn, turns, "steps")
        number = turn % len(_CANDIDATES)
        options = {"CACHE_DIR": str(temporary)} | _CANDIDATES[number]
        backend = SingleBackend(str(folder), "CPU", options)
        samples[number].append(_speed(backend, np.random.default_rng(turn).integers(vocabulary, size=_PROMPT_TOKENS)))
        backend.close()
    reporter.progress(_TASK, turns, turns, "steps")
    return [(median(one[0] for one in sample), median(one[1] for one in sample)) for sample in samples]


def _speed(backend: SingleBackend, prompt: NDArray[np.int64]) -> Speed:
    request = TokenRequest("speed", tuple(prompt.tolist()), _NEW_TOKENS)
    begun = time.perf_counter()
    moments = [time.perf_counter() for event in backend.stream([request]) if event.token_ids]
    return len(prompt) / (moments[0] - begun), (len(moments) - 1) / (moments[-1] - moments[0])
