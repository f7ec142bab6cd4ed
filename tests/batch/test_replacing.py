"""Errors are replaced by new results all at once."""

import os
from pathlib import Path

import pytest

from hfpipe.batch import output as disk
from hfpipe.batch.lines import Lines, open_input
from hfpipe.errors import HFPipeError
from tests.batch.work import FORM, answer, files, finished, journal, mended, run, with_results


@pytest.mark.parametrize("positions", [[], [3], [3, 7, 11, 15, 19], [19]])
def test_new_results_in_their_places(source, output, positions):
    run(source, output)
    output.chmod(0o640)
    replaced = mended(source, *positions)
    with open_input(source) as stream, journal(output) as opened:
        assert list(opened.resume(Lines(stream))) == []
        assert list(opened.failed) == [3, 7, 11, 15, 19]
        opened.replace_errors(iter(replaced))
        assert set(opened.failed) == {3, 7, 11, 15, 19} - set(positions)
        with pytest.raises(HFPipeError, match="Another"), journal(output):
            pass
    assert output.read_bytes() == with_results(source, replaced)
    assert output.stat().st_mode & 0o777 == 0o640
    assert ".out.jsonl.hfpipe.tmp" not in files(output.parent)
    run(source, output)
    assert output.read_bytes() == with_results(source, replaced)


def test_a_run_goes_on_after_errors_were_replaced(source, output):
    run(source, output, limit=9)
    replaced = mended(source, 3)
    with open_input(source) as stream, journal(output) as opened:
        rest = opened.resume(Lines(stream))
        opened.append(answer(FORM.read_record(next(rest))))
        opened.replace_errors(replaced)
        for line in rest:
            opened.append(answer(FORM.read_record(line)))
    assert output.read_bytes() == with_results(source, replaced)


@pytest.mark.parametrize("wrong", [[3, 3], [7, 3], [20], [-1]])
def test_results_that_have_no_place(source, output, wrong):
    run(source, output)
    ((_, line),) = mended(source, 3)
    with open_input(source) as stream, journal(output) as opened:
        opened.resume(Lines(stream))
        with pytest.raises(ValueError, match="is no result for position"):
            opened.replace_errors([(position, line) for position in wrong])
    # What came before is kept.
    assert output.read_bytes() == (with_results(source, [(3, line)]) if wrong == [3, 3] else finished(source))
    assert ".out.jsonl.hfpipe.tmp" not in files(output.parent)


def test_another_records_result_has_no_place(source, output):
    run(source, output)
    ((_, line),) = mended(source, 7)
    with open_input(source) as stream, journal(output) as opened:
        opened.resume(Lines(stream))
        with pytest.raises(ValueError, match="is no result"):
            opened.replace_errors([(3, line)])
    assert output.read_bytes() == finished(source)


@pytest.mark.parametrize("error", [KeyboardInterrupt, HFPipeError("no"), OSError("of the engine")])
def test_what_ends_a_retry_keeps_what_it_has(source, output, error):
    run(source, output)

    def results():
        yield from mended(source, 3)
        assert output.read_bytes() == finished(source)
        raise error

    with open_input(source) as stream, journal(output) as opened:
        opened.resume(Lines(stream))
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            opened.replace_errors(results())
        assert output.read_bytes() == with_results(source, mended(source, 3))
        assert list(opened.failed) == [7, 11, 15, 19]
        assert ".out.jsonl.hfpipe.tmp" not in files(output.parent)
        opened.replace_errors(mended(source, 7))
    assert output.read_bytes() == with_results(source, mended(source, 3, 7))


LEFT = {
    "of the retry": lambda whole, new: new,
    "torn": lambda whole, new: new[:-5],
    "of another file": lambda whole, new: b"{}\n" + new,
    "nothing new": lambda whole, new: whole[: len(whole) // 2],
    "nothing": lambda whole, new: b"",
}


@pytest.mark.parametrize("left", LEFT)
def test_the_file_that_a_killed_retry_left(source, output, left):
    """The next run takes over what is a result in the place of an error, and nothing else."""
    run(source, output, limit=17)
    whole = output.read_bytes()
    replaced = b"".join(with_results(source, mended(source, 3, 7)).splitlines(keepends=True)[:10])
    output.with_name(".out.jsonl.hfpipe.tmp").write_bytes(LEFT[left](whole, replaced))
    run(source, output)
    kept = mended(source, 3, 7) if left in ("of the retry", "torn") else []
    assert output.read_bytes() == with_results(source, kept)
    assert files(output.parent) == [".out.jsonl.hfpipe", "out.jsonl"]


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
        opened.replace_errors(mended(source, 3))
        assert order[-3:] == [".out.jsonl.hfpipe.tmp", "rename", output.parent.name]
