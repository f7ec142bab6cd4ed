"""Sources in a process of their own: what huggingface_hub and pip are told comes from the environment."""

import json
import os
import subprocess
import sys

import pytest

DRIVER = """
import json, sys
from hfpipe.errors import HFPipeError
from hfpipe.sources import resolve
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
heavy = {"huggingface_hub", "gguf", "torch", "transformers", "filelock", "numpy", "subprocess", "zipfile"}
heavy = sorted(heavy & set(sys.modules))
print(json.dumps(result | {"notes": recorder.notes, "steps": recorder.steps, "heavy": heavy}))
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
