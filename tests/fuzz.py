"""Hostile calls: everything that takes an array, with arguments that are odd but legal or that are bad.

A legal call has to give what the oracle gives. A bad one has to raise ValueError or TypeError and to change nothing.
Each call has a random generator of its own, so that any one can be repeated:

    python tests/fuzz.py --calls 100000 --seed 0
    python tests/fuzz.py --calls 1 --seed 0 --first 41563
"""

import argparse
import contextlib
import inspect
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

os.environ.setdefault("RNNFAST_BF16", "emulate")  # before the kernels are loaded

import capi
import modules
import numpy as np
from modules import (
    KINDS,
    ONE_STEP,
    candidates_of,
    factors_of,
    make_layer,
    normal,
    oracle,
    results,
    swap,
    with_gradients_of,
    without,
    zoneout_of,
)
from problems import (
    ALL_PARTS,
    CELLS,
    DTYPES,
    Array,
    Results,
    Shape,
    integers,
    make_problem,
    make_token_problem,
    named,
    named_gradients,
    named_grads,
    named_state,
    num_states,
    of_states,
    parts,
    solve,
    state_names,
    state_of,
)

import rnnfast
from rnnfast import _core, functional, reference
from rnnfast._base.formats import FORMATS
from rnnfast.hopfield import Hopfield, Mode, ModernHopfield, Rule
from rnnfast.reference import bfloat16, quantized
from rnnfast.reference.quantized import Rows
from rnnfast.reservoir import ESN, State
from rnnfast.training import Pruner, ctc_loss

Rng = np.random.Generator

INTEGER_KINDS = [kind for kind in KINDS if not kind.startswith("slstm") and not _core.cells[kind].normalises]

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


# Odd but legal: the same values in another form


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


@contextlib.contextmanager
def disguised(rng: Rng, values: Any) -> Iterator[None]:
    """Now and then give arrays another shape for a while, of which a backward may see nothing."""
    arrays = [a for a in values if isinstance(a, np.ndarray)] if rng.random() < 0.3 else []
    with restored(arrays):
        for a in arrays:
            flatten(a)
        yield


READABLE: tuple[Callable[[Any], Any], ...] = (*LAYOUTS, Interface, Exchange, memoryview, read_only)


# Bad


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


# What is called


def choose(rng: Rng, values: Any) -> Any:
    return values[rng.integers(len(values))]


def bare_problem(rng: Rng) -> Any:
    """Draw a layer of the oracle's, mostly small, some of them empty."""
    size = (*rng.integers(1, 10, 4), rng.integers(1, 3))
    shape = Shape(*(int(n) for n in size))
    if rng.random() < 0.05:
        shape = shape._replace(B=0)
    elif rng.random() < 0.02:
        shape = shape._replace(**{"TBIH"[rng.integers(4)]: 40})
    cell, dtype, bias = choose(rng, CELLS), choose(rng, DTYPES), bool(rng.random() < 0.8)
    shape = shape._replace(P=projection(rng, cell, shape.H))
    problem: Any = make_problem(cell, dtype, shape, bias=bias, seed=int(rng.integers(2**31)))
    if _core.cells[cell].normalises:  # a small eps would leave float32 few digits to compare
        problem = replace(problem, layer_norm_eps=choose(rng, (0.1, 0.5, 2.0)))
    if rng.random() < 0.05:  # I = 0
        parameters = [(w_ih[:, :0], *others) for w_ih, *others in problem.parameters]
        problem = replace(problem, x=problem.x[..., :0], parameters=parameters)
    return problem.without(*(part for part in ALL_PARTS if rng.random() < 0.3))


def projection(rng: Rng, cell: str, H: int) -> int:
    """Draw the size of a projection of h, mostly 0 for none."""
    return int(rng.integers(1, H)) if _core.cells[cell].projects and H > 1 and rng.random() < 0.3 else 0


def layer_projection(rng: Rng, kind: str, H: int) -> dict[str, int]:
    """Draw the option of a layer."""
    P = projection(rng, kind, H) if KINDS[kind][0] == "LSTM" else 0
    return {"proj_size": P} if P else {}


def parameter_slots(parameters: Any, name: str) -> dict[str, Any]:
    return {f"{name}[{d}][{i}]": p for d, ps in enumerate(parameters) for i, p in enumerate(ps)}


def parameters_of(slots: dict[str, Any], name: str, D: int) -> Any:
    counts = [sum(slot.startswith(f"{name}[{d}]") for slot in slots) for d in range(D)]
    return [tuple(slots[f"{name}[{d}][{i}]"] for i in range(n)) for d, n in enumerate(counts)]


def state_slots(cell: str, state: Any, form: str) -> dict[str, Any]:
    return dict(zip(state_names(cell, form), state, strict=True))


def state_in(slots: dict[str, Any], cell: str, form: str) -> tuple[Any, ...]:
    return tuple(slots[name] for name in state_names(cell, form))


def bare_forward(rng: Rng) -> Attempt:
    """Call forward or inference, of the extension or of `functional`."""
    p = bare_problem(rng)
    (T, B, _), D = p.x.shape, len(p.parameters)
    states = zip(state_names(p.cell, "out {}"), p.state_sizes, strict=True)
    shapes = {"out y": (T, B, D * p.state_sizes[0]), **{name: (D, B, n) for name, n in states}}
    outs = {name: np.ones(s, p.x.dtype) if rng.random() < 0.3 else None for name, s in shapes.items()}
    slots = {"x": p.x, **state_slots(p.cell, p.state0, "{}0"), **parameter_slots(p.parameters, "w"), **outs}
    run, core, eps = choose(rng, ("forward", "inference")), rng.random() < 0.5, p.options("layer_norm_eps")

    def call() -> Results:
        state0, out_state = state_in(slots, p.cell, "{}0"), state_in(slots, p.cell, "out {}")
        arguments = p.cell, slots["x"], parameters_of(slots, "w", D)
        if core:
            y, state, *_ = getattr(_core, run)(*arguments, state0, (slots["out y"], out_state), **eps)
        else:
            out = (slots["out y"], state_of(out_state))
            y, state, *_ = getattr(functional, run)(*arguments, state_of(state0), out=out, **eps)
        return {"y": y, **named_state(p.cell, parts(state))}

    def expected() -> Results:
        y, state, _ = reference.forward(p.cell, p.x, p.parameters, p.state0, **eps)
        return {"y": y, **named_state(p.cell, state)}

    written = frozenset(outs)
    return Attempt(f"{'_core' if core else 'functional'}.{run}", call, slots, written, expected=expected)


def wavefront(rng: Rng) -> Attempt:
    """Run a layer as a wave, forwards and, where it has steps enough, backwards."""
    T, B = choose(rng, (1, 33, 40)), choose(rng, (0, 1, 9))
    p: Any = make_problem(choose(rng, CELLS), choose(rng, DTYPES), Shape(T, B, 3, 6), seed=0)
    slots = {"x": p.x, **state_slots(p.cell, p.state0, "{}0"), **parameter_slots(p.parameters, "w")}
    eps = p.options("layer_norm_eps")

    def call() -> Results:
        layers, states = [parameters_of(slots, "w", 1)], [state_in(slots, p.cell, "{}0")]
        [(y, state, tape)] = _core.forward_wave(p.cell, slots["x"], layers, states, True, **eps)
        if T > 32:
            _core.backward_wave([tape], y, None, True)
        return {"y": y, **named_state(p.cell, parts(state))}

    def expected() -> Results:
        y, state, _ = reference.forward(p.cell, p.x, p.parameters, p.state0, **eps)
        return {"y": y, **named_state(p.cell, state)}

    return Attempt("wavefront", call, slots, expected=expected)


