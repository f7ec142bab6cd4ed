"""A token is in the header of a request, and nowhere else."""

import copy
import json
import logging
import os
import pickle
import traceback
from pathlib import Path

import httpx
import pytest
from huggingface_hub.inference._providers import get_provider_helper

import hfpipe
from hfpipe.endpoint import address
from hfpipe.endpoint import server as servers
from hfpipe.endpoint.address import Address
from hfpipe.endpoint.protocol import CHAT, body
from hfpipe.errors import HFPipeError, UnsupportedOption
from hfpipe.text.templates import Conversation
from hfpipe.types import TextRequest
from tests.endpoint.servers import MODEL, LoopbackServer, after_text, cut, raw, refuses, status
from tests.hub import settings

SECRET = "s3cret-t0ken"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("HFPIPE_ENDPOINT_TOKEN", SECRET)
    with LoopbackServer() as made:
        yield made


def failed(llm):
    """The error of a call, whose traceback begins here."""
    try:
        llm.invoke("hi")
    except HFPipeError as error:
        return error


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (status(401, {"error": {"message": f"Wrong key: {SECRET}"}}), 1),
        (status(400, {"detail": SECRET}), 1),
        (after_text(raw(f"data: {SECRET}\n\n".encode())), 1),
        (after_text(raw(json.dumps({"error": SECRET}).join(["data: ", "\n\n"]).encode())), 1),
        (after_text(cut), 1),
        (refuses, 5),
    ],
)
def test_no_error_and_no_traceback_shows_it(server, monkeypatch, fault, times):
    """Not even where the server repeats it, and the values of all variables are shown."""
    monkeypatch.setattr(servers, "_FIRST_PAUSE_S", 0.01)
    llm = hfpipe.load(MODEL, endpoint=server.url + "?key=q-s3cret")
    server.faults += [fault] * times
    error = failed(llm)
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "_request" in shown
    assert SECRET not in shown
    assert "q-s3cret" not in str(error)
    assert server.asked[-1][1]["Authorization"] == f"Bearer {SECRET}"
    assert server.asked[-1][0].endswith("?key=q-s3cret")


def test_no_log_shows_it(server, caplog):
    caplog.set_level(logging.DEBUG)
    hfpipe.load(MODEL, endpoint=server.url).invoke("hi")
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert SECRET not in caplog.text


def test_no_repr_shows_it_and_it_is_not_pickled(server):
    llm = hfpipe.load(MODEL, endpoint=server.url)
    endpoint = llm.generator
    parts = [
        llm,
        endpoint,
        endpoint._server,
        endpoint._server.token,
        endpoint.info,
        endpoint.source,
        endpoint._server._client,
    ]
    parts += [vars(endpoint), vars(endpoint._server), llm._identifying_params]
    assert SECRET not in "".join(map(repr, parts))
    assert "HFPIPE_ENDPOINT_TOKEN" in repr(endpoint._server.token)
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="A token is not pickled"):
            copied(endpoint._server.token)
    assert SECRET.encode() not in pickle.dumps(llm)
    assert pickle.loads(pickle.dumps(llm)).invoke("hi") == "hi"
    request = httpx.Request("GET", server.url)
    assert SECRET not in repr(endpoint._server.token.authorize(request).headers)


def test_no_manifest_and_no_result_shows_it(server, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c", "min_p": 0.5}\n')
    options = {"endpoint": server.url + "?key=q-s3cret"}
    hfpipe.batch(MODEL, tmp_path / "in.jsonl", tmp_path / "out.jsonl", **options)
    for path in tmp_path.iterdir():
        assert b"s3cret" not in path.read_bytes()
    assert server.url.encode() in (tmp_path / ".out.jsonl.hfpipe").read_bytes()


# The Hub


def test_the_hub_is_asked_as_its_own_client_asks_it():
    """For the provider that InferenceClient calls auto."""
    messages = [{"role": "user", "content": "hi"}]
    ours = body(MODEL, TextRequest("1", Conversation(messages, {})), None, {})
    parameters = {name: value for name, value in ours.items() if name not in ("model", "messages")}
    helper = get_provider_helper("auto", task="conversational", model=MODEL)
    theirs = helper.prepare_request(inputs=messages, parameters=parameters, headers={}, model=MODEL, api_key="hf_x")
    assert theirs.url == Address(None).of(CHAT)
    assert theirs.json == ours
    assert theirs.headers["authorization"] == "Bearer hf_x"


@pytest.mark.parametrize("place", ["HF_TOKEN", "the store"])
def test_without_a_url_the_hub_answers_with_its_own_token(server, monkeypatch, tmp_path, place):
    monkeypatch.setattr(address, "HUB", server.url)
    (tmp_path / "token").write_text("hf_stored")
    variables = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_given" if place == "HF_TOKEN" else ""}
    with settings(**variables):
        llm = hfpipe.load(MODEL, backend="endpoint")
        assert llm.invoke("hi") == "hi"
        sent = server.asked[-1][1]["Authorization"]
        assert sent == ("Bearer hf_given" if place == "HF_TOKEN" else "Bearer hf_stored")
        with pytest.raises(UnsupportedOption, match="The Hub's inference providers take conversations only"):
            llm.invoke("hi", template="raw")
        server.faults.append(status(401))
        with pytest.raises(HFPipeError, match="The Hub answered 401") as raised:
            llm.invoke("hi")
        assert "https://huggingface.co/settings/tokens" in raised.value.hint
        assert ("HF_TOKEN" if place == "HF_TOKEN" else str(Path(tmp_path, "token"))) in raised.value.hint


@pytest.mark.parametrize(
    ("url", "gets"),
    [
        ("https://router.huggingface.co/v1", True),
        ("https://x.us-east-1.aws.endpoints.huggingface.cloud", True),
        ("https://org-space.hf.space/v1", False),
        ("https://huggingface.co.evil.example/v1", False),
        ("https://evilhuggingface.co/v1", False),
    ],
)
def test_the_hubs_token_goes_to_hugging_face_alone(monkeypatch, url, gets):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.delenv("HFPIPE_ENDPOINT_TOKEN", raising=False)
    assert "HFPIPE_ENDPOINT_TOKEN" not in os.environ
    assert (Address(url).token() is not None) == gets
