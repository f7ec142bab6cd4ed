"""The torch engine: architectures, loading, and what it does when transformers fails."""

import io
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfpipe import backends, models
from hfpipe.backends.base import as_backend_error
from hfpipe.backends.batching import Row, _padding, similar
from hfpipe.backends.scheduling import SHARE
from hfpipe.backends.torch import attention, decoding
from hfpipe.backends.torch.decoding import TorchBackend
from hfpipe.backends.torch.loading import free_memory, parse_device
from hfpipe.errors import BackendError, HFPipeError, ModelError, OutOfMemory, UnsupportedModel, UsageError
from hfpipe.types import LoadOptions, ModelSource, Sampling, TokenRequest
from tests import tiny
from tests.backends import running
from tests.backends.running import answers, failures
from tests.recorder import Recorder

# Architectures

SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 12}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LINEAR_HEADS = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
LINEAR = {**LINEAR_HEADS, "linear_num_value_heads": 4, "num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "mistral": SLIDING,
    "phi3": {**SLIDING, "original_max_position_embeddings": 256},
    "gemma2": SLIDING,
    "gemma3_text": {**SLIDING, "num_hidden_layers": 6},
    "gpt_oss": {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Positions that are learned, or made of the mask (alibi), or rotary in part.
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "gpt_neox": {},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "llama4_text": {"attention_chunk_size": 12, "intermediate_size_mlp": 48, **EXPERTS},
    # Layers of linear attention, of convolution and of a state space beside usual ones.
    "qwen3_5_text": LINEAR,
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48},
    "falcon_h1": {**MAMBA, "mamba_n_heads": 4, "mamba_d_ssm": 32},
}


def random_prompts(*lengths: int) -> list[tuple[int, ...]]:
    numbers = random.Random(5)
    return [tuple(numbers.randrange(3, SMALL["vocab_size"]) for _ in range(length)) for length in lengths]


def model_of(family: str, **changes: object) -> torch.nn.Module:
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES.get(family, {}), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def generated(model: torch.nn.Module, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
    )
    return whole[0, len(prompt) :].tolist()


