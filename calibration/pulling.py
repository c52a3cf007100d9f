"""Pulling: rows that a graph multiplies a layer by, put in terms of what the layer was made of, where that is less.

A convolution a = W x + b has many more numbers than its input where it is the first: LeNet's 11,520 of 784. The
products of stored rows with it are r . a = (W' r) . x + r . b, with W' r the row pulled back through the convolution:
the same numbers, from a fifteenth of the memory. Memory is what a product with one image waits for.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

WORTH = 2.0  # how many times less memory it must take: what is pulled back is in the bundle twice
_STEPS = ("Identity", "Reshape", "Slice")  # between a layer and its flattened numbers, row by row
DOUBLE_BYTES = 8


def pull_back(model: ir.Model) -> int:
    """Pull the rows of a model's libraries back through convolutions, where that takes less memory.

    The new products are taken in float64: what is pulled back is larger than what comes of it, and float32 would lose
    some of the digits that ranks go by.

    Args:
        model: changed in place; its nodes that are not needed any more stay.

    Returns:
        How many products were changed.
    """
    changed = 0
    for node in list(model.graph):
        found = _product(node)
        if found is None:
            continue
        layer, rows = found
        convolution = _made_by(layer)
        if convolution is None:
            continue
        source = convolution.inputs[0]
        shape = _shape(source)
        if (
            source is None
            or shape is None
            or WORTH * math.prod(shape) * DOUBLE_BYTES > rows.shape[1] * rows.element_size()
        ):
            continue
        pulled = _pulled(convolution, shape, rows)
        if pulled is None:
            continue
        _replace(model.graph, node, source, pulled)
        changed += 1
    return changed


def _product(node: ir.Node) -> tuple[ir.Value, Tensor] | None:
    """Of `layer @ rows.T`, which is what a library asks of a layer: the flattened layer, and the rows [M, D]; None if
    the node is another.
    """
    if node.op_type != "MatMul":
        return None
    layer, transpose = node.inputs[0], _producer(node.inputs[1], "Transpose")
    if layer is None or transpose is None or (rows := _constant(transpose.inputs[0])) is None or rows.ndim != 2:
        return None
    return layer, rows


def _made_by(layer: ir.Value) -> ir.Node | None:
    """The convolution whose whole output a flattened layer is."""
    value: ir.Value | None = layer
    while (node := _producer(value, *_STEPS)) is not None:
        value = node.inputs[0]
    return _producer(value, "Conv")


def _pulled(convolution: ir.Node, shape: tuple[int, ...], rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows [M, D] pulled back, float64 [M, N], and their products with the bias, [M, 1]; None where that cannot be."""
    weight, bias = (_constant(value) for value in (*convolution.inputs, None)[1:3])
    output = _shape(convolution.outputs[0])
    if weight is None or output is None or math.prod(output) != rows.shape[1]:
        return None  # a part of its output, or a layer after it
    given = {name: attribute.value for name, attribute in convolution.attributes.items()}
    rank = len(shape) - 1
    if rank != 2 or given.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    wide = rows.double().view(len(rows), *output)
    top, left, bottom, right = given.get("pads", [0] * 2 * rank)
    channels, height, width = shape
    pulled = conv2d_input(  # of the padded input, whose padding is zero
        [len(rows), channels, top + height + bottom, left + width + right],
        weight.double(),
        wide,
        stride=tuple(given.get("strides", [1, 1])),
        dilation=tuple(given.get("dilations", [1, 1])),
        groups=given.get("group", 1),
    )
    own = torch.zeros(len(rows), dtype=torch.float64)
    if bias is not None:
        own = wide.flatten(2).sum(dim=2) @ bias.double()
    return pulled[:, :, top : top + height, left : left + width].flatten(1), own.unsqueeze(1)


def _replace(graph: ir.Graph, node: ir.Node, source: ir.Value, pulled: tuple[Tensor, Tensor]) -> None:
    """Put the product with the pulled rows in place of a node."""
    names = (f"{node.name}.{part}" for part in ("pulled_rows", "bias"))
    matrix, own = (_initializer(graph, name, value) for name, value in zip(names, pulled, strict=True))
    flat = ir.node("Flatten", [source], {"axis": 1})
    wide = ir.node("Cast", flat.outputs, {"to": int(ir.DataType.DOUBLE)})
    # the rows on the left: for few images ONNX Runtime takes half the time so, in float64
    column = ir.node("Transpose", wide.outputs, {"perm": [1, 0]})
    products = ir.node("MatMul", [matrix, column.outputs[0]])
    whole = ir.node("Add", [products.outputs[0], own])
    narrow = ir.node("Cast", whole.outputs, {"to": int(ir.DataType.FLOAT)})
    back = ir.node("Transpose", narrow.outputs, {"perm": [1, 0]})
    graph.insert_before(node, [flat, wide, column, products, whole, narrow, back])
    node.outputs[0].replace_all_uses_with(back.outputs[0])


def _producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes a value, if it is of one of the kinds."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in kinds else None


def _constant(value: ir.Value | None) -> Tensor | None:
    if value is None or value.const_value is None:
        return None
    return torch.from_numpy(np.array(value.const_value.numpy()))


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Of each row of a value, where it is known."""
    sides = tuple((None if value is None else value.shape) or ())[1:]
    known = tuple(side for side in sides if isinstance(side, int))
    return known if known and len(known) == len(sides) else None


def _initializer(graph: ir.Graph, name: str, value: Tensor) -> ir.Value:
    made = ir.Value(name=name, const_value=ir.tensor(value.numpy(), name=name))
    graph.register_initializer(made)
    return made
