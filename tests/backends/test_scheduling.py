"""How many tokens' keys and values fit into memory, of what models' config.json says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.backends.scheduling import SHARE, bytes_per_token, token_budget

GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
SMOLLM2 = {
    "model_type": "llama",
    "head_dim": 64,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
}
QWEN3 = {
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
}
MPT = {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32}
FALCON = {"hidden_size": 4544, "multi_query": True, "num_attention_heads": 71, "num_hidden_layers": 32}
FALCON_40B = {**FALCON, "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8}
BIGCODE = {"model_type": "gpt_bigcode", "multi_query": True, "n_embd": 6144, "n_head": 48, "n_layer": 40}
DEEPSEEK = {
    "model_type": "deepseek_v2",
    "head_dim": 64,
    "hidden_size": 2048,
    "kv_lora_rank": 512,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (GPT2, 2 * 12 * 768),
        (SMOLLM2, 2 * 30 * 3 * 64),
        (LLAMA, 2 * 32 * 8 * 128),
        ({**LLAMA, "num_key_value_heads": None}, 2 * 32 * 4096),
        (QWEN3, 2 * 28 * 8 * 128),
        (MPT, 2 * 32 * 4096),
        ({"model_type": "gemma3", "vision_config": {"num_hidden_layers": 27}, "text_config": QWEN3}, 2 * 28 * 8 * 128),
        ({**SMOLLM2, "text_config": None}, 2 * 30 * 3 * 64),
        (FALCON, 2 * 32 * 64),
        ({**FALCON_40B, "new_decoder_architecture": True}, 2 * 32 * 8 * 64),
        (BIGCODE, 2 * 40 * 128),
        ({**BIGCODE, "multi_query": False}, 2 * 40 * 6144),
        (DEEPSEEK, 2 * 27 * 16 * 192),
    ],
    ids=[
        "gpt2",
        "smollm2",
        "llama",
        "without groups",
        "qwen3",
        "mpt",
        "nested",
        "nested in vain",
        "falcon",
        "falcon 40b",
        "bigcode",
        "bigcode with all heads",
        "latent",
    ],
)
def test_what_a_token_takes(config, values):
    assert bytes_per_token(config, 4.0) == 4 * values
    assert bytes_per_token(config, 1.25) == pytest.approx(1.25 * values, abs=1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"text_config": {"model_type": "llama"}, **LLAMA},
        {name: value for name, value in LLAMA.items() if name != "num_hidden_layers"},
        {**LLAMA, "num_attention_heads": [32] * 32},
        {**LLAMA, "num_hidden_layers": 0},
        {**LLAMA, "hidden_size": "4096"},
    ],
    ids=["empty", "nested defaults", "no layers", "heads of each layer", "no layer", "a string"],
)
def test_a_config_that_does_not_say(config):
    per_token = bytes_per_token(config, 2)
    assert per_token is None
    assert token_budget(20 * 10**9, per_token) == math.inf


def test_memory_that_is_not_known_is_no_bound():
    assert token_budget(None, bytes_per_token(LLAMA, 2)) == math.inf


def test_the_budget_of_a_real_model():
    """8 billion parameters, 16 bit keys and values, 16 GiB: 64 requests of a thousand tokens."""
    assert token_budget(16 * 2**30, bytes_per_token(LLAMA, 2)) == 64 * 1024


@given(available=st.integers(0, 2**44), per_token=st.integers(1, 2**24))
def test_the_budget_fits_and_one_token_more_does_not(available, per_token):
    budget = token_budget(available, per_token)
    assert budget >= 0
    assert budget * per_token <= SHARE * available < (budget + 1) * per_token
