"""Folders that are made once, atomically: lock, temporary folder, rename, leftovers, free space, and the cache.

What has its final name is complete. It is made in a hidden folder beside its place, under a lock that ends with its
process, and renamed; what a killed process left is removed by the next one that makes something in the same folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import HFPipeError, UsageError, is_disk_full
from hfpipe.types import Reporter, Silent

_POLL_S = 0.2
_MARK = ".hfpipe-"
_WORK, _LOCK = f"{_MARK}tmp", f"{_MARK}lock"
# In a folder of the cache: what `entries` says of it. Its time is that of the last use.
ENTRY = f"{_MARK}entry"
_NEW, _SCRATCH, _OLD, _REPLACED = "new", "scratch", "old", "replaced"
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IMPOSSIBLE = {errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

# What a model's answers depend on.
_WEIGHT_FILES = (".safetensors", ".bin", ".xml")
_TEXT_FILES = (".json", ".jinja", ".model", ".py", ".txt", ".tiktoken", ".spm", ".vocab")
_DIGESTS, _KEPT_DIGESTS, _REMEMBERED_FROM = "digests", 500, 1 << 18
_BLOCK = 1 << 22

_LIMIT_VARIABLE, _LIMIT_GB = "HFPIPE_CACHE_LIMIT", 50.0
# What another process may be about to open is not removed.
_SAFE_S = 3600.0
_OF_NO_MODEL = {_DIGESTS}


class Locked(Exception):
    """Another process or thread holds the lock."""


# Places


def cache_root() -> Path:
    """Where hfpipe keeps what it has downloaded and converted: $HFPIPE_CACHE, else the user's cache folder."""
    chosen = os.environ.get("HFPIPE_CACHE")
    if chosen:
        root = os.path.expanduser(chosen)
    else:
        import platformdirs

        # Some versions raise an error where there is no home, others give a relative path.
        try:
            root = platformdirs.user_cache_dir("hfpipe")
        except RuntimeError:
            root = "~"
    if root.startswith("~") or not (chosen or os.path.isabs(root)):
        raise HFPipeError(
            "The cache has no place: this user has no home folder.", hint="Set HFPIPE_CACHE to a folder for it."
        )
    return Path(os.path.abspath(root))


def real_path(path: Path) -> Path:
    """`path`, absolute and with its symbolic links followed. Raises UsageError for a loop of them."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a loop of symbolic links.", hint="Name another place.") from error
        return Path(os.path.realpath(path))


@contextmanager
def writing(folder: Path, *, variable: str = "HFPIPE_CACHE") -> Iterator[None]:
    """Turn a full disk, and a place that cannot be written, into errors; `variable` says where else to write."""
    elsewhere = _elsewhere(variable)
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise HFPipeError(f"The disk of {folder} is full.", hint=f"Free some space, or {elsewhere}") from error
        if error.errno in _FORBIDDEN | _IMPOSSIBLE:
            # mkdir says that a file in its way exists.
            reason = os.strerror(errno.ENOTDIR) if error.errno == errno.EEXIST else error.strerror
            raise HFPipeError(
                f"Cannot write to {error.filename or folder}: {reason}.", hint=elsewhere[0].upper() + elsewhere[1:]
            ) from error
        raise


def _elsewhere(variable: str) -> str:
    return "choose another output folder." if variable == "OUTPUT" else f"set {variable} to another folder."


def require_space(folder: Path, size: int, what: str, *, variable: str = "HFPIPE_CACHE") -> None:
    """Raise HFPipeError where the disk of `folder` has no room for `size` bytes of `what` ("The download")."""
    from hfpipe.machine import free_disk

    free = free_disk(folder)
    if free < size:
        raise HFPipeError(
            f"{what} needs {size_text(size)}, and the disk of {folder} has {size_text(free)} left.",
            hint=f"Free some space, or {_elsewhere(variable)}",
        )


def size_text(size: float) -> str:
    """A size for a person, in powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# Locks


@contextmanager
def lock(path: Path, *, wait: str | None = None, reporter: Reporter | None = None) -> Iterator[None]:
    """Hold the lock file `path`, one holder at a time; a process that ends holds none. It is removed afterwards.

    Where another holds it, say `wait` and wait for it; without `wait`, raise Locked. On a file system without locks the
    file names its holder instead, which the reporter is told.
    """
    reporter = reporter or Silent()
    is_waiting = False
    while (held := _take(path, reporter)) is None:
        if wait is None:
            raise Locked(path)
        if not is_waiting:
            reporter.note(wait)
            is_waiting = True
        time.sleep(_POLL_S)
    taken, descriptor = held
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            taken.unlink()
        os.close(descriptor)


