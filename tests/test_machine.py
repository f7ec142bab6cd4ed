"""What this machine has left, within the limits that a container sets, and what a process has taken of it."""

import shutil
import sys
from types import SimpleNamespace

import psutil
import pytest

from hfpipe import machine
from hfpipe.machine import available_memory, free_disk, peak_gpu_memory, peak_memory


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Writes the limit and the use of a container, and what that is made of; None leaves the file out."""
    files = tmp_path / "limit", tmp_path / "used", tmp_path / "stat"
    monkeypatch.setattr(machine, "_CGROUPS", [tuple(map(str, files))])

    def write(*texts):
        for path, text in zip(files, texts, strict=True):
            if text is not None:
                path.write_text(text)

    return write


@pytest.fixture
def memory(monkeypatch):
    """A machine with 1000 bytes available."""

    class Memory:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [
        (None, None, 1000),
        ("max\n", "300\n", 1000),
        ("900\n", "300\n", 600),
        ("9223372036854771712\n", "300\n", 1000),
        ("900\n", "950\n", 0),
        ("900\n", None, 1000),
        ("", "", 1000),
    ],
    ids=["none", "max", "limited", "no limit of version 1", "over it", "half", "empty"],
)
def test_memory_is_what_the_container_leaves(cgroup, limit, used, available):
    cgroup(limit, used, None)
    assert available_memory() == available


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("stat", "available"),
    [
        ("anon 100\ninactive_file 150\nactive_file 50\n", 250),
        ("inactive_file 10\ntotal_inactive_file 150\n", 250),
        ("anon 100\n", 100),
        ("", 100),
    ],
    ids=["version 2", "version 1", "no such entry", "empty"],
)
def test_files_that_a_container_caches_are_not_in_the_way(cgroup, stat, available):
    cgroup("900\n", "800\n", stat)
    assert available_memory() == available


def test_the_memory_of_this_machine():
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_the_disk_of_a_folder_that_does_not_stand_is_that_above_it(tmp_path):
    total = shutil.disk_usage(tmp_path).total
    for folder in (tmp_path, tmp_path / "a" / "b"):
        assert 0 < free_disk(folder) <= total


def test_the_most_memory_of_this_process_stays_when_it_is_freed():
    before = psutil.Process().memory_info().rss
    block = bytearray(400_000_000)
    block[::4096] = b"x" * len(block[::4096])
    del block
    # The kernel counts in portions of its own.
    assert peak_memory() > before + 390_000_000


def test_a_gpu_that_is_not_used_has_no_memory_in_use(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_gpu_memory() is None


def test_the_memory_of_a_gpu(monkeypatch):
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 5)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert peak_gpu_memory() == 5
    cuda.is_initialized = lambda: False
    assert peak_gpu_memory() is None