# Families whose heads all have keys and values of their own, whatever their configuration is given.
UNGROUPED = {"opt", "bloom", "mpt", "gpt_neox", "gpt2", "gptj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_answers_as_generate_does(monkeypatch, family):
    """Prompts shorter and longer than a sliding window, and rows that leave the batch before others. Keys and values
    take no more than is foretold."""
    model = model_of(family, **({"num_key_value_heads": None} if family in UNGROUPED else {}))
    requests = [
        TokenRequest(str(i), prompt, (18, 9, 18, 4)[i]) for i, prompt in enumerate(random_prompts(5, 30, 1, 16))
    ]
    expected = {one.id: generated(model, one.token_ids, one.max_tokens) for one in requests}
    assert max(len(set(ids)) for ids in expected.values()) > 3
    attention.group_heads(model)
    backend = TorchBackend(model, batch_size=4)
    forward = Forward(monkeypatch, backend)
    assert answers(backend, requests) == expected
    assert 0 < forward.per_token <= backend._bytes_per_token
    assert forward.per_token == PER_TOKEN or family != "qwen2"


# Families with a sliding window, or with layers of another kind than attention, in whose cache no row has places.
CLOSED = {"mistral", "phi3", "gemma2", "gemma3_text", "gpt_oss", "llama4_text", "qwen3_5_text", "lfm2", "falcon_h1"}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_a_running_batch_answer_as_generate_does(monkeypatch, family):
    """Longer and shorter ones than those that run, some of one token. Where the cache has no places, rows wait for the
    end of the batch."""
    model = model_of(family, **({"num_key_value_heads": None} if family in UNGROUPED else {}))
    prompts = random_prompts(5, 30, 1, 16, 40, 2, 9, 33, 4, 20)
    tokens = (18, 3, 7, 20, 12, 1, 25, 5, 2, 9)
    requests = [TokenRequest(str(i), *each) for i, each in enumerate(zip(prompts, tokens, strict=True))]
    expected = {one.id: generated(model, one.token_ids, one.max_tokens) for one in requests}
    backend, joins = TorchBackend(model, batch_size=3), Joins(monkeypatch)
    backend.look_ahead = 3
    assert answers(backend, requests) == expected
    assert bool(joins.rows) == (family not in CLOSED)


class Joins:
    """How many rows ran and how many joined them, each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, int]] = []
        self.inside = decoding._Batch.join
        monkeypatch.setattr(decoding._Batch, "join", lambda batch, other: self.join(batch, other))

    def join(self, batch: decoding._Batch, other: decoding._Batch) -> None:
        self.rows.append((len(batch._mask), len(other._mask)))
        self.inside(batch, other)


OTHERS = {
    "mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 12, "block_types": ["recurrent", "attention"]},
    "openai-gpt": GPT,
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_without_the_usual_cache_is_refused(family):
    """With a cache that it does not look at, it would answer noise."""
    with pytest.raises(UnsupportedModel, match=family):
        TorchBackend(model_of(family, **OTHERS[family]))


class Wrapper(torch.nn.Module):
    """As peft wraps a model: its forward has other parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inside, self.config, self.dtype, self.device = model, model.config, model.dtype, model.device
        self.get_base_model, self._supports_default_dynamic_cache = lambda: model, model._supports_default_dynamic_cache

    def forward(self, *args: object, **more: object) -> object:
        return self.inside(*args, **more)


def test_a_wrapped_model_counts_as_the_one_inside(qwen2):
    assert answers(TorchBackend(Wrapper(qwen2)), REQUESTS) == answers(TorchBackend(qwen2), REQUESTS)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(("heads", "kept", "time"), [(6, 2, 1), (4, 1, 1), (4, 4, 1), (6, 2, 5)])
@pytest.mark.parametrize("masked", [True, False])
def test_heads_that_share_keys_attend_as_in_transformers(dtype, most, heads, kept, time, masked):
    numbers = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(3, count, length, 8, generator=numbers).to(dtype)
        for count, length in ((heads, time), (kept, 20), (kept, 20))
    )
    mask = torch.arange(20) >= torch.tensor([0, 5, 19])[:, None, None, None] if masked else None
    mask = mask if mask is None else mask.expand(3, 1, time, 20)
    module = SimpleNamespace(num_key_value_groups=heads // kept)
    ours, theirs = (
        attend(module, query, key, value, mask, scaling=0.5, is_causal=False)[0]
        for attend in (attention.grouped_attention, sdpa_attention_forward)
    )
    assert ours.shape == theirs.shape == (3, time, heads, 8)
    assert (ours - theirs).abs().max() <= most


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, "hfpipe_sdpa"),
        ({"attn": "sdpa"}, "sdpa"),
        ({"model_kwargs": {"attn_implementation": "sdpa"}}, "sdpa"),
        ({"attn": "eager"}, "eager"),
    ],
)
def test_only_a_model_that_hfpipe_loads_attends_by_groups_unless_attn_is_given(tiny_llama, options, used):
    backend = load(tiny_llama, **options)
    assert backend.model.config._attn_implementation == used
    assert backend.info.detail["attention"] == used.removeprefix("hfpipe_")
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert TorchBackend(theirs).info.detail["attention"] == theirs.config._attn_implementation == "sdpa"
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


@pytest.mark.parametrize("family", ["falcon", "diffllama"])
def test_families_that_know_sdpa_by_its_name_keep_it(family):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes, num_attention_heads=2, num_key_value_heads=1)
    )
    attention.group_heads(model)
    assert model.config._attn_implementation == "sdpa"


# Failing


NO_ROOM = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


