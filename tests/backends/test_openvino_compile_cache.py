"""What is compiled is kept, by all that it depends on; a model runs, too, where it cannot be kept."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from hfpipe.backends.openvino import loading
from hfpipe.errors import BackendError
from hfpipe.types import Silent, TokenRequest
from tests.backends.running import answers, load
from tests.recorder import Recorder


def ids(folder: Path, reporter: Recorder | None = None, **options: object) -> list[int]:
    with load("openvino", folder, reporter, batch_size=1, **options) as backend:
        return answers(backend, [TokenRequest("a", (20, 30, 40), 5)])["a"]


def compiled_in(folder: Path, device: str = "CPU", **properties: object) -> Path:
    return Path(loading.with_compile_cache(folder, device, properties, Silent())["CACHE_DIR"])


def blobs(cache: Path) -> dict[Path, int]:
    return {blob: blob.stat().st_mtime_ns for blob in cache.glob("openvino-compiled/*/*.blob")}


SPOILED = {
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-10],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\xff" * len(data),
    "half of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


def test_one_answer_at_a_time_compiles_once_and_again_where_that_is_spoiled(cache, tiny_llama_ov):
    first = ids(tiny_llama_ov)
    made = blobs(cache)
    assert made
    assert ids(tiny_llama_ov) == first
    assert blobs(cache) == made
    for spoil in SPOILED.values():
        for blob in blobs(cache):
            blob.write_bytes(spoil(blob.read_bytes()))
        assert [ids(tiny_llama_ov), ids(tiny_llama_ov)] == [first, first]


def test_a_compiled_model_is_kept_by_all_that_it_depends_on(cache, tiny_llama_ov, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    with (copy / "openvino_model.bin").open("r+b") as weights:
        weights.write(b"1")
    places = [
        compiled_in(tiny_llama_ov),
        compiled_in(tiny_llama_ov, "AUTO"),
        compiled_in(tiny_llama_ov, NUM_STREAMS=1),
        compiled_in(copy),
    ]
    assert compiled_in(tiny_llama_ov) == places[0]
    for change in (
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "ANOTHER"),
        lambda patch: patch.setattr(loading.machine, "processors", lambda: 77),
        lambda patch: patch.setattr(loading.ov, "__version__", "another"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            places.append(compiled_in(tiny_llama_ov))
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(cache) for place in places)


def test_the_least_used_compiled_models_are_removed(cache, tiny_llama_ov):
    folders = []
    for number in range(loading._KEPT_COMPILE_CACHES + 3):
        folders.append(compiled_in(tiny_llama_ov, NUMBER=number))
        os.utime(folders[-1], (number, number))
        # The first is used every time.
        os.utime(compiled_in(tiny_llama_ov, NUMBER=0), (1000 + number, 1000 + number))
    left = {folder for folder in folders if folder.is_dir()}
    assert left == {folders[0], *folders[-loading._KEPT_COMPILE_CACHES + 1 :]}


def test_a_cache_dir_of_the_users_own(cache, tmp_path, tiny_llama_ov):
    assert len(ids(tiny_llama_ov, ov_config={"CACHE_DIR": str(tmp_path / "own")})) == 5
    assert list((tmp_path / "own").glob("*.blob"))
    assert not blobs(cache)
    with pytest.raises(BackendError, match="/proc/nowhere"):
        ids(tiny_llama_ov, ov_config={"CACHE_DIR": "/proc/nowhere"})


@pytest.mark.parametrize(
    ("number", "note"),
    [
        (errno.EROFS, "Cannot write to /cache/openvino-compiled: Read-only file system. "),
        (errno.EACCES, "Cannot write to /cache/openvino-compiled: Permission denied. "),
        (errno.ENOSPC, "is full. "),
        (errno.EIO, None),
    ],
)
def test_a_place_that_cannot_be_written_is_left_out_and_said(monkeypatch, tmp_path, number, note):
    """Other errors are not hidden."""

    def cache_folder(*_: object, **more: object) -> Path:
        raise OSError(number, os.strerror(number), "/cache/openvino-compiled")

    monkeypatch.setattr(loading.store, "cache_folder", cache_folder)
    reporter, mine = Recorder(), {"CACHE_DIR": "mine"}
    assert loading.with_compile_cache(tmp_path, "CPU", mine, reporter) == mine
    assert reporter.notes == []
    if note is None:
        with pytest.raises(OSError, match="Input/output error"):
            loading.with_compile_cache(tmp_path, "CPU", {}, reporter)
        return
    assert loading.with_compile_cache(tmp_path, "CPU", {"NUM_STREAMS": "1"}, reporter) == {"NUM_STREAMS": "1"}
    (said,) = reporter.notes
    assert f"{note}The model is compiled at each start, which takes longer. " in said
    assert "HFPIPE_CACHE" in said


def test_the_model_runs_without_a_cache(tiny_llama_ov, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "file" / "cache"))
    reporter = Recorder()
    assert len(ids(tiny_llama_ov, reporter)) == 5
    (said,) = [note for note in reporter.notes if "is compiled at each start" in note]
    assert said.startswith(f"Cannot write to {tmp_path / 'file'}")
