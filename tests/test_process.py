"""run_child: what a child does, says and dies of, as its parent sees it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import pytest

from hfpipe.batch.lines import arriving
from hfpipe.errors import ConversionError, HFPipeError, OutOfMemory, UnsupportedModel, UsageError, is_disk_full
from hfpipe.process import ChildOutput, quiet_environment, run_child
from tests import tiny
from tests.recorder import Recorder


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Runs the source of a module, whose `main` is the work, as a child."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(body, arguments=None, **options):
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / "work.py").write_text(f"import os, sys, signal, time\ndef main(arguments, reporter):\n{lines}\n")
        return run_child("work", arguments or {}, what="The work", **options)

    return run


def test_arguments_and_reports(child, tmp_path):
    recorder = Recorder()
    body = """reporter.stage('first')
reporter.note(arguments['text'])
reporter.progress('task', 1, None)
reporter.progress('share', 1, 2, 'steps', 'a part')
reporter.stage(None)
open(arguments['path'], 'w').close()
return {'answer': [1, 'ü']}"""
    result = child(body, {"text": "two\nlines ü", "path": str(tmp_path / "made")}, reporter=recorder)
    assert result == {"answer": [1, "ü"]}
    assert recorder.notes == ["two\nlines ü"]
    assert recorder.stages == ["first", None]
    assert recorder.steps == [["task", 1, None, "bytes", ""], ["share", 1, 2, "steps", "a part"]]
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", [HFPipeError, UsageError, UnsupportedModel, OutOfMemory])
def test_every_error_crosses_whole(kind):
    error = kind("what", hint="next", details=["one", "two"])
    crossed = HFPipeError.from_data(json.loads(json.dumps(error.as_data())))
    assert (type(crossed), crossed.message, crossed.hint, crossed.details) == (kind, "what", "next", ("one", "two"))


def test_an_error_of_another_module_arrives_as_the_class_above(child):
    body = """from hfpipe.errors import UnsupportedModel
class Own(UnsupportedModel):
    def __init__(self, number):
        super().__init__(f"number {number}", hint="another", details=["one", "two"])
raise Own(5)"""
    with pytest.raises(UnsupportedModel, match=r"(?m)^number 5$") as caught:
        child(body)
    assert (type(caught.value), caught.value.hint) == (UnsupportedModel, "another")
    assert caught.value.details == ("one", "two")


def test_a_child_killed_in_mid_line(child):
    reported = Recorder()
    body = """reporter.note('whole')
