"""Rounded weights change least what a model computes, and an export has just these."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from hfpipe import quality
from hfpipe.errors import UnsupportedModel, UsageError
from hfpipe.export import rounding
from hfpipe.export.rounding import fit
from hfpipe.quality.score_layers import round_to
from hfpipe.types import Silent
from tests import tiny

ROWS, WIDTH, TOKENS = 12, 64, 300


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def correlated(seed=1):
    """Inputs [tokens, in] that say much of each other, as those of a model."""
    return drawn(TOKENS, WIDTH, seed=seed) @ drawn(WIDTH, WIDTH, seed=2) + 3 * drawn(TOKENS, 1, seed=3)


def sums(wanted, given):
    return given.T @ given, (wanted - given).T @ given


def lost(weight, rounded, wanted, given):
    """How far the rounded weight's products are from those that are wanted."""
    return float((given @ rounded.T - wanted @ weight.T).square().sum())


def whole(parts, shape):
    numbers, zeros, scales = (parts[name].float() for name in ("numbers", "zeros", "scales"))
    return ((numbers - zeros) * scales).reshape(shape)


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_products_are_nearer_than_by_rounding_to_the_nearest(group_size, sym):
    weight, inputs = drawn(ROWS, WIDTH), correlated()
    found, parts = fit(weight, *sums(inputs, inputs), 4, group_size, sym=sym)
    nearest = round_to(weight, 4, group_size, sym=sym)
    assert lost(weight, found, inputs, inputs) < 0.7 * lost(weight, nearest, inputs, inputs)
    assert torch.equal(found, whole(parts, weight.shape))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_makes_up_for_the_errors_of_those_before_it(bits):
    """It is fitted to what it gave on the inputs that it had, by those that it has."""
    weight, wanted = drawn(ROWS, WIDTH), correlated()
    given = wanted + 0.3 * correlated(seed=4)
    alone, _ = fit(weight, *sums(given, given), bits, 32, sym=False)
    found, _ = fit(weight, *sums(wanted, given), bits, 32, sym=False)
    assert lost(weight, found, wanted, given) < 0.8 * lost(weight, alone, wanted, given)


