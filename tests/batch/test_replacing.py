"""Errors are replaced by new results all at once."""

import os
from pathlib import Path

import pytest

from hfpipe.batch import journal as disk
from hfpipe.batch.lines import Lines, open_input
from hfpipe.errors import HFPipeError
from tests.batch.work import files, finished, journal, mended, run, with_mended

FAILED = [3, 7, 11, 15, 19]


def test_new_results_in_their_places(source, output):
    run(source, output)
    output.chmod(0o640)
    with open_input(source) as stream, journal(output) as opened:
        assert list(opened.resume(Lines(stream))) == []
        assert list(opened.failed) == FAILED
        opened.replace_errors(iter(mended(source, *FAILED)))
        assert list(opened.failed) == []
        with pytest.raises(HFPipeError, match="Another"), journal(output):
            pass
    assert output.read_bytes() == with_mended(source, *FAILED)
    assert output.stat().st_mode & 0o777 == 0o640
    assert ".out.jsonl.hfpipe.tmp" not in files(output.parent)
    run(source, output)
    assert output.read_bytes() == with_mended(source, *FAILED)


@pytest.mark.parametrize("error", [KeyboardInterrupt, HFPipeError("no"), OSError("of the engine")])
def test_what_ends_a_retry_keeps_what_it_has(source, output, error):
    run(source, output)

    def results(*positions):
        before = output.read_bytes()
        yield from mended(source, *positions)
        assert output.read_bytes() == before
        raise error

    with open_input(source) as stream, journal(output) as opened:
        opened.resume(Lines(stream))
        for positions, left in [((3,), [7, 11, 15, 19]), ((7, 11), [15, 19])]:
            with pytest.raises(type(error) if isinstance(error, Exception) else error):
                opened.replace_errors(results(*positions))
            assert list(opened.failed) == left
            assert ".out.jsonl.hfpipe.tmp" not in files(output.parent)
    assert output.read_bytes() == with_mended(source, 3, 7, 11)


LEFT = {
    "of the retry": lambda whole, new: new,
    "torn": lambda whole, new: new[:-5],
    "of another file": lambda whole, new: b"{}\n" + new,
    "of another record": lambda whole, new: new.replace(b'"id": "4"', b'"id": "5"'),
    "nothing new": lambda whole, new: whole[: len(whole) // 2],
    "nothing": lambda whole, new: b"",
}


@pytest.mark.parametrize("left", LEFT)
def test_the_file_that_a_killed_retry_left(source, output, left):
    """The next run takes over what is a result in the place of an error, and nothing else."""
    run(source, output, limit=17)
    whole = output.read_bytes()
    replaced = b"".join(with_mended(source, 3, 7).splitlines(keepends=True)[:10])
    output.with_name(".out.jsonl.hfpipe.tmp").write_bytes(LEFT[left](whole, replaced))
    run(source, output)
    kept = (3, 7) if left in ("of the retry", "torn") else ()
    assert output.read_bytes() == with_mended(source, *kept)
    assert files(output.parent) == [".out.jsonl.hfpipe", "out.jsonl"]


def test_a_restart_keeps_what_a_killed_retry_left_with_the_old_results(source, output):
    run(source, output)
    output.with_name(".out.jsonl.hfpipe.tmp").write_bytes(with_mended(source, 3))
    run(source, output, restart=True)
    assert output.with_name("out.jsonl.1").read_bytes() == with_mended(source, 3)
    assert output.read_bytes() == finished(source)


def test_the_bytes_are_on_the_disk_before_the_name(source, output, monkeypatch):
    run(source, output)
    order = []
    replace = Path.replace

    def fsync(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def renamed(old, new):
        order.append("rename")
        return replace(old, new)

    with open_input(source) as stream, journal(output) as opened:
        opened.resume(Lines(stream))
        monkeypatch.setattr(disk.os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", renamed)
        opened.replace_errors(mended(source, *FAILED))
        assert order[-3:] == [".out.jsonl.hfpipe.tmp", "rename", output.parent.name]
