"""Starting without what is not needed takes nothing away."""

import json
import subprocess
import sys
from pathlib import Path

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
