"""What a quantization will do to each weight, by names and shapes alone."""

import pytest

from hfpipe.export.quantization import Layer, Shapes, classify, export_bytes

LLAMA = {
    "model.embed_tokens.weight": (400, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "model.layers.0.self_attn.k_proj.weight": (32, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.norm.weight": (64,),
}
HEAD = {"lm_head.weight": (400, 64)}
GPT2 = {
    "transformer.wte.weight": (400, 48),
    "transformer.wpe.weight": (128, 48),
    "transformer.h.0.attn.c_attn.weight": (48, 144),
    "transformer.h.0.attn.c_attn.bias": (144,),
    "transformer.h.0.attn.c_proj.weight": (48, 48),
    "transformer.h.0.mlp.c_fc.weight": (48, 192),
    "transformer.h.0.mlp.c_proj.weight": (192, 48),
    "transformer.h.0.ln_1.weight": (48,),
}


def widths(shapes):
    return {layer.name.split(".")[-2]: layer.width for layer in shapes.layers}


def of_widths(*widths):
    return Shapes(tuple(Layer(f"layer{number}", width, width) for number, width in enumerate(widths)), 0, 0)


# Classification


def test_llama():
    shapes = classify(LLAMA | HEAD, "llama")
    assert widths(shapes) == {"q_proj": 64, "k_proj": 64, "down_proj": 96}
    assert shapes.tables == 2 * 400 * 64
    assert shapes.rest == 3 * 64
    assert shapes.parameters == 2 * 400 * 64 + 64 * 64 + 32 * 64 + 64 * 96 + 3 * 64


def test_a_tied_head_counts_once():
    assert classify(LLAMA, "llama").tables == 400 * 64


def test_weights_of_gpt2_lie_the_other_way():
    shapes = classify(GPT2, "gpt2")
    assert [layer.width for layer in shapes.layers] == [48, 48, 48, 192]
    assert shapes.tables == (400 + 128) * 48
    assert [layer.width for layer in classify(GPT2, "llama").layers] == [144, 48, 192, 48]


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.embed_positions.weight",
        "transformer.word_embeddings.weight",
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
        "lm_head.weight",
        "output.weight",
    ],
)
def test_tables_of_other_families(name):
    assert classify({name: (400, 64)}, "x") == Shapes((), 400 * 64, 0)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "transformer.h.0.self_attention.query_key_value.weight",
        "transformer.h.0.mlp.dense_4h_to_h.weight",
        "model.decoder.layers.0.fc1.weight",
        "model.layers.0.attention.output.weight",
        "model.layers.0.mlp.gate.weight",
    ],
)
def test_layers_of_other_families(name):
    assert classify({name: (48, 64)}, "x").layers == (Layer(name, 64, 48 * 64),)


def test_each_expert_is_a_layer():
    experts = {f"model.layers.0.mlp.experts.{number}.down_proj.weight": (64, 96) for number in range(4)}
    shapes = classify(experts, "qwen3_moe")
    assert [layer.width for layer in shapes.layers] == [96] * 4
    assert shapes.rest == 0


def test_experts_in_one_tensor():
    (layer,) = classify({"model.layers.0.block_sparse_moe.input_linear.weight": (4, 192, 64)}, "granitemoe").layers
    assert (layer.width, layer.parameters) == (64, 4 * 192 * 64)


# Group sizes


@pytest.mark.parametrize(
    ("widths", "largest"),
    [
        ((576, 1536), 64),
        ((4096, 11008), 128),
        ((64, 96), 32),
        ((128,), 128),
        ((48, 64), None),
        ((), 128),
        ((16,), None),
    ],
)
def test_the_largest_usual_group_size_divides_every_width(widths, largest):
    assert of_widths(*widths).largest_group_size() == largest


def test_the_layers_that_a_group_size_does_not_divide():
    shapes = of_widths(576, 1536, 576)
    assert [layer.name for layer in shapes.undivided(128)] == ["layer0", "layer2"]
    assert shapes.undivided(64) == shapes.undivided(-1) == []
    assert not shapes.undivided(-1)
    assert of_widths(64).undivided(128)


def test_the_share_of_layers_that_stay_in_8_bits():
    shapes = of_widths(48, 64, 96, 192)
    assert shapes.share_of(["layer1", "layer2"]) == 160 / 400
    assert shapes.share_of([], 32) == 48 / 400
    assert shapes.share_of(["layer0", "layer1"], 64) == (48 + 64 + 96) / 400
    assert shapes.share_of([]) == Shapes((), 0, 0).share_of(["x"]) == 0


# Sizes


def test_sizes_by_hand():
    shapes = Shapes((Layer("a", 64, 64 * 100),), tables=1000, rest=10)
    assert export_bytes(shapes, "fp32", -1, 1.0) == 4 * 7410
    assert export_bytes(shapes, "fp16", -1, 1.0) == 2 * 7410
    assert export_bytes(shapes, "int8", -1, 1.0) == 7400 + 20
    # 100 groups of 64: for each 32 bytes of weights, 2 of a scale, half of a zero point.
    assert export_bytes(shapes, "int4", 64, 1.0) == 100 * 34.5 + 1000 + 20
    assert export_bytes(shapes, "int4", 64, 1.0, sym=True) == 100 * 34 + 1000 + 20
    assert export_bytes(shapes, "int4", 64, 0.5) == (100 * 34.5 + 6400) / 2 + 1000 + 20


def test_less_is_smaller():
    shapes = classify(LLAMA | HEAD, "llama")
    sizes = [export_bytes(shapes, name, -1, 1.0) for name in ("fp32", "fp16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    groups = [export_bytes(shapes, "int4", size, 1.0) for size in (32, 64, -1)]
    assert groups == sorted(groups, reverse=True)
    ratios = [export_bytes(shapes, "int4", 32, ratio) for ratio in (0.1, 0.5, 1.0)]
    assert ratios == sorted(ratios, reverse=True)


def test_experts_in_one_tensor_have_their_inputs_in_the_middle():
    shapes = classify({"model.layers.0.mlp.experts.gate_up_proj": (8, 64, 192)}, "gpt_oss")
    (layer,) = shapes.layers
    assert (layer.width, layer.parameters) == (64, 8 * 64 * 192)
