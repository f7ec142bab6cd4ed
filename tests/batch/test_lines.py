"""Lines come as they are, whatever they come in."""

import gzip
import io
import os
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch.lines import Lines, arriving, open_input
from hfpipe.errors import HFPipeError, UsageError

BOM = b"\xef\xbb\xbf"
ENDS = st.sampled_from([b"\n", b"\r\n"])
BLANK = st.sampled_from([b"", b" ", b"\t  "])
# A BOM in a line is that of a file that was joined with others; it is no part of the line either.
CONTENT = st.one_of(
    st.binary(min_size=1, max_size=40).map(lambda data: data.replace(b"\n", b"n").rstrip(b"\r")),
    st.text(max_size=20).map(lambda text: b'{"x": "%s"}' % text.encode(errors="replace").replace(b"\n", b" ")),
).filter(lambda data: data.strip() and not data.startswith((BOM, b"\xff\xfe", b"\xfe\xff", b"\x1f")))


class Chunks(io.RawIOBase):
    """A stream that gives as much at once as it likes."""

    def __init__(self, data, sizes):
        self.rest, self.sizes, self.turn = data, sizes, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.sizes[self.turn % len(self.sizes)])
        self.turn += 1
        taken, self.rest = self.rest[:size], self.rest[size:]
        buffer[: len(taken)] = taken
        return len(taken)


def of(data):
    return Lines(io.BufferedReader(io.BytesIO(data)))


def read(data):
    return [(line.number, line.content) for line in of(data)]


@st.composite
def files(draw):
    """A file, and the lines that it has."""
    data, expected = draw(st.sampled_from([b"", BOM])), []
    parts = draw(st.lists(st.tuples(CONTENT | BLANK, ENDS), max_size=8))
    for number, (content, end) in enumerate(parts, 1):
        data += content + end
        expected += [(number, content)] if content.strip() else []
    if parts and draw(st.booleans()):
        data = data.removesuffix(parts[-1][1])
    return data, expected


@given(
    files(),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.sampled_from([bytes, gzip.compress]),
)
def test_any_file_in_any_chunks(file, sizes, packed):
    data, expected = file
    found = list(Lines(io.BufferedReader(Chunks(packed(data), sizes))))
    assert [(line.number, line.content) for line in found] == expected


@given(st.lists(CONTENT, min_size=1, max_size=6), ENDS, st.integers(0, 5))
def test_the_digest_is_of_the_contents_up_to_there(contents, end, changed):
    def digests(lines, separator=b"\n"):
        return [line.digest for line in of(separator.join(lines))]

    whole = digests(contents)
    assert digests([BOM + contents[0], b"", *contents[1:]], end) == whole
    assert digests(contents[:-1]) == whole[:-1]
    changed %= len(contents)
    other = digests([*contents[:changed], b"another " + contents[changed], *contents[changed + 1 :]])
    assert other[:changed] == whole[:changed]
    assert set(other[changed:]).isdisjoint(whole[changed:])


def test_only_a_newline_ends_a_line():
    odd = '{"a": "\u2028 \u2029 \x85"} \x0b \x0c \x1c \r x'.encode()
    assert read(odd + b"\n" + odd) == [(1, odd), (2, odd)]


@pytest.mark.parametrize("data", [b"", BOM, b"\n\r\n  \n", BOM + b"\n"])
def test_nothing(data):
    assert read(data) == []


def test_a_long_line():
    long = b'"' + b"x" * 10_000_000 + b'"'
    assert [content for _, content in read(long + b"\n1\n" + long)] == [long, b"1", long]


