"""Which of OpenVINO's runtime options make an export faster, and change its results no more than its format has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.backends.openvino.single import SingleBackend
from hfpipe.quality.compare import Quality
from hfpipe.quality.reference import Reference
from hfpipe.quality.score_openvino import score
from hfpipe.types import Reporter, TokenRequest

# The weights that share a scale when a product is computed in integers; OpenVINO's own choice on a CPU is 32.
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CANDIDATES: tuple[dict[str, str], ...] = ({}, {_GROUP: "64"}, {_GROUP: "128"})
_TASK = "Measuring runtime options"
_ROUNDS = 3
_PROMPT_TOKENS, _NEW_TOKENS = 256, 48
# Less than that is not told from noise.
_FASTER, _NOT_SLOWER = 1.05, 0.98
# How much more of KL divergence than the format has cost, and what rounding alone may do.
_MORE_KL, _NOISE_KL = 1.05, 5e-4

# Prompt tokens and generated tokens a second.
Speed = tuple[float, float]


def choose_options(
    folder: Path, quality: Quality, reference: Reference, temporary: Path, *, reporter: Reporter
) -> dict[str, Any]:
    """`runtime`: the properties to run the export with; `runtime_measured`: prompt and generated tokens a second of
    each that was tried, medians of alternating rounds, and the KL divergence of what was considered."""
    default, *others = _measure(folder, reference.vocabulary, temporary, reporter)
    measured = [_summary({}, default, default) | {"mean_kl": quality.mean_kl}]
    chosen: dict[str, str] = {}
    for properties, samples in zip(_CANDIDATES[1:], others, strict=True):
        row = _summary(properties, samples, default)
        if is_faster(samples, default):
            kl = row["mean_kl"] = score(folder, properties, reference, reporter=reporter).mean_kl
            if kl <= quality.mean_kl * _MORE_KL + _NOISE_KL and row["gain"] > _gain_of(chosen, measured):
                chosen = properties
        measured.append(row)
    return {"runtime": chosen, "runtime_measured": measured}


def is_faster(samples: Sequence[Speed], default: Sequence[Speed]) -> bool:
    """Whether prompts or generation are faster, in every one of the alternating rounds, and neither is slower."""
    ratios = _ratios(samples, default)
    medians = [median(one) for one in ratios]
    return min(medians) >= _NOT_SLOWER and any(min(one) > 1 and median(one) >= _FASTER for one in ratios)


def _ratios(samples: Sequence[Speed], default: Sequence[Speed]) -> tuple[list[float], list[float]]:
    """Of prompts and of generation, round by round."""
    pairs = list(zip(samples, default, strict=True))
    return [one[0] / other[0] for one, other in pairs], [one[1] / other[1] for one, other in pairs]


def _summary(properties: dict[str, str], samples: Sequence[Speed], default: Sequence[Speed]) -> dict[str, Any]:
    prefill, decode = (median(one) for one in _ratios(samples, default))
    return {
        "properties": properties,
        "prefill_tps": round(median(one[0] for one in samples), 1),
        "decode_tps": round(median(one[1] for one in samples), 1),
        "prefill_ratio": round(prefill, 3),
        "decode_ratio": round(decode, 3),
        "gain": round(prefill * decode, 3),
    }


def _gain_of(properties: Mapping[str, str], measured: Sequence[Mapping[str, Any]]) -> float:
    return next(float(row["gain"]) for row in measured if row["properties"] == properties)


def _measure(folder: Path, vocabulary: int, temporary: Path, reporter: Reporter) -> list[list[Speed]]:
    """The speeds of each candidate, loaded anew in each round, so that one is in memory at a time."""
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
    return samples


def _speed(backend: SingleBackend, prompt: NDArray[np.int64]) -> Speed:
    request = TokenRequest("speed", tuple(prompt.tolist()), _NEW_TOKENS)
    begun = time.perf_counter()
    moments = [time.perf_counter() for event in backend.stream([request]) if event.token_ids]
    return len(prompt) / (moments[0] - begun), (len(moments) - 1) / (moments[-1] - moments[0])
