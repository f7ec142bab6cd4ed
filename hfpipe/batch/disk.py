"""What it takes that bytes survive: writes that are whole, files that are replaced at once, and fsync."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hfpipe.errors import HFPipeError, is_disk_full

_SYNC_AFTER_S = 0.9


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> HFPipeError:
    if is_disk_full(error):
        return HFPipeError(
            f"The disk of {path} is full. What stands there is whole.",
            hint="Free some space and run the same command again: it goes on where it stopped.",
        )
    hint = "Run the same command again once it can be written: it goes on where it stopped."
    return HFPipeError(f"Cannot write {path}: {error.strerror}.", hint=hint)


def write_all(descriptor: int, data: bytes) -> None:
    """Mostly one write: a disk that gets full takes a part."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that, whenever it is read, there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file, whose bytes are on the disk, over another."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Syncer:
    """A thread that has the disk hold what was written to some files, about a second after it was.

    `error` is what went wrong with that.
    """

    def __init__(self, *descriptors: int) -> None:
        self.error: OSError | None = None
        self._descriptors = descriptors
        self._written = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hfpipe-fsync", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """Something was written."""
        if not self._written.is_set():
            self._written.set()

    def close(self) -> None:
        """Have the disk hold all of it, now."""
        self._closed.set()
        self._written.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._written.wait()
            last = self._closed.wait(_SYNC_AFTER_S)
            # First, since what is written from here on may not be in it.
            self._written.clear()
            self._sync()

    def _sync(self) -> None:
        try:
            for descriptor in self._descriptors:
                os.fsync(descriptor)
        except OSError as error:
            self.error = error
