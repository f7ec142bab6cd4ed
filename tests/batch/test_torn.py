"""Whatever a crash leaves of a file, the next run makes the finished one of it."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.batch import journal as disk
from tests.batch.work import finished, manifest, run, saved, write_questions


@st.composite
def endings(draw):
    """How a run ends: after how many results, how much of its bytes the disk lost, what stands instead, and what was
    lost of the digests."""
    return (
        draw(st.integers(1, 6)),
        draw(st.just(0) | st.integers(0, 400)),
        draw(st.sampled_from([b"", b"\0" * 50, b'{"id": "', b'{"id": "1", "text": "\n', b"\n"])),
        draw(st.just(0) | st.integers(0, 5)),
        draw(st.booleans()),
    )


@given(st.integers(0, 14), st.lists(endings(), max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_a_crash_left_the_file_becomes_the_same(count, ends, grows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.os, "fsync", lambda _: None)
        source, output = Path(folder, "q.jsonl"), Path(folder, "out.jsonl")
        for step, (limit, lost, torn, lost_digests, zeros) in enumerate(ends, 1):
            write_questions(source, count * step // len(ends) if grows else count)
            run(source, output, limit=limit)
            assert finished(source).startswith(output.read_bytes())
            spoil(output, lost, torn)
            # A disk loses whole sectors, or what was written last.
            held = manifest(output).stat().st_size - saved(output)[1]
            lost_bytes = min(held, lost_digests * (8 if zeros else 3))
            spoil(manifest(output), lost_bytes, bytes(lost_bytes) if zeros else b"")
        write_questions(source, count)
        run(source, output)
        assert output.read_bytes() == finished(source)


def spoil(path, lost, torn):
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - lost)] + torn)


@pytest.mark.parametrize("torn", [b"{", b'{"id": "5', b"\0" * 5000, b'{"id": "5", "text": "\n', b"\n", b"\xff\n"])
def test_a_torn_end_is_cut_off(source, output, torn):
    run(source, output, limit=5)
    with output.open("ab") as file:
        file.write(torn)
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_zeros_within_the_last_line(source, output):
    run(source, output, limit=5)
    whole = output.read_bytes()
    at = len(whole) - 60
    output.write_bytes(whole[:at] + b"\0" * 8 + whole[at + 8 :])
    run(source, output)
    assert output.read_bytes() == finished(source)
