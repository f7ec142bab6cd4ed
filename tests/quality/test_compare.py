"""The comparison of two models, against plain computations in float64."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.errors import BackendError, HFPipeError, UnsupportedModel
from hfpipe.quality import compare as module
from hfpipe.quality.compare import Window, compare, log_softmax, read_reference, row_chunks, write_reference

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=30, deadline=None)


def window(targets, kind="prose"):
    return Window(kind, (0, *map(int, targets)), 1)


def compared(*given):
    """Of windows, each with its log-probabilities and a candidate's logits."""
    reference = SimpleNamespace(scored=lambda: [(window, theirs) for window, theirs, _ in given])
    return compare(reference, [ours for *_, ours in given])


def quality(reference, logits, targets):
    return compared((window(targets), reference, logits))


def exact(logits):
    """Log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@given(seeds, st.integers(1, 40), st.integers(2, 300), st.floats(0, 20))
@few
def test_equal_models_differ_in_nothing(seed, rows, width, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (rows, width)).astype(np.float32)
    found = quality(logits, logits, rng.integers(0, width, rows))
    assert (found.tokens, found.vocabulary) == (rows, width)
    assert (found.mean_kl, found.same_top, found.perplexity_change) == (0, 1, 0)
    assert found.perplexity == found.reference_perplexity
    assert found.perplexity_change_error == (0 if rows > 1 else None)


@given(seeds, st.integers(2, 40), st.integers(2, 300), st.floats(0.1, 8), st.floats(0, 3))
@few
def test_equals_a_plain_computation(seed, rows, width, scale, noise):
    rng = np.random.default_rng(seed)
    theirs = rng.normal(0, scale, (rows, width)).astype(np.float32)
    ours = (theirs + rng.normal(0, noise, theirs.shape)).astype(np.float32)
    targets = rng.integers(0, width, rows)
    found = quality(log_softmax(theirs), ours, targets)
    p, q = exact(theirs), exact(ours)
    kl = (np.exp(p) * (p - q)).sum(axis=1).mean()
    gain = (p - q)[np.arange(rows), targets]
    ratio = math.exp(gain.mean())
    assert found.mean_kl == pytest.approx(kl, rel=1e-3, abs=2e-6)
    # A near tie may fall the other way in float32.
    assert found.same_top == pytest.approx((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean(), abs=1.01 / rows)
    assert found.perplexity == pytest.approx(math.exp(-q[np.arange(rows), targets].mean()), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(math.exp(-p[np.arange(rows), targets].mean()), rel=1e-5)
    assert found.perplexity_change == pytest.approx(ratio - 1, rel=1e-4, abs=1e-5)
    error = ratio * gain.std(ddof=1) / math.sqrt(rows)
    assert found.perplexity_change_error == pytest.approx(error, rel=1e-4, abs=1e-5)


def test_kinds_are_told_apart_and_add_up():
    rng = np.random.default_rng(2)
    given = []
    for kind, noise in [("prose", 0.1), ("code", 1.0), ("prose", 0.1)]:
        theirs = rng.normal(0, 2, (20, 50))
        given.append((window(rng.integers(0, 50, 20), kind), theirs, theirs + rng.normal(0, noise, theirs.shape)))
    whole = compared(*given)
    assert list(whole.kinds) == ["prose", "code"]
    for kind, change in whole.kinds.items():
        alone = compared(*(one for one in given if one[0].kind == kind))
        assert all(getattr(alone, name) == getattr(change, name) for name in change.__slots__)
    assert whole.kinds["prose"].mean_kl < whole.mean_kl < whole.kinds["code"].mean_kl
    assert whole.tokens == 60
    assert whole.mean_kl == pytest.approx((whole.kinds["prose"].mean_kl * 2 + whole.kinds["code"].mean_kl) / 3)


def test_the_result_is_json_also_of_a_ruined_model():
    found = json.loads(json.dumps(quality(np.zeros((1, 4)), np.ones((1, 4)), [2]).as_dict(), allow_nan=False))
    assert found["kinds"]["prose"]["perplexity"] == pytest.approx(4)
    assert found["perplexity_change_error"] is None
    ruined = quality(np.zeros((3, 4)), np.array([[3e38, 0, -3e38, -np.inf]] * 3), [3, 3, 2])
    assert json.dumps(ruined.as_dict(), allow_nan=False)
    assert ruined.mean_kl > 1000
    assert ruined.perplexity > 1e300


# Vocabularies


def test_neither_padding_nor_how_many_rows_are_worked_on_at_once_counts(monkeypatch):
    rng = np.random.default_rng(3)
    theirs, targets = rng.normal(0, 2, (10, 20)), rng.integers(0, 20, 10)
    ours = theirs + rng.normal(0, 0.1, theirs.shape)
    padding = rng.normal(0, 2, (10, 4))
    plain = quality(log_softmax(theirs), ours, targets)
    assert plain.vocabulary == 20
    for rows_at_once in (1, 3, 64):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CHUNK", 20 * rows_at_once)
            assert quality(log_softmax(theirs), ours, targets) == plain
    assert quality(log_softmax(theirs), np.hstack([ours, padding]), targets) == plain
    padded = quality(log_softmax(np.hstack([theirs, padding])), ours, targets)
    assert padded.vocabulary == 20
    assert padded.mean_kl == pytest.approx(plain.mean_kl, rel=1e-3)
    assert padded.reference_perplexity == pytest.approx(plain.reference_perplexity)


@pytest.mark.parametrize("ids", [(0, 1, 9), (9, 1, 1)])
def test_a_token_that_one_model_lacks(ids):
    """Scored or not: beyond its vocabulary a model reads anything."""
    with pytest.raises(UnsupportedModel, match="has the token 9, and one of them has 9 tokens"):
        compared((Window("prose", ids, 1), np.zeros((2, 9)), np.zeros((2, 12))))


@given(st.integers(0, 2000), st.integers(1, 2**20))
def test_chunks_are_small_and_cover_all_rows(rows, width):
    chunks = list(row_chunks(rows, width))
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    assert all((chunk.stop - chunk.start) * width <= max(module._CHUNK, width) for chunk in chunks)


# Log-probabilities


@given(seeds, st.sampled_from([np.float16, np.float32, np.float64]), st.floats(0, 100))
@few
def test_log_softmax(seed, dtype, scale):
    logits = np.random.default_rng(seed).normal(0, scale, (5, 40)).astype(dtype)
    before = logits.copy()
    found = log_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact(logits), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_a_token_that_is_ruled_out_keeps_a_finite_logarithm():
    found = log_softmax(np.array([[0.0, -np.inf, -1e30]]))
    assert found[0, 0] == 0
    assert np.isfinite(found.astype(np.float16)).all()


@pytest.mark.parametrize("row", [[0, np.nan], [np.nan, np.nan], [np.inf, 0], [-np.inf, -np.inf]])
def test_logits_that_are_no_numbers(row):
    with pytest.raises(BackendError, match="NaN or infinity"):
        log_softmax(np.array([[0, 0], row], dtype=np.float32))


# The reference on disk


WINDOWS = [Window("code", tuple(range(12)), 1), Window("prose", tuple(range(20)), 5)]
WIDTH = 300


def random_logits(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, (len(window.targets), WIDTH)).astype(np.float32) for window in WINDOWS]


def test_what_is_written_is_read(tmp_path):
    logits = random_logits()
    written = write_reference(tmp_path, WINDOWS, iter(logits), dtype="float32")
    read = read_reference(tmp_path)
    assert read == written
    assert (read.windows, read.vocabulary, read.dtype, read.tokens) == (tuple(WINDOWS), WIDTH, "float32", 26)
    for (window, rows), expected, given_ in zip(read.scored(), logits, WINDOWS, strict=True):
        assert window == given_
        assert rows.dtype == np.float16
        np.testing.assert_array_equal(rows, log_softmax(expected).astype(np.float16))
    assert max(file.stat().st_size for file in tmp_path.iterdir()) == 26 * WIDTH * 2


@given(seeds, st.floats(0.1, 5), st.floats(0, 0.5))
@few
def test_rounding_hardly_changes_a_divergence(tmp_path_factory, seed, scale, noise):
    """Against a model as good as equal, and against others, 1e-4 nats at most. Only of probabilities that are all but
    equal, as no trained model gives, are the logarithms all rounded the same way, by more."""
    logits = random_logits(seed, scale)
    rng = np.random.default_rng(seed)
    ours = [theirs + rng.normal(0, noise, theirs.shape) for theirs in logits]
    reference = write_reference(tmp_path_factory.mktemp("reference"), WINDOWS, logits, dtype="float32")
    before = compared(*zip(WINDOWS, map(log_softmax, logits), ours, strict=True))
    after = compare(reference, ours)
    assert abs(after.mean_kl - before.mean_kl) < 1e-4
    assert after.reference_perplexity == pytest.approx(before.reference_perplexity, rel=1e-2)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "log_probabilities.f16").symlink_to("/dev/full")
    with pytest.raises(HFPipeError, match=f"^The disk of {tmp_path} is full"):
        write_reference(tmp_path, WINDOWS, random_logits(), dtype="float32")
    assert not (tmp_path / "reference.json").exists()
    (tmp_path / "file").touch()
    with pytest.raises(HFPipeError, match="Cannot write to"):
        write_reference(tmp_path / "file", WINDOWS, random_logits(), dtype="float32")
