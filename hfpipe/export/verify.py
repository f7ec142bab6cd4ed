"""The export, loaded afresh, compared with its source, and timed on this machine. Runs in a child process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino_genai as genai

from hfpipe import backends
from hfpipe.backends.openvino import loading, tuning
from hfpipe.errors import ConversionError, HFPipeError
from hfpipe.generator import Generator
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import held_out
from hfpipe.quality.compare import read_reference
from hfpipe.quality.score_openvino import check_numbers, score
from hfpipe.quality.tune_openvino import tune
from hfpipe.text.tasks import PromptEncoder
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, Reporter, TextRequest

TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml")
_PROMPT = "The capital of France is"
_GREEDY = GenerationOptions(max_tokens=24, temperature=0.0)


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Verify the export in `arguments["folder"]` against the quality reference in `arguments["reference_folder"]`, null
    where there is none.

    `source_folder` is what the export was made of, `temporary` a folder for compiled models. Gives the measured part
    of hfpipe.json. Raises ConversionError for an export that does not work.
    """
    folder, temporary = Path(arguments["folder"]), Path(arguments["temporary"])
    source, trust = Path(arguments["source_folder"]), arguments["trust_remote_code"]
    # What is measured is OpenVINO's own way, whatever an equal export was measured to run best with.
    tuning.forget(folder)
    answer = _answer(folder, temporary, trust_remote_code=trust)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    report: dict[str, Any] = {
        "answer": {"prompt": _PROMPT, "text": answer},
        "weights": loading.weight_shares(folder),
        "tokenizer": tokenizer_report(folder, source, trust_remote_code=trust),
        "needs_target_lang": PromptEncoder(tokenizer, inspect_folder(folder, folder.name)).lacks_language,
    }
    if arguments["reference_folder"] is None:
        # A greedy answer takes one of them for the largest even where they are none.
        check_numbers(inspect_folder(folder, folder.name), tokenizer.encode(_PROMPT, True))
        return report
    reporter.stage("Comparing the export with its source")
    reference = read_reference(Path(arguments["reference_folder"]))
    quality = score(inspect_folder(folder, folder.name), LoadOptions(device="cpu"), reference, reporter)
    # Group sizes concern products of integers.
    if any(precision.startswith("int") for precision in report["weights"]):
        reporter.stage("Measuring settings for this machine")
        try:
            tune(inspect_folder(folder, folder.name), reference, quality.mean_kl, reporter)
        except HFPipeError as error:
            reporter.note(f"Settings were not measured: {error.message}")
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
