"""How much a model has changed against another: perplexity, share of equal next tokens, KL divergence.

`make_reference` has the one model score texts, and keeps what it said on disk; `compare_source` compares another with
that, and score_openvino.score an OpenVINO folder in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from hfpipe.process import run_child, silence_openvino_telemetry
from hfpipe.quality.compare import Change, Quality, common_prefix
from hfpipe.quality.reference import Reference, read_reference
from hfpipe.quality.texts import calibration, held_out, held_out_share, reference_dtype
from hfpipe.types import LoadOptions, ModelSource, Reporter, Silent

__all__ = [
    "Change",
    "Quality",
    "Reference",
    "calibration",
    "common_prefix",
    "compare_source",
    "held_out",
    "make_reference",
    "read_reference",
]


def make_reference(
    source: ModelSource,
    folder: Path,
    *,
    dtype: str | None = None,
    texts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> Reference:
    """Score `texts` by kind with a transformers model on the CPU, in a child process.

    `folder` exists, and gets a file of 2 bytes for each scored token and each token of the vocabulary. `dtype` is
    float32 or bfloat16, None what the model is worth; `texts` of None are as much of the held-out ones as it is worth.
    """
    arguments = {
        "reference": source.reference,
        "source": str(source.folder.absolute()),
        "folder": str(folder.absolute()),
        "dtype": dtype or reference_dtype(source),
        "texts": held_out(held_out_share(source)) if texts is None else dict(texts),
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
    quality: Quality = leaf.compare(source, options, reference, reporter or Silent())
    return quality
