"""What one core can do at best, measured, and the least time that a work can take on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.machine import Cache, caches, memory_bytes
from benchmarks.problems import FORWARD, PACKED, TRAINING, Array, Problem
from rnnfast import _core

SAMPLE = 1e-3  # seconds: short against the time slices of a system that shares the core with others
SECONDS = 0.2  # that samples are taken for each figure, which is the best of them


@dataclass(frozen=True)
class Level:
    """A cache, or the memory behind the caches."""

    name: str
    size: int  # bytes that it holds
    bandwidth: float  # bytes per second that a core reads from it


@dataclass(frozen=True)
class Limits:
    peak: float  # floating point operations per second, two for each multiply-add
    levels: list[Level]  # the smallest first

    def level_of(self, size: int) -> Level:
        """Return the smallest level that holds so many bytes."""
        return next((level for level in self.levels if level.size >= size), self.levels[-1])

    def seconds(self, problem: Problem, work: str) -> float:
        """Return the time that the matrix products of a work take at least.

        The products with x and those of the weight gradients run at the peak. The recurrent product of a step, and in
        backward that of its dh, has to read all of w_hh besides, from the smallest level that holds it. Pointwise work
        and packing count nothing.
        """
        T, B, I, H = problem.shape
        from_x = 2 * T * B * problem.gates * H * I / self.peak
        at_peak = 2 * B * problem.gates * H * H / self.peak
        recurrent = max(at_peak, problem.w_hh_bytes / self.level_of(problem.w_hh_bytes).bandwidth)
        if work in (FORWARD, PACKED):
            return from_x + T * recurrent
        return (3 if work == TRAINING else 2) * from_x + T * (2 * recurrent + at_peak)


def measure(dtype: str) -> Limits:
    """Measure this core, in the widest vectors of the instruction set that rnnfast has chosen."""
    factors = np.array([0.5, 0.5], dtype)
    peak = _best_rate(lambda n: _core.multiply_adds(factors, n), start=1 << 20)
    known = caches()
    levels = [Level(cache.name, cache.size, _bandwidth(_sample_size(cache, known), dtype)) for cache in known]
    memory = Cache("memory", memory_bytes())
    beyond = 2 * known[-1].size  # so that hardly anything of it is left in a cache from the pass before
    if beyond <= memory.size // 4:
        levels.append(Level(*memory, _bandwidth(beyond, dtype)))
    return Limits(2 * peak, levels)


def best_of(a: Limits, b: Limits) -> Limits:
    """Return the higher of each figure: what disturbs a measurement makes it lower."""
    levels = [max(pair, key=lambda level: level.bandwidth) for pair in zip(a.levels, b.levels, strict=True)]
    return Limits(max(a.peak, b.peak), levels)


def _sample_size(cache: Cache, known: list[Cache]) -> int:
    """Return the bytes to read: half of a cache; of a huge one, which many cores share, no more than weights take."""
    smaller = [other.size for other in known if other.size < cache.size]
    return min(cache.size // 2, 8 * max(smaller, default=cache.size))


def _bandwidth(size: int, dtype: str) -> float:
    x = _aligned(size // np.dtype(dtype).itemsize, dtype)
    return x.nbytes * _best_rate(lambda passes: _core.read(x, passes), start=1)


def _aligned(n: int, dtype: str) -> Array:
    """Return ones that start on a page, so that no vector straddles two lines of the cache."""
    page, itemsize = 4096, np.dtype(dtype).itemsize
    memory = np.empty(n * itemsize + page, np.uint8)
    start = -memory.ctypes.data % page
    x: Array = memory[start : start + n * itemsize].view(dtype)
    x[:] = 1
    return x


def _best_rate(call: Callable[[int], object], start: int) -> float:
    """Return n / time of call(n), the best of some samples."""
    n = start
    while (seconds := _seconds(call, n)) < SAMPLE:
        n *= 2
    best, until = n / seconds, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        best = max(best, n / _seconds(call, n))
    return best


def _seconds(call: Callable[[int], object], n: int) -> float:
    started = time.perf_counter()
    call(n)
    return time.perf_counter() - started
