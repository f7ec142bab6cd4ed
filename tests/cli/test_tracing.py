"""Variables that tell LangChain to send prompts somewhere are meant for other programs."""

import http.server
import threading

import pytest

from tests.cli.shell import run_hfpipe


@pytest.fixture
def listener():
    """A server of this machine, and the requests that it got."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self):
            seen.append(self.client_address)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("more", [{}, {"LANGCHAIN_HANDLER": "langchain"}, {"LANGCHAIN_TRACING": "true"}])
@pytest.mark.parametrize("prefix", ["LANGSMITH_", "LANGCHAIN_"])
def test_nothing_is_sent_and_nothing_fails(plain_model, listener, prefix, more):
    url, seen = listener
    env = {f"{prefix}TRACING": "true", f"{prefix}TRACING_V2": "true", f"{prefix}API_KEY": "x", f"{prefix}ENDPOINT": url}
    ended = run_hfpipe("run", plain_model, "hi", "-b", "echo", "-t", "raw", env={**env, **more})
    assert (ended.code, ended.out, ended.err) == (0, b"hi\n", b"")
    assert seen == []
