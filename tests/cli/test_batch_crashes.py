"""`hfpipe batch` disturbed in every way there is: what was written stays, and the same command goes on."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

import pytest

from tests.cli.kills import killed_until_done
from tests.cli.shell import HFPIPE, end_by, on_a_disk_of, run_hfpipe, started, wait_for

KILLS = 100
RECORDS = 6000
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
FILL = """
head -c 131072 /dev/zero > "$0"/filler
"$@"
first=$?
rm "$0"/filler
cp "$0"/out.jsonl "$0"/../part.jsonl
"$@"
echo $first $?
cp "$0"/out.jsonl "$0"/../whole.jsonl
"""


def arguments(model, *args):
    return ("batch", "-m", model, "-b", "echo", "-t", "raw", *args)


def questions(path, count):
    """Now and then a record that fails."""
    kinds = [{"prompt": "Number {}"}, {"id": "é{}", "prompt": "{} is the number"}, {"x": "{}"}]
    path.write_text("".join(json.dumps(kinds[i % 11 // 5]).replace("{}", str(i)) + "\n" for i in range(count)))
    return path


@pytest.fixture(scope="module")
def long(plain_model, tmp_path_factory):
    """An input, and what an undisturbed run makes of it."""
    source = questions(tmp_path_factory.mktemp("long") / "q.jsonl", RECORDS)
    ended = run_hfpipe(*arguments(plain_model, source))
    assert ended.code == 3, ended
    return SimpleNamespace(source=source, whole=ended.out)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def size(path):
    return path.stat().st_size if path.exists() else 0


def finish(model, long, output):
    """The same command again, and what is said of what stood."""
    stand = output.read_bytes() if output.exists() else b""
    assert long.whole.startswith(stand)
    ended = run_hfpipe(*arguments(model, long.source, "-o", output))
    assert (ended.code, ended.out) == (3, b""), ended
    assert output.read_bytes() == long.whole
    count = stand.count(b"\n")
    assert (f"{count:,} already had a result" in ended.err.decode()) == bool(count)


def test_killed_a_hundred_times_the_file_becomes_the_same(plain_model, long, tmp_path):
    cut = killed_until_done(tmp_path, arguments(plain_model, long.source), long.whole, KILLS, "echo")
    assert cut > KILLS / 2


@pytest.fixture
def pipe(tmp_path):
    """An input that ends when the test closes it."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0, 0.1, 0.2, 0.4])
def test_interrupted_before_there_is_a_result(plain_model, pipe, output, number, after_s):
    """While modules are imported, the output is looked at, or the model is loaded."""
    with started(*arguments(plain_model, pipe, "-o", output)) as process, pipe.open("wb", buffering=0) as source:
        # That the pipe has a reader says that hfpipe is at work.
        source.write(b'{"prompt": "one"}\n' if after_s else b"")
        time.sleep(after_s)
        end_by(process, number)
        assert process.returncode == 130
        (said,) = process.stderr.read().decode().splitlines()
    assert said == "Interrupted. Run the same command again to resume."


def test_interrupted_while_it_is_compared_with_what_stands(plain_model, long, pipe, output):
    run_hfpipe(*arguments(plain_model, long.source, "-o", output))
    lines = long.source.read_bytes().splitlines(keepends=True)
    with started(*arguments(plain_model, pipe, "-o", output)) as process, pipe.open("wb", buffering=0) as source:
        # More than the pipe holds: most of it has been read.
        source.write(b"".join(lines[:-1]))
        end_by(process, signal.SIGTERM)
        assert process.returncode == 130
        assert process.stderr.read() == b"Interrupted. Run the same command again to resume.\n"
    assert output.read_bytes() == long.whole


@pytest.mark.parametrize(
    ("number", "more", "again"),
    [(signal.SIGINT, [], "again"), (signal.SIGHUP, [], "again"), (signal.SIGTERM, ["--restart"], "without --restart")],
)
def test_interrupted(plain_model, long, output, number, more, again):
    with started(*arguments(plain_model, long.source, "-o", output, *more)) as process:
        wait_for(lambda: size(output))
        end_by(process, number)
        assert process.returncode == 130
        (said,) = process.stderr.read().decode().splitlines()
    assert output.read_bytes().endswith(b"\n")
    assert said == f"Interrupted. Run the same command {again} to resume."
    finish(plain_model, long, output)


def test_interrupted_several_times_in_a_row(plain_model, long, output):
    with started(*arguments(plain_model, long.source, "-o", output)) as process:
        wait_for(lambda: size(output))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert b"Traceback" not in process.stderr.read()
    assert output.read_bytes().endswith(b"\n")