reporter._stream.write('{"note": "ha')
reporter._stream.flush()
os.kill(os.getpid(), signal.SIGKILL)"""
    with pytest.raises(ConversionError, match=r"(?m)^The work was killed, probably for lack of memory\.$"):
        child(body, reporter=reported)
    assert reported.notes == ["whole"]


def test_its_peak_memory_is_its_own(child):
    """Not that of an earlier child, nor of the parent that started it."""
    body = "from hfpipe.machine import peak_memory\nx = b'x' * arguments['size']\nreturn peak_memory()"
    parents = b"x" * 400_000_000
    large, small = child(body, {"size": 300_000_000}), child(body, {"size": 1})
    assert len(parents) > large > 300_000_000
    assert small < 150_000_000


def test_an_unknown_error_shows_its_last_line_and_keeps_the_rest(child):
    with pytest.raises(ConversionError, match=r"(?m)^The work failed: ValueError: shape 3$") as caught:
        child("print('\\n'.join('one two three four'.split()))\nraise ValueError('shape 3')")
    assert caught.value.details == ("two", "three", "four")
    assert "--verbose" in caught.value.hint
    assert isinstance(caught.value.__cause__, ChildOutput)
    assert "one" in str(caught.value.__cause__)
    assert "Traceback" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit(0)", "exit status 0"),
        ("os._exit(7)", "exit status 7"),
        ("raise MemoryError", "too little memory"),
        ("print('terminate called: std::bad_alloc')\nos.abort()", "ran out of memory"),
        ("print('[Errno 12] Cannot allocate memory')\nos.abort()", "ran out of memory"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "lack of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import hfpipe.nowhere", "No module named"),
    ],
)
def test_how_it_ended_is_said(child, body, words):
    with pytest.raises(ConversionError, match=words):
        child(body)


def test_it_is_killed_before_its_parent(child):
    assert child("return open('/proc/self/oom_score_adj').read().strip()") == "1000"


def test_what_it_prints_stays_away_from_the_messages(child, capfd):
    recorder = Recorder()
    child("print('{}')\nos.system('echo shell')\nreporter.note('n')", reporter=recorder)
    assert recorder.notes == ["n"]
    assert capfd.readouterr() == ("", "")


def test_verbose_passes_on_what_it_writes_and_of_a_bar_its_end(child):
    recorder = Recorder()
    child("print('out')\nsys.stderr.write('\\r 0%\\r 50%\\r100%\\n')", reporter=recorder, verbose=True)
    assert sorted(recorder.notes) == ["100%", "out"]


def test_a_flood_of_output_does_not_block(child):
    child("for i in range(20000): print('x' * 100)")


def test_a_full_disk_is_what_it_is_in_this_process(child):
    with pytest.raises(OSError, match="No space left") as caught:
        child("open('/dev/full', 'w').write('x' * 100_000)")
    assert is_disk_full(caught.value)


def test_its_own_children_end_with_it(child, tmp_path):
    body = "import subprocess\np = subprocess.Popen(['sleep', '60'])\nopen(arguments['path'], 'w').write(str(p.pid))"
    child(body, {"path": str(tmp_path / "pid")})
    assert _ended(int((tmp_path / "pid").read_text()))


def _ended(pid):
    for _ in range(50):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_an_interrupt_while_a_thread_reads_stderr_ends_it(child, monkeypatch):
    """Nobody can close what another thread reads, but for the end of the child."""
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    known = {one.pid for one in psutil.Process().children()}
    late: list[psutil.Process] = []

    def end():
        late.extend(one for one in psutil.Process().children() if one.pid not in known)
        for one in late:
            one.kill()

    watch = threading.Timer(20, end)
    start(watch)
    with pytest.raises(KeyboardInterrupt):
        child("return 1")
    watch.cancel()
    assert not late


def test_a_thread_that_cannot_start_is_an_error(monkeypatch, child):
    monkeypatch.setattr(threading.Thread, "start", tiny.no_thread)
    for work in (lambda: child("return 1"), lambda: next(arriving(iter(()), lambda: 0))):
        with pytest.raises(HFPipeError, match="no more threads") as caught:
            work()
        assert "ulimit -u" in caught.value.hint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_parent_ends_the_child(tmp_path, number):
    (tmp_path / "work.py").write_text(
        "import os, time\ndef main(arguments, reporter):\n    reporter.note(str(os.getpid()))\n    time.sleep(60)\n"
    )
    parent = (
        "from hfpipe.process import run_child\n"
        "from hfpipe.types import Silent\n"
        "class Print(Silent):\n"
        "    def note(self, text): print(text, flush=True)\n"
        "run_child('work', {}, what='x', reporter=Print())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    pid = int(process.stdout.readline())
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
    assert _ended(pid)


def test_the_working_directory_is_no_place_for_modules(child, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "json.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    child("pass")


def test_telemetry_is_off_unless_the_user_turns_it_on(child, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    recorder = Recorder()
    body = (
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    reporter.note('off')\n"
        "reporter.note(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    child(body, reporter=recorder)
    assert recorder.notes == ["off", "1"]
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    assert "HF_HUB_DISABLE_TELEMETRY" not in quiet_environment(verbose=True)
    recorder.notes.clear()
    child(body, reporter=recorder)
    assert recorder.notes == ["0"]


def test_a_user_without_a_home(child, monkeypatch):
    """Such as a container's, with a number and no entry in the list of users: libraries look for it."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert child("from pathlib import Path\nreturn str(Path.home())") == tempfile.gettempdir()
