"""The lines of an input, one at a time: a file, stdin, or either of them compressed with gzip."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from hfpipe.errors import HFPipeError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BUFFER = 1 << 18
_AHEAD = 256


class Line(NamedTuple):
    """A line that is not blank. `number` counts all lines from 1; `content` is without its end and without a BOM;
    `digest` is a sha256 over the contents of this line and all before it."""

    number: int
    content: bytes
    digest: bytes


def open_input(path: Path, output: Path | None = None) -> BinaryIO:
    """A file to read lines of. Raises UsageError where it cannot be read, or is the `output` too."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"The input {path} cannot be read: {error.strerror}.") from error
    if output is not None and output.exists() and os.path.samefile(path, output):
        file.close()
        raise UsageError(f"{path} is both the input and the output.", hint="Give the results a file of their own.")
    return cast(BinaryIO, file)


def read_lines(stream: BinaryIO, name: str = "the input") -> Iterator[Line]:
    r"""The lines of `stream` as they come in; only b"\n" ends one. Raises HFPipeError where reading fails."""
    digest = b""
    try:
        for number, raw in enumerate(_uncompressed(stream), 1):
            if number == 1 and raw.startswith(_UTF_16):
                raise UsageError(f"{name} is UTF-16 text.", hint="JSON lines are UTF-8: iconv -f UTF-16 -t UTF-8.")
            content = raw.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8)
            if content and not content.isspace():
                digest = hashlib.sha256(digest + content).digest()
                yield Line(number, content, digest)
    except (OSError, EOFError, zlib.error) as error:
        raise HFPipeError(f"Reading {name} failed: {error}.") from error


class Arriving:
    """Lines that may keep one waiting, read by a thread.

    None says that there is none as yet: while some of those that were given have no answer, of which `answered` says
    how many there are. Else the next is waited for.
    """

    def __init__(self, lines: Iterable[Line], answered: Callable[[], int]) -> None:
        self._lines = lines
        self._answered = answered
        self._given = 0
        # Bounded, so that memory is.
        self._read: Queue[Line | Exception] = Queue(_AHEAD)
        threading.Thread(target=self._read_all, name="hfpipe-lines", daemon=True).start()

    def __iter__(self) -> Iterator[Line | None]:
        return self

    def __next__(self) -> Line | None:
        try:
            line = self._read.get(block=self._given <= self._answered())
        except Empty:
            return None
        if isinstance(line, Exception):
            self._read.put(line)
            raise line
        self._given += 1
        return line

    def _read_all(self) -> None:
        end: Exception = StopIteration()
        try:
            for line in self._lines:
                self._read.put(line)
        except Exception as error:
            end = error
        self._read.put(end)


def _uncompressed(stream: BinaryIO) -> Iterable[bytes]:
    """What `stream` holds. The first bytes decide whether it is compressed, not its name."""
    head = stream.read(len(_GZIP))
    while head and len(head) < len(_GZIP) and (more := stream.read(1)):
        head += more
    whole = _Joined(head, stream)
    if head != _GZIP:
        return io.BufferedReader(whole, _BUFFER)
    # It has a buffer. One before it, or after it, would be filled before a line is seen.
    return gzip.GzipFile(fileobj=cast(BinaryIO, whole), mode="rb")


class _Joined(io.RawIOBase):
    """`head`, and then the rest of `stream` as it comes: a line from a pipe does not wait for those after it."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        # Of a stream with a buffer, readinto1 would read on although there is something in it.
        self._read = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._read(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        return len(data)