@given(
    bits=st.sampled_from([4, 8]),
    sym=st.booleans(),
    group_size=st.sampled_from([1, 2, 8, -1]),
    weight=st.lists(st.floats(-100, 100, width=16), min_size=16, max_size=16),
    used=st.lists(st.booleans(), min_size=8, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_any_weight_becomes_numbers_that_fit_in_their_bits(bits, sym, group_size, weight, used):
    """Also zeros, groups of one number, and inputs that never occur."""
    tensor = torch.tensor(weight, dtype=torch.float32).reshape(2, 8)
    inputs = drawn(20, 8) * torch.tensor(used).float()
    found, parts = fit(tensor, *sums(inputs, inputs), bits, group_size, sym=sym)
    assert torch.isfinite(found).all()
    assert int(parts["numbers"].max()) < 2**bits
    assert int(parts["zeros"].max()) < 2**bits
    assert torch.equal(found, whole(parts, (2, 8)))
    # No number is further away than the range of its group.
    assert float((found - tensor).abs().max()) <= 2 * float(tensor.abs().max()) + 0.01


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: tiny.FAMILIES[name](tmp_path_factory.mktemp(name), spread=0.1) for name in ("llama", "gpt2")}


def asked(folder, output, in_4_bits, in_8_bits=(), **options):
    is_transposed = "gpt2" in str(folder)
    return {
        "source": str(folder),
        "reference": "it",
        "dtype": "float32",
        "in_4_bits": dict.fromkeys(in_4_bits, is_transposed),
        "in_8_bits": dict.fromkeys(in_8_bits, is_transposed),
        "group_size": 16,
        "sym": False,
        "texts": list(quality.calibration().values())[:2],
        "output": str(output),
        "trust_remote_code": False,
        "allow_pickle": False,
        **options,
    }


LLAMA = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [f"mlp.{name}_proj.weight" for name in ("gate", "up")]
GPT2 = [f"{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
LAYERS = {
    "llama": ([f"model.layers.{n}.{name}" for n in range(2) for name in LLAMA], "model.layers.1.mlp.down_proj.weight"),
    "gpt2": ([f"transformer.h.{n}.{name}" for n in range(2) for name in GPT2], "transformer.h.1.mlp.c_proj.weight"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_that_is_named_is_written(models, tmp_path, monkeypatch, name):
    """As it is multiplied, [out, in], however the model stores it; a layer in 8 bits is one group a row."""
    monkeypatch.setattr(rounding, "_TOKENS", 1024)
    in_4_bits, in_8_bits = LAYERS[name]
    peak = rounding.main(asked(models[name], tmp_path / "out.npz", in_4_bits, [in_8_bits]), Silent())
    assert peak > 10**7
    with np.load(tmp_path / "out.npz") as written:
        modules = {entry.rpartition(":")[0] for entry in written}
        assert modules == {one.removesuffix(".weight") for one in (*in_4_bits, in_8_bits)}
        first, last = in_4_bits[0].removesuffix(".weight"), in_8_bits.removesuffix(".weight")
        rows, width = (64, 64) if name == "llama" else (144, 48)
        assert written[f"{first}:numbers"].shape == (rows, width // 16, 16)
        assert written[f"{first}:scales"].shape == written[f"{first}:zeros"].shape == (rows, width // 16, 1)
        assert written[f"{last}:numbers"].shape == ((64, 1, 96) if name == "llama" else (48, 1, 192))
        assert written[f"{first}:numbers"].max() <= 15 < written[f"{last}:numbers"].max()
        assert {str(one.dtype) for one in written.values()} == {"uint8", "float16"}


def test_text_that_is_missing_is_written_by_the_model(models, tmp_path, monkeypatch):
    """In its chat template and after beginnings of the texts, the same each time; and none where there is enough."""
    seen = []
    batches = rounding._batches
    monkeypatch.setattr(rounding, "_batches", lambda *given: seen.append(batches(*given)) or seen[-1])
    monkeypatch.setattr(rounding, "_TOKENS", 4096)
    for texts in (["The quick brown fox"], ["The quick brown fox"], ["one two three four " * 2000]):
        rounding.main(asked(models["llama"], tmp_path / "out.npz", LAYERS["llama"][0], texts=texts), Silent())
    few, again, many = (torch.cat(one) for one in seen)
    assert few.shape == (16, 256)
    assert torch.equal(few, again)
    chat, text = few[1::2], few[::2]
    assert (chat[:, 0] == tiny.IM_START).all()
    assert not (text[:, 0] == tiny.IM_START).any()
    assert len({tuple(row.tolist()) for row in few}) == 16
    assert many.shape == (16, 256)
    assert len({tuple(row.tolist()) for row in many}) < 16


def test_what_begins_a_text_is_not_put_before_a_template_that_has_it(tmp_path, monkeypatch):
    """Nor what ends one; without a template all rows go on from a text."""
    folder = tiny.llama(tmp_path / "model", spread=0.1)
    made = tiny.tokenizer()
    ends = [(tiny.SPECIAL_TOKENS[number], number) for number in (tiny.END_OF_TEXT, tiny.IM_END)]
    made.post_processor = processors.TemplateProcessing(single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    made.save(str(folder / "tokenizer.json"))
    seen, batches = [], rounding._batches
    monkeypatch.setattr(rounding, "_batches", lambda *given: seen.append(batches(*given)) or seen[-1])
    monkeypatch.setattr(rounding, "_TOKENS", 1024)
    texts = ["The quick brown fox jumps over the lazy dog"]
    rounding.main(asked(folder, tmp_path / "out.npz", LAYERS["llama"][0], texts=texts), Silent())
    rows = torch.cat(seen[0])
    assert (rows[1::2, 0] == tiny.IM_START).all()
    assert (rows[::2, 0] == tiny.END_OF_TEXT).all()
    (folder / "chat_template.jinja").unlink()
    rounding.main(asked(folder, tmp_path / "out.npz", LAYERS["llama"][0], texts=texts), Silent())
    rows = torch.cat(seen[1])
    assert (rows[:, 0] == tiny.END_OF_TEXT).all()
    assert (rows[:, 1] != tiny.IM_END).all()


def test_text_without_a_token_is_an_error(models, tmp_path):
    with pytest.raises(UsageError, match="holds no token"):
        rounding.main(asked(models["llama"], tmp_path / "out.npz", LAYERS["llama"][0], texts=[""]), Silent())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("idle", "not called once each"),
        ("skipped", "no chain"),
        ("outside", "not all in one list of blocks"),
        ("unused", "Not all layers"),
        ("infinite", "cannot round this model"),
        ("its own", "is no layer that hfpipe knows"),
        ("strange", "cannot round this model"),
    ],
)
def test_a_model_that_is_no_chain_of_blocks_is_refused(models, tmp_path, monkeypatch, broken, message):
    load = rounding.load_model

    def changed(*arguments):
        model = load(*arguments)
        blocks = model.model.layers
        if broken == "idle":
            blocks.append(deepcopy(blocks[1]))
        if broken == "skipped":
            double = lambda _, args, named: ((2 * args[0], *args[1:]), named)  # noqa: E731
            blocks[1].register_forward_pre_hook(double, with_kwargs=True)
        if broken == "infinite":
            blocks[1].mlp.register_forward_pre_hook(lambda _, args: (args[0] * torch.inf,))
        if broken == "strange":
            blocks[1].forward = lambda *_, **named: named["no such argument"]
        if broken == "its own":
            blocks[0].mlp.up_proj = torch.nn.Embedding(96, 64)
        if broken == "unused":
            attention = blocks[0].self_attn
            attention.forward = lambda hidden_states, **_: (hidden_states, None)
        return model

    monkeypatch.setattr(rounding, "load_model", changed)
    monkeypatch.setattr(rounding, "_TOKENS", 1024)
    layers = ["lm_head.weight"] if broken == "outside" else LAYERS["llama"][0]
    with pytest.raises(UnsupportedModel, match=message):
        rounding.main(asked(models["llama"], tmp_path / "out.npz", layers), Silent())
    assert not (tmp_path / "out.npz").exists()
