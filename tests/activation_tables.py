"""Writes csrc/kernels/activation_tables.h, the tables of sigmoid and tanh: `python tests/activation_tables.py`.

The formulas stand in csrc/kernels/vec_math.h; tests/ulp.py measures what comes of both.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

HEADER = Path(__file__).parent.parent / "csrc" / "kernels" / "activation_tables.h"
TOP = """\
// Tables of sigmoid and tanh, for as many entries as a processor looks up at once; vec_math.h has the formulas.
// Written by tests/activation_tables.py.
#pragma once

// clang-format off

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real, int entries>
struct SigmoidTable;
template <class Real, int entries>
struct TanhTable;
"""
BOTTOM = """
}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
"""
C_NAMES = {np.float32: "float", np.float64: "double"}

Array = NDArray[Any]
Wide = np.longdouble  # 11 bits more than float64 has


class Sigmoid(NamedTuple):
    """e^x = 2^(n / entries) e^r, and a polynomial of this degree for e^-r.

    kappa multiplies both terms of the denominator: the number from low to high whose table rounds best. Between these
    bounds the rest of the formula rounds less than elsewhere in [1, 2), as a search over all floats has shown.
    """

    real: Any
    entries: int
    degree: int
    low: float
    high: float


class Tanh(NamedTuple):
    """tanh(n step + r) from tanh(n step), and a polynomial of so many terms for r coth r.

    The step is the number from low to high whose table rounds best; tanh(last step) rounds to 1. If that is behind the
    table, the numbers in it are so close to tanh that they need no slopes beside them.
    """

    real: Any
    entries: int
    terms: int
    last: int
    low: float
    high: float


SIGMOIDS = (
    Sigmoid(np.float32, 8, 4, 1.76, 1.80),
    Sigmoid(np.float32, 16, 3, 1.92, 1.96),
    Sigmoid(np.float64, 8, 7, 1.774, 1.788),
)
TANHS = (
    Tanh(np.float32, 8, 4, 7, 9.011 / 7, 1.36),
    Tanh(np.float32, 32, 2, 19, 0.5, 0.5),
    Tanh(np.float64, 8, 12, 8, 2.558, 2.559),
    Tanh(np.float64, 16, 8, 15, 19.0616 / 15, 19.0616 / 15 * 1.004),
)


def candidates(low: float, high: float, real: Any) -> Array:
    """Return numbers of `real` from low to high: all float32, and a sample of float64."""
    if low == high:
        return np.array([low], Wide)
    if real is np.float32:
        first, last = np.array([low, high], np.float32).view(np.uint32)
        return np.arange(first, last, dtype=np.uint32).view(np.float32).astype(Wide)
    return np.random.default_rng(1).uniform(low, high, 2_000_000).astype(Wide)


def exact_candidates(low: float, high: float) -> Array:
    """Return numbers h of float64 from low to high, for which tanh(4 h) to tanh(7 h) round well."""
    ulp = Wide(2) ** -53
    below_one = np.arange(*(np.ceil((1 - np.tanh(4 * Wide(h))) / ulp) for h in (high, low)), dtype=Wide)
    h = np.arctanh(1 - below_one * ulp) / 4  # of all tanh(4 h) that are numbers of float64
    for j in (5, 6, 7):
        entry = np.tanh(j * h)
        h = h[np.abs(entry.astype(np.float64) - entry) < 0.015 * ulp]
    width = 0.015 * ulp / (4 * (1 - np.tanh(4 * h) ** 2))
    near: Array = h[:, None] + width[:, None] * np.random.default_rng(1).uniform(-1, 1, (len(h), 50_000))
    return near.ravel().astype(np.float64).astype(Wide)


def ulp(x: Array, real: Any) -> Array:
    """Return the distance of the two neighbours of x among numbers of `real`."""
    size: Array = np.ldexp(Wide(1), np.frexp(x)[1] - (24 if real is np.float32 else 53))
    return size


def best(numbers: Array, keys: Iterable[Any], entry: Callable[[Any, Array], tuple[Array, Array]], real: Any) -> float:
    """Return the number whose entries round best; of each key there are the exact entry and a result that counts.

    A number with an entry that rounds worse than all of some other's is not looked at further.
    """
    keys = list(keys)

    def worst(numbers: Array, limit: float) -> tuple[Array, Array]:
        worst = np.zeros(len(numbers), Wide)
        for key in keys:
            exact, result = entry(key, numbers)
            worst = np.maximum(worst, np.abs(exact.astype(real) - exact) / ulp(result, real))
            numbers, worst = numbers[worst <= limit], worst[worst <= limit]
        return numbers, worst

    _, of_some = worst(numbers[:: max(1, len(numbers) // 10_000)], np.inf)
    numbers, of_all = worst(numbers, of_some.min())
    return float(numbers[of_all.argmin()])


def interpolated(f: Callable[[Any], Any], powers: list[int], nodes: list[Any]) -> list[Any]:
    """Return the coefficients of the polynomial with these powers that meets f at the nodes."""
    return list(mp.lu_solve(mp.matrix([[x**k for k in powers] for x in nodes]), mp.matrix([f(x) for x in nodes])))


def chebyshev(n: int, high: Any) -> list[Any]:
    """Return the roots of the Chebyshev polynomial of degree n on [-high, high], from the largest on."""
    return [high * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]


def sigmoid_table(s: Sigmoid) -> dict[str, Any]:
    """Return the constants of a sigmoid."""
    step = mp.log(2) / s.entries
    fit = interpolated(lambda r: mp.exp(-r), [*range(s.degree + 1)], chebyshev(s.degree + 1, step / 2))
    powers = [mp.mpf(2) ** (mp.mpf(j) / s.entries) / fit[0] for j in range(s.entries)]
    numbers = candidates(s.low, s.high, s.real)
    kappa = best(numbers, map(wide, powers), lambda p, k: (k * p, k * p), s.real)
    high = s.real(step)
    return {
        "steps": 1 / step,
        "step_high": high,
        "step_low": step - mp.mpf(float(high)),
        "c": [kappa * c / fit[0] for c in fit],
        "scales": [kappa * p for p in powers],
    }


@cache
def tanh_step(t: Tanh) -> float:
    """Return the distance of the entries of a tanh."""
    numbers = exact_candidates(t.low, t.high) if lacks_slopes(t) else candidates(t.low, t.high, t.real)
    return best(numbers, range(1, t.last), lambda j, h: (np.tanh(j * h), np.tanh((j - 0.5) * h)), t.real)


def lacks_slopes(t: Tanh) -> bool:
    """Return whether a table has all entries but that of 1."""
    return t.last == t.entries


def tanh_table(t: Tanh) -> dict[str, Any]:
    """Return the constants of a tanh."""
    step = tanh_step(t)
    # Of an even polynomial of r. It is best at the ends of the interval, near which the results have their largest
    # mantissas: the nodes are those of an interval that is 3% longer.
    nodes = [r**2 for r in chebyshev(2 * t.terms + 1, mp.mpf(step) * 1.03 / 2)[: t.terms]]
    fit = interpolated(lambda u: mp.sqrt(u) * mp.coth(mp.sqrt(u)) - 1, [*range(1, t.terms + 1)], nodes)
    q = [t.real(c) for c in reversed(fit)]
    constants = {"step": step, "steps": 1 / mp.mpf(step), "high": t.last * mp.mpf(step), "q": q}
    if lacks_slopes(t):  # the last entry is looked up as far as it can be
        constants["high"] = (t.last - mp.mpf("0.500001")) * mp.mpf(step)
        return {**constants, "values": [mp.tanh(n * mp.mpf(step)) for n in range(t.last)]}
    pairs = [nearest(t, step, q, n) for n in range(t.last)] + [(1.0, last_slope(t, step))]
    pairs += [(1.0, 0.0)] * (t.entries - len(pairs))
    return {**constants, "values": [value for value, _ in pairs], "slopes": [slope for _, slope in pairs]}


def last_slope(t: Tanh, step: float) -> Any:
    """Return 1 - tanh^2 of the last entry."""
    return mp.sech(t.last * mp.mpf(step)) ** 2


def nearest(t: Tanh, step: float, q: list[Any], n: int) -> tuple[Any, Any]:
    """Return tanh(n step) and 1 - tanh^2, rounded so that the whole formula is best where tanh is still far from 1."""
    value, slope = (t.real(f(n * mp.mpf(step))) for f in (mp.tanh, lambda x: mp.sech(x) ** 2))
    if not 0 < n * step < 2:
        return value, slope
    r = np.linspace(-step / 2, step / 2, 2001).astype(Wide)
    exact = np.tanh(n * Wide(step) + r)
    polynomial = np.polyval([*map(Wide, q), Wide(1)], r**2)

    def error(pair: tuple[Any, Any]) -> Any:
        v, s = map(Wide, pair)
        return np.max(np.abs(v + s * r / (polynomial + v * r) - exact) / ulp(exact, t.real))

    return min(((v, s) for v in around(value) for s in around(slope)), key=error)


def around(x: Any) -> list[Any]:
    """Return x and the three numbers on each side of it."""
    below, above = [x], [x]
    for _ in range(3):
        below.append(np.nextafter(below[-1], type(x)(-np.inf)))
        above.append(np.nextafter(above[-1], type(x)(np.inf)))
    return [*reversed(below), *above[1:]]


def wide(x: Any) -> Any:
    """Return a number of mpmath as one of NumPy."""
    high = float(x)
    return Wide(high) + Wide(float(x - mp.mpf(high)))


def written(kind: str, real: Any, entries: int, constants: dict[str, Any]) -> str:
    """Return a struct of C++ with the constants."""
    name = C_NAMES[real]

    def number(x: Any) -> str:
        mantissa, exponent = float(real(x)).hex().split("p")
        mantissa = mantissa.rstrip("0") if "." in mantissa else mantissa
        return f"{mantissa.removesuffix('.')}p{exponent}{'f' if real is np.float32 else ''}"

    lines = [f"\ntemplate <>\nstruct {kind}Table<{name}, {entries}> {{"]
    for constant, value in constants.items():
        if isinstance(value, list):
            lines.append(f"  static constexpr {name} {constant}[] = {{{', '.join(map(number, value))}}};")
        else:
            lines.append(f"  static constexpr {name} {constant} = {number(value)};")
    return "\n".join([*lines, "};\n"])


def header() -> str:
    """Return the text of the header."""
    with mp.workdps(50):
        tables = [written("Sigmoid", s.real, s.entries, sigmoid_table(s)) for s in SIGMOIDS]
        tables += [written("Tanh", t.real, t.entries, tanh_table(t)) for t in TANHS]
    return TOP + "".join(tables) + BOTTOM


if __name__ == "__main__":
    HEADER.write_text(header(), encoding="utf-8")
