"""A run goes on only from what its own input and settings have made, and says what is not so."""

import itertools
import os
import tempfile
from pathlib import Path

import pytest

from hfpipe.batch.journal import check_place
from hfpipe.batch.lines import Lines, open_input
from hfpipe.errors import HFPipeError, UsageError
from tests.batch.work import (
    RESTART,
    SETTINGS,
    answered,
    finished,
    journal,
    manifest,
    run,
    saved,
    write_questions,
)

# What must not have changed


def refused(source, output, said, **options):
    """The run is refused, and nothing is touched."""
    before = {path: path.read_bytes() for path in output.parent.iterdir() if path.is_file()}
    with pytest.raises(HFPipeError) as caught:
        run(source, output, **options)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert RESTART in caught.value.hint
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 1}, "was started with a different temperature (then: 0.5, now: 1)."),
        ({"stop": ["\n", "é"]}, 'was started with a different stop (then: ["\\n"], now: ["\\n", "é"]).'),
        ({"seed": 3}, "was started with a different seed (then: none, now: 3)."),
        ({"model": "x" * 200}, 'was started with a different model (then: "echo", now: "xxx'),
    ],
)
def test_a_setting_that_changed_is_named(source, output, change, said):
    run(source, output, limit=3)
    refused(source, output, said, settings={**SETTINGS, **change})


def test_none_is_called_so(source, output):
    run(source, output, limit=3, settings={"seed": None})
    refused(source, output, "with a different seed (then: none, now: 3).", settings={"seed": 3})


def test_of_several_values_the_one_that_changed_is_named(source, output):
    hosted, local = {"url": "http://a/v1", "reference": "m"}, {"identity": "0" * 40, "reference": "m"}
    made = {"model": hosted, "task": {"name": "translation", "target_lang": "de"}, "variables": {"style": "short"}}
    run(source, output, limit=3, settings=made)
    for change, said in [
        ({"model": {**hosted, "url": "http://b/v1"}}, 'different endpoint (then: "http://a/v1", now: "http://b/v1").'),
        ({"model": {**hosted, "reference": "n"}}, 'different model (then: "m", now: "n").'),
        ({"model": local}, 'different model (then: "m, http://a/v1", now: "m, 000000000000").'),
        ({"task": {**made["task"], "target_lang": None}}, 'different task target_lang (then: "de", now: none).'),
        ({"variables": {}}, 'different variables style (then: "short", now: none).'),
        ({"variables": {"style": "short", "url": None}}, "different variables url (then: none, now: none)."),
    ]:
        refused(source, output, said, settings={**made, **change})


def test_a_setting_that_is_known_later_is_checked_too(source, output):
    """What only a loaded model tells."""
    for dtype, refusal in [("float32", None), ("float32", None), ("bfloat16", "a different dtype")]:
        with open_input(source) as stream, journal(output) as opened:
            results = answered(opened.resume(Lines(stream)))
            if refusal:
                with pytest.raises(HFPipeError, match=refusal):
                    opened.check({"dtype": dtype})
                return
            opened.check({"dtype": dtype})
            opened.append(*next(results))


def test_settings_are_compared_as_json_has_them(source, output):
    run(source, output, limit=3, settings={"stop": ("a",), "temperature": 1})
    run(source, output, settings={"temperature": 1.0, "stop": ["a"]})


def test_settings_may_change_while_nothing_stands(source, output):
    run(source, output, limit=3)
    output.write_bytes(b"")
    run(source, output, settings={"model": "other"})
    assert saved(output)[0]["settings"] == {"model": "other"}


def test_a_file_that_is_not_a_batchs_is_left_alone(source, output):
    output.write_text("My notes.\n")
    refused(source, output, "out.jsonl cannot be resumed: this version of hfpipe has no manifest of it")
    run(source, output, restart=True)
    assert output.with_name("out.jsonl.1").read_text() == "My notes.\n"


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"version": 3, "settings": {}}', b'{"version": 2}', b"\xff"])
def test_a_manifest_that_is_none(source, output, content):
    run(source, output, limit=3)
    manifest(output).write_bytes(content)
    refused(source, output, "manifest")


def changed(source, number, to):
    lines = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(b"".join([*lines[: number - 1], to, *lines[number:]]))


@pytest.mark.parametrize("number", [1, 3, 7])
@pytest.mark.parametrize("to", [b"", b'{"question": "another"}\n', b'{"question": "one"}\n{"question": "two"}\n'])
def test_a_record_that_changed_is_named(source, output, number, to):
    run(source, output, limit=7)
    changed(source, number, to)
    at = number + 1 if not to else number
    # Without it, the line after has its place.
    line = number if not to else at
    refused(source, output, f"Line {line} of the input has changed since {output} was written.")


