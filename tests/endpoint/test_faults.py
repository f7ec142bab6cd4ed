"""What a server and the way to it do wrong: each is one line and a next step, of one request, and in time."""

import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from hfpipe.endpoint import server as servers
from hfpipe.endpoint.address import Address
from hfpipe.errors import AccessDenied, ContextLengthError, ModelNotFound, ServerUnavailable, UsageError
from hfpipe.generator import open_generator
from hfpipe.types import GenerationOptions, LoadOptions, TextRequest
from tests.endpoint.servers import (
    MODEL,
    LoopbackServer,
    after_text,
    cut,
    ends,
    page,
    raw,
    refuses,
    silent,
    slow,
    status,
)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(servers, "_FIRST_PAUSE_S", 0.01)
    with LoopbackServer() as made:
        yield made


def ask(server, *, model=MODEL, prompt="a b", raw=True, url=None, **options):
    """The completion of one prompt, as raw text."""
    with open_generator(model, LoadOptions(endpoint=url or server.url, **options)) as generator:
        (answer,) = generator.generate([TextRequest("1", prompt)])
    return answer


def failure(server, *faults, **how):
    """The error of a request that `faults` befell. One line, and a next step."""
    server.faults += faults
    error = ask(server, **how).error
    assert error is not None
    assert "\n" not in error.message
    assert error.hint
    return error


@pytest.mark.parametrize(
    "fault", [status(429), status(429, Retry_After="0"), status(500), status(503), status(502), refuses]
)
def test_what_may_pass_is_asked_again(server, fault):
    server.faults += [fault, fault]
    assert ask(server).text == "a b"
    assert len(server.bodies) == 3


@pytest.mark.parametrize("fault", [status(429), status(503), refuses])
def test_it_is_not_asked_again_without_end(server, fault):
    error = failure(server, *[fault] * 9)
    assert len(server.bodies) == 5
    assert "answered" in error.message or "broke off" in error.message


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_what_will_not_pass_is_asked_once(server, code):
    failure(server, status(code))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, as_date):
    """In seconds, or as a date, which is of whole seconds."""
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    server.faults += [status(429, Retry_After=date if as_date else "1")]
    begun = time.monotonic()
    assert ask(server).text == "a b"
    assert time.monotonic() - begun > 0.9


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(server):
    begun = time.monotonic()
    error = failure(server, status(429, Retry_After="3600"), timeout=5)
    assert time.monotonic() - begun < 4
    assert "answered 429 Too Many Requests, to wait 3,600 s: made 429" in error.message
    assert "--batch-size" in error.hint


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (cut, "broke off: peer closed connection"),
        (ends, "ended the stream before the answer was finished"),
        (raw(b"data: {oops\n\n"), "sent an event that is not JSON"),
        (raw(b"data: [1]\n\n"), "sent an event without choices"),
        (raw(b'data: {"error": {"message": "CUDA is out of luck"}}\n\n'), "sent an error: CUDA is out of luck"),
    ],
)
def test_after_text_nothing_is_asked_again(server, rest, message):
    """The text that came stays; the error is the end."""
    server.faults.append(after_text(rest))
    with open_generator(MODEL, LoadOptions(endpoint=server.url)) as generator:
        first, last = generator.stream([TextRequest("1", "a")])
    assert first.text == "half "
    assert last.finish_reason == "error"
    assert message in last.error.message
    assert last.error.hint
    assert len(server.bodies) == 1


def test_an_answer_that_is_whole_needs_no_end(server):
    """Only its usage may be missing."""
    whole = b'data: {"choices": [{"text": "x", "finish_reason": "stop"}]}\n\n'
    server.faults.append(after_text(raw(whole)))
    answer = ask(server)
    assert (answer.text, answer.finish_reason, answer.usage) == ("half x", "stop", None)


def test_bytes_that_make_no_answer_end_at_the_deadline(server):
    begun = time.monotonic()
    error = failure(server, after_text(slow), timeout=0.5)
    assert time.monotonic() - begun < 5
    assert "did not finish the answer in 0.5 s" in error.message
    assert "--timeout" in error.hint
    assert server.wait_until(lambda: server.left == 1)


def test_a_silence_between_bytes_ends_the_request(server, monkeypatch):
    monkeypatch.setattr(servers, "_BETWEEN_BYTES_S", 0.3)
    error = failure(server, after_text(silent))
    assert "sent nothing for 0.3 s" in error.message
    assert server.wait_until(lambda: server.left == 1)


def test_leaving_ends_also_a_connection_that_is_silent(server):
    server.faults.append(after_text(silent))
    with open_generator(MODEL, LoadOptions(endpoint=server.url)) as generator:
        stream = generator.stream([TextRequest("1", "a")])
        next(stream)
        stream.close()
        assert server.wait_until(lambda: server.left == 1)


