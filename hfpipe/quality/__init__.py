"""How much a model has changed against another: perplexity, share of equal next tokens, KL divergence.

`make_reference` has the one model score texts, and keeps what it said on disk; `compare_source` compares another with
that. A large model is scored in less precision, and on less text.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from hfpipe.backends.openvino.optimum_cli import own_format
from hfpipe.machine import available_memory
from hfpipe.process import run_child, silence_openvino_telemetry
from hfpipe.quality.compare import Quality, Reference, read_reference
from hfpipe.types import LoadOptions, ModelSource, Reporter, Silent

# What a process takes that runs torch, without the weights; measured.
START_BYTES = 1_300_000_000
# Parameters from which on scoring all of the text, in 32 bits, would take many minutes.
_LARGE = 300_000_000


def calibration() -> dict[str, str]:
    """What a quantization may look at, by kind (prose, code, ...)."""
    return _texts("calibration")


def held_out(share: float = 1.0) -> dict[str, str]:
    """What a model is measured on, by kind; none of it is calibrated on. With `share` the first paragraphs of each
    kind, at least that share of its characters."""
    texts = _texts("held_out").items()
    return {kind: text[: (text + "\n\n").index("\n\n", int(len(text) * share))] for kind, text in texts}


def _texts(name: str) -> dict[str, str]:
    folder = files("hfpipe.quality") / "corpus" / name
    found = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".txt"))
    return {file_name.removesuffix(".txt"): file.read_text(encoding="utf-8") for file_name, file in found}


def parameters(source: ModelSource) -> float:
    """How many numbers a transformers model has, as its files' sizes have it."""
    weights = [*source.folder.glob("*.safetensors"), *source.folder.glob("pytorch_model*.bin")]
    return sum(path.stat().st_size for path in weights) / (2 if own_format(source) == "fp16" else 4)


def reference_dtype(source: ModelSource) -> str:
    """What a model is scored in: 32 bits, unless it is of 16 and too large for time or memory."""
    count = parameters(source)
    fits = 4 * count + START_BYTES < available_memory()
    return "float32" if own_format(source) == "fp32" or (fits and count < _LARGE) else "bfloat16"


def make_reference(
    source: ModelSource,
    folder: Path,
    *,
    texts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> Reference:
    """Score `texts` by kind with a transformers model on the CPU, in a child process.

    `folder` exists, and gets a file of 2 bytes for each scored token and each token of the vocabulary. `texts` of None
    are the held-out ones: of a model of more than `_LARGE` parameters fewer, at least a tenth.
    """
    arguments = {
        "reference": source.reference,
        "source": str(source.folder.absolute()),
        "folder": str(folder.absolute()),
        "dtype": reference_dtype(source),
        "texts": held_out(min(1.0, max(0.1, _LARGE / parameters(source)))) if texts is None else dict(texts),
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    what = f"Scoring {source.reference}"
    run_child("hfpipe.quality.score_torch", arguments, what=what, reporter=reporter, verbose=verbose)
    return read_reference(folder)


def compare_source(
    source: ModelSource, options: LoadOptions, reference: Reference, *, reporter: Reporter | None = None
) -> Quality:
    """Compare a model, on the backend torch or openvino and with all else that `options` say, with the reference. In
    this process, which takes a great deal of memory for good."""
    silence_openvino_telemetry()
    leaf = import_module(f"hfpipe.quality.score_{options.backend}")
    quality: Quality = leaf.score(source, options, reference, reporter or Silent())
    return quality
