"""build_once: one builder, no half-made folder, whatever happens to the process."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hfpipe import store as cache
from hfpipe.errors import HFPipeError
from hfpipe.store import build_once, cache_root, cached, discard


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def start(code: str, **options) -> subprocess.Popen:
    script = f"import sys, time\nfrom pathlib import Path\nfrom hfpipe.store import build_once\n{code}"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, **options)


SLOW = """
def make(folder):
    (folder / "file").write_text("whole")
    print("building", flush=True)
    time.sleep({seconds})
print(build_once("kind", "key", make))
"""


def test_the_root_is_the_variable_or_the_users_cache(root, monkeypatch):
    assert cache_root() == root
    monkeypatch.setenv("HFPIPE_CACHE", "~/there")
    assert cache_root() == Path.home() / "there"
    monkeypatch.delenv("HFPIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root().name == "hfpipe"


def test_a_relative_root_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFPIPE_CACHE", "here")
    assert cache_root() == tmp_path / "here"


def test_builds_once(root):
    calls = []

    def make(folder):
        calls.append(folder)
        write(folder)

    assert cached("kind", "key") is None
    place = build_once("kind", "key", make)
    assert place == root / "kind" / "key" == build_once("kind", "key", make) == cached("kind", "key")
    assert (place / "file").read_text() == "whole"
    assert len(calls) == 1
    assert calls[0] != place
    assert names(root / "kind") == ["key"]


def test_discard(root):
    build_once("kind", "key", write)
    discard("kind", "key")
    discard("kind", "never built")
    assert cached("kind", "key") is None


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), HFPipeError("no")])
def test_a_failure_leaves_nothing(root, error):
    def make(folder):
        write(folder)
        raise error

    with pytest.raises(type(error)):
        build_once("kind", "key", make)
    assert names(root / "kind") == []
    assert build_once("kind", "key", write).is_dir()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "Cannot write"),
        (errno.EROFS, "Cannot write"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(root, number, message):
    def make(folder):
        raise OSError(number, os.strerror(number))

    with pytest.raises(HFPipeError, match=message) as caught:
        build_once("kind", "key", make)
    assert "\n" not in caught.value.message
    assert "HFPIPE_CACHE" in caught.value.hint
    assert names(root / "kind") == []


def test_other_errors_of_the_system_pass_through():
    def make(folder):
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        build_once("kind", "key", make)


def test_a_root_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / place))
        with pytest.raises(HFPipeError, match="Cannot write"):
            build_once("kind", "key", write)


@pytest.fixture
def nobody():
    """Root may write anywhere: the test runs with the rights of another user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.usefixtures("nobody")
def test_a_root_that_may_not_be_written():
    with pytest.raises(HFPipeError, match="Permission denied"):
        build_once("kind", "key", write)


@pytest.mark.parametrize("key", ["", "..", ".hidden", "a/b", "../a"])
def test_a_key_is_one_name(key):
    with pytest.raises(ValueError, match="not a name"):
        build_once("kind", key, write)


def test_files_can_be_read_by_whom_the_folder_can(root):
    def make(folder):
        (folder / "file").touch(mode=0o600)

    old = os.umask(0o022)
    try:
        place = build_once("kind", "key", make)
    finally:
        os.umask(old)
    assert (place / "file").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_run_left_is_removed_by_the_next(root):
    process = start(SLOW.format(seconds=60))
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.communicate()
    assert len(names(root / "kind")) == 1
    assert cached("kind", "key") is None
    build_once("kind", "another", write)
    assert names(root / "kind") == ["another"]


def test_what_a_living_run_builds_is_left_alone(root):
    process = start(SLOW.format(seconds=1))
    assert process.stdout.readline() == "building\n"
    build_once("kind", "another", write)
    assert len(names(root / "kind")) == 2
    output, _ = process.communicate()
    assert process.returncode == 0
    assert Path(output.strip(), "file").read_text() == "whole"


def test_one_builds_while_the_other_waits(root):
    process = start(SLOW.format(seconds=0.5))
    assert process.stdout.readline() == "building\n"
    notes = []

    class Notes:
        def note(self, text):
            notes.append(text)

        def progress(self, task, done, total):
            raise AssertionError

    def make(folder):
        raise AssertionError("built twice")

    assert build_once("kind", "key", make, reporter=Notes()) == root / "kind" / "key"
    process.communicate()
    assert notes == ["Waiting for another hfpipe that is preparing key."]


def test_threads_build_once_too():
    calls = []

    def make(folder):
        calls.append(folder)
        time.sleep(0.05)

    threads = [threading.Thread(target=build_once, args=("kind", "key", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_waiting_can_be_interrupted(root):
    builder = start(SLOW.format(seconds=60))
    builder.stdout.readline()
    waiter = start('print("waiting", flush=True)\nbuild_once("kind", "key", print)', stderr=subprocess.PIPE)
    waiter.stdout.readline()
    time.sleep(0.3)
    begun = time.monotonic()
    waiter.send_signal(signal.SIGINT)
    _, error = waiter.communicate(timeout=10)
    assert "KeyboardInterrupt" in error
    assert time.monotonic() - begun < 2
    builder.kill()
    builder.communicate()


def test_what_stands_is_found_without_a_lock(root):
    build_once("kind", "key", write)
    code = 'print(build_once("kind", "key", None), "filelock" in sys.modules)'
    output, _ = start(code).communicate()
    assert output.split() == [str(root / "kind" / "key"), "False"]
    begun = time.perf_counter()
    for _ in range(100):
        build_once("kind", "key", write)
    assert (time.perf_counter() - begun) / 100 < 0.002


def test_a_folder_counts_only_after_its_bytes_are_on_disk(root, monkeypatch):
    order = []
    monkeypatch.setattr(cache.os, "fsync", lambda _: order.append(cached("kind", "key")))
    build_once("kind", "key", write)
    assert order == [None]
