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
        fires, norm, nothing, layer, rows = found
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
        _replace(model.graph, node, source, pulled, fires, norm, nothing)
        changed += 1
    return changed


def _product(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, Tensor] | None:
    """Of `unit patterns @ rows.T`, which is what a library asks of a layer: whether each pattern fires, its norm, what
    stands for one that does not, the flattened layer, and the rows [M, D]; None if the node is another.
    """
    if node.op_type != "MatMul":
        return None
    unit, transpose = (_producer(value, op) for value, op in zip(node.inputs, ("Where", "Transpose"), strict=True))
    if unit is None or transpose is None or (rows := _constant(transpose.inputs[0])) is None or rows.ndim != 2:
        return None
    fires, divided, nothing = unit.inputs
    division = _producer(divided, "Div")
    if division is None or fires is None or nothing is None:
        return None
    layer, norm = division.inputs
    if layer is None or norm is None or _producer(norm, "Clip") is None:
        return None
    return fires, norm, nothing, layer, rows


def _made_by(layer: ir.Value) -> ir.Node | None:
    """The convolution whose whole output a flattened layer is."""
    value: ir.Value | None = layer
    while (node := _producer(value, *_STEPS)) is not None:
        value = node.inputs[0]
    return _producer(value, "Conv")


def _pulled(convolution: ir.Node, shape: tuple[int, ...], rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows [M, D] pulled back, float64 [N, M], and their products with the bias, [M]; None where that cannot be."""
    weight, bias = (_constant(value) for value in (*convolution.inputs, None)[1:3])
    output = _shape(convolution.outputs[0])
    if weight is None or output is None or math.prod(output) != rows.shape[1]:
        return None  # a part of its output, or a layer after it
    given = {name: attribute.value for name, attribute in convolution.attributes.items()}
    rank = len(shape) - 1
    pads = given.get("pads", [0] * 2 * rank)
    if rank != 2 or given.get("auto_pad", "NOTSET") != "NOTSET" or list(pads[:rank]) != list(pads[rank:]):
        return None
    wide = rows.double().view(len(rows), *output)
    pulled = conv2d_input(
        [len(rows), *shape],
        weight.double(),
        wide,
        stride=tuple(given.get("strides", [1, 1])),
        padding=tuple(pads[:rank]),
        dilation=tuple(given.get("dilations", [1, 1])),
        groups=given.get("group", 1),
    )
    own = torch.zeros(len(rows), dtype=torch.float64)
    if bias is not None:
        own = wide.flatten(2).sum(dim=2) @ bias.double()
    return pulled.flatten(1).T.contiguous(), own


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    source: ir.Value,
    pulled: tuple[Tensor, Tensor],
    fires: ir.Value,
    norm: ir.Value,
    nothing: ir.Value,
) -> None:
    """Put the product with the pulled rows in place of a node: normalised after it, not before."""
    names = (f"{node.name}.{part}" for part in ("pulled_rows", "bias"))
    matrix, own = (_initializer(graph, name, value) for name, value in zip(names, pulled, strict=True))
    flat = ir.node("Flatten", [source], {"axis": 1})
    wide = ir.node("Cast", flat.outputs, {"to": int(ir.DataType.DOUBLE)})
    products = ir.node("MatMul", [wide.outputs[0], matrix])
    whole = ir.node("Add", [products.outputs[0], own])
    narrow = ir.node("Cast", whole.outputs, {"to": int(ir.DataType.FLOAT)})
    divided = ir.node("Div", [narrow.outputs[0], norm])
    unit = ir.node("Where", [fires, divided.outputs[0], nothing])
    graph.insert_before(node, [flat, wide, products, whole, narrow, divided, unit])
    node.outputs[0].replace_all_uses_with(unit.outputs[0])


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
