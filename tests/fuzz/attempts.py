"""One call, what is to come of it, and whether it does."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from problems import Array, Results

Rng = np.random.Generator

# Wide enough for sums that cancel; a wrong result is off by far more
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-11}


@dataclass
class Attempt:
    """One call, and what is to come of it."""

    name: str
    call: Callable[[], Any]
    slots: dict[str, Any] = field(default_factory=dict)  # the arguments, to see whether they change
    written: frozenset[str] = frozenset()  # the slots that the call writes
    bad: str = ""  # what is wrong with the call
    in_place: bool = False  # what is written may be what is read
    free: bool = False  # NaN and the like: it may end either way
    acts: bool = False  # an argument changes the others' shapes: it is right, or refused
    expected: Callable[[], Results] | None = None  # what the oracle gives, if the call is legal
    watched: list[Array] = field(default_factory=list)  # what else a bad call must not change


def flatten(a: Any) -> None:
    """Give an array one axis, where its memory allows that."""
    if type(a) is np.ndarray:
        with contextlib.suppress(AttributeError):  # not contiguous
            a.shape = (a.size,)


@contextlib.contextmanager
def restored(arrays: list[Any]) -> Iterator[None]:
    """Give arrays back the shapes that they had before."""
    shapes = [(a, a.shape) for a in arrays if type(a) is np.ndarray]
    try:
        yield
    finally:
        for a, shape in shapes:
            if a.shape != shape:
                a.shape = shape


def choose(rng: Rng, values: Any) -> Any:
    return values[rng.integers(len(values))]


def memory_of(values: Any) -> dict[str, bytes]:
    """Return the bytes of every array among the values."""
    return {name: a.tobytes() for name, a in values if isinstance(a, np.ndarray)}


def check(attempt: Attempt, compare: bool) -> str:
    """Make the call; return how it ended, or raise AssertionError."""
    watched = [*attempt.slots.items(), *((f"watched {k}", a) for k, a in enumerate(attempt.watched))]
    before = memory_of(watched)
    try:
        with restored([a for _, a in watched]):
            result = attempt.call()
    except (TypeError, ValueError):
        if attempt.bad or attempt.free or attempt.acts:
            assert memory_of(watched) == before, "a refused call has changed something"
            return "refused"
        raise
    assert not attempt.bad, "a bad call was accepted"
    read = {name: a for name, a in attempt.slots.items() if name not in attempt.written}
    assert memory_of(read.items()) == {name: before[name] for name in before if name in read}, "an input has changed"
    if attempt.free or attempt.expected is None or not compare:
        return "accepted"
    expected = attempt.expected()
    assert result.keys() == expected.keys(), f"expected {list(expected)}, got {list(result)}"
    for name, a in result.items():
        if attempt.acts and a.size == expected[name].size:  # some inputs have a legal meaning in their new shape too
            a = a.reshape(expected[name].shape)
        assert a.shape == expected[name].shape, f"{name}: expected shape {expected[name].shape}, got {a.shape}"
        if a.size:
            error = np.abs(a - expected[name]).max() / max(1, np.abs(expected[name]).max())
            assert error <= TOLERANCE[a.dtype], f"{name}: relative error {error}"
    return "right"
