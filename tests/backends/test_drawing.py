"""A batch of tokens drawn at once: what transformers' own processors leave, each row as if it were alone."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from hfpipe.backends.drawing import draw, penalize
from hfpipe.types import Sampling

few = settings(max_examples=60, deadline=None)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)


def random(seed, *shape):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(np.float32)


def possible(logits, one, count=4000):
    """The share of each token over evenly spaced numbers, which are asked for in one batch."""
    numbers = (np.arange(count) + 0.5) / count
    drawn = draw(np.tile(logits, (count, 1)), [one] * count, numbers.tolist())
    found, counts = np.unique(drawn, return_counts=True)
    return dict(zip(found.tolist(), (counts / count).tolist(), strict=True))


@few
@given(st.integers(0, 10_000), samplings)
def test_each_token_is_drawn_as_often_as_transformers_has_it(seed, one):
    logits = random(seed, 30)
    wanted = [
        (one.temperature > 0, theirs.TemperatureLogitsWarper, one.temperature),
        (one.temperature > 0 and one.top_k > 0, theirs.TopKLogitsWarper, one.top_k),
        (one.temperature > 0 and one.top_p < 1, theirs.TopPLogitsWarper, one.top_p),
        (one.temperature > 0 and one.min_p > 0, theirs.MinPLogitsWarper, one.min_p),
    ]
    processors = theirs.LogitsProcessorList(kind(value) for applies, kind, value in wanted if applies)
    scores = processors(torch.zeros(1, 1, dtype=torch.int64), torch.from_numpy(logits)[None])[0]
    if one.temperature == 0:
        assert set(possible(logits, one, 1)) == {int(scores.argmax())}
        return
    found = possible(logits, one)
    for token, share in enumerate(scores.softmax(dim=-1).tolist()):
        assert found.get(token, 0) == pytest.approx(share, abs=1 / 4000 + 1e-6)


@few
@given(st.integers(0, 10_000), st.lists(st.integers(0, 29), min_size=1, max_size=5), st.sampled_from([0.7, 1.3, 9.0]))
def test_the_penalty_is_that_of_transformers(seed, tokens, penalty):
    logits = random(seed, 30)
    processor = theirs.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([tokens]), torch.from_numpy(logits.copy())[None])[0]
    penalize(logits, tokens, penalty)
    assert logits.tolist() == expected.tolist()


@few
@example(0, [Sampling(0.3, 0.05, 50), Sampling(0.3, 0.5)], 0.2)
@given(st.integers(0, 10_000), st.lists(samplings, min_size=2, max_size=5), st.sampled_from([0.2, 7.0]))
def test_a_row_is_what_it_is_alone(seed, rows, width):
    """Also of flat logits, where more than the first tokens are looked at, and with many that are equal."""
    logits = (random(seed, len(rows), 3000) * width).round(1)
    numbers = np.random.default_rng(seed).random(len(rows)).tolist()
    alone = [draw(logits[i : i + 1], [row], numbers[i : i + 1]) for i, row in enumerate(rows)]
    assert draw(logits, rows, numbers) == [token for (token,) in alone]


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_the_ends_of_the_numbers_are_tokens_that_are_possible(number):
    logits = np.array([0.0, 5.0, -9.0, 4.0, 3.0], np.float32)
    for one in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.9), Sampling(1.0, min_p=0.3), Sampling(1.0)):
        (token,) = draw(logits[None], [one], [number])
        assert token in possible(logits, one)


def test_logits_are_left_as_they_are():
    logits = random(0, 2, 9)
    before = logits.copy()
    draw(logits, [Sampling(0.5, 0.5, 3, 0.1)] * 2, [0.5, 0.1])
    assert (logits == before).all()


def test_of_a_usual_distribution_only_the_first_tokens_are_looked_at(monkeypatch):
    logits = np.zeros((1, 50_000), np.float32)
    logits[0, :20] = 15.0
    looked_at, partition = [], np.argpartition
    monkeypatch.setattr(np, "argpartition", lambda a, kth, **_: looked_at.append(kth) or partition(a, kth, axis=1))
    draw(logits, [Sampling(1.0, top_p=0.9)], [0.5])
    assert looked_at == [50_000 - 64]
