"""The texts that come with the package, and windows of them: each token is scored once, with context before it."""

from itertools import count

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from hfpipe import quality
from hfpipe.errors import HFPipeError
from hfpipe.models.folder import inspect_folder
from hfpipe.quality.compare import CONTEXT, LENGTH, Window, windows
from hfpipe.text.tokenizer import load_tokenizer
from tests import tiny
from tests.fake_models import write_model

PREFIXES = [(), (-1,), (-1, -2)]
counts = st.lists(st.integers(0, 200), min_size=1, max_size=4)


class Counting:
    """A tokenizer whose token is a character, and its id the place in the text."""

    def __init__(self, prefix=()):
        self.prefix = prefix

    def encode(self, text, add_special_tokens):
        return (*(self.prefix if add_special_tokens else ()), *range(len(text)))


def cut(counts, length, prefix=()):
    return windows(Counting(prefix), {str(i): "x" * count for i, count in enumerate(counts)}, length)


@given(counts, st.sampled_from(PREFIXES), st.integers(5, 64))
def test_every_token_is_scored_once_after_as_much_context(counts, prefix, length):
    first, context = (0 if prefix else 1), length // 4
    if max(counts) <= first:
        counts = [*counts, 10]
    found = cut(counts, length, prefix)
    for kind, number in enumerate(counts):
        of_this = [window for window in found if window.kind == str(kind)]
        assert [token for window in of_this for token in window.targets] == list(range(first, number))
        for window in of_this:
            assert window.token_ids[: len(prefix)] == prefix
            body = window.token_ids[len(prefix) :]
            assert body == tuple(range(body[0], body[-1] + 1))
            assert len(window.token_ids) <= length
            assert window.scored_from >= 1
            assert window.targets[0] - body[0] >= context or body[0] == 0


def test_the_stride_is_what_the_context_leaves():
    found = [(window.token_ids[1], window.targets[0], window.token_ids[-1]) for window in cut([26], 17, (-1,))]
    assert found == [(0, 0, 15), (12, 16, 25)]
    assert Window("x", (5, 6, 7, 8), 2).inputs == (5, 6, 7)


@pytest.mark.parametrize(
    ("counts", "length", "prefix"),
    [([], 9, ()), ([0], 9, ()), ([1], 9, ()), ([0], 9, (-1,)), ([50], 1, ()), ([50], 2, (-1, -2))],
)
def test_nothing_to_score_is_an_error(counts, length, prefix):
    with pytest.raises(HFPipeError, match="nothing to measure"):
        cut(counts, length, prefix)


@pytest.mark.parametrize(("limit", "length"), [(None, LENGTH), (4096, LENGTH), (LENGTH, LENGTH), (128, 128), (9, 9)])
def test_a_short_context_shortens_the_windows(tiny_gpt2, limit, length):
    found = windows(load_tokenizer(tiny_gpt2), {"prose": " ".join(tiny.SENTENCES * 40)}, limit)
    assert {len(window.token_ids) for window in found[:-1]} == {length}
    assert {window.scored_from for window in found[1:]} == {min(CONTEXT, length // 4)}


def bert_like(**template):
    made = tokenizers.Tokenizer(models.WordLevel({"[unk]": 0, "[bos]": 1, "[eos]": 2, "a": 3}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[bos]", "[eos]"])
    if template:
        made.post_processor = processors.TemplateProcessing(**template, special_tokens=[("[bos]", 1), ("[eos]", 2)])
    return made


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ({}, ()),
        ({"single": "[bos] $A"}, (1,)),
        ({"single": "[bos] [bos] $A [eos]"}, (1, 1)),
        ({"single": "$A [eos]"}, ()),
    ],
)
def test_the_prefix_is_what_the_tokenizer_puts_before_a_text(tmp_path, template, prefix):
    bert_like(**template).save(str(tmp_path / "tokenizer.json"))
    (window,) = windows(load_tokenizer(tmp_path), {"x": "a a a"})
    assert window == Window("x", (*prefix, 3, 3, 3), len(prefix) or 1)


def test_a_tokenizer_that_changes_the_text_has_no_prefix():
    ids = count(1)

    class Strange:
        def encode(self, text, add_special_tokens):
            return (next(ids), next(ids))

    (window,) = windows(Strange(), {"x": "text"})
    assert len(window.token_ids) == 2


# The texts, and how much work a reference is worth


def test_there_are_texts_of_several_kinds_and_none_that_is_measured_on_is_calibrated_on():
    assert {"code", "dialogue", "prose", "technical"} <= set(quality.held_out()) & set(quality.calibration())
    for kinds in (quality.held_out(), quality.calibration()):
        assert list(kinds) == sorted(kinds)
        assert all(len(text) > 1000 for text in kinds.values())
    assert paragraphs(quality.held_out()) & paragraphs(quality.calibration()) == set()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_share_of_the_text_is_whole_paragraphs_from_its_beginning(share):
    whole, part = quality.held_out(), quality.held_out(share)
    assert list(part) == list(whole)
    for kind, text in part.items():
        assert whole[kind].startswith(text + "\n\n")
        assert share * len(whole[kind]) <= len(text) <= share * len(whole[kind]) + 2000


def paragraphs(kinds):
    """Those that are long enough not to be the same by chance."""
    parts = {part.strip() for text in kinds.values() for part in text.split("\n\n")}
    return {part for part in parts if len(part) > 60}


BYTES = {"float32": np.float32, "bfloat16": np.uint16}


def written(folder, dtype):
    write_model(folder, model_type="llama", vocab_size=8, dtype=dtype)
    save_file({"model.embed_tokens.weight": np.zeros((8, 4096), BYTES[dtype])}, folder / "model.safetensors")
    return inspect_folder(folder, dtype)


@pytest.fixture
def sources(tmp_path):
    return {dtype: written(tmp_path / dtype, dtype) for dtype in BYTES}


def test_a_source_is_scored_in_float32_where_there_is_time_and_memory_for_it(sources, monkeypatch):
    one, other = map(quality.parameters, sources.values())
    assert one == pytest.approx(other, rel=0.02), "they do not depend on the dtype"
    assert {name: quality.reference_dtype(one) for name, one in sources.items()} == dict.fromkeys(sources, "float32")
    expected = {"float32": "float32", "bfloat16": "bfloat16"}
    with monkeypatch.context() as patch:
        patch.setattr(quality, "available_memory", lambda: 0)
        assert {name: quality.reference_dtype(one) for name, one in sources.items()} == expected
    monkeypatch.setattr(quality, "_LARGE", 1)
    assert {name: quality.reference_dtype(one) for name, one in sources.items()} == expected


def test_of_a_large_model_less_text_is_scored(sources, monkeypatch, tmp_path):
    def scored():
        quality.make_reference(sources["float32"], tmp_path)
        return asked["texts"]

    asked = {}
    monkeypatch.setattr(quality, "run_child", lambda module, arguments, **_: asked.update(arguments))
    monkeypatch.setattr(quality, "read_reference", lambda folder: None)
    assert scored() == quality.held_out()
    for large, share in ((quality.parameters(sources["float32"]) / 2, 0.5), (1, 0.1)):
        monkeypatch.setattr(quality, "_LARGE", large)
        assert scored() == quality.held_out(share)
