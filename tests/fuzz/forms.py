"""Arguments: the same values in other forms, and bad ones."""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from problems import Array

from fuzz.attempts import Attempt, Rng, flatten, restored


class Interface:
    """An array by `__array_interface__` only."""

    def __init__(self, a: Array) -> None:
        self.kept, self.__array_interface__ = a, a.__array_interface__


class Exchange:
    """An array by DLPack only."""

    def __init__(self, a: Array) -> None:
        self.__dlpack__, self.__dlpack_device__ = a.__dlpack__, a.__dlpack_device__


class Subclass(np.ndarray[Any, Any]):
    """An ndarray by inheritance."""


def unaligned(a: Array) -> Array:
    memory = np.empty(a.nbytes + 1, np.uint8)[1:]
    b = memory.view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


def stepped(a: Array) -> Array:
    """Return a view of every second element of every axis of something larger."""
    b = np.empty([2 * n for n in a.shape], a.dtype)[tuple(slice(None, None, 2) for _ in a.shape)]
    b[...] = a
    return b


def far(a: Array) -> Array:
    """Return the array with enormous strides, where none is ever taken."""
    strides = tuple(2**62 if n == 1 or not a.size else s for n, s in zip(a.shape, a.strides, strict=True))
    return np.lib.stride_tricks.as_strided(a, strides=strides)


def backwards(a: Array) -> Array:
    every = tuple(slice(None, None, -1) for _ in a.shape)
    return a[every].copy()[every]


def read_only(a: Array) -> Array:
    b = a.copy()
    b.flags.writeable = False
    return b


LAYOUTS: tuple[Callable[[Array], Any], ...] = (
    np.asfortranarray,
    unaligned,
    stepped,
    far,
    backwards,
    lambda a: a.view(Subclass),
)


class Acting:
    """An array that gives others another shape while it is read."""

    def __init__(self, a: Array, others: list[Array]) -> None:
        self.a, self.others = a, others

    def __array__(self, *_: Any, **__: Any) -> Array:
        for other in self.others:
            flatten(other)
        return self.a


@contextlib.contextmanager
def disguised(rng: Rng, values: Any) -> Iterator[None]:
    """Now and then give arrays another shape for a while, of which a backward may see nothing."""
    arrays = [a for a in values if isinstance(a, np.ndarray)] if rng.random() < 0.3 else []
    with restored(arrays):
        for a in arrays:
            flatten(a)
        yield


READABLE: tuple[Callable[[Any], Any], ...] = (*LAYOUTS, Interface, Exchange, memoryview, read_only)


def fail(*_: Any, **__: Any) -> Any:
    msg = "no array today"
    raise RuntimeError(msg)


BROKEN: tuple[Any, ...] = (
    None,
    [[0.0], [0.0, 1.0]],
    ("1.0",),
    "x",
    b"x",
    3,
    2.5,
    object(),
    np.float32(1),
    {},
    np.ndarray,
    SimpleNamespace(__array_interface__={}),
    SimpleNamespace(__array_interface__=3),
    SimpleNamespace(__array_interface__={"version": 3, "shape": (-1,), "typestr": "<f4", "data": (0, True)}),
    SimpleNamespace(__array_interface__={"version": 3, "shape": (2**62,) * 3, "typestr": "<f4", "data": (0, True)}),
    SimpleNamespace(__array_interface__={"version": 3, "shape": (1,), "typestr": "<z9", "data": (0, True)}),
    SimpleNamespace(__array__=3),
    SimpleNamespace(__array__=fail),
    SimpleNamespace(__array__=lambda *_, **__: None),
    SimpleNamespace(__array__=lambda *_, **__: np.array([None, 1])),
    SimpleNamespace(__dlpack__=3),
    SimpleNamespace(__dlpack__=fail, __dlpack_device__=lambda: (1, 0)),
    SimpleNamespace(__dlpack__=lambda **_: None, __dlpack_device__=lambda: (2, 0)),
    SimpleNamespace(__dlpack__=lambda **_: None, __dlpack_device__=fail),
)

OTHER_DTYPES = ("f2", "i4", "i8", "u1", "?", "c8", "O", "S3", "U2", "M8[s]", ">f4", ">f8", "f4", "f8", "g", "f4,i4")


def other_dtype(rng: Rng, a: Array) -> Array:
    dtypes = [np.dtype(d) for d in OTHER_DTYPES if np.dtype(d) != a.dtype]
    if a.dtype == bool:  # which may also be numbers that are 0 and 1
        dtypes = [dtype for dtype in dtypes if dtype.kind not in "iuf"]
    return np.zeros(a.shape, dtypes[rng.integers(len(dtypes))])


def other_rank(rng: Rng, a: Array) -> Array:
    return a[None] if rng.random() < 0.5 else a.reshape(-1) if a.ndim != 1 else a[:, None]


def other_size(rng: Rng, a: Array) -> Array:
    """Return an array with another last axis, the one that nothing else of the call leaves open.

    A w_hh [4·H,n] would be one of other heads where n divides H.
    """
    n = a.shape[-1]
    size = int(rng.choice([n + 1, 2 * n + 3, n - 1 if n > 0 else 1]))
    if a.ndim == 2 and size and len(a) % (4 * size) == 0:
        size += len(a)
    return np.zeros((*a.shape[:-1], size), a.dtype)


def no_array(rng: Rng, a: Array) -> Any:  # noqa: ARG001
    return BROKEN[rng.integers(1, len(BROKEN))]


BAD: tuple[Callable[[Rng, Array], Any], ...] = (other_dtype, other_rank, other_size, no_array)


def spoil(rng: Rng, attempt: Attempt) -> None:
    """Change some arguments: into other forms of the same, or one of them into something bad."""
    names = [name for name, a in attempt.slots.items() if isinstance(a, np.ndarray)]
    for name in names:
        if rng.random() < 0.3:
            forms = LAYOUTS if name in attempt.written else READABLE
            attempt.slots[name] = forms[rng.integers(len(forms))](attempt.slots[name])
    name = names[rng.integers(len(names))]
    a = attempt.slots[name]
    chance = rng.random()
    if not isinstance(a, np.ndarray) or chance < 0.4:
        return
    if chance < 0.5:
        if name not in attempt.written and a.size and a.flags.writeable and a.dtype.kind in "fb":
            a.flat[0] = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e-40])
            attempt.free = True
    elif chance < 0.6 and name in attempt.written:
        others = [b for n, b in attempt.slots.items() if n != name and isinstance(b, np.ndarray) and b.shape == a.shape]
        if chance < 0.55 or attempt.in_place or not others or not a.size:
            attempt.slots[name], attempt.bad = read_only(a), f"{name} read-only"
        else:
            attempt.slots[name], attempt.bad = others[0], f"{name} twice"
    elif chance < 0.65:
        others = [b for n, b in attempt.slots.items() if n != name and isinstance(b, np.ndarray)]
        attempt.slots[name], attempt.acts = Acting(a, others), True
    else:
        how = BAD[rng.integers(len(BAD))]
        attempt.slots[name], attempt.bad = how(rng, a), f"{name} by {how.__name__}"