class Forward:
    """What each prefill of a backend was given: its rows, how much of all was padding, and what a token took in the
    cache. Where `fails(ids, mask)`, the model raises an error."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        backend: TorchBackend,
        fails: Callable[[torch.Tensor, torch.Tensor], bool] = lambda ids, mask: False,
        error: Exception = NO_ROOM,
    ) -> None:
        self.prefills: list[int] = []
        self.passes = self.tokens = self.padded = self.per_token = 0
        self.fails, self.error, self.inside = fails, error, backend._forward
        monkeypatch.setattr(backend, "_forward", self)

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, last: int) -> torch.Tensor:
        self.passes += 1
        if ids.shape == mask.shape:
            self.prefills.append(len(ids))
            self.tokens += int(mask.sum())
            self.padded += int((1 - mask).sum())
        if self.fails(ids, mask):
            raise self.error
        logits = self.inside(ids, mask, cache, last)
        kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
        taken = sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
        self.per_token = max(self.per_token, taken / mask.numel())
        return logits


SAMPLINGS = [Sampling(), Sampling(temperature=1.0, seed=4), Sampling(repetition_penalty=1.3), Sampling()]
REQUESTS = [
    TokenRequest(str(i), prompt, 12, frozenset(), SAMPLINGS[i]) for i, prompt in enumerate(random_prompts(6, 20, 3, 11))
]


@pytest.fixture(scope="module")
def qwen2() -> torch.nn.Module:
    return model_of("qwen2")


@pytest.mark.parametrize(
    ("rows", "width", "error", "left"),
    [
        (1, 24, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1),
        (2, 24, MemoryError(), 2),
        (1, 0, NO_ROOM, 1),
        (1, 0, RuntimeError("no"), 4),
        (1, 24, RuntimeError("no"), 4),
    ],
)
def test_what_fails_in_a_batch_goes_on(monkeypatch, qwen2, rows, width, error, left):
    """From the start or in the middle, in a smaller batch or alone: each row goes on from where it was, and draws what
    it would have; what has ended is not begun again."""
    whole = answers(TorchBackend(qwen2, batch_size=4), REQUESTS)
    backend = TorchBackend(qwen2, batch_size=4)
    Forward(monkeypatch, backend, lambda ids, mask: len(ids) > rows and mask.shape[1] > width, error)
    assert answers(backend, REQUESTS) == whole
    assert backend.batch_size == left


@pytest.mark.parametrize("error", [RuntimeError("bad"), IndexError("bad"), AttributeError("bad"), KeyError("bad")])
def test_the_request_to_blame_fails_by_itself(monkeypatch, qwen2, error):
    """In the middle of its answer; the others are answered as if it had not been there."""
    whole = answers(TorchBackend(qwen2, batch_size=4), REQUESTS)
    its_own = next(token for token in whole["3"][2:-2] if all(token not in whole[name] for name in "012"))
    backend = TorchBackend(qwen2, batch_size=4)
    Forward(monkeypatch, backend, lambda ids, mask: its_own in ids[:, -1], error)
    found = answers(backend, REQUESTS)
    failed = found.pop("3")
    assert isinstance(failed, BackendError)
    assert failed.message == f"{type(error).__name__}: {str(error).strip()}"
    assert failed.__cause__ is error
    assert found == {name: whole[name] for name in "012"}


# Out of memory


@pytest.mark.parametrize(
    ("fails", "sizes", "left", "lost"),
    [
        (lambda ids, mask: len(ids) > 3, [8, 4, *[2] * 12], 2, set()),
        (lambda ids, mask: mask.shape[1] > 100, None, 8, {"long"}),
        (lambda ids, mask: True, None, None, {"long", *map(str, range(24))}),
    ],
    ids=["half fits", "one fits nowhere", "nothing fits"],
)
def test_out_of_memory_halves_the_batch(monkeypatch, qwen2, fails, sizes, left, lost):
    """What is left goes on, and later batches are of half of the size; what does not fit alone leaves it whole."""
    requests = shuffled(24)
    requests.insert(7, TokenRequest("long", *random_prompts(120), 3))
    whole = answers(TorchBackend(qwen2, batch_size=8), requests)
    backend = TorchBackend(qwen2, batch_size=8)
    forward = Forward(monkeypatch, backend, fails)
    found = answers(backend, requests)
    assert failures(found) == dict.fromkeys(lost, OutOfMemory)
    assert found == {name: ids for name, ids in whole.items() if name not in lost}
    assert left in (None, backend.batch_size)
    assert sizes in (None, forward.prefills[:14])


# Rows that join


def of_any_length(count: int) -> list[TokenRequest]:
    numbers = random.Random(3)
    prompts = random_prompts(*(numbers.randrange(1, 60) for _ in range(count)))
    samplings = [replace(SAMPLINGS[i % 4], seed=i) for i in range(count)]
    return [
        TokenRequest(str(i), prompt, numbers.randrange(1, 40), frozenset(), samplings[i])
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rows_that_join_draw_as_alone(monkeypatch, qwen2, size):
    """And some are cancelled in the middle. The steps are fewer than those of batches that end."""
    requests = [replace(one, max_tokens=40) for one in of_any_length(30)]
    ends = {one.id: one.max_tokens for one in of_any_length(30)}
    alone = answers(TorchBackend(qwen2, exact=True), requests)
    steps = {}
    for closed in (False, True):
        with monkeypatch.context() as patch:
            joins, found = Joins(patch), {}
            if closed:
                patch.setattr(decoding._Batch, "open", False)
            backend = TorchBackend(qwen2, batch_size=size)
            forward = Forward(patch, backend)
            for event in backend.stream(requests):
                found.setdefault(event.request_id, []).extend(event.token_ids)
                if len(found[event.request_id]) == ends[event.request_id]:
                    backend.cancel(event.request_id)
            assert found == {name: alone[name][: ends[name]] for name in alone}
            assert bool(joins.rows) is not closed
            steps[closed] = forward.passes
    assert steps[False] < 0.9 * steps[True]


@pytest.mark.parametrize(("running", "steps"), [(3, 4), (2, 2), (1, 2)])
def test_rows_join_once_the_empty_places_come_to_a_step(monkeypatch, qwen2, running, steps):
    """Of four places: one that is empty, two, and three. The prefill is no step of them."""
    backend, joins = TorchBackend(qwen2, batch_size=4), Joins(monkeypatch)
    requests = [TokenRequest(str(i), (5 + i, 6), 20, frozenset()) for i in range(running + 1)]
    order = [event.request_id for event in backend.stream([*requests[:-1], None, requests[-1]])]
    assert order[: order.index(str(running))].count("0") == 1 + steps
    assert joins.rows == [(running, 1)]


@pytest.mark.parametrize("tokens", [150, 300, 600])
def test_rows_join_only_where_memory_has_room(monkeypatch, qwen2, tokens):
    """No step holds more than fits, padding included."""
    requests = of_any_length(40)
    whole = answers(TorchBackend(qwen2, exact=True), requests)
    leave_room(monkeypatch, tokens)
    backend, joins, most = TorchBackend(qwen2, batch_size=8), Joins(monkeypatch), []
    Forward(monkeypatch, backend, lambda ids, mask: most.append(mask.numel()))
    assert answers(backend, requests) == whole
    assert tokens // 2 < max(most) <= tokens
    assert joins.rows


@pytest.mark.parametrize("error", [NO_ROOM, RuntimeError("no")])
def test_where_joining_fails_all_go_on(monkeypatch, qwen2, error):
    """From where they were: smaller batches where memory ran out, else each alone."""
    requests = of_any_length(20)
    whole = answers(TorchBackend(qwen2, exact=True), requests)
    backend, joins = TorchBackend(qwen2, batch_size=6), Joins(monkeypatch)
    inside, failed = joins.join, []

    def join(batch: decoding._Batch, other: decoding._Batch) -> None:
        inside(batch, other)
        if len(joins.rows) == 2:
            failed.append(len(batch._mask))
            raise error

    joins.join = join
    assert answers(backend, requests) == whole
    assert len(failed) == 1
    assert backend.batch_size == ((failed[0] + 1) // 2 if error is NO_ROOM else 6)


def test_rows_do_not_join_where_padding_takes_longer_than_the_weights(monkeypatch, qwen2):
    (long, *short) = random_prompts(150, 3, 4, 5)
    for most, joined in ((math.inf, True), (100, False)):
        backend, joins = TorchBackend(qwen2, batch_size=4), Joins(monkeypatch)
        backend.most_padding = most
        requests = [TokenRequest(str(i), prompt, 10) for i, prompt in enumerate([long, *short])]
        assert answers(backend, [requests[0], None, *requests[1:]]) == answers(backend, requests)
        assert bool(joins.rows) == joined


# Batches of similar length


def shuffled(count: int) -> list[TokenRequest]:
    numbers = random.Random(7)
    lengths = [1 + i * 59 // (count - 1) for i in range(count)]
    numbers.shuffle(lengths)
    return [TokenRequest(str(i), prompt, 1 + i % 3) for i, prompt in enumerate(random_prompts(*lengths))]


def test_batches_are_of_similar_length(monkeypatch, qwen2):
    """Of shuffled lengths a batch as they come is padded by almost half of itself; the answers are the same."""
    backend = TorchBackend(qwen2, batch_size=4)
    requests = shuffled(64)
    padding = Forward(monkeypatch, backend)
    found = answers(backend, requests)
    assert padding.prefills == [4] * 16
    assert padding.padded < 0.25 * padding.tokens
    alone = TorchBackend(qwen2, batch_size=1)
    assert found == answers(alone, requests)


def test_answers_of_similar_length_are_together(monkeypatch, qwen2):
    """Steps of few rows are wasted steps."""
    backend, steps = TorchBackend(qwen2, batch_size=4), []
    Forward(monkeypatch, backend, lambda ids, mask: steps.append(len(ids)))
    answers(backend, [TokenRequest(str(i), (5, 6), 2 if i % 2 else 40) for i in range(16)])
    assert steps == [4] * (2 * 40 + 2 * 2)


def test_no_request_waits_for_ever(qwen2):
    """A long one among short ones that go on coming."""
    backend, started = TorchBackend(qwen2, batch_size=2), []
    (long,) = random_prompts(80)

    def requests() -> Iterator[TokenRequest]:
        yield TokenRequest("first", (5,), 2)
        yield TokenRequest("long", long, 2)
        yield from (TokenRequest(str(i), (5 + i, 6), 2) for i in range(100))

    for event in backend.stream(requests()):
        started += [event.request_id] * (event.request_id not in started)
    assert started.index("long") < 4


def test_one_at_a_time_keeps_the_order(monkeypatch, qwen2):
    for options in ({"exact": True, "batch_size": 4}, {"batch_size": 1}):
        backend = TorchBackend(qwen2, **options)
        assert backend.look_ahead == 1
        assert list(answers(backend, shuffled(9))) == [str(i) for i in range(9)]


def test_a_failure_keeps_the_tokens_before_it_and_no_memory(monkeypatch, qwen2):
    """The error lives on in the event: what its traceback points to must not."""
    backend = TorchBackend(qwen2, batch_size=4)
    Forward(monkeypatch, backend, lambda ids, mask: mask.shape[1] > 10, RuntimeError("bad"))
    events = list(backend.stream([REQUESTS[0]]))
    assert [event.finish_reason for event in events] == [None] * 5 + ["error"]
    assert not list(_tensors_held_by(events[-1].error.__cause__))


def _tensors_held_by(error: BaseException | None) -> Iterator[str]:
    assert error is not None
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.endswith(("torch/decoding.py", "backends/batching.py")):
            yield from (name for name, value in trace.tb_frame.f_locals.items() if isinstance(value, torch.Tensor))
        trace = trace.tb_next


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("[GPU] Exceeded max size of memory object allocation: requested 8 bytes"),
    ],
)
def test_out_of_memory_is_told_apart(error):
    assert isinstance(as_backend_error(error), OutOfMemory)
    assert type(as_backend_error(RuntimeError("no\nreason"))) is BackendError
    assert as_backend_error(RuntimeError("no\nreason")).message == "RuntimeError: no"


# Loading


load = partial(running.load, "torch")


@pytest.fixture
def copy(tiny_llama, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("given", "here", "meant"),
    [
        *[(given, {}, "cpu") for given in (None, "-1", "cpu", "CPU", "cpu:0")],
        ("1", {"xpu": 2}, "xpu:1"),
        *[(given, {}, UsageError) for given in ("banana", "", "-2", "1e3", "cuda:x", "GPU")],
        *[(given, {}, BackendError) for given in ("7", "cpu:3", "meta", "cuda:63")],
        *[(given, {"xpu": 2}, BackendError) for given in ("2", "cuda")],
    ],
)
def test_what_a_device_means(accelerators, given, here, meant):
    accelerators(here)
    if isinstance(meant, str):
        assert str(parse_device(given)).removesuffix(":0") == meant
        return
    with pytest.raises(meant) as raised:
        parse_device(given)
    available = ", ".join(["cpu (1)", *(f"{kind} ({count})" for kind, count in here.items())])
    known = f"There is no device {given!r} on this machine; available: {available}."
    assert raised.value.message == (f"Unknown device {given!r}." if meant is UsageError else known)
    assert "-1 or cpu" in raised.value.hint or "--device" in raised.value.hint


@pytest.fixture
def accelerators(monkeypatch) -> Callable[[dict[str, int]], None]:
    """Has torch find accelerators of a kind, so many; or none."""

    def found(here: dict[str, int]) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(here))
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(*here))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: sum(here.values()))

    return found


def test_an_idle_accelerator_is_named(accelerators, tiny_llama):
    accelerators({"mps": 1})
    reporter = Recorder()
    load(tiny_llama, reporter, device="-1")
    assert reporter.notes == []
    load(tiny_llama, reporter)
    assert reporter.notes == ["Running on the CPU while an accelerator is idle: --device 0 uses mps."]


@pytest.mark.parametrize(
    ("own", "native", "dtype"),
    [
        ("float32", True, "float32"),
        ("float16", True, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
    ],
)
def test_the_dtype_on_a_cpu(monkeypatch, tmp_path, own, native, dtype):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    tiny.save_model(tmp_path, AutoConfig.for_model("qwen2", **SMALL), dtype=own)
    for options, expected in (({}, dtype), ({"dtype": "auto"}, own), ({"exact": True}, "float32")):
        backend = load(tmp_path, **options)
        assert backend.info.dtype == expected
        assert {parameter.dtype for parameter in backend.model.parameters()} == {getattr(torch, expected)}


BLAMED = r"transformers cannot load .* with {} in model_kwargs\.\n.*{}.*\nCheck the value, or leave it out\.$"
WRONG = [
    ({"dtype": "int8"}, "Unknown dtype 'int8'; known are auto, fp32"),
    ({"attn": "banana"}, "Unknown attention 'banana'; known are eager, flash.*, flex_attention, sdpa.*\nA kernel of"),
    ({"attn": "paged|sdpa"}, "Unknown attention 'paged|sdpa'"),
    ({"attn": "xformers"}, "no attention of xformers.\nsdpa took its place"),
    ({"model_kwargs": {"attn_implementation": "xformers"}}, "no attention of xformers.\nsdpa took its place"),
    ({"exact": True, "dtype": "bf16"}, "exact computes in float32; the dtype bf16"),
    ({"exact": True, "model_kwargs": {"torch_dtype": "bfloat16"}}, "exact computes in float32; the dtype bfloat16"),
    ({"attn": ""}, "Unknown attention ''; known are"),
    ({"attn": "kernels-community/"}, "Unknown attention 'kernels-community/'; known are .*\nA kernel of"),
    ({"model_kwargs": {"attn_implementation": 3}}, "Unknown attention 3; known are"),
    ({"model_kwargs": {"torch_dtype": "banana"}}, "Unknown dtype 'banana' in model_kwargs; known are auto, float32"),
    ({"model_kwargs": {"dtype": 3}}, "Unknown dtype 3 in model_kwargs"),
    ({"device_map": "banana"}, r"with device_map 'banana'\.\n.* device name .*\nCheck the value"),
    ({"model_kwargs": {"banana": 1, "max_position_embeddings": 64}}, BLAMED.format("banana 1", "unexpected keyword")),
    ({"model_kwargs": {"dtype": {"": "x y"}}}, BLAMED.format("dtype {'': 'x y'}", "no attribute 'x y'")),
    ({"model_kwargs": {"gguf_file": "x.gguf"}}, BLAMED.format("gguf_file 'x.gguf'", "a file named x.gguf")),
    ({"model_kwargs": {"key_mapping": 3}}, BLAMED.format("key_mapping 3", "'int' object")),
    ({"model_kwargs": {"num_hidden_layers": "x"}}, BLAMED.format("num_hidden_layers 'x'", "expected int, got str")),
    (
        {"model_kwargs": {"quantization_config": {"quant_method": "x"}}},
        r"with quantization_config {.*\nUnknown quant",
    ),
    ({"model_kwargs": {"use_safetensors": False}}, "model_kwargs cannot set use_safetensors"),
    ({"model_kwargs": {"trust_remote_code": True}}, "model_kwargs cannot set trust_remote_code"),
    ({"dtype": "fp32", "model_kwargs": {"torch_dtype": "float16"}}, "dtype and dtype in model_kwargs"),
    ({"attn": "sdpa", "model_kwargs": {"attn_implementation": "eager"}}, "attn and attn_implementation"),
    ({"device": "cpu", "model_kwargs": {"device_map": "auto"}}, "device and device_map in model_kwargs"),
    ({"device_map": "cpu", "model_kwargs": {"device_map": "auto"}}, "device_map and device_map in model_kwargs"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_options_that_are_wrong_or_contradict(tiny_llama, options, message):
    with pytest.raises(UsageError, match=message):
        load(tiny_llama, **options)


def test_an_attention_that_a_model_does_not_have(tmp_path):
    tiny.save_model(tmp_path, AutoConfig.for_model("gpt2", vocab_size=200, **GPT))
    said = r"with attn 'flex_attention'\.\n[^.]* does not support [^.]*flex_attention\nLeave attn out: sdpa"
    with pytest.raises(UsageError, match=said):
        load(tmp_path, attn="flex_attention")


def test_a_damaged_file_is_not_blamed_on_the_arguments(tmp_path):
    tiny.save_model(tmp_path, AutoConfig.for_model("gpt2", vocab_size=200, **GPT))
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(HFPipeError) as caught:
        load(tmp_path, model_kwargs={"dtype": "float32"})
    assert "dtype" not in str(caught.value)


ABSENT = {"flash_attention_2": "flash-attn", "flash_attention_3": "kernels", "kernels-community/flash-attn2": "kernels"}


@pytest.mark.parametrize(("attention", "package"), ABSENT.items())
@pytest.mark.parametrize("option", ["attn", "model_kwargs"])
def test_an_attention_that_is_not_installed_says_what_to_install(tiny_llama, option, attention, package):
    if find_spec(package.replace("-", "_")) or find_spec("kernels"):
        pytest.skip(f"{package} is installed")
    given = attention if option == "attn" else {"attn_implementation": attention}
    with pytest.raises(
        BackendError, match=f"(?s)^{attention} is not available: .*installed.*pip install {package}, or"
    ):
        load(tiny_llama, **{option: given})


def test_an_attention_that_transformers_is_given_is_offered_and_tried_when_it_is_loaded(tiny_llama, monkeypatch):
    def mine(*args, **kwargs):
        if fails:
            raise RuntimeError("no such kernel")
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", mine)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", sdpa_mask)
    fails = False
    backend = load(tiny_llama, attn="mine")
    assert backend.info.detail["attention"] == "mine"
    fails = True
    with pytest.raises(BackendError, match=r"mine does not run here, on cpu in float32: RuntimeError: no such kernel"):
        load(tiny_llama, attn="mine")


def test_places_that_are_wrong(tiny_llama, tmp_path):
    with pytest.raises(BackendError, match="no weights in memory"):
        load(tiny_llama, model_kwargs={"device_map": {"": "disk"}, "offload_folder": str(tmp_path)})


EAGER = {"attn_implementation": "eager", "max_position_embeddings": 64, "torch_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("options", "attention", "dtype", "positions"),
    [
        ({}, "sdpa", "float32", 512),
        ({"attn": "eager", "dtype": "fp32"}, "eager", "float32", 512),
        ({"dtype": "bf16"}, "sdpa", "bfloat16", 512),
        ({"dtype": "fp16"}, "sdpa", "float16", 512),
        ({"dtype": "float16"}, "sdpa", "float16", 512),
        ({"model_kwargs": EAGER}, "eager", "bfloat16", 64),
    ],
)
def test_options_reach_the_model(tiny_llama, options, attention, dtype, positions):
    backend = load(tiny_llama, **options)
    assert (backend.info.detail["attention"], backend.info.dtype) == (attention, dtype)
    assert backend.model.config.max_position_embeddings == positions


ON_DISK = {"model.layers": "cpu", "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "cpu"}


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({"device_map": "auto"}, "cpu"),
        ({"model_kwargs": {"device_map": {"": "cpu"}}}, "cpu"),
        ({"model_kwargs": {"device_map": {"model.embed_tokens": "cpu", **ON_DISK}}}, "cpu, disk"),
        ({"model_kwargs": {"device_map": {"model.embed_tokens": "disk", **ON_DISK}}}, "cpu, disk"),
    ],
    ids=str,
)
def test_accelerate_places_the_model(tiny_llama, tmp_path, options, device):
    if device != "cpu":
        options = {"model_kwargs": {**options["model_kwargs"], "offload_folder": str(tmp_path)}}
    backend = load(tiny_llama, **options)
    assert backend.info.device == device
    assert answers(backend, REQUESTS) == answers(load(tiny_llama), REQUESTS)


def test_a_tensor_that_is_missing(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_weights_of_an_encoder(tmp_path):
    """Without a name of its architecture: the missing head tells."""
    from transformers import BertConfig, BertModel

    sizes = {key: value for key, value in SMALL.items() if not key.startswith(("num_key", "head_dim", "tie"))}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"missing.*cls\.predictions") as raised:
        load(tmp_path)
    assert "encoder" in raised.value.hint


def test_pickles(tmp_path):
    model = model_of("qwen2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    source = ModelSource("a/pickle", tmp_path, "transformers", model.config.to_dict(), {}, None)
    with pytest.raises(BackendError, match=r"model\.safetensors"):
        backends.load("torch", source, LoadOptions())
    assert answers(load(tmp_path, allow_pickle=True), REQUESTS) == answers(TorchBackend(model), REQUESTS)


def saved(content: object) -> bytes:
    """What torch.save writes for it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


