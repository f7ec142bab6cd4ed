"""`hfpipe batch` as a shell starts it, on the echo backend: it answers a record with its prompt."""

import json
import re

import pytest

import hfpipe
from tests.cli.shell import run_hfpipe

RESTART = "--restart starts over, and keeps the old file under another name."


def batch(model, *args, **settings):
    return run_hfpipe("batch", "-m", model, "-b", "echo", *args, **settings)


def write(path, *records, end="\n"):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + end for one in records))
    return path


def results(data):
    return [json.loads(line) for line in data.splitlines()]


def texts(data):
    return [result["text"] for result in results(data)]


def errors(data):
    return [result["error"] and result["error"]["type"] for result in results(data)]


def summary(ended):
    """The one line on stderr."""
    (line,) = ended.err.decode().splitlines()
    return line


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def unlike_time(ended):
    return summary(ended).split(" in ")[0]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "q.jsonl", *({"id": f"q{i}", "prompt": f"Number {i}"} for i in range(20)))


@pytest.fixture
def mixed(tmp_path):
    """The 2nd, 4th and 5th record fail."""
    return write(
        tmp_path / "mixed.jsonl", {"prompt": "one"}, "{\n", {"prompt": "three"}, {"x": 1}, {"prompt": "five", "n": 2,
        "max_tokens": 0}, {"prompt": "six"}
    )  # fmt: skip


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


# What comes out


def test_results_go_to_stdout(plain_model, source):
    env = {"HFPIPE_MODEL": str(plain_model), "HFPIPE_BACKEND": "echo", "HFPIPE_TEMPLATE": "raw"}
    ended = run_hfpipe("batch", "q.jsonl", "--batch-size", "2", env=env, cwd=source.parent)
    assert ended.code == 0, ended
    assert texts(ended.out) == [f"Number {i}" for i in range(20)]
    assert results(ended.out)[0] == {
        "id": "q0",
        "text": "Number 0",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14},
        "error": None,
    }
    assert summary(ended).startswith("20 records in ")
    assert files(source.parent) == ["q.jsonl"]


def test_a_file_of_results_and_its_manifest(plain_model, source, output):
    ended = batch(plain_model, source, "-o", output, "-t", "raw")
    assert (ended.code, ended.out) == (0, b"")
    assert unlike_time(ended) == "20 records"
    assert output.read_bytes() == batch(plain_model, source, "-t", "raw").out
    assert files(output.parent) == ["out.jsonl", "q.jsonl"]
    assert sorted(path.name for path in output.parent.iterdir()) == [".out.jsonl.hfpipe", "out.jsonl", "q.jsonl"]
    settings = json.loads((output.parent / ".out.jsonl.hfpipe").read_bytes().splitlines()[0])["settings"]
    assert settings["model"]["reference"] == str(plain_model)
    assert (settings["backend"], settings["hfpipe_version"]) == ("echo", hfpipe.__version__)
    assert (settings["add_special_tokens"], settings["max_tokens"]) == (True, 256)


def test_an_empty_file(plain_model, output):
    ended = batch(plain_model, "-", "-o", output, input=b"\n\n")
    assert (ended.code, ended.out, output.read_bytes()) == (0, b"", b"")


# Failed records


def test_failed_records(plain_model, mixed, output):
    ended = batch(plain_model, mixed, "-o", output)
    assert ended.code == 3
    failed = "; 3 failed (1 invalid_json, 1 missing_variable, 1 invalid_record)."
    assert summary(ended).endswith(failed)
    assert errors(output.read_bytes()) == [None, "invalid_json", None, "missing_variable", "invalid_record", None]
    again = batch(plain_model, mixed, "-o", output)
    assert (again.code, again.out) == (3, b"")
    assert summary(again) == f"Nothing to do: {output} already has a result for all 6 records{failed}"


def test_too_many_of_them_end_it_early(plain_model, mixed, output):
    args = (mixed, "-o", output, "--batch-size", "1")
    ended = batch(plain_model, *args, "--max-errors", "1")
    assert (ended.code, ended.out) == (3, b"")
    assert ended.error == "2 records failed (1 invalid_json, 1 missing_variable), and --max-errors is 1."
    whole = batch(plain_model, mixed).out
    assert output.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    assert batch(plain_model, *args, "--max-errors", "3").code == 3
    assert output.read_bytes() == whole


def test_a_retry(plain_model, mixed, output):
    batch(plain_model, mixed, "-o", output)
    ended = batch(plain_model, mixed, "-o", output, "--retry-errors")
    assert (ended.code, unlike_time(ended)) == (3, "3 records")
    output.write_bytes(output.read_bytes().splitlines(keepends=True)[0])
    ended = batch(plain_model, mixed, "-o", output, "--retry-errors")
    assert ended.code == 3
    said = "some records have no result yet: run the same command without --retry-errors to answer them."
    assert summary(ended) == f"Nothing to retry: no record failed in {output}; {said}"


