"""A model runs, too, where what is compiled cannot be kept."""

import errno
import os

import pytest

from hfpipe import backends, models
from hfpipe.backends.openvino import loading
from hfpipe.types import LoadOptions, Silent, TokenRequest


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def fail(number):
    def cache_folder(*_, **more):
        raise OSError(number, os.strerror(number), "/cache/openvino-compiled")

    return cache_folder


@pytest.mark.parametrize(
    ("number", "note"),
    [
        (errno.EROFS, "Cannot write to /cache/openvino-compiled: Read-only file system. "),
        (errno.EACCES, "Cannot write to /cache/openvino-compiled: Permission denied. "),
        (errno.ENOSPC, "is full. "),
    ],
)
def test_a_place_that_cannot_be_written_is_left_out_and_said(monkeypatch, tmp_path, number, note):
    monkeypatch.setattr(loading.store, "cache_folder", fail(number))
    reporter = Notes()
    assert loading.with_compile_cache(tmp_path, "CPU", {"NUM_STREAMS": "1"}, reporter) == {"NUM_STREAMS": "1"}
    (said,) = reporter.notes
    assert f"{note}The model is compiled at each start, which takes longer. " in said
    assert "HFPIPE_CACHE" in said


def test_other_errors_are_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(loading.store, "cache_folder", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        loading.with_compile_cache(tmp_path, "CPU", {}, Silent())


def test_the_users_own_place_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(loading.store, "cache_folder", fail(errno.EROFS))
    reporter = Notes()
    assert loading.with_compile_cache(tmp_path, "CPU", {"CACHE_DIR": "mine"}, reporter) == {"CACHE_DIR": "mine"}
    assert reporter.notes == []


def test_the_model_runs(tiny_llama_ov, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "file" / "cache"))
    reporter, source = Notes(), models.resolve(str(tiny_llama_ov))
    with backends.load("openvino", source, LoadOptions(batch_size=1), reporter) as backend:
        events = list(backend.stream([TokenRequest("a", (1, 2, 3), 4)]))
    assert sum(len(event.token_ids) for event in events) > 0
    (said,) = [note for note in reporter.notes if "is compiled at each start" in note]
    assert said.startswith(f"Cannot write to {tmp_path / 'file'}")
