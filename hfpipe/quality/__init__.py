"""How much a model has changed against another: perplexity, share of equal next tokens, KL divergence.

`make_reference` has the one model score texts, and keeps what it said on disk; `score` compares the other with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hfpipe.backends.base import vocabulary_size
from hfpipe.conversion.child import run_child, silence_openvino_telemetry
from hfpipe.quality.compare import Change, Quality
from hfpipe.quality.reference import Reference, read_reference, size_on_disk
from hfpipe.quality.texts import calibration, held_out
from hfpipe.quality.windows import model_windows
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import ModelSource, Reporter

__all__ = [
    "Change",
    "Quality",
    "Reference",
    "calibration",
    "held_out",
    "make_reference",
    "read_reference",
    "reference_size",
    "score",
]


def reference_size(
    source: ModelSource, *, texts: Mapping[str, str] | None = None, trust_remote_code: bool = False
) -> int:
    """How many bytes `make_reference` will write. Only the tokenizer is loaded."""
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    windows = model_windows(tokenizer, held_out() if texts is None else texts, source.context_length)
    return size_on_disk(windows, vocabulary_size(source.config) or tokenizer.vocab_size)


def make_reference(
    source: ModelSource,
    folder: Path,
    *,
    dtype: str = "float32",
    texts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> Reference:
    """Score `texts` by kind, else the held-out ones, with a transformers model on the CPU, in a child process.

    `folder` exists, and gets a file of `reference_size` bytes. `dtype` is float32 or bfloat16.
    """
    arguments = {
        "reference": source.reference,
        "source": str(source.folder.absolute()),
        "folder": str(folder.absolute()),
        "dtype": dtype,
        "texts": None if texts is None else dict(texts),
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    what = f"Scoring {source.reference}"
    run_child("hfpipe.quality.score_torch", arguments, what=what, reporter=reporter, verbose=verbose)
    return read_reference(folder)


def score(
    folder: Path,
    properties: Mapping[str, Any],
    reference: Reference,
    *,
    device: str = "CPU",
    reporter: Reporter | None = None,
) -> Quality:
    """Compare the OpenVINO model in `folder`, compiled with these properties, with the reference. In this process."""
    silence_openvino_telemetry()
    leaf = import_module("hfpipe.quality.score_openvino")
    quality: Quality = leaf.score(folder, properties, reference, device=device, reporter=reporter)
    return quality
