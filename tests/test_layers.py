"""Which file may import which, and what is heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
HEAVY = SETTINGS["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_file_imports_only_from_lower_floors():
    call = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = run("-c", call)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    "module",
    ["hfpipe", "hfpipe.generator", "hfpipe.backends.echo", "hfpipe.batch.journal", "hfpipe.process"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    """Dependencies of the tests may load plugins into pytest's own process: a new one is asked."""
    result = run("-c", f"import sys, {module}; print(*sys.modules, sep='\\n')")
    assert result.returncode == 0, result.stderr
    assert module in result.stdout.split()
    assert set(result.stdout.split()) & set(HEAVY) == set()


def test_the_leaves_that_may_import_heavy_modules_are_there():
    """A pattern that no file matches would be a rule for nothing."""
    patterns = [name for name, codes in SETTINGS["ruff"]["lint"]["per-file-ignores"].items() if "TID253" in codes]
    assert patterns
    for pattern in patterns:
        files = [path for path in ROOT.glob(pattern) if path.suffix == ".py" or path.is_dir()]
        assert files, pattern
