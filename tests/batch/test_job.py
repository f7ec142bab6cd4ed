"""`hfpipe.batch` in Python, on the echo backend: it answers a record with its prompt."""

import gzip
import json
import threading
from dataclasses import replace

import pytest
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

import hfpipe
from hfpipe.backends.openvino import optimum_cli, tuning
from hfpipe.batch.formats import recognized
from hfpipe.batch.lines import Line
from hfpipe.batch.order import TooManyErrors
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.langchain import HFPipe
from tests import tiny
from tests.batch.work import RESTART
from tests.cli.conftest import write_echo_model

ODD = ["é 🙂 שלום", "a\u2028b\x85c", 'tab\tand "quotes" \\ {braces}', "[bold]x[/] :dog:", "\x1b[2J", "\ud83d"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_echo_model(tmp_path_factory.mktemp("model") / "chat", tiny.CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_echo_model(tmp_path_factory.mktemp("model") / "plain", n_positions=None)


def write(path, *records):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in records))
    return path


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "q.jsonl", *({"id": f"q{i}", "prompt": f"Number {i}"} for i in range(9)))


@pytest.fixture
def mixed(tmp_path):
    """The 2nd, 4th and 5th record fail."""
    wrong = {"prompt": "five", "n": 2, "max_tokens": 0}
    return write(tmp_path / "mixed", {"prompt": "one"}, "{\n", {"prompt": "three"}, {"x": 1}, wrong, {"prompt": "six"})


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def batch(model, source, output, **options):
    return hfpipe.batch(model, source, output, **{"backend": "echo", "template": "raw", **options})


def results(output):
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def texts(output):
    return [result["text"] for result in results(output)]


def cut(output, share):
    data = output.read_bytes()
    output.write_bytes(data[: int(len(data) * share)])
    return output.read_bytes().count(b"\n")


def test_a_batch_and_its_summary(model, source, output):
    first = batch(model, source, output)
    assert (first.output, first.answered, first.existing, first.failed, first.exit_code) == (output, 9, 0, 0, 0)
    assert first.completion_tokens == first.prompt_tokens > 9
    before = [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()]
    again = batch(str(model), str(source), str(output))
    assert (again.answered, again.existing, again.completion_tokens) == (0, 9, 0)
    assert json.loads(json.dumps(again.as_dict()))["output"] == str(output)
    assert [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()] == before
    lines = []
    batch(model, source, lines.append)
    assert b"".join(lines) == output.read_bytes()


def test_results_stream_through_the_langchain_pipeline(model, source, tmp_path, monkeypatch):
    """Of a model by name and of one that is loaded."""
    stream_batch = HFPipe.stream_batch

    def marked(self, requests):
        for index, answer in stream_batch(self, requests):
            yield index, replace(answer, text=f"[{answer.text}]")

    monkeypatch.setattr(HFPipe, "stream_batch", marked)
    loaded = hfpipe.load(str(model), backend="echo")
    for number, (one, loading) in enumerate([(model, {"backend": "echo"}), (loaded, {}), (loaded.generator, {})]):
        hfpipe.batch(one, source, tmp_path / str(number), template="raw", **loading)
        assert texts(tmp_path / str(number)) == [f"[Number {i}]" for i in range(9)]


def test_a_loaded_model_answers_too(model, source, tmp_path):
    llm = hfpipe.load(str(model), backend="echo", max_tokens=2)
    for number, loaded in enumerate((llm, llm.generator)):
        hfpipe.batch(loaded, source, tmp_path / str(number), template="raw")
    # An HFPipe has options of its own.
    assert len(texts(tmp_path / "0")[0]) < len(texts(tmp_path / "1")[0])
    with pytest.raises(UsageError, match="dtype is an option of loading"):
        hfpipe.batch(llm, source, tmp_path / "c", dtype="float32")


def test_a_stop_is_a_text_or_several(plain, source, tmp_path):
    for stop in ("3", ["3"], ("3",)):
        # Each is the same setting: the later calls find everything done.
        batch(plain, source, tmp_path / "a", stop=stop)
    answers = texts(tmp_path / "a")
    assert len(answers) == 9
    assert "3" not in "".join(answers)
    assert "4" in "".join(answers)


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"max_token": 3}, "Unknown option max_token.", "max_tokens"),
        ({"format": "opnai"}, "Unknown format 'opnai'.", "Did you mean 'openai'?"),
        ({"format": "x"}, "Unknown format 'x'.", "Known formats are hfpipe, openai, text."),
        ({"max_errors": -1}, "--max-errors must be at least 0, not -1.", ""),
        ({"verify_parity": 0}, "--verify-parity must be at least 1, not 0.", ""),
        ({"restart": True, "retry_errors": True}, "--retry-errors cannot be combined with --restart.", ""),
        ({"template": "none"}, 'There is no {variable} in the template "none".', "A template is qa"),
        ({"template": "chat"}, "has no chat template.", "Use the template qa"),
        ({"batch_size": 0}, "batch_size must be at least 1", ""),
    ],
)
def test_options_that_are_wrong(plain, source, tmp_path, options, said, hint):
    with pytest.raises(UsageError) as caught:
        batch(plain, source, tmp_path / "a", **options)
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


