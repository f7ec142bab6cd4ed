"""What has its final name is whole, whatever happens; one process makes it; the next removes what a killed one left."""

import errno
import fcntl
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hfpipe import store
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.store import Locked, cache_root, cached, entries, identity, lock, making, prune, remove
from tests.recorder import Recorder

build_once = functools.partial(store.build_once, model="m", form="int8")
NAMES = ["out", "*", "[a]", "a?b", "with space", "モデル", "-x", ".hidden", "a.hfpipe-tmp", "[!o]ut", "out.1"]
ERRORS = [RuntimeError("no"), KeyboardInterrupt(), HFPipeError("no")]


@pytest.fixture(autouse=True)
def root(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("root") / "cache"
    monkeypatch.setenv("HFPIPE_CACHE", str(folder))
    return folder


def write(folder: Path, text: str = "whole") -> None:
    (folder / "file").write_text(text)


def write_old(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write(folder, "old")
    return folder


def content(folder: Path) -> str:
    return (folder / "file").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(place: Path, text: str = "new") -> None:
    with making(place, variable="OUTPUT") as work:
        write(work.folder, text)
        (work.scratch / "big").write_text("")
        work.finish()


def start(code: str) -> subprocess.Popen:
    script = f"import os, signal, sys, time\nfrom pathlib import Path\nfrom hfpipe.store import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def maker(place: Path, body: str) -> subprocess.Popen:
    code = f'with making(Path({str(place)!r})) as work:\n    (work.folder / "file").write_text("new")\n    {body}'
    return start(code)


WAIT = "print('working', flush=True); time.sleep(60)"


def working(process: subprocess.Popen) -> subprocess.Popen:
    assert process.stdout.readline() == "working\n", process.stderr.read()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def killed_after_rename(place: Path, number: int) -> None:
    """A process that ends after so many renames of its work."""
    body = (
        "rename, done = Path.rename, []\n"
        "    def last(*paths):\n"
        "        rename(*paths)\n"
        "        done.append(paths)\n"
        f"        if len(done) == {number}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    Path.rename = last\n"
        "    work.finish()"
    )
    process = maker(place, body)
    assert process.wait(timeout=30) == -signal.SIGKILL, process.stderr.read()
    process.communicate()


# Where the cache is


def test_the_root_is_the_variable_or_the_users_cache(root, monkeypatch, tmp_path):
    assert cache_root() == root
    monkeypatch.setenv("HFPIPE_CACHE", "~/there")
    assert cache_root() == Path.home() / "there"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFPIPE_CACHE", "here")
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("HFPIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root() == Path("/somewhere/hfpipe")


@pytest.mark.parametrize("chosen", [None, "~/there"])
def test_a_user_without_a_home(chosen, monkeypatch):
    """Such as a container's, with a number and no entry in the list of users."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HFPIPE_CACHE", chosen or "")
    with pytest.raises(HFPipeError, match="no home folder") as caught:
        cache_root()
    assert caught.value.hint == "Set HFPIPE_CACHE to a folder for it."
    monkeypatch.setenv("HFPIPE_CACHE", "/there")
    assert cache_root() == Path("/there")


def test_a_loop_of_symbolic_links_is_one_line(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(HFPipeError, match=r"Cannot write to .*loop: "):
        make(loop / "out")


# Built once


def test_builds_once(root):
    calls = []

    def fill(folder):
        calls.append(folder)
        write(folder)

    assert cached("kind", "key") is None
    place = build_once("kind", "key", fill)
    assert place == root / "kind" / "key" == build_once("kind", "key", fill) == cached("kind", "key")
    assert content(place) == "whole"
    assert len(calls) == 1
    assert calls[0] != place
    assert names(root / "kind") == ["key"]
    remove(place)
    remove(root / "kind" / "never built")
    assert cached("kind", "key") is None
    assert names(root) == ["kind"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "Cannot write"),
        (errno.EROFS, "Cannot write"),
        (errno.ENAMETOOLONG, "Cannot write"),
        (errno.ECONNRESET, None),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line_and_other_errors_stay_what_they_are(root, number, message):
    def fill(folder):
        raise OSError(number, os.strerror(number))

    with pytest.raises(HFPipeError if message else OSError) as caught:
        build_once("kind", "key", fill)
    if message:
        assert message in caught.value.message
        assert "\n" not in caught.value.message
        assert "HFPIPE_CACHE" in caught.value.hint
    assert not root.exists()


def test_files_can_be_read_by_whom_the_folder_can():
    old = os.umask(0o022)
    try:
        place = build_once("kind", "key", lambda folder: (folder / "file").touch(mode=0o600))
    finally:
        os.umask(old)
    assert (place / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_counts_only_after_its_bytes_are_on_disk(monkeypatch):
    order = []
    monkeypatch.setattr(store.os, "fsync", lambda _: order.append(cached("kind", "key")))
    build_once("kind", "key", write)
    assert set(order) == {None}


# Several processes


def test_one_builds_while_the_other_waits(root):
    code = """
def make(folder):
    (folder / "file").write_text("whole")
    print("working", flush=True)
    time.sleep(0.5)
build_once("kind", "key", make, model="m", form="int8")
"""
    process, notes = working(start(code)), Recorder()
    assert build_once("kind", "key", None, reporter=notes) == root / "kind" / "key"
    process.communicate()
    assert notes.notes == ["Waiting for another hfpipe that is preparing m."]


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path, monkeypatch):
    """Also where many come and go: a file that its holder removes is no lock for those who wait with it."""
    inside, most = [], []
    monkeypatch.setattr(store, "_POLL_S", 0.0001)

    def work():
        for _ in range(20):
            with lock(tmp_path / "lock", wait="waiting"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(most), names(tmp_path)) == (1, 160, [])


def test_waiting_can_be_interrupted(tmp_path):
    with lock(tmp_path / "lock"):
        waiter = start(f"print('working', flush=True)\nwith lock(Path({str(tmp_path / 'lock')!r}), wait='x'): pass")
        working(waiter).send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in waiter.communicate(timeout=10)[1]


# A file system without locks


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_is_one(root, tmp_path):
    build_once("kind", "key", write)
    assert names(root / "kind") == ["key"]
    with lock(tmp_path / "lock"), pytest.raises(Locked), lock(tmp_path / "lock"):
        pass
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_that_of_a_process_that_has_ended_counts_for_nothing(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner, is_held in ((f"{os.uname().nodename} {ended.pid}", False), ("elsewhere 1", True)):
        (tmp_path / "lock-pid").write_text(owner)
        if is_held:
            with pytest.raises(Locked), lock(tmp_path / "lock"):
                pass
        else:
            with lock(tmp_path / "lock"):
                pass


# A place of the user's


@pytest.mark.parametrize("name", NAMES)
def test_what_is_finished_is_alone(tmp_path, name):
    make(tmp_path / name)
    assert names(tmp_path) == [name]
    assert names(tmp_path / name) == ["file"]


@pytest.mark.parametrize("error", ERRORS)
def test_a_failure_leaves_what_was_there(tmp_path, error):
    write_old(tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "new" / "out"):
        with pytest.raises(type(error)), making(place) as work:
            raise write(work.folder) or error
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == "old"


def test_an_old_one_is_replaced_whole(tmp_path):
    (write_old(tmp_path / "out") / "more").write_text("")
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]
    assert content(tmp_path / "out") == "new"


@pytest.mark.parametrize("failing", ["the check", "the last rename"])
def test_where_the_end_fails_the_old_one_stays(tmp_path, monkeypatch, failing):
    write_old(tmp_path / "out")
    rename = Path.rename

    def fail(*_):
        raise KeyboardInterrupt

    def fail_on_the_new_one(self, target):
        return fail() if self.parent.name == "new" else rename(self, target)

    if failing == "the last rename":
        monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(KeyboardInterrupt), making(tmp_path / "out") as work:
        work.finish(fail if failing == "the check" else None)
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == "old"


def test_killed_runs_of_other_names_leave_nothing_to_the_next(tmp_path):
    for name in NAMES:
        (tmp_path / f".{name}.hfpipe-tmp" / "new").mkdir(parents=True)
        (tmp_path / f".{name}.hfpipe-lock").touch()
    (tmp_path / ".mine").mkdir()
    (tmp_path / ".hfpipe-tmp").mkdir()
    make(tmp_path / "another")
    assert names(tmp_path) == [".hfpipe-tmp", ".mine", "another"]


@pytest.mark.parametrize(("renames", "kept"), [(1, ["out"]), (3, ["moved"])])
def test_killed_before_the_last_rename_the_old_one_comes_back_and_after_it_never(tmp_path, renames, kept):
    place = write_old(tmp_path / "out")
    killed_after_rename(place, renames)
    assert place.exists() == (renames == 3)
    if renames == 3:
        place.rename(tmp_path / "moved")
    store.remove_leftovers(tmp_path)
    assert names(tmp_path) == kept
    assert content(tmp_path / kept[0]) == ("new" if renames == 3 else "old")


def test_another_process_at_work_is_not_disturbed(tmp_path):
    place = tmp_path / "out"
    process = working(maker(place, WAIT))
    before = names(tmp_path)
    with pytest.raises(Locked):
        make(place)
    store.remove_leftovers(tmp_path)
    assert names(tmp_path) == before
    make(tmp_path / "another")
    kill(process)
    make(place)
    assert names(tmp_path) == ["another", "out"]


def test_ctrl_c_removes_what_was_begun(tmp_path):
    process = working(maker(tmp_path / "deep" / "out", WAIT))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert names(tmp_path) == []


def test_folders_above_stay_with_what_is_in_them(tmp_path):
    make(tmp_path / "a" / "b" / "out")
    with pytest.raises(HFPipeError), making(tmp_path / "a" / "c" / "d" / "out"):
        raise HFPipeError("failed")
    assert names(tmp_path / "a") == ["b"]
    with making(tmp_path / "a" / "e" / "out"):
        (tmp_path / "a" / "e" / "mine").write_text("")
    assert names(tmp_path / "a" / "e") == ["mine"]


def test_the_room_that_a_disk_has(tmp_path):
    store.require_space(tmp_path / "a", 1, "The download")
    with pytest.raises(
        HFPipeError, match=r"(?m)^The download needs 1000000000\.0 GB, and the disk of .* left\.$"
    ) as caught:
        store.require_space(tmp_path / "a", 10**18, "The download", variable="HF_HOME")
    assert caught.value.hint == "Free some space, or set HF_HOME to another folder."


# What the cache holds


def fill_cache(count, size=1000, hours=2.0):
    """Entries of `size` bytes, the first of them used longest ago."""
    now = time.time()
    for number in range(count):
        place = build_once(
            "kind", str(number), lambda folder: write(folder, "x" * size), model=f"m{number}", form="int8"
        )
        os.utime(place / ".hfpipe-entry", (now - 3600 * hours + number,) * 2)
    return now


def test_entries_name_their_model_format_size_and_last_use(root):
    now = fill_cache(2)
    write_old(root / "raw" / "by-an-older-hfpipe")
    store.digest(Path(sys.executable))
    newest, *found = entries()
    assert (newest.model, newest.format) == ("by-an-older-hfpipe", "raw")
    assert [(one.model, one.format, one.folder) for one in found] == [
        (f"m{number}", "int8", root / "kind" / str(number)) for number in (1, 0)
    ]
    assert found[0].size == 1000 + len(json.dumps({"model": "m1", "format": "int8"}))
    assert found[0].last_used == pytest.approx(now - 7199, abs=1)
    assert cached("kind", "0")
    assert entries()[0].model == "m0"


def test_the_least_used_go_where_the_cache_is_too_large(root, monkeypatch):
    fill_cache(4)
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", "0.0000025")
    build_once("kind", "new", write)
    assert names(root / "kind") == ["2", "3", "new"]
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", "0")
    removed, recent = prune()
    assert ([one.model for one in removed], recent) == (["m3", "m2"], 1)


@pytest.mark.parametrize("limit", ["much", "-1", "nan"])
def test_a_limit_of_the_cache_that_makes_no_sense(root, monkeypatch, limit):
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", limit)
    with pytest.raises(UsageError, match=f"HFPIPE_CACHE_LIMIT must be a number of gigabytes, not '{limit}'"):
        prune()


def test_what_another_process_makes_anew_is_not_removed(root, monkeypatch):
    fill_cache(1)
    monkeypatch.setenv("HFPIPE_CACHE_LIMIT", "0")
    with making(root / "kind" / "0"):
        assert prune() == ([], 0)
        with pytest.raises(Locked):
            remove(root / "kind" / "0")
    assert cached("kind", "0")


def test_a_removal_is_at_once(root, monkeypatch):
    """Killed in the middle of it, nothing with the name of a whole folder is half of one."""
    place = build_once("kind", "key", write)
    seen = []
    monkeypatch.setattr(store.shutil, "rmtree", lambda folder, **_: seen.append((place.exists(), folder.exists())))
    remove(place)
    assert seen[-1] == (False, True)


def test_folders_that_others_fill_are_kept_by_their_last_use(root):
    for key in ("a", "b", "a", "c"):
        store.cache_folder("compiled", key, model="m", form="compiled", keep=2)
        time.sleep(0.01)
    assert names(root / "compiled") == ["a", "c"]


# The identity of a model


@pytest.fixture
def model(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    for name in ("config.json", "tokenizer.model", "vocab.txt", "additional_chat_templates/rag.jinja"):
        (tmp_path / name).write_text("{}")
    return tmp_path


CHANGES = {
    "weights in the middle": ("model.safetensors", bytes(1_500_000) + b"x" + bytes(1_499_999)),
    "settings": ("config.json", b"[]"),
    "words": ("vocab.txt", b"[]"),
    "a template": ("additional_chat_templates/rag.jinja", b"[]"),
    "a new file": ("chat_template.jinja", b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_is_another_identity(model, change):
    name, changed = CHANGES[change]
    before = identity(model)
    times = (model / "model.safetensors").stat()
    (model / name).write_bytes(changed)
    os.utime(model / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity(model) != before


def test_a_copy_has_the_same_identity(model, tmp_path_factory):
    before = identity(model)
    (model / "README.md").write_text("more")
    os.utime(model / "model.safetensors", (1, 1))
    copy = tmp_path_factory.mktemp("copies") / "copy"
    store.shutil.copytree(model, copy)
    assert identity(copy) == identity(model) == before


def test_a_large_file_is_read_once(model):
    file, notes = model / "model.safetensors", Recorder()
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert store.digest(file, reporter=notes) == expected
    assert notes.steps == [["Reading model.safetensors", 3_000_000, 3_000_000]]
    assert store.digest(file, reporter=notes) == expected
    assert len(notes.steps) == 1


def test_where_nothing_can_be_remembered_it_is_read_each_time(model, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", "/proc/nowhere")
    assert store.digest(model / "model.safetensors") == hashlib.sha256(bytes(3_000_000)).hexdigest()