def test_a_server_that_is_not_there(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    error = failure(server, url=url)
    assert error.message.startswith(f"{url} cannot be reached: ")
    assert "whether the server runs" in error.hint


def test_what_a_dead_server_takes_is_not_known(server):
    """It is not that it cannot honour the option."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with open_generator(MODEL, LoadOptions(endpoint=url)) as generator:
        (answer,) = generator.generate([TextRequest("1", "a", GenerationOptions(top_k=4))])
    assert isinstance(answer.error, ServerUnavailable)


def test_a_server_that_speaks_something_else(server):
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        thread = threading.Thread(target=_greet, args=(listening,), daemon=True)
        thread.start()
        error = failure(server, url=f"http://127.0.0.1:{listening.getsockname()[1]}")
    assert "broke off" in error.message
    thread.join(5)


def _greet(listening):
    for _ in range(5):
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"220 mail.example ESMTP\r\n")


def test_a_web_page(server):
    error = failure(server, page)
    assert "answered with a web page, not with a stream of events" in error.message
    assert "/v1" in error.hint


def test_a_model_that_the_server_does_not_have(server):
    server.models = ("org/other", MODEL)
    error = failure(server, model="org/modle")
    assert isinstance(error, ModelNotFound)
    assert error.hint == "Did you mean 'org/model'?"
    error = failure(server, model="x")
    assert error.message == f"{server.url} has no model 'x'."
    assert error.hint == "It has: org/other, org/model."
    server.models = tuple(f"model{i}" for i in range(20))
    assert failure(server, model="x").hint.endswith("model7, and 12 more.")


def test_a_url_that_is_wrong(server):
    error = failure(server, url=server.url.replace("/v1", "/v2"))
    assert "404" in error.message
    assert "--template chat" in error.hint


def test_a_prompt_that_is_too_long(server):
    said = {"error": {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"}}
    error = failure(server, status(400, said))
    assert isinstance(error, ContextLengthError)
    assert "maximum context length is 8 tokens" in error.message


def test_what_a_server_says_is_one_bounded_line(server):
    error = failure(server, status(400, {"detail": [{"msg": "bad\n" * 1000}]}))
    assert error.message.endswith("bad bad…") or error.message.endswith("…")
    assert len(error.message) < 400


def test_a_redirect_is_not_followed(server, monkeypatch):
    monkeypatch.setenv("HFPIPE_ENDPOINT_TOKEN", "s3cret")
    with LoopbackServer() as other:
        for code in (301, 302, 307, 308):
            target = other.url.replace("http://", "http://user:pw@") + "/completions?key=1"
            error = failure(server, status(code, {}, Location=target))
            assert f"redirects to another place ({code})" in error.message
            assert f"{other.url}/completions" in error.hint
            assert "pw" not in error.hint
            assert "key" not in error.hint
        assert other.asked == []


# Tokens


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HFPIPE_ENDPOINT_TOKEN", "s3cret")
    return "s3cret"


@pytest.mark.parametrize("code", [401, 403])
def test_a_denial_says_which_token_was_sent(server, monkeypatch, code):
    error = failure(server, status(code))
    assert isinstance(error, AccessDenied)
    assert error.hint == "No token was sent. Ask the server's operator for one, and set it as HFPIPE_ENDPOINT_TOKEN."
    monkeypatch.setenv("HFPIPE_ENDPOINT_TOKEN", "s3cret")
    error = failure(server, status(code))
    assert error.hint.startswith("The token in HFPIPE_ENDPOINT_TOKEN was sent: check that it is right")
    assert error.hint.endswith("Ask the server's operator for another, and set it as HFPIPE_ENDPOINT_TOKEN.")


def test_a_server_gets_its_token_and_not_that_of_the_hub(server, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    ask(server)
    assert server.asked[-1][1]["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("HFPIPE_ENDPOINT_TOKEN")
    ask(server)
    assert "Authorization" not in server.asked[-1][1]


def test_a_token_goes_unencrypted_to_loopback_alone(server, token):
    with pytest.raises(UsageError, match=r"HFPIPE_ENDPOINT_TOKEN would go to models\.example unencrypted") as raised:
        open_generator(MODEL, LoadOptions(endpoint="http://models.example/v1"))
    assert "https://" in raised.value.hint
    for url in ("https://models.example", "http://localhost:1", "http://[::1]:1", "http://127.0.0.2:1"):
        open_generator(MODEL, LoadOptions(endpoint=url)).close()
    # The like of them is not loopback.
    for url in ("http://127.0.0.1.example", "http://localhost.example"):
        with pytest.raises(UsageError, match="unencrypted"):
            open_generator(MODEL, LoadOptions(endpoint=url))


def test_a_token_that_no_header_can_hold(server, monkeypatch):
    monkeypatch.setenv("HFPIPE_ENDPOINT_TOKEN", "se\u00e9cret")
    with pytest.raises(UsageError, match="The token in HFPIPE_ENDPOINT_TOKEN has characters that no token has"):
        open_generator(MODEL, LoadOptions(endpoint=server.url))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pw@h.example/v1",
        "https://s3cret@h.example",
        "h.example/v1",
        "ftp://h",
        "http://h:99999",
        "http://[",
        "",
    ],
)
def test_a_url_that_cannot_be_used_is_not_repeated(url):
    """It may hold a secret."""
    with pytest.raises(UsageError) as raised:
        open_generator(MODEL, LoadOptions(endpoint=url))
    assert "s3cret" not in str(raised.value)
    assert "pw@" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://h.example", "http://h.example/v1"),
        ("https://h.example/", "https://h.example/v1"),
        ("https://h.example/v1/chat/completions", "https://h.example/v1"),
        ("https://h.example/api/v3/", "https://h.example/api/v3"),
        ("https://h.example/v1?api-version=1&key=s3cret", "https://h.example/v1"),
    ],
)
def test_where_a_url_leads(given, shown):
    address = Address(given)
    assert address.shown == shown
    assert address.of("completions").partition("?")[0] == f"{shown}/completions"
    assert ("s3cret" in address.of("completions")) == ("s3cret" in given)


def test_errors_of_this_module_are_of_the_tree():
    assert issubclass(servers.Unavailable, ServerUnavailable)
    assert not issubclass(servers.Retryable, ServerUnavailable)
