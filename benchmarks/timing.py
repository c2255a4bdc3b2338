"""Calls that take turns, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Sequence

Call = Callable[[], object]

TURNS, SAMPLE = 15, 4e-3  # how often each is measured, and for how many seconds


def seconds(call: Call, n: int) -> float:
    """Return how long a call takes, of n."""
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def in_turns(calls: Sequence[Call]) -> list[float]:
    """Return the median time of each call in seconds."""
    return [statistics.median(times) for times in rounds_of(calls, TURNS, SAMPLE)]


def rounds_of(calls: Sequence[Call], turns: int, sample: float) -> list[list[float]]:
    """Return the time of each call in each round; a call is repeated until it takes so many seconds."""
    counts = [_count(call, sample) for call in calls]
    rounds = [[seconds(call, n) for call, n in zip(calls, counts, strict=True)] for _ in range(turns)]
    return [list(times) for times in zip(*rounds, strict=True)]


def _count(call: Call, sample: float) -> int:
    """Return how many calls take so many seconds, once warm."""
    if min(seconds(call, 1) for _ in range(2)) >= sample:
        return 1
    return max(1, int(sample / min(seconds(call, 5) for _ in range(3))))
