"""The export, loaded afresh, compared with its source, and timed with runtime options. Runs in a child process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from numpy.typing import NDArray

from hfpipe.backends.base import Backend
from hfpipe.backends.openvino.decoding import SingleBackend
from hfpipe.backends.openvino.loading import PRECISIONS
from hfpipe.errors import BackendError, ConversionError, HFPipeError
from hfpipe.generator import open_generator
from hfpipe.models.folder import OPENVINO
from hfpipe.quality.compare import Quality
from hfpipe.quality.reference import Reference, read_reference
from hfpipe.quality.score_openvino import check_numbers, score
from hfpipe.quality.texts import held_out
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, Reporter, TextRequest, TokenRequest

TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml")
_PROMPT = "The capital of France is"
_GREEDY = GenerationOptions(max_tokens=24, temperature=0.0)
# Constants that belong to a weight and are not weights themselves.
_OF_A_WEIGHT = ("/scale", "/zero_point", "/fq_weights_1")

# The weights that share a scale when a product is computed in integers; OpenVINO's own choice on a CPU is 32.
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CANDIDATES: tuple[dict[str, str], ...] = ({}, {_GROUP: "64"}, {_GROUP: "128"})
_TASK = "Measuring runtime options"
_ROUNDS = 3
_PROMPT_TOKENS, _NEW_TOKENS = 256, 48
# Less cannot be told from noise.
_FASTER, _NOT_SLOWER = 1.05, 0.98
# How much more of KL divergence than the format has cost, and what rounding alone may do.
_MORE_KL, _NOISE_KL = 1.05, 5e-4

# Prompt tokens and generated tokens a second.
Speed = tuple[float, float]


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Verify the export in `arguments["folder"]` against the quality reference in `arguments["reference_folder"]`, null
    where there is none.

    `source_folder` is what the export was made of, `temporary` a folder for compiled models. Gives the measured part
    of hfpipe.json. Raises ConversionError for an export that does not work.
    """
    folder, temporary = Path(arguments["folder"]), Path(arguments["temporary"])
    source, trust = Path(arguments["source_folder"]), arguments["trust_remote_code"]
    report: dict[str, Any] = {
        "answer": {"prompt": _PROMPT, "text": _answer(folder, temporary, trust_remote_code=trust)},
        "weights": weight_shares(folder),
        "tokenizer": tokenizer_report(folder, source, trust_remote_code=trust),
    }
    if arguments["reference_folder"]:
        reporter.stage("Comparing the export with its source")
        reference = read_reference(Path(arguments["reference_folder"]))
        quality = score(folder, {}, reference, reporter=reporter)
        report["quality"] = quality.as_dict() | {"reference_dtype": reference.dtype}
        # They concern products of integers.
        if any(precision.startswith("int") for precision in report["weights"]):
            reporter.stage("Measuring runtime options")
            try:
                report |= choose_options(folder, quality, reference, temporary, reporter=reporter)
            except HFPipeError as error:
                report["warnings"] = [f"Runtime options were not measured: {error.message}"]
    else:
        # A greedy answer takes one of them for the largest even where they are none.
        check_numbers(folder, load_tokenizer(folder, trust_remote_code=trust).encode(_PROMPT, True))
    return report


def _answer(folder: Path, temporary: Path, *, trust_remote_code: bool) -> str:
    """What the export says to a prompt, greedily: it loads, and computes numbers."""
    options = LoadOptions(
        backend="openvino",
        batch_size=1,
        ov_config={"CACHE_DIR": str(temporary)},
        trust_remote_code=trust_remote_code,
    )
    try:
        with open_generator(str(folder), options) as generator:
            (completion,) = generator.generate([TextRequest("answer", _PROMPT, _GREEDY)])
        if completion.error:
            raise completion.error
    except HFPipeError as error:
        raise ConversionError(f"The export does not run: {error.message}", hint=error.hint) from error
    return completion.text


def weight_shares(folder: Path) -> dict[str, float]:
    """The share of the model's weights in each precision, counted in numbers, without the scales of quantized ones."""
    counts: Counter[str] = Counter()
    for node in ov.Core().read_model(folder / OPENVINO).get_ops():
        if node.get_type_name() != "Constant" or node.get_friendly_name().endswith(_OF_A_WEIGHT):
            continue
        precision = PRECISIONS.get(node.get_element_type().get_type_name())
        if precision:
            counts[precision] += int(np.prod(node.get_output_shape(0), dtype=np.int64))
    total = sum(counts.values())
    return {precision: count / total for precision, count in counts.most_common()}


def tokenizer_report(folder: Path, source: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Whether OpenVINO's own tokenizer is there, and gives the ids of the source's: optimum-cli does not say.

    Raises ConversionError where the export's tokenizer, which hfpipe uses, gives other ids than the source's.
    """
    ours, exported = (load_tokenizer(one, trust_remote_code=trust_remote_code) for one in (source, folder))
    expected = {kind: list(ours.encode(text, True)) for kind, text in held_out().items()}
    for kind, text in held_out().items():
        if list(exported.encode(text, True)) != expected[kind]:
            raise ConversionError(f"The export's tokenizer gives other ids than its source's ({kind} text).")
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        return {"missing": missing}
    theirs = genai.Tokenizer(str(folder))
    differing = [kind for kind, text in held_out().items() if _ids(theirs, text) != expected[kind]]
    return {"missing": [], "differing": differing}


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=True).input_ids.data[0].tolist()
    return ids


# Runtime options that make it faster, and change its results no more than its format has


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
        try:
            samples[number].append(
                speed(backend, np.random.default_rng(turn).integers(vocabulary, size=_PROMPT_TOKENS))
            )
        finally:
            backend.close()
    reporter.progress(_TASK, turns, turns, "steps")
    return samples


def speed(backend: Backend, prompt: NDArray[np.int64]) -> Speed:
    """Raises HFPipeError where the engine fails."""
    request = TokenRequest("speed", tuple(prompt.tolist()), _NEW_TOKENS)
    moments = [time.perf_counter()]
    for event in backend.stream([request]):
        if event.error:
            raise event.error
        if event.token_ids:
            moments.append(time.perf_counter())
    if len(moments) < 3:
        raise BackendError(f"The engine gave {len(moments) - 1} tokens of {_NEW_TOKENS}.")
    begun, first, *_, last = moments
    return len(prompt) / (first - begun), (len(moments) - 2) / (last - first)
