"""`transformers serve` itself, on a tiny model."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import hfpipe
from hfpipe.errors import BackendError, HFPipeError, UnsupportedOption
from tests.cli.shell import wait_for


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = Path(tmp_path_factory.mktemp("serve"), "log")
    command = ["-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=dict(os.environ))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or _is_up(url), 120)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.kill()
        process.wait()


def _is_up(url):
    try:
        return httpx.get(f"{url}/openapi.json").status_code == 200
    except httpx.HTTPError:
        return False


def test_it_answers_as_the_loaded_model_does(url, tiny_llama):
    """Greedily, and with usage."""
    llm = hfpipe.load(str(tiny_llama), endpoint=url, max_tokens=12, temperature=0)
    here = hfpipe.load(tiny_llama, backend="torch", max_tokens=12, temperature=0)
    (answer,), (expected,) = (one.generate(["What is EEG?"]).generations[0] for one in (llm, here))
    assert answer.text == expected.text
    assert answer.generation_info["usage"] == expected.generation_info["usage"]
    assert answer.generation_info["finish_reason"] == expected.generation_info["finish_reason"]
    assert "".join(llm.stream("What is EEG?")) == expected.text
    stop = expected.text[3:5]
    assert llm.invoke("What is EEG?", stop=[stop]) == here.invoke("What is EEG?", stop=[stop])
    # The server drops a last character that is not finished.
    assert llm.batch(["a", "b"]) == [text.rstrip("\ufffd") for text in here.batch(["a", "b"])]


def test_what_it_lacks_is_said(url, tiny_llama):
    llm = hfpipe.load(str(tiny_llama), endpoint=url, max_tokens=4)
    with pytest.raises(BackendError, match="answered 404") as raised:
        llm.invoke("hi", template="raw")
    assert "--template chat" in raised.value.hint
    with pytest.raises(UnsupportedOption, match="cannot honour top_k"):
        llm.invoke("hi", top_k=4)
    with pytest.raises(HFPipeError):
        hfpipe.load("no/model", endpoint=url, timeout=60).invoke("hi")
