"""The results of a batch in a file: at every moment a prefix of the finished one, whatever ends the process."""

from __future__ import annotations

import os
import shutil
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from typing_extensions import Self

from hfpipe.batch.formats import Format, Result, read_json
from hfpipe.batch.lines import Line
from hfpipe.batch.manifest import ENTRY, RESTART, Manifest, manifest_path
from hfpipe.batch.output import Output, Syncer, sync_folder, writing
from hfpipe.errors import HFPipeError, UsageError

_BLOCK = 1 << 16


class Journal:
    """The output of a batch, to which results are appended in input order.

    A context manager: entered, it locks the output against other runs for as long as it is open and its process lives,
    and checks that what is there was made with the same `settings` (JSON values by name). `resume` then finds the place
    to continue at, `check` takes settings that only a loaded model knows, and `append` writes. With `restart`, an
    existing output is renamed instead. For one thread at a time; another may take the lines.

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
        self._open: Output | None = None
        # The results that are there, and their bytes.
        self._done = (0, 0)
        # Of the records that were read and have no result, by position.
        self._digests: dict[int, bytes] = {}

    @property
    def count(self) -> int:
        """How many results there are, once `resume` has returned."""
        return self._open.count if self._open else self._done[0]

    def __enter__(self) -> Self:
        check_place(self.output)
        with writing(self.output):
            self._manifest = Manifest(self.output)
        try:
            if self._exists() and not self._restart:
                self._manifest.check(self._settings)
                with writing(self.output):
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
                self._begin()
            self._close_output()
        except HFPipeError:
            if error is None:
                raise
        finally:
            self._resumed = False
            self._manifest.close()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check settings that are known later; they are kept with the others."""
        if self._done[0]:
            self._manifest.check(settings)
        self._settings.update(settings)

    def resume(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Skip the lines that have results, and return those after them.

        Each must be what it was when its result was written, and have the id that the result has; lines after them may
        have changed. Raises HFPipeError where that is not so, and then nothing has been touched.
        """
        lines, count, size = iter(lines), 0, 0
        if self._exists() and not self._restart:
            self._take_retried()
            with writing(self.output):
                size = whole(self.output)
            digests = self._manifest.digests()
            for count, result in enumerate(self._results(size), 1):
                self._compare(count, next(lines, None), result, next(digests, b""))
                self._count_error(count - 1, result)
        self._done, self._resumed = (count, size), True
        return self._noted(lines, count)

    def append(self, line: bytes) -> None:
        """Write the result of the oldest record without one. Raises HFPipeError where the file cannot take it, or was
        changed by somebody else; the file then ends with the result before."""
        position = self.count
        if position not in self._digests:
            raise ValueError("a result is of a record that resume has given")
        if not line.endswith(b"\n") or line.count(b"\n") > 1:
            raise ValueError("a result is one line")
        self._begin().append(line, self._digests[position])
        del self._digests[position]

    def replace_errors(self, results: Iterable[tuple[int, bytes]]) -> None:
        """Put new results in the places of old ones.

        `results` are positions and lines in ascending order, which may be made while they are taken. A file beside the
        output, a prefix of what it is to become, keeps what has come; whatever ends this, it is completed with the rest
        of the old lines and takes the output's place, at the latest as the next run begins.
        """
        if not self._resumed:
            raise ValueError("resume comes first")
        self._close_output()
        with writing(self.output):
            old, new = self.output.open("rb"), self._retried.open("wb")
            os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        syncer, position = Syncer(new.fileno()), 0
        try:
            for place, line in results:
                with writing(self.output):
                    new.writelines(islice(old, max(0, place - position)))
                    if place < position or not self._replaces(old.readline(), line):
                        raise ValueError(f"{line[:80]!r} is no result for position {place}")
                    new.write(line)
                    new.flush()
                syncer.written()
                position = place + 1
        finally:
            syncer.close()
            old.close()
            # What could not be written, a full disk, cannot be written now either.
            with suppress(OSError):
                new.close()
            self._take_retried()
            with writing(self.output):
                self._done = (self.count, whole(self.output))
            self._count_errors()

    def _take_retried(self) -> None:
        """Finish a retry, of this process or of one that was killed: its file, as far as its lines are those of the
        output or new results in the places of errors, and then the rest of the output."""
        with writing(self.output):
            if self._retried.exists():
                self._merge()

    def _merge(self) -> None:
        rest, kept, replaced = 0, 0, False
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
            sync_folder(self.output.parent)
        else:
            self._retried.unlink()

    def _replaces(self, old: bytes, new: bytes) -> bool:
        was, is_now = self._format.read_result(old), self._format.read_result(new)
        return was is not None and is_now is not None and was.error is not None and was.id == is_now.id

    def _exists(self) -> bool:
        with writing(self.output):
            return self.output.exists() and self.output.stat().st_size > 0

    def _results(self, size: int) -> Iterator[Result]:
        """The results in the first `size` bytes. Raises HFPipeError for a line that is none."""
        with self.output.open("rb") as file:
            number = 0
            while size > 0:
                line, number = file.readline(), number + 1
                result = self._format.read_result(line)
                if result is None:
                    raise HFPipeError(
                        f"Line {number:,} of {self.output} is not a result of hfpipe.",
                        hint=f"To resume, cut the file before that line. {RESTART}",
                    )
                yield result
                size -= len(line)

    def _count_errors(self) -> None:
        self.failed, self.errors = array("Q"), Counter()
        for position, result in enumerate(self._results(self._done[1])):
            self._count_error(position, result)

    def _count_error(self, position: int, result: Result) -> None:
        if result.error is not None:
            self.failed.append(position)
            self.errors[result.error] += 1

    def _compare(self, number: int, line: Line | None, result: Result, digest: bytes) -> None:
        if line is None:
            said = f"The input ends before the {number:,} records that have a result in {self.output}."
        elif digest not in (b"", line.digest[:ENTRY]):
            said = f"Line {line.number:,} of the input has changed since {self.output} was written."
        elif (found := self._format.read_id(line)) != result.id:
            said = (
                f"Line {number:,} of {self.output} has the id {result.id!r}, but its record, line {line.number:,} of"
                f" the input, has {found!r}."
            )
        else:
            return
        raise HFPipeError(said, hint=RESTART)

    def _begin(self) -> Output:
        """The output, open for the next result."""
        if self._open is None:
            if not self._resumed:
                raise ValueError("resume comes first")
            with writing(self.output):
                if self._restart and self._exists():
                    self._take_retried()
                    self.set_aside = _set_aside(self.output)
                if not self._done[0]:
                    # Of an output that somebody has removed.
                    self._retried.unlink(missing_ok=True)
                    self._manifest.save(self._settings)
            self._restart = False
            self._open = Output(self.output, *self._done, self._manifest)
        return self._open

    def _close_output(self) -> None:
        opened, self._open = self._open, None
        if opened:
            self._done = (opened.count, opened.size)
            opened.close()

    def _noted(self, lines: Iterator[Line], first: int) -> Iterator[Line]:
        for position, line in enumerate(lines, first):
            self._digests[position] = line.digest[:ENTRY]
            yield line


def check_place(output: Path) -> None:
    """Raise an HFPipeError where `output` cannot be a file of results."""
    with writing(output), suppress(FileNotFoundError):
        target = Path(os.path.realpath(output))
        if not target.parent.is_dir():
            raise UsageError(
                f"Cannot write {output}: the folder {target.parent} does not exist.", hint="Create the folder first."
            )
        # Of a loop of symlinks, stat fails.
        if not stat.S_ISREG(target.stat().st_mode):
            raise UsageError(
                f"Cannot write {output}: it is not a file.", hint="Without an output file, results go to stdout."
            )


def whole(path: Path) -> int:
    """The size of `path` without what a crash tore: a last line without its end, and one that is no JSON."""
    with path.open("rb") as file:
        end = _line_start(file, file.seek(0, os.SEEK_END))
        start = _line_start(file, end - 1)
        file.seek(start)
        return end if read_json(file.read(end - start)) is not None else start


def _line_start(file: BinaryIO, end: int) -> int:
    """Where the line begins that `end` is in: after the last newline before it."""
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _set_aside(output: Path) -> Path:
    """Rename `output` to the first free OUTPUT.1, OUTPUT.2, ..., which is returned, with a manifest of its own: the
    present one is the lock, and stays."""
    number = 1
    while any(map(os.path.lexists, _with_manifest(aside := output.with_name(f"{output.name}.{number}")))):
        number += 1
    # The output last: until it has gone, the next run finds everything as it was.
    if data := manifest_path(output).read_bytes():
        with manifest_path(aside).open("wb") as copy:
            copy.write(data)
            copy.flush()
            os.fsync(copy.fileno())
    for kind in ("manifest.json", "manifest.digests"):
        # Of version 0.1.0, which can still resume with them.
        if (old := output.with_name(f"{output.name}.{kind}")).exists():
            old.rename(aside.with_name(f"{aside.name}.{kind}"))
    output.rename(aside)
    sync_folder(output.parent)
    return aside


def _with_manifest(output: Path) -> tuple[Path, Path]:
    return output, manifest_path(output)
