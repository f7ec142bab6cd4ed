"""`hfpipe batch --verify-parity`: what stands beside what the prompts get alone and exactly."""

import json

import pytest

from hfpipe.batch.parity import Difference, Parity
from hfpipe.cli.batch import parity_lines
from tests.cli.shell import run_hfpipe
from tests.tiny import SENTENCES


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{i}", "prompt": f"Number {i}"}) + "\n" for i in range(20)))
    return path


def verified(model, source, *args):
    output = source.with_name("a.jsonl")
    return run_hfpipe("batch", source, "-m", model, "-b", "echo", "-t", "raw", "-o", output, *args)


def changed(path, number):
    """Another word in the text of that result."""
    lines = path.read_text().splitlines()
    lines[number] = lines[number].replace("Number", "Letter")
    path.write_text("\n".join(lines) + "\n")


def test_answers_that_are_equal(plain_model, source):
    ended = verified(plain_model, source, "--verify-parity", "7")
    assert ended.code == 0
    assert "7 of 7 answers match an exact run of the prompt alone." in ended.err.decode()
    quiet = verified(plain_model, source, "--verify-parity", "3", "-q")
    assert (quiet.code, quiet.err) == (0, b"")


def test_a_finished_file_is_looked_at_alone(plain_model, source):
    assert verified(plain_model, source).code == 0
    changed(source.with_name("a.jsonl"), 3)
    ended = verified(plain_model, source, "--verify-parity", "50")
    assert ended.code == 0
    lines = ended.err.decode().splitlines()
    assert lines[-3].startswith("Nothing to do")
    assert "19 of 20 answers match an exact run of the prompt alone; the others diverge after 0 tokens" in lines[-2]
    assert lines[-1] == "q3: after 0 of 7 tokens 'Letter 3', exactly 'Number 3'"


def test_with_exact_all_must_be_equal(plain_model, source):
    assert verified(plain_model, source, "--exact", "--verify-parity", "20").code == 0
    changed(source.with_name("a.jsonl"), 3)
    ended = verified(plain_model, source, "--exact", "--verify-parity", "20")
    assert ended.code == 1
    assert "Error: With --exact all answers must be equal. 19 of 20" in ended.err.decode()


def test_what_a_person_reads():
    parted = [Difference("a", 4, 9, "on\nwith this", "on with that"), Difference("b", 8, 8, "x" * 90, "")]
    parted += [Difference("c", 0, 0, "some", None), Difference("d", 1, 2, "x", "y")]
    assert parity_lines(Parity(3, parted, 2)) == [
        "3 of 7 answers match an exact run of the prompt alone; the others diverge after 2.5 tokens (median); "
        "2 were sampled without a seed and cannot be compared.",
        r"a: after 4 of 9 tokens 'on\nwith this', exactly 'on with that'",
        f"b: after 8 of 8 tokens '{'x' * 39}…', exactly nothing more",
        "c: the exact run failed",
    ]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_real_engines_are_exact(engine, tiny_llama, tiny_llama_ov, tmp_path):
    """Batched with --exact, and each alone: no byte differs."""
    source = tmp_path / "q.jsonl"
    source.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in SENTENCES * 2))
    model = tiny_llama if engine == "torch" else tiny_llama_ov
    args = ["-m", model, "-o", tmp_path / "a.jsonl", "-n", "12", "--exact", "--verify-parity", "6"]
    ended = run_hfpipe("batch", source, *args)
    assert ended.code == 0, ended.err.decode()
    assert "6 of 6 answers match" in ended.err.decode()
