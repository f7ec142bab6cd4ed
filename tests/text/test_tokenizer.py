"""Tokenizers of every family: loading, encoding, and decoding token by token."""

import json

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from hfpipe.errors import UnsupportedModel
from hfpipe.text.decoder import IncrementalDecoder
from hfpipe.text.tokenizer import from_transformers, load_tokenizer

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
BYTE_FAMILIES = ["byte_level", "byte_fallback", "byte_fallback_unstripped"]
FAMILY_EMOJI = "👩‍👩‍👧‍👦"

# Text as it comes, and text made of what is hard: spaces, ZWJ emoji, combining marks, several scripts.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20) | st.lists(
    st.sampled_from(
        ["a", "ab", " ", "  ", "\n", "é", "e\u0301", "中文", FAMILY_EMOJI, "🇩🇪", "👍🏽", "▁", "<0x41>", "\0"]
    ),
    max_size=10,
).map("".join)
cuts = st.lists(st.integers(0, 5), max_size=10)
quick = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="session")
def families() -> dict[str, tokenizers.Tokenizer]:
    return {name: make() for name, make in FAMILIES.items()}


@pytest.fixture(scope="session")
def tokenizer_of(families, tmp_path_factory):
    loaded = {}
    for name, family in families.items():
        folder = tmp_path_factory.mktemp(name)
        family.save(str(folder / "tokenizer.json"))
        loaded[name] = load_tokenizer(folder)
    return loaded.__getitem__


def stream(tokenizer, ids, prompt_ids=(), sizes=None):
    """The pieces that a decoder gives for `ids`, fed one at a time or in runs of `sizes`, and at the end."""
    decoder, pieces, start = IncrementalDecoder(tokenizer, prompt_ids), [], 0
    for size in sizes or [1] * len(ids):
        pieces.append(decoder.feed(ids[start : start + size]))
        start += size
    return [*pieces, decoder.feed(ids[start:]), decoder.feed([], last=True)]


# --- decoding as tokens appear


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@quick
def test_chunks_make_no_difference(tokenizer_of, family, data):
    """Of any ids. At most one character waits."""
    tokenizer = tokenizer_of(family)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=30))
    pieces = stream(tokenizer, ids)
    assert "".join(stream(tokenizer, ids, sizes=data.draw(cuts))) == "".join(pieces)
    if family == "byte_level":
        assert "".join(pieces) == tokenizer.decode(ids)
    if family in BYTE_FAMILIES:
        assert len(pieces[-1]) <= 3


@pytest.mark.parametrize("family", FAMILIES)
@given(prompt=st.just("") | texts, text=texts, sizes=cuts)
@quick
def test_equals_decode_for_encoded_text(tokenizer_of, family, prompt, text, sizes):
    """It goes on from the prompt, and valid text never shows a replacement character."""
    tokenizer = tokenizer_of(family)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = "".join(stream(tokenizer, ids, before, sizes))
    assert shown == tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
    assert family not in BYTE_FAMILIES or "\ufffd" not in shown


def bytes_of(tokenizer, *values):
    by_value = {value: token_id for token_id, value in tokenizer.byte_values.items()}
    return [by_value[value] for value in values]


def pieces_of(tokenizer, *ids):
    return stream(tokenizer, list(ids))[: len(ids)]


def test_a_character_over_four_tokens_appears_with_the_last(tokenizer_of):
    tokenizer = tokenizer_of("byte_fallback")
    assert pieces_of(tokenizer, *bytes_of(tokenizer, *"😀".encode())) == ["", "", "", "😀"]
    cut_off = bytes_of(tokenizer, 0xF0, 0x9F)
    assert stream(tokenizer, cut_off)[-1] == tokenizer.decode(cut_off) == "\ufffd\ufffd"


def test_text_before_a_cut_character_is_not_held(tokenizer_of, families):
    """A token may end in the first byte of the next character: what stands before it is shown."""
    raw = tokenizers.Tokenizer.from_str(families["byte_level"].to_str())
    raw.add_tokens([AddedToken("aä", special=False), AddedToken("¸Ńä", special=False)])
    tokenizer = from_transformers(Fast(raw))
    first, middle = raw.token_to_id("aä"), raw.token_to_id("¸Ńä")
    assert pieces_of(tokenizer, first, middle, middle) == ["a", "中", "中"]


