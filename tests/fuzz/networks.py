"""Calls of Hopfield and echo state networks."""

from typing import Any, get_args

import numpy as np
from modules import normal
from problems import DTYPES, Results, named

from fuzz.attempts import Attempt, Rng, choose
from fuzz.forms import BROKEN, READABLE
from rnnfast.hopfield import Hopfield, Mode, ModernHopfield, Rule
from rnnfast.reservoir import ESN, State


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
