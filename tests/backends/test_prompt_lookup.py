"""Prompt lookup: tokens that followed the same words before are proposed, and no answer changes for it."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from hfpipe.backends.batching import NGRAM, proposed
from hfpipe.backends.torch.decoding import TorchBackend
from hfpipe.batch.manifest import of_engine
from hfpipe.errors import UnsupportedOption
from hfpipe.types import Sampling, TokenRequest
from tests.backends import running
from tests.backends.test_torch import generated, model_of

ENGINES = {"torch": {"dtype": "float32", "batch_size": 1}, "openvino": {"exact": True, "batch_size": 3}}
NO_END = 10**6


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 6))
def test_what_is_proposed_is_what_transformers_proposes(ids, count):
    finder = PromptLookupCandidateGenerator(torch.tensor([NO_END]), count, NGRAM, max_length=10**6)
    whole, _ = finder.get_candidates(torch.tensor([ids]))
    assert [*ids, *proposed(ids, count)] == whole[0].tolist()
    assert len(proposed(ids, 0)) == len(proposed((), count)) == 0


@pytest.fixture(scope="module")
def load(tiny_gpt2, tiny_gpt2_ov):
    """A backend of a name in ENGINES, with so many tokens proposed at a time; loaded once."""
    folders = {"torch": tiny_gpt2, "openvino": tiny_gpt2_ov}
    made = []

    @cache
    def loaded(engine: str, lookup: int | None):
        made.append(running.load(engine, folders[engine], prompt_lookup=lookup, device="cpu", **ENGINES[engine]))
        return made[-1]

    yield loaded
    for backend in made:
        backend.close()


def repeating(count: int, max_tokens: int = 60, **more) -> list[TokenRequest]:
    """Prompts that say the same again and again."""
    numbers = random.Random(1)
    units = [[numbers.randrange(10, 300) for _ in range(3 + n)] for n in range(count)]
    return [TokenRequest(str(n), tuple((unit * 20)[: 40 - n]), max_tokens, **more) for n, unit in enumerate(units)]


def with_steps(backend, requests) -> tuple[dict[str, list[int]], int]:
    """The answers, and in how many steps they came."""
    ids, steps = {one.id: [] for one in requests}, 0
    for event in backend.stream(requests):
        assert event.error is None
        ids[event.request_id] += event.token_ids
        steps += bool(event.token_ids) and not event.same_step
    return ids, steps


@pytest.mark.parametrize("lookup", [1, 5, 20])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("penalty", [1.0, 1.05])
def test_greedy_answers_are_those_without(load, engine, lookup, penalty):
    """Some proposals are accepted and others are not. The context of 128 tokens becomes full."""
    requests = repeating(6, 88, sampling=Sampling(repetition_penalty=penalty))
    expected, plain = with_steps(load(engine, None), requests)
    answers, steps = with_steps(load(engine, lookup), requests)
    assert answers == expected
    assert steps < plain == sum(map(len, expected.values()))


def test_both_engines_accept_the_same(load):
    first, second = (with_steps(load(engine, 5), repeating(6)) for engine in ENGINES)
    assert first == second


def test_on_torch_a_seed_draws_what_it_draws_without(load):
    requests = repeating(6, sampling=Sampling(temperature=0.3, seed=4))
    expected, plain = with_steps(load("torch", None), requests)
    answers, steps = with_steps(load("torch", 5), requests)
    assert answers == expected
    assert steps < plain


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_follows_an_end_token_of_the_same_step(load, engine):
    """Nor the last token that was asked for."""
    for request in repeating(6):
        whole, same, ended = [], [], []
        for event in load(engine, 5).stream([request]):
            whole += event.token_ids
            same.append(event.same_step)
        for at in [at for at, together in enumerate(same) if together and whole[at] not in whole[:at]]:
            for ends, limit in ((frozenset({whole[at]}), 60), (frozenset(), at + 1)):
                asked = TokenRequest("a", request.token_ids, limit, ends)
                ended += [(whole[: at + 1], with_steps(load(engine, 5), [asked])[0]["a"])]
                ended += [(whole[:at], with_steps(load(engine, 5), [TokenRequest("a", asked.token_ids, at)])[0]["a"])]
        assert all(expected == answer for expected, answer in ended)


def test_rows_of_a_torch_batch_are_given_no_proposals(tiny_gpt2):
    with running.load("torch", tiny_gpt2, prompt_lookup=5, batch_size=3) as backend:
        assert backend.info.detail["prompt lookup"] == "5, for a prompt alone"
        together, steps = with_steps(backend, repeating(3))
        assert steps == 180
        alone = [with_steps(backend, [one]) for one in repeating(3)]
    assert together == {name: ids for answers, _ in alone for name, ids in answers.items()}
    assert sum(steps for _, steps in alone) < 180


def test_one_request_at_a_time_runs_in_paged_mode(tiny_gpt2_ov):
    with running.load("openvino", tiny_gpt2_ov, prompt_lookup=4, batch_size=1) as backend:
        detail = backend.info.detail
        assert (detail["mode"], detail["window"], detail["prompt lookup"]) == ("paged", "1", "4")
        assert "CACHE_DIR" not in detail
        # A batch that began with it, and is resumed without, is refused.
        assert of_engine(backend.info)["engine_settings"]["prompt lookup"] == "4"


# Refused


@pytest.mark.parametrize("engine", ENGINES)
def test_encoder_decoder_models_are_refused(tiny_seq2seq, engine):
    with pytest.raises(UnsupportedOption, match="prompt_lookup is not supported for encoder-decoder models") as raised:
        running.load(engine, tiny_seq2seq("mbart"), prompt_lookup=5)
    assert "the answer is the same" in raised.value.hint


@pytest.mark.parametrize("family", ["mistral", "qwen3_5_text", "lfm2", "falcon_h1", "llama4_text"])
def test_torch_refuses_models_whose_layers_cannot_forget(family):
    with pytest.raises(UnsupportedOption, match=f"prompt_lookup is not supported for {family} models on torch"):
        TorchBackend(model_of(family), lookup=5)


@pytest.mark.parametrize("family", ["qwen2", "opt", "bloom", "gpt_neox"])
def test_torch_runs_other_families(family):
    """Positions that are learned, rotary, or made of the mask."""
    model = model_of(family, **({} if family == "qwen2" else {"num_key_value_heads": None}))
    requests = repeating(4, 40)
    requests = [TokenRequest(one.id, tuple(token % 190 + 5 for token in one.token_ids), 40) for one in requests]
    answers, steps = with_steps(TorchBackend(model, batch_size=1, lookup=5), requests)
    assert answers == {one.id: generated(model, one.token_ids, 40) for one in requests}
    assert steps < 160