def test_interrupted_on_the_way_to_stdout(plain_model, long):
    with started(*arguments(plain_model, long.source)) as process:
        # Unbuffered: what a buffer took, communicate would not see.
        seen = os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"Interrupted.\n")
    assert long.whole.startswith(seen + out)


def test_interrupted_while_stdin_is_awaited(plain_model, output):
    """What came in has its results; the rest may come with the next run."""
    args = arguments(plain_model, "-", "-o", output, "--batch-size", "1")
    records = b"".join(b'{"prompt": "%d"}\n' % i for i in range(9))
    with started(*args, stdin=subprocess.PIPE) as process:
        process.stdin.write(records)
        process.stdin.flush()
        wait_for(lambda: size(output) and output.read_bytes().count(b"\n") == 9)
        end_by(process)
        assert process.returncode == 130
        assert "Interrupted. Run the same command again" in process.stderr.read().decode()
    ended = run_hfpipe(*args, input=records + b'{"prompt": "9"}\n')
    assert ended.code == 0
    assert [json.loads(line)["text"] for line in output.read_bytes().splitlines()] == [str(i) for i in range(10)]


def say(process, *records):
    for record in records:
        process.stdin.write(b'{"prompt": "%s"}\n' % record)
    process.stdin.flush()


def heard(process):
    """The text of the next result."""
    return json.loads(process.stdout.readline())["text"].encode()


@pytest.mark.parametrize("width", [[], ["--batch-size", "1"], ["--batch-size", "3"]])
def test_a_conversation(plain_model, width):
    """Each record of a pipe is answered before the next one comes, and Ctrl-C is heard while none does."""
    with started(*arguments(plain_model, "-", *width), stdin=subprocess.PIPE) as process:
        for record in (b"one", b"two and more", b"three"):
            say(process, record)
            assert heard(process) == record
        say(process, b"a longer one", b"five")
        assert [heard(process) for _ in range(2)] == [b"a longer one", b"five"]
        end_by(process)
        assert process.returncode == 130
        assert process.stderr.read() == b"Interrupted.\n"


def test_a_conversation_that_ends(plain_model, output):
    args = arguments(plain_model, "-", "-o", output)
    with started(*args, stdin=subprocess.PIPE) as process:
        for done in range(1, 4):
            say(process, b"%d" % done)
            wait_for(lambda done=done: size(output) and output.read_bytes().count(b"\n") == done)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.decode().startswith("3 records in ")


def test_a_pipe_by_name(plain_model, long, output):
    """As `<(...)` is one: nobody else may read of it what there is to be answered."""
    command = ["bash", "-c", 'input=$1; shift; "$@" <(cat "$input")', "bash", long.source, *HFPIPE]
    ended = run_hfpipe(*arguments(plain_model), command=command)
    assert (ended.code, ended.out) == (3, long.whole), ended
    retried = run_hfpipe(*arguments(plain_model), "-o", output, "--retry-errors", command=command)
    assert retried.code == 2
    assert "an input file that can be read twice: /dev/fd/" in retried.error


def test_two_runs_on_one_output(plain_model, long, output):
    args = arguments(plain_model, "-", "-o", output)
    with started(*args, stdin=subprocess.PIPE) as process:
        lines = long.source.read_bytes().splitlines(keepends=True)
        process.stdin.write(b"".join(lines[:30]))
        process.stdin.flush()
        wait_for(lambda: size(output))
        for more in ([], ["--restart"], ["--retry-errors"]):
            second = run_hfpipe(*arguments(plain_model, long.source, "-o", output, *more))
            assert (second.code, second.out) == (1, b"")
            assert second.error == f"Another hfpipe is writing to {output}."
        _, err = process.communicate(b"".join(lines[30:]), timeout=60)
    assert (process.returncode, output.read_bytes()) == (3, long.whole), err


def test_the_reader_may_leave_when_it_has_enough(plain_model, long):
    command = ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "bash", *HFPIPE]
    ended = run_hfpipe(*arguments(plain_model, long.source), command=command)
    assert (ended.code, ended.err) == (0, b"")
    assert ended.out == long.whole.splitlines(keepends=True)[0]


def test_stdout_on_a_full_disk(plain_model, long):
    command = ["bash", "-c", '"$@" > /dev/full', "bash", *HFPIPE]
    ended = run_hfpipe(*arguments(plain_model, long.source), command=command)
    assert (ended.code, ended.error) == (1, "Cannot write the answer: No space left on device.")


