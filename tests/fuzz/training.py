"""Calls of what trains: optimizers, losses, pruning."""

from typing import Any

import numpy as np
from modules import KINDS, make_layer, normal
from problems import DTYPES, Results, named

from fuzz.attempts import Attempt, Rng, choose
from fuzz.drawn import layer_projection
from rnnfast import _core, reference
from rnnfast.training import Pruner, ctc_loss


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
