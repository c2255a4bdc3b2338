"""The sLSTM: heads of any size, gates of any size, and torch's derivatives of the same equations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import make_state
from problems import (
    DTYPES,
    Shape,
    assert_close,
    assert_parity,
    make_problem,
    named_state,
    solve,
    with_dsteps,
    with_resets,
)

import rnnfast
from rnnfast import _core, functional, reference

CELLS = "slstm", "slstm_exp"
by_cell = pytest.mark.parametrize("cell", CELLS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)

# Heads of one unit, of fewer than a vector has lanes, of no multiple of these, of some vectors and a rest
HEADS = [(3, 3), (12, 3), (20, 5), (35, 5), (40, 5), (48, 3), (64, 4), (66, 2), (96, 2), (130, 10), (136, 8), (264, 3)]


@by_dtype
@pytest.mark.parametrize(("H", "heads"), HEADS)
def test_heads_of_any_size_are_those_of_the_oracle(H: int, heads: int, dtype: str) -> None:
    for shape in (Shape(T=3, B=1, I=3, H=H), Shape(T=5, B=7, I=3, H=H, D=2)):
        p = make_problem("slstm", dtype, shape, heads=heads)
        assert_parity(solve(_core, p), p)
        p = with_dsteps(with_resets(p))
        assert_parity(solve(_core, p), p)


@by_dtype
@pytest.mark.parametrize(("H", "heads"), HEADS)
def test_heads_are_a_block_diagonal_w_hh(H: int, heads: int, dtype: str) -> None:
    p = make_problem("slstm", dtype, Shape(T=4, B=3, I=5, H=H), heads=heads)
    [(w_ih, w_hh, *others)] = p.parameters
    assert w_hh is not None
    size = H // heads
    dense = np.zeros((4 * H, H), dtype)
    for gate, head in np.ndindex(4, heads):
        rows, columns = gate * H + head * size, head * size
        dense[rows : rows + size, columns : columns + size] = w_hh[rows : rows + size]
    whole = solve(reference, replace(p, parameters=[(w_ih, dense, *others)]))
    found = solve(reference, p)
    blocks = whole.pop("dw_hh[0]")
    kept = found.pop("dw_hh[0]")
    assert_close(found, whole)
    for gate, head in np.ndindex(4, heads):
        rows, columns = gate * H + head * size, head * size
        expected = blocks[rows : rows + size, columns : columns + size]
        np.testing.assert_allclose(kept[rows : rows + size], expected, rtol=1e-12, atol=1e-12)


@by_cell
@by_dtype
def test_a_zero_state_starts_with_the_first_input(cell: str, dtype: str) -> None:
    p: Any = make_problem(cell, dtype, Shape(T=1, B=3, I=4, H=6)).without("state0")
    [(w_ih, _, b_ih, b_hh, bounds)] = p.parameters
    _, state = functional.inference(cell, p.x, p.parameters)
    a_i, _, a_z, a_o = np.split(p.x[0].astype(float) @ w_ih.T + b_ih + b_hh, 4, axis=1)
    least = bounds[:6]
    z, o = np.tanh(a_z), reference.sigmoid(a_o)
    expected = o * z / np.maximum(1, least), z, np.broadcast_to(np.maximum(1, least), z.shape), a_i
    actual = named_state(cell, tuple(s[0] for s in state))
    assert_close(actual, named_state(cell, expected))


@pytest.mark.parametrize("clamp_gates", [False, True])
@pytest.mark.parametrize("min_n", [None, 1.0])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@by_dtype
def test_gates_of_10000_leave_all_results_finite(dtype: str, forget_gate: str, min_n: Any, clamp_gates: bool) -> None:
    options = {"forget_gate": forget_gate, "min_n": min_n, "clamp_gates": clamp_gates}
    layer: Any = rnnfast.SLSTM(4, 8, 2, dtype=dtype, rng=0, **options)
    rng = np.random.default_rng(0)
    layer.weight_ih_l0 = 1e4 * rng.choice([-1.0, -1e-2, 0, 1e-4, 1.0], layer.weight_ih_l0.shape).astype(dtype)
    x = np.eye(4, dtype=dtype)[rng.integers(4, size=(40, 6))]
    for state in (None, make_state(layer, (6,), 1)):
        y, last, tape = layer.forward(x, state)
        dx, dstate0, grads = layer.backward(tape, np.ones_like(y), tuple(np.ones_like(s) for s in last))
        assert state is not None or np.abs(y).max() <= 1
        assert all(np.isfinite(a).all() for a in (*last, dx, *dstate0, *grads.values()))


def test_the_last_of_many_steps_is_what_the_gates_select() -> None:
    """An input gate far above all before leaves the present candidate alone; one far below changes nothing."""
    layer = rnnfast.SLSTM(3, 1, dtype="float64", forget_gate="exp")
    for parameter in layer.parameters.values():
        parameter.fill(0)
    layer.weight_ih_l0[:] = [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    x = np.zeros((4, 3))
    x[:, 0], x[:, 1], x[:, 2] = [0, 0, 800, -800], [1, 2, 3, 4], 50
    y, _ = layer(x)
    z = np.tanh(x[:, 1])
    np.testing.assert_allclose(y[:, 0], [z[0], z[:2].mean(), z[2], z[2]], rtol=1e-15)


def test_scaling_c_and_n_and_shifting_m_changes_no_output() -> None:
    p: Any = make_problem("slstm", "float64", Shape(T=6, B=3, I=4, H=8))
    bounds = np.repeat([-np.inf, 1.0], 8)
    p = replace(p, parameters=[(*p.parameters[0][:4], bounds)], dstate=None)
    h, c, n, m = p.state0
    results = solve(_core, p)
    shifted = solve(_core, replace(p, state0=(h, c * np.e, n * np.e, m - 1)))
    assert_close({"y": shifted["y"], "dx": shifted["dx"]}, {"y": results["y"], "dx": results["dx"]})
    through_m = results["dc0"] * c + results["dn0"] * n
    assert_close({"dm0": results["dm0"]}, {"dm0": through_m})


@pytest.mark.parametrize(
    "shape", [Shape(T=5, B=7, I=3, H=40), Shape(T=3, B=1, I=2, H=5, D=2), Shape(T=40, B=9, I=3, H=17)]
)
@by_dtype
def test_products_of_x_that_are_made_elsewhere_are_columns_of_w_ih(dtype: str, shape: Shape) -> None:
    p = make_problem("slstm", dtype, shape)
    expected, rows = solve(reference, p), shape.T * shape.B
    x = p.x.reshape(rows, shape.I)
    parameters: Any = p.parameters
    made = [((x @ w_ih.T).T, *others) for w_ih, *others in parameters]
    found = solve(_core, replace(p, x=np.arange(rows).reshape(p.x.shape[:2]), parameters=made))
    for d in range(shape.D):
        found[f"dw_ih[{d}]"] = found[f"dw_ih[{d}]"] @ x
    assert_close(found, {name: a for name, a in expected.items() if name != "dx"})