# What is refused


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["none.jsonl"], "The input none.jsonl cannot be read: No such file or directory.", ""),
        (["q.jsonl", "-o", "q.jsonl"], "q.jsonl is both the input and the output.", "Write the results to another"),
        (["q.jsonl", "-o", "no/out"], "Cannot write to no/out: the folder ", "Create the folder first."),
        (["q.jsonl", "--retry-errors"], "--retry-errors needs an output file (--output).", ""),
        (["q.jsonl", "--restart"], "--restart needs an output file (--output).", ""),
        (["q.jsonl", "--json"], "--json needs a file of results, --output.", "JSON lines on stdout already"),
        ([], "Missing argument", "hfpipe batch --help"),
    ],
)
def test_wrong_usage(plain_model, source, args, said, hint):
    ended = batch(plain_model, *args, cwd=source.parent)
    assert (ended.code, ended.out) == (2, b""), ended
    assert said in ended.error
    assert hint in ended.hint
    assert files(source.parent) == ["q.jsonl"]


def test_results_of_other_settings_or_another_input_are_not_resumed(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    whole = output.read_bytes()
    ended = batch(plain_model, *args, "-n", "8")
    assert (ended.code, ended.out, ended.hint) == (1, b"", RESTART)
    assert ended.error == f"{output} was started with a different max_tokens (then: 256, now: 8)."
    source.write_text(source.read_text().replace("Number 5", "Number V"))
    ended = batch(plain_model, *args)
    assert (ended.code, ended.hint) == (1, RESTART)
    assert ended.error == f"Line 6 of the input has changed since {output} was written."
    assert output.read_bytes() == whole


# Going on


def test_the_same_command_again(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    whole = output.read_bytes()
    ended = batch(plain_model, *args)
    assert (ended.code, ended.out) == (0, b"")
    assert summary(ended) == f"Nothing to do: {output} already has a result for all 20 records."
    assert batch(plain_model, *args, "-q").err == b""
    output.write_bytes(whole[:300])
    existing = whole[:300].count(b"\n")
    ended = batch(plain_model, *args)
    assert (ended.code, output.read_bytes()) == (0, whole)
    assert unlike_time(ended) == f"{20 - existing} records"
    assert summary(ended).endswith(f"; {existing} already had a result.")


def test_restart_keeps_the_old_results_aside(plain_model, source, output):
    batch(plain_model, source, "-o", output, "-t", "raw")
    old = output.read_bytes()
    ended = batch(plain_model, source, "-o", output, "-t", "raw", "-n", "2", "--restart")
    assert ended.code == 0
    aside = output.with_name("out.jsonl.1")
    assert ended.err.decode().splitlines()[0] == f"The earlier results are in {aside}."
    assert (aside.read_bytes(), texts(output.read_bytes())[0]) == (old, "Nu")


# On a terminal


def test_nothing_moves_where_stderr_is_no_terminal(plain_model, source):
    ended = batch(plain_model, source, "-t", "raw", tty="stdout")
    assert ended.code == 0
    assert b"\x1b" not in ended.err + ended.out
    assert summary(ended).startswith("20 records in ")


@pytest.mark.parametrize("columns", [60, 100])
def test_a_bar_on_a_terminal(plain_model, tmp_path, output, columns):
    source = write(tmp_path / "q", *({"prompt": f"Number {i}"} for i in range(4000)), "{\n")
    ended = batch(plain_model, source, "-t", "raw", "-o", output, tty="stderr", columns=columns)
    shown = ended.err.decode()
    assert (ended.code, ended.out) == (3, b"")
    assert re.search(r" of 4,?[0-9]{3} records", shown)
    assert "tokens/s" in shown
    assert "\x1b[?25l" not in shown
    bar, last = shown.rsplit("\x1b[2K", 1)
    assert last.lstrip("\r").startswith("4,001 records in ")
    assert last.endswith("; 1 failed (1 invalid_json).\n")
    assert bar


def test_quiet(plain_model, mixed):
    ended = batch(plain_model, mixed, "-q", tty="stderr")
    assert (ended.code, ended.err, len(results(ended.out))) == (3, b"", 6)
    assert batch(plain_model, mixed, "-q").err == b""


def test_results_on_a_terminal_are_lines_of_their_own(plain_model, tmp_path):
    """Nothing that moves is drawn once there is a result."""
    source = write(tmp_path / "q", *({"prompt": f"Number {i}"} for i in range(3000)))
    ended = batch(plain_model, source, "-t", "raw", tty="stdout stderr")
    assert ended.code == 0
    assert b"\x1b" not in ended.out
    assert b"tokens/s, " not in ended.err
    assert b" of 3" not in ended.err


def test_the_summary_as_json(plain_model, mixed, output):
    ended = batch(plain_model, mixed, "-o", output, "--json", "-q")
    assert (ended.code, ended.err) == (3, b"")
    summary = json.loads(ended.out)
    assert (summary["output"], summary["answered"], summary["failed"]) == (str(output), 6, 3)


@pytest.mark.parametrize("name", ["/dev/stdout", "-"])
def test_stdout_by_name(plain_model, source, name):
    ended = batch(plain_model, source, "-t", "raw", "-o", name)
    assert (ended.code, len(results(ended.out))) == (0, 20)
    assert files(source.parent) == ["q.jsonl"]


def test_the_model_that_is_used_when_none_is_named(source):
    """It parses as the contract writes it; here it cannot be downloaded."""
    env = {"HFPIPE_MODEL": None, "HFPIPE_CACHE": str(source.parent / "cache"), "PIP_INDEX_URL": "http://127.0.0.1:9"}
    ended = run_hfpipe("batch", "q.jsonl", "--device", "0", "--batch-size", "2", env=env, cwd=source.parent)
    assert ended.code == 1
    assert ended.err.decode().startswith("No --model and no HFPIPE_MODEL: using smollm2.\n")
