"""Exports as hfpipe makes them, and what other programs answer with their folders as they are.

Runs in a child process (see hfpipe/process.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino_genai as genai
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

from hfpipe import export
from hfpipe.backends.openvino import optimum_cli
from hfpipe.backends.openvino.loading import EXACT
from hfpipe.export import exporter
from hfpipe.types import Reporter
from tests import tiny
from tests.tiny_exports import in_this_process


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Export the model in `arguments["model"]` to `arguments["folder"]` in each of `arguments["formats"]`.

    Gives by format and program the greedy token ids, `arguments["tokens"]` for each of `arguments["prompts"]`, and the
    texts.
    """
    for module in (optimum_cli, exporter):
        module.run_child = in_this_process
    found = {}
    for form in arguments["formats"]:
        options = {"weight_format": form, "verify": False, **({"data_free": True} if form == "int4" else {})}
        folder = export(arguments["model"], Path(arguments["folder"]) / form, **options).folder
        prompts, tokens = arguments["prompts"], arguments["tokens"]
        found[form] = {"optimum": by_optimum(folder, prompts, tokens), **by_genai(folder, prompts, tokens)}
    return found


def by_optimum(folder: Path, prompts: list[str], tokens: int) -> list[list[int]]:
    model = OVModelForCausalLM.from_pretrained(folder, ov_config=dict(EXACT))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        answers.append(whole[0, given["input_ids"].shape[1] :].tolist())
    return answers


def by_genai(folder: Path, prompts: list[str], tokens: int) -> dict[str, Any]:
    """Through OpenVINO's own tokenizer of the folder: the ids, and the texts of a call with text."""
    pipe = genai.LLMPipeline(folder, "CPU", **EXACT)
    config = genai.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, apply_chat_template=False, eos_token_id=tiny.END_OF_TEXT
    )
    encode = pipe.get_tokenizer().encode
    ids = [pipe.generate(encode(prompt), config).tokens[0] for prompt in prompts]
    return {"genai": ids, "texts": [pipe.generate(prompt, config) for prompt in prompts]}
