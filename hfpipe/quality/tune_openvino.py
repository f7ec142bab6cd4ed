"""The fastest settings of an OpenVINO folder on this machine, among those that lose nothing.

`main` runs in a child process (see process.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfpipe import backends
from hfpipe.backends.base import Backend, vocabulary_size
from hfpipe.backends.openvino import tuning
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import held_out
from hfpipe.quality.compare import Reference, windows, write_reference
from hfpipe.quality.score_openvino import logits, score
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Reporter

# How much more of KL divergence than OpenVINO's own settings have, and what rounding alone may do.
_MORE_KL, _NOISE_KL = 1.05, 5e-4
# Of the texts, where the reference is the model itself, computed exactly.
_SHARE = 0.1


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Tune the OpenVINO model in `folder`, for one request at a time and for many. Its own exact settings are what the
    others are compared with."""
    folder, trust = Path(arguments["folder"]), arguments["trust_remote_code"]
    source = inspect_folder(folder, arguments["reference"])
    tuning.forget(folder)
    with tempfile.TemporaryDirectory(prefix="hfpipe-") as temporary:
        scored = windows(load_tokenizer(folder, trust_remote_code=trust), held_out(_SHARE), source.context_length)
        exact = LoadOptions(device="cpu", exact=True)
        reference = write_reference(Path(temporary), scored, logits(source, exact, scored, reporter), dtype="exact")
        mean_kl = score(source, LoadOptions(device="cpu"), reference, reporter).mean_kl
        # What is kept for one at a time is what `score` uses.
        tune(source, reference, mean_kl, reporter, many=(True, False))


def tune(
    source: ModelSource, reference: Reference, mean_kl: float, reporter: Reporter, *, many: Sequence[bool] = (False,)
) -> None:
    """Keep for this machine what runs `source` fastest, and changes its results no more than its format has: its KL
    divergence from the reference is at most 5 % above `mean_kl`, that of OpenVINO's own settings."""

    def allowed(properties: Mapping[str, str]) -> bool:
        if properties in tuning.EXACTER:
            return True
        changed = score(source, LoadOptions(device="cpu", ov_config=properties), reference, reporter)
        return changed.mean_kl <= mean_kl * _MORE_KL + _NOISE_KL

    for several in many:

        def load(properties: Mapping[str, str], batch_size: int | None = None if several else 1) -> Backend:
            # A user's own setting is never tuned, and compiles into no cache.
            given = LoadOptions(device="cpu", batch_size=batch_size, ov_config={"CACHE_DIR": "", **properties})
            return backends.load("openvino", source, given)

        with load({}) as default:
            found = tuning.tune(
                source.folder,
                default,
                load,
                candidates=tuning.CANDIDATES,
                vocabulary=vocabulary_size(source.config) or reference.vocabulary,
                many=several,
                allowed=allowed,
                reporter=reporter,
            )
        for shape, choice in found.items():
            if choice.properties:
                settings = ", ".join(f"{key}={value}" for key, value in choice.properties.items())
                reporter.note(f"{settings}: {choice.speedup:.2f} times as fast on this machine ({shape}); it is used.")
