"""Folders that are made once, atomically, the cache of them, and the identity of a model.

What has its final name is complete: it is made in a hidden folder beside its place, under a lock, and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import HFPipeError, UsageError, is_disk_full
from hfpipe.types import Reporter

_POLL_S = 0.2
_WORK, _LOCK = ".hfpipe-tmp", ".hfpipe-lock"
# In a folder of the cache: what `entries` says of it. Its time is that of the last use.
ENTRY = ".hfpipe-entry"
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IMPOSSIBLE = {errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
# By what the user can choose; else it is a variable.
_ELSEWHERE = {
    "OUTPUT": "choose another output folder",
    "FILE": "choose another file",
    "cache_dir": "choose another cache_dir",
}
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
# What a model's answers depend on.
_WEIGHT_FILES = (".safetensors", ".bin", ".xml")
_TEXT_FILES = (".json", ".jinja", ".model", ".py", ".txt", ".tiktoken", ".spm", ".vocab")
_REMEMBERED_FROM, _KEPT_DIGESTS, _BLOCK = 1 << 18, 500, 1 << 22
# What another process may be about to open is not removed.
_SAFE_S = 3600.0


class Locked(Exception):
    """Another process or thread holds the lock."""


def cache_root() -> Path:
    """Where hfpipe keeps what it has downloaded and converted: $HFPIPE_CACHE, else the user's cache folder."""
    import platformdirs

    try:
        return Path(os.environ.get("HFPIPE_CACHE") or platformdirs.user_cache_dir("hfpipe")).expanduser().absolute()
    except RuntimeError as error:
        hint = "Set HFPIPE_CACHE to a folder for it."
        raise HFPipeError("The cache has no place: this user has no home folder.", hint=hint) from error


@contextmanager
def writing(place: Path, *, variable: str = "HFPIPE_CACHE") -> Iterator[None]:
    """Turn a full disk, and a place that cannot be written, into errors; `variable` says where else to write."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error) and error.errno not in _FORBIDDEN | _IMPOSSIBLE:
            raise
        raise unwritable(place, error, variable=variable) from error


def unwritable(place: Path, error: OSError, *, variable: str = "FILE") -> HFPipeError:
    """The error of a place that could not be written, as one that says what to do."""
    elsewhere = _elsewhere(variable)
    if is_disk_full(error):
        hint = f"Free some space, or {elsewhere}, and run it again."
        return HFPipeError(f"The disk of {place} is full.", hint=hint)
    # The user has not asked for a lock file.
    named = place if ".hfpipe-" in str(error.filename) else error.filename or place
    return HFPipeError(f"Cannot write to {named}: {error.strerror}.", hint=f"{elsewhere[0].upper()}{elsewhere[1:]}.")


def _elsewhere(variable: str) -> str:
    return _ELSEWHERE.get(variable, f"set {variable} to another folder")


def require_space(folder: Path, size: int, what: str, *, variable: str = "HFPIPE_CACHE") -> None:
    """Raise HFPipeError where the disk of `folder` has no room for `size` bytes of `what` ("The download")."""
    from hfpipe.machine import free_disk

    free = free_disk(folder)
    if free < size:
        raise HFPipeError(
            f"{what} needs {size_text(size)}, and the disk of {folder} has {size_text(free)} left.",
            hint=f"Free some space, or {_elsewhere(variable)}.",
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
    file names its holder instead.
    """
    with ExitStack() as held:
        while not _take(path, held):
            if wait is None:
                raise Locked(path)
            if reporter:
                reporter.note(wait)
                reporter = None
            time.sleep(_POLL_S)
        yield


def _take(path: Path, held: ExitStack) -> bool:
    """Whether this process holds the lock now; `held` gives it back."""
    with ExitStack() as cleanup:
        file = cleanup.enter_context(path.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed it between the two calls.
            if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return False
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            path.unlink(missing_ok=True)
            path = path.with_name(f"{path.name}-pid")
            if not _create(path):
                return False
        cleanup.callback(path.unlink, missing_ok=True)
        held.push(cleanup.pop_all())
    return True


def _create(path: Path) -> bool:
    """Where there are no locks: a file that only one can create. That of a process here that has ended is removed."""
    host = os.uname().nodename
    with suppress(FileNotFoundError, ValueError):
        owner, number = path.read_text().split()
        if owner == host and not os.path.isdir(f"/proc/{int(number)}"):
            path.unlink()
    with suppress(FileExistsError), path.open("x") as file:
        file.write(f"{host} {os.getpid()}")
        return True
    return False


# Folders made atomically


class Work:
    """`folder` is the empty folder to fill, `scratch` one for what is not kept. `finish` gives the first its name."""

    def __init__(self, place: Path) -> None:
        self._place, self._old = place, _beside(place, _WORK) / "old"
        # Its last name is the final one: libraries show it, and look settings up by it.
        self.folder, self.scratch = self._old.with_name("new") / place.name, self._old.with_name("scratch")
        self.folder.mkdir(parents=True)
        self.scratch.mkdir()

    def finish(self, check: Callable[[], None] | None = None) -> None:
        """Give the folder its name, in place of an old one. `check` raises where what has the name now must stay."""
        _settle(self.folder)
        if check:
            check()
        try:
            if self._place.exists():
                self._place.rename(self._old)
            self.folder.rename(self._place)
        except BaseException:
            _restore(self._place)
            raise
        if self._old.exists():
            # While it is being removed it is incomplete, and never comes back.
            self._old.rename(self._old.with_name("replaced"))


@contextmanager
def making(
    place: Path, *, variable: str = "HFPIPE_CACHE", wait: str | None = None, reporter: Reporter | None = None
) -> Iterator[Work]:
    """A place to make the folder `place`, hidden beside it, locked, and removed in the end.

    Where another process makes the same, say `wait` and wait; without `wait`, raise Locked. Raises HFPipeError where
    nothing can be written; `variable` is what the user can set to have it elsewhere.
    """
    with ExitStack() as cleanup:
        cleanup.enter_context(writing(place.parent, variable=variable))
        for folder in reversed([folder for folder in place.parents if not folder.exists()]):
            cleanup.callback(_remove_empty, folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place.parent)
        cleanup.enter_context(lock(_beside(place, _LOCK), wait=wait, reporter=reporter))
        # Of a process that was killed while this one waited.
        _clear(place)
        cleanup.callback(shutil.rmtree, _beside(place, _WORK), ignore_errors=True)
        yield Work(place)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in `folder`, and bring back what one of them was about to replace."""
    for path in folder.glob(".?*.hfpipe-*"):
        # One at work is locked, and another user's is not ours to remove.
        place = folder / path.name[1:].rpartition(".hfpipe-")[0]
        with suppress(Locked, OSError), lock(_beside(place, _LOCK)):
            _clear(place)


def _settle(folder: Path) -> None:
    """Have the disk hold every byte before the rename does: after a power cut, a folder with its name is whole."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # safetensors writes files that only their owner may read.
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}{suffix}")


