"""How many tokens can be in flight: what their keys and values take, and what memory has room for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Of the memory that is available, what keys and values may take. The rest is for activations, the tokenizer, others.
SHARE = 0.5

# By OpenVINO's names. u8 comes with scales: for each token's head, and for each channel of 32 tokens.
BYTES_PER_VALUE = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.25}


def bytes_per_token(config: Mapping[str, Any], bytes_per_value: float) -> int | None:
    """What one token of one request takes, at most, for a model of this config.json; None where it does not say.

    It is too much where layers share keys, compress them, or keep a sliding window of them.
    """
    text = config.get("text_config") or config
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    if layers is None or heads is None or hidden is None:
        return None
    # Falcon calls multi_query what has groups, too: there, and only there, num_kv_heads counts.
    grouped = text.get("new_decoder_architecture")
    shared = 1 if text.get("multi_query") and not grouped else heads
    kept = _number(text, "num_key_value_heads") or (_number(text, "num_kv_heads") if grouped else None) or shared
    return math.ceil(2 * layers * kept * _width(text, hidden // heads) * bytes_per_value)


def token_budget(available: int | None, per_token: int | None) -> float:
    """The tokens, prompts and answers, that may be in flight in `available` bytes; without an end where a number is
    not known."""
    return math.inf if available is None or per_token is None else SHARE * available // per_token


def _width(text: Mapping[str, Any], usual: int) -> int:
    """Of a head's keys or values, what is wider. With latent attention head_dim is only a part of a key."""
    latent = (_number(text, "qk_nope_head_dim") or 0) + (_number(text, "qk_rope_head_dim") or 0)
    return max(_number(text, "head_dim") or usual, _number(text, "v_head_dim") or 0, latent)


def _number(text: Mapping[str, Any], *names: str) -> int | None:
    """The first of these entries that is a number above 0."""
    return next((value for name in names if isinstance(value := text.get(name), int) and value > 0), None)
