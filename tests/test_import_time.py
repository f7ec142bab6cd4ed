"""What is not imported costs no time: help and completions stay light, and OpenVINO runs without torch."""

import json
import sys

import pytest

from tests.cli.conftest import write_echo_model
from tests.cli.shell import run_hfpipe

HEAVY = [
    "accelerate",
    "gguf",
    "httpx",
    "huggingface_hub.hf_api",
    "jinja2",
    "langchain_core",
    "matplotlib",
    "nncf",
    "numpy",
    "openvino",
    "openvino_genai",
    "openvino_telemetry",
    "optimum",
    "psutil",
    "ray",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
]
# hfpipe ends with os._exit, past atexit.
RUN = """
import os, sys
end = os._exit
def leave(code):
    loaded = sorted(name for name in {heavy!r} if sys.modules.get(name))
    print("\\nLOADED", *loaded, file=sys.stderr, flush=True)
    end(code)
os._exit = leave
sys.argv[0] = "hfpipe"
from hfpipe.cli.main import main
main()
"""


def loaded(*args, **settings):
    """The heavy modules that a run has imported by its end."""
    ended = run_hfpipe(*args, command=[sys.executable, "-c", RUN.format(heavy=HEAVY)], **settings)
    assert ended.code in (0, 2), ended
    return ended.err.decode().splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "args", [["--help"], ["run", "--help"], ["--version"], [], ["run"], ["run", "x", "y", "--foo"]]
)
def test_help_is_light(args):
    assert loaded(*args) == []


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "hfpipe r"),
        ("bash", "hfpipe run smo"),
        ("zsh", "hfpipe run smollm2 --"),
        ("fish", "hfpipe run smollm2 -b "),
    ],
)
def test_completion_is_light(shell, line):
    env = {
        "_HFPIPE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    assert loaded(env=env) == []


def test_wrong_usage_is_seen_before_anything_is_loaded():
    begin = ("run", "x", "hi", "--device", "0")
    assert loaded(*begin, "--device-map", "auto") == []
    assert loaded(*begin, "-t", "{") == []


def test_openvino_runs_without_torch(tiny_llama_ov):
    modules = loaded("run", tiny_llama_ov, "hi", "-n", "4")
    assert {"openvino", "openvino_genai", "tokenizers"} <= set(modules)
    assert not {"torch", "transformers", "optimum", "nncf", "accelerate", "openvino_telemetry", "rich"} & set(modules)


def test_nothing_but_what_an_echo_takes(tmp_path):
    model = write_echo_model(tmp_path / "m")
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"question": "hi"}\n')
    batch = ("batch", lines, "-m", model, "-b", "echo", "-o", tmp_path / "out.jsonl")
    for args in (("run", model, "hi", "-b", "echo", "--json"), batch):
        modules = loaded(*args)
        # numpy comes with the reader of safetensors, and with every real engine.
        assert not {"torch", "transformers", "openvino", "httpx", "rich"} & set(modules)


def test_the_package_is_light():
    code = f"import sys, json, hfpipe; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    assert json.loads(run_hfpipe(command=[sys.executable, "-c", code]).out) == []
