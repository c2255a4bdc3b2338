"""Formats of weights with fewer bits: which arrays hold a matrix, and what they stand for.

bfloat16
    The upper half of a float32, rounded to nearest even, as uint16.
int8
    Integers from -127 to 127, and a scale for each row: its largest magnitude / 127.

Vectors, of biases, gains, peepholes and initial states, stay float32.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from .arrays import Array, check_finite, quiet
from .module import Kept, Shape
from .names import PROJECTION, SCALE, WEIGHTS

Format: TypeAlias = Literal["bfloat16", "int8"]

FORMATS: tuple[Format, Format] = ("bfloat16", "int8")
LARGEST = 127  # of the integers: -128 would have no opposite
SMALLEST = 2.0**-100  # rows below it are zeros, as 127 / x of so small an x could overflow
FLOAT = np.dtype(np.float32)


def is_matrix(name: str) -> bool:
    """Return whether a parameter of a layer has a format."""
    return name.startswith((*WEIGHTS, PROJECTION))


@dataclass
class KeptArrays(Kept):
    """What a quantised layer starts from: takes arrays of its format where others take matrices; all are read-only."""

    format: str = FORMATS[0]
    required: ClassVar[Any] = ["C", "A", "E"]

    def take(self, shapes: Iterable[Shape], dtype: np.dtype[Any]) -> dict[str, Array]:
        """Return the arrays of parameters with these names and shapes."""
        taken: dict[str, Array] = {}
        for name, shape in shapes:
            for own, own_shape, own_dtype in arrays_of(name, shape, self.format):
                taken |= super().take([(own, own_shape)], own_dtype or dtype)
            if is_matrix(name):
                _check(taken, name)
            else:
                check_finite(taken[name], name)
        for array in taken.values():
            array.flags.writeable = False
        return taken


def arrays_of(
    name: str, shape: tuple[int, ...], form: str
) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any] | None]]:
    """Yield names, shapes and dtypes of the arrays for a parameter; without a dtype it is the parameter itself."""
    if not is_matrix(name):
        yield name, shape, None
    elif form == "bfloat16":
        yield name, shape, np.dtype(np.uint16)
    else:
        yield name, shape, np.dtype(np.int8)
        yield name + SCALE, shape[:1], FLOAT


def encoded(parameters: Mapping[str, Array], form: str) -> dict[str, Array]:
    """Return the arrays for the parameters of a float32 layer."""
    arrays: dict[str, Array] = {}
    for name, parameter in parameters.items():
        check_finite(parameter, name)
        if not is_matrix(name):
            arrays[name] = parameter.copy()
        elif form == "bfloat16":
            arrays[name] = _to_bfloat16(parameter)
            check_finite(_from_bfloat16(arrays[name]), name)  # those near the end of the range become infinite
        else:
            arrays[name], arrays[name + SCALE] = to_int8(parameter)
    return arrays


def decoded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the float32 parameters that these arrays stand for."""
    return {name: _decoded(arrays, name) for name in arrays if not name.endswith(SCALE)}


def operands(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return the parameters as the kernels take them: integers and their scales as a pair."""
    return {
        name: (array, arrays[name + SCALE]) if name + SCALE in arrays else array
        for name, array in arrays.items()
        if not name.endswith(SCALE)
    }


def _decoded(arrays: Mapping[str, Array], name: str) -> Array:
    array = arrays[name]
    if array.dtype == np.uint16:
        return _from_bfloat16(array)
    scales = arrays.get(name + SCALE)
    return array.copy() if scales is None else array * scales[:, np.newaxis]


def _check(arrays: Mapping[str, Array], name: str) -> None:
    """Refuse what no finite matrix is encoded as."""
    array, scales = arrays[name], arrays.get(name + SCALE)
    if scales is None:
        check_finite(_from_bfloat16(array), name)
        return
    check_finite(scales, name + SCALE)
    if (scales > np.finfo(FLOAT).max / LARGEST).any():
        msg = f"{name + SCALE}: expected numbers whose {LARGEST}-fold is finite, got {scales.max()}"
        raise ValueError(msg)
    if (scales < 0).any():
        msg = f"{name + SCALE}: expected numbers of at least 0, got {scales.min()}"
        raise ValueError(msg)
    if array.min(initial=0) < -LARGEST:
        msg = f"{name}: expected integers from -{LARGEST} to {LARGEST}, got {array.min()}"
        raise ValueError(msg)
    wrong = array[scales == 0].any(axis=1).nonzero()[0]
    if len(wrong):
        row = (scales == 0).nonzero()[0][wrong[0]]
        msg = f"{name + SCALE}: expected more than 0 where a row has others than zeros, got 0 of row {row}"
        raise ValueError(msg)


def _to_bfloat16(w: Array) -> Array:
    bits = w.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # of finite numbers this does not overflow


def _from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@quiet
def to_int8(w: Array) -> tuple[Array, Array]:
    """Return the integers of a matrix, and the scales of its rows."""
    largest = np.abs(w).max(axis=1)
    scales = np.where(largest < SMALLEST, 0, largest / np.float32(LARGEST)).astype(FLOAT)
    q = np.rint(w / np.where(scales == 0, np.inf, scales).astype(FLOAT)[:, np.newaxis])
    return q.astype(np.int8), scales
