"""What fewer bits do to each part of a model alone: its KL divergence from the model as it is.

`main` runs in a child process (see process.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import torch

from hfpipe.backends.torch.loading import load_model
from hfpipe.errors import UnsupportedModel
from hfpipe.models.folder import inspect_folder
from hfpipe.quality.compare import windows
from hfpipe.quality.score_torch import window_logits
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, Reporter

# Bytes of the log-probabilities that are kept to compare with, in 32 bits.
_KEPT = 400_000_000


def main(arguments: dict[str, Any], reporter: Reporter) -> list[float]:
    """The mean KL divergence, in nats a token, from the model in `arguments["source"]`: first where all layers are in 8
    bits, then for each of the `groups` of layers where that one alone is in 4.

    `layers` has the names of their weights, and whether one is stored as [in, out]. They are rounded as data-free
    quantization does it, `group_size` inputs with one scale, `sym`metric or not. `texts` are short ones. Raises
    UnsupportedModel where the loaded model has a weight under another name than its files.
    """
    trust, pickles = arguments["trust_remote_code"], arguments["allow_pickle"]
    source = inspect_folder(Path(arguments["source"]), arguments["reference"], allow_pickle=pickles)
    options = LoadOptions(device="cpu", dtype=arguments["dtype"], trust_remote_code=trust, allow_pickle=pickles)
    model = load_model(source, options, reporter)
    layers, groups, sym = arguments["layers"], arguments["groups"], arguments["sym"]
    weights = {name: found_weight(model, name, is_transposed)[1] for name, is_transposed in layers.items()}
    texts = {str(number): text for number, text in enumerate(arguments["texts"])}
    scored = windows(load_tokenizer(source.folder, trust_remote_code=trust), texts, source.context_length)
    most = _KEPT // 4 // model.config.get_text_config().vocab_size
    fitting = takewhile(lambda tokens: tokens <= most, accumulate(len(window.targets) for window in scored))
    scored = scored[: max(1, sum(1 for _ in fitting))]

    def log_probabilities() -> Iterator[torch.Tensor]:
        return (torch.from_numpy(window_logits(model, window)).log_softmax(-1) for window in scored)

    plain = list(log_probabilities())

    def divergence(names: Sequence[str], rounded: Callable[[torch.Tensor], torch.Tensor]) -> float:
        with _changed([weights[name] for name in names], rounded):
            changed = zip(plain, log_probabilities(), strict=True)
            total = sum(float((one.exp() * (one - other)).sum()) for one, other in changed)
        return max(0.0, total / sum(len(one) for one in plain))

    found = [divergence(list(layers), lambda weight: round_to(weight, 8, -1, sym=False))]
    for number, names in enumerate(groups):
        reporter.progress("Measuring the layers", number, len(groups), "steps")
        found.append(divergence(names, lambda weight: round_to(weight, 4, arguments["group_size"], sym=sym)))
    reporter.progress("Measuring the layers", len(groups), len(groups), "steps")
    return found


def round_to(weight: torch.Tensor, bits: int, group_size: int, *, sym: bool) -> torch.Tensor:
    """`weight`, floats [..., out, in], as far as integers of so many bits hold it, with one scale and, unless `sym`,
    one zero point for each `group_size` inputs; -1 is all of them. What a group size does not divide stays as it is."""
    rounded: torch.Tensor
    size = weight.shape[-1] if group_size == -1 else group_size
    if weight.shape[-1] % size:
        return weight
    groups: torch.Tensor = weight.float().reshape(*weight.shape[:-1], -1, size)
    if sym:
        # There is one negative number more: it is for the largest weight, whatever its sign.
        low, high = -groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = torch.where(low >= high, low, -high) / 2 ** (bits - 1)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        rounded = (groups / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        return rounded.view_as(weight)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    zero = (-low / scale).round()
    rounded = ((groups / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale
    return rounded.view_as(weight)


def found_weight(model: Any, name: str, is_transposed: bool) -> tuple[str, torch.Tensor]:
    """The weight of this name in the files: its name in the model, and a view of it, [..., out, in]."""
    for own, weight in model.named_parameters():
        if own == name or own.endswith(f".{name}"):
            data: torch.Tensor = weight.data
            return own, data.transpose(-1, -2) if is_transposed else data
    raise UnsupportedModel(
        f"transformers has no weight {name} in this model.",
        hint="Leave --max-loss and --max-size out, and choose a --ratio.",
    )


@contextmanager
def _changed(weights: Sequence[torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.copy_(change(weight))
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
