"""Arrays: what calls take as one, to type checkers and at run time, and how NumPy computes beside the kernels."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core

Array: TypeAlias = NDArray[Any]

# What calls take, to type checkers: what the border reads, and neither str nor tuples


class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class _HasArray(Protocol):
    def __array__(self) -> Any: ...


class _HasArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> Mapping[str, Any]: ...


class _HasDLPack(Protocol):
    def __dlpack__(self) -> Any: ...


class _List(Protocol):
    """A list of numbers, tuples of numbers, arrays, or such lists. A tuple itself is a state or a `PackedSequence`."""

    def __getitem__(self, i: int, /) -> "float | tuple[float, ...] | ArrayLike": ...
    def append(self, value: Any, /) -> None: ...


ArrayLike: TypeAlias = _Buffer | _HasArray | _HasArrayInterface | _HasDLPack | _List
Integers: TypeAlias = ArrayLike | Sequence[int]  # one for each sequence

# The border for the arrays that Python code reads; what the core is given, it checks itself, by the same code
checked, checked_target = _core.checked, _core.checked_target

# A decorator for what NumPy computes: results too small become zero, infinity and NaN pass through.
quiet = np.errstate(all="ignore")


def checked_floats(a: object, name: str) -> Array:
    """Return `a` as an ndarray of float32 or float64."""
    array = _core.asarray(a, name)
    if array.dtype not in (np.float32, np.float64):
        msg = f"{name}: expected dtype float32 or float64, got {array.dtype}"
        raise TypeError(msg)
    return array


def check_finite(a: Array, name: str) -> None:
    """Refuse infinity and NaN."""
    others = a[~np.isfinite(a)]
    if others.size:
        msg = f"{name}: expected finite numbers, got {others[0]}"
        raise ValueError(msg)


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """Return float32 or float64, by whatever name."""
    try:
        for known in (np.dtype(np.float32), np.dtype(np.float64)):
            if dtype is not None and np.dtype(dtype) == known:  # None would be NumPy's default
                return known
    except (TypeError, ValueError):  # not a dtype at all
        pass
    msg = f"dtype: expected float32 or float64, got {dtype!r}"
    raise TypeError(msg)


def sum_of_products(a: Array, b: Array) -> Array:
    """Return ``a^T b``, the sum over the rows of both, by the kernel of the gradient of `Linear`."""
    place = np.empty((a.shape[1], b.shape[1]), a.dtype)  # of the shape of the sum, and not read
    _, (products, _) = _core.linear_backward(b, place, None, a, need_dx=False)
    return products
