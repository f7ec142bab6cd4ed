"""An output that is open: lines go to its end, each in one write, and to the disk within a second."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hfpipe.batch import manifest
from hfpipe.batch.disk import Syncer, put_in_place, sync_folder, unwritable, write_all, writing
from hfpipe.errors import HFPipeError


class Output:
    """The first `count` results of `path`, in `size` bytes; what stands after them is cut off. The digests beside it
    are cut likewise. Whatever fails, the file ends with a whole line."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.path = path
        # As one value: an interrupt finds both or neither.
        self._done = (count, size)
        with writing(path):
            self._digests = os.open(manifest.digests_path(path), os.O_WRONLY | os.O_CREAT, 0o666)
            # Without half an entry, which a power cut may leave: one that is missing reads as zeros.
            entries = min(count, os.fstat(self._digests).st_size // manifest.ENTRY)
            _cut(self._digests, entries * manifest.ENTRY)
            self._open()

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
        self.check_unchanged()
        try:
            # First: after a kill, no result is without the digest of its record.
            os.pwrite(self._digests, digest, count * manifest.ENTRY)
            write_all(self._file, line)
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

    def replace(self, temporary: Path) -> None:
        """Put another file in the place of this one at once, one whose bytes are on the disk, and go on in it."""
        self.check_unchanged()
        with writing(self.path):
            put_in_place(temporary, self.path)
            self._done = (self.count, self.path.stat().st_size)
            syncer, file = self._syncer, self._file
            self._open()
        syncer.close()
        os.close(file)

    def check_unchanged(self) -> None:
        if self._syncer.error:
            raise unwritable(self.path, self._syncer.error)
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise HFPipeError(
                f"{self.path} has been removed or renamed while hfpipe was writing to it.",
                hint="Put it back, with its manifest, and run the same command again: it goes on. Else it begins anew.",
            ) from error
        if (now.st_dev, now.st_ino, now.st_size) != (*self._place, self.size):
            raise HFPipeError(
                f"{self.path} was changed by somebody else while hfpipe was writing to it.",
                hint=f"Run the same command again: it goes on if what stands is whole. {manifest.RESTART}",
            )

    def close(self) -> None:
        """Have the disk hold everything. Raises HFPipeError where it did not take it."""
        self._syncer.close()
        os.close(self._file)
        os.close(self._digests)
        if self._syncer.error:
            raise unwritable(self.path, self._syncer.error)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        _cut(self._file, self.size)
        sync_folder(self.path.parent)
        opened = os.fstat(self._file)
        self._place = (opened.st_dev, opened.st_ino)
        # The digests first, as they are written.
        self._syncer = Syncer(self._digests, self._file)


def _cut(file: int, size: int) -> None:
    """Where there is nothing to cut, the file is not touched: its time of change would be another."""
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
