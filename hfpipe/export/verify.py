"""An export, loaded afresh and compared with its source. Runs in a child process (see process.py)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from hfpipe.backends.openvino.loading import PRECISIONS
from hfpipe.errors import ConversionError, HFPipeError
from hfpipe.export.runtime import choose_options
from hfpipe.generator import open_generator
from hfpipe.models.folder import OPENVINO
from hfpipe.quality.reference import read_reference
from hfpipe.quality.score_openvino import check_numbers, score
from hfpipe.quality.texts import held_out
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, Reporter, TextRequest

TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml")
_PROMPT = "The capital of France is"
_GREEDY = GenerationOptions(max_tokens=24, temperature=0.0)
# Constants that belong to a weight, and are none.
_OF_A_WEIGHT = ("/scale", "/zero_point", "/fq_weights_1")


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Verify the export in `arguments["folder"]` against the quality reference in `arguments["reference_folder"]`, null
    where there is none.

    `reference` is what the user calls the export, `temporary` a folder for compiled models. Gives the measured part of
    hfpipe.json. Raises ConversionError for an export that does not work.
    """
    folder, temporary = Path(arguments["folder"]), Path(arguments["temporary"])
    trust = arguments["trust_remote_code"]
    report: dict[str, Any] = {
        "answer": {"prompt": _PROMPT, "text": _answer(folder, temporary, trust_remote_code=trust)},
        "weights": weight_shares(folder),
        "tokenizer": tokenizer_report(folder, trust_remote_code=trust),
    }
    if arguments["reference_folder"]:
        reporter.stage("Comparing the export with its source")
        reference = read_reference(Path(arguments["reference_folder"]))
        quality = score(folder, {}, reference, reporter=reporter)
        report["quality"] = quality.as_dict() | {"reference_dtype": reference.dtype}
        # They concern products of integers.
        if any(precision.startswith("int") for precision in report["weights"]):
            reporter.stage("Measuring runtime options")
            report |= choose_options(folder, quality, reference, temporary, reporter=reporter)
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


def tokenizer_report(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Whether OpenVINO's own tokenizer is there, and gives the ids of the model's: optimum-cli does not tell."""
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        return {"missing": missing}
    theirs, ours = genai.Tokenizer(str(folder)), load_tokenizer(folder, trust_remote_code=trust_remote_code)
    differing = [kind for kind, text in held_out().items() if _ids(theirs, text) != list(ours.encode(text, True))]
    return {"missing": [], "differing": differing}


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=True).input_ids.data[0].tolist()
    return ids