@pytest.mark.parametrize(
    ("input", "output", "said"),
    [
        ("q.jsonl", None, r"needs an output file\.$"),
        ("-", "out", r"needs an input file that can be read twice: stdin is not one\.$"),
    ],
)
@pytest.mark.parametrize("option", [{"retry_errors": True}, {"verify_parity": 2}])
def test_what_needs_a_file_that_can_be_read_twice(plain, source, input, output, said, option):
    with pytest.raises(UsageError, match=said):
        batch(plain, source.with_name(input) if input != "-" else "-", output or print, **option)


# What goes in


@pytest.mark.parametrize("packed", [False, True])
def test_any_kind_of_file(model, source, tmp_path, packed):
    """A BOM, CRLF, blank lines, no newline at the end, gzip."""
    data = b"\xef\xbb\xbf\r\n" + b"\r\n \r\n".join(source.read_bytes().splitlines())
    (tmp_path / "odd").write_bytes(gzip.compress(data) if packed else data)
    batch(model, tmp_path / "odd", tmp_path / "a")
    assert [(one["id"], one["text"]) for one in results(tmp_path / "a")] == [(f"q{i}", f"Number {i}") for i in range(9)]


@pytest.mark.parametrize("packed", [False, True])
def test_plain_text_has_a_prompt_a_line(model, tmp_path, packed):
    path = tmp_path / ("q.txt.gz" if packed else "q.txt")
    data = b"\xef\xbb\xbfone {x}\r\n\r\n two\xff\nthree"
    path.write_bytes(gzip.compress(data) if packed else data)
    summary = batch(model, path, tmp_path / "a")
    assert dict(summary.errors) == {"invalid_json": 1}
    assert [(one["id"], one["text"]) for one in results(tmp_path / "a")] == [
        ("1", "one {x}"),
        ("3", ""),
        ("4", "three"),
    ]


@pytest.mark.parametrize(
    ("name", "first", "hint"),
    [
        ("q.csv", b"question,answer", 'read_csv(...).to_json(..., orient="records", lines=True)'),
        ("q.parquet", b"PAR1\x15", "read_parquet"),
        ("q", b"PAR1\x15", "read_parquet"),
        ("q.xlsx.gz", b"PK", "read_excel"),
        ("q.json", b"[", "jq -c '.[]' "),
        ("q.json", b'[{"prompt": "a"}]', "jq -c '.[]' "),
        ("q.json", b"{", "jq -c . "),
        ("stdin", b"What is EEG?", "--format text"),
    ],
)
def test_other_kinds_of_files_are_refused_before_a_model_is_loaded(tmp_path, name, first, hint):
    with pytest.raises(UsageError) as caught:
        recognized(Line(1, first, b""), name)
    assert caught.value.message == f"{name} is not JSON lines: its first line is not a JSON object."
    assert hint in caught.value.hint
    path = tmp_path / name
    path.write_bytes(first)
    with pytest.raises(UsageError):
        batch("no/model", path, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_all_forms_of_a_record(model, tmp_path, output):
    records = [
        {"question": "Hi"},
        {"prompt": "Hi", "id": 7},
        {"messages": [{"role": "user", "content": "Hi"}], "custom_id": "a"},
        {"question": "Hi", "max_tokens": 3},
        {"question": "Hi", "stop": []},
    ]
    batch(model, write(tmp_path / "q", *records), output, template=None, stop="assist", system="X")
    assert [one["id"] for one in results(output)] == ["1", "7", "a", "4", "5"]
    question, prompt, messages, short, whole = texts(output)
    assert question == prompt == messages == "system\nX\nuser\nHi\n"
    assert results(output)[3]["usage"]["completion_tokens"] == 3
    assert question.startswith(short)
    assert whole == question + "assistant\n"


def test_variables(model, tmp_path, output):
    source = write(tmp_path / "q", {"text": "Hi", "to": "German"}, {"text": "Hi"}, {"prompt": "Hi"})
    batch(model, source, output, template="{text} in {to}", variables={"to": "French"})
    assert texts(output) == ["Hi in German", "Hi in French", "Hi in French"]


def test_any_text(model, tmp_path, output):
    """And a line of 10 MB, of which nothing is asked. Half a character is replaced, two halves are a whole one."""
    records = [{"id": text, "prompt": text} for text in ODD]
    halves = {"messages": [{"role": "user", "content": "\ud83d"}], "stop": "\ud83d", "max_tokens": 99}
    records += [{"prompt": "Hi", "metadata": {"x": "y" * 10_000_000}}, halves]
    source = write(tmp_path / "q", *records, '{"prompt": "\\ud83d\\ude00"}\n')
    batch(model, source, output)
    *found, said, whole = texts(output)
    assert (found, whole) == ([*ODD[:-1], "\ufffd", "Hi"], "😀")
    assert "\ufffd" in said
    assert [one["id"] for one in results(output)] == [*ODD, "7", "8", "9"]
    text = output.read_text()
    assert text.splitlines() == text.split("\n")[:-1]


def test_a_conversation_that_ends_with_the_assistant_is_continued(model, tmp_path, output):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    batch(model, write(tmp_path / "q", {"messages": messages}), output)
    assert texts(output)[0].endswith("assistant\nWell")


def test_requests_of_openai_are_recognized(model, tmp_path, output):
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5, "model": "gpt"}
    requests = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "model": "gpt"}},
        {"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"input": "Hi"}},
        {"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x " * 2000}},
    ]
    source = write(tmp_path / "q", *requests, "{\n")
    summary = batch(model, source, output, template=None)
    assert summary.errors == {"invalid_record": 1, "context_length": 1, "invalid_json": 1}
    a, b, c, d, e = results(output)
    assert [one["custom_id"] for one in (a, b, c, d, e)] == ["a", "b", "c", "d", "5"]
    assert ChatCompletion.model_validate(a["response"]["body"], strict=True).usage.completion_tokens == 5
    # Raw text, although the model has a chat template.
    assert TextCompletion.model_validate(b["response"]["body"], strict=True).choices[0].text == "Hi"
    assert [one["response"] and one["response"]["status_code"] for one in (c, d, e)] == [400, 400, None]
    whole = output.read_bytes()
    cut(output, 0.5)
    batch(model, source, output, template=None)
    assert output.read_bytes() == whole
    with pytest.raises(UsageError, match="does not apply to OpenAI requests"):
        batch(model, source, output, template="qa")


