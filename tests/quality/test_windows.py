"""Windows: each token is scored once, with context before it."""

from itertools import count

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from hfpipe.errors import HFPipeError
from hfpipe.quality.compare import CONTEXT, LENGTH, Window, windows
from hfpipe.text.tokenizer import load_tokenizer
from tests import tiny

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
    found = cut([26], 17, (-1,))
    assert [(window.token_ids[1], window.targets[0], window.token_ids[-1]) for window in found] == [
        (0, 0, 15),
        (12, 16, 25),
    ]


def test_what_goes_in_and_what_is_asked_for():
    window = Window("x", (5, 6, 7, 8), 2)
    assert window.inputs == (5, 6, 7)
    assert window.targets == (7, 8)


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
