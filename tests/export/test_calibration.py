"""The texts to calibrate on: read from a file as it comes, and cut into samples that lose nothing."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.errors import UsageError
from hfpipe.export import ExportOptions, quantization

LONGEST, MOST = 512, 128
PIECES = st.sampled_from(
    ["a", "word", "longer words", " ", "  ", "\n", "\n\n", "\t", "é", "漢字", "🙂", "x" * 300, " " * 700]
)
DOCUMENTS = st.lists(PIECES, max_size=40).map("".join)


def from_file(path):
    return quantization.calibration(ExportOptions("int4", calibration=path), None)


def samples(tmp_path, content, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return from_file(path).samples


# Files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo", "one\ntwo"),
        ("\ufeffone\ntwo", "one\ntwo"),
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("\n\n one\ntwo \n\n", "one\ntwo"),
        ('{"text": "one"}', '{"text": "one"}'),
    ],
    ids=["plain", "BOM", "CRLF", "space", "like a record"],
)
def test_a_text_file(tmp_path, content, expected):
    assert samples(tmp_path, content) == (expected,)


@pytest.mark.parametrize(("name", "start", "ending"), [("x.jsonl", "", "\n"), ("x.ndjson", "\ufeff", "\r\n")])
def test_a_file_of_records(tmp_path, name, start, ending):
    """Those without text are left out."""
    lines = ['{"text": "one", "id": 1}', "", '{"prompt": "two\\nlines"}', '{"prompt": "no", "text": "three é"}']
    lines += ['{"text": ""}', '{"prompt": " "}', '{"text": "", "prompt": "four"}', '{"text": null, "prompt": "five"}']
    expected = ("one", "two\nlines", "three é", "four", "five")
    for one in (name, name.upper()):
        assert samples(tmp_path, start + ending.join(lines), one) == expected


def test_half_a_character_is_not_taken_along(tmp_path):
    """JSON can hold one; a tokenizer would stop at it."""
    (sample,) = samples(tmp_path, r'{"text": "one \ud83d two"}', "x.jsonl")
    assert sample.encode()
    assert sample.startswith("one ")


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\t\r\n", '{"text": ""}\n{"text": " "}\n'])
def test_nothing_to_calibrate_on(tmp_path, content):
    for name in ("x.jsonl", *(["x.txt"] if "{" not in content else [])):
        with pytest.raises(UsageError, match=f"The calibration file .*{name} is empty") as caught:
            samples(tmp_path, content, name)
        assert "30 kB" in caught.value.hint


@pytest.mark.parametrize("line", ['{"text": ', "one", "[" * 100_000, '{"question": "one"}', '{"text": 1}', '"text"'])
def test_a_wrong_record_is_named_by_its_line(tmp_path, line):
    with pytest.raises(UsageError, match='line 3, is not a JSON object with a "text" or a "prompt"'):
        samples(tmp_path, f'{{"text": "one"}}\n\n{line}\n', "x.jsonl")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 1,000\)"):
        samples(tmp_path, b"a" * 1000 + b"\xff")
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UsageError, match=f"^Cannot read the calibration file {path}: {reason}"):
            from_file(path)


# Samples


def squeezed(text):
    return "".join(text.split())


@given(st.lists(DOCUMENTS | st.text(max_size=1500), max_size=5))
@settings(max_examples=50, deadline=None)
def test_samples_are_the_text(documents):
    """In its order, none of it lost, invented or changed, but for white space where it is cut."""
    found = quantization.samples(documents)
    assert all(sample.strip() and len(sample) <= LONGEST for sample in found)
    if len(found) < MOST:
        assert "".join(map(squeezed, found)) == "".join(map(squeezed, documents))
    rest = "\0".join(documents)
    for sample in found:
        before, there, rest = rest.partition(sample)
        assert there
        assert not before.replace("\0", " ").strip() or len(found) == MOST


@given(st.lists(st.sampled_from(["word", "a", "longer"]), min_size=1, max_size=2000).map(" ".join))
@settings(max_examples=30, deadline=None)
def test_words_stay_whole_and_samples_are_of_similar_length(text):
    found = quantization.samples([text])
    assert " ".join(found).split() == text.split()
    assert all(len(sample) > LONGEST - 10 for sample in found[:-1])


def test_of_many_samples_those_are_taken_that_lie_evenly():
    found = quantization.samples([f"{number:04}" for number in range(1000)])
    assert len(found) == MOST
    steps = {int(after) - int(before) for before, after in pairwise(found)}
    assert found[0] == "0000"
    assert steps == {7, 8}
    assert len(quantization.samples(["one"] * MOST)) == MOST


def test_the_built_in_text_has_several_kinds():
    found = quantization.calibration(ExportOptions("int4", gptq=True), None)
    assert found.name == "built-in"
    assert 20 < len(found.samples) <= MOST
    assert any("def " in sample for sample in found.samples)


def test_the_digest_is_of_the_samples_alone(tmp_path):
    for name, content in [("a.txt", "one two"), ("b.txt", " one two\n"), ("c.jsonl", json.dumps({"text": "one two"}))]:
        (tmp_path / name).write_text(content)
    a, b, c = (from_file(tmp_path / name) for name in ("a.txt", "b.txt", "c.jsonl"))
    assert a.digest == b.digest == c.digest
    assert a.name == str(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("one, two")
    assert from_file(tmp_path / "a.txt").digest != a.digest