PICKLES = {
    "garbage": b"garbage" * 100,
    "empty": b"",
    "zeros": bytes(1000),
    "truncated zip": saved({"weight": torch.zeros(100)})[:-100],
    "code": saved(torch.nn.Linear(1, 1)),
    "list": saved([1, 2]),
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_damaged_pickle_is_named(copy, content):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError) as raised:
        load(copy, allow_pickle=True)
    assert raised.value.message.startswith(f"{copy / 'pytorch_model.bin'} is damaged, or holds code")
    assert "\n" not in raised.value.message


OWN = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ({"model_type": "banana"}, UnsupportedModel, "does not know this kind of model \\(banana\\)"),
        ({"model_type": None}, UnsupportedModel, "does not know this kind of model"),
        (OWN, UnsupportedModel, "runs code that"),
        ({"num_hidden_layers": "two"}, ModelError, r"config\.json: num_hidden_layers should be a valid integer"),
        ({"vocab_size": 999}, ModelError, "other shapes"),
    ],
)
def test_a_model_that_transformers_cannot_run(copy, entries, kind, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **entries}))
    with pytest.raises(kind, match=message):
        load(copy)


def test_weights_that_are_damaged(copy):
    source = models.resolve(str(copy))
    weights = copy / "model.safetensors"
    weights.write_bytes(b"\xff" * 7 + weights.read_bytes()[7:])
    with pytest.raises(BackendError, match="Safetensor"):
        backends.load("torch", source, LoadOptions())