# Failed records


def test_failed_records(plain, mixed, output):
    kinds = ["invalid_json", "missing_variable", "invalid_record"]
    for answered in (6, 0):
        summary = batch(plain, mixed, output)
        assert (summary.exit_code, summary.answered, summary.errors) == (3, answered, dict.fromkeys(kinds, 1))
    assert [one["error"] and one["error"]["type"] for one in results(output)] == [
        None,
        kinds[0],
        None,
        *kinds[1:],
        None,
    ]


def test_too_many_of_them_end_it_early(plain, mixed, output, tmp_path):
    batch(plain, mixed, tmp_path / "whole")
    with pytest.raises(TooManyErrors, match="2 records failed"):
        batch(plain, mixed, output, batch_size=1, max_errors=1)
    assert output.read_bytes() == b"".join((tmp_path / "whole").read_bytes().splitlines(keepends=True)[:4])
    # Of this run.
    assert batch(plain, mixed, output, max_errors=1).failed == 3
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_retry_puts_results_in_their_places(plain, source, output):
    """Two failed for want of memory, let us say."""
    batch(plain, source, output)
    whole = output.read_bytes()
    failed = {"text": "", "finish_reason": "error", "usage": None, "error": {"type": "out_of_memory", "message": "No."}}
    lines = whole.splitlines(keepends=True)
    for i in (3, 7):
        lines[i] = json.dumps({"id": f"q{i}", **failed}).encode() + b"\n"
    # Of a run that was interrupted, too: what has no result comes with the next run.
    for exist in (9, 8):
        output.write_bytes(b"".join(lines[:exist]))
        summary = batch(plain, source, output, retry_errors=True)
        assert (summary.answered, summary.failed, summary.unanswered) == (2, 0, exist < 9)
        assert summary.exit_code == (3 if exist < 9 else 0)
        assert output.read_bytes() == b"".join(whole.splitlines(keepends=True)[:exist])
    assert batch(plain, source, output).exit_code == 0
    assert output.read_bytes() == whole
    assert batch(plain, source, output, retry_errors=True).answered == 0


def test_a_retry_that_can_change_nothing(plain, mixed, output):
    batch(plain, mixed, output)
    before = output.read_bytes()
    summary = batch(plain, mixed, output, retry_errors=True)
    assert (summary.exit_code, summary.answered, summary.failed) == (3, 3, 3)
    assert output.read_bytes() == before
    with pytest.raises(HFPipeError, match="a different variables"):
        batch(plain, mixed, output, retry_errors=True, variables={"x": "y"})


# What was there


def test_a_run_resumes_from_any_byte(model, source, output):
    batch(model, source, output)
    whole = output.read_bytes()
    for share in (0, 0.001, 0.3, 0.77, 0.9999):
        existing = cut(output, share)
        summary = batch(model, source, output)
        assert (summary.answered, summary.existing, output.read_bytes()) == (9 - existing, existing, whole)


