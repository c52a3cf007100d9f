"""Roofline: the least time that a graph's arithmetic can take on this machine, beside what it takes.

Source: S. Williams et al., "Roofline" (2009). Peaks are measured on the spot, with as many threads as the graph has.
Counted are convolutions and matrix products, with the bytes that they read and write; each takes at least its
operations by the peak, or its bytes by the bandwidth of memory. What a processor's cache still holds comes faster than
that, and everything else of a graph is not counted: small operations cost what starting them costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, shape_inference

from askance.screening.bundle import ALONE
from askance.screening.graph import Model
from benchmarks.sizes import Sizes
from benchmarks.timing import timed

PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "Conv")
SIDE = 1024  # of the matrices that the peak is measured with
MEMORY = 256 * 2**20  # bytes that are copied: more than caches hold
REPEATS = 9
WIDTHS: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2}  # bytes of a number


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at best, as measured.

    Attributes:
        operations: floating-point operations a second, by bytes of a number: {4: ..., 8: ...}.
        bandwidth: bytes a second that are read and written in a copy of what no cache holds.
    """

    operations: dict[int, float]
    bandwidth: float

    @classmethod
    def measured(cls) -> Peaks:
        """The best of some tries, with torch's threads."""

        def product(dtype: torch.dtype) -> float:
            a, b = (torch.rand(SIDE, SIDE, dtype=dtype) for _ in range(2))
            return 2 * SIDE**3 / min(timed(lambda: a @ b) for _ in range(REPEATS))

        source = torch.ones(MEMORY // 4)
        target = torch.empty_like(source)
        copied = min(timed(lambda: target.copy_(source)) for _ in range(REPEATS))
        return cls({4: product(torch.float32), 8: product(torch.float64)}, 2 * MEMORY / copied)


@dataclass(frozen=True)
class Product:
    """A convolution or a matrix product.

    Attributes:
        operations: floating-point ones, a multiplication and an addition being two.
        moved: bytes of what it reads and writes.
        width: bytes of a number.
    """

    operations: int
    moved: int
    width: int

    def least_seconds(self, peaks: Peaks) -> float:
        """What it takes at least."""
        return max(self.operations / peaks.operations.get(self.width, math.inf), self.moved / peaks.bandwidth)


@dataclass(frozen=True)
class Roofline:
    """A graph at one batch size.

    Attributes:
        network: its name.
        views: whether the graph makes them.
        part: "screened", or "bare" for the classifier alone.
        batch: images in a call.
        nodes: operations of the graph of whatever kind.
        products: convolutions and matrix products among them.
        million_operations: floating-point ones of those.
        megabytes: 10^6 bytes that they read and write.
        least_ms: what they take at least.
    """

    network: str
    views: bool
    part: str
    batch: int
    nodes: int
    products: int
    million_operations: float
    megabytes: float
    least_ms: float


def measure(
    network: str, sizes: Sizes, graphs: Mapping[str, Model], peaks: Peaks, *, with_views: bool
) -> Iterator[Roofline]:
    """Count what `screening.exported` graphs do at each batch size; the classifier's own, which is the same with views
    and without, once.
    """
    for name, model in graphs.items():
        if name == ALONE and with_views:
            continue
        for batch in sizes.calls:
            graph = _with_shapes(model, batch)
            products = list(products_of(graph))
            yield Roofline(
                network=network,
                views=with_views,
                part="bare" if name == ALONE else "screened",
                batch=batch,
                nodes=len(graph.node),
                products=len(products),
                million_operations=sum(one.operations for one in products) / 1e6,
                megabytes=sum(one.moved for one in products) / 1e6,
                least_ms=1000 * sum(one.least_seconds(peaks) for one in products),
            )


def products_of(graph: GraphProto) -> Iterator[Product]:
    """The convolutions and matrix products of a graph whose shapes are known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {one.name: [size.dim_value for size in one.type.tensor_type.shape.dim] for one in values}
    types = {one.name: one.type.tensor_type.elem_type for one in values}
    for one in graph.initializer:
        shapes[one.name], types[one.name] = list(one.dims), one.data_type
    for node in graph.node:
        if node.op_type in PRODUCTS:
            width = WIDTHS[types[node.output[0]]]
            numbers = sum(math.prod(shapes[name]) for name in (*node.input, *node.output) if name)
            yield Product(2 * _multiplications(node, shapes), width * numbers, width)


def _multiplications(node: NodeProto, shapes: dict[str, list[int]]) -> int:
    outputs = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return outputs * math.prod(shapes[node.input[1]][1:])
    transposed = any(helper.get_attribute_value(one) for one in node.attribute if one.name == "transA")
    return outputs * shapes[node.input[0]][-2 if transposed else -1]


def _with_shapes(model: Model, batch: int) -> GraphProto:
    """The graph of so many images: the exporter leaves shapes such as "4*batch", or none."""
    proto = onnx.load_model_from_string(model.content)
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                factors = size.dim_param.split("*")
                size.dim_value = math.prod(batch if one == "batch" else int(one) for one in factors)
    return shape_inference.infer_shapes(proto).graph
