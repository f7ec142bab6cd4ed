"""What a quantization will do to each weight, by names and shapes alone."""

import pytest

from hfpipe.export import ExportOptions
from hfpipe.export.quantization import Layer, Shapes, classify, decide, export_bytes

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


def of_widths(*widths):
    return Shapes(tuple(Layer(f"layer{number}", width, width) for number, width in enumerate(widths)), 0, 0)


# Classification


def test_llama():
    """Its head is counted once where it is tied."""
    shapes = classify(LLAMA | HEAD, "llama")
    assert {layer.name.split(".")[-2]: layer.width for layer in shapes.layers} == {
        "q_proj": 64,
        "k_proj": 64,
        "down_proj": 96,
    }
    assert shapes.tables == 2 * classify(LLAMA, "llama").tables == 2 * 400 * 64
    assert shapes.rest == 3 * 64
    assert shapes.parameters == 2 * 400 * 64 + 64 * 64 + 32 * 64 + 64 * 96 + 3 * 64


def test_weights_of_gpt2_lie_the_other_way():
    shapes = classify(GPT2, "gpt2")
    assert [layer.width for layer in shapes.layers] == [48, 48, 48, 192]
    assert shapes.tables == (400 + 128) * 48
    assert [layer.width for layer in classify(GPT2, "llama").layers] == [144, 48, 192, 48]


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        ("model.decoder.embed_positions.weight", True),
        ("transformer.word_embeddings.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("embed_out.weight", True),
        ("lm_head.weight", True),
        ("output.weight", True),
        ("model.layers.0.self_attn.qkv_proj.weight", False),
        ("model.layers.0.mlp.gate_up_proj.weight", False),
        ("transformer.h.0.self_attention.query_key_value.weight", False),
        ("transformer.h.0.mlp.dense_4h_to_h.weight", False),
        ("model.decoder.layers.0.fc1.weight", False),
        ("model.layers.0.attention.output.weight", False),
        ("model.layers.0.mlp.gate.weight", False),
        ("model.layers.0.mlp.experts.3.down_proj.weight", False),
    ],
)
def test_tables_and_layers_of_other_families(name, is_table):
    expected = Shapes((), 48 * 64, 0) if is_table else Shapes((Layer(name, 64, 48 * 64),), 0, 0)
    assert classify({name: (48, 64)}, "x") == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [("block_sparse_moe.input_linear.weight", (4, 192, 64)), ("mlp.experts.gate_up_proj", (8, 64, 192))],
)
def test_experts_in_one_tensor(name, shape):
    """The latter have their inputs in the middle."""
    (layer,) = classify({f"model.layers.0.{name}": shape}, "x").layers
    assert (layer.width, layer.parameters) == (64, shape[0] * 64 * 192)


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
    assert of_widths(64).undivided(128)


# Sizes


def in_int4(shapes, group_size, ratio=1.0, *, sym=False, in_8_bits=()):
    return export_bytes(shapes, "int4", ExportOptions("int4", group_size, sym=sym, ratio=ratio), in_8_bits)


def test_sizes_by_hand():
    shapes = Shapes((Layer("a", 64, 64 * 100),), tables=64 * 20, rest=10)
    assert export_bytes(shapes, "fp32") == 4 * 7690
    assert export_bytes(shapes, "fp16") == 2 * 7690
    # A row of 8 bits has a scale of 16 bits and a zero point; a table is as wide as the layers.
    tables = 20 * 67 + 20
    assert export_bytes(shapes, "int8") == 100 * 67 + tables
    # 100 groups of 64: for each 32 bytes of weights, 2 of a scale, half of a zero point.
    assert in_int4(shapes, 64) == 100 * 34.5 + tables
    assert in_int4(shapes, 64, sym=True) == 100 * 34 + tables
    assert in_int4(shapes, 64, 0.5) == (100 * 34.5 + 100 * 67) / 2 + tables
    # Floats have no zero points; a scale of mxfp4, whose groups are of 32, has 8 bits.
    for weight_format in ("nf4", "cb4"):
        assert export_bytes(shapes, weight_format, ExportOptions(weight_format, 64)) == 100 * 34 + tables
    mxfp4 = decide(ExportOptions("mxfp4"), shapes, None, (), force=False)
    assert export_bytes(shapes, "mxfp4", mxfp4) == 200 * 17 + tables


def test_layers_that_stay_in_8_bits_are_counted_so():
    """Those that are named, and those that the group size does not divide; each once."""
    shapes = of_widths(48, 64, 96, 192)
    assert in_int4(shapes, -1, in_8_bits=("layer0", "layer1", "layer2", "layer3")) == 400 + 4 * 3
    assert in_int4(shapes, 64, in_8_bits=("layer0", "layer1")) == round((1 - 192 / 400) * 412 + 192 * (0.5 + 2.5 / 64))
    assert in_int4(shapes, 32) == round((1 - 352 / 400) * 412 + 352 * (0.5 + 2.5 / 32))
