"""Layers that read the same input become one, and every number stays what it was."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from hfpipe.backends.openvino import loading
from hfpipe.backends.openvino.fusion import fuse_projections

WIDTH, KINDS = 8, {"f32": np.float32, "f16": np.float16, "u8": np.uint8, "u4": np.uint8}


def weights(kind, rows, seed):
    """[rows, WIDTH] as nncf stores it: with scales, zero points and, in 4 bits, groups of half a row."""
    rng = np.random.default_rng(seed)
    if kind in ("f32", "f16"):
        value = op.constant(rng.normal(size=(rows, WIDTH)).astype(KINDS[kind]))
        return op.convert(value, "f32")
    groups = (rows, 2, WIDTH // 2) if kind == "u4" else (rows, WIDTH)
    limit = 16 if kind == "u4" else 256
    numbers = op.constant(rng.integers(limit, size=groups).astype(np.uint8), dtype=ov.Type.u8)
    points = op.constant(rng.integers(limit, size=(*groups[:-1], 1)).astype(np.uint8), dtype=ov.Type.u8)
    if kind == "u4":
        numbers, points = packed(numbers), packed(points)
    scale = op.constant(rng.uniform(0.01, 0.1, size=(*groups[:-1], 1)).astype(np.float16))
    value = op.multiply(op.subtract(op.convert(numbers, "f16"), op.convert(points, "f16")), scale)
    if kind == "u4":
        value = op.reshape(value, np.array([rows, WIDTH], dtype=np.int64), special_zero=False)
    return op.convert(value, "f32")


def packed(constant):
    """The same numbers in 4 bits, two in a byte, the first in the lower half."""
    flat = constant.data.reshape(-1)
    tensor = ov.Tensor(ov.Type.u4, ov.Shape(list(constant.get_output_shape(0))))
    tensor.data.reshape(-1)[:] = flat[::2] | (flat[1::2] << 4)
    return ov.op.Constant(tensor)


def layer(source, kind, rows, seed):
    return op.matmul(source, weights(kind, rows, seed), False, True)


def save(folder, *outputs, source):
    ov.save_model(ov.Model(list(outputs), [source]), folder / "openvino_model.xml", compress_to_fp16=False)


def computed(folder):
    """What a model makes of fixed numbers, and how many matrix products it has."""
    model = ov.Core().read_model(folder / "openvino_model.xml")
    compiled = ov.Core().compile_model(model, "CPU", loading.EXACT)
    found = compiled(np.random.default_rng(9).normal(size=(3, WIDTH)).astype(np.float32))
    return list(found.values()), sum(node.get_type_name() == "MatMul" for node in model.get_ops())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_one_input_become_one(tmp_path, kind):
    """Of different numbers of rows, in any format; the result is the same to the last bit."""
    source = op.parameter([-1, WIDTH], ov.Type.f32)
    save(tmp_path, *(op.relu(layer(source, kind, rows, rows)) for rows in (4, 2, 6)), source=source)
    expected, before = computed(tmp_path)
    assert fuse_projections(tmp_path) == 2
    found, after = computed(tmp_path)
    assert (before, after) == (3, 1)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert fuse_projections(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


def test_layers_that_differ_stay_apart(tmp_path):
    """In their input, in their format, in how they read their weights, or by another user of these."""
    source = op.parameter([-1, WIDTH], ov.Type.f32)
    shared, other = weights("u8", WIDTH, 1), op.relu(source)
    pairs = [layer(source, "u8", WIDTH, 2), layer(source, "u4", WIDTH, 3), layer(other, "u8", WIDTH, 4)]
    pairs += [op.matmul(other, shared, False, True), op.matmul(source, weights("u8", WIDTH, 5), False, False)]
    save(tmp_path, *pairs, op.add(shared, shared), source=source)
    before = (tmp_path / "openvino_model.xml").read_bytes()
    assert fuse_projections(tmp_path) == 0
    assert (tmp_path / "openvino_model.xml").read_bytes() == before


def test_an_export_is_fused(tiny_llama_ov):
    """Each of its two layers has four, its head and its positions have one."""
    model = ov.Core().read_model(tiny_llama_ov / "openvino_model.xml")
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert (kinds.count("VariadicSplit"), kinds.count("MatMul")) == (4, 10)
