"""Each task through the real entry point, on tiny models."""

from __future__ import annotations

import json

import pytest

from tests import tiny
from tests.cli.shell import run_hfpipe

TASKS = {
    "t5": ["--task", "summarization"],
    "bart": [],
    "mbart": ["--source-lang", "en", "--target-lang", "de_DE"],
    "m2m_100": ["--task", "translation", "--target-lang", "fr"],
    "marian": ["--task", "translation"],
    "pegasus": [],
}


def answered(*args: object, **more: object) -> dict:
    ended = run_hfpipe(*args, "--json", **more)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize(("kind", "engine"), [*((kind, "torch") for kind in TASKS), ("mbart", "openvino")])
def test_run_and_batch_answer_alike(tiny_seq2seq, tiny_seq2seq_ov, tmp_path, kind, engine):
    """A batch that is resumed, too."""
    model = tiny_seq2seq(kind) if engine == "torch" else tiny_seq2seq_ov(kind)
    options = [*TASKS[kind], "--exact", "-n", "12"]
    single = answered("run", model, tiny.SENTENCES[0], *options)
    assert single["usage"]["completion_tokens"] == 12
    questions, output = tmp_path / "q.txt", tmp_path / "a.jsonl"
    questions.write_text("\n".join(tiny.SENTENCES) + "\n")
    done = run_hfpipe("batch", questions, "-m", model, "-o", output, *options)
    assert done.code == 0, done.err
    whole = output.read_bytes()
    results = [json.loads(line) for line in whole.splitlines()]
    assert results[0]["text"] == single["text"]
    assert results[0]["usage"] == single["usage"]
    assert len({one["text"] for one in results}) > 1
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert run_hfpipe("batch", questions, "-m", model, "-o", output, *options).code == 0
    assert output.read_bytes() == whole


def test_one_is_exported_once(tiny_seq2seq, tiny_seq2seq_ov):
    """The answer of the export, which the cache has, is that of the source."""
    model, options = tiny_seq2seq("t5"), ["--task", "summarization", "--exact", "-n", "12"]
    assert tiny_seq2seq_ov("t5").is_dir()
    found = [answered("run", model, "One two three.", *options, "-b", engine) for engine in ("torch", "openvino")]
    assert found[0]["text"] == found[1]["text"]
    assert found[1]["detail"]["mode"] == "encoder and decoder"


def test_what_cannot_be_exported_is_refused_before_the_weights_are_read(tiny_seq2seq):
    ended = run_hfpipe("run", tiny_seq2seq("marian"), "One two", "-b", "openvino")
    assert ended.code == 1
    assert "for marian it needs transformers <= 4.57" in ended.error
    assert ended.hint == "--backend torch may run it."


def test_a_stop_ends_an_answer(tiny_seq2seq):
    model = tiny_seq2seq("mbart")
    options = ["--target-lang", "fr", "-n", "20"]
    whole = answered("run", model, "What is EEG?", *options)["text"]
    stop = whole[len(whole) // 2 :][:2]
    ended = answered("run", model, "What is EEG?", *options, "--stop", stop)
    assert (ended["text"], ended["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_a_batch_of_another_task_is_not_resumed(tiny_seq2seq, tmp_path):
    questions, output = tmp_path / "q.txt", tmp_path / "a.jsonl"
    questions.write_text("One two\n")
    common = ["batch", questions, "-m", tiny_seq2seq("t5"), "-o", output, "-n", "4"]
    assert run_hfpipe(*common, "--task", "summarization").code == 0
    refused = run_hfpipe(*common, "--task", "translation_en_to_de")
    assert refused.code == 1
    assert "was started with a different task" in refused.error


def test_the_prompt_as_the_model_gets_it(tiny_seq2seq):
    ended = run_hfpipe("run", tiny_seq2seq("t5"), "Hi", "-n", "2", "--task", "summarization", "--show-prompt")
    assert ended.err.decode().splitlines()[0] == "summarize: Hi"
