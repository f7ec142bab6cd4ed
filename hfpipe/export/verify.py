"""The export, loaded afresh, compared with its source, and timed on this machine. Runs in a child process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai as genai
from numpy.typing import NDArray

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import loading
from hfpipe.errors import BackendError, ConversionError, HFPipeError
from hfpipe.generator import Generator
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import held_out
from hfpipe.quality.compare import Quality, Reference, read_reference
from hfpipe.quality.score_openvino import check_numbers, score
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, ModelSource, Reporter, TextRequest, TokenRequest

TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml")
_PROMPT = "The capital of France is"
_GREEDY = GenerationOptions(max_tokens=24, temperature=0.0)

# The weights that share a scale when a product is computed in integers; OpenVINO's own choice on a CPU is 32.
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CANDIDATES: tuple[dict[str, str], ...] = ({}, {_GROUP: "64"}, {_GROUP: "128"})
_ROUNDS = 3
_PROMPT_TOKENS, _NEW_TOKENS = 256, 48
# Less cannot be told from noise.
_FASTER, _NOT_SLOWER = 1.05, 0.98
# How much more of KL divergence than the format has cost, and what rounding alone may do.
_MORE_KL, _NOISE_KL = 1.05, 5e-4


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Verify the export in `arguments["folder"]` against the quality reference in `arguments["reference_folder"]`, null
    where there is none.

    `source_folder` is what the export was made of, `temporary` a folder for compiled models. Gives the measured part
    of hfpipe.json. Raises ConversionError for an export that does not work.
    """
    folder, temporary = Path(arguments["folder"]), Path(arguments["temporary"])
    source, trust = Path(arguments["source_folder"]), arguments["trust_remote_code"]
    # What is measured is OpenVINO's own way, whatever an equal export was measured to run best with.
    loading.keep_tuned(folder, {})
    report: dict[str, Any] = {
        "answer": {"prompt": _PROMPT, "text": _answer(folder, temporary, trust_remote_code=trust)},
        "weights": loading.weight_shares(folder),
        "tokenizer": tokenizer_report(folder, source, trust_remote_code=trust),
    }
    if arguments["reference_folder"] is None:
        # A greedy answer takes one of them for the largest even where they are none.
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        check_numbers(inspect_folder(folder, folder.name), tokenizer.encode(_PROMPT, True))
        return report
    reporter.stage("Comparing the export with its source")
    reference = read_reference(Path(arguments["reference_folder"]))
    quality = score(inspect_folder(folder, folder.name), LoadOptions(device="cpu"), reference, reporter)
    # Group sizes concern products of integers.
    if any(precision.startswith("int") for precision in report["weights"]):
        reporter.stage("Measuring runtime options")
        try:
            tune(folder, quality, reference, temporary, reporter)
        except HFPipeError as error:
            reporter.note(f"Runtime options were not measured: {error.message}")
    return report | {"quality": quality.as_dict() | {"reference_dtype": reference.dtype}}


def _answer(folder: Path, temporary: Path, *, trust_remote_code: bool) -> str:
    """What the export says to a prompt, greedily: it loads, and computes numbers."""
    ov_config = {"CACHE_DIR": str(temporary)}
    options = LoadOptions("openvino", batch_size=1, ov_config=ov_config, trust_remote_code=trust_remote_code)
    try:
        # Not as the user opens it, who may have to choose a language.
        source, tokenizer = (
            inspect_folder(folder, folder.name),
            load_tokenizer(folder, trust_remote_code=trust_remote_code),
        )
        with Generator(backends.load("openvino", source, options), tokenizer, source) as generator:
            (completion,) = generator.generate([TextRequest("answer", _PROMPT, _GREEDY)])
        if completion.error:
            raise completion.error
    except HFPipeError as error:
        raise ConversionError(f"The export does not run: {error.message}", hint=error.hint) from error
    return completion.text


def tokenizer_report(folder: Path, source: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Whether OpenVINO's own tokenizer is there, and gives the ids of the source's: optimum-cli does not say.

    Raises ConversionError where the export's tokenizer, which hfpipe uses, gives other ids than the source's.
    """
    texts = held_out()
    ours, exported = (load_tokenizer(one, trust_remote_code=trust_remote_code) for one in (source, folder))
    expected = {kind: list(ours.encode(text, True)) for kind, text in texts.items()}
    if others := [kind for kind, text in texts.items() if list(exported.encode(text, True)) != expected[kind]]:
        raise ConversionError(f"The export's tokenizer gives other ids than its source's ({others[0]} text).")
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        return {"missing": missing}
    theirs = genai.Tokenizer(str(folder))
    ids = {kind: theirs.encode(text, add_special_tokens=True).input_ids.data[0] for kind, text in texts.items()}
    return {"missing": [], "differing": [kind for kind in ids if ids[kind].tolist() != expected[kind]]}


def tune(folder: Path, quality: Quality, reference: Reference, temporary: Path, reporter: Reporter) -> None:
    """Find the properties that run the export fastest here, and change its results no more than its format has, and
    keep them for this machine."""
    source = inspect_folder(folder, folder.name)
    speeds = _speeds(source, reference.vocabulary, temporary, reporter)
    ratios = speeds / speeds[:, :1]
    medians = np.median(ratios, axis=0)
    for number in np.argsort(-medians.prod(axis=1)):
        # Faster in every round at prompts or at generation, and slower at neither.
        is_faster = ((ratios[:, number].min(axis=0) > 1) & (medians[number] >= _FASTER)).any()
        if not is_faster or medians[number].min() < _NOT_SLOWER:
            continue
        properties, (prefill, decode) = _CANDIDATES[number], medians[number]
        changed = score(source, LoadOptions(device="cpu", ov_config=properties), reference, reporter)
        if changed.mean_kl <= quality.mean_kl * _MORE_KL + _NOISE_KL:
            loading.keep_tuned(folder, properties)
            reporter.note(
                f"With {_GROUP}={properties[_GROUP]} this machine reads prompts {prefill:.2f} times as fast, and "
                f"generates {decode:.2f} times as fast: hfpipe will use it here."
            )
            return


def _speeds(source: ModelSource, vocabulary: int, temporary: Path, reporter: Reporter) -> NDArray[np.float64]:
    """[round, candidate, 2]: prompt tokens and generated tokens a second. Each is loaded anew in each round, so that
    one is in memory at a time."""
    found = np.zeros((_ROUNDS, len(_CANDIDATES), 2))
    for turn, place in enumerate(np.ndindex(found.shape[:2])):
        reporter.progress("Measuring runtime options", turn, found.size // 2, "steps")
        ov_config = {"CACHE_DIR": str(temporary), **_CANDIDATES[place[1]]}
        backend = backends.load("openvino", source, LoadOptions(device="cpu", batch_size=1, ov_config=ov_config))
        try:
            found[place] = speed(backend, np.random.default_rng(turn).integers(vocabulary, size=_PROMPT_TOKENS))
        finally:
            backend.close()
    return found


def speed(backend: Backend, prompt: NDArray[np.int64]) -> tuple[float, float]:
    """Prompt tokens and generated tokens a second. Raises HFPipeError where the engine fails."""
    moments = [time.perf_counter()]
    for event in backend.stream([TokenRequest("speed", tuple(prompt.tolist()), _NEW_TOKENS)]):
        if event.error:
            raise event.error
        if event.token_ids:
            moments.append(time.perf_counter())
    if len(moments) < 3:
        raise BackendError(f"The engine gave {len(moments) - 1} tokens of {_NEW_TOKENS}.")
    begun, first, *_, last = moments
    return len(prompt) / (first - begun), (len(moments) - 2) / (last - first)
