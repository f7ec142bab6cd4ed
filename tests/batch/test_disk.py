"""What was written gets to the disk, and a disk that takes no more leaves whole lines."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfpipe.batch import journal as disk
from hfpipe.batch.lines import Lines, open_input
from hfpipe.errors import HFPipeError
from tests.batch.work import answered, finished, journal, run, write_questions

# On the disk


@pytest.fixture
def synced(monkeypatch):
    """The names of files, in the order of their fsyncs."""
    seen = []

    def fsync(descriptor):
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(disk.os, "fsync", fsync)
    return seen


def test_what_was_written_gets_to_the_disk_though_nothing_more_is(source, output, synced, monkeypatch):
    monkeypatch.setattr(disk, "_SYNC_AFTER_S", 0.001)
    with open_input(source) as stream, journal(output) as opened:
        results = answered(opened.resume(Lines(stream)))
        synced.clear()
        opened.append(*next(results))
        while "out.jsonl" not in synced:
            time.sleep(0.01)
        assert synced[0] == ".out.jsonl.hfpipe"


def test_the_disk_is_not_asked_for_every_line(source, output, synced, monkeypatch):
    monkeypatch.setattr(disk, "_SYNC_AFTER_S", 3600)
    with open_input(source) as stream, journal(output) as opened:
        results = answered(opened.resume(Lines(stream)))
        opened.append(*next(results))
        # The settings and the names are on the disk before the first result.
        assert synced == [".out.jsonl.hfpipe", output.parent.name]
        synced.clear()
        for result in results:
            opened.append(*result)
        assert synced == []
    assert synced == [".out.jsonl.hfpipe", "out.jsonl"]


def test_the_digest_is_written_before_the_result(source, output, monkeypatch):
    """A kill between them leaves a digest without a result, which harms nobody."""
    order, write, pwrite = [], os.write, os.pwrite
    monkeypatch.setattr(disk.os, "write", lambda *args: order.append("result") or write(*args))
    monkeypatch.setattr(disk.os, "pwrite", lambda *args: order.append("digest") or pwrite(*args))
    run(source, output, limit=2)
    # After the settings.
    assert order == ["digest", *["digest", "result"] * 2]


def test_a_disk_that_fails_later_is_told(source, output, monkeypatch):
    def fsync(_):
        raise OSError(5, "Input/output error")

    with open_input(source) as stream:
        opened = journal(output).__enter__()
        results = answered(opened.resume(Lines(stream)))
        opened.append(*next(results))
        monkeypatch.setattr(disk.os, "fsync", fsync)
        monkeypatch.setattr(disk, "_SYNC_AFTER_S", 0.001)
        opened.append(*next(results))
        with pytest.raises(HFPipeError, match="Input/output error"):
            opened.__exit__(None, None, None)
    monkeypatch.undo()
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_an_error_is_not_hidden_by_one_at_the_end(source, output, monkeypatch):
    def fsync(_):
        raise OSError(5, "Input/output error")

    with pytest.raises(KeyError), open_input(source) as stream, journal(output) as opened:  # noqa: PT012
        opened.resume(Lines(stream))
        monkeypatch.setattr(disk.os, "fsync", fsync)
        raise KeyError


def test_the_end_is_never_missed(source, output, monkeypatch):
    """However the last write and the end fall beside a turn of the thread that syncs."""
    monkeypatch.setattr(disk, "_SYNC_AFTER_S", 1e-6)
    monkeypatch.setattr(disk.os, "fsync", lambda _: None)
    for _ in range(100):
        run(source, output)
        output.unlink()


# A disk that takes a part


@pytest.fixture
def full(monkeypatch):
    """`full(n)`: the disk takes n bytes more, in two writes, and then none."""
    room = [10**9]
    write = os.write

    def partly(descriptor, data):
        taken = min(len(data), max(1, room[0] // 2))
        if not room[0]:
            raise OSError(28, "No space left on device")
        room[0] -= taken
        return write(descriptor, data[:taken])

    def set_room(size):
        room[0] = size

    monkeypatch.setattr(disk.os, "write", partly)
    return set_room


@given(st.integers(0, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_of_a_line_is_cut_back(full, room):
    with tempfile.TemporaryDirectory() as folder:
        source, output = write_questions(Path(folder, "q.jsonl"), 8), Path(folder, "out.jsonl")
        with open_input(source) as stream, journal(output) as opened:
            results = list(answered(opened.resume(Lines(stream))))
            for result in results[:4]:
                opened.append(*result)
            full(room)
            for _ in range(2):
                with pytest.raises(HFPipeError, match=r"^The disk of .*out\.jsonl is full\.") as caught:
                    opened.append(*results[4])
                assert "run it again" in caught.value.hint
                assert output.read_bytes() == b"".join(line for _, line in results[:4])
            full(10**9)
            opened.append(*results[4])
        run(source, output)
        assert output.read_bytes() == finished(source)


def test_an_interrupt_between_two_parts_leaves_whole_lines(source, output, monkeypatch):
    write = os.write

    def interrupted(descriptor, data):
        write(descriptor, data[:7])
        raise KeyboardInterrupt

    with open_input(source) as stream, journal(output) as opened:
        results = list(answered(opened.resume(Lines(stream))))
        opened.append(*results[0])
        with monkeypatch.context() as patch:
            patch.setattr(disk.os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                opened.append(*results[1])
        assert output.read_bytes() == results[0][1]
        opened.append(*results[1])
    assert output.read_bytes() == results[0][1] + results[1][1]


def test_an_interrupt_after_a_line_leaves_it(source, output, monkeypatch):
    write = os.write

    def interrupted(descriptor, data):
        write(descriptor, data)
        raise KeyboardInterrupt

    with open_input(source) as stream, journal(output) as opened:
        results = list(answered(opened.resume(Lines(stream))))
        with monkeypatch.context() as patch:
            patch.setattr(disk.os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                opened.append(*results[0])
        assert (opened.count, output.read_bytes()) == (1, results[0][1])
        opened.append(*results[1])
    assert output.read_bytes() == results[0][1] + results[1][1]
