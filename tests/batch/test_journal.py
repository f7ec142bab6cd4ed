"""The output is a prefix of the finished file at every moment, and a run goes on from there."""

from array import array

import pytest

from hfpipe.batch.lines import Lines, open_input
from hfpipe.errors import HFPipeError
from tests.batch.work import (
    SETTINGS,
    answered,
    files,
    finished,
    journal,
    manifest,
    run,
    saved,
    write_questions,
)

# A run


def test_an_undisturbed_run(source, output):
    opened = run(source, output)
    assert output.read_bytes() == finished(source)
    assert opened.set_aside is None
    assert files(output.parent) == [".out.jsonl.hfpipe", "out.jsonl"]
    held, size = saved(output)
    assert held == {"version": 2, "settings": SETTINGS}
    assert manifest(output).stat().st_size == size + 8 * 20


def test_every_line_is_there_at_once(source, output):
    expected, at = finished(source), 0
    with open_input(source) as stream, journal(output) as opened:
        for count, (digest, result) in enumerate(answered(opened.resume(Lines(stream)))):
            assert (output.read_bytes() if count else b"", opened.count) == (expected[:at], count)
            opened.append(digest, result)
            at += len(result)
    assert at == len(expected)


def test_step_by_step(source, output):
    expected = finished(source).splitlines(keepends=True)
    for step in range(0, 20, 3):
        assert run(source, output, limit=3).failed == array("Q", range(3, step, 4))
        assert output.read_bytes() == b"".join(expected[: step + 3])
    run(source, output)
    assert output.read_bytes() == b"".join(expected)


def test_no_input_is_a_finished_run(source, output):
    source.write_bytes(b"\n\n")
    run(source, output)
    assert output.read_bytes() == b""
    write_questions(source, 5)
    run(source, output)
    assert output.read_bytes() == finished(source)


@pytest.mark.parametrize("count", [0, 20])
def test_a_run_with_nothing_to_do_touches_nothing(tmp_path, output, count):
    source = write_questions(tmp_path / "q.jsonl", count)
    run(source, output)
    paths = (output, manifest(output))
    before = [(path.read_bytes(), path.stat()) for path in paths]
    run(source, output)
    assert [path.read_bytes() for path in paths] == [data for data, _ in before]
    for path, (_, stood) in zip(paths, before, strict=True):
        now = path.stat()
        assert (now.st_mtime_ns, now.st_ctime_ns, now.st_ino) == (stood.st_mtime_ns, stood.st_ctime_ns, stood.st_ino)


def test_a_long_line(source, output):
    source.write_text(f'{{"question": "{"x" * 1_000_000}"}}\n' * 2)
    run(source, output, limit=1)
    run(source, output)
    assert output.read_bytes() == finished(source)
    with output.open("r+b") as file:
        file.truncate(1_500_000)
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_through_a_link(source, output, tmp_path):
    (tmp_path / "there").mkdir()
    output.symlink_to(tmp_path / "there" / "real.jsonl")
    run(source, output, limit=3)
    with pytest.raises(HFPipeError, match="Another hfpipe"), journal(output), journal(tmp_path / "there/real.jsonl"):
        pass
    run(source, output)
    assert output.is_symlink()
    assert output.read_bytes() == finished(source)


# Anew


def test_restart_sets_aside_what_stands(source, output):
    for number in (1, 2, 3):
        run(source, output, limit=number)
        old = output.read_bytes()
        opened = run(source, output, restart=True, limit=5, settings={"model": str(number)})
        assert opened.set_aside == output.with_name(f"out.jsonl.{number}")
        assert opened.set_aside.read_bytes() == old
        assert opened.count == 5
        output.unlink()
    # What was set aside can be gone on with.
    run(source, output.with_name("out.jsonl.3"))
    assert output.with_name("out.jsonl.3").read_bytes() == finished(source)


def test_restart_with_nothing_there(source, output):
    output.touch()
    assert run(source, output, restart=True).set_aside is None
    assert output.read_bytes() == finished(source)


def test_a_name_that_is_taken_is_left_alone(source, output):
    run(source, output, limit=3)
    manifest(output.with_name("out.jsonl.1")).write_text("mine")
    assert run(source, output, restart=True).set_aside == output.with_name("out.jsonl.2")
    assert manifest(output.with_name("out.jsonl.1")).read_text() == "mine"


def test_a_restart_that_cannot_begin_touches_nothing(source, output):
    run(source, output, limit=3)
    old = output.read_bytes()
    with journal(output, restart=True):
        pass  # as where no model can be loaded
    assert output.read_bytes() == old


# One at a time


def test_a_second_run_is_refused(source, output):
    with open_input(source) as stream, journal(output) as first:
        results = answered(first.resume(Lines(stream)))
        for _ in range(2):
            with pytest.raises(HFPipeError, match=r"(?m)^Another hfpipe is writing to .*out\.jsonl\.$"):
                run(source, output, restart=True)
        first.append(*next(results))
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_a_refused_run_holds_no_lock(source, output):
    run(source, output, limit=3)
    for _ in range(2):
        with pytest.raises(HFPipeError, match="a different model"):
            run(source, output, settings={**SETTINGS, "model": "x"})
    run(source, output)
