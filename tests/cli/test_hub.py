"""`hfpipe run gpt2 "What is EEG?"` as it is written, from a Hub on this machine."""

from types import SimpleNamespace

import pytest

from tests import tiny
from tests.cli.shell import run_hfpipe
from tests.fake_models import write_model
from tests.hub import LoopbackHub


@pytest.fixture
def hub(tiny_gpt2, tmp_path):
    """gpt2, and a sharded org/name that only the echo backend can run; private, gated and missing ones."""
    sharded = write_model(tmp_path / "sharded", shards=2, vocab_size=tiny.VOCABULARY)
    tiny.save_tokenizer(sharded, eos_token=tiny.SPECIAL_TOKENS[0])
    repos = {"gpt2": tiny_gpt2, "org/name": sharded}
    refuse = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound"), "org/broken": (500, "Oops")}
    with LoopbackHub(repos, refuse) as served:
        env = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": None, "HF_HOME": str(tmp_path / "hf")}
        yield SimpleNamespace(served=served, env=env)


def test_a_hub_model_runs_as_written_and_then_offline(hub):
    ended = run_hfpipe("run", "gpt2", "What is EEG?", "-n", "8", env=hub.env)
    assert (ended.code, ended.err) == (0, b"")
    assert len(ended.out) > 1
    offline = run_hfpipe("run", "gpt2", "hi", "-b", "echo", "-t", "raw", env={**hub.env, "HF_HUB_OFFLINE": "1"})
    assert (offline.code, offline.out, offline.err) == (0, b"hi\n", b"")


@pytest.mark.parametrize("command", [("run", "org/name", "hi"), ("batch", "in.txt", "-m", "org/name")])
def test_a_cache_dir_among_the_arguments_of_from_pretrained(hub, tmp_path, command):
    (tmp_path / "in.txt").write_text("hi\n")
    args = (*command, "-b", "echo", "-t", "raw", "--model-kwarg", "cache_dir=cache")
    assert run_hfpipe(*args, env=hub.env, cwd=tmp_path).code == 0
    assert (tmp_path / "cache" / "models--org--name").is_dir()
    assert not (tmp_path / "hf").exists()


def test_a_sharded_model_comes_with_a_bar_on_a_terminal(hub):
    args = ("run", "org/name", "hi", "-b", "echo", "-t", "raw")
    ended = run_hfpipe(*args, env=hub.env, tty="stderr")
    assert (ended.code, ended.out) == (0, b"hi\n")
    assert b"Downloading org/name" in ended.err
    assert ended.err.rstrip(b"\r").endswith(b"\x1b[2K")
    assert len([name for name in hub.served.paths("GET") if name.endswith(".safetensors")]) == 2
    again = run_hfpipe(*args, env=hub.env)
    assert (again.out, again.err) == (b"hi\n", b"")
    assert len([name for name in hub.served.paths("GET") if name.endswith(".safetensors")]) == 2


def test_the_command_line_shows_no_bars_of_the_hub_and_tells_it_nothing(hub):
    loud = {"HF_HUB_DISABLE_PROGRESS_BARS": None, "HF_HUB_DISABLE_TELEMETRY": None, "HF_HUB_VERBOSITY": None}
    ended = run_hfpipe(
        "run", "org/name", "hi", "-b", "echo", "-t", "raw", env={**hub.env, **loud, "TQDM_POSITION": "-1"}
    )
    assert (ended.code, ended.out, ended.err) == (0, b"hi\n", b"")
    assert hub.served.requests
    # What huggingface_hub adds of the user's machine unless telemetry is off.
    assert not [request.agent for request in hub.served.requests if "torch/" in request.agent]


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["org/gated"], "org/gated is gated", "Accept them at"),
        (["org/private"], "The Hub does not let you read org/private", "Log in with `hf auth login`"),
        (["org/missing"], "The Hub has no model org/missing.", "Check the name."),
        (["org/broken"], "The Hub failed with status 500 for org/broken.", "Try again later."),
        (["gpt2", "--revision", "v9"], "gpt2 has no revision 'v9'.", "/gpt2/branches"),
    ],
)
def test_refusals(hub, args, error, hint):
    ended = run_hfpipe("run", *args, "hi", "-b", "echo", env=hub.env)
    assert (ended.code, ended.out) == (1, b"")
    assert error in ended.error
    assert hint in ended.hint


def test_nobody_there(hub):
    env = {**hub.env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    ended = run_hfpipe("run", "gpt2", "hi", env=env)
    assert ended.code == 1
    assert ended.error == "http://127.0.0.1:9 cannot be reached, and gpt2 is not in the cache."
    assert "Check the network" in ended.hint
    assert "smollm2 (downloaded once, from the package index)" in ended.hint
    assert run_hfpipe("run", "smolm2", "hi", env=env).hint == "Did you mean 'smollm2'?"
