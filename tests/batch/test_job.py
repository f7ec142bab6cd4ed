"""`hfpipe.batch` in Python, and what inputs and outputs it takes."""

import gzip
import json
from dataclasses import replace

import pytest

import hfpipe
from hfpipe.batch.formats import recognized
from hfpipe.batch.lines import Line
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.langchain import HFPipe
from tests import tiny
from tests.cli.conftest import write_echo_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_echo_model(tmp_path_factory.mktemp("model") / "chat", tiny.CHAT_TEMPLATE)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Number {i}"}) + "\n" for i in range(9)))
    return path


def batch(model, source, output, **options):
    return hfpipe.batch(model, source, output, **{"backend": "echo", "template": "raw", **options})


def texts(output):
    return [json.loads(line)["text"] for line in output.read_bytes().splitlines()]


def test_a_batch_and_its_summary(model, source, tmp_path):
    output = tmp_path / "a.jsonl"
    first = batch(model, source, output)
    assert (first.output, first.answered, first.existing, first.failed, first.exit_code) == (output, 9, 0, 0, 0)
    assert first.completion_tokens == first.prompt_tokens > 9
    again = batch(str(model), str(source), str(output))
    assert (again.answered, again.existing, again.completion_tokens) == (0, 9, 0)
    assert json.loads(json.dumps(again.as_dict()))["output"] == str(output)
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_token": 3}, "Unknown option max_token."),
        ({"format": "opnai"}, "Unknown format 'opnai'."),
        ({"max_errors": -1}, "--max-errors must be at least 0"),
        ({"restart": True, "retry_errors": True}, "--retry-errors cannot be combined with --restart."),
    ],
)
def test_options_that_are_wrong(model, source, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        batch(model, source, tmp_path / "a", **options)


@pytest.mark.parametrize("packed", [False, True])
def test_plain_text_has_a_prompt_a_line(model, tmp_path, packed):
    path = tmp_path / ("q.txt.gz" if packed else "q.txt")
    data = b"\xef\xbb\xbfone {x}\r\n\r\n two\xff\nthree"
    path.write_bytes(gzip.compress(data) if packed else data)
    summary = batch(model, path, tmp_path / "a")
    assert dict(summary.errors) == {"invalid_json": 1}
    results = [json.loads(line) for line in (tmp_path / "a").read_bytes().splitlines()]
    assert [(one["id"], one["text"]) for one in results] == [("1", "one {x}"), ("3", ""), ("4", "three")]


@pytest.mark.parametrize(
    ("name", "first", "said", "hint"),
    [
        ("q.csv", b"question,answer", "q.csv is not JSON lines", "pandas.read_csv('q.csv').to_json('q.jsonl'"),
        ("q.parquet", b"PAR1\x15", "q.parquet is not JSON lines", "read_parquet"),
        ("q", b"PAR1\x15", "q is not JSON lines", "read_parquet"),
        ("q.json", b"[", "q.json is not JSON lines", "jq -c '.[]' q.json > q.jsonl"),
        ("q.json", b'[{"prompt": "a"}]', "q.json is not JSON lines", "jq -c '.[]'"),
        ("q.json", b"{", "q.json is not JSON lines", "jq -c '.' q.json"),
        ("stdin", b"What is EEG?", "stdin is not JSON lines", "--format text"),
    ],
)
def test_other_kinds_of_files_are_refused_before_a_model_is_loaded(tmp_path, name, first, said, hint):
    with pytest.raises(UsageError) as caught:
        recognized(Line(1, first, b""), name)
    assert caught.value.message.startswith(said)
    assert hint in caught.value.hint
    path = tmp_path / name
    path.write_bytes(first)
    with pytest.raises(UsageError):
        batch("no/model", path, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_requests_of_openai_are_recognized(model, tmp_path):
    source, output = tmp_path / "q", tmp_path / "a"
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "model": "x"}}
    source.write_text(json.dumps(request) + "\n")
    hfpipe.batch(str(model), source, output, backend="echo")
    result = json.loads(output.read_bytes())
    # Raw text, although the model has a chat template.
    assert (result["custom_id"], result["response"]["body"]["choices"][0]["text"]) == ("a", "Hi")
    with pytest.raises(UsageError, match="does not apply to OpenAI requests"):
        hfpipe.batch(str(model), source, output, backend="echo", template="qa")


def test_a_conversation_that_ends_with_the_assistant_is_continued(model, tmp_path):
    source = tmp_path / "q"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    source.write_text(json.dumps({"messages": messages}) + "\n")
    batch(model, source, tmp_path / "a")
    assert texts(tmp_path / "a")[0].endswith("assistant\nWell")


def test_a_loop_of_links(model, source, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(HFPipeError, match="Too many levels of symbolic links") as caught:
        batch(model, source, tmp_path / "a")
    assert caught.value.hint.startswith("Choose another file")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_temperature_that_is_not_a_number(model, tmp_path, value):
    (tmp_path / "q").write_text(f'{{"prompt": "x", "temperature": {value}}}\n')
    batch(model, tmp_path / "q", tmp_path / "a")
    error = json.loads((tmp_path / "a").read_bytes())["error"]
    assert error == {
        "type": "invalid_record",
        "message": f"temperature must be from 0 (greedy) to 1000, not {float(value)}.",
    }
