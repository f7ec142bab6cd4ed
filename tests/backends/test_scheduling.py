"""How many tokens' keys and values fit into memory, of what models' config.json says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.backends.scheduling import SHARE, bytes_per_token, token_budget

LLAMA = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8}
SMOLLM2 = {"hidden_size": 576, "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3}
QWEN3 = {**LLAMA, "head_dim": 128, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 28}
FALCON = {"hidden_size": 4544, "multi_query": True, "num_attention_heads": 71, "num_hidden_layers": 32}
FALCON_40B = {"hidden_size": 8192, "multi_query": True, "num_attention_heads": 128, "num_hidden_layers": 32}
BIGCODE = {"multi_query": True, "n_embd": 6144, "n_head": 48, "n_layer": 40}
LATENT = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_key_value_heads": 16}
DEEPSEEK = {**LATENT, "head_dim": 64, "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 27}
# Of a configuration, the values that a token takes.
VALUES = {
    "gpt2": ({"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}, 2 * 12 * 768),
    "smollm2": ({**SMOLLM2, "head_dim": 64}, 2 * 30 * 3 * 64),
    "llama": (LLAMA, 2 * 32 * 8 * 128),
    "without groups": ({**LLAMA, "num_key_value_heads": None}, 2 * 32 * 4096),
    "qwen3": (QWEN3, 2 * 28 * 8 * 128),
    "mpt": ({"d_model": 4096, "n_heads": 32, "n_layers": 32}, 2 * 32 * 4096),
    "nested": ({"vision_config": {"num_hidden_layers": 27}, "text_config": QWEN3}, 2 * 28 * 8 * 128),
    "nested in vain": ({**SMOLLM2, "text_config": None}, 2 * 30 * 3 * 64),
    "falcon": (FALCON, 2 * 32 * 64),
    "falcon 40b": ({**FALCON_40B, "num_kv_heads": 8, "new_decoder_architecture": True}, 2 * 32 * 8 * 64),
    "bigcode": (BIGCODE, 2 * 40 * 128),
    "bigcode with all heads": ({**BIGCODE, "multi_query": False}, 2 * 40 * 6144),
    "latent": (DEEPSEEK, 2 * 27 * 16 * 192),
}


@pytest.mark.parametrize(("config", "values"), VALUES.values(), ids=VALUES)
def test_what_a_token_takes(config, values):
    assert bytes_per_token(config, 4.0) == 4 * values
    assert bytes_per_token(config, 1.25) == pytest.approx(1.25 * values, abs=1)


SILENT = {
    "empty": {},
    "nested defaults": {"text_config": {"model_type": "llama"}, **LLAMA},
    "no layers": {name: value for name, value in LLAMA.items() if name != "num_hidden_layers"},
    "heads of each layer": {**LLAMA, "num_attention_heads": [32] * 32},
    "no layer": {**LLAMA, "num_hidden_layers": 0},
    "a string": {**LLAMA, "hidden_size": "4096"},
}


@pytest.mark.parametrize("config", SILENT.values(), ids=SILENT)
def test_a_config_that_does_not_say(config):
    per_token = bytes_per_token(config, 2)
    assert per_token is None
    assert token_budget(20 * 10**9, per_token) == math.inf


def test_the_budget_of_a_real_model():
    """8 billion parameters, 16 bit keys and values, 16 GiB: 64 requests of a thousand tokens."""
    assert token_budget(16 * 2**30, bytes_per_token(LLAMA, 2)) == 64 * 1024
    assert token_budget(None, bytes_per_token(LLAMA, 2)) == math.inf


@given(available=st.integers(0, 2**44), per_token=st.integers(1, 2**24))
def test_the_budget_fits_and_one_token_more_does_not(available, per_token):
    budget = token_budget(available, per_token)
    assert budget >= 0
    assert budget * per_token <= SHARE * available < (budget + 1) * per_token
