"""The reference on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.errors import HFPipeError
from hfpipe.quality.compare import Comparison, log_softmax
from hfpipe.quality.reference import Window, read_reference, write_reference

WINDOWS = [Window("code", tuple(range(12)), 1), Window("prose", tuple(range(20)), 5)]
WIDTH = 300


def random_logits(seed=0, scale=3.0, windows=WINDOWS):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, (len(window.targets), WIDTH)).astype(np.float32) for window in windows]


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


def test_its_size_is_known_before(tmp_path):
    write_reference(tmp_path, WINDOWS, random_logits(), dtype="float32")
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert max(sizes) == 26 * WIDTH * 2
    assert sum(sizes) - max(sizes) < 5000


@given(st.integers(0, 2**32 - 1), st.floats(0, 5), st.floats(0, 0.5))
@settings(max_examples=30, deadline=None)
def test_rounding_hardly_changes_a_divergence(tmp_path_factory, seed, scale, noise):
    """Against a model as good as equal, and against others, 1e-4 nats at most."""
    folder = tmp_path_factory.mktemp("reference")
    logits = random_logits(seed, scale)
    rng = np.random.default_rng(seed)
    exact, rounded = Comparison(), Comparison()
    reference = write_reference(folder, WINDOWS, logits, dtype="float32")
    for (window, rows), theirs in zip(reference.scored(), logits, strict=True):
        ours = theirs + rng.normal(0, noise, theirs.shape)
        exact.add(window, log_softmax(theirs), ours)
        rounded.add(window, rows, ours)
    before, after = exact.quality(), rounded.quality()
    assert abs(after.mean_kl - before.mean_kl) < 1e-4
    assert after.reference_perplexity == pytest.approx(before.reference_perplexity, rel=1e-2)


def test_a_full_disk(tmp_path):
    (tmp_path / "log_probabilities.f16").symlink_to("/dev/full")
    with pytest.raises(HFPipeError, match=f"^The disk of {tmp_path} is full"):
        write_reference(tmp_path, WINDOWS, random_logits(), dtype="float32")
    assert not (tmp_path / "reference.json").exists()


def test_a_folder_that_may_not_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HFPipeError, match="Cannot write to"):
        write_reference(tmp_path / "file", WINDOWS, random_logits(), dtype="float32")
