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
        (["summarize"], "over stdin\n", "over stdin\n\nsummarize"),
        (["nothing is on stdin"], " \n", "nothing is on stdin"),
        ([], "from a pipe\n", "from a pipe"),
        (["-"], "from a pipe", "from a pipe"),
        (["-"], "two\nlines\n\n", "two\nlines\n"),
        (["-"], "\ufefffrom\r\nWindows\r\n", "from\nWindows"),
        (["--", "-x"], None, "-x"),
        (["--", "--help"], None, "--help"),
    ],
)
def test_sources(plain_model, args, input, expected):
    ended = raw(plain_model, *args, input=input)
    assert (ended.code, ended.out.decode(), ended.err) == (0, expected + "\n", b"")


@pytest.mark.parametrize(
    ("template", "args", "expected"),
    [
        ("{prompt}: {input}", ["summarize"], "summarize: a text"),
        ("Summarize {input}", [], "Summarize a text"),
        ("{prompt}: {input}", ["summarize", "--var", "input=x"], "a text\n\nsummarize: x"),
    ],
)
def test_stdin_fills_the_input_of_a_template(plain_model, template, args, expected):
    assert echo(plain_model, "-t", template, *args, input="a text\n").out.decode() == expected + "\n"


@pytest.mark.parametrize(("template", "args"), [("{a}", ["--var", "a=1"]), ("A {input}", ["summarize"])])
def test_a_prompt_that_has_no_place_is_an_error(plain_model, template, args):
    ended = echo(plain_model, "-t", template, *args, input="a text")
    error = f'The prompt has no place in the template "{template}": its variables have values.'
    assert (ended.code, ended.error) == (2, error)
    assert ended.hint == "Write {prompt} into the template where PROMPT goes; stdin fills {input}."


def test_values_of_options_may_begin_with_a_dash(plain_model):
    assert raw(plain_model, "--stop", "- b", "a - b").out == b"a \n"
    assert raw(plain_model, "--", "-5 + 3").out == b"-5 + 3\n"


@pytest.mark.parametrize(
    ("args", "env"),
    [(["-m", "MODEL", "hi"], {}), (["hi"], {"HFPIPE_MODEL": "MODEL"}), (["MODEL", "hi"], {"HFPIPE_MODEL": "other"})],
)
def test_the_model_may_be_an_option_or_a_variable(plain_model, args, env):
    args = [str(plain_model) if word == "MODEL" else word for word in args]
    env = {name: str(plain_model) if value == "MODEL" else value for name, value in env.items()}
    ended = run_hfpipe("run", *args, "-b", "echo", "-t", "raw", env=env)
    assert (ended.code, ended.out, ended.err) == (0, b"hi\n", b"")


def test_a_model_that_is_given_twice(plain_model):
    ended = run_hfpipe("run", "a", "hi", "-m", "b", "-b", "echo")
    assert (ended.code, ended.error) == (2, "The model is given twice: a and --model b.")


@pytest.mark.parametrize(
    ("args", "note"),
    [(["-n", "2"], "[stopped at 2 tokens; -n raises it]"), ([], "[stopped: the context of 64 tokens is full]")],
)
def test_an_answer_that_was_cut_says_so_on_a_terminal(chat_model, args, note):
    text = "0123456789" * 4
    assert note in raw(chat_model, text, *args, tty="stderr").err.decode()
    assert raw(chat_model, text, *args).err == b""
    assert b"stopped" not in raw(chat_model, "hi", tty="stderr").err


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
    assert (ended.code, ended.error) == (2, "No prompt is given.")
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
