"""The tools that read the code, with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--no-cache", "hfpipe", "tests"),
        ("ruff", "format", "--check", "--no-cache", "hfpipe", "tests"),
        ("mypy",),
    ],
    ids=["lint", "format", "types"],
)
def test_the_code_passes(command):
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
