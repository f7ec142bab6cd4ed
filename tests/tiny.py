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


def tokenizer(special_tokens: list[str] = SPECIAL_TOKENS) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 has it; an emoji is four tokens, since the sentences hold none."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=special_tokens,
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


def save_model(folder: Path, config: Any, *, seed: int = 0, dtype: str = "float32", **generation: Any) -> None:
    """Random weights for `config`, the same for the same seed. `folder` is made where it does not stand, and
    `generation` is in its generation_config.json."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # The generator of the whole process, as it was before, afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.update(**generation)
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


# Encoder-decoder models: each with the traits of those that are known by its name.

START, PAD, END, UNKNOWN = range(4)
SEQ2SEQ_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 3),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    "max_position_embeddings": 96,
    "bos_token_id": START,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": END,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 3,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
    "task_specific_params": {
        "summarization": {"prefix": "summarize: ", "min_length": 6, "max_length": 40, "num_beams": 4},
        "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 30},
    },
}
# By model: config.json, generation_config.json, the languages, and what the tokenizer adds to a text.
SEQ2SEQ: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], str]] = {
    "t5": (_T5, {}, [], "$A </s>"),
    "bart": (
        _BART,
        {"forced_bos_token_id": START, "forced_eos_token_id": END, "min_length": 9, "no_repeat_ngram_size": 2},
        [],
        "<s> $A </s>",
    ),
    "mbart": (
        {**_BART, "scale_embedding": True, "max_position_embeddings": 1024},
        {"forced_eos_token_id": None},
        ["en_XX", "de_DE", "fr_XX"],
        "$A </s> en_XX",
    ),
    "m2m_100": (_BART, {}, ["__en__", "__de__", "__fr__"], "__en__ $A </s>"),
    "marian": (
        {**_BART, "decoder_start_token_id": PAD},
        {"bad_words_ids": [[PAD]], "forced_eos_token_id": END},
        [],
        "$A </s>",
    ),
    "pegasus": ({**_BART, "decoder_start_token_id": PAD}, {"num_beams": 4, "forced_eos_token_id": END}, [], "$A </s>"),
}

# optimum-intel 2.2 does not export Marian under transformers 5.
EXPORTED = [kind for kind in SEQ2SEQ if kind != "marian"]

# Of each, weights whose answers vary.
_SEEDS = {
    "t5": (8, 0.5),
    "bart": (3, 0.8),
    "mbart": (3, 0.8),
    "m2m_100": (1, 1.2),
    "marian": (3, 1.2),
    "pegasus": (4, 0.8),
}


def seq2seq(folder: Path, kind: str, *, spread: float | None = None) -> Path:
    """An encoder-decoder model of a `kind` in SEQ2SEQ."""
    from tokenizers import processors
    from transformers import AutoConfig

    config, generation, languages, added = SEQ2SEQ[kind]
    seed, wide = _SEEDS[kind]
    spread = wide if spread is None else spread
    width = {"initializer_factor": spread * 10} if kind == "t5" else {"init_std": spread}
    save_model(folder, AutoConfig.for_model(kind, **config, **width), seed=seed, **generation)
    special = [*SEQ2SEQ_TOKENS, *languages]
    made = tokenizer(special)
    ids = [(token, number) for number, token in enumerate(special)]
    made.post_processor = processors.TemplateProcessing(single=added, special_tokens=ids)
    made.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named, "extra_special_tokens": languages})
    )
    return folder
