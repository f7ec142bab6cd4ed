"""The public interface, `hfpipe.__all__`: in every order of imports, and as a type checker sees it from outside."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfpipe

PROGRAM = """
from __future__ import annotations
from pathlib import Path
import hfpipe
import hfpipe.errors
from hfpipe import ChatHFPipe, HFPipe
from transformers import pipeline

llm: HFPipe = hfpipe.load("smollm2", max_tokens=50, stop=["\\n"], template="raw")
llm = HFPipe(pipeline=pipeline("text-generation", model="gpt2"))
llm = HFPipe(model="gpt2", device=0, ov_config={"NUM_STREAMS": 1})
llm = hfpipe.load(Path("gpt2"))
chat: ChatHFPipe = hfpipe.load_chat("smollm2", temperature=0.5)
chat = ChatHFPipe(llm=llm, system="Be brief.")
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
    (made / "__init__.py").write_text("def run(*args): return args\n")
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


def test_the_type_checker_knows_what_is_right_and_wrong(tmp_path: Path) -> None:
    """mypy, on a user's program outside of the package."""
    wrong = ['hfpipe.load("gpt2", max_token=40)', 'hfpipe.HFPipe("gpt2", max_tokens="x")', "hfpipe.load_chat(5)"]
    (tmp_path / "program.py").write_text(PROGRAM + "\n".join(wrong))
    root = Path(hfpipe.__file__).parents[1]
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(root / ".mypy_cache" / "public")]
    command = [sys.executable, "-m", "mypy", *options, "program.py"]
    env = {**os.environ, "MYPYPATH": str(root)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False).stdout
    lines = [int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line]
    after = PROGRAM.count("\n") + 1
    assert lines == [after, after + 1, after + 2], said


@pytest.mark.parametrize("name", ["load", "load_chat", "HFPipe", "ChatHFPipe", "HFPipeError"])
def test_a_public_docstring_is_whole_and_its_example_runs(
    name: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """smollm2 is a tiny model here. The examples of the use cases have tests of their own."""
    from hfpipe import generator
    from hfpipe.langchain import base
    from hfpipe.types import LoadOptions

    loaded = generator.open_generator(str(tiny_llama), LoadOptions(backend="echo"))
    monkeypatch.setattr(base, "open_generator", lambda *_: loaded)
    public = getattr(hfpipe, name)
    for section in ("Args:", "Example:") if name == "HFPipeError" else ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"    {section}\n" in public.__doc__
    test = doctest.DocTestParser().get_doctest(
        public.__doc__, {"hfpipe": hfpipe, "HFPipe": hfpipe.HFPipe, "ChatHFPipe": hfpipe.ChatHFPipe}, name, None, None
    )
    assert test.examples
    said = []
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append).failed == 0, "".join(said)