def rounded(rng: Rng) -> Attempt:
    """Run a layer with rounded factors on integers that bfloat16 holds, forwards and backwards."""
    shape = Shape(choose(rng, (1, 2, 4)), choose(rng, (0, 1, 3)), choose(rng, (1, 5, 20)), choose(rng, (1, 6, 33)))
    p: Any = integers(make_problem("rnn_relu", "float32", shape), rng)
    slots = {
        "x": p.x,
        **state_slots(p.cell, p.state0, "{}0"),
        **state_slots(p.cell, p.dstate, "d{}"),
        **parameter_slots(p.parameters, "w"),
        "dy": p.dy,
    }

    def call() -> Results:
        state0, dstate = state_in(slots, p.cell, "{}0"), state_in(slots, p.cell, "d{}")
        weights = parameters_of(slots, "w", 1)
        y, _, tape = _core.forward(p.cell, slots["x"], weights, state0, rounded=True)
        return {"y": y, **named_gradients(p.cell, *_core.backward(tape, slots["dy"], dstate))}

    def expected() -> Results:
        y, _, tape = reference.forward(p.cell, p.x, p.parameters, p.state0)
        return {"y": y, **named_gradients(p.cell, *reference.backward(tape, p.dy, p.dstate))}

    return Attempt("rounded", call, slots, expected=expected)


def bare_backward(rng: Rng) -> Attempt:
    """Call backward, of the extension or of `functional`."""
    p = bare_problem(rng)
    (T, B, I), D = p.x.shape, len(p.parameters)
    eps = p.options("layer_norm_eps")
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, **eps)
    need_dx, core, given = rng.random() < 0.7, rng.random() < 0.5, rng.random() < 0.5
    states = zip(state_names(p.cell, "out {}"), p.state_sizes, strict=True)
    shapes = {"out dx": (T, B, I), **{name: (D, B, n) for name, n in states}}
    outs = {name: np.ones(s, p.x.dtype) if rng.random() < 0.3 else None for name, s in shapes.items()}
    outs["out dx"] = outs["out dx"] if need_dx else None
    slots = {"dy": p.dy, **state_slots(p.cell, p.dstate, "d{}"), **outs}
    if given:
        zeros = [tuple(None if w is None else np.zeros_like(w) for w in ws) for ws in p.parameters]
        slots |= parameter_slots(zeros, "g")

    def call() -> Results:
        grads = parameters_of(slots, "g", D) if given else None
        dstate, out_state = state_in(slots, p.cell, "d{}"), state_in(slots, p.cell, "out {}")
        if core:
            out = (slots["out dx"], out_state)
            dx, dstate0, new = _core.backward(tape, slots["dy"], dstate, need_dx, grads, out)
        else:
            out = (slots["out dx"], state_of(out_state))
            dx, dstate0, new = functional.backward(
                tape, slots["dy"], state_of(dstate), need_dx=need_dx, grads=grads, out=out
            )
        return named_gradients(p.cell, dx, parts(dstate0), new)

    def expected() -> Results:
        *_, kept = reference.forward(p.cell, p.x, p.parameters, p.state0, **eps)
        dx, dstate0, new = reference.backward(kept, p.dy, p.dstate)
        return named_gradients(p.cell, dx if need_dx else None, dstate0, new)

    written = frozenset(name for name in slots if name[0] in "og")
    return Attempt(f"{'_core' if core else 'functional'}.backward", call, slots, written, expected=expected)


def tokens(rng: Rng) -> Attempt:
    """Call forward and backward with tokens, some of them out of range."""
    T, B, I, H, D = (int(n) for n in (*rng.integers(1, 8, 4), rng.integers(1, 3)))
    B = 0 if rng.random() < 0.05 else B
    V = int(rng.integers(1, 40)) if rng.random() < 0.5 else None
    cell, dtype, seed = choose(rng, CELLS), choose(rng, DTYPES), int(rng.integers(2**31))
    p: Any = make_token_problem(cell, dtype, Shape(T, B, I, H, D), V=V, seed=seed)
    slots = {"embedding": p.embedding, "dy": p.dy, **parameter_slots(p.parameters, "w")}
    slots |= state_slots(cell, p.state0, "{}0")
    # Of one-hot tokens only w_ih says how many there are: another size is as good.
    fixed = {f"w[{d}][0]": slots.pop(f"w[{d}][0]") for d in range(D) if V is None}
    if rng.random() < 0.5:
        slots |= parameter_slots([tuple(np.zeros_like(w) for w in ws) for ws in p.parameters], "g")
    need_dx = rng.random() < 0.8
    x = p.x.astype(choose(rng, ("i1", "u1", "i4", "i8", "u8")))
    bad = ""
    if x.size and rng.random() < 0.2:
        n = I if V is None else V
        wrong = [w for w in (-1, n, n + 1, 127, 255, -(2**63), 2**63, 2**64 - 1) if not 0 <= w < n]
        x, bad = p.x.astype(object), "a token out of range"
        x.flat[rng.integers(x.size)] = choose(rng, wrong)
        x = x.astype("u8" if x.max() >= 2**63 else "i8")
    x = choose(rng, (*READABLE, np.copy))(x)

    written = frozenset(name for name in slots if name.startswith("g"))

    def call() -> Results:
        ws = parameters_of({**slots, **fixed}, "w", D)
        y, state, tape = _core.forward(cell, x, ws, state_in(slots, cell, "{}0"), embedding=slots["embedding"])
        grads = parameters_of(slots, "g", D) if "g[0][0]" in slots else None
        read = [y, *state, x, *(a for name, a in {**slots, **fixed}.items() if name not in written and name != "dy")]
        with disguised(rng, read):
            dx, dstate0, new = _core.backward(tape, slots["dy"], need_dx=need_dx, grads=grads)
        return {"y": y, **named_state(cell, state), **named_gradients(cell, dx, dstate0, new)}

    def expected() -> Results:
        wanted = solve(reference, p.without("dstate"))
        if not need_dx:
            wanted.pop("dx", None)
        return wanted

    return Attempt("tokens", call, slots, written, bad=bad, expected=expected)


