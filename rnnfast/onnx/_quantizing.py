"""Weights of fewer bits in models: QuantizeLinear and DequantizeLinear, and integers as our kernels have them.

A matrix of our kernels has integers from -127 to 127 and a scale for each row. Models have zero points, too, and -128.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .. import _core
from .._base.arrays import Array, checked
from .._base.formats import LARGEST, to_int8
from ._errors import at
from ._memory import Room
from ._protos import attributes_of, title_of

QUANTIZES = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGERS = "int8", "uint8", "int16", "uint16", "int32"  # what may be dequantised
FLOAT = np.dtype(np.float32)


def centred(q: Array, zero_point: Array) -> Array:
    """Return integers of 32 bits less their zero points."""
    return q.astype(np.int32) - zero_point.astype(np.int32)


def int8_rows(q: Array, scale: Array, zero_point: Array) -> tuple[Array, Array]:
    """Return a matrix as our kernels have it.

    A row whose integers lie between -127 and 127 without the zero point keeps them and its scale. Any other is
    dequantised and quantised anew.

    Parameters
    ----------
    q : array [N,K] of integers
    scale : array [N] of float32, at least 0
    zero_point : array [N]

    Returns
    -------
    q : ndarray [N,K] of int8
    scale : ndarray [N] of float32
    """
    centre, scale = centred(q, zero_point[:, np.newaxis]), scale.copy()
    others = (np.abs(centre).max(axis=1) > LARGEST) | (scale == 0)
    result = centre.astype(np.int8)
    if others.any():
        result[others], scale[others] = to_int8(centre[others] * scale[others, np.newaxis])
    return result, scale


class QuantizingNode:
    """A node QuantizeLinear or DequantizeLinear; attributes as of `MovingNode`.

    It is as the specification has it: with a scale for the tensor or for each index of an axis, of float32; without
    blocks.
    """

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.title = title_of(node)
        with at(self.title):
            self._attributes = attributes_of(node, opset)
            self._forward = node.op_type == "QuantizeLinear"
            if self._attributes.get("block_size"):
                self._fail("block_size", "0", self._attributes["block_size"])
            made = self._attributes.get("output_dtype", 0)
            if made and not self._forward and made != TensorProto.FLOAT:
                self._fail("output_dtype", "float32", helper.tensor_dtype_to_string(made))
            self._names = ("x", "y_scale", "y_zero_point") if self._forward else ("x", "x_scale", "x_zero_point")
            self._inputs = dict(zip(self._names, node.input, strict=False))
            self.reads = list(filter(None, node.input))
            self.outputs = list(node.output)

    def __call__(self, values: Mapping[str, Array], room: Room) -> dict[str, Array]:
        with at(self.title):
            x, scale, zero_point = self.parts(values, room)
            return {self.outputs[0]: (_quantized if self._forward else _dequantized)(x, scale, zero_point)}

    def parts(self, values: Mapping[str, Array], room: Room) -> tuple[Array, Array, Array]:
        """Return x, and its scales and zero points so that they can be broadcast to it; checked."""
        x, scale, *given = (
            _core.asarray(values[name], f"{self.title}: {own}") for own, name in self._inputs.items() if name
        )
        room.take(8 * x.size)
        dtypes = ("float32",) if self._forward else INTEGERS
        if x.dtype not in dtypes:
            self._fail("x", f"dtype {' or '.join(dtypes)}", x.dtype, TypeError)
        zero_point = given[0] if given else np.zeros(scale.shape, self._made() if self._forward else x.dtype)
        if self._forward and zero_point.dtype not in INTEGERS[:4]:
            self._fail(self._names[2], f"dtype {' or '.join(INTEGERS[:4])}", zero_point.dtype, TypeError)
        shape: tuple[int, ...] = ()
        steps = scale.shape  # a scale of the whole tensor has one element
        if scale.size != 1 or scale.ndim > 1:
            axis = self._attributes.get("axis", 1)
            if not -x.ndim <= axis < x.ndim:
                self._fail("axis", f"one of {x.ndim} axes", axis)
            shape = tuple(n if k == axis % x.ndim else 1 for k, n in enumerate(x.shape))
            steps = (x.shape[axis],)
        made = zero_point.dtype if self._forward else x.dtype
        checked(scale, f"{self.title}: {self._names[1]}", steps, FLOAT)
        checked(zero_point, f"{self.title}: {self._names[2]}", steps, made)
        fits = np.isfinite(scale) & (scale > 0)
        if self._forward and not fits.all():
            self._fail("y_scale", "finite positive numbers", scale[~fits][0])
        return x, scale.reshape(shape), zero_point.reshape(shape)

    def _made(self) -> Any:
        """Return the dtype of what is quantised without a zero point."""
        return helper.tensor_dtype_to_np_dtype(self._attributes.get("output_dtype") or TensorProto.UINT8)

    def _fail(self, name: str, expected: str, got: object, error: type[Exception] = ValueError) -> None:
        msg = f"{self.title}: {name}: expected {expected}, got {got}"
        raise error(msg)


def _quantized(x: Array, scale: Array, zero_point: Array) -> Array:
    bounds = np.iinfo(zero_point.dtype)
    q: Array = np.clip(np.rint(x / scale) + zero_point, bounds.min, bounds.max).astype(zero_point.dtype)
    return q


def _dequantized(x: Array, scale: Array, zero_point: Array) -> Array:
    return centred(x, zero_point).astype(FLOAT) * scale