def _clear(place: Path) -> None:
    _restore(place)
    shutil.rmtree(_beside(place, _WORK), ignore_errors=True)


def _restore(place: Path) -> None:
    """Bring the old folder back where the work ended between the two renames."""
    old = _beside(place, _WORK) / "old"
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
    kind: str, key: str, make: Callable[[Path], None], *, model: str, form: str, reporter: Reporter | None = None
) -> Path:
    """The folder of `key`, filled by `make(temporary folder)` where it does not exist yet.

    Of several processes one builds and the others wait. A `make` that fails or is interrupted leaves nothing. `model`
    and `form` are what `entries` says of it. Raises HFPipeError where the cache cannot be written, and whatever `make`
    raises.
    """
    if place := cached(kind, key):
        return place
    place = cache_place(kind, key)
    wait = f"Waiting for another hfpipe that is preparing {model}."
    with making(place, wait=wait, reporter=reporter) as work:
        if not place.is_dir():
            make(work.folder)
            describe(work.folder, model, form)
            work.finish()
    prune()
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


def remove(place: Path) -> None:
    """Remove a folder of the cache at once: what has its name is never half of it. Raises Locked while it is made."""
    if place.is_dir():
        with making(place) as work:
            place.rename(work.scratch / "removed")


def cache_place(kind: str, key: str) -> Path:
    """Where the folder of `key` is, or will be."""
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
    found = []
    for folder in filter(Path.is_dir, cache_root().glob("[!.]*/[!.]*")):
        said: dict[str, str] = {}
        # One that an older hfpipe made says nothing of itself.
        with suppress(FileNotFoundError, ValueError):
            said = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        # Another process may be removing it.
        with suppress(FileNotFoundError):
            used = (folder / ENTRY if said else folder).stat().st_mtime
            model, form = said.get("model", folder.name), said.get("format", folder.parent.name)
            found.append(Entry(model, form, size_of(folder), used, folder))
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def first_time(about: str, model: str) -> bool:
    """Whether nobody was told of this for this model before. Raises OSError where that cannot be kept."""
    place = cache_root() / "told"
    place.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), (place / key_of(about, model)).open("x"):
        keep_newest(place, _KEPT_DIGESTS)
        return True
    return False


def has(kind: str, model: str) -> bool:
    """Whether a folder of `kind` in the cache is of the model that the user calls so."""
    for file in cache_root().glob(f"{kind}/[!.]*/{ENTRY}"):
        with suppress(OSError, ValueError):
            if json.loads(file.read_text(encoding="utf-8")).get("model") == model:
                return True
    return False


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder and below it. Raises FileNotFoundError where they are being removed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def prune() -> tuple[list[Entry], int]:
    """Remove the least used folders of the cache beyond $HFPIPE_CACHE_LIMIT gigabytes, but those used in the last hour.
    Gives what was removed, and how many the last hour kept."""
    text = os.environ.get("HFPIPE_CACHE_LIMIT") or "50"
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise UsageError(f"HFPIPE_CACHE_LIMIT must be a number of gigabytes, not {text!r}.")
    removed, recent, total = [], 0, 0
    for entry in entries():
        total += entry.size
        if total > limit and time.time() - entry.last_used <= _SAFE_S:
            recent += 1
        elif total > limit:
            # Another process may be making it anew.
            with suppress(Locked):
                remove(entry.folder)
                removed.append(entry)
                total -= entry.size
    return removed, recent


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
    memory = cache_root() / "digests" / key_of(os.path.realpath(file), *numbers)
    with suppress(OSError):
        if len(known := memory.read_text()) == hashlib.sha256().digest_size * 2:
            return known
    found, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
            done += len(block)
            if reporter:
                reporter.progress(f"Reading {file.name}", done, state.st_size)
    # A cache that cannot be written costs time, not the answer.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_file(memory, found.hexdigest().encode())
        keep_newest(memory.parent, _KEPT_DIGESTS)
    return found.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that, whenever it is read, there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
