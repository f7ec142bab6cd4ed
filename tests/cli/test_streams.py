"""stdout is the answer and a newline, wherever it goes; stderr is for a person at a terminal, and for errors."""

import json
import re
import subprocess
import sys

import pytest

from hfpipe.cli import terminal
from tests.cli.shell import HFPIPE, end_by, run_hfpipe, started

HARMLESS = "[bold]x[/bold] [/] :dog: émoji 🙂 שלום\ttab\nand a second line"
HARMFUL = "a\x1b]0;title\x07b\rc\x7fd\x9b31me\x00"
HARMFUL_SHOWN = r"a\x1b]0;title\x07b\x0dc\x7fd\x9b31me\x00"
FULL = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")


def echo(model, *args, **settings):
    return run_hfpipe("run", model, "-b", "echo", "-t", "raw", *args, **settings)


def shell(line, *args, **settings):
    """hfpipe as bash runs it: `line` says "$@" for the command."""
    return run_hfpipe(*args, command=["bash", "-c", line, "bash", *HFPIPE], **settings)


def test_a_pipe_a_file_and_a_terminal_get_the_same_bytes(plain_model, tmp_path):
    expected = HARMLESS.encode() + b"\n"
    piped = echo(plain_model, input=HARMLESS)
    assert (piped.code, piped.out, piped.err) == (0, expected, b"")
    assert echo(plain_model, input=HARMLESS, tty="stdout").out == expected
    file = tmp_path / "answer"
    shell(f'"$@" > {file}', "run", plain_model, "-b", "echo", "-t", "raw", input=HARMLESS)
    assert file.read_bytes() == expected


def test_a_pipe_gets_control_characters_and_a_terminal_sees_them(plain_model):
    assert echo(plain_model, input=HARMFUL).out == HARMFUL.encode() + b"\n"
    assert echo(plain_model, input=HARMFUL, tty="stdout").out == HARMFUL_SHOWN.encode() + b"\n"


def test_json_is_valid_on_a_terminal_too(plain_model):
    shown = echo(plain_model, "--json", input=HARMFUL, tty="stdout").out.decode()
    assert json.loads(shown)["text"] == HARMFUL
    assert not any(0x7F <= ord(character) < 0xA0 or ord(character) < 0x20 for character in shown.rstrip("\n"))


def test_markup_in_the_name_of_a_model_is_text(plain_model, tmp_path):
    named = tmp_path / "[red]x :dog: [" / "]" / "m"
    named.parent.mkdir(parents=True)
    named.symlink_to(plain_model)
    ended = echo(named, "hi", tty="stderr")
    assert (ended.code, ended.out) == (0, b"hi\n")
    missing = run_hfpipe("run", "./[red]x[/] :dog:", "hi", tty="stderr")
    assert b"./[red]x[/] :dog:" in missing.err
    assert missing.code == 1


def test_an_error_is_one_line_though_a_name_holds_more(plain_model):
    ended = run_hfpipe("run", "./a\nb\x1b[2J", "hi")
    assert ended.code == 1
    assert r"./a b\x1b[2J" in ended.error


@FULL
@pytest.mark.parametrize("args", [["run", "MODEL", "hi", "-b", "echo"], ["--version"], ["--help"]])
def test_a_full_disk_is_an_error(plain_model, args):
    ended = shell('"$@" > /dev/full', *(plain_model if arg == "MODEL" else arg for arg in args))
    assert ended.code == 1
    assert "No space left on device" in ended.error


@FULL
def test_an_error_that_cannot_be_told_keeps_its_exit_code():
    assert shell('"$@" 2> /dev/full', "run", "x", "hi", "--top-p", "7").code == 2


@pytest.mark.parametrize(
    ("closed", "code", "out"),
    [("<&-", 2, b""), (">&-", 1, b""), ("2>&-", 0, b"hi\n"), ("<&- 2>&-", 2, b""), ("<&- >&- 2>&-", 2, b"")],
)
def test_closed_streams(plain_model, closed, code, out):
    prompt = ["-"] if "<&-" in closed else ["hi"]
    ended = shell(f'"$@" {closed}', "run", plain_model, *prompt, "-b", "echo", "-t", "raw")
    assert (ended.code, ended.out) == (code, out)
    assert b"Traceback" not in ended.err
    if closed == ">&-":
        assert "Cannot write the answer" in ended.error
    if closed == "<&-":
        assert ended.error == "The prompt is empty."


def test_the_reader_may_leave_when_it_has_enough(plain_model):
    line = '"$@" | head -c 20; exit ${PIPESTATUS[0]}'
    args = ("run", plain_model, "-b", "echo", "-t", "raw", "-n", "100000")
    ended = shell(line, *args, input="one two three " * 20_000)
    assert (ended.code, ended.out, ended.err) == (0, b"one two three one tw", b"")


def test_the_reader_may_be_gone_before_the_answer(plain_model):
    ended = shell('"$@" | true; exit ${PIPESTATUS[0]}', "run", plain_model, "hi", "-b", "echo", "--json")
    assert (ended.code, ended.out, ended.err) == (0, b"", b"")