# Batches that fit into memory

# The model qwen2: two layers with two heads of 8 keys and values, in float32.
PER_TOKEN = 2 * 2 * 2 * 8 * 4


def leave_room(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Memory for so many tokens."""
    monkeypatch.setattr("hfpipe.backends.torch.loading.available_memory", lambda: int(tokens * PER_TOKEN / SHARE))


@pytest.mark.parametrize(
    ("tokens", "rows"), [(10**6, 4), (4 * 14, 4), (4 * 14 - 1, 3), (28, 2), (14, 1), (5, 1), (0, 1)]
)
def test_a_batch_is_of_rows_that_fit(monkeypatch, qwen2, tokens, rows):
    """Each comes to 14 tokens. One alone runs even where it does not fit."""
    requests = [TokenRequest(str(i), prompt, 5) for i, prompt in enumerate(random_prompts(*[9] * 12))]
    backend = TorchBackend(qwen2, batch_size=4)
    leave_room(monkeypatch, 10**6)
    whole = answers(backend, requests)
    leave_room(monkeypatch, tokens)
    padding = Forward(monkeypatch, backend)
    found = answers(backend, requests)
    assert found == whole
    assert list(found) == [str(i) for i in range(12)]
    assert padding.prefills == [rows] * (12 // rows)
    assert backend.info.detail["window"] == "4"


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20),
    size=st.integers(1, 8),
    budget=st.one_of(st.integers(0, 1000), st.just(math.inf)),
)
def test_any_batch_fits_or_is_the_oldest_alone(sizes, size, budget):
    waiting = [Row(TokenRequest(str(i), (5,) * prompt, answer)) for i, (prompt, answer) in enumerate(sizes)]
    rows = similar(waiting, size, budget)
    assert waiting[0] in rows
    assert len(rows) == len(set(map(id, rows))) <= size
    requests = [row.request for row in rows]
    widest = max(len(one.token_ids) for one in requests) + max(one.max_tokens for one in requests)
    assert rows == waiting[:1] or len(rows) * widest <= budget
    if budget == math.inf:
        assert len(rows) == min(size, len(waiting))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20),
    running=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4),
    budget=st.one_of(st.integers(0, 1000), st.just(math.inf)),
    padding=st.one_of(st.integers(0, 200), st.just(math.inf)),
)
def test_any_that_join_fit_or_are_none(sizes, running, budget, padding):
    """The oldest is among them, or none is."""
    waiting, beside = (
        [Row(TokenRequest(str(i), (5,) * prompt, answer)) for i, (prompt, answer) in enumerate(some)]
        for some in (sizes, running)
    )
    rows = similar(waiting, 4, budget, beside, padding)
    assert not rows or waiting[0] in rows
    assert len(rows) <= 4
    requests = [row.request for row in [*beside, *rows]]
    widest = max(len(one.token_ids) for one in requests) + max(one.max_tokens for one in requests)
    assert not rows or len(requests) * widest <= budget
    assert not rows or _padding([*beside, *rows]) <= _padding(beside) + padding
    if budget == padding == math.inf:
        assert len(rows) == min(4, len(waiting))


def test_the_memory_that_is_free(monkeypatch):
    """On CUDA, what torch keeps is free."""
    monkeypatch.setattr("hfpipe.backends.torch.loading.available_memory", lambda: 1000)
    for name, number in {"mem_get_info": (700, 1000), "memory_reserved": 200, "memory_allocated": 50}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    found = {kind: free_memory(torch.device(kind, 0)) for kind in ("cpu", "mps", "xpu", "cuda")}
    assert found == {"cpu": 1000, "mps": 1000, "xpu": None, "cuda": 850}


# A GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")


@pytest.mark.gpu
@gpu
def test_on_a_gpu_greedy_ids_are_those_of_the_cpu(tiny_llama):
    backend = load(tiny_llama, device="0", exact=True)
    assert backend.info.device == "cuda:0"
    greedy = [TokenRequest(str(i), prompt, 20) for i, prompt in enumerate(random_prompts(6, 20, 3, 11))]
    assert answers(backend, greedy) == answers(load(tiny_llama, exact=True), greedy)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("options", [{"device": "cuda:0"}, {"device_map": "auto"}], ids=str)
def test_on_a_gpu_batches_and_seeds(tiny_llama, options):
    backend = load(tiny_llama, dtype="float32", batch_size=4, **options)
    together = answers(backend, REQUESTS)
    assert together == {request.id: answers(backend, [request])[request.id] for request in REQUESTS}


@pytest.mark.parametrize(("quota", "threads", "used"), [(1, 2, 1), (8, 1, 1)])
def test_no_more_threads_than_a_cpu_quota_keeps_busy(tiny_gpt2, monkeypatch, quota, threads, used):
    """Fewer stay as a program has set them."""
    before = torch.get_num_threads()
    monkeypatch.setattr("hfpipe.backends.torch.loading.processors", lambda: quota)
    torch.set_num_threads(threads)
    try:
        load(tiny_gpt2).close()
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)
