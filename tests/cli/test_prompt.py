"""Where the prompt comes from, and how it reaches the model."""

import json
import os

import pytest

from tests.cli.shell import HFPIPE, run_hfpipe

UNICODE = "Was ist EEG? 🧠👩‍🔬 مرحبا שלום 你好 e\u0301"


def echo(model, *args, **settings):
    return run_hfpipe("run", model, "-b", "echo", *args, **settings)


def raw(model, *args, **settings):
    return echo(model, "-t", "raw", *args, **settings)


@pytest.mark.parametrize(
    ("args", "input", "expected"),
    [
        (["from the argument"], None, "from the argument"),
        (["the argument wins"], "over stdin", "the argument wins"),
        ([], "from a pipe\n", "from a pipe"),
        (["-"], "from a pipe", "from a pipe"),
        (["-"], "two\nlines\n\n", "two\nlines\n"),
        (["--", "-x"], None, "-x"),
        (["--", "--help"], None, "--help"),
    ],
)
def test_sources(plain_model, args, input, expected):
    ended = raw(plain_model, *args, input=input)
    assert (ended.code, ended.out.decode(), ended.err) == (0, expected + "\n", b"")


def test_stdin_may_be_a_file(plain_model, tmp_path):
    (tmp_path / "prompt").write_text("from a file\n")
    line = f'"$@" < {tmp_path / "prompt"}'
    ended = run_hfpipe("run", plain_model, "-b", "echo", "-t", "raw", command=["bash", "-c", line, "bash", *HFPIPE])
    assert ended.out == b"from a file\n"


@pytest.mark.parametrize("args", [[""], [" \n"], ["-"], []])
def test_an_empty_prompt_is_an_error(plain_model, args):
    ended = raw(plain_model, *args, input="\n")
    assert (ended.code, ended.error, ended.out) == (2, "The prompt is empty.", b"")


def test_at_a_terminal_a_prompt_must_be_given(plain_model):
    ended = raw(plain_model, tty="stdin")
    assert (ended.code, ended.error) == (2, "There is no prompt.")
    assert "hfpipe run smollm2" in ended.hint


def test_stdin_that_is_no_text(plain_model):
    ended = raw(plain_model, input=b"abc\xff")
    assert (ended.code, ended.error) == (2, "The prompt on stdin is not UTF-8 text: byte 0xff at 3.")


def test_an_argument_that_is_no_text(plain_model):
    ended = raw(plain_model, os.fsdecode(b"caf\xe9"))
    assert (ended.code, ended.error) == (2, "The prompt is not UTF-8 text: byte 0xe9 at 3.")


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_unicode_in_any_locale(plain_model, locale):
    env = {"LC_ALL": locale, "LANG": None, "PYTHONUTF8": None}
    assert raw(plain_model, UNICODE, env=env).out.decode() == UNICODE + "\n"


def test_unicode_in_an_error_in_the_posix_locale():
    ended = run_hfpipe("run", "./🧠", "hi", env={"LC_ALL": "POSIX", "LANG": None, "PYTHONUTF8": "0"})
    assert ended.code == 1
    assert ended.err.startswith(b"Error: There is no folder or file ./")


def test_a_prompt_of_a_megabyte(plain_model, chat_model):
    prompt = "Question: how many people live in Paris?\n" * (1_000_000 // 41)
    ended = raw(plain_model, "-", "-n", "8", "--show-prompt", input=prompt + "\n")
    assert ended.code == 0
    assert ended.err.decode() == prompt + "\n"
    assert prompt.startswith(ended.out.decode().removesuffix("\n"))
    ended = raw(chat_model, "-", input=prompt)
    assert (ended.code, ended.out) == (1, b"")
    assert "tokens, and the context of" in ended.error
    assert ended.error.endswith("is 64.")
    assert "Shorten the prompt" in ended.hint


def test_a_long_prompt_comes_back_whole(plain_model):
    prompt = "One two three four five six seven, and then all of it again. " * 1600
    assert raw(plain_model, "-n", "1000000", input=prompt).out.decode() == prompt + "\n"


def test_the_answer_is_cut_to_what_the_context_leaves(chat_model):
    ended = raw(chat_model, "0123456789" * 4, "--json")
    answer = json.loads(ended.out)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 64