def test_records_that_have_no_result_yet_may_change(source, output):
    run(source, output, limit=7)
    changed(source, 8, b'{"question": "another"}\n')
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_an_input_may_change_its_line_ends_and_grow(source, output):
    data = source.read_bytes().removesuffix(b"\n")
    source.write_bytes(data)
    run(source, output)
    source.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b'\r\n{"question": "more"}')
    run(source, output)
    assert output.read_bytes() == finished(source)
    assert b'"more"' in output.read_bytes()


def test_an_input_that_is_too_short(source, output):
    run(source, output)
    write_questions(source, 12)
    refused(source, output, "The input ends before the 13 records that have a result")


def test_blank_lines_change_the_ids_that_are_numbers(source, output):
    """The records are the same, and their ids are not."""
    source.write_text('{"question": "a"}\n{"question": "b"}\n')
    run(source, output)
    source.write_text('{"question": "a"}\n\n{"question": "b"}\n')
    refused(source, output, "has the id '2', but its record, line 3 of the input, has '3'.")


def test_results_that_changed_places(source, output):
    run(source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    refused(source, output, "Line 1 of ")


def test_a_line_that_is_no_result(source, output):
    run(source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    for wrong in (b"{}\n", b"torn\n", b"\n"):
        output.write_bytes(b"".join([*lines[:4], wrong, *lines[5:]]))
        refused(source, output, "Line 5 of ")
        with pytest.raises(HFPipeError) as caught:
            run(source, output)
        assert caught.value.hint.startswith("To resume, cut the file before that line.")


def test_results_may_be_cut_off_by_hand(source, output):
    """To have them made anew: what stands is still compared."""
    run(source, output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:5]))
    run(source, output, limit=1)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:5]))
    changed(source, 3, b'{"id": 2, "question": "another"}\n')
    refused(source, output, "Line 3 of the input")


def test_without_the_digests_the_ids_are_compared(source, output):
    run(source, output, limit=7)
    os.truncate(manifest(output), saved(output)[1])
    run(source, output)
    assert output.read_bytes() == finished(source)


# Somebody else


def vandals():
    def replace(output):
        output.with_name("other").write_bytes(output.read_bytes())
        output.with_name("other").replace(output)

    def append(output):
        with output.open("a") as file:
            file.write("x")

    return {
        "removed": lambda output: output.unlink(),
        "renamed": lambda output: output.rename(output.with_name("other")),
        "moved away": lambda output: output.parent.rename(output.parent.with_name("away")),
        "replaced": replace,
        "truncated": lambda output: os.truncate(output, output.stat().st_size - 5),
        "emptied": lambda output: os.truncate(output, 0),
        "appended to": append,
    }


@pytest.mark.parametrize("what", vandals())
def test_a_file_that_somebody_else_touches(tmp_path, what):
    source = write_questions(tmp_path / "q.jsonl", 20)
    output = tmp_path / "results" / "out.jsonl"
    output.parent.mkdir()
    with open_input(source) as stream, journal(output) as opened:
        results = answered(opened.resume(Lines(stream)))
        for result in itertools.islice(results, 5):
            opened.append(*result)
        vandals()[what](output)
        for result in itertools.islice(results, 2):
            with pytest.raises(HFPipeError, match=r"changed, renamed or removed by another program") as caught:
                opened.append(*result)
            assert "same command again" in caught.value.hint
    output.parent.mkdir(exist_ok=True)
    run(source, output)
    assert output.read_bytes() == finished(source)


def test_places_that_are_none(source, tmp_path):
    for path in (tmp_path / "none" / "out.jsonl", source / "out.jsonl"):
        with pytest.raises(UsageError, match=r"the folder .* does not exist"):
            check_place(path)
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="is not a file"):
            check_place(path)


@pytest.fixture
def shared():
    """A folder that everybody may look into. Root may do anything: the test runs with the rights of another user."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        run(write_questions(Path(folder, "q.jsonl"), 9), Path(folder, "out.jsonl"), limit=3)
        if user == 0:
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)


def test_places_that_may_not_be_written(shared):
    """The one that failed is named: of a long name, it is the hidden file's."""
    denied = "Permission denied"
    for name, said in (("out.jsonl", denied), ("new", denied), ("x" * 250, "File name too long")):
        with pytest.raises(HFPipeError, match=rf"(?m)^Cannot write to .*/\.{name}\.hfpipe: {said}\.$"):
            run(shared / "q.jsonl", shared / name)