def _take(path: Path, reporter: Reporter) -> tuple[Path, int] | None:
    """The lock file that is held now and its descriptor; None where another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed it between the two calls.
            if _is_file_of(path, descriptor):
                return path, descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _WITHOUT_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return _take_without_locks(path, error, reporter)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_file_of(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _take_without_locks(path: Path, error: OSError, reporter: Reporter) -> tuple[Path, int] | None:
    """By a file that only one can create. One of a process of this machine that has ended is removed."""
    marker = path.with_name(f"{path.name}-pid")
    host = os.uname().nodename
    with suppress(FileNotFoundError, ValueError):
        owner, _, number = marker.read_text().rpartition(" ")
        if owner == host and not os.path.isdir(f"/proc/{int(number)}"):
            marker.unlink()
    try:
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    os.write(descriptor, f"{host} {os.getpid()}".encode())
    reporter.note(f"{path.parent} has no file locks ({error.strerror}): {marker.name} is used as one.")
    return marker, descriptor


# Folders made atomically


@dataclass(frozen=True, slots=True)
class Work:
    """`folder` is the empty folder to fill, `scratch` one for what is not kept. `finish` gives the first its name."""

    place: Path
    hidden: Path

    @property
    def folder(self) -> Path:
        # Its last name is the final one: libraries show it, and look settings up by it.
        return self.hidden / _NEW / self.place.name

    @property
    def scratch(self) -> Path:
        return self.hidden / _SCRATCH

    def finish(self, check: Callable[[], None] | None = None) -> None:
        """Give the folder its name, in place of an old one. `check` raises where what has the name now must stay."""
        settle(self.folder)
        if check:
            check()
        try:
            if self.place.exists():
                self.place.rename(self.hidden / _OLD)
            self.folder.rename(self.place)
        except BaseException:
            _restore(self.place)
            raise
        if (self.hidden / _OLD).exists():
            # While it is being removed it is incomplete, and never comes back.
            (self.hidden / _OLD).rename(self.hidden / _REPLACED)


@contextmanager
def making(
    place: Path, *, variable: str = "HFPIPE_CACHE", wait: str | None = None, reporter: Reporter | None = None
) -> Iterator[Work]:
    """A place to make the folder `place`, hidden beside it, locked, and removed in the end.

    Where another process makes the same, say `wait` and wait; without `wait`, raise Locked. Raises HFPipeError where
    nothing can be written; `variable` is what the user can set to have it elsewhere.
    """
    with writing(place.parent, variable=variable):
        made = [folder for folder in place.parents if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            remove_leftovers(place.parent)
            with lock(_beside(place, _LOCK), wait=wait, reporter=reporter):
                # Of a process that was killed while this one waited.
                _clear(place)
                work = Work(place, _beside(place, _WORK))
                try:
                    for folder in (work.folder, work.scratch):
                        folder.mkdir(parents=True)
                    yield work
                finally:
                    shutil.rmtree(work.hidden, ignore_errors=True)
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in `folder`, and bring back what one of them was about to replace."""
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        names = os.listdir(folder)
    for name in names:
        final = name[1:].rpartition(_MARK)[0]
        if final and name.startswith("."):
            # One at work is locked, and another user's is not ours to remove.
            with suppress(Locked, OSError), lock(_beside(folder / final, _LOCK)):
                _clear(folder / final)


def settle(folder: Path) -> None:
    """Have the disk hold every byte before the rename does: after a power cut, a folder with its name is whole."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # safetensors writes files that only their owner may read.
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}{suffix}")


def _clear(place: Path) -> None:
    _restore(place)
    shutil.rmtree(_beside(place, _WORK), ignore_errors=True)


def _restore(place: Path) -> None:
    """Bring the old folder back where the work ended between the two renames."""
    old = _beside(place, _WORK) / _OLD
    if old.exists() and not place.exists():
        old.rename(place)


# The cache


def cached(kind: str, key: str) -> Path | None:
    """The finished folder of `key`, or None where it has not been built."""
    place = cache_place(kind, key)
    if not os.path.isdir(place):
        return None
    # Its time is that of the last use, if we may set it.
    with suppress(OSError):
        os.utime(place / ENTRY)
    return place


def build_once(
    kind: str,
    key: str,
    make: Callable[[Path], None],
    *,
    model: str | None = None,
    form: str = "",
    reporter: Reporter | None = None,
) -> Path:
    """The folder of `key`, filled by `make(temporary folder)` where it does not exist yet.

    Of several processes one builds and the others wait. A `make` that fails or is interrupted leaves nothing. `model`
    and `form` are what `entries` says of it, by default its key and kind. Raises HFPipeError where the cache cannot be
    written, and whatever `make` raises.
    """
    if place := cached(kind, key):
        return place
    place = cache_place(kind, key)
    wait = f"Waiting for another hfpipe that is preparing {model or key}."
    with making(place, wait=wait, reporter=reporter) as work:
        if not place.is_dir():
            make(work.folder)
            if model:
                describe(work.folder, model, form)
            work.finish()
    prune(keep=place)
    return place


def cache_folder(kind: str, key: str, *, model: str, form: str, keep: int) -> Path:
    """The folder of `key`, which others fill as they like. Of its kind the last used `keep` stay."""
    place = cache_place(kind, key)
    place.mkdir(parents=True, exist_ok=True)
    describe(place, model, form)
    os.utime(place)
    keep_newest(place.parent, keep)
    return place


def describe(folder: Path, model: str, form: str) -> None:
    """Have `entries` list a folder of the cache as `model`, in the format `form`."""
    (folder / ENTRY).write_text(json.dumps({"model": model, "format": form}), encoding="utf-8")


def discard(kind: str, key: str) -> None:
    """Remove the folder of `key`, where it exists and no other process is making it."""
    with suppress(Locked):
        remove(cache_place(kind, key))


def remove(place: Path) -> None:
    """Remove a folder of the cache at once: what has its name is never half of it. Raises Locked while it is made."""
    if place.is_dir():
        with making(place) as work:
            place.rename(work.scratch / _REPLACED)


def cache_place(kind: str, key: str) -> Path:
    """Where the folder of `key` is, or will be."""
    for name in (kind, key):
        if not name or name.startswith(".") or "/" in name or os.sep in name:
            raise ValueError(f"not a name for a folder of the cache: {name!r}")
    return cache_root() / kind / key


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder of the cache: the model that it holds, its format, its bytes and when it was last used (Unix time)."""

    model: str
    format: str
    size: int
    last_used: float
    folder: Path


