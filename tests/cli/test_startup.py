"""Starting without what is not needed takes nothing away."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfpipe.cli import startup

SCRIPT = """
import gc, json, sys
from hfpipe.cli.startup import load_pipe
from hfpipe.cli.terminal import Terminal
from hfpipe.types import GenerationOptions, LoadOptions
loading = LoadOptions(backend="torch", exact=True)
llm = load_pipe(sys.argv[1], loading, GenerationOptions(max_tokens=12), Terminal(quiet=True))
left_out = ["scipy", "sklearn", "torchvision", "torch._dynamo.eval_frame", "torch._inductor"]
loaded = [name for name in left_out if sys.modules.get(name)]
text = llm.invoke("The cat")
import torch, torch._dynamo.config
from transformers import masking_utils
with masking_utils.TransformGetItemToIndex():
    compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([gc.isenabled(), loaded, text, compiled, torch._dynamo.__file__ is not None]))
"""


def test_what_is_left_out_is_not_missed(tiny_gpt2: Path) -> None:
    """The answer is the same, garbage is collected afterwards, and the compiler is there once it is asked for."""
    import hfpipe

    command = [sys.executable, "-c", SCRIPT, str(tiny_gpt2)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answer = hfpipe.load(str(tiny_gpt2), exact=True, max_tokens=12).invoke("The cat")
    assert json.loads(printed.splitlines()[-1]) == [True, [], answer, [2.0, 2.0], True]


UNTRACED = """
import json, sys
from hfpipe.cli.startup import load_pipe, silence
from hfpipe.cli.terminal import Terminal
from hfpipe.types import GenerationOptions, LoadOptions
silence(verbose=True)
llm = load_pipe(sys.argv[1], LoadOptions(batch_size=1), GenerationOptions(max_tokens=4), Terminal(quiet=True))
ready = ["hfpipe.text.chat" in sys.modules, "langchain_core.tracers.context" in sys.modules]
texts = [llm.invoke("The cat"), "".join(llm.stream("The cat"))]
left_out = ["langsmith.schemas", "requests_toolbelt", "openvino.tools.ovc.convert"]
loaded = [name for name in left_out if sys.modules.get(name)]
from langsmith.run_helpers import traceable
from openvino import convert_model
from optimum.exporters.openvino.convert import export
import torch
converted = convert_model(torch.nn.Identity(), example_input=torch.ones(1))
print(json.dumps([texts[0] == texts[1], ready, loaded, traceable.__module__, type(converted).__name__]))
"""


def test_an_answer_imports_no_tracing_and_no_converter(tiny_llama_ov: Path) -> None:
    """What it needs is imported beside the loading of the weights; what is left out is there once it is asked for."""
    command = [sys.executable, "-c", UNTRACED, str(tiny_llama_ov)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1]) == [True, [True, True], [], "langsmith.run_helpers", "Model"]


@pytest.mark.parametrize(
    ("others", "processors", "own", "policy"),
    [
        ((1, 1), 2, 2, "PASSIVE"),
        ((0, 1), 2, 2, None),
        ((1, 0), 2, 2, None),
        ((1, 1), 2, 1, None),
        ((36, 40), 64, 8, None),
        ((60, 60), 64, 8, "PASSIVE"),
    ],
)
def test_torchs_threads_do_not_spin_on_a_busy_machine(monkeypatch, others, processors, own, policy):
    """Where others have run at both looks, and there are not enough processors for them and for this process."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(own))
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(startup, "_AT_IMPORT", others[0])
    monkeypatch.setattr(startup, "_others", lambda: others[1])
    startup.silence(verbose=True)
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    startup.silence(verbose=True)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
