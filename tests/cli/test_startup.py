"""Starting without what is not needed takes nothing away."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, json, sys
from hfpipe.cli.startup import leave_out_unused, without_garbage_collection
leave_out_unused()
with without_garbage_collection():
    collecting = gc.isenabled()
    import hfpipe
    llm = hfpipe.load(sys.argv[1], exact=True, max_tokens=12)
left_out = ["scipy", "sklearn", "torchvision", "torch._dynamo.eval_frame", "torch._inductor"]
loaded = [name for name in left_out if sys.modules.get(name)]
text = llm.invoke("The cat")
import torch
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([collecting, gc.isenabled(), loaded, text, compiled, torch._dynamo.__file__ is not None]))
"""


@pytest.fixture(scope="module")
def lean(tiny_gpt2: Path) -> list:
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_gpt2)], capture_output=True, text=True, check=True
    ).stdout
    return json.loads(printed.splitlines()[-1])


def test_unused_modules_are_left_out(lean: list) -> None:
    assert lean[2] == []


def test_garbage_is_collected_again_after_loading(lean: list) -> None:
    assert lean[:2] == [False, True]


def test_the_answer_is_the_same(lean: list, tiny_gpt2: Path) -> None:
    import hfpipe

    assert lean[3] == hfpipe.load(str(tiny_gpt2), exact=True, max_tokens=12).invoke("The cat")


def test_the_compiler_is_there_once_it_is_asked_for(lean: list) -> None:
    assert lean[4:] == [[2.0, 2.0], True]


def test_a_torch_without_the_private_part_is_left_as_it_is() -> None:
    code = """
import sys
from hfpipe.cli import startup
startup._DYNAMO = "torch._gone"
startup.leave_out_unused()
assert "torch._gone" not in sys.modules
assert not any(isinstance(finder, startup._Submodules) for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