def test_files_joined_with_their_marks():
    assert read(BOM + b"1\n" + BOM + b"2\n") == [(1, b"1"), (2, b"2")]
    assert read(gzip.compress(b"1\n") + gzip.compress(b"2\n")) == [(1, b"1"), (2, b"2")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_from_a_pipe_does_not_wait_for_the_next(packed):
    """Nor do several that came at once."""
    packer = zlib.compressobj(wbits=31) if packed else None
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as source:
        lines = iter(Lines(stream))
        for contents in ([b"1"], [b"22"], [b"333", b"4"], [b"5" * 20, b"6"]):
            data = b"".join(content + b"\n" for content in contents)
            source.write(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH) if packer else data)
            assert [next(lines).content for _ in contents] == contents
        source.write(packer.flush() if packer else b"")
        source.close()
        assert next(lines, None) is None


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_how_many_lines_there_will_be(tmp_path, packed):
    """Estimated from a part of a file."""
    data = packed(b"".join(b'"%06d"\n' % number for number in range(1000)))
    (tmp_path / "x").write_bytes(data)
    with open_input(tmp_path / "x") as stream:
        lines = Lines(stream, size=len(data))
        assert {(lines.expected, lines.estimated) for _ in lines} == {(1000, True), (1000, False)}
    assert of(data).expected is None


def test_lines_that_arrive():
    """While an answer is awaited none is waited for."""
    answered = 0
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as source:
        lines = arriving(Lines(stream), lambda: answered)
        source.write(b"1\n")
        assert next(lines).content == b"1"
        assert [next(lines) for _ in range(3)] == [None] * 3
        source.write(b"2\n")
        assert next(line for line in lines if line).content == b"2"
        assert next(lines) is None
        answered = 2
        source.write(b"3\n")
        assert next(lines).content == b"3"
        answered = 3
        source.close()
        assert list(lines) == []


def test_what_goes_wrong_while_lines_arrive():
    packed = gzip.compress(os.urandom(20_000) + b"\n" + os.urandom(20_000))
    lines = arriving(of(packed[:-9]), lambda: 9)
    with pytest.raises(HFPipeError, match=r"^Reading the input failed"):
        list(lines)


class Endless(io.RawIOBase):
    """The same line for ever."""

    line, at = b'{"question": "x"}\n', 0

    def readable(self):
        return True

    def readinto(self, buffer):
        start = self.at % len(self.line)
        data = (self.line * (len(buffer) // len(self.line) + 2))[start : start + len(buffer)]
        self.at += len(data)
        buffer[:] = data
        return len(data)


@pytest.mark.parametrize("piped", [False, True])
def test_only_what_is_asked_for_is_read(piped):
    tracemalloc.start()
    lines = iter(Lines(io.BufferedReader(Endless())))
    if piped:
        lines = arriving(lines, lambda: 2**30)
    for _ in range(20_000):
        assert next(lines).content == b'{"question": "x"}'
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:40] + b"\0" * 40 + data[80:]])
def test_a_damaged_archive_is_one_line(spoil):
    data = spoil(gzip.compress(os.urandom(20_000) + b"\n"))
    with pytest.raises(HFPipeError, match=r"(?m)^Reading q\.gz failed: .*\.$") as caught:
        list(Lines(io.BufferedReader(io.BytesIO(data)), "q.gz"))
    assert "\n" not in caught.value.message


def test_utf_16_is_named():
    stream = io.BufferedReader(io.BytesIO('{"a": 1}\n'.encode("utf-16")))
    with pytest.raises(UsageError, match=r"(?m)^stdin is UTF-16 text\.$") as caught:
        list(Lines(stream, "stdin"))
    assert "iconv" in caught.value.hint


def test_inputs_that_cannot_be_read(tmp_path):
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UsageError, match=f"cannot be read: {reason}"):
            open_input(path)


def test_the_input_is_not_the_output(tmp_path):
    path, link, other = tmp_path / "x", tmp_path / "link", tmp_path / "other"
    path.touch()
    link.symlink_to(path)
    for output in (path, link):
        with pytest.raises(UsageError, match="both the input and the output"):
            open_input(path, output)
    open_input(path, other).close()
    other.touch()
    open_input(path, other).close()
