"""The same numbers on every engine: with `exact`, greedy ids are transformers' own, alone and beside others."""

import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino.optimum_cli import own_export
from hfpipe.sampling import end_token_ids
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, Sampling, Silent, TokenRequest
from tests import tiny
from tests.backends.running import answers, load

ENGINES = {
    "torch": ("torch", {"exact": True}),
    "torch-batch": ("torch", {"dtype": "float32", "batch_size": 8}),
    "openvino-single": ("openvino", {"exact": True, "batch_size": 1}),
    "openvino-paged": ("openvino", {"exact": True, "batch_size": 4}),
    "torch-lookup": ("torch", {"exact": True, "prompt_lookup": 5}),
    "openvino-lookup": ("openvino", {"exact": True, "batch_size": 4, "prompt_lookup": 5}),
}
PROMPTS = [
    tiny.SENTENCES[0],
    "x",
    " ".join(tiny.SENTENCES[1:4]),
    tiny.SENTENCES[4],
    "One two",
    "What is EEG?",
]
TOKENS = 24
REAL_TOKENS = 16


def ids_of(folder: Path, prompts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    tokenizer = load_tokenizer(folder)
    return tuple(tokenizer.encode(prompt, add_special_tokens=True) for prompt in prompts)


@cache
def transformers_ids(folder: Path, prompts: tuple[tuple[int, ...], ...], max_tokens: int) -> list[list[int]]:
    """What transformers' own `generate` makes of each prompt alone, greedy, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
        )
        answers.append(whole[0, len(prompt) :].tolist())
    return answers


def requests_for(prompts: Iterable[tuple[int, ...]], max_tokens: int, ends: frozenset[int]) -> list[TokenRequest]:
    return [TokenRequest(str(i), ids, max_tokens, ends) for i, ids in enumerate(prompts)]


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama"])
def folders(request) -> dict[str, Path]:
    return {
        "torch": request.getfixturevalue(request.param),
        "openvino": request.getfixturevalue(request.param + "_ov"),
    }


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, folders):
    name, options = ENGINES[request.param]
    with load(name, folders[name], **options) as backend:
        yield backend


def test_greedy_ids_are_those_of_transformers(engine, folders):
    """Together, in another order, and each alone."""
    prompts = ids_of(folders["torch"], PROMPTS)
    expected = transformers_ids(folders["torch"], prompts, TOKENS)
    assert min(len(set(ids)) for ids in expected) > TOKENS // 3, "an answer without variety shows little"
    requests = requests_for(prompts, TOKENS, frozenset({tiny.END_OF_TEXT}))
    for some in (requests, requests[::-1], *([request] for request in requests)):
        assert answers(engine, some) == {request.id: expected[int(request.id)] for request in some}


# What can be drawn

# Of eight tokens; no other has any.
CHANCES = (0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02)
# Some are above 0 and some below, which a repetition penalty does not treat alike.
LOGITS = np.array([math.log(chance) + 2.5 for chance in CHANCES] + [-1e4] * (tiny.VOCABULARY - 8), dtype=np.float32)
# With this prompt, these tokens are possible.
POSSIBLE = [
    (20, Sampling(1.0), {0, 1, 2, 3, 4, 5, 6, 7}),
    (20, Sampling(1.0, top_k=3), {0, 1, 2}),
    (20, Sampling(1.0, top_p=0.5), {0, 1}),
    (20, Sampling(1.0, top_p=0.6), {0, 1, 2}),
    (20, Sampling(2.0, top_p=0.5), {0, 1, 2}),
    (20, Sampling(1.0, min_p=0.25), {0, 1, 2, 3, 4}),
    (20, Sampling(2.0, min_p=0.25), {0, 1, 2, 3, 4, 5, 6, 7}),
    # Three of five have more than 0.75 among themselves, and less among all.
    (20, Sampling(1.0, top_p=0.75), {0, 1, 2, 3}),
    (20, Sampling(1.0, top_k=5, top_p=0.75), {0, 1, 2}),
    (20, Sampling(1.0, top_p=0.6, min_p=0.7), {0, 1}),
    (0, Sampling(1.0, top_k=1, repetition_penalty=1.3), {0}),
    (0, Sampling(1.0, top_k=1, repetition_penalty=1.5), {1}),
    (7, Sampling(1.0, min_p=0.05), {0, 1, 2, 3, 4, 5, 6, 7}),
    (7, Sampling(1.0, min_p=0.05, repetition_penalty=1.5), {0, 1, 2, 3, 4, 5, 6}),
]


@pytest.fixture(scope="module")
def eight_tokens(tiny_llama, tiny_llama_ov, tmp_path_factory) -> dict[str, Backend]:
    """Backends of the tiny Llama with the same LOGITS after whatever prompt."""
    import openvino as ov
    import torch
    from openvino import opset13

    folder = shutil.copytree(tiny_llama_ov, tmp_path_factory.mktemp("models") / "eight")
    model = ov.Core().read_model(tiny_llama_ov / "openvino_model.xml")
    result = model.output("logits").node.input(0)
    logits = opset13.add(opset13.multiply(result.get_source_output(), np.float32(0)), LOGITS)
    result.replace_source_output(logits.output(0))
    logits.output(0).set_names({"logits"})
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)

    made = {}
    for name in ("torch-batch", "openvino-single", "openvino-paged", "torch-lookup", "openvino-lookup"):
        engine, options = ENGINES[name]
        made[name] = load(engine, tiny_llama if engine == "torch" else folder, **options)
    for name in ("torch-batch", "torch-lookup"):
        made[name]._forward = lambda ids, mask, cache, last: torch.from_numpy(LOGITS).expand(len(ids), last, -1)
    yield made
    for backend in made.values():
        backend.close()


@pytest.mark.parametrize("name", ["torch-batch", "openvino-single", "openvino-paged"])
@pytest.mark.parametrize(("prompt", "sampling", "possible"), POSSIBLE, ids=str)
def test_the_same_tokens_can_be_drawn_on_every_engine(eight_tokens, name, prompt, sampling, possible):
    """Each that the settings leave is, of 400 seeds, and no other; roughly as often as its chance says."""
    draws = 400
    requests = [TokenRequest(str(n), (prompt,), 1, frozenset(), replace(sampling, seed=n)) for n in range(draws)]
    drawn = [ids[0] for ids in answers(eight_tokens[name], requests).values()]
    assert set(drawn) == possible
    if sampling.repetition_penalty == 1:
        weights = {token: CHANCES[token] ** (1 / sampling.temperature) for token in possible}
        for token, weight in weights.items():
            chance = weight / sum(weights.values())
            # Five standard deviations.
            assert abs(drawn.count(token) - draws * chance) <= 5 * (draws * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("name", ["torch-lookup", "openvino-lookup"])
def test_prompt_lookup_changes_no_chances(eight_tokens, name):
    """What is proposed is not drawn more often. Where only one token can be drawn, all proposals are right."""
    prompt = (20, *range(8)) * 3
    counts, steps = [], {}
    for temperature in (0.0, 1.0):
        asked = [TokenRequest(str(n), prompt, 40, frozenset(), Sampling(temperature, seed=n)) for n in range(40)]
        events = list(eight_tokens[name].stream(asked))
        drawn = [token for event in events for token in event.token_ids]
        counts.append([drawn.count(token) for token in range(8)])
        steps[temperature] = sum(not event.same_step for event in events)
    assert counts[0] == [1600, *[0] * 7]
    # One of the prompt, one of nothing that came before, then six at a time.
    assert steps[0.0] <= 40 * 14
    assert steps[0.0] < steps[1.0] < 1600
    for count, chance in zip(counts[1], CHANCES, strict=True):
        assert abs(count - 1600 * chance) <= 5 * (1600 * chance * (1 - chance)) ** 0.5


# The real model


@pytest.mark.model
def test_the_real_model_agrees_everywhere(smollm2):
    prompts = ids_of(smollm2.folder, ["The capital of France is", "def fibonacci(n):", "What is EEG?"])
    expected = transformers_ids(smollm2.folder, prompts, REAL_TOKENS)
    for engine, options in ENGINES.values():
        requests = requests_for(prompts, REAL_TOKENS, end_token_ids(smollm2.generation_config))
        with backends.load(engine, smollm2, LoadOptions(**options)) as backend:
            assert answers(backend, requests) == dict(zip("012", expected, strict=True)), options
    assert own_export(smollm2, LoadOptions(exact=True), Silent()).name.endswith("fp32")