def test_invalid_bytes_do_not_stall_and_bytes_recover_after_them(tokenizer_of, families):
    tokenizer, lone = tokenizer_of("byte_level"), families["byte_level"].token_to_id("ÿ")
    assert "".join(stream(tokenizer, [lone] * 50)[:50]) == "\ufffd" * 49
    tokenizer = tokenizer_of("byte_fallback")
    assert "".join(stream(tokenizer, bytes_of(tokenizer, *[0xFF] * 50))[:50]) == "\ufffd" * 50
    space_a = families["byte_fallback"].token_to_id("▁a")
    ids = [space_a, *bytes_of(tokenizer, 0xFF, *"€".encode(), 0x80, 0x41, 0xE2, 0x82), space_a]
    assert "".join(stream(tokenizer, ids)) == "a\ufffd€\ufffdA\ufffd\ufffd a"


def test_special_tokens_inside_a_character_are_dropped_first(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    ids = list(tokenizer.encode("ሰ", add_special_tokens=False))
    assert len(ids) > 1
    ids.insert(1, tokenizer.special_id("<|im_end|>"))
    assert "".join(stream(tokenizer, ids)) == "ሰ"


def test_a_word_keeps_its_space_after_a_prompt_and_not_without(tokenizer_of, families):
    tokenizer, raw = tokenizer_of("byte_fallback"), families["byte_fallback"]
    word, start = raw.token_to_id("▁ab"), raw.token_to_id("<s>")
    prompt = tokenizer.encode("a", add_special_tokens=False)
    assert "".join(stream(tokenizer, [word], prompt)) == " ab"
    assert "".join(stream(tokenizer, [word], [*prompt, *bytes_of(tokenizer, 0x0A)])) == " ab"
    assert "".join(stream(tokenizer, [word], [*prompt, start])) == " ab"
    assert "".join(stream(tokenizer, [word], [start])) == "ab"
    assert "".join(stream(tokenizer, [word])) == "ab"
    assert "".join(stream(tokenizer, [*bytes_of(tokenizer, *"😀".encode()), word])) == "😀 ab"


def test_every_token_of_plain_text_is_shown_at_once(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode("x=f(a[0],b);return(x)//none", add_special_tokens=False)
    assert all(stream(tokenizer, ids)[: len(ids)])


def test_no_more_than_four_tokens_are_decoded_at_once(tokenizer_of, monkeypatch):
    tokenizer, most = tokenizer_of("byte_level"), 0
    decode = tokenizer.decode

    def counted(ids):
        nonlocal most
        most = max(most, len(ids))
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", counted)
    stream(tokenizer, [2 + token_id % 390 for token_id in range(5_000)])
    assert most <= 4


# --- a tokenizer from a folder


def write(folder, raw, **files):
    raw.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def test_stored_truncation_and_padding_are_off(tmp_path, families):
    raw = tokenizers.Tokenizer.from_str(families["byte_level"].to_str())
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    tokenizer = write(tmp_path, raw)
    text = "no limit on this text at all"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=True)) == text


