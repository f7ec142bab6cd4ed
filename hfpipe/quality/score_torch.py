"""A transformers folder -> the reference that others are measured against, or a comparison with one.

`main` runs in a child process (see process.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hfpipe.backends.base import as_backend_error
from hfpipe.backends.torch.loading import forward_parameters, input_device, load_model
from hfpipe.backends.torch.seq2seq import Seq2SeqBackend
from hfpipe.models.folder import inspect_folder
from hfpipe.quality.compare import LENGTH, Quality, Reference, Window, compare, reported, windows, write_reference
from hfpipe.sampling import end_token_ids
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Reporter, TokenRequest

# The most tokens of an answer of an encoder-decoder model.
_ANSWER = 64


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Score `texts` by kind with the model in `arguments["source"]`, and write the reference into the folder
    `arguments["folder"]`.

    `reference` is what the user calls the model; `dtype` what it runs in on the CPU, float32 or bfloat16.
    `trust_remote_code` and `allow_pickle` are as in LoadOptions.
    """
    trust, pickles = arguments["trust_remote_code"], arguments["allow_pickle"]
    source = inspect_folder(Path(arguments["source"]), arguments["reference"], allow_pickle=pickles)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust)
    options = LoadOptions(device="cpu", dtype=arguments["dtype"], trust_remote_code=trust, allow_pickle=pickles)
    model = load_model(source, options, reporter)
    if source.is_encoder_decoder:
        scored = _answers(model, source, tokenizer, arguments["texts"])
    else:
        scored = windows(tokenizer, arguments["texts"], source.context_length)
    found = _logits(model, source, scored, reporter)
    write_reference(Path(arguments["folder"]), scored, found, dtype=str(model.dtype).removeprefix("torch."))


def score(source: ModelSource, options: LoadOptions, reference: Reference, reporter: Reporter) -> Quality:
    """Compare a transformers model, loaded with these options, with the reference."""
    return compare(reference, logits(source, options, reference.windows, reporter))


def logits(
    source: ModelSource, options: LoadOptions, windows: Sequence[Window], reporter: Reporter
) -> Iterator[NDArray[np.float32]]:
    """For each window what `window_logits` gives, of a transformers model loaded with these options."""
    yield from _logits(load_model(source, options, reporter), source, windows, reporter)


def _logits(
    model: Any, source: ModelSource, windows: Sequence[Window], reporter: Reporter
) -> Iterator[NDArray[np.float32]]:
    for window in reported(windows, f"Scoring {source.reference}", reporter):
        yield window_logits(model, window, input_device(model))


def _answers(model: Any, source: ModelSource, tokenizer: Tokenizer, texts: Mapping[str, str]) -> list[Window]:
    """What an encoder-decoder model answers, greedily, to the paragraphs of texts by kind."""
    length = min(LENGTH, source.context_length or LENGTH)
    start, ends = source.decoder_start, end_token_ids(source.generation_config, source.config)
    most = min(_ANSWER, length - len(start))
    asked: dict[str, tuple[str, TokenRequest]] = {}
    for kind, text in texts.items():
        for paragraph in filter(str.strip, text.split("\n\n")):
            ids = tokenizer.encode(paragraph, True)
            # A long one keeps its end, which the tokenizer has marked.
            ids = ids if len(ids) <= length else (*ids[: length - 1], ids[-1])
            number = str(len(asked))
            asked[number] = kind, TokenRequest(number, ids, most, ends, decoder_ids=start)
    backend = Seq2SeqBackend(model)
    backend.begin_as(source)
    answers: dict[str, list[int]] = {number: [] for number in asked}
    for event in backend.stream(request for _, request in asked.values()):
        if event.error:
            raise event.error
        answers[event.request_id] += event.token_ids
    return [
        Window(kind, (*start, *answers[number]), len(start), request.token_ids)
        for number, (kind, request) in asked.items()
    ]


@torch.inference_mode()
def window_logits(model: Any, window: Window, device: torch.device | None = None) -> NDArray[np.float32]:
    """float32 [scored tokens, vocabulary]: the logits of the window's targets. `device` is the model's."""
    wanted = len(window.targets)
    ids = torch.tensor([window.inputs], device=device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, "return_dict": True}
    if window.prompt:
        prompt = torch.tensor([window.prompt], device=device)
        arguments |= {"decoder_input_ids": ids, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    if "logits_to_keep" in forward_parameters(model):
        arguments["logits_to_keep"] = wanted
    try:
        logits: torch.Tensor = model(**arguments).logits
    except (RuntimeError, IndexError) as error:
        raise as_backend_error(error) from error
    # All positions, where the model has no logits_to_keep.
    kept: NDArray[np.float32] = logits[0, -wanted:].float().cpu().numpy()
    return kept