def test_text_is_written_as_it_appears(plain_model):
    args = ("run", plain_model, "-", "-b", "echo", "-t", "raw", "-n", "1000000")
    with started(*args, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one two three " * 20_000)
        process.stdin.close()
        assert process.stdout.read(3) == b"one"
        assert process.poll() is None
        end_by(process)


TALK = """
import sys, time
from hfpipe.cli.terminal import Terminal
with Terminal(quiet="quiet" in sys.argv, verbose="verbose" in sys.argv) as talk:
    with talk.waiting("Loading [red]x[/] :dog:"):
        time.sleep(0.3)
        talk.note("a [bold]note[/bold] [/] :dog: \\x1b[2J")
        for done in (0, 50, 100):
            talk.progress("Getting [/] :dog:", done, 100)
            time.sleep(0.2)
    talk.progress("unfinished", 1, None)
    time.sleep(0.2)
print("the end")
"""


def talk(*args, **settings):
    return run_hfpipe(*args, command=[sys.executable, "-c", TALK], **settings)


def test_notes_and_progress_on_a_terminal():
    shown = talk(tty="stderr", columns=60).err.decode()
    for text in [
        "Loading [red]x[/] :dog:",
        "a [bold]note[/bold] [/] :dog: \\x1b[2J",
        "Getting [/] :dog:",
        "unfinished",
    ]:
        assert text in shown
    # The cursor is never hidden, so nothing can leave it so; and what moved is cleared away.
    assert "\x1b[?25l" not in shown
    assert shown.endswith("\x1b[2K")


QUICK = """
import sys
from hfpipe.cli.terminal import Terminal
with Terminal() as terminal, terminal.waiting("Loading"):
    pass
print("rich" in sys.modules)
"""


def test_what_is_quick_is_not_drawn_and_imports_nothing_to_draw_with():
    ended = run_hfpipe(command=[sys.executable, "-c", QUICK], tty="stderr")
    assert (ended.out, ended.err) == (b"False\n", b"")


NOTE = """
from hfpipe.cli.terminal import Terminal
with Terminal() as terminal:
    terminal.note("The export of tiny-llama is in the cache, and another precision would be faster here.")
"""


def test_what_takes_long_is_said(tiny_gpt2):
    """The import of torch, which is not a search."""
    shown = run_hfpipe("run", tiny_gpt2, "hi", "-n", "1", "-b", "torch", tty="stderr").err.decode()
    assert "Starting torch" in shown
    assert "Finding" not in shown


@pytest.mark.parametrize("columns", [40, 60])
def test_a_note_breaks_between_words(columns):
    shown = run_hfpipe(command=[sys.executable, "-c", NOTE], tty="stderr", columns=columns).err.decode()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert " ".join(line.strip() for line in lines) == NOTE.split('"')[1]
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("args", "tty", "expected"),
    [([], "", ""), (["quiet"], "stderr", ""), (["verbose"], "", "a [bold]note[/bold] [/] :dog: \\x1b[2J\n")],
)
def test_notes_and_progress_elsewhere(args, tty, expected):
    ended = talk(*args, tty=tty)
    assert (ended.code, ended.err.decode(), ended.out) == (0, expected, b"the end\n")


@pytest.mark.parametrize(
    ("env", "absent"),
    [({"NO_COLOR": "1"}, [b"\x1b[3", b"\x1b[9", b"38;"]), ({"TERM": "dumb"}, [b"\x1b"])],
)
def test_no_color(env, absent):
    shown = talk(tty="stderr", env=env).err
    assert [code for code in absent if code in shown] == []


BROKEN_OFF = """
from hfpipe.cli.terminal import Answer
answer = Answer()
with answer:
    answer.write("half an ")
    answer.write("")
    raise ValueError
"""


@pytest.mark.parametrize(("tty", "expected"), [("stdout", b"half an \n"), ("", b"half an ")])
def test_what_follows_half_an_answer_begins_a_line(tty, expected):
    assert run_hfpipe(command=[sys.executable, "-c", BROKEN_OFF], tty=tty).out == expected


@pytest.mark.parametrize("option", ["-q", "--no-stream"])
def test_a_plain_answer_on_a_terminal(plain_model, option):
    ended = echo(plain_model, "hi there", option, tty="stdout stderr")
    assert (ended.code, ended.out, ended.err) == (0, b"hi there\n", b"")


def test_where_nothing_moves_steps_are_told_now_and_then(monkeypatch, capsys):
    """Not all the time."""
    terminal.Terminal(plain=True).progress("Measuring", 30, 1200, "steps")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(terminal, "_LINE_EVERY_S", 0.0)
    for talk in (terminal.Terminal(plain=True), terminal.Terminal(plain=True, quiet=True), terminal.Terminal()):
        talk.progress("Measuring", 300, 1200, "steps", "this and that")
        talk.progress("model.safetensors", 3, 1200)
    assert capsys.readouterr().err == " 25%  Measuring: this and that\n"


NARROW = """
import time
from hfpipe.cli.terminal import Terminal
with Terminal() as talk:
    for done in (0, 10, 20):
        talk.progress("Measuring", done, 100, "steps", "a configuration with a long name, 8 at once (1 of 5)")
        time.sleep(0.2)
"""


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_on_a_narrow_terminal_the_description_gives_way(columns):
    shown = run_hfpipe(command=[sys.executable, "-c", NARROW], tty="stderr", columns=columns).err.decode()
    assert "…" in shown
    assert re.search(r" 20%\S* \S*\d:\d\d:\d\d", shown)