def test_half_a_surrogate_pair_is_replaced(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode("a\ud83d b \ud83d\ude00", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a\ufffd b 😀"


def test_special_and_added_tokens(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.special_id("<|im_end|>") == 1
    assert tokenizer.special_id("<tool call>") == tokenizer.vocab_size - 2
    assert tokenizer.special_id("a") is None
    assert tokenizer.special_id("nowhere") is None
    assert tokenizer.decode([1, tokenizer.special_id("<tool call>"), 0, 10_000]) == "<tool call>"


def test_only_bytes_count_as_bytes(tokenizer_of, families):
    raw = tokenizers.Tokenizer.from_str(families["byte_level"].to_str())
    raw.add_tokens(["<0x41>"])
    assert from_transformers(Fast(raw)).byte_values == {}
    assert tokenizer_of("byte_fallback").byte_values == {3 + value: value for value in range(256)}


OBJECT = {"content": "<s>", "lstrip": False}


@pytest.mark.parametrize(
    ("config", "special"),
    [
        (
            {"bos_token": OBJECT, "eos_token": "</s>", "pad_token": None, "add_bos_token": False, "model_max_length": 8}
            | {"added_tokens_decoder": {}},
            {"x_token": "x"},
        ),
        ({"eos_token": "<unk>"}, {"bos_token": OBJECT, "eos_token": "</s>", "additional_special_tokens": ["<s>"]}),
    ],
    ids=["the configuration", "an old folder"],
)
def test_special_token_texts(tmp_path, families, config, special):
    tokenizer = write(tmp_path, families["byte_fallback"], tokenizer_config=config, special_tokens_map=special)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_what_the_configuration_calls_special_is_special(tmp_path, families):
    config = {"eos_token": "ab", "pad_token": "not in the vocabulary"}
    tokenizer = write(tmp_path, families["byte_fallback"], tokenizer_config=config)
    assert tokenizer.special_id("ab") in tokenizer.special_ids
    assert tokenizer.vocab_size == families["byte_fallback"].get_vocab_size()


def test_chat_template_places_and_their_order(tmp_path, families):
    raw = families["byte_level"]
    assert write(tmp_path, raw).chat_templates == {}
    assert write(tmp_path, raw, chat_template={"chat_template": "old"}).chat_templates == {"default": "old"}
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
    found = write(tmp_path, raw, tokenizer_config={"chat_template": several}).chat_templates
    assert found == {"tool_use": "tools", "default": "listed"}
    assert write(tmp_path, raw, tokenizer_config={"chat_template": "one"}).chat_templates == {"default": "one"}
    (tmp_path / "chat_template.jinja").write_text("{# ä #}\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_templates == {"default": "{# ä #}\n"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert load_tokenizer(tmp_path).chat_templates == {"default": "{# ä #}\n", "tool_use": "tools"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer in"),
        ({"config.json": "{}", "model.safetensors": "{}"}, "no tokenizer in"),
        *(
            ({"tokenizer.json": text}, "Cannot read")
            for text in ("", "{", "{}", '{"version": "1.0", "model": {"type": "New"}}')
        ),
        ({"tokenizer_config.json": '{"tokenizer_class": "NobodyKnowsTokenizer"}'}, "transformers cannot load"),
    ],
)
def test_a_folder_without_a_tokenizer_that_can_be_read(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in caught.value.message
    assert caught.value.hint or message == "Cannot read"


# --- a tokenizer that transformers made


class Fast:
    """What of a fast transformers tokenizer counts here."""

    is_fast = True
    chat_template = None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, raw):
        self.backend_tokenizer = raw


def test_fast_tokenizer_is_copied(families):
    raw = tokenizers.Tokenizer.from_str(families["byte_level"].to_str())
    template = {"default": "hello", "tool_use": "tools"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", chat_template=template)
    tokenizer = from_transformers(fast)
    text = "Longer than four tokens 中文"
    fast(text, truncation=True, max_length=4)
    assert list(tokenizer.encode(text, add_special_tokens=True)) == fast(text)["input_ids"]
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>"}
    assert tokenizer.chat_templates == template
    assert tokenizer.special_id("<|im_end|>") == fast.eos_token_id


def test_slow_tokenizer():
    slow = transformers.ByT5Tokenizer()
    tokenizer = from_transformers(slow)
    text = f"Grüße, 中文 {FAMILY_EMOJI}"
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert list(ids) == slow(text)["input_ids"]
    assert ids[-1] == tokenizer.special_id("</s>")
    assert tokenizer.special_id("</s>") in tokenizer.special_ids
    assert tokenizer.decode([*ids, 100_000]) == text
    assert "".join(stream(tokenizer, ids)) == text
    assert tokenizer.special_tokens["eos_token"] == "</s>"
    assert tokenizer.vocab_size == len(slow)


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")  # transformers 5.5 on tokenizers 0.22
def test_folder_without_tokenizer_json(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello worlds", add_special_tokens=True) == (2, 5, 6, 7, 3)
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "hello worlds"


def test_remote_code_is_refused_unless_trusted(tmp_path):
    config = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('this code must not run')\n")
    with pytest.raises(UnsupportedModel):
        load_tokenizer(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_equals_auto_tokenizer(tmp_path, families, config):
    raw = tokenizers.Tokenizer.from_str(families["byte_fallback"].to_str())
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    tokenizer = write(tmp_path, raw, tokenizer_config=config)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    for text in ["", "a ab  中 é", f"x {FAMILY_EMOJI} </s>"]:
        assert list(tokenizer.encode(text, add_special_tokens=True)) == auto(text)["input_ids"]
        assert (
            list(tokenizer.encode(text, add_special_tokens=False)) == auto(text, add_special_tokens=False)["input_ids"]
        )
    assert tokenizer.special_tokens == auto.special_tokens_map
    assert tokenizer.special_ids >= set(auto.all_special_ids)
