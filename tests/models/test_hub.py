"""Hub models against a Hub on this machine: what is asked for, what is said when it is refused or cut."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.models.conftest import DECOYS

WANTED = ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_the_model_needs_is_fetched_and_no_more(hub, ask, repos):
    found = ask("gpt2")
    assert found["format"] == "transformers"
    assert found["revision"] == hub.commit("gpt2")
    assert found["context_length"] == 64
    assert sorted(path.name for path in Path(found["folder"]).iterdir()) == WANTED
    assert sorted(set(hub.paths("GET")) - {"/api/models/gpt2", "/api/models/gpt2/revision/main"}) == WANTED
    size = sum((repos["gpt2"] / name).stat().st_size for name in WANTED)
    assert found["steps"][-1] == ["Downloading gpt2", size, size]
    assert [done for _, done, _ in found["steps"]] == sorted(done for _, done, _ in found["steps"])


def test_the_second_time_costs_one_request(hub, ask):
    first = ask("gpt2")
    again = ask("gpt2")
    assert again["folder"] == first["folder"]
    assert again["steps"] == []
    assert [(request.method, request.path) for request in hub.requests] == [("GET", "/api/models/gpt2")]


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_the_cache_serves_without_a_network(hub, ask, environment):
    first = ask("gpt2")
    again = ask("gpt2", environment)
    assert again["folder"] == first["folder"]
    assert hub.requests == []
    note = [] if "HF_HUB_OFFLINE" in environment else ["The Hub did not give gpt2: using the copy in the cache."]
    assert again["notes"] == note


def test_revisions(hub, ask):
    by_branch = ask("gpt2", revision="main")
    by_commit = ask("gpt2", revision=hub.commit("gpt2"))
    assert by_branch["folder"] == by_commit["folder"]
    assert len(hub.requests) == 1
    assert ask("gpt2", {"HF_HUB_OFFLINE": "1"}, revision=hub.commit("gpt2"))["folder"] == by_commit["folder"]
    missing = ask("gpt2", revision="v9")
    assert missing["error"] == "ModelNotFound"
    assert missing["message"] == "gpt2 has no revision 'v9'."


def test_a_new_commit_fetches_what_changed(hub, ask, repos):
    first = ask("gpt2")
    (repos["gpt2"] / "config.json").write_text('{"n_positions": 7}')
    again = ask("gpt2")
    assert again["context_length"] == 7
    assert again["revision"] != first["revision"]
    assert "model.safetensors" not in hub.paths("GET")
    assert ask("gpt2", {"HF_HUB_OFFLINE": "1"})["context_length"] == 7


def test_after_a_cut_the_next_run_goes_on(hub, ask, repos):
    hub.cuts[:] = [1500, 0, 0, 0]
    cut = ask("gpt2")
    assert cut["error"] == "DownloadError"
    assert cut["message"].startswith("The download of gpt2 was cut off")
    assert cut["hint"] == "Run it again to go on where it stopped."
    again = ask("gpt2")
    weights = [request for request in hub.requests if request.method == "GET" and "safetensors" in request.path]
    assert [request.range for request in weights] == ["bytes=1500-"]
    fetched = Path(again["folder"], "model.safetensors").read_bytes()
    assert fetched == (repos["gpt2"] / "model.safetensors").read_bytes()
    assert again["steps"][0][1] == 1500
    assert not list(Path(again["folder"]).parents[1].rglob("*.incomplete"))


def test_after_a_cut_between_shards_the_whole_ones_stay(hub, ask):
    hub.cuts[:] = [10**9, 2000, 0, 0, 0]
    assert ask("org/name")["error"] == "DownloadError"
    offline = ask("org/name", {"HF_HUB_OFFLINE": "1"})
    assert offline["error"] == "DownloadError"
    assert "HF_HUB_OFFLINE" in offline["message"]
    assert "folder" in ask("org/name")
    shards = [(name, request.range) for name, request in _gets(hub) if name.startswith("model-")]
    assert shards == [
        ("model-00002-of-00003.safetensors", "bytes=2000-"),
        ("model-00003-of-00003.safetensors", None),
    ]


def _gets(hub):
    requests = [request for request in hub.requests if request.method == "GET"]
    return list(zip(hub.paths("GET"), requests, strict=True))


def test_a_cached_model_that_lost_a_file_is_completed(hub, ask):
    folder = Path(ask("org/name")["folder"])
    (folder / "model-00002-of-00003.safetensors").unlink()
    offline = ask("org/name", {"HF_HUB_OFFLINE": "1"})
    assert offline["error"] == "DownloadError"
    assert "only a part" in offline["message"]
    assert "folder" in ask("org/name")
    assert (folder / "model-00002-of-00003.safetensors").exists()


def test_a_blob_that_was_damaged(ask):
    folder = Path(ask("gpt2")["folder"])
    (folder / "model.safetensors").resolve().write_bytes(b"damaged")
    found = ask("gpt2")
    assert found["error"] == "ModelError"
    assert found["hint"] == f"Remove {folder.parents[1]} and run it again."


def test_pickles_are_refused_before_they_are_fetched(hub, ask, repos):
    (repos["gpt2"] / "model.safetensors").unlink()
    refused = ask("gpt2")
    assert refused["error"] == "UnsupportedModel"
    assert refused["message"] == "gpt2 has its weights as pickles only (pytorch_model.bin)."
    assert "--allow-pickle" in refused["hint"]
    assert hub.paths("GET") == ["/api/models/gpt2"]
    assert "folder" in ask("gpt2", allow_pickle=True)
    assert "pytorch_model.bin" in hub.paths("GET")


def test_an_openvino_repository(hub, ask, repos):
    for name in ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        (repos["gpt2"] / name).write_bytes(name.encode())
    assert ask("gpt2")["format"] == "openvino"
    assert not {"model.safetensors", *DECOYS} & set(hub.paths("GET"))


def test_what_huggingface_hub_downloads_itself_is_counted(ask, repos, monkeypatch):
    """As files behind Xet are."""
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, token: SimpleNamespace(etag=None))
    found = ask("gpt2")
    size = (repos["gpt2"] / "model.safetensors").stat().st_size
    assert Path(found["folder"], "model.safetensors").stat().st_size == size
    assert size in [done for _, done, _ in found["steps"]]


def test_two_at_once(hub, homes):
    code = "from hfpipe.models import resolve; print(resolve('org/name').folder)"
    environment = {**os.environ, **homes, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len([name for name in hub.paths("GET") if name.startswith("model-")]) == 3


def test_a_server_that_ignores_ranges(hub, ask, repos):
    hub.cuts[:] = [1500]
    hub.ranges = False
    found = ask("gpt2")
    fetched = Path(found["folder"], "model.safetensors").read_bytes()
    assert fetched == (repos["gpt2"] / "model.safetensors").read_bytes()
    assert max(done for _, done, total in found["steps"]) <= found["steps"][-1][2]


def test_ctrl_c_stops_a_download_at_once(hub, homes, repos):
    (repos["gpt2"] / "model.safetensors").write_bytes(os.urandom(1 << 20))
    hub.pause_s = 60.0
    code = "from hfpipe.models import resolve; resolve('gpt2')"
    environment = {**os.environ, **homes, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    while "model.safetensors" not in hub.paths("GET"):
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(2)
    _, error = process.communicate(timeout=20)
    hub.resume.set()
    assert "KeyboardInterrupt" in error
    (partial,) = Path(homes["HF_HOME"]).rglob("*.hfpipe.incomplete")
    assert partial.stat().st_size > 0


def test_a_program_that_resolves_a_model_keeps_its_environment_and_sees_no_bars(hub, homes):
    code = (
        "import os; before = dict(os.environ)\n"
        "import hfpipe\n"
        "from hfpipe.models import resolve\n"
        "resolve('org/name')\n"
        "from huggingface_hub.utils import are_progress_bars_disabled\n"
        "changed = dict(before.items() ^ os.environ.items())\n"
        "print(sorted(changed), are_progress_bars_disabled())\n"
    )
    loud = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_")}
    environment = {**loud, **homes, "HF_ENDPOINT": hub.url, "TQDM_POSITION": "-1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[] False\n", "")
