"""The same numbers on every engine: with `exact`, greedy ids are transformers' own, alone and beside others."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino.loading import model_folder
from hfpipe.sampling import end_token_ids
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Sampling, Silent, TokenRequest
from tests import tiny

ENGINES = {
    "torch": ("torch", LoadOptions(exact=True)),
    "torch-batch": ("torch", LoadOptions(dtype="float32", batch_size=8)),
    "openvino-single": ("openvino", LoadOptions(exact=True, batch_size=1)),
    "openvino-paged": ("openvino", LoadOptions(exact=True, batch_size=4)),
}
PROMPTS = [
    tiny.SENTENCES[0],
    "x",
    " ".join(tiny.SENTENCES[1:4]),
    tiny.SENTENCES[4],
    "One two",
    "What is EEG?",
]
TOKENS = 40


def ids_of(folder: Path, prompts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    tokenizer = load_tokenizer(folder)
    return tuple(tokenizer.encode(prompt, add_special_tokens=True) for prompt in prompts)


@cache
def transformers_ids(
    folder: Path, prompts: tuple[tuple[int, ...], ...], max_tokens: int, **options: object
) -> list[list[int]]:
    """What transformers' own `generate` makes of each prompt alone, greedy, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=0,
            **options,
        )
        answers.append(whole[0, len(prompt) :].tolist())
    return answers


def hfpipe_ids(backend: Backend, requests: Iterable[TokenRequest]) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    for event in backend.stream(requests):
        assert event.error is None
        answers.setdefault(event.request_id, []).extend(event.token_ids)
    return answers


def requests_for(
    prompts: Iterable[tuple[int, ...]], max_tokens: int, ends: frozenset[int] = frozenset(), **more: Sampling
) -> list[TokenRequest]:
    return [TokenRequest(str(i), ids, max_tokens, ends, **more) for i, ids in enumerate(prompts)]


def assert_all_equal(backend: Backend, requests: Sequence[TokenRequest], expected: Sequence[list[int]]) -> None:
    """Together, in another order, and each alone."""
    wanted = {request.id: ids for request, ids in zip(requests, expected, strict=True)}
    assert hfpipe_ids(backend, requests) == wanted
    assert hfpipe_ids(backend, reversed(requests)) == wanted
    for request in requests:
        assert hfpipe_ids(backend, [request]) == {request.id: wanted[request.id]}


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama"])
def folders(request) -> dict[str, Path]:
    return {
        "torch": request.getfixturevalue(request.param),
        "openvino": request.getfixturevalue(request.param + "_ov"),
    }


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, folders):
    name, options = ENGINES[request.param]
    with backends.load(name, models.resolve(str(folders[name])), options) as backend:
        yield backend


def test_greedy_ids_are_those_of_transformers(engine, folders):
    prompts = ids_of(folders["torch"], PROMPTS)
    expected = transformers_ids(folders["torch"], prompts, TOKENS)
    assert min(len(set(ids)) for ids in expected) > TOKENS // 3, "an answer without variety shows little"
    assert_all_equal(engine, requests_for(prompts, TOKENS, frozenset({tiny.END_OF_TEXT})), expected)


def test_a_repetition_penalty_means_what_it_means_in_transformers(engine, folders):
    """The prompt counts."""
    prompts = ids_of(folders["torch"], PROMPTS)
    expected = transformers_ids(folders["torch"], prompts, 20, repetition_penalty=1.4)
    assert expected != [ids[:20] for ids in transformers_ids(folders["torch"], prompts, 20)]
    assert_all_equal(engine, requests_for(prompts, 20, sampling=Sampling(repetition_penalty=1.4)), expected)


SAMPLINGS = [
    Sampling(temperature=1.0, top_k=6),
    Sampling(temperature=3.0, top_p=0.5),
    Sampling(temperature=3.0, min_p=0.2),
    Sampling(temperature=2.0, top_k=8, top_p=0.8),
    Sampling(temperature=2.0, top_k=8, top_p=0.8, min_p=0.1, repetition_penalty=1.5),
]


@pytest.mark.parametrize("engine", ["torch-batch", "openvino-single", "openvino-paged"], indirect=True)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: f"k={s.top_k} p={s.top_p} min_p={s.min_p}")
def test_samples_are_drawn_from_the_same_tokens(engine, folders, sampling):
    """Of very many seeds each token that transformers leaves is drawn, and no other is; roughly as often."""
    prompt = ids_of(folders["torch"], PROMPTS[:1])[0]
    chances = distribution(folders["torch"], prompt, sampling)
    draws = 300
    requests = [TokenRequest(str(n), prompt, 1, frozenset(), replace(sampling, seed=n)) for n in range(draws)]
    drawn = [ids[0] for ids in hfpipe_ids(engine, requests).values()]
    assert set(drawn) <= set(chances)
    for token, chance in chances.items():
        # Five standard deviations, and one draw for the very rare.
        assert abs(drawn.count(token) - draws * chance) <= 5 * (draws * chance * (1 - chance)) ** 0.5 + 1


def distribution(folder: Path, prompt: tuple[int, ...], sampling: Sampling) -> dict[int, float]:
    """The chances of the next token: temperature, top-k, top-p, min-p, in plain numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([prompt])
    logits = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0, -1].double()
    seen = logits[list(set(prompt))]
    penalty = sampling.repetition_penalty
    logits[list(set(prompt))] = torch.where(seen > 0, seen / penalty, seen * penalty)
    chances, tokens = (logits / sampling.temperature).softmax(0).sort(descending=True)
    if sampling.top_k:
        chances, tokens = chances[: sampling.top_k], tokens[: sampling.top_k]
    before = chances.cumsum(0) / chances.sum() - chances / chances.sum()
    kept = before < sampling.top_p
    chances, tokens = chances[kept], tokens[kept]
    kept = chances >= sampling.min_p * chances[0]
    chances, tokens = chances[kept] / chances[kept].sum(), tokens[kept]
    return dict(zip(tokens.tolist(), chances.tolist(), strict=True))


# The real model

QUESTIONS = [
    "What is EEG?",
    "Write a haiku about the sea.",
    "List three prime numbers and say why they are prime.",
    "def fibonacci(n):",
    "The capital of France is",
]


@pytest.fixture(scope="module")
def expected(smollm2: ModelSource) -> list[list[int]]:
    return transformers_ids(smollm2.folder, ids_of(smollm2.folder, QUESTIONS), TOKENS)


@pytest.mark.model
@pytest.mark.parametrize("name", ENGINES)
def test_the_real_model_agrees_everywhere(smollm2, expected, name):
    engine, options = ENGINES[name]
    requests = requests_for(ids_of(smollm2.folder, QUESTIONS), TOKENS, end_token_ids(smollm2.generation_config))
    with backends.load(engine, smollm2, options) as backend:
        answers = hfpipe_ids(backend, requests)
    assert [answers[request.id] for request in requests] == expected


@pytest.mark.model
def test_the_real_model_is_exported_in_float32_for_exact(smollm2):
    folder = model_folder(smollm2, LoadOptions(exact=True), Silent())
    assert folder.name.endswith("fp32")
