"""Encoder-decoder models on torch: the encoder once for a batch, then the decoder token by token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from hfpipe.backends import batching
from hfpipe.backends.torch.decoding import TorchBackend, padded
from hfpipe.backends.torch.loading import input_device


class Seq2SeqBackend(TorchBackend):
    """Runs a transformers encoder-decoder model, as TorchBackend does others."""

    def _begin(self, rows: list[batching.Row]) -> batching.Batch:
        return _Batch(self.model, [row.request.token_ids for row in rows])


class _Batch(batching.Batch):
    """The encoded prompts of some rows, int64 [batch, time], and what the decoder remembers."""

    def __init__(self, model: Any, prompts: list[tuple[int, ...]]) -> None:
        self._model = model
        self._cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
        # Learned positions count from the left.
        ids, self._mask = padded(prompts, input_device(model), "right")
        with torch.inference_mode():
            self._encoded = model.get_encoder()(input_ids=ids, attention_mask=self._mask, return_dict=True)

    @torch.inference_mode()
    def logits(self, ids: list[tuple[int, ...]]) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            decoder_input_ids=torch.tensor(ids, device=self._mask.device),
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        ).logits
        return logits[:, -1].float()

    def keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self._mask.device)
        self._cache.reorder_cache(kept)
        self._mask = self._mask[kept]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[kept]