def structure(rng: Rng) -> Attempt:
    """Call with arguments that are no arrays, and wrong."""
    p: Any = make_problem(choose(rng, CELLS), "float32", Shape(2, 2, 3, 4), seed=0)
    state = state_of(p.state0)
    *_, tape = functional.forward(p.cell, p.x, p.parameters, state)
    w, other = p.parameters, choose(rng, BROKEN[1:])
    huge = np.broadcast_to(p.x[:1, :1], (2**30, 2**27, 3))
    F: Any = functional
    calls: dict[str, Callable[[], Any]] = {
        "cell": lambda: F.forward(other, p.x, w),
        "cell name": lambda: F.inference("LSTM", p.x, w),
        "huge x": lambda: F.inference(p.cell, huge, w),
        "T = 0": lambda: F.forward(p.cell, p.x[:0], w),
        "layer_norm_eps": lambda: F.forward(
            p.cell, p.x, w, layer_norm_eps=choose(rng, (*BROKEN[1:5], 0, -1.0, np.nan))
        ),
        "parameters": lambda: F.forward(p.cell, p.x, other),
        "no parameters": lambda: F.forward(p.cell, p.x, []),
        "three directions": lambda: F.forward(p.cell, p.x, w * 3),
        "short parameters": lambda: F.forward(p.cell, p.x, [w[0][:3]]),
        "parameters of nothing": lambda: F.forward(p.cell, p.x, [other, w[0]]),
        "H = 0": lambda: F.forward(p.cell, p.x, [(np.zeros((0, 3), "f4"), np.zeros((0, 0), "f4"), None, None)]),
        "state": lambda: F.forward(p.cell, p.x, w, named_state(p.cell, p.state0)),
        "state of one more": lambda: F.forward(p.cell, p.x, w, (*p.state0, None)),
        "core state": lambda: _core.forward(p.cell, p.x, w, choose(rng, (*BROKEN[1:], p.state0[0]))),
        "core state of one more": lambda: _core.forward(p.cell, p.x, w, (*p.state0, None)),
        "core dstate": lambda: _core.backward(tape, p.dy, choose(rng, (*BROKEN[1:], p.state0[0]))),
        "core dsteps": lambda: _core.backward(tape, p.dy, dsteps=choose(rng, (*BROKEN[1:], p.dy, (p.dy,) * 4))),
        "out": lambda: F.forward(p.cell, p.x, w, out=other),
        "candidates": lambda: F.forward(
            p.cell, p.x, w, candidate_dropout=choose(rng, (*BROKEN[1:], (p.dy > 0, 1), (p.dy, 0.5), (p.dy[1:] > 0, 2)))
        ),
        "zoneout": lambda: F.forward(p.cell, p.x, w, zoneout=choose(rng, (*BROKEN[1:], 1.5, p.dy, (p.dy > 0,) * 3))),
        "core zoneout": lambda: _core.forward(
            p.cell, p.x, w, zoneout=choose(rng, (*BROKEN[1:], (p.dy,), (p.dy > 0,) * 5, (2.0,) * len(p.state0)))
        ),
        "out of three": lambda: F.forward(p.cell, p.x, w, out=(None, None, None)),
        "out itself": lambda: F.forward(
            p.cell, p.x, w, out=(np.lib.stride_tricks.as_strided(p.dy, strides=(0, 4, 4)), 0)
        ),
        "tape": lambda: F.backward(other, p.dy),
        "core tape": lambda: _core.backward(other, p.dy),
        "no gradient": lambda: F.backward(tape),
        "grads": lambda: F.backward(tape, p.dy, grads=other),
        "grads of nothing": lambda: F.backward(tape, p.dy, grads=[other]),
        "unwanted dx": lambda: F.backward(tape, p.dy, need_dx=False, out=(p.x, None)),
        "threads": lambda: rnnfast.set_num_threads(choose(rng, (0, -1, -(2**63), 2**70, None, "2", 1.5))),
        "asarray": lambda: _core.asarray(choose(rng, (["x"], "x", 3, None, object()))),
    }
    name = choose(rng, list(calls))
    slots = {"x": p.x, "dy": p.dy, **parameter_slots(w, "w")}
    return Attempt("structure", calls[name], slots, bad=name)


def whole_layer(rng: Rng) -> Attempt:
    """Run a layer forwards and backwards."""
    L, (T, B, I, H) = int(rng.integers(1, 4)), (int(n) for n in rng.integers(1, 8, 4))
    options: dict[str, Any] = {
        name: bool(rng.random() < 0.5) for name in ("bias", "batch_first", "bidirectional", "learn_initial_state")
    }
    options |= {"num_layers": L, "dtype": choose(rng, DTYPES), "rng": int(rng.integers(2**31))}
    kind = choose(rng, list(KINDS))
    unbatched = rng.random() < 0.2
    batch = () if unbatched else (0 if rng.random() < 0.05 else B,)
    given_rows, steps, bad = sequence_options(rng, kind, T, batch)
    plain = given_rows["lengths"] is None and given_rows["checkpoint"] is None  # only then are the masks [T,B,D·H]
    options["dropout"] = 0.5 if L > 1 and plain and rng.random() < 0.3 else 0.0
    options["weight_dropout"] = choose(rng, (0.4, ("rows", 0.4))) if rng.random() < 0.3 else 0.0
    projection = layer_projection(rng, kind, H)
    if not projection and not kind.startswith("slstm") and rng.random() < 0.3:
        options |= {"recurrent_dropout": 0.4, "recurrent_dropout_per_gate": bool(rng.random() < 0.5)}
    if not projection.get("proj_size") and not kind.startswith("slstm") and rng.random() < 0.3:
        options["zoneout"] = 0.3
    if _core.cells[kind].has_candidate and rng.random() < 0.3:
        options |= {"candidate_dropout": 0.4, "candidate_dropout_per_sequence": bool(rng.random() < 0.5)}
    if _core.cells[kind].normalises:
        options["layer_norm_eps"] = choose(rng, (0.1, 0.5, 1.0))
    layer = make_layer(kind, (I, H), **options, **projection)
    sizes, D = modules.state_sizes(layer), layer.directions
    last = given_rows["outputs"] == "last"
    slots = {
        name: normal(shape, layer.dtype, int(rng.integers(2**31)))
        for name, shape in {
            "x": (T, *batch, I),
            "dy": (*(() if last else (T,)), *batch, D * sizes[0]),
            "dc_steps": (L, T, *batch, D * H),
            "dh_layers": (L, T, *batch, D * sizes[0]),
            **{
                name: (L * D, *batch, n)
                for form in ("{}", "d{}")
                for name, n in zip(state_names(kind, form), sizes, strict=True)
            },
        }.items()
    }
    if "n" in slots:
        slots["n"] = np.abs(slots["n"]) + slots["n"].dtype.type(0.5)
    slots["resets"] = rng.random((T, *batch)) < 0.2
    for name, unwanted in (("dc_steps", "c" not in _core.cells[kind].states), ("dh_layers", False), ("resets", False)):
        if unwanted or rng.random() < 0.7:
            del slots[name]
    originals = dict(slots)
    if not unbatched:
        slots |= {
            name: swap(slots[name], layer) for name in ("x", "resets", *(() if last else ("dy",))) if name in slots
        }
        if layer.batch_first:
            slots |= {name: slots[name].swapaxes(1, 2) for name in ("dc_steps", "dh_layers") if name in slots}
    given, need_dx, stateful = rng.random() < 0.5, rng.random() < 0.8, rng.random() < 0.7
    if given:
        slots |= {f"g {name}": np.zeros_like(p) for name, p in layer.parameters.items()}
    masks: list[Array] = []
    of_weights: Results = {}
    of_h: Results = {}
    of_units: Results = {}
    of_candidates: Results = {}

    for name in () if stateful else state_names(kind):
        del slots[name]

    def call() -> Results:
        state = state_of(state_in(slots, kind, "{}")) if stateful else None
        y, after, tape = layer.forward(slots["x"], state, resets=slots.get("resets"), **given_rows)
        masks[:] = tape.masks
        of_weights.update(tape.weight_masks)
        of_h.update(tape.recurrent_masks)
        of_units.update(tape.zoneout_masks)
        of_candidates.update(tape.candidate_masks)
        grads = {name: slots[f"g {name}"] for name in layer.parameters} if given else None
        dstate = state_of(state_in(slots, kind, "d{}"))
        every = {"dc": slots.get("dc_steps"), "dh_layers": slots.get("dh_layers"), **steps}
        with disguised(rng, [slots["x"], *parts(state), *parts(after)]):
            back = layer.backward(tape, slots["dy"], dstate, need_dx=need_dx, grads=grads, **every)
        return results(y, after, *back)

    def expected() -> Results:
        def batched(a: Array) -> Array:
            return np.expand_dims(a, a.ndim - 1) if unbatched else a

        values = {name: batched(a) for name, a in originals.items() if name != "resets"}
        state = state_in(values, kind, "{}") if stateful else None
        dstate, dy = state_in(values, kind, "d{}"), None if last else values["dy"]
        if last:
            dh, *others = dstate
            dh = dh.copy()
            dh[-D:] += values["dy"].reshape(-1, D, sizes[0]).swapaxes(0, 1)
            dstate = (dh, *others)
        every = {"dc": values.get("dc_steps"), "dh_layers": values.get("dh_layers"), **steps}
        rows = {"lengths": given_rows["lengths"]}
        if "resets" in originals:
            rows["resets"] = originals["resets"].reshape(T, -1) if originals["resets"].size else np.zeros((T, 0), bool)
        held = [given_rows["gate_override"]] * L
        twin, factors = without(layer, of_weights)
        every["factors"] = factors_of(layer, {name: mask[None] if unbatched else mask for name, mask in of_h.items()})
        every["zoneout"] = zoneout_of(layer, time_major(layer, of_units, T))
        steps_of = 1 if options.get("candidate_dropout_per_sequence") else T
        every["candidates"] = candidates_of(layer, time_major(layer, of_candidates, steps_of))
        wanted = oracle(twin, values["x"], state, dy, dstate, tuple(masks), held=held, **every, **rows)
        wanted = with_gradients_of(factors, wanted)
        if last:
            wanted["y"] = wanted["h0"][-D:].swapaxes(0, 1).reshape(-1, D * sizes[0])
        if not need_dx:
            del wanted["dx"]
        sequences = {name: a for name, a in wanted.items() if name in ("y", "dx")}
        part_names = {f"{d}h{k}" for d in ("", "d") for k in range(num_states(kind))}
        states = {name: a[:, 0] if unbatched else a for name, a in wanted.items() if name in part_names}
        laid_out = {name: a[:, 0] if unbatched else swap(a, layer) for name, a in sequences.items()}
        if last:
            laid_out["y"] = wanted["y"][0] if unbatched else wanted["y"]
        return {**wanted, **states, **laid_out}

    written = frozenset(name for name in slots if name.startswith("g "))
    watched = [*layer.parameters.values()]
    return Attempt(type(layer).__name__, call, slots, written, bad=bad, expected=expected, watched=watched)


