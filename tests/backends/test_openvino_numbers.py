"""The numbers of quantized layers are replaced, in each form in which nncf stores them."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from hfpipe.backends.openvino import loading
from hfpipe.backends.openvino.numbers import replace_numbers
from hfpipe.errors import ConversionError

OUT, GROUPS, SIZE = 3, 3, 4
WIDTH = GROUPS * SIZE
KINDS = {"u4": (ov.Type.u4, 16), "i4": (ov.Type.i4, 16), "u8": (ov.Type.u8, 256)}


def constant(kind, shape):
    """Zeros, as nncf has put other numbers there."""
    return ov.op.Constant(ov.Tensor(kind, ov.Shape(shape)))


def model_of(kind, *, is_transposed=False, name="__module.layers.0.it/aten::linear/MatMul"):
    """One product, whose weights are decompressed as nncf has it; i4 has no zero points."""
    type_, _ = KINDS[kind]
    groups, width = (1, WIDTH) if kind == "u8" else (GROUPS, SIZE)
    shape, points = [OUT, groups, width], [OUT, groups, 1]
    if is_transposed:
        shape, points = [groups, width, OUT], [groups, 1, OUT]
    if kind == "u8":
        shape, points = ([WIDTH, OUT], [1, OUT]) if is_transposed else ([OUT, WIDTH], [OUT, 1])
    value = op.convert(constant(type_, shape), "f16")
    if kind != "i4":
        value = op.subtract(value, op.convert(constant(type_, points), "f16"))
    value = op.multiply(value, op.constant(np.zeros(points, np.float16)))
    if kind != "u8":
        whole = np.array([WIDTH, OUT] if is_transposed else [OUT, WIDTH], dtype=np.int64)
        value = op.reshape(value, whole, special_zero=False)
    source = op.parameter([-1, WIDTH], ov.Type.f32)
    product = op.matmul(source, op.convert(value, "f32"), False, not is_transposed)
    product.set_friendly_name(name)
    return ov.Model([product], [source])


def written(kind, file, layer="layers.0.it", **changed):
    """Numbers as export/rounding.py writes them, and the weight that they are."""
    rng, most = np.random.default_rng(0), KINDS[kind][1]
    groups, width = (1, WIDTH) if kind == "u8" else (GROUPS, SIZE)
    parts = {
        "numbers": rng.integers(most, size=(OUT, groups, width)).astype(np.uint8),
        "zeros": rng.integers(most, size=(OUT, groups, 1)).astype(np.uint8),
        "scales": rng.uniform(0.01, 0.1, size=(OUT, groups, 1)).astype(np.float16),
    }
    if kind == "i4":
        parts["zeros"][:] = 8
    weight = (parts["numbers"].astype(float) - parts["zeros"]) * parts["scales"]
    np.savez(file, **{f"{layer}:{part}": one for part, one in (parts | changed).items()})
    return weight.reshape(OUT, WIDTH)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_multiplies_with_the_numbers_that_it_is_given(tmp_path, kind, is_transposed):
    """An odd count of them, too, also after it was saved."""
    weight = written(kind, tmp_path / "numbers.npz")
    model = model_of(kind, is_transposed=is_transposed)
    replace_numbers(model, tmp_path / "numbers.npz")
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    saved = ov.Core().read_model(tmp_path / "model.xml")
    inputs = np.eye(WIDTH, dtype=np.float32)
    for one in (model, saved):
        found = ov.Core().compile_model(one, "CPU", loading.EXACT)(inputs)[0]
        np.testing.assert_allclose(found, weight.T, rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_missing_or_of_another_form_is_an_error(tmp_path):
    file = tmp_path / "numbers.npz"
    written("u4", file, layer="layers.1.it")
    with pytest.raises(ConversionError, match=r"has no layer layers\.1\.it"):
        replace_numbers(model_of("u4"), file)
    written("u8", file)
    with pytest.raises(ConversionError, match=r"nncf has quantized layers\.0\.it in another form"):
        replace_numbers(model_of("u4"), file)
