"""Models resolved from a Hub on this machine, or in a process of their own."""

import json
import os
import subprocess
import sys

import pytest

from hfpipe.errors import HFPipeError
from hfpipe.models import resolve
from tests.fake_models import write_model
from tests.hub import LoopbackHub, settings
from tests.recorder import Recorder

DECOYS = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "model.gguf", "consolidated.safetensors")
DRIVER = """
import json, sys
from hfpipe.errors import HFPipeError
from hfpipe.models import resolve
class Recorder:
    notes, steps = [], []
    def note(self, text): self.notes.append(text)
    def progress(self, task, done, total): self.steps.append([task, done, total])
recorder, result = Recorder(), {}
try:
    source = resolve(sys.argv[1], reporter=recorder, **json.loads(sys.argv[2]))
    result = {name: getattr(source, name) for name in source.__slots__} | {"folder": str(source.folder)}
except HFPipeError as error:
    result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
heavy = {"huggingface_hub", "gguf", "torch", "transformers"}
heavy = sorted(heavy & set(sys.modules))
print(json.dumps(result | {"notes": recorder.notes, "steps": recorder.steps, "heavy": heavy}, default=str))
"""


@pytest.fixture
def homes(tmp_path):
    """Empty caches of the Hub and of hfpipe, as variables."""
    return {"HF_HOME": str(tmp_path / "hf"), "HFPIPE_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def resolve_in_child(homes):
    """resolve(reference, **options) under more variables: its source or its error, and what was reported."""

    def resolve(reference, environment=None, cwd=None, **options):
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name != "HF_TOKEN"
        }
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, reference, json.dumps(options)],
            env={**variables, **homes, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    return resolve


@pytest.fixture
def repos(tmp_path):
    """gpt2 with decoys, and org/name in three shards."""
    folders = {
        "gpt2": write_model(tmp_path / "repos" / "gpt2"),
        "org/name": write_model(tmp_path / "repos" / "name", shards=3),
    }
    for folder in folders.values():
        (folder / "onnx").mkdir()
        for name in DECOYS:
            (folder / name).write_bytes(b"decoy" * 1000)
    return folders


@pytest.fixture
def hub(repos):
    with LoopbackHub(repos) as running:
        yield running


@pytest.fixture
def ask(hub, homes, monkeypatch):
    """resolve(reference) with `hub` as the Hub: its source or error and what was reported. The log begins anew."""

    monkeypatch.setattr("hfpipe.models.hub._PAUSE_S", 0.01)

    def ask(reference, environment=None, **options):
        hub.requests.clear()
        recorder = Recorder()
        variables = {**homes, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **(environment or {})}
        with settings(**variables):
            try:
                source = resolve(reference, reporter=recorder, **options)
                found = {name: getattr(source, name) for name in source.__slots__} | {"folder": str(source.folder)}
            except HFPipeError as error:
                found = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        return found | vars(recorder)

    return ask
