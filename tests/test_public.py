"""The public interface, `hfpipe.__all__`: in every order of imports, and as a type checker sees it from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfpipe

PROGRAM = """
from __future__ import annotations
import hfpipe
import hfpipe.errors
from hfpipe import ChatHFPipe, HFPipe

llm: HFPipe = hfpipe.load("smollm2", max_tokens=50)
chat: ChatHFPipe = hfpipe.load_chat("smollm2", temperature=0.5)
text: str = llm.invoke("What is EEG?")
try:
    print(text, chat.invoke("What is EEG?").content)
except hfpipe.HFPipeError as error:
    print(error.hint)
"""


def test_dir_lists_the_public_names() -> None:
    assert set(hfpipe.__all__) <= set(dir(hfpipe))
    assert all(callable(getattr(hfpipe, name)) for name in hfpipe.__all__)


@pytest.mark.parametrize("first", ["", "import hfpipe.made", "import hfpipe.made.part", "from hfpipe import made"])
def test_a_use_case_is_a_function_whatever_was_imported_before(tmp_path: Path, first: str) -> None:
    """The import of a subpackage makes the module an attribute, in the place of a function of the same name."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "__init__.py").write_text(
        "from hfpipe._callable import *\ndef run(*args): return args\ncallable_package(__name__)\n"
    )
    (made / "part.py").touch()
    code = f"""
import hfpipe
hfpipe.__path__.append({str(tmp_path)!r})
hfpipe._LATE["made"] = "hfpipe.made"
{first}
assert hfpipe.made(1, 2) == (1, 2)
assert hfpipe.made.run(3) == (3,)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_program_passes_the_type_checker(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"]
    env = {**os.environ, "MYPYPATH": str(Path(hfpipe.__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
