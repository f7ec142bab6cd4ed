"""The results of a batch in a file: at every moment a prefix of the finished one, whatever ends the process."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from typing_extensions import Self

from hfpipe.batch import manifest, standing
from hfpipe.batch.disk import unwritable, writing
from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.output import Output
from hfpipe.batch.results import Standing
from hfpipe.errors import HFPipeError, UsageError


class Journal:
    """The output of a batch, to which results are appended in input order.

    A context manager: entered, it locks the output against other runs for as long as it is open and its process lives,
    and checks that what stands there was made with the same `settings` (JSON values by name). `resume` then finds the
    place to go on, and `append` writes. With `restart`, what stands is renamed instead. For one thread at a time;
    another may take the lines.

    Of the results found, `failed` are the positions (from 0) of errors, and `errors` counts their words. `set_aside` is
    the old output's new name.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], form: Format, *, restart: bool = False) -> None:
        # A symlink would be replaced by what it points to.
        self.output = output.resolve() if output.is_symlink() else output
        self.failed: array[int] = array("Q")
        self.errors: Counter[str] = Counter()
        self.set_aside: Path | None = None
        self._settings = settings
        self._format = form
        self._restart = restart
        self._lock = FileLock(_beside(self.output, "lock"), thread_local=False)
        self._open: Output | None = None
        self._count = 0
        # Of the records that were read and have no result, by position.
        self._digests: dict[int, bytes] = {}

    @property
    def count(self) -> int:
        """How many results stand, once `resume` has returned."""
        return self._open.count if self._open else self._count

    def __enter__(self) -> Self:
        self._check_place()
        self._take_lock()
        try:
            self._check_settings()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except HFPipeError:
            if error is None:
                raise

    def close(self) -> None:
        """Have the disk hold everything, and let others write. Raises HFPipeError where the disk did not take it."""
        opened, self._open = self._open, None
        try:
            if opened:
                self._count = opened.count
                opened.close()
        finally:
            self._lock.release()

    def resume(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Go past the lines whose results stand, and return those after them.

        Each must be what it was when its result was written, and have the id that the result has; lines after them may
        have changed. Raises HFPipeError where that is not so, and then nothing has been touched.
        """
        lines, count = iter(lines), 0
        with writing(self.output):
            size = standing.whole(self.output) if self._stands() and not self._restart else 0
        digests = manifest.read_digests(self.output)
        for count, result in enumerate(standing.results(self.output, size, self._format.read_result), 1):
            self._compare(count, next(lines, None), result, next(digests, b""))
            self._count_error(count - 1, result)
        digests.close()
        self._begin(count, size)
        return self._noted(lines, count)

    def append(self, line: bytes) -> None:
        """Write the result of the oldest record without one. Raises HFPipeError where the file cannot take it, or was
        changed by somebody else; the file then ends with the result before."""
        position = self.count
        if self._open is None or position not in self._digests:
            raise ValueError("a result is of a record that resume has given")
        if not line.endswith(b"\n") or line.count(b"\n") > 1:
            raise ValueError("a result is one line")
        self._open.append(line, self._digests[position])
        del self._digests[position]

    def replace_errors(self, results: Iterable[tuple[int, bytes]]) -> int:
        """Put new results in the places of old ones, and say how many.

        `results` are positions and lines in ascending order. They may be made while they are taken; the old file stands
        until they end, and the new one is then in its place at once.
        """
        if self._open is None:
            raise ValueError("resume comes first")
        temporary = _beside(self.output, "tmp")
        try:
            replaced = standing.copy_with(self.output, temporary, results, self._format.read_result)
            self._open.replace(temporary)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self.failed, self.errors = array("Q"), Counter()
        for position, result in enumerate(standing.results(self.output, self._open.size, self._format.read_result)):
            self._count_error(position, result)
        return replaced

    def _check_place(self) -> None:
        with writing(self.output):
            if not self.output.parent.is_dir():
                raise UsageError(f"{self.output} has no folder: {self.output.parent} is none.", hint="Make it first.")
            if self.output.exists() and not self.output.is_file():
                raise UsageError(f"{self.output} is not a file.", hint="Without an output, results go to stdout.")

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise HFPipeError(
                f"Another hfpipe is writing to {self.output}.", hint="Wait until it has ended, or choose another file."
            ) from error
        except OSError as error:
            raise unwritable(self.output, error) from error

    def _check_settings(self) -> None:
        with writing(self.output):
            if self._stands() and not self._restart:
                manifest.check(self.output, self._settings)
                # That it cannot be written is to be said before a model is loaded.
                os.close(os.open(self.output, os.O_WRONLY))

    def _stands(self) -> bool:
        return self.output.exists() and self.output.stat().st_size > 0

    def _compare(self, number: int, line: Line | None, result: Standing, digest: bytes) -> None:
        if line is None:
            said = f"The input ends before the {number:,} records that have a result in {self.output}."
        elif digest not in (b"", line.digest[: manifest.ENTRY]):
            said = f"Line {line.number:,} of the input is not what it was when {self.output} was written."
        elif (found := self._format.read_id(line)) != result.id:
            said = (
                f"Line {number:,} of {self.output} has the id {result.id!r}, and its record, line {line.number:,} of"
                f" the input, {found!r}."
            )
        else:
            return
        raise HFPipeError(said, hint=manifest.RESTART)

    def _count_error(self, position: int, result: Standing) -> None:
        if result.error is not None:
            self.failed.append(position)
            self.errors[result.error] += 1

    def _begin(self, count: int, size: int) -> None:
        with writing(self.output):
            if self._restart and self._stands():
                self.set_aside = manifest.set_aside(self.output)
            if not count:
                manifest.save(self.output, self._settings)
            # Of a run that was killed while it replaced errors.
            _beside(self.output, "tmp").unlink(missing_ok=True)
        self._open = Output(self.output, count, size)

    def _noted(self, lines: Iterator[Line], first: int) -> Iterator[Line]:
        for position, line in enumerate(lines, first):
            self._digests[position] = line.digest[: manifest.ENTRY]
            yield line


def _beside(output: Path, kind: str) -> Path:
    return output.with_name(f".{output.name}.{kind}")
