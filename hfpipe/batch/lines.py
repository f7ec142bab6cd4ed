"""The lines of an input, one at a time: a file, stdin, or either of them compressed with gzip."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import BinaryIO, NamedTuple, cast

from hfpipe.errors import HFPipeError, UsageError
from hfpipe.process import start_thread

_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEADER = 16
_BUFFER = 1 << 18
_AHEAD = 256


class Line(NamedTuple):
    """A line that is not blank. `number` counts all lines from 1; `content` is without its end and without a BOM;
    `digest` is a sha256 over the contents of this line and all before it."""

    number: int
    content: bytes
    digest: bytes


def open_input(path: Path | None, output: Path | None = None) -> io.BufferedReader:
    """A file, or stdin, to read lines of. Raises UsageError where it cannot be read, or is also the `output`."""
    if path is None:
        return io.BufferedReader(io.FileIO(0, closefd=False), _BUFFER)
    try:
        file: io.BufferedReader = io.BufferedReader(io.FileIO(path), _BUFFER)
    except OSError as error:
        raise UsageError(f"The input {path} cannot be read: {error.strerror}.") from error
    if output is not None and output.exists() and os.path.samefile(path, output):
        file.close()
        raise UsageError(f"{path} is both the input and the output.", hint="Write the results to another file.")
    return file


class Lines:
    r"""The lines of `stream` as they come in; only b"\n" ends one. To be iterated once.

    Raises HFPipeError where reading fails. `expected` estimates how many there are in a file of `size` bytes, from the
    share of it that has been given; None for a pipe.
    """

    def __init__(self, stream: io.BufferedReader, name: str = "the input", size: int | None = None) -> None:
        self.name = name
        self._stream = stream
        self._size = size
        self._count = self._bytes = 0

    @property
    def expected(self) -> int | None:
        if not (self._size and self._bytes):
            return None
        return max(self._count, round(self._count * self._size / self._bytes))

    @property
    def estimated(self) -> bool:
        return self._size is not None and self._bytes != self._size

    def __iter__(self) -> Iterator[Line]:
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

    def _uncompressed(self) -> Iterable[bytes]:
        """What the stream holds. The first bytes decide whether it is compressed, not its name."""
        begin = self._stream.peek(len(_GZIP))[: len(_GZIP)]
        if not begin or not _GZIP.startswith(begin):
            return self._stream
        if self._size:
            # A gzip file ends with the size of what is in it.
            self._size = int.from_bytes(os.pread(self._stream.fileno(), 4, self._size - 4), "little")

        def read(size: int) -> bytes:
            # Of the contents what has come, while `read` would wait for all of it; of the few bytes of a header all.
            return self._stream.read1(size) if size > _HEADER else self._stream.read(size)

        return gzip.GzipFile(fileobj=cast(BinaryIO, SimpleNamespace(read=read)), mode="rb")


def arriving(lines: Iterable[Line], answered: Callable[[], int]) -> Iterator[Line | None]:
    """Lines that may keep one waiting, read by a thread.

    None while no line is ready and some of those given are unanswered (`answered` tells how many are answered). Else
    the next is waited for.
    """
    # Bounded, so that memory is.
    queue: Queue[Line | Exception | None] = Queue(_AHEAD)

    def read() -> None:
        end = None
        try:
            for line in lines:
                queue.put(line)
        except Exception as error:
            end = error
        queue.put(end)

    start_thread(read)
    given = 0
    while True:
        try:
            line = queue.get(block=given <= answered())
        except Empty:
            yield None
            continue
        if isinstance(line, Exception):
            raise line
        if line is None:
            return
        given += 1
        yield line
