"""The numbers of quantized layers, replaced: what export/rounding.py has found, in the place of what nncf has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from hfpipe.backends.openvino.fusion import weight_nodes
from hfpipe.errors import ConversionError

# Of two numbers in a byte the first is the lower half.
_IN_4_BITS = (ov.Type.u4, ov.Type.i4)
_HINT = "With --scale-estimation nncf quantizes all of it."


def replace_numbers(model: Any, file: Path) -> None:
    """Give the layers of an OpenVINO model that are named in `file` the numbers, zero points and scales from there.

    They are of the precision, and in the groups, that nncf has given them.
    Raises ConversionError where a layer is not there, or in another form.
    """
    with np.load(file) as found:
        missing = {name.rpartition(":")[0] for name in found}
        for node in model.get_ordered_ops():
            # As optimum names it: "__module.", the module, "/aten::linear/MatMul".
            layer = node.get_friendly_name().removeprefix("__module.").partition("/")[0]
            if node.get_type_name() == "MatMul" and layer in missing:
                missing.remove(layer)
                is_transposed = not node.get_attributes()["transpose_b"]
                parts = dict(_parts(node))
                try:
                    if not {"numbers", "scales"} <= set(parts):
                        raise ValueError("It is not quantized.")
                    for part, constant in parts.items():
                        values = found[f"{layer}:{part}"]
                        _replace(constant, values.transpose(1, 2, 0) if is_transposed else values)
                except ValueError as error:
                    raise ConversionError(f"nncf has quantized {layer} in another form.", hint=_HINT) from error
    if missing:
        raise ConversionError(f"The exported model has no layer {min(missing)}, which was rounded for it.", hint=_HINT)


def _parts(product: Any) -> Iterator[tuple[str, Any]]:
    """The constants that the weights of a matrix product are made of."""
    parts = {"Multiply": "scales", "Subtract": "zeros"}
    named = {}
    for node in weight_nodes(product):
        if part := parts.get(node.get_type_name()):
            constant = node.input_value(1).get_node()
            while constant.get_type_name() == "Convert":
                constant = constant.input_value(0).get_node()
            named[constant.get_name()] = part
        # The shape that Reshape takes is no weight.
        elif node.get_type_name() == "Constant" and node.get_element_type() != ov.Type.i64:
            yield named.get(node.get_name(), "numbers"), node


def _replace(constant: Any, values: NDArray[Any]) -> None:
    kind, shape = constant.get_element_type(), list(constant.get_output_shape(0))
    flat = values.reshape(shape).reshape(-1)
    if kind == ov.Type.i4:
        # From 0 to 15, with 8 for 0.
        flat = flat ^ 8
    if kind in _IN_4_BITS:
        if flat.max(initial=0) > 15:
            raise ValueError("Numbers of 8 bits.")
        flat = np.append(flat, np.zeros(len(flat) % 2, flat.dtype))
        flat = flat[::2] | flat[1::2] << 4
    tensor = ov.Tensor(kind, ov.Shape(shape))
    data = tensor.data.reshape(-1)
    data[:] = flat.view(data.dtype) if kind in _IN_4_BITS else flat
    made = ov.op.Constant(tensor)
    made.set_friendly_name(constant.get_friendly_name())
    for user in constant.output(0).get_target_inputs():
        user.replace_source_output(made.output(0))
