"""The error of sigmoid and tanh in ULP: `python tests/ulp.py` looks at every float32 and samples float64.

The error is |computed - exact| in units of the distance between the two neighbouring floats that hold the exact
result between them. Numbers below the smallest normal one count as zero: a computed one stands for any of them,
so that its error is the exact result's distance from the nearest of them.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from rnnfast import _core

Array = NDArray[Any]

LIMIT = 2.0  # ULP


def sigmoid64(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), good to a few 2^-53, which is exact beside float32."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


class Activation(NamedTuple):
    """One row of the table of activations."""

    computed: Callable[[Array], Array]
    float64: Callable[[Array], Array]
    exact: Callable[[Any], Any]  # with mpmath's precision
    range: tuple[float, float]


ACTIVATIONS = {
    "sigmoid": Activation(_core.sigmoid, sigmoid64, lambda x: 1 / (1 + mpmath.exp(-x)), (0, 1)),
    "tanh": Activation(_core.tanh, np.tanh, mpmath.tanh, (-1, 1)),
}


def errors32(computed: Array, exact: Array) -> Array:
    """Return the errors in ULP of float32 results, given the exact ones in float64; NaN for NaN is none."""
    tiny = float(np.finfo(np.float32).tiny)
    size = np.abs(exact)
    _, exponent = np.frexp(np.maximum(size, tiny))  # size = m 2^exponent, 1/2 <= m < 1
    ulp = np.ldexp(1.0, exponent - 24)
    distance = np.where(np.abs(computed) < tiny, np.maximum(size - tiny, 0), np.abs(computed - exact))
    nan = np.isnan(exact)
    return np.where(nan & np.isnan(computed), 0, np.where(nan | np.isnan(computed), np.inf, distance / ulp))


def error64(computed: float, exact: Any) -> float:
    """Return the error in ULP of a float64 result, given the exact one from mpmath."""
    tiny = mpmath.mpf(float(np.finfo(np.float64).tiny))
    size = abs(exact)
    _, exponent = mpmath.frexp(max(size, tiny))
    distance = max(size - tiny, 0) if abs(computed) < tiny else abs(mpmath.mpf(computed) - exact)
    return float(distance / mpmath.ldexp(1, exponent - 53))


def worst32(name: str, x: Array) -> tuple[float, float]:
    """Return the worst error in ULP among float32 arguments, and the argument."""
    computed, float64 = ACTIVATIONS[name][:2]
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact = float64(x.astype(np.float64))
    errors = errors32(computed(x), exact)
    k = int(errors.argmax())
    return float(errors[k]), float(x[k])


def worst64(name: str, x: Array) -> tuple[float, float]:
    """Return the worst error in ULP among float64 arguments, and the argument."""
    activation = ACTIVATIONS[name]
    with mpmath.workdps(40):
        pairs = zip(activation.computed(x).tolist(), x.tolist(), strict=True)
        return max((error64(y, activation.exact(mpmath.mpf(a))), a) for y, a in pairs)


def sample64(n: int, seed: int = 0) -> Array:
    """Return about n float64 arguments: of every exponent, and densely where the functions bend."""
    rng = np.random.default_rng(seed)
    mantissas = rng.uniform(1, 2, n // 4) * rng.choice([-1, 1], n // 4)
    every_exponent = np.ldexp(mantissas, np.linspace(-1022, 1023, n // 4).astype(int))
    return np.concatenate(
        [every_exponent, rng.uniform(-720, 40, n // 4), rng.uniform(-20, 20, n // 4), rng.uniform(-1, 1, n // 4)]
    )


def every_float32(chunk: int = 2**22) -> Iterator[Array]:
    """Yield all 2^32 floats, chunk by chunk."""
    for start in range(0, 2**32, chunk):
        yield np.arange(start, start + chunk, dtype=np.uint32).view(np.float32)


def main() -> int:
    """Print the worst errors; return 1 if one is over the limit."""
    print(f"isa {_core.config()['isa']}")
    over = False
    for name in ACTIVATIONS:
        for dtype, (error, x) in (
            ("float32", max(worst32(name, chunk) for chunk in every_float32())),
            ("float64", worst64(name, sample64(100_000))),
        ):
            print(f"{name:8} {dtype}  {error:.4f} ULP at {x!r} ({x.hex()})", flush=True)
            over |= not error <= LIMIT
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
