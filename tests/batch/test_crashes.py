"""What only a real process and a real disk can show: SIGKILL, a full disk, memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hfpipe.errors import HFPipeError
from tests.batch.work import finished, run, write_questions

ROOT = Path(__file__).parents[2]

# A process without threads forks others, and kills them while they write.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from hfpipe.batch.lines import open_input, Lines
from tests.batch.work import finished, journal, mended, run, with_mended

source, output, expected = Path(sys.argv[1]), Path(sys.argv[2]), finished(Path(sys.argv[1]))

# Longer where nothing gets done in it: the machine may be busy.
span = 0.02

def killed(work):
    global span
    before = output.stat() if output.exists() else None
    child = os.fork()
    if child == 0:
        work()
        signal.pause()
    time.sleep(random.random() * span)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if before == (output.stat() if output.exists() else None):
        span *= 1.2

kills, cut = 0, 0
while not output.exists() or output.stat().st_size < len(expected) * 0.8:
    killed(lambda: run(source, output, limit=random.randrange(1, 40)))
    kills += 1
    stands = output.read_bytes() if output.exists() else b""
    cut += not stands.endswith(b"\\n")
    assert expected.startswith(stands)
run(source, output)
assert output.read_bytes() == expected

# Each run is killed with some more of the failed records answered, and none is answered twice.
failed = range(3, len(expected.splitlines()), 4)
replaced = with_mended(source, *failed)
answered, in_parts = 0, 0

def retry():
    until = answered + random.randrange(1, 40)
    with open_input(source) as stream, journal(output) as opened:
        assert list(opened.resume(Lines(stream))) == []
        assert list(opened.failed) == list(failed[answered:])
        opened.replace_errors(one if i < until else os.kill(os.getpid(), signal.SIGKILL)
                              for i, one in enumerate(mended(source, *failed[answered:]), answered))

while output.read_bytes() != replaced:
    child = os.fork()
    if child == 0:
        retry()
        os._exit(0)
    os.waitpid(child, 0)
    kills += 1
    with open_input(source) as stream, journal(output) as opened:
        assert list(opened.resume(Lines(stream))) == []
        done = len(failed) - len(opened.failed)
    assert done > answered
    assert output.read_bytes() == with_mended(source, *failed[:done])
    in_parts += done < len(failed)
    answered = done
assert in_parts > 2
print(json.dumps({"kills": kills, "files": sorted(path.name for path in output.parent.iterdir())}))
"""

FULL = """
import sys
from pathlib import Path
from hfpipe.errors import HFPipeError
from tests.batch.work import finished, run

source, output = Path(sys.argv[1]), Path(sys.argv[2])
filler = output.with_name("filler")
filler.write_bytes(b"x" * 40960)
expected = finished(source)
try:
    run(source, output)
except HFPipeError as error:
    assert "is full" in error.message and "run it again" in error.hint, error.message
else:
    raise AssertionError("it was not full")
stands = output.read_bytes()
assert expected.startswith(stands) and stands.endswith(b"\\n") and len(stands) < len(expected)
filler.unlink()
run(source, output)
assert output.read_bytes() == expected
print("fine")
"""


def script(code, *args, command=(sys.executable,)):
    process = subprocess.run(
        [*command, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_killed_again_and_again_the_file_becomes_the_same(tmp_path):
    source = write_questions(tmp_path / "q.jsonl", 800)
    said = json.loads(script(KILLED, source, tmp_path / "out.jsonl"))
    assert said["kills"] >= 20
    assert said["files"] == [".out.jsonl.hfpipe", "out.jsonl", "q.jsonl"]


@pytest.fixture
def small_disk(tmp_path):
    """A command that runs Python where a folder is a disk of its own, of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = f'mount -t tmpfs -o size=64k none "{place}" && exec "$0" "$@"'
    for unshare in (["unshare", "-rm"], ["unshare", "-m"]):
        command = [*unshare, "sh", "-c", mount]
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            return place, (*command, sys.executable)
    pytest.skip("neither root nor user namespaces: no disk can be mounted")


def test_a_full_disk(tmp_path, small_disk):
    place, command = small_disk
    source = write_questions(tmp_path / "q.jsonl", 150)
    assert script(FULL, source, place / "out.jsonl", command=command) == "fine\n"


def test_the_lock_is_that_of_a_process(tmp_path):
    """Held by another process it is refused there, and free once that is gone."""
    source = write_questions(tmp_path / "q.jsonl", 20)
    holder = """
import sys
from pathlib import Path
from tests.batch.work import journal
opened = journal(Path(sys.argv[1])).__enter__()
opened.resume([])
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", holder, str(tmp_path / "out.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(HFPipeError, match="Another hfpipe is writing"):
            run(source, tmp_path / "out.jsonl")
        process.kill()
        process.wait()
        run(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == finished(source)
