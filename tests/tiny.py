"""Makers of tiny models: real architectures with random weights, and a tokenizer trained on the spot.

The seeds are chosen: greedy answers vary, hold no special token, and no step of them is a near tie.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "What is EEG? It is a way to record the electrical activity of the brain.",
    "Question: how many people live in Paris? Answer: let us think step by step.",
    "One two three four five six seven eight nine ten, and then all of it again.",
    "A model that was never trained still has a next token for every prompt.",
]
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, IM_START, IM_END = range(3)
VOCABULARY = 400
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 has it; an emoji is four tokens, since the sentences hold none."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


def save_tokenizer(folder: Path, *, eos_token: str, chat_template: str | None = None) -> None:
    """tokenizer.json and its configuration, as transformers would write them."""
    tokenizer().save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token}
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_model(folder: Path, config: Any, *, seed: int = 0, dtype: str = "float32") -> None:
    """Random weights for `config`, the same for the same seed. `folder` is made where it does not stand."""
    import torch
    from transformers import AutoModelForCausalLM

    # The generator of the whole process, as it was before, afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_LIKE_LLAMA = {**_SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
_ENDS = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": None}


def gpt2(folder: Path, *, seed: int = 1, spread: float = 0.4) -> Path:
    """128 learned positions and no more, no chat template. With a small `spread` of its weights, rounding changes few
    of its next tokens; so it is with the others."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=48,
        n_layer=2,
        n_head=3,
        initializer_range=spread,
        tie_word_embeddings=False,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
    )
    save_model(folder, config, seed=seed)
    save_tokenizer(folder, eos_token=SPECIAL_TOKENS[END_OF_TEXT])
    return folder


def llama(folder: Path, *, seed: int = 4, spread: float = 0.3) -> Path:
    """Rotary positions, grouped-query attention and a chat template."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        **_LIKE_LLAMA,
        initializer_range=spread,
        tie_word_embeddings=False,
        bos_token_id=IM_START,
        eos_token_id=IM_END,
    )
    save_model(folder, config, seed=seed)
    save_tokenizer(folder, eos_token=SPECIAL_TOKENS[IM_END], chat_template=CHAT_TEMPLATE)
    return folder


def qwen2(folder: Path, *, seed: int = 3, spread: float = 0.3) -> Path:
    """As a Llama, with biases, and a head that is tied to the embeddings."""
    config = {**_LIKE_LLAMA, **_ENDS, "initializer_range": spread, "tie_word_embeddings": True}
    return _of_family(folder, "qwen2", config, seed)


def phi3(folder: Path, *, seed: int = 3, spread: float = 0.3) -> Path:
    """As a Llama, with the layers of attention in one, and those of the gate in one."""
    config = {**_LIKE_LLAMA, **_ENDS, "initializer_range": spread, "original_max_position_embeddings": 512}
    return _of_family(folder, "phi3", config, seed)


def opt(folder: Path, *, seed: int = 3, spread: float = 0.3) -> Path:
    """Learned positions that begin at 2, and a tied head."""
    config = {**_SMALL, **_ENDS, "ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": spread}
    return _of_family(folder, "opt", config, seed)


def bloom(folder: Path, *, seed: int = 3, spread: float = 0.3) -> Path:
    """ALiBi in place of positions, and no end to its context."""
    config = {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": spread}
    return _of_family(folder, "bloom", {**config, **_ENDS}, seed)


FAMILIES = {"gpt2": gpt2, "llama": llama, "qwen2": qwen2, "opt": opt, "bloom": bloom, "phi3": phi3}


def _of_family(folder: Path, kind: str, config: dict[str, Any], seed: int) -> Path:
    from transformers import AutoConfig

    save_model(folder, AutoConfig.for_model(kind, **config), seed=seed)
    save_tokenizer(folder, eos_token=SPECIAL_TOKENS[END_OF_TEXT])
    return folder


def no_thread(thread: threading.Thread) -> None:
    """In the place of Thread.start, where the system starts no more of them."""
    raise RuntimeError("can't start new thread")