def time_major(layer: Any, masks: Results, T: int) -> Results:
    """Return masks [T,B,H] of a layer whatever they are laid out like."""
    H = layer.hidden_size
    swapped = {n: m.swapaxes(0, 1) if layer.batch_first and m.ndim == 3 else m for n, m in masks.items()}
    return {name: mask.reshape(T, mask.size // (T * H), H) for name, mask in swapped.items()}


def sequence_options(rng: Rng, kind: str, T: int, batch: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Draw what forward and backward take beside arrays, and what of it is wrong."""
    B, gates = batch[0] if batch else 1, _core.cells[kind].held
    forward: dict[str, Any] = {
        "lengths": rng.integers(0, T + 1, B).tolist() if rng.random() < 0.3 else None,
        "outputs": "last" if rng.random() < 0.2 else "all",
        "checkpoint": choose(rng, (1, 3, 1000, "auto")) if rng.random() < 0.2 else None,
        "gate_override": {choose(rng, gates): 0.375} if gates and rng.random() < 0.2 else None,
        "masks": {} if rng.random() < 0.2 else None,
    }
    backward: dict[str, Any] = {"clip_dh": 0.25 if rng.random() < 0.2 else None}
    if rng.random() > 0.1:
        return forward, backward, ""
    wrong: dict[str, tuple[Any, ...]] = {
        "lengths": (
            [T + 1] * max(B, 1),
            [-1] * max(B, 1),
            [1] * (B + 1),
            3,
            "x",
            [0.5] * max(B, 1),
            [2**70] * max(B, 1),
        ),
        "outputs": ("first", None, 3),
        "checkpoint": (0, -1, 2.5, "x", True, -(2**70), [3]),
        "gate_override": ({"q": 0.0}, {"if": 0.0}, {0: 1.0}, "f", 3, [None] * 9, {next(iter(gates), "f"): "x"}),
        "masks": (3, "x", [True], {"weight_hh_l0": None}, {"weight_ih_l0": np.ones((1, 1), bool)}, {0: True}),
        "clip_dh": (0, -1, np.nan, "x", True, [1.0]),
    }
    name = choose(rng, list(wrong))
    (backward if name in backward else forward)[name] = choose(rng, wrong[name])
    return forward, backward, name


def unequal_rows(rng: Rng) -> Attempt:
    """Call forward and backward with batch_sizes, some of which are no such thing."""
    D, (I, H) = int(rng.integers(1, 3)), (int(n) for n in rng.integers(1, 8, 2))
    sizes = np.sort(rng.integers(1, 6, rng.integers(1, 9)))[::-1].astype(choose(rng, ("i8", "i4", "u1", "u8")))
    N, cell, dtype = int(sizes.sum()), choose(rng, CELLS), choose(rng, DTYPES)
    shape = Shape(1, N, I, H, D, projection(rng, cell, H))
    p: Any = make_problem(cell, dtype, shape, seed=int(rng.integers(2**31)))
    bad, given = "", sizes.copy()
    if rng.random() < 0.4:
        wide = sizes.astype("i8")
        wrong = (wide * 0, wide - 9, -wide, wide[:, None], wide[:0], wide.astype("f8"), np.append(1, wide + 1))
        bad, given = "batch_sizes", [*wrong, np.full(4, 2**62), np.full(9, 2**63, "u8")][rng.integers(9)]
    slots = {"x": p.x[0], "dy": p.dy[0], "resets": rng.random(N) < 0.2, "flow": np.zeros_like(p.dy[0])}

    def call() -> Results:
        y, _, tape = functional.forward(cell, slots["x"], p.parameters, batch_sizes=given, resets=slots["resets"])
        dx, _, new = functional.backward(tape, slots["dy"], flow=(slots["flow"], None))
        return {**named(y=y, dx=dx), **named_grads(new)}

    return Attempt("unequal rows", call, slots, frozenset({"flow"}), bad=bad)


TAPE = capi.Handle()  # holds what the calls before have left

# What is no struct of the C interface, by its fields.
UNFIT: tuple[tuple[str, str, Any], ...] = (
    *[(struct, "size", n) for struct in ("layer", "forward", "backward") for n in (0, 2**63)],
    *[("layer", name, n) for name in ("input_size", "hidden_size", "num_directions") for n in (0, -1, 2**62, -(2**63))],
    *[("layer", "proj_size", n) for n in (-1, 2**62, -(2**63))],
    *[("layer", "dtype", n) for n in (2, -1)],
    *[("layer", "cell", name) for name in (None, b"", b"lstm\xff" * 99)],
    *[("layer", "weights", None), ("backward", "gradients", None)],
    *[("forward", name, n) for name in ("T", "B") for n in (0, -1, 2**62, -(2**63))],
    *[("forward", name, n) for name in ("x", "y") for n in (None, 1)],
    *[("forward", name, "x") for name in ("y", "state")],
    *[("backward", name, "dy") for name in ("dx", "dstate0")],
)


def c_interface(rng: Rng) -> Attempt:
    """Call forward and backward of the C interface."""
    T, B, I, H = (int(n) for n in rng.integers(1, 10, 4))
    sizes = np.sort(rng.integers(1, 6, rng.integers(1, 9)))[::-1].copy() if rng.random() < 0.5 else None
    if sizes is not None:
        T, B = 1, int(sizes.sum())
    shape, seed = Shape(T, B, I, H, int(rng.integers(1, 3))), int(rng.integers(2**31))
    cell = choose(rng, CELLS)
    shape = shape._replace(P=projection(rng, cell, H))
    p: Any = make_problem(cell, choose(rng, DTYPES), shape, bias=rng.random() < 0.8, seed=seed)
    if sizes is not None:
        p = capi.in_rows(p, sizes)
    p = p.without(*(name for name in ("h0", "c0", "n0", "m0", "dh", "dc", "dn", "dm") if rng.random() < 0.3))
    resets = rng.random(p.x.shape[:-1]) < 0.2 if rng.random() < 0.3 else None
    call = capi.Call(p, sizes, None if resets is None else resets.astype(np.uint8))
    unwanted = [name for name in ("dx", *sorted(of_states(p.cell))) if rng.random() < 0.2]
    if "dx" in unwanted:
        call.backward.dx = None
    for s, name in enumerate(_core.cells[p.cell].states):
        if name in unwanted:
            call.forward.state[s] = None
        if f"d{name}0" in unwanted:
            call.backward.dstate0[s] = None
    pack = capi.Handle(call.layer) if rng.random() < 0.5 else None
    call.forward.pack = pack and pack.value
    bad = ""
    if rng.random() < 0.4:
        struct, name, value = choose(rng, UNFIT)
        changed = getattr(call, struct)
        if isinstance(value, str):
            value = getattr(changed, value) or 1
        if "state" in name:
            getattr(changed, name)[0] = value
        else:
            setattr(changed, name, value)
        bad = f"{struct}.{name} = {value}"
    forward = {"y", *state_names(p.cell)}
    written = [a for name, a in call.results.items() if not bad.startswith("backward") or name not in forward]
    read = [a for ws in p.parameters for a in ws] + [p.x, *p.state0, p.dy, *p.dstate]

    def solved() -> Results:
        results = call.solve(TAPE)
        assert pack is None or pack.value
        return {name: a for name, a in results.items() if name not in unwanted}

    def expected() -> Results:
        right = solve(reference, replace(p, resets=resets))
        return {name: a for name, a in right.items() if name not in unwanted}

    watched = [a for a in read + (written if bad else []) if a is not None]
    return Attempt("C interface", solved, bad=bad, expected=None if sizes is not None else expected, watched=watched)


def steps_to_come(rng: Rng) -> Attempt:
    """Run a tape's steps as they come, in any order and out of range."""
    T, B = int(rng.integers(1, 9)), choose(rng, (0, 1, 3, 200))
    p: Any = make_problem(choose(rng, CELLS), choose(rng, DTYPES), Shape(T, B, 3, 5), seed=0)
    resets = np.zeros((T, B), bool) if rng.random() < 0.5 else None
    *_, tape = _core.forward(p.cell, p.x, p.parameters, resets=resets, steps=(0, 0))

    def some() -> int:
        return int(choose(rng, (-(2**63), -1, T + 1, 2**62, *range(T + 1))))

    def call() -> Results:
        for _ in range(8):
            steps = some(), some()
            n = max(min(steps[1], T) - max(steps[0], 0), 0)
            calls: tuple[Callable[[], Any], ...] = (
                partial(_core.advance, tape, steps),
                partial(_core.advance, tape, steps, np.zeros((n, B), bool)),
                partial(_core.shift, tape, steps[0]),
                partial(_core.backward, tape, p.dy[:n], steps=steps),
                partial(_core.chunks, None, min(steps[0], 99), min(steps[1], 99), 5),
            )
            with contextlib.suppress(ValueError):
                choose(rng, calls)()
        return {}

    return Attempt("steps to come", call, free=True, watched=[p.x, p.dy])


def streaming(rng: Rng) -> Attempt:
    """Step or run a stream that is on its way."""
    L, (T, B, I, H) = int(rng.integers(1, 4)), (int(n) for n in rng.integers(1, 8, 4))
    options: dict[str, Any] = {name: bool(rng.random() < 0.5) for name in ("bias", "batch_first")}
    options |= {"num_layers": L, "dtype": choose(rng, DTYPES), "rng": int(rng.integers(2**31))}
    kind = choose(rng, list(KINDS))
    layer = make_layer(kind, (I, H), **options, **layer_projection(rng, kind, H))
    stream = layer.stream(B + 1)  # of one sequence, arrays of two ranks are legal
    x = normal((2 + T, B + 1, I), layer.dtype, int(rng.integers(2**31)))
    stream.run(swap(x[:2], layer))
    steps = rng.random() < 0.5
    slots: dict[str, Any] = {"x": swap(x[2:], layer).copy() if steps else x[2].copy()}
    slots["out"] = np.zeros((*slots["x"].shape[:-1], modules.state_sizes(layer)[0]), layer.dtype)
    before = stream.state

    def call() -> Results:
        try:
            y = (stream.run if steps else stream.step)(slots["x"], out=slots["out"])
        except (TypeError, ValueError):
            now = zip(parts(stream.state), parts(before), strict=True)
            assert all(np.array_equal(a, b) for a, b in now), "a refused call has changed the state"
            raise
        return {"y": np.asarray(y)}

    def expected() -> Results:
        y, _ = layer(swap(x if steps else x[:3], layer))
        y = swap(y, layer)[2:]
        return {"y": swap(y, layer) if steps else y[0]}

    return Attempt("Stream", call, slots, frozenset({"out"}), in_place=True, expected=expected)


def quantized_layer(rng: Rng) -> Attempt:
    """Call a quantised layer: bfloat16 beside the layer of rounded weights, int8 of relu beside its oracle."""
    (T, B, I, H), form = (int(n) for n in rng.integers(1, 9, 4)), choose(rng, FORMATS)
    kinds = list(KINDS) if form == "bfloat16" else INTEGER_KINDS
    kind = choose(rng, kinds) if rng.random() < 0.5 else "rnn_relu"
    options: dict[str, Any] = {name: bool(rng.random() < 0.5) for name in ("bias", "bidirectional")}
    options |= {"num_heads": 1} if kind.startswith("slstm") else layer_projection(rng, kind, H)
    layer = make_layer(kind, (I, H), **options, rng=int(rng.integers(2**31)))
    q, sizes = layer.quantize(form), modules.state_sizes(layer)
    slots: dict[str, Any] = {"x": normal((T, B, I), "f4", int(rng.integers(2**31))), "resets": rng.random((T, B)) < 0.2}
    for name, n in zip(state_names(kind), sizes, strict=True):
        slots[name] = 0.5 + np.abs(normal((layer.directions, B, n), "f4", int(rng.integers(2**31))))
    originals, lengths = dict(slots), rng.integers(0, T + 1, B) if rng.random() < 0.3 else None

    def run(layer: Any, given: dict[str, Any]) -> Results:
        state = state_of(state_in(given, kind, "{}"))
        y, after = layer(given["x"], state, lengths=lengths, resets=given["resets"])
        return {"y": y, **named_state(kind, parts(after))}

    def expected() -> Results:
        if form == "bfloat16":
            return run(q.dequantize(), originals)
        rows: Any = {name: Rows(*a) if isinstance(a, tuple) else a for name, a in q.operands.items()}
        own = [modules.parameters_of(q, rows, end) for end in ("_l0", "_l0_reverse")[: layer.directions]]
        state = state_in(originals, kind, "{}")
        y, after = quantized.forward(kind, originals["x"], own, state, lengths=lengths, resets=originals["resets"])
        return {"y": y, **named_state(kind, after)}

    exact = form == "bfloat16" or kind == "rnn_relu"  # elsewhere the last bit of an activation decides about integers
    return Attempt("quantized", lambda: run(q, slots), slots, expected=expected if exact else None)


def bare_formats(rng: Rng) -> Attempt:
    """Give the core matrices of fewer bits, their scales and shapes among what is spoiled."""
    cell = choose(rng, CELLS)
    p: Any = make_problem(cell, "float32", Shape(*(int(n) for n in rng.integers(1, 9, 4))), heads=1)
    slots: dict[str, Any] = {"x": p.x, **parameter_slots(p.parameters, "w")}
    forms = rng.random(2) < 0.5
    for name, is_int8 in zip(("w[0][0]", "w[0][1]"), forms if rng.random() < 0.2 else (forms[0],) * 2, strict=True):
        if is_int8:
            slots[name], slots[f"scales of {name}"] = quantized.quantized_weights(slots[name])
        else:
            slots[name] = bfloat16.to_bfloat16(slots[name])

    def call() -> Results:
        given = {n: (a, slots[f"scales of {n}"]) if f"scales of {n}" in slots else a for n, a in slots.items()}
        _core.inference(cell, slots["x"], parameters_of(given, "w", 1))
        return {}

    return Attempt("formats", call, slots, free=True)


def one_cell(rng: Rng) -> Attempt:
    """Make one step of a cell, and back."""
    kind, own = KINDS[choose(rng, ONE_STEP)]
    B, I, H = (int(n) for n in rng.integers(1, 8, 3))
    seed, dtype = int(rng.integers(2**31)), choose(rng, DTYPES)
    cell = getattr(rnnfast, f"{kind}Cell")(I, H, rng=seed, dtype=dtype, bias=bool(rng.random() < 0.5), **own)
    batch = () if rng.random() < 0.3 else (0 if rng.random() < 0.1 else B,)
    x = normal((*batch, I), dtype, seed)
    names = *state_names(cell.cell), *state_names(cell.cell, "d{}")
    slots: dict[str, Any] = {"x": x, **{name: normal((*batch, H), dtype, seed + k) for k, name in enumerate(names, 1)}}
    shaped = {name: a.reshape(1, -1 if a.size else 0, a.shape[-1]) for name, a in slots.items()}
    parameters = [modules.parameters_of(cell, cell.parameters)]

    def call() -> Results:
        last, tape = cell.forward(slots["x"], state_of(state_in(slots, cell.cell, "{}")))
        dx, dstate0, grads = cell.backward(tape, state_of(state_in(slots, cell.cell, "d{}")))
        return results(None, last, dx, dstate0, grads)

    def expected() -> Results:
        _, last, tape = reference.forward(cell.cell, shaped["x"], parameters, state_in(shaped, cell.cell, "{}"))
        dx, dstate0, [grads] = reference.backward(tape, None, state_in(shaped, cell.cell, "d{}"))
        lasts, firsts = (tuple(s.reshape(*batch, H) for s in ss) for ss in (last, dstate0))
        return results(None, lasts, dx.reshape(x.shape), firsts, modules.named_parameters(cell, grads))

    return Attempt(type(cell).__name__, call, slots, expected=expected, watched=[*cell.parameters.values()])


def readout(rng: Rng) -> Attempt:
    """Call linear and linear_backward."""
    dtype, seed = choose(rng, DTYPES), int(rng.integers(2**31))
    shape, (I, O) = (
        tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4))),
        (int(n) for n in rng.integers(1, 9, 2)),
    )
    sizes = {"x": (*shape, I), "weight": (O, I), "bias": (O,), "dy": (*shape, O)}
    slots: dict[str, Any] = {name: normal(size, dtype, seed + k) for k, (name, size) in enumerate(sizes.items())}
    originals = dict(slots)

    def call() -> Results:
        x, weight, bias, dy = slots.values()
        y = functional.linear(x, weight, bias)
        dx, (dweight, dbias) = functional.linear_backward(x, weight, bias, dy)
        return named(y=y, dx=dx, dweight=dweight, dbias=dbias)

    def expected() -> Results:
        x, weight, bias, dy = (a.astype(np.float64) for a in originals.values())
        rows, drows = (
            x.reshape(-1, I) if x.size else np.zeros((0, I)),
            dy.reshape(-1, O) if dy.size else np.zeros((0, O)),
        )
        return named(y=x @ weight.T + bias, dx=dy @ weight, dweight=drows.T @ rows, dbias=drows.sum(axis=0))

    return Attempt("functional.linear", call, slots, expected=expected)


