"""GGUF -> transformers: token ids, weights, and what is refused before weights are read."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from hfpipe.errors import ModelError, UnsupportedModel
from hfpipe.models import gguf_worker as gguf
from hfpipe.models import resolve
from hfpipe.process import run_child
from tests.fake_models import write_gguf
from tests.models.conftest import Recorder

# As OpenAI published it for GPT-2.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def fields_of(path):
    return gguf.read_fields(gguf._open(path))


def refusal(path):
    reader = gguf._open(path)
    with pytest.raises(UnsupportedModel) as caught:
        gguf.check(gguf.read_fields(reader), reader, path)
    return caught.value.message


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A tiny Llama in F32, converted as a user's file is: in a child, and once."""
    folder, recorder = tmp_path_factory.mktemp("gguf"), Recorder()
    file = write_gguf(folder / "tiny.gguf", tokenizer_ggml_eot_token_id=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFPIPE_CACHE", str(folder / "cache"))
        source = resolve(str(file), reporter=recorder)
        copy = file.rename(folder / "other.GGUF")
        assert resolve(str(copy), reporter=recorder).folder == source.folder
    assert recorder.notes == ["Converting tiny.gguf: this happens once."]
    assert (source.format, source.context_length) == ("transformers", 128)
    return copy, source.folder


def test_the_folder_is_complete(converted):
    _, folder = converted
    assert sorted(path.name for path in folder.iterdir()) == [
        ".hfpipe-entry",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] == 128
    assert config["dtype"] == "float32"
    assert "_model_name_or_path" not in config
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}
    assert (folder / "chat_template.jinja").read_text().startswith("{% for m in messages %}")


def test_the_weights_are_those_of_the_file(converted):
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    file, folder = converted
    written = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    read = load_file(folder / "model.safetensors")
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(read[ours], written[theirs])


def test_it_loads_like_any_other_folder(converted, recwarn):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = converted
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert model.generation_config.eos_token_id == [2, 0]
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|im_start|>the 12 the\n é<|im_end|>"
    assert theirs(text).input_ids == ours.encode(text).ids
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.pad_token == "<|im_end|>"
    assert theirs.bos_token == "<|im_start|>"
    assert theirs.chat_template.startswith("{% for m in messages %}")
    assert not recwarn.list


def test_merges_digits_and_special_tokens(tmp_path):
    tokenizer = gguf.build_tokenizer(fields_of(write_gguf(tmp_path / "a.gguf", weights=False)))
    assert tokenizer.encode("a the 12<|im_end|>").tokens == ["a", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("Grüße 👍🏽\n").ids) == "Grüße 👍🏽\n"
    assert tokenizer.decode([2]) == ""


def test_gpt_2_keeps_digits_together(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", weights=False, tokenizer_ggml_pre="gpt-2")
    tokenizer = gguf.build_tokenizer(fields_of(file))
    assert tokenizer.encode("a 12 12").tokens == ["a", "Ġ", "12", "Ġ", "12"]


@given(st.text())
def test_the_pre_tokenizers_split_as_their_patterns_do(text):
    words = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    digits = [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), *words]
    for kind, pattern in {"gpt-2": words, "smollm": digits}.items():
        expected = pre_tokenizers.Sequence(pattern).pre_tokenize_str(text)
        assert gguf._PRE_TOKENIZERS[kind].pre_tokenize_str(text) == expected


def test_a_beginning_of_sequence_where_the_file_asks_for_it(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", weights=False, tokenizer_ggml_add_bos_token=True)
    tokenizer = gguf.build_tokenizer(fields_of(file))
    assert tokenizer.encode("a").tokens == ["<|im_start|>", "a"]
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]
    without = write_gguf(tmp_path / "b.gguf", weights=False, tokenizer_ggml_add_bos_token=False)
    assert gguf.build_tokenizer(fields_of(without)).encode("a").tokens == ["a"]


def test_a_user_defined_token_is_one_token_and_is_shown(tmp_path):
    kinds = [3, 4, 3] + [1] * 260
    file = write_gguf(tmp_path / "a.gguf", weights=False, tokenizer_ggml_token_type=kinds)
    tokenizer = gguf.build_tokenizer(fields_of(file))
    assert tokenizer.encode("a<|im_start|>").ids[-1] == 1
    assert tokenizer.decode([1]) == "<|im_start|>"


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"eos": 2}, {"eos_token_id": 2}),
        ({"eos": 2, "eot": 2, "eom": 2, "bos": 1}, {"bos_token_id": 1, "eos_token_id": 2}),
        ({"eos": 0, "eot": 2, "padding": 0}, {"eos_token_id": [0, 2], "pad_token_id": 0}),
        ({}, {}),
    ],
)
def test_generation_ends_at_every_end_token(ids, expected):
    assert gguf.generation_config({f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokenizer_ggml_model": "llama"}, "tokenizers of the kind 'llama'"),
        ({"tokenizer_ggml_model": None}, "tokenizers of the kind None"),
        ({"tokenizer_ggml_pre": "qwen2"}, "the pre-tokenizer 'qwen2'"),
        ({"tokenizer_ggml_pre": None}, "the pre-tokenizer None"),
        ({"general.type": "adapter"}, "part of one (adapter)"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary positions"),
    ],
)
def test_what_is_not_known_to_convert_exactly_is_refused(tmp_path, fields, words):
    message = refusal(write_gguf(tmp_path / "a.gguf", weights=False, **fields))
    assert words in message
    assert message.startswith("a.gguf cannot be converted: ")


@pytest.mark.parametrize(
    ("kind", "name"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")]
)
def test_the_dtype_follows_the_file(tmp_path, kind, name):
    assert gguf.dtype_name(gguf._open(write_gguf(tmp_path / "a.gguf", dtype=kind))) == name


@pytest.mark.parametrize("size", [0, 4, 100, 8000])
def test_a_cut_file_is_said_to_be_one(tmp_path, size):
    file = write_gguf(tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        gguf._open(file)


def test_a_refusal_reaches_the_parent(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", tokenizer_ggml_pre="llama-bpe")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedModel, match="'llama-bpe' is not known to convert exactly"):
        run_child("hfpipe.models.gguf_worker", {"file": str(file), "folder": str(tmp_path / "out")}, what="x")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.model
def test_smollm2_has_llama_cpps_token_ids(smollm2):
    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    assert tokenizer.encode("What is EEG? 123").ids == [1780, 314, 30073, 47, 216, 33, 34, 35]
    assert tokenizer.decode([1780, 314, 30073, 47, 216, 33, 34, 35]) == "What is EEG? 123"
    assert smollm2.context_length == 8192
    assert smollm2.generation_config["eos_token_id"] == 2
    assert smollm2.config["dtype"] == "bfloat16"
