"""transformers' sdpa, faster for the one new token of a decoding step on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PREFIX = "hfpipe_"


def group_heads(model: Any) -> None:
    """Have a model that attends with sdpa compute so, unless its family knows sdpa by that name."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(PREFIX + "sdpa")


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa. Where one token is new on a CPU, the heads that share keys are the rows of one query, so that keys and
    values are neither copied for each nor read as often. [batch, heads, time, width] -> [batch, time, heads, width]."""
    batch, heads, time, width = query.shape
    one_mask = attention_mask is None or attention_mask.shape[1] == 1
    if query.device.type != "cpu" or time > 1 or key.shape[1] == heads or not one_mask:
        theirs: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return theirs
    shared = query.reshape(batch, key.shape[1], -1, width)
    found = scaled_dot_product_attention(shared, key, value, attention_mask, dropout, scale=scaling)
    return found.reshape(batch, 1, heads, -1), None


AttentionInterface.register(PREFIX + "sdpa", grouped_attention)
AttentionMaskInterface.register(PREFIX + "sdpa", sdpa_mask)
