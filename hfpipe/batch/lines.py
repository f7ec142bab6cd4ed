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
    """A file to read lines of. Raises UsageError where it cannot be read, or is also the `output`."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"The input {path} cannot be read: {error.strerror}.") from error
    if output is not None and output.exists() and os.path.samefile(path, output):
        file.close()
        raise UsageError(f"{path} is both the input and the output.", hint="Write the results to another file.")
    return cast(BinaryIO, file)


class Lines:
    r"""The lines of `stream` as they come in; only b"\n" ends one. Raises HFPipeError where reading fails.

    `size` is that of the file, compressed or not, and `expected` then an estimate of how many lines there will be.
    """

    def __init__(self, stream: BinaryIO, name: str = "the input", size: int | None = None) -> None:
        self.name = name
        self._size = size
        self._stream = stream
        self._source: _Joined | None = None
        self._plain: _Joined | None = None
        self._ended = False
        self._count = self._bytes = 0
        self._lines = self._read()

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        return next(self._lines)

    @property
    def expected(self) -> int | None:
        """From the share of the file that these lines were read from; exact once all have been. None for a pipe."""
        if self._ended:
            return self._count
        if not (self._size and self._source and self._plain and self._bytes and self._source.given):
            return None
        unpacked = self._size * self._plain.given / self._source.given
        return max(self._count, round(self._count * unpacked / self._bytes))

    def _read(self) -> Iterator[Line]:
        digest = b""
        try:
            for number, raw in enumerate(self._uncompressed(), 1):
                if number == 1 and raw.startswith(_UTF_16):
                    raise UsageError(
                        f"{self.name} is UTF-16 text.", hint="JSON lines are UTF-8: iconv -f UTF-16 -t UTF-8."
                    )
                self._bytes += len(raw)
                content = raw.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8)
                if content and not content.isspace():
                    digest = hashlib.sha256(digest + content).digest()
                    self._count += 1
                    yield Line(number, content, digest)
        except (OSError, EOFError, zlib.error) as error:
            raise HFPipeError(
                f"Reading {self.name} failed: {str(error).rstrip('.')}.",
                hint="The records before it are answered. Run the same command again once the input is complete.",
            ) from error
        self._ended = True

    def _uncompressed(self) -> Iterable[bytes]:
        """What the stream holds. The first bytes decide whether it is compressed, not its name."""
        head = self._stream.read(len(_GZIP))
        while head and len(head) < len(_GZIP) and (more := self._stream.read(1)):
            head += more
        self._source = self._plain = _Joined(head, self._stream)
        if head == _GZIP:
            unpacked = gzip.GzipFile(fileobj=cast(BinaryIO, self._source), mode="rb")
            self._plain = _Joined(b"", cast(BinaryIO, unpacked))
        return io.BufferedReader(self._plain, _BUFFER)


class Arriving:
    """Lines that may keep one waiting, read by a thread.

    Gives None while no line is ready and some of those given are unanswered (`answered` tells how many are answered).
    Else the next is waited for.
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


class _Joined(io.RawIOBase):
    """`head`, and then the rest of `stream` as it comes: a line from a pipe does not wait for those after it. `given`
    counts the bytes."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.given = 0
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
        self.given += len(data)
        return len(data)
