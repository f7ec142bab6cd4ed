"""`hfpipe batch` as a shell starts it, on the echo backend: it answers a record with its prompt."""

import gzip
import json
import re

import pytest
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

import hfpipe
from tests.cli.shell import run_hfpipe

RESTART = "--restart (restart=True) starts over, and keeps the old file under another name."
ODD = ["é 🙂 שלום", "a\u2028b\x85c", 'tab\tand "quotes" \\ {braces}', "[bold]x[/] :dog:", "\x1b[2J", "\ud83d"]


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


def stands(folder):
    """What is in its files, and when they were changed."""
    return [(name, (folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in files(folder)]


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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("piped", [False, True])
def test_any_kind_of_file(plain_model, source, tmp_path, packed, piped):
    """A BOM, CRLF, blank lines, no newline at the end, gzip; from a file or stdin."""
    lines = source.read_bytes().splitlines()
    data = b"\xef\xbb\xbf\r\n" + b"\r\n \r\n".join(lines)
    file = tmp_path / ("q.gz" if packed else "odd.jsonl")
    file.write_bytes(gzip.compress(data) if packed else data)
    ended = batch(plain_model, "-" if piped else file, "-t", "raw", input=file.read_bytes() if piped else None)
    assert ended.code == 0, ended
    assert [(one["id"], one["text"]) for one in results(ended.out)] == [(f"q{i}", f"Number {i}") for i in range(20)]


def test_an_empty_file(plain_model, output):
    ended = batch(plain_model, "-", "-o", output, input=b"\n\n")
    assert (ended.code, ended.out, output.read_bytes()) == (0, b"", b"")


def test_all_forms_of_a_record(chat_model, tmp_path):
    records = [
        {"question": "Hi"},
        {"prompt": "Hi", "id": 7},
        {"messages": [{"role": "user", "content": "Hi"}], "custom_id": "a"},
        {"question": "Hi", "max_tokens": 3},
        {"question": "Hi", "stop": []},
    ]
    ended = batch(chat_model, write(tmp_path / "q", *records), "--stop", "assist", "-s", "X")
    assert ended.code == 0, ended
    assert [one["id"] for one in results(ended.out)] == ["1", "7", "a", "4", "5"]
    plain, prompt, messages, short, whole = texts(ended.out)
    assert plain == prompt == messages == "system\nX\nuser\nHi\n"
    assert results(ended.out)[3]["usage"]["completion_tokens"] == 3
    assert plain.startswith(short)
    assert whole == plain + "assistant\n"


def test_variables(plain_model, tmp_path):
    source = write(tmp_path / "q", {"text": "Hi", "to": "German"}, {"text": "Hi"}, {"prompt": "Hi"})
    ended = batch(plain_model, source, "-t", "{text} in {to}", "--var", "to=French")
    assert (ended.code, texts(ended.out)) == (0, ["Hi in German", "Hi in French", "Hi in French"])


def test_any_text(plain_model, tmp_path, output):
    source = write(tmp_path / "q", *({"id": text, "prompt": text} for text in ODD))
    ended = batch(plain_model, source, "-t", "raw")
    expected = [*ODD[:-1], "\ufffd"]
    assert (ended.code, texts(ended.out)) == (0, expected)
    assert [one["id"] for one in results(ended.out)] == ODD
    assert ended.out.decode().splitlines() == ended.out.decode().split("\n")[:-1]
    assert batch(plain_model, source, "-t", "raw", "-o", output, env={"LC_ALL": "C"}).code == 0
    assert output.read_bytes() == ended.out


def test_a_line_of_10_mb(plain_model, tmp_path):
    """It is read, and what asks nothing of it is passed over."""
    source = write(tmp_path / "q", {"prompt": "Hi", "metadata": {"x": "y" * 10_000_000}}, {"prompt": "Ho"})
    ended = batch(plain_model, source, "-t", "raw")
    assert (ended.code, texts(ended.out)) == (0, ["Hi", "Ho"])


def test_the_envelope_of_openai(chat_model, tmp_path, output):
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5, "model": "gpt"}
    requests = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "model": "gpt"}},
        {"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"input": "Hi"}},
        {"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x " * 200}},
    ]
    source = write(tmp_path / "q", *requests, "{\n")
    args = ("--format", "openai", "-t", "raw", "-o", output)
    ended = batch(chat_model, source, *args)
    assert ended.code == 3
    assert summary(ended).endswith("; 3 failed (1 invalid_record, 1 context_length, 1 invalid_json).")
    a, b, c, d, e = results(output.read_bytes())
    assert [one["custom_id"] for one in (a, b, c, d, e)] == ["a", "b", "c", "d", "5"]
    assert ChatCompletion.model_validate(a["response"]["body"], strict=True).usage.completion_tokens == 5
    assert TextCompletion.model_validate(b["response"]["body"], strict=True).choices[0].text == "Hi"
    assert [one["response"] and one["response"]["status_code"] for one in (c, d, e)] == [400, 400, None]
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert batch(chat_model, source, *args).code == 3
    assert output.read_bytes() == whole


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


