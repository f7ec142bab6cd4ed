"""Ctrl-C ends hfpipe at once, wherever it is: 130, no traceback, no child left, and what was written stays."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.cli.shell import Terminals, end_by, started, wait_for
from tests.hub import LoopbackHub

SOON_S = 5


def interrupted(process, number=signal.SIGINT):
    """Ctrl-C, or another signal: what was on stdout and not yet read."""
    assert process.poll() is None, process.stderr.read()
    assert end_by(process, number) < SOON_S
    assert process.returncode == 130
    assert process.stderr.read() == b""
    return process.stdout.read()


def endless(source, folder):
    """A copy of a model that stops neither by itself nor at the end of its context."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**30, "eos_token_id": 10**6}))
    (folder / "generation_config.json").write_text("{}")
    # The tokenizer's end of text would be one too.
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.mark.parametrize("after_s", [0.2, 0.4, 0.6, 0.8])
def test_while_modules_are_imported(plain_model, after_s):
    """Much of this time passes in callbacks that swallow a KeyboardInterrupt."""
    with started("run", plain_model, "-", "-b", "echo", "-n", "1000000", stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one two three " * 20_000)
        process.stdin.close()
        time.sleep(after_s)
        interrupted(process)


def test_while_torch_is_imported(tiny_gpt2):
    with started("run", tiny_gpt2, "hi", "-b", "torch") as process:
        wait_for(lambda: any("libtorch" in name for name in mapped(process)))
        assert interrupted(process) == b""


def mapped(process):
    return [region.path for region in psutil.Process(process.pid).memory_maps()]


def test_while_openvino_is_loaded(tiny_gpt2_ov):
    with started("run", tiny_gpt2_ov, "hi") as process:
        wait_for(lambda: any("libopenvino" in name for name in mapped(process)))
        assert interrupted(process) == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_while_a_child_converts(tiny_gpt2, tmp_path, number):
    with started("run", tiny_gpt2, "hi", "-b", "openvino", env={"HFPIPE_CACHE": str(tmp_path)}) as process:
        wait_for(lambda: psutil.Process(process.pid).children())
        if number == signal.SIGKILL:
            end_by(process, number)
        else:
            assert interrupted(process, number) == b""
    assert not [folder for folder in (tmp_path / "openvino").iterdir() if not folder.name.startswith(".")]


def test_while_the_hub_does_not_answer(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}",
            "HF_HUB_OFFLINE": None,
            "HF_HOME": str(tmp_path),
        }
        with started("run", "gpt2", "hi", env=env) as process:
            connection, _ = server.accept()
            with connection:
                interrupted(process)


def test_while_a_download_stalls(tiny_gpt2, tmp_path):
    """On a terminal, where a bar is drawn: it is cleared away, and the cursor was never hidden."""
    with LoopbackHub({"gpt2": tiny_gpt2}) as hub, Terminals(["stderr"]) as terminals:
        stalled = hold_back_weights(hub)
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_HOME": str(tmp_path)}
        with started("run", "gpt2", "hi", env=env, stderr=terminals.streams["stderr"]) as process:
            wait_for(lambda: b"Downloading gpt2" in terminals.so_far("stderr"))
            assert end_by(process) < SOON_S
            assert process.returncode == 130
        stalled.set()
        shown = terminals.shown()["stderr"]
    assert b"\x1b[?25l" not in shown
    assert shown.endswith(b"\x1b[2K\n")


def hold_back_weights(hub):
    """Files of more than 1,000 bytes stop in the middle until the event is set."""
    handler, released = hub._server.RequestHandlerClass, threading.Event()
    send = handler._send

    def send_half(self, status, data, headers):
        if self.command == "HEAD" or len(data) <= 1000:
            return send(self, status, data, headers)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        released.wait(timeout=60)
        return None

    handler._send = send_half
    return released


@pytest.mark.parametrize(
    ("engine", "number"), [("torch", signal.SIGINT), ("openvino", signal.SIGINT), ("openvino", signal.SIGHUP)]
)
def test_while_an_answer_is_written(request, tmp_path, engine, number):
    source = request.getfixturevalue("tiny_llama" if engine == "torch" else "tiny_llama_ov")
    model = endless(source, tmp_path / "model")
    with started("run", model, "What is EEG?", "-n", "1000000", "--temp", "0") as process:
        seen = process.stdout.read(1)
        time.sleep(0.3)
        answer = seen + interrupted(process, number)
    assert len(answer) > 10


def test_while_a_long_prompt_is_read_in(tiny_llama_ov, tmp_path):
    model = endless(tiny_llama_ov, tmp_path / "model")
    prompt = b"The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 800
    args = ("-", "-n", "1", "-t", "raw", "--show-prompt")
    with started("run", model, *args, stdin=subprocess.PIPE) as process:
        process.stdin.write(prompt)
        process.stdin.close()
        assert process.stderr.read(len(prompt) + 1) == prompt + b"\n"
        time.sleep(0.2)
        assert interrupted(process) == b""


def test_several_times_in_a_row(plain_model):
    with started("run", plain_model, "-", "-b", "echo", "-n", "1000000", stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one two three " * 20_000)
        process.stdin.close()
        process.stdout.read(1)
        for _ in range(5):
            process.send_signal(signal.SIGINT)
        process.wait(timeout=SOON_S)
        assert process.returncode == 130
        assert process.stderr.read() == b""


def test_while_stdin_is_awaited(plain_model):
    with started("run", plain_model, "-", "-b", "echo", stdin=subprocess.PIPE) as process:
        wait_for(lambda: any("hfpipe" in word or "typer" in word for word in psutil.Process(process.pid).cmdline()))
        time.sleep(0.5)
        assert interrupted(process) == b""


def test_while_nobody_reads_the_answer(plain_model):
    """The pipe is full, and hfpipe waits in its write."""
    with started(
        "run", plain_model, "-", "-b", "echo", "-n", "1000000", "--no-stream", stdin=subprocess.PIPE
    ) as process:
        process.stdin.write(b"One two three four five six seven, and then all of it again. " * 4000)
        process.stdin.close()
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING and process.stdout.peek(1))
        assert len(interrupted(process)) >= 65536


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_from_the_start_stays_ignored(plain_model, number):
    """A shell starts the background job of a script with SIGINT ignored, and nohup ignores SIGHUP."""
    ignoring = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    with started("run", plain_model, "hi", "-b", "echo", "-t", "raw", **ignoring) as process:
        time.sleep(0.4)
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == b"hi\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_from_the_first_line_on(number):
    """Before a command has been imported."""
    code = (
        f"import os; from hfpipe.cli import main; main._run = lambda: os.kill(os.getpid(), {number.value}); main.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


SWALLOWED = """
import os, time
from contextlib import suppress
from hfpipe.cli import main
def run():
    with main.unwinding():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), {first})
            time.sleep(60)
        print("swallowed", flush=True)
        os.kill(os.getpid(), {second})
        time.sleep(60)
main._run = run
main.main()
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_what_swallowed_the_first(first, second):
    code = SWALLOWED.format(first=first.value, second=second.value)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"swallowed\n", b"")
