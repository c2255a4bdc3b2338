"""The random weights of reservoirs, and the numbers that they are drawn by."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._base.arrays import Array, check_finite
from .._base.scalars import Number, not_negative, number

Each: TypeAlias = Number | Sequence[Number]  # one for all reservoirs, or one for each


def each(value: Any, name: str, K: int | None, check: Callable[[Any, str], Any]) -> Any:
    """Return a number, or a tuple of K of them."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return check(value, name)
    checked = tuple(check(v, name) for v in value)
    if not checked or (K is not None and len(checked) != K):
        expected = "at least one number" if K is None else f"a number for each reservoir, {K}"
        msg = f"{name}: expected {expected}, got {len(checked)}"
        raise ValueError(msg)
    return checked


def values(given: Any) -> tuple[Any, ...]:
    """Return what `each` has returned as a tuple."""
    return given if isinstance(given, tuple) else (given,)


def rate(value: object, name: str) -> float:
    """Return a number that is more than 0 and at most 1."""
    result = number(value, name)
    if not 0 < result <= 1:
        msg = f"{name}: expected more than 0 and at most 1, got {result}"
        raise ValueError(msg)
    return result


def scale(value: object, name: str) -> float:
    """Return a finite number of at least 0."""
    result = not_negative(value, name)
    check_finite(np.array(result), name)
    return result


def share(value: object, name: str) -> float:
    """Return a number from 0 to 1."""
    result = number(value, name)
    if not 0 <= result <= 1:
        msg = f"{name}: expected 0 to 1, got {result}"
        raise ValueError(msg)
    return result


def recurrent(rng: np.random.Generator, H: int, density: float, radius: float) -> Array:
    """Draw W [H,H] from the normal distribution, with a spectral radius."""
    w = rng.standard_normal((H, H)) * (rng.random((H, H)) < density)
    if radius == 0:
        return np.zeros_like(w)
    if not has_circle(w):
        msg = f"spectral_radius: expected 0 for connections without a circle, got {radius}; a larger density makes one"
        raise ValueError(msg)
    w *= radius / np.abs(np.linalg.eigvals(w)).max()
    return w


def has_circle(w: Array) -> bool:
    """Return whether units are connected in a circle; else all powers from the H-th on are 0, and all eigenvalues."""
    units = np.ones(len(w), bool)
    while True:  # leave out the units that no other one reaches
        reached = units & (w[:, units] != 0).any(axis=1)
        if (reached == units).all():
            return bool(units.any())
        units = reached


def signs(rng: np.random.Generator, shape: tuple[int, ...], density: float, scaling: float) -> Array:
    """Draw weights of +-1 times the scaling."""
    drawn: Array = scaling * rng.choice([-1.0, 1.0], shape) * (rng.random(shape) < density)
    return drawn
