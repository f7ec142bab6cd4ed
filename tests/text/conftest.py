"""Tiny tokenizers of the families that models use."""

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It wasn't there, was it?",
    "def main(argv: list[str]) -> int:\n    return len(argv)\n",
    "中文没有空格,模型也要一个字一个字地输出。日本語の文章も同じです。",
    "Grüße aus München! Добрый день. ሰላም",
    "😀😃😄👩‍👩‍👧‍👦🇩🇪👍🏽",
] * 3
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's family. Its merges cut through the bytes of Chinese and emoji."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False), AddedToken("<é>", special=False)])
    return tokenizer


def byte_fallback(*, strip: bool = True) -> tokenizers.Tokenizer:
    """Llama 2's family (Gemma's, without strip): spaces are ▁, and unknown characters become byte tokens."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "c", "é", "中", "▁a", "▁b", "ab", "▁ab", "▁▁"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b"), ("▁", "▁")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prepend = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    stripped = [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """T5's family: a Unigram model, and a decoder that drops the first word's ▁."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """BERT's family: ## continues a word, and punctuation loses the space before it."""
    pieces = ["[UNK]", "[SEP]", "he", "she", "##llo", "##s", "was", "##n", "'", "t", ".", ",", "do", "not", "a", "b"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def word_ends() -> tokenizers.Tokenizer:
    """The first GPT's family: </w> ends a word."""
    pieces = ["<unk>", "a", "b", "a</w>", "b</w>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


FAMILIES = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "byte_fallback_unstripped": lambda: byte_fallback(strip=False),
    "metaspace": metaspace,
    "word_piece": word_piece,
    "word_ends": word_ends,
}


@pytest.fixture(scope="session")
def families() -> dict[str, tokenizers.Tokenizer]:
    return {name: make() for name, make in FAMILIES.items()}
