"""A file that grows by whole lines, and what it takes that its bytes survive: single writes, and fsync."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hfpipe.batch.manifest import RESTART, Manifest
from hfpipe.errors import HFPipeError, is_disk_full

_SYNC_AFTER_S = 0.9
# Names that no later run can write to either.
_NEVER = {errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> HFPipeError:
    """The error that says why `path` cannot be written."""
    if is_disk_full(error):
        return HFPipeError(
            f"The disk of {path} is full. The results in it are complete lines.",
            hint="Free some space and run the same command again to resume.",
        )
    hint = "Make it writable and run the same command again to resume, or choose another file."
    return HFPipeError(
        f"Cannot write {path}: {error.strerror}.", hint="Choose another file." if error.errno in _NEVER else hint
    )


class Output:
    """The first `count` results of `path`, in `size` bytes; what comes after them is cut off, here and in the manifest.

    Lines go to the end, each in one write, and to the disk within a second. Whatever fails, the file ends with a whole
    line.
    """

    def __init__(self, path: Path, count: int, size: int, manifest: Manifest) -> None:
        self.path = path
        # As one value: an interrupt finds both or neither.
        self._done = (count, size)
        self._manifest = manifest
        with writing(path):
            manifest.cut(count)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            _cut(self._file, size)
            sync_folder(path.parent)
            opened = os.fstat(self._file)
        self._place = (opened.st_dev, opened.st_ino)
        # The manifest first, as it is written.
        self._syncer = Syncer(manifest.descriptor, self._file)

    @property
    def count(self) -> int:
        return self._done[0]

    @property
    def size(self) -> int:
        return self._done[1]

    def append(self, line: bytes, digest: bytes) -> None:
        """Write a result, and the digest of its record. Raises HFPipeError where the file cannot take it, or was
        changed by somebody else."""
        count, size = self._done
        self._check_unchanged(size)
        try:
            # First: after a kill, no result is without the digest of its record.
            self._manifest.put(count, digest)
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, memoryview(line)[written:])
            self._done = (count + 1, size + len(line))
        except BaseException as error:
            with suppress(OSError):
                # An interrupt may come after the write.
                if os.fstat(self._file).st_size == size + len(line):
                    self._done = (count + 1, size + len(line))
                _cut(self._file, self.size)
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise
        self._syncer.written()

    def _check_unchanged(self, size: int) -> None:
        if self._syncer.error:
            raise unwritable(self.path, self._syncer.error)
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise HFPipeError(
                f"{self.path} was removed or renamed while hfpipe was writing to it.",
                hint="Put it back, with the hidden file beside it, and run the same command again to resume.",
            ) from error
        if (now.st_dev, now.st_ino, now.st_size) != (*self._place, size):
            raise HFPipeError(
                f"{self.path} was changed by another program while hfpipe was writing to it.",
                hint=f"Run the same command again to resume, if its lines are intact. {RESTART}",
            )

    def close(self) -> None:
        """Have the disk hold everything. Raises HFPipeError where it did not take it."""
        self._syncer.close()
        os.close(self._file)
        if self._syncer.error:
            raise unwritable(self.path, self._syncer.error)


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
            try:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
            except OSError as error:
                self.error = error


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut(file: int, size: int) -> None:
    """Where there is nothing to cut, the file is not touched: its time of change would be another."""
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
