"""What stands in an output: where it is whole, and what its lines are the results of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from hfpipe.batch.disk import writing
from hfpipe.batch.manifest import RESTART
from hfpipe.batch.results import Standing, read_json
from hfpipe.errors import HFPipeError

_BLOCK = 1 << 16


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


def results(path: Path, size: int, read_result: Callable[[bytes], Standing | None]) -> Iterator[Standing]:
    """The results in the first `size` bytes. Raises HFPipeError for a line that is none."""
    if not size:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            standing = read_result(line)
            if standing is None:
                raise HFPipeError(
                    f"Line {number:,} of {path} is no result of hfpipe.",
                    hint=f"To go on, cut the file before that line. {RESTART}",
                )
            yield standing
            size -= len(line)
            if not size:
                return


def copy_with(
    old: Path, new: Path, results: Iterable[tuple[int, bytes]], read_result: Callable[[bytes], Standing | None]
) -> int:
    """Copy `old` to `new` with other lines at some positions, given in ascending order, and say how many."""
    position, count = 0, 0
    with old.open("rb") as source, _closing(new) as target:
        for place, line in results:
            with writing(old):
                target.writelines(islice(source, max(0, place - position)))
                _check_replaced(source.readline() if place >= position else b"", line, read_result)
                target.write(line)
            position, count = place + 1, count + 1
        with writing(old):
            shutil.copyfileobj(source, target)
            os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
            target.flush()
            os.fsync(target.fileno())
    return count


@contextmanager
def _closing(path: Path) -> Iterator[BinaryIO]:
    """A new file, flushed by whom it is written. Closing it after a failure would fail again."""
    with writing(path):
        file = path.open("wb")
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _check_replaced(old: bytes, new: bytes, read_result: Callable[[bytes], Standing | None]) -> None:
    was, is_now = read_result(old), read_result(new)
    if was is None or is_now is None or was.id != is_now.id:
        raise ValueError(f"{new[:80]!r} is no result for the place of {old[:80]!r}")
