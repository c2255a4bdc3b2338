"""What is drawn for several calls, and the slots that hold their arguments."""

from dataclasses import replace
from typing import Any

import numpy as np
from modules import KINDS
from problems import ALL_PARTS, CELLS, DTYPES, Results, Shape, make_problem, state_names

from fuzz.attempts import Rng, choose
from rnnfast import _core

INTEGER_KINDS = [kind for kind in KINDS if not kind.startswith("slstm") and not _core.cells[kind].normalises]


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