def entries() -> list[Entry]:
    """What the cache holds, the last used first."""
    found = [
        entry
        for kind in _folders(cache_root())
        if kind.name not in _OF_NO_MODEL
        for folder in _folders(kind)
        if (entry := _entry(folder))
    ]
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def _folders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return []


def _entry(folder: Path) -> Entry | None:
    said: dict[str, str] = {}
    # Another process may be removing it, and one that an older hfpipe made says nothing.
    with suppress(FileNotFoundError, ValueError):
        said = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    with suppress(FileNotFoundError):
        mark = folder / ENTRY
        used = (mark if mark.exists() else folder).stat().st_mtime
        model, form = said.get("model", folder.name), said.get("format", folder.parent.name)
        return Entry(model, form, size_of(folder), used, folder)
    return None


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder and below it."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def prune(*, keep: Path | None = None, limit: float | None = None) -> list[Entry]:
    """Remove the least used folders of the cache beyond `limit` bytes, by default $HFPIPE_CACHE_LIMIT gigabytes. Those
    used in the last hour, and `keep`, stay. Gives what was removed."""
    limit = _limit() if limit is None else limit
    removed, total = [], 0
    for entry in entries():
        total += entry.size
        if total > limit and entry.folder != keep and time.time() - entry.last_used > _SAFE_S:
            # Another process may be making it anew.
            with suppress(Locked):
                remove(entry.folder)
                removed.append(entry)
                total -= entry.size
    return removed


def _limit() -> float:
    text = os.environ.get(_LIMIT_VARIABLE) or str(_LIMIT_GB)
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise UsageError(f"{_LIMIT_VARIABLE} must be a number of gigabytes, not {text!r}.") from error


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` files and folders in `folder`. Another process may be doing the same."""
    with suppress(FileNotFoundError):
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for old in sorted(visible, key=lambda path: path.stat().st_mtime, reverse=True)[count:]:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)


# The identity of a model


def identity(folder: Path, *, reporter: Reporter | None = None) -> str:
    """A sha256 over the names and contents of the files in `folder` that a model's answers depend on."""
    files = [path for path in folder.iterdir() if path.suffix in _WEIGHT_FILES + _TEXT_FILES and path.is_file()]
    files += folder.glob("additional_chat_templates/*.jinja")
    named = [(str(path.relative_to(folder)), digest(path, reporter=reporter)) for path in sorted(files)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def key_of(*values: object) -> str:
    """A name in the cache for values of JSON: all that the cached thing depends on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:24]


def digest(file: Path, *, reporter: Reporter | None = None) -> str:
    """The sha256 of a file's content. That of a large one is remembered for as long as the file does not change."""
    state = file.stat()
    if state.st_size < _REMEMBERED_FROM:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    numbers = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    memory = cache_root() / _DIGESTS / key_of(os.path.realpath(file), *numbers)
    with suppress(OSError):
        if len(known := memory.read_text()) == hashlib.sha256().digest_size * 2:
            return known
    found = _read_digest(file, state.st_size, reporter or Silent())
    # A cache that cannot be written costs time, not the answer.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_file(memory, found.encode())
        keep_newest(memory.parent, _KEPT_DIGESTS)
    return found


def _read_digest(file: Path, size: int, reporter: Reporter) -> str:
    done, found = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
            done += len(block)
            reporter.progress(f"Reading {file.name}", done, size)
    return found.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that, whenever it is read, there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