def test_a_retry_that_can_change_nothing(plain_model, mixed, output):
    batch(plain_model, mixed, "-o", output)
    before = output.read_bytes()
    ended = batch(plain_model, mixed, "-o", output, "--retry-errors")
    assert ended.code == 3
    assert unlike_time(ended) == "3 records"
    assert summary(ended).endswith("3 failed (1 invalid_json, 1 missing_variable, 1 invalid_record).")
    assert output.read_bytes() == before


def test_a_retry_puts_results_in_their_places(plain_model, source, output):
    """Two failed for want of memory, let us say."""
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    whole = output.read_bytes()
    failed = {"text": "", "finish_reason": "error", "usage": None, "error": {"type": "out_of_memory", "message": "No."}}
    lines = whole.splitlines(keepends=True)
    for i in (3, 17):
        lines[i] = json.dumps({"id": f"q{i}", **failed}).encode() + b"\n"
    # Of a run that was interrupted, too: the rest comes with the next.
    for stand in (20, 18):
        output.write_bytes(b"".join(lines[:stand]))
        ended = batch(plain_model, *args, "--retry-errors")
        # What has no result has failed to have one.
        assert (ended.code, unlike_time(ended)) == (0 if stand == 20 else 3, "2 records")
        assert ("some records have no result yet" in summary(ended)) == (stand < 20)
        assert output.read_bytes() == b"".join(whole.splitlines(keepends=True)[:stand])
    assert batch(plain_model, *args).code == 0
    assert output.read_bytes() == whole
    ended = batch(plain_model, *args, "--retry-errors")
    assert (ended.code, summary(ended)) == (0, f"Nothing to retry: no record failed in {output}.")


def test_a_retry_with_other_settings_is_refused(plain_model, mixed, output):
    batch(plain_model, mixed, "-o", output)
    ended = batch(plain_model, mixed, "-o", output, "--retry-errors", "--var", "question=x")
    assert (ended.code, ended.out) == (1, b"")
    assert ended.error == f'{output} was started with a different variables (then: {{}}, now: {{"question": "x"}}).'


# What is refused


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["q.jsonl", "--format", "opnai"], "Unknown format 'opnai'.", "Did you mean 'openai'?"),
        (["q.jsonl", "--format", "x"], "Unknown format 'x'.", "Known formats are hfpipe, openai, text."),
        (["q.jsonl", "--retry-errors"], "--retry-errors needs", ""),
        (["-", "--retry-errors", "-o", "out"], "--retry-errors needs", ""),
        (["none.jsonl"], "The input none.jsonl cannot be read: No such file or directory.", ""),
        (["."], "The input . cannot be read: Is a directory.", ""),
        (["q.jsonl", "-o", "q.jsonl"], "q.jsonl is both the input and the output.", "Write the results to another"),
        (["q.jsonl", "-o", "no/out"], "Cannot write no/out: the folder ", "Create the folder first."),
        (["q.jsonl", "--batch-size", "0"], "batch_size must be at least 1", ""),
        (["q.jsonl", "--max-errors", "-1"], "--max-errors must be at least 0, not -1.", ""),
        (
            ["q.jsonl", "-o", "o", "--restart", "--retry-errors"],
            "--retry-errors cannot be combined with --restart.",
            "",
        ),
        (["q.jsonl", "-t", "chat"], "has no chat template.", "Use the template qa"),
        (["q.jsonl", "-t", "none"], 'There is no {variable} in the template "none".', "A template is qa"),
        ([], "Missing argument", "hfpipe batch --help"),
    ],
)
def test_wrong_usage(plain_model, source, args, said, hint):
    ended = batch(plain_model, *args, cwd=source.parent)
    assert (ended.code, ended.out) == (2, b""), ended
    assert said in ended.error
    assert hint in ended.hint
    assert files(source.parent) == ["q.jsonl"]