def test_a_run_resumes_on_the_backend_that_started_it(tiny_gpt2, tmp_path, output, monkeypatch):
    """Also where --backend auto would now choose the export that was made meanwhile."""
    source = write(tmp_path / "q.jsonl", *[{"prompt": f"{number}"} for number in range(4)])
    options = {"backend": "auto", "max_tokens": 2, "temperature": 0}
    batch(tiny_gpt2, source, output, **options)
    whole = output.read_bytes()
    cut(output, 0.6)
    monkeypatch.setattr(optimum_cli, "is_exported", lambda *_: True)
    batch(tiny_gpt2, source, output, **options)
    assert output.read_bytes() == whole


def test_a_run_resumes_with_the_settings_that_started_it(tiny_llama_ov, tmp_path, output, monkeypatch):
    """Whatever was measured to be faster since then, or measured again."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "q.jsonl", *[{"prompt": f"{number}"} for number in range(4)])
    options = {"backend": "openvino", "max_tokens": 2, "temperature": 0}
    for started in ({}, {"INFERENCE_PRECISION_HINT": "f32"}):
        for speedup, settings in [(1.4, started), (1.5, {"INFERENCE_PRECISION_HINT": "f32"})]:
            tuning.keep(tiny_llama_ov, {"batch": tuning.Choice(settings, speedup)})
            batch(tiny_llama_ov, source, output, **options, restart=not started and speedup == 1.4)
            cut(output, 0.6)
        output.unlink()


def test_restart_keeps_the_old_results_aside(model, source, output):
    batch(model, source, output)
    old = output.read_bytes()
    summary = batch(model, source, output, restart=True, max_tokens=2)
    assert summary.set_aside == output.with_name("out.jsonl.1")
    assert (summary.set_aside.read_bytes(), texts(output)[0]) == (old, "Nu")


@pytest.mark.parametrize(
    ("other", "options", "said"),
    [
        (False, {"max_tokens": 8}, r"a different max_tokens \(then: 9, now: 8\)\."),
        (False, {"template": "qa"}, r'a different template \(then: "{prompt}", now: "Question: '),
        (False, {"exact": True}, r"a different exact \(then: false, now: true\)\."),
        (False, {"temperature": 0}, r"a different temperature_if_a_record_samples \(then: 1.0, now: 0.0\)\."),
        (True, {}, r"a different model \(then: "),
    ],
)
def test_results_of_other_settings_are_not_resumed(model, plain, source, output, other, options, said):
    batch(plain, source, output, max_tokens=9)
    whole = output.read_bytes()
    with pytest.raises(HFPipeError, match=said) as caught:
        batch(model if other else plain, source, output, **{"max_tokens": 9, **options})
    assert (caught.value.hint, output.read_bytes()) == (RESTART, whole)


@pytest.mark.parametrize(("name", "default"), [("plain", "qa"), ("model", "chat")])
def test_the_template_that_was_used_counts_and_not_the_option(request, name, default, source, output, tmp_path):
    model = request.getfixturevalue(name)
    batch(model, source, tmp_path / "whole", template=None)
    for first, then in [(None, default), (default, None)]:
        batch(model, source, output, template=first)
        cut(output, 0.6)
        with pytest.raises(HFPipeError, match="was started with a different template"):
            batch(model, source, output)
        assert batch(model, source, output, template=then).answered
        assert output.read_bytes() == (tmp_path / "whole").read_bytes()
        output.unlink()


def test_what_is_the_same_by_another_name_is_no_difference(plain, source, output, monkeypatch):
    monkeypatch.chdir(plain.parent)
    batch("./plain", source, output)
    for one, options in [("plain", {}), (plain, {"max_tokens": 256}), (plain, {"repetition_penalty": 1})]:
        assert batch(one, source, output, **options).existing == 9


def test_a_loop_of_links(model, source, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(HFPipeError, match="Too many levels of symbolic links") as caught:
        batch(model, source, tmp_path / "a")
    assert caught.value.hint.startswith("Choose another file")


@pytest.mark.parametrize("is_loaded", [False, True], ids=["that loads", "that syncs"])
def test_a_thread_that_cannot_start_is_an_error_and_the_next_run_works(monkeypatch, model, source, output, is_loaded):
    loaded = HFPipe(model=str(model), backend="echo", template="raw") if is_loaded else None
    options = {} if loaded else {"backend": "echo"}
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", tiny.no_thread)
        with pytest.raises(HFPipeError, match="no more threads"):
            hfpipe.batch(loaded or model, source, output, template="raw", **options)
    assert hfpipe.batch(loaded or model, source, output, template="raw", **options).answered == 9
