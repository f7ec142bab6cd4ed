"""How the torch engine draws a token of one row: transformers' own logits processors, and a seed of the row's own."""

from __future__ import annotations

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfpipe.types import Sampling


class Sampler:
    """Draws the tokens of one request, in the order of its own random generator, whatever else is in the batch."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.is_plain = sampling.temperature == 0 and sampling.repetition_penalty == 1
        self._greedy = sampling.temperature == 0
        self._processors = _processors(sampling)
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def draw(self, token_ids: list[int], logits: torch.Tensor) -> int:
        """The token after `token_ids`, from float [vocabulary]."""
        seen = torch.tensor([token_ids], device=logits.device)
        scores = self._processors(seen, logits[None])
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))


def _processors(sampling: Sampling) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors
