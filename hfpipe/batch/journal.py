"""The results of a batch in a file: at every moment a prefix of the finished one, whatever ends the process."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from hfpipe.batch.formats import Format, Result, read_json
from hfpipe.batch.lines import Line
from hfpipe.batch.manifest import ENTRY, RESTART, Manifest, manifest_path
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.process import start_thread
from hfpipe.store import unwritable

_SYNC_AFTER_S = 0.9


class Journal:
    """The output of a batch, to which results are appended in input order.

    Entered, it locks the output against other runs for as long as its process lives, and checks that what is there was
    made with the same `settings` (JSON values by name). `resume` then finds the place to continue at, `check` takes
    settings that only a loaded model knows, and `append` writes. With `restart`, an existing output is renamed instead.
    For one thread at a time; another may take the lines.

    Of the results found, `failed` are the positions (from 0) of errors, and `errors` counts their types. `set_aside` is
    the old output's new name.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], form: Format, *, restart: bool = False) -> None:
        # A symlink would be replaced by what it points to.
        self.output = Path(os.path.realpath(output)) if output.is_symlink() else output
        self.failed: array[int] = array("Q")
        self.errors: Counter[str] = Counter()
        self.set_aside: Path | None = None
        self._settings = dict(settings)
        self._format = form
        self._restart = restart
        # A retry writes here what the output is to become.
        self._retried = manifest_path(self.output).with_suffix(".hfpipe.tmp")
        self._resumed = False
        # How many results there are, and their bytes: as one value, so that an interrupt finds both or neither.
        self._done = (0, 0)
        self._file: int | None = None
        # A thread has the disk hold what was written, within a second.
        self._written, self._closed = False, threading.Event()
        self._sync_error: OSError | None = None

    @property
    def count(self) -> int:
        """How many results there are, once `resume` has returned."""
        return self._done[0]

    def __enter__(self) -> Self:
        with _writing(self.output):
            self._manifest = Manifest(self.output)
        try:
            if self._exists():
                self._manifest.check(self._settings)
                with _writing(self.output):
                    # That it cannot be written is to be said before a model is loaded.
                    os.close(os.open(self.output, os.O_WRONLY))
        except BaseException:
            self._manifest.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._resumed:
                # An input without records has an output without results.
                self._open()
            self._close()
        except HFPipeError:
            if error is None:
                raise
        finally:
            self._manifest.close()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check settings that are known later; they are kept with the others."""
        if self.count:
            self._manifest.check(settings)
        self._settings.update(settings)

    def resume(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Skip the lines that have results, and return those after them.

        Each must be what it was when its result was written, and have the id that the result has; lines after them may
        have changed. Raises HFPipeError where that is not so, and then nothing has been touched.
        """
        lines = iter(lines)
        if self._exists():
            self._take_retried()
            digests = self._manifest.digests()
            for result in self._count_results():
                self._compare(next(lines, None), result, next(digests, b""))
        self._resumed = True
        return lines

    def append(self, digest: bytes, line: bytes) -> None:
        """Write the result of the oldest record without one, and the digest of its line. Raises HFPipeError where the
        file cannot take it, or was changed by somebody else; the file then ends with the result before."""
        file, (count, size) = self._open() if self._file is None else self._file, self._done
        try:
            now = os.stat(self.output)
            changed = now.st_size != size or not os.path.samestat(now, os.fstat(file))
        except OSError:
            changed = True
        if changed:
            raise HFPipeError(
                f"{self.output} was changed, renamed or removed by another program while hfpipe was writing to it.",
                hint="Put it back, with the hidden file beside it, and run the same command again to resume.",
            )
        try:
            if self._sync_error:
                raise self._sync_error
            try:
                # First: after a kill, no result is without the digest of its record.
                self._manifest.put(count, digest)
                written = os.write(file, line)
                while written < len(line):
                    written += os.write(file, memoryview(line)[written:])
            finally:
                # A part of a line is cut off. An interrupt may also come after all of it.
                if os.fstat(file).st_size == size + len(line):
                    self._done = (count + 1, size + len(line))
                else:
                    os.ftruncate(file, size)
        except OSError as error:
            raise unwritable(self.output, error) from error
        self._written = True

    def replace_errors(self, results: Iterable[bytes]) -> None:
        """Put new results of all that failed in the places of the old ones; they may be made while they are taken.

        A file beside the output, a prefix of what it is to become, keeps what has come; whatever ends this, it is
        completed with the rest of the old lines and takes the output's place, at the latest as the next run begins.
        """
        with _writing(self.output):
            old, new = self.output.open("rb"), self._retried.open("wb")
            os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        position = 0
        try:
            for place, line in zip(tuple(self.failed), results, strict=True):
                with _writing(self.output):
                    new.writelines(islice(old, place - position))
                    old.readline()
                    new.write(line)
                    new.flush()
                position = place + 1
        finally:
            old.close()
            # What could not be written, a full disk, cannot be written now either.
            with suppress(OSError):
                new.close()
            self._take_retried()
            for _ in self._count_results():
                pass

    def _take_retried(self) -> None:
        """Finish a retry, of this process or of one that was killed: its file, as far as its lines are those of the
        output or new results in the places of errors, and then the rest of the output."""
        if not self._retried.exists():
            return
        rest, kept, replaced = 0, 0, False
        with _writing(self.output):
            with self.output.open("rb") as old, self._retried.open("r+b") as new:
                for before, after in zip(old, new, strict=False):
                    if before != after and not self._replaces(before, after):
                        break
                    rest, kept, replaced = rest + len(before), kept + len(after), replaced or before != after
                if replaced:
                    old.seek(rest)
                    new.truncate(kept)
                    new.seek(kept)
                    shutil.copyfileobj(old, new)
                    new.flush()
                    os.fsync(new.fileno())
            if replaced:
                self._retried.replace(self.output)
                _sync_folder(self.output.parent)
            else:
                self._retried.unlink()

    def _replaces(self, old: bytes, new: bytes) -> bool:
        was, is_now = self._format.read_result(old), self._format.read_result(new)
        return bool(was and was.error and is_now and is_now.id == was.id)

    def _exists(self) -> bool:
        """Whether there are results to resume."""
        with _writing(self.output):
            return not self._restart and self.output.exists() and self.output.stat().st_size > 0

    def _count_results(self) -> Iterator[Result]:
        """The results in the output, counted as they are given. What a crash tore is none: a last line without its end,
        and one that is no JSON. Raises HFPipeError for any other line that is no result."""
        self._done, self.failed, self.errors = (0, 0), array("Q"), Counter()
        with _writing(self.output), self.output.open("rb") as file:
            for line in file:
                result = self._format.read_result(line) if line.endswith(b"\n") else None
                count, size = self._done
                if result is None:
                    torn = read_json(line) is None and not file.readline().endswith(b"\n")
                    if torn or not line.endswith(b"\n"):
                        return
                    raise HFPipeError(
                        f"Line {count + 1:,} of {self.output} is not a result of hfpipe.",
                        hint=f"To resume, cut the file before that line. {RESTART}",
                    )
                if result.error is not None:
                    self.failed.append(count)
                    self.errors[result.error] += 1
                self._done = (count + 1, size + len(line))
                yield result

    def _compare(self, line: Line | None, result: Result, digest: bytes) -> None:
        if line is None:
            said = f"The input ends before the {self.count:,} records that have a result in {self.output}."
        elif digest not in (b"", line.digest[:ENTRY]):
            said = f"Line {line.number:,} of the input has changed since {self.output} was written."
        elif (found := self._format.id_of(line)) != result.id:
            said = (
                f"Line {self.count:,} of {self.output} has the id {result.id!r}, but its record, line {line.number:,}"
                f" of the input, has {found!r}."
            )
        else:
            return
        raise HFPipeError(said, hint=RESTART)

    def _open(self) -> int:
        """The output, open for the next result; what comes after the results is cut off, here and in the manifest."""
        if self._file is not None:
            return self._file
        count, size = self._done
        with _writing(self.output):
            if self._restart and self.output.exists() and self.output.stat().st_size:
                self._take_retried()
                self.set_aside = _set_aside(self.output)
            if not count:
                # Of an output that somebody has removed.
                self._retried.unlink(missing_ok=True)
                self._manifest.save(self._settings)
            self._manifest.cut(count)
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            _cut(file, size)
            _sync_folder(self.output.parent)
        self._thread = start_thread(self._sync, file)
        self._file = file
        return file

    def _sync(self, file: int) -> None:
        last = False
        while not last:
            last = self._closed.wait(_SYNC_AFTER_S)
            if self._written or last:
                # First, since what is written from here on may not be in it.
                self._written = False
                try:
                    # The manifest first, as it is written.
                    os.fsync(self._manifest.descriptor)
                    os.fsync(file)
                except OSError as error:
                    self._sync_error = error

    def _close(self) -> None:
        """Have the disk hold everything. Raises HFPipeError where it did not take it."""
        if self._file is not None:
            self._closed.set()
            self._thread.join()
            os.close(self._file)
            with _writing(self.output):
                if self._sync_error:
                    raise self._sync_error


def check_place(output: Path) -> None:
    """Raise an HFPipeError where `output` cannot be a file of results."""
    with _writing(output), suppress(FileNotFoundError):
        target = Path(os.path.realpath(output))
        if not target.parent.is_dir():
            raise UsageError(
                f"Cannot write to {output}: the folder {target.parent} does not exist.", hint="Create the folder first."
            )
        # Of a loop of symlinks, stat fails.
        if not stat.S_ISREG(target.stat().st_mode):
            raise UsageError(
                f"Cannot write to {output}: it is not a file.", hint="Without an output file, results go to stdout."
            )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def _set_aside(output: Path) -> Path:
    """Rename `output` to the first free OUTPUT.1, OUTPUT.2, ..., which is returned, with a manifest of its own: the
    present one is the lock, and stays."""
    number = 1
    while os.path.lexists(aside := output.with_name(f"{output.name}.{number}")) or manifest_path(aside).exists():
        number += 1
    # The output last: until it has gone, the next run finds everything as it was.
    shutil.copyfile(manifest_path(output), manifest_path(aside))
    output.rename(aside)
    _sync_folder(output.parent)
    return aside


def _sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _cut(file: int, size: int) -> None:
    """Where there is nothing to cut, the file is not touched: its time of change would be another."""
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
