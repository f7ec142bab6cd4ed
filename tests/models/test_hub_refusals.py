"""What is said of a Hub model that cannot be had."""

import json

import pytest


@pytest.mark.parametrize(
    ("status", "code", "kind", "words", "hint"),
    [
        (403, "GatedRepo", "AccessDenied", "is gated", "hf auth login"),
        (401, "GatedRepo", "AccessDenied", "is gated", "hf auth login"),
        (401, "RepoNotFound", "AccessDenied", "is private, or does not exist", "hf auth login"),
        (401, "", "AccessDenied", "does not let you read org/secret", "hf auth login"),
        (403, "", "AccessDenied", "does not let you read org/secret", "hf auth login"),
        (404, "RepoNotFound", "ModelNotFound", "The Hub has no model org/secret", "Check the name"),
        (500, "", "DownloadError", "status 500", "later"),
        (200, "<html>Log in</html>", "DownloadError", "answered is not a Hub's answer", "HF_ENDPOINT"),
        (200, "[1]", "DownloadError", "answered is not a Hub's answer", "HF_ENDPOINT"),
    ],
)
def test_a_refusal_is_one_line_and_the_next_step(hub, ask, status, code, kind, words, hint):
    hub.refuse = {"org/secret": (status, code)}
    refused = ask("org/secret")
    assert refused["error"] == kind
    assert words in refused["message"]
    assert hint in refused["hint"]
    assert "\n" not in refused["message"]


def test_a_typo_is_answered_with_the_nearest_known_name(hub, ask):
    ask("gpt2")
    for typo, name in {"gpt3": "gpt2", "smolm2": "smollm2"}.items():
        found = ask(typo)
        assert found["error"] == "ModelNotFound"
        assert found["hint"] == f"Did you mean {name!r}?"


def test_a_refused_model_that_is_cached_still_runs(hub, ask):
    first = ask("gpt2")
    hub.refuse = {"gpt2": (401, "RepoNotFound")}
    again = ask("gpt2")
    assert again["folder"] == first["folder"]
    assert again["notes"] == ["The Hub did not give gpt2: using the copy in the cache."]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({"HF_ENDPOINT": "nonsense"}, "nonsense cannot be reached"),
    ],
)
def test_not_cached_and_no_network(ask, environment, words):
    found = ask("gpt2", environment)
    assert found["error"] == "DownloadError"
    assert words in found["message"]
    assert found["hint"]


UNUSABLE = [
    ({"ALL_PROXY": "socks5://127.0.0.1:1"}, "with ALL_PROXY as set (Using SOCKS proxy, but the 'socksio' package"),
    ({"all_proxy": "socks://me:secret@127.0.0.1:1"}, "with all_proxy as set."),
    ({"HTTPS_PROXY": "http://me:sec/ret@127.0.0.1:1"}, "with HTTPS_PROXY as set."),
    ({"HTTP_PROXY": f"http://{'a' * 64}.org"}, "with HTTP_PROXY as set."),
    ({"NO_PROXY": "[::1"}, "with NO_PROXY as set."),
    ({"SSL_CERT_FILE": "/nowhere"}, "with SSL_CERT_FILE"),
    ({"HF_TOKEN": "hf_t\u00f6ken"}, "The token in HF_TOKEN has characters that no token has"),
]


@pytest.mark.parametrize(("environment", "words"), UNUSABLE)
def test_a_variable_that_lets_no_request_out_is_named(ask, environment, words):
    found = ask("gpt2", environment)
    assert found["error"] == "DownloadError"
    assert words in found["message"]
    assert found["hint"]
    assert "sec" not in found["message"] + found["hint"]


def test_the_cache_serves_where_a_variable_lets_no_request_out(hub, ask):
    first = ask("gpt2")
    environment, words = UNUSABLE[0]
    again = ask("gpt2", environment)
    assert again["folder"] == first["folder"]
    (note,) = again["notes"]
    assert words in note
    assert note.endswith(": using the copy in the cache.")
    assert ask("gpt2", {**environment, "HF_HUB_OFFLINE": "1"})["notes"] == []


def test_the_token_is_sent(hub, ask):
    ask("gpt2", {"HF_TOKEN": "hf_secret"})
    assert {request.token for request in hub.requests} == {"hf_secret"}
    ask("gpt2")
    assert {request.token for request in hub.requests} == {None}


def test_a_disk_that_is_too_small(hub, ask, monkeypatch):
    monkeypatch.setattr("hfpipe.machine.free_disk", lambda folder: 10)
    found = ask("gpt2")
    assert "The download needs" in found["message"]
    assert "HF_HOME" in found["hint"]
    assert hub.paths("GET") == ["/api/models/gpt2"]


def test_a_cache_that_cannot_be_written(ask, tmp_path):
    (tmp_path / "file").touch()
    found = ask("gpt2", {"HF_HOME": str(tmp_path / "file")})
    assert found["error"] == "HFPipeError"
    assert "Cannot write" in found["message"]
    assert "HF_HOME" in found["hint"]


def test_json_that_is_damaged_on_the_hub(ask, repos):
    (repos["gpt2"] / "config.json").write_text(json.dumps([1]))
    found = ask("gpt2")
    assert found["error"] == "ModelError"
    assert "config.json holds no JSON object" in found["message"]
