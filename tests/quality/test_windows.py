"""Windows: each token is scored once, with context before it."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from hfpipe.errors import HFPipeError
from hfpipe.quality.reference import CONTEXT, LENGTH, Window, model_windows, prefix_of, windows
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from tests import tiny

PREFIXES = [(), (-1,), (-1, -2)]
counts = st.lists(st.integers(0, 200), min_size=1, max_size=4)


def cut(counts, **settings):
    """Windows of texts that have so many tokens, each token's id its place in the text."""
    return windows({str(i): "x" * count for i, count in enumerate(counts)}, lambda text: range(len(text)), **settings)


@given(counts, st.sampled_from(PREFIXES), st.integers(2, 64), st.data())
def test_every_token_is_scored_once_after_as_much_context(counts, prefix, room, data):
    context = data.draw(st.integers(0, room - 1))
    first = 0 if prefix else 1
    if max(counts) <= first:
        counts = [*counts, 10]
    found = cut(counts, prefix=prefix, length=room + len(prefix), context=context)
    for kind, count in enumerate(counts):
        of_this = [window for window in found if window.kind == str(kind)]
        assert [token for window in of_this for token in window.targets] == list(range(first, count))
        for window in of_this:
            assert window.token_ids[: len(prefix)] == prefix
            body = window.token_ids[len(prefix) :]
            assert body == tuple(range(body[0], body[-1] + 1))
            assert len(window.token_ids) <= room + len(prefix)
            assert window.scored_from >= 1
            before = window.targets[0] - body[0]
            assert before >= context or body[0] == 0


def test_the_stride_is_what_the_context_leaves():
    found = cut([26], prefix=(-1,), length=11, context=4)
    assert [(window.token_ids[1], window.targets[0], window.token_ids[-1]) for window in found] == [
        (0, 0, 9),
        (6, 10, 15),
        (12, 16, 21),
        (18, 22, 25),
    ]


def test_what_goes_in_and_what_is_asked_for():
    window = Window("x", (5, 6, 7, 8), 2)
    assert window.inputs == (5, 6, 7)
    assert window.targets == (7, 8)


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (0, {}),
        (1, {}),
        (0, {"prefix": (-1,)}),
        (50, {"length": 1, "context": 0}),
        (50, {"length": 8, "context": 8}),
        (50, {"length": 2, "prefix": (-1, -2), "context": 0}),
    ],
)
def test_nothing_to_score_is_an_error(count, settings):
    with pytest.raises(HFPipeError, match="nothing to measure"):
        cut([count], **settings)


def test_no_texts_are_an_error():
    with pytest.raises(HFPipeError, match="nothing to measure"):
        windows({}, list)


@pytest.mark.parametrize(("limit", "length"), [(None, LENGTH), (4096, LENGTH), (LENGTH, LENGTH), (128, 128), (9, 9)])
def test_a_short_context_shortens_the_windows(tiny_gpt2, limit, length):
    found = model_windows(load_tokenizer(tiny_gpt2), {"prose": " ".join(tiny.SENTENCES * 40)}, limit)
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
    tokenizer = load_tokenizer(tmp_path)
    assert prefix_of(tokenizer) == prefix
    (window,) = model_windows(tokenizer, {"x": "a a a"})
    assert window == Window("x", (*prefix, 3, 3, 3), len(prefix) or 1)


def test_a_tokenizer_that_changes_the_text_has_no_prefix():
    class Strange(Tokenizer):
        def __init__(self):
            pass

        def encode(self, text, add_special_tokens):
            return (7, 8) if add_special_tokens else (1,)

    assert prefix_of(Strange()) == ()
