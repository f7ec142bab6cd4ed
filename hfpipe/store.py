"""Folders that are expensive to make and are made once: built beside their place, then renamed into it.

What stands under its final name is complete, so a finished folder is found with one stat. While one is being built, a
file lock that dies with its process keeps others waiting.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.errors import HFPipeError, is_disk_full
from hfpipe.types import Reporter, Silent

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL_S = 0.2
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def cache_root() -> Path:
    """Where hfpipe keeps what it has downloaded and converted: $HFPIPE_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("HFPIPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("hfpipe"))


def cached(kind: str, key: str) -> Path | None:
    """The finished folder of `key`, or None where it has not been built."""
    place = _place(kind, key)
    return place if os.path.isdir(place) else None


def build_once(kind: str, key: str, make: Callable[[Path], None], *, reporter: Reporter | None = None) -> Path:
    """The folder of `key`, filled by `make(temporary folder)` where it does not stand yet.

    Of several processes one builds and the others wait. A `make` that fails or is interrupted leaves nothing.
    Raises HFPipeError where the cache cannot be written, and whatever `make` raises.
    """
    place = _place(kind, key)
    if os.path.isdir(place):
        return place
    with writing(cache_root()):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, reporter or Silent()):
            if not os.path.isdir(place):
                _remove_leftovers(place)
                _build(place, make)
    return place


def discard(kind: str, key: str) -> None:
    """Remove the folder of `key`, where it stands."""
    shutil.rmtree(_place(kind, key), ignore_errors=True)


@contextmanager
def writing(folder: Path, *, variable: str = "HFPIPE_CACHE") -> Iterator[None]:
    """Turn a full disk, and a place that may not be written, into errors; `variable` says where else to write."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise HFPipeError(
                f"The disk of {folder} is full.",
                hint=f"Free some space, or set {variable} to a folder on another disk.",
            ) from error
        if error.errno in _FORBIDDEN:
            # mkdir says that a file in its way exists.
            reason = os.strerror(errno.ENOTDIR) if error.errno == errno.EEXIST else error.strerror
            raise HFPipeError(
                f"Cannot write to {error.filename or folder}: {reason}.",
                hint=f"Set {variable} to a folder that you may write to.",
            ) from error
        raise


def _place(kind: str, key: str) -> Path:
    for name in (kind, key):
        if not name or name.startswith(".") or "/" in name or os.sep in name:
            raise ValueError(f"not a name for a folder of the cache: {name!r}")
    return cache_root() / kind / key


def _lock_of(place: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(place.with_name(f".{place.name}.lock"))


@contextmanager
def _locked(place: Path, reporter: Reporter) -> Iterator[None]:
    from filelock import Timeout

    lock = _lock_of(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reporter.note(f"Waiting for another hfpipe that is preparing {place.name}.")
        lock.acquire(poll_interval=_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _build(place: Path, make: Callable[[Path], None]) -> None:
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        make(temporary)
        settle(temporary)
        temporary.rename(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def settle(folder: Path) -> None:
    """Have the disk hold every byte before the rename does: after a power cut, a folder that stands is whole."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # safetensors writes files that only their owner may read.
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _remove_leftovers(place: Path) -> None:
    """Remove the temporary folders of runs that were killed: of `place`, and of others whose lock nobody holds."""
    for leftover in place.parent.glob(".*.tmp"):
        name = leftover.name[1:].rsplit(".", 2)[0]
        if name == place.name:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        lock = _lock_of(place.with_name(name))
        with suppress(TimeoutError, OSError):
            lock.acquire(timeout=0)
            try:
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                lock.release()