def test_what_stands_was_made_otherwise(plain_model, chat_model, source, output):
    batch(plain_model, source, "-o", output, "-t", "raw", "-n", "9")
    whole = output.read_bytes()
    for model, args, said in [
        (plain_model, ["-t", "raw", "-n", "8"], "a different max_tokens (then: 9, now: 8)."),
        (plain_model, ["-t", "qa", "-n", "9"], 'a different template (then: "{prompt}", now: "Question: '),
        (plain_model, ["-t", "raw", "-n", "9", "--exact"], "a different exact (then: false, now: true)."),
        (chat_model, ["-t", "raw", "-n", "9"], "a different model (then: "),
    ]:
        ended = batch(model, source, "-o", output, *args)
        assert (ended.code, ended.out) == (1, b"")
        assert said in ended.error
        assert ended.hint == RESTART
    assert output.read_bytes() == whole


@pytest.mark.parametrize(("model", "default"), [("plain_model", "qa"), ("chat_model", "chat")])
def test_the_template_that_was_used_counts_and_not_the_option(request, model, default, source, output):
    """Interrupted, let us say, after 9 records."""
    model = request.getfixturevalue(model)
    cut = "".join(source.read_text().splitlines(keepends=True)[:9])
    args = (source, "-o", output)
    whole = batch(model, source).out
    for first, then in [([], ["-t", default]), (["-t", default], [])]:
        text = source.read_text()
        source.write_text(cut)
        assert batch(model, *args, *first).code == 0
        source.write_text(text)
        refused = batch(model, *args, "-t", "raw")
        assert (refused.code, refused.out) == (1, b"")
        assert refused.error.startswith(f"{output} was started with a different template (then: ")
        assert batch(model, *args, *then).code == 0
        assert output.read_bytes() == whole
        output.unlink()


def test_an_option_that_says_what_happens_without_it_is_no_difference(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    assert batch(plain_model, *args).code == 0
    for same in (["-n", "256"], ["--repetition-penalty", "1"]):
        assert batch(plain_model, *args, *same).code == 0
    # But for records with a top_p, which are sampled without it.
    other = batch(plain_model, *args, "--temp", "0")
    assert "a different temperature_if_a_record_samples (then: 1.0, now: 0.0)." in other.error


def test_a_model_is_the_same_by_whatever_name(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    assert batch("./plain", *args, cwd=plain_model.parent).code == 0
    assert batch("plain", *args, cwd=plain_model.parent).code == 0
    assert batch(plain_model, *args).code == 0


def test_the_input_was_another(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    whole = output.read_bytes()
    text = source.read_text()
    source.write_text(text.replace("Number 5", "Number V"))
    ended = batch(plain_model, *args)
    assert (ended.code, ended.hint) == (1, RESTART)
    assert ended.error == f"Line 6 of the input has changed since {output} was written."
    source.write_text("".join(text.splitlines(keepends=True)[:9]))
    assert "The input ends before the 10 records" in batch(plain_model, *args).error
    assert output.read_bytes() == whole
    # What comes after the results may change.
    source.write_text(text + '{"id": "new", "prompt": "new"}\n')
    assert unlike_time(batch(plain_model, *args)) == "1 record"
    assert output.read_bytes().startswith(whole)


# Going on


def test_the_same_command_again_does_nothing(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    before = stands(output.parent)
    ended = batch(plain_model, *args)
    assert (ended.code, ended.out) == (0, b"")
    assert summary(ended) == f"Nothing to do: {output} already has a result for all 20 records."
    assert batch(plain_model, *args, "-q").err == b""
    assert batch(plain_model, *args, "-q", "--retry-errors").err == b""
    assert stands(output.parent) == before


def test_a_run_goes_on_from_any_byte(plain_model, source, output):
    args = (source, "-o", output, "-t", "raw")
    batch(plain_model, *args)
    whole = output.read_bytes()
    assert whole.count(b"\n") == 20
    for share in (0, 0.001, 0.3, 0.77, 0.9999):
        output.write_bytes(whole[: int(len(whole) * share)])
        stand = output.read_bytes().count(b"\n")
        ended = batch(plain_model, *args)
        assert (ended.code, output.read_bytes()) == (0, whole)
        assert unlike_time(ended) == f"{20 - stand} record{'s' * (stand < 19)}"
        assert (f"; {stand} already had a result." in summary(ended)) == (stand > 0)


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
    assert re.search(r"/4,?[0-9]{3}", shown)
    assert "tokens/s" in shown
    assert "\x1b[?25l" not in shown
    bar, last = shown.rsplit("\x1b[2K", 1)
    assert last.startswith("4,001 records in ")
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
    assert b"/3" not in ended.err


def test_the_summary_as_json(plain_model, mixed, output):
    ended = batch(plain_model, mixed, "-o", output, "--json", "-q")
    assert (ended.code, ended.err) == (3, b"")
    summary = json.loads(ended.out)
    assert (summary["output"], summary["answered"], summary["failed"]) == (str(output), 6, 3)
    assert batch(plain_model, mixed, "--json").error == "--json needs a file of results, --output."


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
