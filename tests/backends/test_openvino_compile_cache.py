"""What is compiled is kept, by all that it depends on; a model runs, too, where it cannot be kept."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import loading
from hfpipe.errors import BackendError
from hfpipe.types import LoadOptions, Silent, TokenRequest


def load(folder: Path, **options: object) -> Backend:
    return backends.load("openvino", models.resolve(str(folder)), LoadOptions(batch_size=1, **options))


def ids(backend: Backend) -> list[int]:
    return [token for event in backend.stream([TokenRequest("a", (20, 30, 40), 5)]) for token in event.token_ids]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled_in(folder: Path, device: str, properties: dict) -> Path:
    return Path(loading.with_compile_cache(folder, device, properties, Silent())["CACHE_DIR"])


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("openvino-compiled/*/*.blob"))


def test_one_answer_at_a_time_compiles_once(cache, tiny_llama_ov):
    with load(tiny_llama_ov) as backend:
        first = ids(backend)
    made = blobs(cache)
    assert made
    times = [blob.stat().st_mtime_ns for blob in made]
    with load(tiny_llama_ov) as backend:
        assert ids(backend) == first
    assert blobs(cache) == made
    assert [blob.stat().st_mtime_ns for blob in made] == times


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    ],
    ids=["half", "without its end", "empty", "garbage", "half of zeros"],
)
def test_a_spoiled_blob_is_compiled_again(cache, tiny_llama_ov, spoil):
    with load(tiny_llama_ov) as backend:
        first = ids(backend)
    for blob in blobs(cache):
        blob.write_bytes(spoil(blob.read_bytes()))
    for _ in range(2):
        with load(tiny_llama_ov) as backend:
            assert ids(backend) == first


def test_a_compiled_model_is_kept_by_all_that_it_depends_on(cache, tiny_llama_ov, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    places = [compiled_in(tiny_llama_ov, "CPU", {})]
    assert compiled_in(tiny_llama_ov, "CPU", {}) == places[0]
    places.append(compiled_in(tiny_llama_ov, "AUTO", {}))
    places.append(compiled_in(tiny_llama_ov, "CPU", {"NUM_STREAMS": 1}))
    with (copy / "openvino_model.bin").open("r+b") as weights:
        weights.write(b"1")
    places.append(compiled_in(copy, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "ANOTHER")
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setattr(loading.machine, "processors", lambda: 77)
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    with monkeypatch.context() as patch:
        patch.setattr(loading.ov, "__version__", "another")
        places.append(compiled_in(tiny_llama_ov, "CPU", {}))
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(cache) for place in places)


def test_the_least_used_compiled_models_are_removed(cache, tiny_llama_ov):
    folders = []
    for number in range(loading._KEPT_COMPILE_CACHES + 3):
        folders.append(compiled_in(tiny_llama_ov, "CPU", {"NUMBER": number}))
        os.utime(folders[-1], (number, number))
        # The first is used every time.
        os.utime(compiled_in(tiny_llama_ov, "CPU", {"NUMBER": 0}), (1000 + number, 1000 + number))
    left = {folder for folder in folders if folder.is_dir()}
    assert folders[0] in left
    assert left - {folders[0]} == set(folders[-loading._KEPT_COMPILE_CACHES + 1 :])


def test_a_cache_dir_of_the_users_own(cache, tmp_path, tiny_llama_ov):
    with load(tiny_llama_ov, ov_config={"CACHE_DIR": str(tmp_path / "own")}) as backend:
        assert len(ids(backend)) == 5
    assert list((tmp_path / "own").glob("*.blob"))
    assert not blobs(cache)


def test_a_cache_dir_that_cannot_be_made(tiny_llama_ov):
    with pytest.raises(BackendError, match="/proc/nowhere"):
        load(tiny_llama_ov, ov_config={"CACHE_DIR": "/proc/nowhere"})


# A cache that cannot be written


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