def adam_step(rng: Rng) -> Attempt:
    """Change a parameter."""
    dtype, seed = choose(rng, DTYPES), int(rng.integers(2**31))
    shape = tuple(int(n) for n in rng.integers(1, 9, rng.integers(1, 4)))
    slots: dict[str, Any] = {name: normal(shape, dtype, seed + k) ** 2 for k, name in enumerate("pgmv")}
    originals = {name: a.astype(np.float64) for name, a in slots.items()}
    decay = choose(rng, (0.0, 0.25))

    def call() -> Results:
        p, g, m, v = slots.values()
        _core.adam_step(p, g, m, v, lr=0.1, b1=0.5, b2=0.75, eps=0.01, decay=decay)
        return {name: np.asarray(slots[name]) for name in "pmv"}

    def expected() -> Results:
        p, g, m, v = originals.values()
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g * g
        return named(p=p - decay * p - 0.1 * m / (np.sqrt(v) + 0.01), m=m, v=v)

    return Attempt("_core.adam_step", call, slots, frozenset("pmv"), in_place=True, expected=expected)


def ctc(rng: Rng) -> Attempt:
    """Call ctc_loss, at times of labels that do not fit."""
    dtype, seed = choose(rng, DTYPES), int(rng.integers(2**31))
    T, B, V = int(rng.integers(1, 12)), int(rng.integers(1, 4)), int(rng.integers(2, 20))
    blank, mean = int(rng.integers(V)), bool(rng.random() < 0.5)
    lengths = rng.integers(0, T + 1, B)
    targets = [(blank + rng.integers(1, V, rng.integers(0, n // 2 + 1))) % V for n in lengths]
    logits = 3 * normal((T, B, V), dtype, seed)
    slots: dict[str, Any] = {"logits": logits}
    bad = ""
    if rng.random() < 0.2:
        bad = choose(rng, ("labels", "length", "blank", "number"))
    given = {
        "labels": [*targets[:-1], np.full(T + 1, (blank + 1) % V)],
        "blank": [*targets[:-1], [choose(rng, (blank, V, -1, 2**62, -(2**63)))]],
        "number": targets[1:],
    }.get(bad, targets)
    steps = lengths + T + 1 if bad == "length" else lengths

    def call() -> Results:
        options: Any = {"lengths": steps, "blank": blank, "reduction": "mean" if mean else "sum"}
        loss, dlogits = ctc_loss(slots["logits"], given, **options)
        if (dlogits.shape, dlogits.dtype) != (logits.shape, logits.dtype):  # others are as legal
            raise ValueError
        return named(loss=np.array(loss, dtype), dlogits=dlogits)

    def expected() -> Results:
        loss, dlogits = reference.ctc_loss(logits, targets, lengths, blank, mean=mean)
        return named(loss=np.array(loss), dlogits=dlogits)

    return Attempt("ctc_loss", call, slots, bad=bad, expected=expected)


def activation(rng: Rng) -> Attempt:
    """Call sigmoid or tanh."""
    name, dtype = choose(rng, ("sigmoid", "tanh")), choose(rng, DTYPES)
    shape = tuple(int(n) for n in rng.integers(0, 9, rng.integers(1, 4)))
    x = 3 * normal(shape, dtype, int(rng.integers(2**31)))
    slots: dict[str, Any] = {"x": x, "out": np.ones_like(x)}
    x64 = x.astype(np.float64)

    def expected() -> Results:
        return {"y": np.tanh(x64) if name == "tanh" else 1 / (1 + np.exp(-x64))}

    def call() -> Results:
        return {"y": getattr(functional, name)(slots["x"], out=slots["out"])}

    return Attempt(f"functional.{name}", call, slots, frozenset({"out"}), in_place=True, expected=expected)


def state_dict(rng: Rng) -> Attempt:
    """Load parameters."""
    kind, L = choose(rng, list(KINDS)), int(rng.integers(1, 3))
    layer = make_layer(kind, (3, 4), num_layers=L, dtype=choose(rng, DTYPES), **layer_projection(rng, kind, 4))
    slots: dict[str, Any] = {n: normal(p.shape, p.dtype, k) for k, (n, p) in enumerate(layer.parameters.items())}
    originals = dict(slots)

    def call() -> Results:
        layer.load_state_dict(slots)
        return dict(layer.parameters)

    return Attempt("load_state_dict", call, slots, expected=lambda: originals, watched=[*layer.parameters.values()])


def pruning(rng: Rng) -> Attempt:
    """Load masks, and apply them."""
    kind, block = choose(rng, list(KINDS)), (int(rng.integers(1, 20)), int(rng.integers(1, 6)))
    layer = make_layer(kind, (3, 4), dtype=choose(rng, DTYPES), **layer_projection(rng, kind, 4))
    pruner = Pruner(layer, float(rng.uniform(0.1, 1)), block, start=5, stop=9, every=2)
    masks: dict[str, Any] = {name: rng.random(mask.shape) < 0.5 for name, mask in pruner.masks.items()}
    expected = {name: np.where(mask, layer.parameters[name], 0) for name, mask in masks.items()}
    others = {name: np.array(a) for name, a in pruner.state_dict().items() if a.ndim == 0}

    def call() -> Results:
        pruner.load_state_dict({**others, **{f"mask.{name}": mask for name, mask in masks.items()}})
        pruner.step()
        return {name: layer.parameters[name] for name in pruner.masks}

    watched = [*layer.parameters.values(), *pruner.masks.values()]
    return Attempt("pruning", call, masks, expected=lambda: expected, watched=watched)


def associative_memory(rng: Rng) -> Attempt:
    """Store patterns of signs, and recall."""
    M, N = (int(n) for n in rng.integers(2, 12, 2))  # of one pattern or unit, arrays of two ranks are legal
    dtype, seed, rule = choose(rng, DTYPES), int(rng.integers(2**31)), choose(rng, get_args(Rule))
    network: Any = Hopfield(N, dtype=dtype, rng=seed)
    slots: dict[str, Any] = {"patterns": rng.choice([-1, 1], (M, N)).astype(dtype)}
    x, states = slots["patterns"].astype(np.float64), rng.choice([-1, 1], (int(rng.integers(4)), N))
    options: dict[str, Any] = {"mode": choose(rng, get_args(Mode)), "max_steps": int(rng.integers(9)), "rng": seed}
    bad = ""
    if rng.random() < 0.2:
        wrong: dict[str, tuple[Any, ...]] = {
            "states": (
                *BROKEN[1:],
                states[:, 1:],
                np.zeros((1, N), dtype),
                states.astype("f2"),
                np.full((1, N), np.nan, dtype),
            ),
            "mode": ("cyclic", None, 3),
            "max_steps": (-1, -(2**70), 2.5, "x", True, None),
            "rng": (-1, "x", 2.5, [-1]),
            "rule": ("hebb", None, 3, b"hebbian"),
            "threshold": (np.nan, np.inf),
        }
        bad = choose(rng, list(wrong))
        options[bad] = choose(rng, wrong[bad])
    rule, states, threshold = options.pop("rule", rule), options.pop("states", states), options.pop("threshold", 0.0)

    def call() -> Results:
        network.store(slots["patterns"], rule)
        network.threshold.fill(threshold)
        try:
            recalled = network.recall(states, **options)
        finally:
            weight = network.weight.copy()
            network.weight, network.threshold = np.zeros_like(weight), np.zeros(N, dtype)
        assert set(np.unique(recalled.states)) <= {-1, 1}
        return named(weight=weight)

    def expected() -> Results:
        if rule == "pseudo_inverse":
            return named(weight=x.T @ np.linalg.pinv(x.T))
        w = np.zeros((N, N))
        for s in x:
            f = w @ s if rule == "storkey" else np.zeros(N)
            own = 2 * w if rule == "storkey" else 0
            w = w + (np.outer(s, s) - np.outer(s, f) - np.outer(f, s) + own) / N
            np.fill_diagonal(w, 0)
        return named(weight=w)

    watched = [*network.parameters.values()]
    return Attempt("Hopfield", call, slots, bad=bad, expected=expected, watched=watched)


def modern_memory(rng: Rng) -> Attempt:
    """Keep patterns, and update states by them."""
    M, N, B = (int(n) for n in rng.integers(2, 12, 3))
    dtype, seed, beta = choose(rng, DTYPES), int(rng.integers(2**31)), float(rng.uniform(0.1, 2))
    slots: dict[str, Any] = {"patterns": normal((M, N), dtype, seed)}
    states = normal((B, N), dtype, seed + 1)
    x, s = slots["patterns"].astype(np.float64), states.astype(np.float64)
    options: dict[str, Any] = {"states": choose(rng, READABLE)(states), "beta": beta, "max_steps": 1, "tolerance": 0}
    bad = ""
    if rng.random() < 0.2:
        numbers = (-1, np.nan, "x", True, None, [1.0])
        wrong = (*BROKEN[1:], states[:, 1:], states.astype("f2"), states + np.nan, states + np.inf)
        bad = choose(rng, list(options))
        options[bad] = choose(rng, wrong if bad == "states" else numbers)
    beta = options.pop("beta")

    def call() -> Results:
        network = ModernHopfield(slots["patterns"], beta=beta, dtype=dtype)
        recalled = network.recall(**options)
        return named(states=recalled.states, energy=network.energy(options["states"]))

    def expected() -> Results:
        z = beta * s @ x.T
        e = np.exp(z - z.max(axis=1, keepdims=True))
        lse = np.log(e.sum(axis=1)) + z.max(axis=1)
        constant = np.log(M) / beta + (x * x).sum(axis=1).max() / 2
        energy = (s * s).sum(axis=1) / 2 - lse / beta + constant
        return named(states=e / e.sum(axis=1, keepdims=True) @ x, energy=energy)

    return Attempt("ModernHopfield", call, slots, bad=bad, expected=expected)


def echo_states(rng: Rng) -> Attempt:
    """Fit a readout to the states of a reservoir with feedback, and run on."""
    T, B, I, O = (int(n) for n in rng.integers(2, 8, 4))
    B *= choose(rng, (1, 3))
    dtype, seed = choose(rng, DTYPES), int(rng.integers(2**31))
    H, density = choose(rng, ((5, 1), ((3, 2), 1), (40, 0.1), ((40, 30), 0.1)))
    esn: Any = ESN(I, H, density=density, leak=choose(rng, (1, 0.5)), feedback_size=O, dtype=dtype, rng=seed)
    slots: dict[str, Any] = {"x": normal((T, B, I), dtype, seed), "y": normal((T, B, O), dtype, seed + 1)}
    x, y = (a.astype(np.float64) for a in slots.values())
    options: dict[str, Any] = {"warmup": int(rng.integers(T)), "ridge": 0.5, "state": None, "lengths": None}
    online, bad = rng.random() < 0.5, ""
    if rng.random() < 0.2:
        numbers: tuple[Any, ...] = (-1, np.nan, "x", True, [1.0])
        wrong: dict[str, tuple[Any, ...]] = {
            "warmup": (*numbers, None, T, 2**70),
            "ridge": (*numbers, None, np.inf),
            "state": (*BROKEN[1:], State((), None), State((x[0, :, :1],), None), State(x[0, :, :1], y[0])),
            "lengths": (3, "x", [T + 1] * B, [1] * (B + 1), [0.5] * B, [0] * B),
        }
        bad = choose(rng, list(wrong))
        options[bad] = choose(rng, wrong[bad])

    def call() -> Results:
        state = (esn.partial_fit if online else esn.fit)(slots["x"], slots["y"], **options)
        assert esn.generate(T, state, x.astype(dtype))[0].shape == (T, B, O)
        return named(weight=esn.readout.weight, bias=esn.readout.bias)

    def expected() -> Results:
        states, _ = esn.states(x.astype(dtype), y=y.astype(dtype))
        F = esn.num_states
        rows = states[options["warmup"] :].reshape(-1, F).astype(np.float64)
        targets = y[options["warmup"] :].reshape(-1, O)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        penalty = 0.5 * np.diag([1.0] * F + [float(online)])
        w = np.linalg.solve(rows.T @ rows + penalty, rows.T @ targets).T
        return named(weight=w[:, :F], bias=w[:, F])

    return Attempt("ESN", call, slots, bad=bad, expected=expected, watched=[*esn.parameters.values()])


def constructor(rng: Rng) -> Attempt:
    """Construct something of arguments that may be anything."""
    odd = (0, -1, 2**60, 2**62, 2**64, 3.0, None, "3", True, np.int64(3), np.float32(2), [3], np.nan)
    sizes = [choose(rng, odd) if rng.random() < 0.3 else int(rng.integers(1, 9)) for _ in range(2)]
    kind = choose(
        rng, ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "Linear", "Embedding", "ESN", "Hopfield")
    )
    made: Any = {"ESN": ESN, "Hopfield": Hopfield}.get(kind) or getattr(rnnfast, kind)
    sizes = sizes[:1] if made is Hopfield else sizes
    names = list(inspect.signature(made).parameters)[len(sizes) :]
    values = (*odd, "float64", "f2", "relu", -0.5, 0.5, False, ("rows", 0.5), [0.5] * 4, np.array([1, np.nan]))
    options = {name: choose(rng, values) for name in names if rng.random() < 0.15}

    def call() -> Results:
        module = made(*sizes, **options)
        if rng.random() < 0.5:
            scheme = choose(rng, ("torch", "xavier", "orthogonal", "identity", "zeros", 3, None, ["torch"]))
            rnnfast.initialize(
                module, scheme, forget_bias=choose(rng, (None, None, 1.0, "1", True)), rng=choose(rng, (None, 3, -1))
            )
        repr(module)
        rnnfast.num_parameters(module)
        return {}

    return Attempt("constructor", call, free=True)


TARGETS: tuple[Callable[[Rng], Attempt], ...] = (
    *[bare_forward, bare_backward, whole_layer] * 4,
    *[quantized_layer, bare_formats] * 2,
    *[tokens, streaming, one_cell, readout, activation, structure, unequal_rows, c_interface, steps_to_come, wavefront]
    * 2,
    rounded,
    adam_step,
    ctc,
    state_dict,
    pruning,
    constructor,
    associative_memory,
    modern_memory,
    echo_states,
)


# The check


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Make hostile calls and check what comes of them.")
    parser.add_argument("--calls", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call (default: 0)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    ends: Counter[tuple[str, str]] = Counter()
    for k in range(arguments.first, arguments.first + arguments.calls):
        rng = np.random.default_rng([arguments.seed, k])
        rnnfast.set_num_threads(int(rng.integers(1, 4)))
        attempt = choose(rng, TARGETS)(rng)
        try:
            if attempt.slots and not attempt.bad:
                spoil(rng, attempt)
            ends[attempt.name, check(attempt, compare=rng.random() < 0.3)] += 1
        except Exception:  # noqa: BLE001 whatever it is, it is what we look for
            traceback.print_exc()
            print(f"\n{attempt.name}: {attempt.bad or 'legal'}")
            print(f"repeat with: python tests/fuzz.py --calls 1 --seed {arguments.seed} --first {k}")
            return 1
    words = ("right", "accepted", "refused")
    print(f"{'':24}", *(f"{word:>9}" for word in words))
    for name in sorted({name for name, _ in ends}):
        print(f"{name:24}", *(f"{ends[name, word]:9}" for word in words))
    print(f"{arguments.calls} calls with seed {arguments.seed}: no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