def test_a_full_disk(plain_model, long, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*on_a_disk_of("size=2m", disk)[: -len(HFPIPE)], "bash", "-c", FILL, str(disk), *HFPIPE]
    # So much that it does not fit beside the filler.
    args = arguments(plain_model, long.source, "-o", disk / "out.jsonl", "-q")
    fill = 2 * 2**20 - len(long.whole) // 2 // 4096 * 4096
    command = [word.replace("131072", str(fill)) for word in command]
    ended = run_hfpipe(*args, command=command)
    assert ended.out.splitlines()[0] == b"1 3", ended
    assert ended.error == f"The disk of {disk / 'out.jsonl'} is full."
    assert ended.hint == "Free some space, or choose another file, and run it again."
    part = (tmp_path / "part.jsonl").read_bytes()
    assert long.whole.startswith(part)
    assert part.endswith(b"\n")
    assert (tmp_path / "whole.jsonl").read_bytes() == long.whole


def test_the_folder_of_the_output_is_removed(plain_model, long, output):
    folder = output.parent / "results"
    folder.mkdir()
    output = folder / "out.jsonl"
    with started(*arguments(plain_model, long.source, "-o", output)) as process:
        wait_for(lambda: size(output))
        folder.rename(output.parent.parent / "moved")
        assert process.wait(timeout=60) == 1
        assert process.stdout.read() == b""
        said, hint = process.stderr.read().decode().splitlines()
    assert said.startswith(f"Error: {output} was changed, renamed or removed by another program")
    assert hint.startswith("Put it back, with the hidden file beside it, and run the same command again to resume.")
    (output.parent.parent / "moved").rename(folder)
    assert output.read_bytes().endswith(b"\n")
    finish(plain_model, long, output)
    shutil.rmtree(folder)
    refused = run_hfpipe(*arguments(plain_model, long.source, "-o", output))
    assert (refused.code, refused.error) == (2, f"Cannot write to {output}: the folder {folder} does not exist.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_retry_that_is_interrupted_keeps_what_it_has(plain_model, long, output, number):
    """All of them failed, let us say, so that it takes a while. None is answered twice."""
    finish(plain_model, long, output)
    failed = {"text": "", "finish_reason": "error", "usage": None, "error": {"type": "engine", "message": "No."}}
    ids = [json.loads(line)["id"] for line in long.whole.splitlines()]
    output.write_bytes(b"".join(json.dumps({"id": one, **failed}).encode() + b"\n" for one in ids))
    before = output.read_bytes()
    temporary = output.with_name(".out.jsonl.hfpipe.tmp")
    with started(*arguments(plain_model, long.source, "-o", output, "--retry-errors")) as process:
        wait_for(lambda: size(temporary) > 1000)
        end_by(process, number)
        assert process.returncode == (130 if number == signal.SIGTERM else -number)
    # The output is the old one or the new one, and the next run takes over what the other file has.
    assert output.read_bytes() == before
    kept = temporary.read_bytes().count(b"\n")
    assert 0 < kept < RECORDS
    ended = run_hfpipe(*arguments(plain_model, long.source, "-o", output, "--retry-errors"))
    assert (ended.code, output.read_bytes()) == (3, long.whole)
    # Of what was kept, the errors are tried again.
    again = sum(json.loads(line)["error"] is not None for line in long.whole.splitlines()[:kept])
    assert ended.err.decode().startswith(f"{RECORDS - kept + again:,} records in ")
    assert sorted(path.name for path in output.parent.iterdir()) == [".out.jsonl.hfpipe", "out.jsonl"]


def test_a_damaged_archive_is_answered_up_to_its_damage(plain_model, long, output, tmp_path):
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(long.source.read_bytes())[:-20_000])
    args = arguments(plain_model, packed, "-o", output)
    ended = run_hfpipe(*args)
    assert ended.code == 1
    assert ended.error.startswith(f"Reading {packed} failed: Compressed file ended")
    assert ended.hint == "The records before it are answered. Run the same command again once the input is complete."
    done = output.read_bytes()
    # All that can be unpacked, but for a line that is cut.
    readable = zlib.decompressobj(wbits=31).decompress(packed.read_bytes()).count(b"\n")
    assert readable > 100
    assert done == b"".join(long.whole.splitlines(keepends=True)[:readable])
    assert run_hfpipe(*args).code == 1
    assert output.read_bytes() == done
    packed.write_bytes(gzip.compress(long.source.read_bytes()))
    finish_args = run_hfpipe(*args)
    assert (finish_args.code, output.read_bytes()) == (3, long.whole)


def test_memory_does_not_grow_with_the_file(plain_model, tmp_path):
    """Neither of a run, nor of one that finds all of it done."""
    peaks = []
    for count in (1_000, 20_000, 20_000):
        source = questions(tmp_path / f"{count}.jsonl", count)
        command = [sys.executable, "-c", PEAK, *HFPIPE]
        ended = run_hfpipe(*arguments(plain_model, source, "-o", tmp_path / f"{count}.out"), command=command)
        code, peak = map(int, ended.out.split())
        assert code == 3, ended
        peaks.append(peak / 1024)
    few, many, again = peaks
    assert many - few < 20
    assert again - few < 20
