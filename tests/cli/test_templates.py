"""Which template a prompt goes into, and --show-prompt, which says so."""

import pytest

from tests.cli.conftest import write_echo_model
from tests.cli.shell import run_hfpipe

QA = "Question: hi\n\nAnswer: Let's think step by step."
CHAT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def prompt_of(model, *args, **settings):
    """What the model got, with --show-prompt."""
    ended = run_hfpipe("run", model, "-b", "echo", "--show-prompt", *args, **settings)
    assert ended.code == 0, ended.err
    return ended.err.decode().removesuffix("\n")


def failure(model, *args):
    ended = run_hfpipe("run", model, "-b", "echo", *args)
    assert (ended.code, ended.out) == (2, b"")
    return ended


def test_defaults(plain_model, chat_model):
    assert prompt_of(plain_model, "hi") == QA
    assert prompt_of(chat_model, "hi") == CHAT


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-t", "qa", "hi"], QA),
        (["-t", "raw", "hi {x}"], "hi {x}"),
        (["-t", "chat", "-s", "Be brief.", "hi"], "<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT),
        (["-t", "Say {prompt} in {language}: ", "--var", "language=French", "hi"], "Say hi in French: "),
        (["-t", "{a}{{}}{b}", "--var", "a={b}=", "--var", "b=2"], "{b}={}2"),
        (["-t", "[bold]{question}[/]", "--", "-x"], "[bold]-x[/]"),
    ],
)
def test_templates(chat_model, args, expected):
    assert prompt_of(chat_model, *args) == expected


def test_a_template_in_a_file(plain_model, tmp_path):
    (tmp_path / "t").write_text("Übersetze: {text}\n")
    assert prompt_of(plain_model, "-t", "@t", "hi", cwd=tmp_path) == "Übersetze: hi"
    assert prompt_of(plain_model, "-t", f"@{tmp_path / 't'}", "hi") == "Übersetze: hi"


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["-t", "{a} {b}", "hi"], "The prompt could be any of {a}, {b}", "--var a=..."),
        (["-t", "{a} {prompt}", "hi"], "No value for {a} in the template", "--var a=..."),
        (["-t", "no variable", "hi"], "There is no {variable} in", "A template is qa, chat, raw"),
        (["-t", "chta", "hi"], "There is no {variable} in", "Did you mean 'chat'?"),
        (["-t", "{a.__class__}", "hi"], "is not a plain variable", "Fields are plain"),
        (["-t", "{", "hi"], "Cannot use", "write {{ and }} for braces"),
        (["-t", "@missing", "hi"], "Cannot read the template @missing: No such file", ""),
        (["-t", "{a}", "--var", "a=1", "hi"], "The prompt has no place in", ""),
        (["-t", "{a}", "--var", "a", "hi"], "--var takes KEY=VALUE, not 'a'.", ""),
        (["-t", "chat", "hi"], "has no chat template.", "(--template)"),
        (["-s", "Be brief.", "hi"], "A system message needs a chat template", ""),
    ],
)
def test_errors(plain_model, args, error, hint):
    ended = failure(plain_model, *args)
    assert error in ended.error
    assert hint in ended.hint


def test_an_error_in_a_chat_template_names_the_model(tmp_path):
    model = write_echo_model(tmp_path / "broken", "{{ raise_exception('roles must alternate') }}")
    ended = failure(model, "hi")
    assert ended.error == f"The chat template of {model}: roles must alternate"
    assert "raw and qa" in ended.hint
