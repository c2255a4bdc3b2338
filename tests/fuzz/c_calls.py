"""Calls of the C interface."""

from dataclasses import replace
from typing import Any

import capi
import numpy as np
from problems import CELLS, DTYPES, Results, Shape, make_problem, of_states, solve, state_names

from fuzz.attempts import Attempt, Rng, choose
from fuzz.drawn import projection
from rnnfast import _core, reference

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
