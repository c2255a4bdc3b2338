"""The border for scalars: flags, integers, numbers and words, Python's or NumPy's.

An array without axes, as `numpy.load` returns for a scalar, counts as the scalar that it holds.
"""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

import numpy as np

# What these functions take, for type checkers
Flag: TypeAlias = bool | np.bool
Integer: TypeAlias = SupportsIndex
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
if TYPE_CHECKING:
    from numpy.random import BitGenerator, Generator, SeedSequence

    RNG: TypeAlias = (
        int | np.integer[Any] | Sequence[int] | np.ndarray[Any, Any] | SeedSequence | BitGenerator | Generator
    )
else:
    RNG = Any  # numpy.random takes 12 ms to import

LARGEST: dict[type[np.floating[Any]], float] = {kind: float(np.finfo(kind).max) for kind in (np.float32, np.float64)}


def flag(value: object, name: str) -> bool:
    """Return a bool."""
    if isinstance(value, bool):
        return value
    scalar = held(value)
    if not isinstance(scalar, np.bool):
        msg = f"{name}: expected a bool, got {type(value).__name__}"
        raise TypeError(msg)
    return bool(scalar)


def integer(value: Any, name: str) -> int:
    """Return an integer of any type as an int."""
    msg = f"{name}: expected an int, got {type(value).__name__}"
    if isinstance(value, bool):
        raise TypeError(msg)
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(msg) from error


def int64(value: Any, name: str) -> int:
    """Return an integer that C++ can hold."""
    n = integer(value, name)
    if not -(2**63) <= n < 2**63:
        msg = f"{name}: expected an int of 64 bits, got {shown(n)}"
        raise ValueError(msg)
    return n


def size(value: Any, name: str) -> int:
    """Return a positive integer."""
    n = integer(value, name)
    if n < 1:
        msg = f"{name}: expected at least 1, got {shown(n)}"
        raise ValueError(msg)
    return n


def count(value: Any, name: str) -> int:
    """Return an integer that is not negative."""
    n = integer(value, name)
    if n < 0:
        msg = f"{name}: expected at least 0, got {shown(n)}"
        raise ValueError(msg)
    return n


def head_count(num_heads: Any, hidden_size: Any) -> int:
    """Return a number of heads into which the units can be divided."""
    heads, H = size(num_heads, "num_heads"), size(hidden_size, "hidden_size")
    if H % heads:
        msg = f"num_heads: expected a number that divides hidden_size, {shown(H)}, got {shown(heads)}"
        raise ValueError(msg)
    return heads


def addressable(total: int, sizes: str, what: str = "parameters") -> None:
    """Refuse sizes that make more numbers than 64-bit addresses reach, before anything is allocated."""
    if total > np.iinfo(np.intp).max // 8:
        msg = f"{sizes}: expected sizes that fit the address space, got {shown(total)} {what}"
        raise ValueError(msg)


def number(value: object, name: str, dtype: type[np.floating[Any]] = np.float64) -> float:
    """Return a real number as a float; finite ones are finite in `dtype` too."""
    scalar = held(value)
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Real):
        msg = f"{name}: expected a number, got {type(value).__name__}"
        raise TypeError(msg)
    try:
        result = float(scalar)
    except OverflowError:
        result = math.inf
    if abs(result) > LARGEST[dtype] and abs(scalar) != math.inf:
        msg = f"{name}: expected a number within the range of {dtype.__name__}, got {shown(scalar)}"
        raise ValueError(msg)
    return result


def positive(value: object, name: str) -> float:
    """Return a number above 0 as a float."""
    result = number(value, name)
    if not result > 0:
        msg = f"{name}: expected more than 0, got {result}"
        raise ValueError(msg)
    return result


def not_negative(value: object, name: str) -> float:
    """Return a number of at least 0 as a float."""
    result = number(value, name)
    if not result >= 0:
        msg = f"{name}: expected at least 0, got {result}"
        raise ValueError(msg)
    return result


def choice(value: object, name: str, options: tuple[str, ...]) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in options:
        msg = f"{name}: expected {' or '.join(map(repr, options))}, got {value!r}"
        raise ValueError(msg)
    return str(value)


def shown(value: Any) -> str:
    """Return a number in words for a message; Python does not print integers of more than 4300 digits."""
    return f"one of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 1 << 256 else str(value)


def held(value: Any) -> Any:
    """Return the scalar that an array without axes holds, anything else as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def generator(rng: Any, seed: Any = None) -> "Generator":
    """Return the generator that an argument `rng` is or starts; `seed` is its older name (SPEC 7)."""
    if rng is not None and seed is not None:
        msg = "rng, seed: expected one of them, as seed is another name of rng, got both"
        raise TypeError(msg)
    try:
        return np.random.default_rng(held(seed if rng is None else rng))
    except (TypeError, ValueError) as error:
        msg = f"rng: {error}"
        raise type(error)(msg) from None


def bound(clip_dh: object) -> float:
    """Return the bound on what a step passes back, 0 where there is none."""
    if clip_dh is None:
        return 0.0
    limit = number(clip_dh, "clip_dh")
    if not limit > 0:
        msg = f"clip_dh: expected a positive bound, got {limit}"
        raise ValueError(msg)
    return limit
