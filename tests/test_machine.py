"""What this machine has left, within the limits that a container sets, and what a process has taken of it."""

import shutil
import sys
from types import SimpleNamespace

import psutil
import pytest

from hfpipe import machine
from hfpipe.machine import available_memory, free_disk, peak_gpu_memory, peak_memory


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Pretends that this process is in the cgroup `path` of a version, whose mount shows the tree from `root` on.

    `files` are those of the mount: {"a/memory.max": "900"}.
    """
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "affinity", lambda: 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))

    def pretend(version, path="/", files=None, *, root="/", controller="memory"):
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", f"rw,{controller},{controller}acct")
        mount = tmp_path / "mount"
        (tmp_path / "mountinfo").write_text(
            f"30 25 0:27 / /proc rw - proc proc rw\n31 25 0:28 {root} {mount} rw shared:9 - {kind} cgroup {options}\n"
        )
        own = f"0::{path}" if version == 2 else f"4:{controller},{controller}acct:{path}"
        (tmp_path / "cgroup").write_text(f"9:name=systemd:/elsewhere\n{own}\n")
        for name, text in (files or {}).items():
            (mount / name).parent.mkdir(parents=True, exist_ok=True)
            (mount / name).write_text(text)

    return pretend


MEMORY = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


@pytest.mark.parametrize("version", MEMORY)
@pytest.mark.parametrize(
    ("limit", "used", "stat", "available"),
    [
        (None, None, None, 1000),
        ("max\n", "300\n", None, 1000),
        ("900\n", "300\n", None, 600),
        ("9223372036854771712\n", "300\n", None, 1000),
        ("900\n", "950\n", None, 0),
        ("900\n", None, None, 1000),
        ("", "", None, 1000),
        ("900\n", "800\n", "anon 100\ninactive_file 150\nactive_file 50\n", 250),
        ("900\n", "800\n", "inactive_file 10\ntotal_inactive_file 150\n", 250),
        ("900\n", "800\n", "anon 100\n", 100),
        ("900\n", "800\n", "", 100),
    ],
)
def test_memory_is_what_the_cgroup_leaves(cgroups, version, limit, used, stat, available):
    """Files that it caches count as available."""
    texts = zip((*MEMORY[version], "memory.stat"), (limit, used, stat), strict=True)
    cgroups(version, "/", {name: text for name, text in texts if text is not None})
    assert available_memory() == available


@pytest.mark.parametrize("version", MEMORY)
@pytest.mark.parametrize(
    ("limited", "path", "root"),
    [
        ("user.slice/run-1.scope", "/user.slice/run-1.scope", "/"),
        ("user.slice", "/user.slice/run-1.scope", "/"),
        ("", "/user.slice/run-1.scope", "/"),
        ("", "/docker/abc", "/docker/abc"),
        ("inner", "/docker/abc/inner", "/docker/abc"),
        ("", "/docker/abc", "/"),
        ("", "/docker/abc", "/kubepods/other"),
        ("", "/../../other", "/"),
    ],
)
def test_a_limit_on_a_nested_cgroup_counts(cgroups, version, limited, path, root):
    """That of the process's own cgroup, and of each around it, up to the root that it sees."""
    limit, used = (f"{limited}/{name}".lstrip("/") for name in MEMORY[version])
    cgroups(version, path, {limit: "900", used: "300", "stranger/" + MEMORY[version][0]: "1"}, root=root)
    assert available_memory() == 600


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        (2, {"a/cpu.max": "50000 100000\n"}, 1),
        (2, {"cpu.max": "150000 100000\n", "a/cpu.max": "max 100000\n"}, 2),
        (2, {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
        (2, {"a/cpu.max": "max 100000"}, 4),
        (2, {"a/cpu.max": "800000 100000"}, 4),
        (2, {"a/cpu.max": "garbage"}, 4),
        (1, {"a/cpu.cfs_quota_us": "50000", "a/cpu.cfs_period_us": "100000"}, 1),
        (1, {"a/cpu.cfs_quota_us": "-1", "a/cpu.cfs_period_us": "100000"}, 4),
        (1, {"a/cpu.cfs_quota_us": "250000"}, 4),
        (1, {}, 4),
    ],
)
def test_as_many_threads_as_the_quota_rounded_up(cgroups, version, files, expected):
    cgroups(version, "/a/b", files, controller="cpu")
    assert machine.processors() == expected


def test_a_machine_without_cgroups(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert machine.processors() == machine.affinity() == len(psutil.Process().cpu_affinity())
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_the_disk_of_a_missing_folder_is_that_of_the_one_above_it(tmp_path):
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


def test_the_memory_of_a_gpu_is_that_in_use(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_gpu_memory() is None
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 5)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert peak_gpu_memory() == 5
    cuda.is_initialized = lambda: False
    assert peak_gpu_memory() is None
