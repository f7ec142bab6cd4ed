"""A transformers folder -> the reference that others are measured against, or a comparison with one.

`main` runs in a child process (see process.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hfpipe.backends.base import as_backend_error
from hfpipe.backends.torch.loading import forward_parameters, input_device, load_model
from hfpipe.models.folder import inspect_folder
from hfpipe.quality.compare import Quality, Reference, Window, compare, reported, windows, write_reference
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Score `texts` by kind with the model in `arguments["source"]`, and write the reference into the folder
    `arguments["folder"]`.

    `reference` is what the user calls the model; `dtype` what it runs in on the CPU, float32 or bfloat16.
    `trust_remote_code` and `allow_pickle` are as in LoadOptions.
    """
    trust, pickles = arguments["trust_remote_code"], arguments["allow_pickle"]
    source = inspect_folder(Path(arguments["source"]), arguments["reference"], allow_pickle=pickles)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust)
    scored = windows(tokenizer, arguments["texts"], source.context_length)
    options = LoadOptions(device="cpu", dtype=arguments["dtype"], trust_remote_code=trust, allow_pickle=pickles)
    model = load_model(source, options, reporter)
    logits = _logits(model, source, scored, reporter)
    write_reference(Path(arguments["folder"]), scored, logits, dtype=str(model.dtype).removeprefix("torch."))


def score(source: ModelSource, options: LoadOptions, reference: Reference, reporter: Reporter) -> Quality:
    """Compare a transformers model, loaded with these options, with the reference."""
    model = load_model(source, options, reporter)
    return compare(reference, _logits(model, source, reference.windows, reporter))


def _logits(
    model: Any, source: ModelSource, windows: Sequence[Window], reporter: Reporter
) -> Iterator[NDArray[np.float32]]:
    for window in reported(windows, f"Scoring {source.reference}", reporter):
        yield window_logits(model, window, input_device(model))


@torch.inference_mode()
def window_logits(model: Any, window: Window, device: torch.device | None = None) -> NDArray[np.float32]:
    """float32 [scored tokens, vocabulary]: the logits of the window's targets. `device` is the model's."""
    wanted = len(window.targets)
    ids = torch.tensor([window.inputs], device=device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, "return_dict": True}
    if "logits_to_keep" in forward_parameters(model):
        arguments["logits_to_keep"] = wanted
    try:
        logits: torch.Tensor = model(**arguments).logits
    except (RuntimeError, IndexError) as error:
        raise as_backend_error(error) from error
    # All positions, where the model has no logits_to_keep.
    kept: NDArray[np.float32] = logits[0, -wanted:].float().cpu().numpy()
    return kept
