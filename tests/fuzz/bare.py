"""Calls of the extension and of `functional`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from modules import normal
from problems import (
    CELLS,
    DTYPES,
    Results,
    Shape,
    integers,
    make_problem,
    make_token_problem,
    named,
    named_gradients,
    named_grads,
    named_state,
    parts,
    solve,
    state_names,
    state_of,
)

import rnnfast
from fuzz.attempts import Attempt, Rng, choose
from fuzz.drawn import bare_problem, parameter_slots, parameters_of, projection, state_in, state_slots
from fuzz.forms import BROKEN, READABLE, disguised
from rnnfast import _core, functional, reference
from rnnfast.reference import bfloat16, quantized


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
