"""The oracle against central differences of itself, and against what can be seen without it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import (
    CELLS,
    Array,
    Problem,
    Results,
    Shape,
    make_problem,
    make_token_problem,
    named,
    named_grads,
    ragged,
    solve,
    with_dc_steps,
    with_resets,
)

from rnnfast import reference

STEP = 1e-5  # balances the error of the difference, STEP^2, with that of rounding, 1e-16 / STEP
TOLERANCE = 1e-8


def loss(problem: Problem) -> float:
    """Return the number of which `backward` gives the gradients."""
    p = problem
    options = p.options("lengths", "resets", "gate_override", "embedding")
    y, h, c, tape = reference.forward(p.cell, p.x, p.parameters, p.h0, p.c0, **options)
    dy, dc_steps = (None if d is None else np.where(p.real, d, 0) for d in (p.dy, p.dc_steps))
    pairs = ((dy, y), (p.dh, h), (p.dc, c), (dc_steps, tape.steps[-1]))
    return float(sum(np.vdot(d, a) for d, a in pairs if d is not None and a is not None))


def central_difference(problem: Problem, array: Array) -> Array:
    """Return the gradient of the loss with respect to an array of the problem, which is moved in place."""
    gradient = np.empty_like(array)
    for k in np.ndindex(array.shape):
        value = array[k]
        array[k] = value + STEP
        up = loss(problem)
        array[k] = value - STEP
        down = loss(problem)
        array[k] = value
        gradient[k] = (up - down) / (2 * STEP)
    return gradient


def by_differences(problem: Problem) -> Results:
    """Return every gradient, named as `gradients` names them, by central differences."""
    p = problem

    def diff(a: Array | None) -> Array | None:
        return None if a is None else central_difference(p, a)

    return {
        **named(dx=diff(p.embedding if p.x.ndim == 2 else p.x), dh0=diff(p.h0), dc0=diff(p.c0)),
        **named_grads([tuple(map(diff, direction)) for direction in p.parameters]),
    }


def assert_gradients(problem: Problem, results: Results) -> None:
    """Assert that the gradients among the results are those by central differences."""
    actual = {name: a for name, a in results.items() if name.startswith("d")}
    expected = by_differences(problem)
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        np.testing.assert_allclose(a, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


GIVEN = [(cell, given) for cell in CELLS for given in ("all", "dy", "dh", "dc") if cell == "lstm" or given != "dc"]


@pytest.mark.parametrize("bias", ["both", "neither"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("cell", "given"), GIVEN)
def test_backward_is_the_gradient_of_forward(cell: str, given: str, D: int, bias: str) -> None:
    problem = make_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2, D=D), bias=bias == "both", seed=D)
    if given != "all":
        problem = problem.without(*{"dy", "dh", "dc"} - {given})
    assert_gradients(problem, solve(reference, problem))


# What the sequences of a batch of three may be besides whole: a function of the problem
FORMS: dict[str, Callable[[Problem], Problem]] = {
    "lengths": lambda p: ragged(p, 2, 0, 4),
    "resets": with_resets,
    "gradients of c": with_dc_steps,
    "all": lambda p: ragged(with_dc_steps(with_resets(p)), 3, 4, 0),
}


by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@by_form
@pytest.mark.parametrize("cell", CELLS)
def test_backward_is_the_gradient_of_forward_whatever_the_sequences(cell: str, form: Any) -> None:
    problem = form(make_problem(cell, np.float64, Shape(T=4, B=3, I=1, H=2, D=2)))
    assert_gradients(problem, solve(reference, problem))


HELD = [(cell, gate) for cell in CELLS for gate in reference.CELLS[cell].names]


@pytest.mark.parametrize(("cell", "gate"), HELD)
def test_backward_is_the_gradient_of_forward_where_a_gate_is_held(cell: str, gate: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=3, B=2, I=1, H=2, D=2))
    p = replace(with_dc_steps(p), gate_override={gate: 0.6})
    assert_gradients(p, solve(reference, p))


@pytest.mark.parametrize("V", [None, 5], ids=["one-hot", "embedded"])
@pytest.mark.parametrize("cell", CELLS)
def test_tokens_are_rows_and_backward_is_the_gradient_of_forward(cell: str, V: int | None) -> None:
    p = make_token_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2, D=2), V=V)
    results = solve(reference, p)
    rows = (np.eye(3) if p.embedding is None else p.embedding)[p.x]
    assert np.array_equal(results["y"], reference.forward(cell, rows, p.parameters, p.h0, p.c0)[0])
    assert_gradients(p, results)
    p = ragged(with_resets(p), 2, 4)
    assert_gradients(p, solve(reference, p))


def scalar_step(cell: str, x: float, h: float, c: float, w: list[float]) -> tuple[float, float]:
    """Return h, c of one step with one input and one unit; w holds w_ih, w_hh, b_ih, b_hh of G gates in turn."""

    def s(a: float) -> float:
        return 1 / (1 + math.exp(-a))

    G = len(w) // 4
    a = [w[k] * x + w[2 * G + k] for k in range(G)]
    u = [w[G + k] * h + w[3 * G + k] for k in range(G)]
    match cell:
        case "lstm":
            c = s(a[1] + u[1]) * c + s(a[0] + u[0]) * math.tanh(a[2] + u[2])
            return s(a[3] + u[3]) * math.tanh(c), c
        case "gru" | "gru_reset_before":
            r, z = s(a[0] + u[0]), s(a[1] + u[1])
            u_n = r * u[2] if cell == "gru" else w[5] * r * h + w[11]
            return (1 - z) * math.tanh(a[2] + u_n) + z * h, 0
        case "rnn_tanh":
            return math.tanh(a[0] + u[0]), 0
        case "rnn_relu":
            return max(0, a[0] + u[0]), 0
    raise ValueError(cell)


@pytest.mark.parametrize("cell", CELLS)
def test_one_unit_follows_the_equations_written_with_scalars(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=5, B=1, I=1, H=1))
    y, h, c, _ = reference.forward(cell, p.x, p.parameters, p.h0, p.c0)
    weights = np.concatenate([np.ravel(w) for w in p.parameters[0] if w is not None]).tolist()
    h_t, c_t = (0.0 if s is None else s.item() for s in (p.h0, p.c0))
    for t in range(5):
        h_t, c_t = scalar_step(cell, p.x[t].item(), h_t, c_t, weights)
        assert y[t].item() == pytest.approx(h_t, rel=1e-14)
    assert h.item() == y[-1].item()
    if c is not None:
        assert c.item() == pytest.approx(c_t, rel=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_second_direction_is_the_first_on_reversed_time(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=5, B=2, I=3, H=4, D=2))
    y, h, _, _ = reference.forward(cell, p.x, p.parameters)
    y_reversed, h_reversed, _, _ = reference.forward(cell, p.x[::-1], p.parameters[1:])
    np.testing.assert_array_equal(y[..., 4:], y_reversed[::-1])
    np.testing.assert_array_equal(h[1], h_reversed[0])


@pytest.mark.parametrize("cell", CELLS)
def test_missing_states_and_gradients_are_zeros(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=3, B=2, I=3, H=4))
    zero = np.zeros((1, 2, 4))
    zeros = replace(p, h0=zero, c0=p.c0 if p.c0 is None else zero, dh=zero, dc=p.dc if p.dc is None else zero)
    missing = solve(reference, p.without("h0", "c0", "dh", "dc"))
    for name, a in solve(reference, zeros).items():
        np.testing.assert_array_equal(a, missing[name], err_msg=name)


def test_a_state_that_the_cell_lacks_is_an_error() -> None:
    p = make_problem("gru", np.float64, Shape(T=3, B=2, I=3, H=4))
    with pytest.raises(ValueError, match="c0"):
        reference.forward("gru", p.x, p.parameters, p.h0, p.h0)
    _, _, _, tape = reference.forward("gru", p.x, p.parameters)
    with pytest.raises(ValueError, match="dc"):
        reference.backward(tape, p.dy, dc=p.dh)
