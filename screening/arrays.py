"""Arrays: the tensors of a bundle's files in numpy, and in words, so that others in their place are noticed before they
are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

_NUMPY = {
    **{"F16": "float16", "F32": "float32", "F64": "float64"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BOOL": "bool", "C64": "complex64"},
}
_BFLOAT16 = "BF16"
_TORCH_ONLY = {_BFLOAT16: "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


class Stored(NamedTuple):
    """One tensor of a safetensors file.

    Attributes:
        dtype, shape: what it is, by torch's name.
        values: its numbers; as float32 where numpy has no bfloat16, None where it has nothing like its type.
    """

    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | None

    @property
    def is_plain(self) -> bool:
        """Whether `values` are of its own type."""
        return self.values is not None and str(self.values.dtype) == self.dtype

    def plain(self) -> NDArray[Any]:
        """The values, of its own type.

        Raises:
            TypeError: numpy has none like it.
        """
        if self.values is None or not self.is_plain:
            raise TypeError(f"its graph computes with {self.dtype}, which numpy has not")
        return self.values


def stored(content: bytes) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name.

    Raises:
        Exception: it is none; safetensors has errors of its own.
    """
    found = _deserialize(content)
    return {name: _stored(one["dtype"], tuple(one["shape"]), one["data"]) for name, one in found}


def _stored(kind: str, shape: tuple[int, ...], data: bytes) -> Stored:
    if kind in _NUMPY:
        return Stored(_NUMPY[kind], shape, np.frombuffer(data, _NUMPY[kind]).reshape(shape))
    if kind == _BFLOAT16:  # the upper half of a float32
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return Stored(_TORCH_ONLY[kind], shape, values)
    return Stored(_TORCH_ONLY.get(kind, kind), shape, None)


def described(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """What tensors are, by name: "float32 [2, 3] finite", "int64 [5] 0 to 9".

    Whether numbers are finite, and which integers there are, counts: an altered position or class among them leads out
    of another tensor, and then an image fails, with its batch mates, long after the bundle was opened.
    """
    return {name: _described(tensor) for name, tensor in sorted(tensors.items())}


def _described(tensor: Stored) -> str:
    words, values = f"{tensor.dtype} {list(tensor.shape)}", tensor.values
    if values is None or values.dtype.kind in "cb":
        return words
    if values.dtype.kind == "f":
        return f"{words} finite" if bool(np.isfinite(values).all()) else words
    return words if values.size == 0 else f"{words} {values.min()} to {values.max()}"
