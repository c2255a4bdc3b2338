"""The oracle against central differences of itself, and against what can be seen without it."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from problems import (
    CELLS,
    REPRESENTATIVES,
    Array,
    Problem,
    Results,
    Shape,
    make_problem,
    make_token_problem,
    mapped,
    named,
    named_gradients,
    named_grads,
    named_state,
    num_states,
    of_states,
    ragged,
    solve,
    with_dsteps,
    with_resets,
)

from rnnfast import _core, reference

STEP = 1e-5  # balances the error of the difference, STEP^2, with that of rounding, 1e-16 / STEP
TOLERANCE = 1e-8


def loss(problem: Problem) -> float:
    """Return the number of which `backward` gives the gradients."""
    p = problem
    options = p.options("lengths", "resets", "gate_override", "embedding", "layer_norm_eps")
    y, state, tape = reference.forward(p.cell, p.x, p.parameters, p.state0, **options)
    pairs = [*zip(p.dstate or (), state, strict=False)]
    for d, a in zip((p.dy, *(p.dsteps or ())), (y, *tape.steps[1:]), strict=False):
        pairs.append((None if d is None else np.where(p.real, d, 0), a))
    return float(sum(np.vdot(d, a) for d, a in pairs if d is not None))


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

    dx = diff(p.embedding if p.x.ndim == 2 else p.x)
    return named_gradients(p.cell, dx, mapped(diff, p.state0), mapped(diff, p.parameters))


def smooth(problem: Problem) -> Problem:
    """Return the problem with so large an eps that differences can follow what cells normalise."""
    return replace(problem, layer_norm_eps=0.5) if "gain_ih" in _core.cells[problem.cell].parameters else problem


def assert_gradients(problem: Problem) -> None:
    """Assert that the oracle's gradients are those by central differences."""
    problem = smooth(problem)
    actual = {name: a for name, a in solve(reference, problem).items() if name.startswith("d")}
    expected = by_differences(problem)
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        np.testing.assert_allclose(a, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


uncovered = pytest.mark.no_cover  # coverage makes many calls slow; what they call is called elsewhere too
GIVEN = [(cell, given) for cell in CELLS for given in ("all", "dy", *(f"d{s}" for s in _core.cells[cell].states))]


@uncovered
@pytest.mark.parametrize(("cell", "given"), GIVEN)
def test_backward_is_the_gradient_of_forward(cell: str, given: str) -> None:
    problem = make_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2), seed=1)
    dstate = named_state(cell, problem.dstate or (), "d{}")
    problem = replace(
        problem,
        dy=problem.dy if given in ("all", "dy") else None,
        dstate=tuple(ds if given in ("all", name) else None for name, ds in dstate.items()),
    )
    assert_gradients(problem)


@uncovered
@pytest.mark.parametrize(("cell", "bias"), [*product(CELLS, ["both"]), *product(REPRESENTATIVES, ["neither"])])
def test_backward_is_the_gradient_of_forward_in_two_directions(cell: str, bias: str) -> None:
    problem = make_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2, D=2), bias=bias == "both", seed=2)
    assert_gradients(problem)


# What the sequences of a batch of three may be besides whole: a function of the problem
FORMS: dict[str, Callable[[Problem], Problem]] = {
    "lengths": lambda p: ragged(p, 2, 0, 4),
    "resets": with_resets,
    "gradients of every step": with_dsteps,
    "all": lambda p: ragged(with_dsteps(with_resets(p)), 3, 4, 0),
}


@uncovered
@pytest.mark.parametrize(
    ("cell", "form"), [(cell, form) for cell in CELLS for form in (FORMS if cell in REPRESENTATIVES else ["all"])]
)
def test_backward_is_the_gradient_of_forward_whatever_the_sequences(cell: str, form: str) -> None:
    problem = FORMS[form](make_problem(cell, np.float64, Shape(T=4, B=3, I=1, H=2, D=2)))
    assert_gradients(problem)


@uncovered
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if _core.cells[cell].projects])
def test_backward_is_the_gradient_of_forward_where_h_is_a_projection(cell: str, form: str) -> None:
    problem = FORMS[form](make_problem(cell, np.float64, Shape(T=4, B=3, I=1, H=3, D=2, P=2)))
    assert_gradients(problem)


HELD = [(cell, gate) for cell in CELLS for gate in _core.cells[cell].held]


@uncovered
@pytest.mark.parametrize(("cell", "gate"), HELD)
def test_backward_is_the_gradient_of_forward_where_a_gate_is_held(cell: str, gate: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=3, B=2, I=1, H=2, D=2))
    p = replace(with_dsteps(p), gate_override={gate: 0.6})
    assert_gradients(p)


@uncovered
@pytest.mark.parametrize("V", [None, 5], ids=["one-hot", "embedded"])
@pytest.mark.parametrize("cell", CELLS)
def test_tokens_are_rows_and_backward_is_the_gradient_of_forward(cell: str, V: int | None) -> None:
    p = make_token_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2, D=2), V=V)
    results = solve(reference, p)
    rows = (np.eye(3) if p.embedding is None else p.embedding)[p.x]
    assert np.array_equal(results["y"], reference.forward(cell, rows, p.parameters, p.state0)[0])
    assert_gradients(p)
    p = ragged(with_resets(p), 2, 4)
    assert_gradients(p)


def scalar_step(cell: str, x: float, state: list[float], w: list[float]) -> list[float]:
    """Make the next state of one input and one unit.

    w holds w_ih, w_hh, b_ih, b_hh of G gates in turn, and what else the cell has.
    """

    def s(a: float) -> float:
        return 1 / (1 + math.exp(-a))

    def hats(v: list[float]) -> list[float]:
        mean = sum(v) / len(v)
        var = sum((v_k - mean) ** 2 for v_k in v) / len(v)
        return [(v_k - mean) / math.sqrt(var + 1e-5) for v_k in v]

    h, *others = state
    G = _core.cells[cell].num_gates
    more = w[4 * G :]
    a = [w[k] * x + w[2 * G + k] for k in range(G)]
    u = [w[G + k] * h + w[3 * G + k] for k in range(G)]
    match cell:
        case "lstm":
            c = s(a[1] + u[1]) * others[0] + s(a[0] + u[0]) * math.tanh(a[2] + u[2])
            return [s(a[3] + u[3]) * math.tanh(c), c]
        case "lstm_norm" | "lstm_norm_carried":
            a_hat, u_hat = hats([w[k] * x for k in range(4)]), hats([w[4 + k] * h for k in range(4)])
            gain_ih, gain_hh, (gain_c, b_c) = more[:4], more[4:8], more[8:]
            raw = [gain_ih[k] * a_hat[k] + w[8 + k] + gain_hh[k] * u_hat[k] + w[12 + k] for k in range(4)]
            c = s(raw[1]) * others[0] + s(raw[0]) * math.tanh(raw[2])
            norm_c = gain_c * 0 + b_c  # one unit is its own mean
            return [s(raw[3]) * math.tanh(norm_c), norm_c if cell == "lstm_norm_carried" else c]
        case "gru_norm":
            a_hat, u_hat = hats([w[k] * x for k in range(3)]), hats([w[3 + k] * h for k in range(3)])
            a = [more[k] * a_hat[k] + w[6 + k] for k in range(3)]
            u = [more[3 + k] * u_hat[k] + w[9 + k] for k in range(3)]
            r, z = s(a[0] + u[0]), s(a[1] + u[1])
            return [(1 - z) * math.tanh(a[2] + r * u[2]) + z * h]
        case "lstm_peephole":
            c = s(a[1] + u[1] + more[1] * others[0]) * others[0]
            c += s(a[0] + u[0] + more[0] * others[0]) * math.tanh(a[2] + u[2])
            return [s(a[3] + u[3] + more[2] * c) * math.tanh(c), c]
        case "cifg" | "cifg_peephole":
            p_i, p_o = more or (0, 0)
            i = s(a[0] + u[0] + p_i * others[0])
            c = i * math.tanh(a[1] + u[1]) + (1 - i) * others[0]
            return [s(a[2] + u[2] + p_o * c) * math.tanh(c), c]
        case "rnn_tanh_leaky":
            return [h + more[0] * (math.tanh(a[0] + u[0]) - h)]
        case "rnn_relu_leaky":
            return [h + more[0] * (max(0, a[0] + u[0]) - h)]
        case "slstm" | "slstm_exp":
            c, n, m = others
            raw = [a_k + u_k for a_k, u_k in zip(a, u, strict=True)]
            l = m + (math.log(s(raw[1])) if cell == "slstm" else raw[1])
            scale = raw[0] if n == 0 else max(raw[0], l)
            i, f = math.exp(raw[0] - scale), min(math.exp(l - scale), more[1])
            c, n = f * c + i * math.tanh(raw[2]), max(f * n + i, more[0])
            return [s(raw[3]) * c / n, c, n, scale]
        case "gru" | "gru_reset_before":
            r, z = s(a[0] + u[0]), s(a[1] + u[1])
            u_n = r * u[2] if cell == "gru" else w[5] * r * h + w[11]
            return [(1 - z) * math.tanh(a[2] + u_n) + z * h]
        case "rnn_tanh":
            return [math.tanh(a[0] + u[0])]
        case "rnn_relu":
            return [max(0, a[0] + u[0])]
    pytest.skip(f"the equations of {cell} are not written here")


@pytest.mark.parametrize("cell", CELLS)
def test_one_unit_follows_the_equations_written_with_scalars(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=5, B=1, I=1, H=1))
    assert p.state0 is not None
    y, last, _ = reference.forward(cell, p.x, p.parameters, p.state0)
    weights = np.concatenate([np.ravel(w) for w in p.parameters[0] if w is not None]).tolist()
    state = [s.item() for s in p.state0 if s is not None]
    for t in range(5):
        state = scalar_step(cell, p.x[t].item(), state, weights)
        assert y[t].item() == pytest.approx(state[0], rel=1e-14)
    assert last[0].item() == y[-1].item()
    assert [s.item() for s in last] == pytest.approx(state, rel=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_second_direction_is_the_first_on_reversed_time(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=5, B=2, I=3, H=4, D=2))
    y, (h, *_), _ = reference.forward(cell, p.x, p.parameters)
    y_reversed, (h_reversed, *_), _ = reference.forward(cell, p.x[::-1], p.parameters[1:])
    np.testing.assert_array_equal(y[..., 4:], y_reversed[::-1])
    np.testing.assert_array_equal(h[1], h_reversed[0])


@pytest.mark.parametrize("cell", CELLS)
def test_missing_states_and_gradients_are_zeros(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=3, B=2, I=3, H=4))
    zeros = solve(reference, p.with_each(np.zeros_like, "state0", "dstate"))
    nothing = (None,) * num_states(cell)
    for missing in (p.without("state0", "dstate"), replace(p, state0=nothing, dstate=nothing)):
        for name, a in solve(reference, missing).items():
            np.testing.assert_array_equal(a, zeros[name], err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_that_the_cell_lacks_is_an_error(cell: str) -> None:
    p: Any = with_dsteps(make_problem(cell, np.float64, Shape(T=3, B=2, I=3, H=4)))
    _, _, tape = reference.forward(cell, p.x, p.parameters)
    for wrong in ((*p.state0, None), p.state0[1:], p.state0[0]):
        with pytest.raises(ValueError, match="state0: expected a tuple"):
            reference.forward(cell, p.x, p.parameters, wrong)
        with pytest.raises(ValueError, match="dstate: expected a tuple"):
            reference.backward(tape, p.dy, wrong)
    with pytest.raises(ValueError, match="dsteps: expected a tuple"):
        reference.backward(tape, p.dy, dsteps=(*p.dsteps, None))


def alone(problem: Problem, b: int, steps: slice) -> Problem:
    """Return these steps of one sequence as a problem of their own, whole and without resets."""
    p = problem.with_each(itemgetter(np.s_[:, b : b + 1]), "state0", "dstate")
    return p.with_each(itemgetter(np.s_[steps, b : b + 1]), "x", "dy", "dsteps").without("lengths", "resets")


def assert_equal_to_rounding(actual: Results, expected: Results) -> None:
    """Assert that the same arrays came, equal but for the order of sums."""
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-13, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_of_a_ragged_batch_are_as_if_alone_and_the_padding_is_zero(cell: str) -> None:
    p: Any = ragged(with_dsteps(make_problem(cell, np.float64, Shape(T=5, B=4, I=3, H=4, D=2))), 3, 0, 5, 1)
    each = [(n, solve(reference, alone(p, b, slice(n)))) for b, n in enumerate(p.lengths)]
    for name, a in solve(reference, p).items():
        match name:
            case "y" | "dx":
                assert not np.where(p.real, 0, a).any()
                parts = [np.pad(one[name], ((0, 5 - n), (0, 0), (0, 0))) for n, one in each]
                expected = np.concatenate(parts, axis=1)
            case _ if name in of_states(cell):
                expected = np.concatenate([one[name] for _, one in each], axis=1)
            case _:
                expected = np.sum([one[name] for _, one in each], axis=0)
        assert_equal_to_rounding({name: a}, {name: expected})


@pytest.mark.parametrize("cell", CELLS)
def test_resets_are_episodes_apart(cell: str) -> None:
    p = with_dsteps(make_problem(cell, np.float64, Shape(T=6, B=1, I=3, H=4, D=2)))
    results = solve(reference, replace(p, resets=np.array([True, False, True, True, False, False])[:, None]))
    apart = []
    for episode in (slice(0, 2), slice(2, 3), slice(3, 6)):
        # The first direction ends with the last episode, the second with the first.
        ends = np.array([episode.stop == 6, episode.start == 0])[:, None, None]
        apart.append(solve(reference, alone(p.with_each(ends.__mul__, "dstate"), 0, episode)))
    for name, a in results.items():
        parts = [part[name] for part in apart]
        match name:
            case "y" | "dx":
                expected = np.concatenate(parts)
            case _ if name in _core.cells[cell].states:
                expected = np.stack([parts[-1][0], parts[0][1]])
            case _:
                expected = np.sum(parts, axis=0)
        assert_equal_to_rounding({name: a}, {name: expected})


@pytest.mark.parametrize(
    ("cell", "held"),
    [("lstm", {"f": 0.0}), ("gru", {"z": 0.0, "r": 0.0}), ("gru_reset_before", {"z": 0.0, "r": 0.0})],
)
def test_gates_held_shut_leave_the_old_state_no_influence(cell: str, held: dict[str, float]) -> None:
    p: Any = replace(make_problem(cell, np.float64, Shape(T=5, B=2, I=3, H=4)), gate_override=held)
    states = _core.cells[cell].states
    results = solve(reference, p)
    others = solve(reference, replace(p, state0=(*p.state0[:-1], p.state0[-1] + 1)))
    for name in ("y", *states, "dx"):
        np.testing.assert_array_equal(results[name], others[name], err_msg=name)
    assert not results[f"d{states[-1]}0"].any()
    *_, tape = reference.forward(cell, p.x, p.parameters, p.state0, gate_override=held)
    [gates] = reference.gates(tape)
    rows = dict(zip(_core.cells[cell].gates, np.split(results["dw_ih[0]"], len(gates)), strict=True))
    for name, value in held.items():
        assert (gates[name] == value).all()
        assert not rows[name].any()


def test_an_update_gate_held_open_keeps_the_state() -> None:
    p: Any = make_problem("gru", np.float64, Shape(T=5, B=2, I=3, H=4))
    y, (h,), _ = reference.forward("gru", p.x, p.parameters, p.state0, gate_override={"z": 1})
    assert (y == p.state0[0]).all()
    assert (h == p.state0[0]).all()


@pytest.mark.parametrize(("cell", "gate"), [("lstm", "z"), ("gru", "f"), ("rnn_tanh", "i")])
def test_a_gate_that_the_cell_lacks_is_an_error(cell: str, gate: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=3, B=2, I=3, H=4))
    with pytest.raises(ValueError, match="gate_override"):
        reference.forward(cell, p.x, p.parameters, gate_override={gate: 0.5})


def hat(v: Array, eps: float = 1e-5) -> Array:
    """Return rows with the mean 0 and, but for eps, the variance 1."""
    normed: Array = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + eps)
    return normed


@pytest.mark.parametrize("cell", CELLS)
def test_gates_and_states_of_every_step_are_those_of_the_equations(cell: str) -> None:
    p: Any = ragged(make_problem(cell, np.float64, Shape(T=5, B=3, I=3, H=4, D=2)), 5, 2, 0, pad=0)
    y, _, tape = reference.forward(cell, p.x, p.parameters, p.state0, lengths=p.lengths)
    h, *c = tape.steps
    np.testing.assert_array_equal(h, y)
    assert [list(gates) for gates in reference.gates(tape)] == [list(_core.cells[cell].gates)] * 2
    gates = reference.gates(tape)[0]  # of the first direction, from here on
    assert all(not np.where(p.real, 0, a).any() for a in (*gates.values(), *c))
    before = np.concatenate([p.state0[0][:1], h[:-1, :, :4]])
    w_ih, w_hh, b_ih, b_hh, *more = p.parameters[0]
    G, heads = len(gates) or 1, 4 // w_hh.shape[1]
    of_heads = zip(np.split(before, heads, -1), np.split(w_hh.reshape(G, 4, -1), heads, 1), strict=True)
    product = np.concatenate([np.einsum("tbk,gjk->gtbj", v, w) for v, w in of_heads], -1)
    a, u = np.split(p.x @ w_ih.T + b_ih, G, -1), product + b_hh.reshape(-1, 1, 1, 4)
    if cell.endswith(("_norm", "_norm_carried")):
        gain_ih, gain_hh, *more = more
        a = np.split(gain_ih * hat(p.x @ w_ih.T) + b_ih, G, -1)
        u = np.array(np.split(gain_hh * hat(before @ w_hh.T) + b_hh, G, -1))
    expected: Results = {}
    match cell:
        case "lstm":
            expected = {name: reference.sigmoid(a[k] + u[k]) for k, name in enumerate("ifgo")}
            expected["g"] = np.tanh(a[2] + u[2])
            assert_equal_to_rounding({"h": h[..., :4]}, {"h": gates["o"] * np.tanh(c[0][..., :4])})
        case "lstm_norm" | "lstm_norm_carried":
            expected = {name: reference.sigmoid(a[k] + u[k]) for k, name in enumerate("ifgo")}
            expected["g"] = np.tanh(a[2] + u[2])
            after, (gain_c, b_c) = c[0][..., :4], more
            before = np.concatenate([p.state0[1][:1], after[:-1]])
            sum_c = gates["f"] * before + gates["i"] * gates["g"]
            norm_c = gain_c * hat(sum_c) + b_c
            made = sum_c if cell == "lstm_norm" else norm_c
            assert_equal_to_rounding({"c": after}, {"c": np.where(p.real, made, 0)})
            assert_equal_to_rounding({"h": h[..., :4]}, {"h": gates["o"] * np.tanh(norm_c)})
        case "lstm_peephole" | "cifg" | "cifg_peephole":
            after = c[0][..., :4]
            before = np.concatenate([p.state0[1][:1], after[:-1]])
            seeing = [name for name in gates if name != "g"]
            peepholes: list[Any] = np.split(more[0], len(seeing)) if more else [0] * len(seeing)
            seen = {name: p_k * (after if name == "o" else before) for name, p_k in zip(seeing, peepholes, strict=True)}
            for k, name in enumerate(gates):
                raw = a[k] + u[k] + seen.get(name, 0)
                expected[name] = np.tanh(raw) if name == "g" else reference.sigmoid(raw)
            assert_equal_to_rounding({"h": h[..., :4]}, {"h": gates["o"] * np.tanh(c[0][..., :4])})
        case "slstm" | "slstm_exp":
            after_c, n, m = (part[..., :4] for part in c)
            raw = [a_k + u_k for a_k, u_k in zip(a, u, strict=True)]
            log_f = -np.log1p(np.exp(-raw[1])) if cell == "slstm" else raw[1]
            l = np.concatenate([p.state0[3][:1], m[:-1]]) + log_f
            f = np.minimum(np.exp(l - m), more[0][4:])
            expected = {"i": np.exp(raw[0] - m), "f": f, "z": np.tanh(raw[2]), "o": reference.sigmoid(raw[3])}
            assert_equal_to_rounding({"m": m}, {"m": np.where(p.real, np.maximum(raw[0], l), 0)})
            assert_equal_to_rounding({"h": h[..., :4]}, {"h": gates["o"] * after_c / np.where(p.real, n, 1)})
        case "gru" | "gru_norm" | "gru_reset_before":
            expected = {name: reference.sigmoid(a[k] + u[k]) for k, name in enumerate("rz")}
            of_n = (h[..., :4] - gates["z"] * before) / np.where(p.real, 1 - gates["z"], 1)
            expected["n"] = np.where(p.real, of_n, 0)
        case _ if gates:
            pytest.skip(f"the equations of {cell} are not written here")
    assert_equal_to_rounding(gates, {name: np.where(p.real, gate, 0) for name, gate in expected.items()})


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_a_step_are_those_of_the_loss_as_a_function_of_its_state(cell: str) -> None:
    p: Any = smooth(with_dsteps(make_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=2))))
    *_, tape = reference.forward(cell, p.x, p.parameters, p.state0, **p.options("layer_norm_eps"))
    found = reference.gradients(tape, p.dy, p.dstate, dsteps=p.dsteps)
    for t in range(4):
        state = tuple(s[t : t + 1].copy() for s in tape.steps)
        after = replace(p.with_each(itemgetter(np.s_[t + 1 :]), "x", "dy", "dsteps"), state0=state)
        given = (p.dy, *p.dsteps)
        expected = [central_difference(after, s) + ds[t] for s, ds in zip(state, given, strict=True)]
        if "n" in _core.cells[cell].states:  # the step's c and n make its h
            h, _, n, _ = state
            expected[1] += expected[0] * reference.gates(tape)[0]["o"][t] / n
            expected[2] -= expected[0] * h / n
        elif cell == "lstm_norm":  # the step's c makes its h
            gain_c, b_c = p.parameters[0][-2:]
            o, c_hat = reference.gates(tape)[0]["o"][t], hat(state[1], p.layer_norm_eps)
            dc_hat = expected[0] * o * (1 - np.tanh(gain_c * c_hat + b_c) ** 2) * gain_c
            centred = dc_hat - dc_hat.mean(-1, keepdims=True) - c_hat * (dc_hat * c_hat).mean(-1, keepdims=True)
            expected[1] += centred / np.sqrt(state[1].var(-1, keepdims=True) + p.layer_norm_eps)
        elif len(state) == 2:  # the step's c makes its h
            o, tanh_c, more = reference.gates(tape)[0]["o"][t], np.tanh(state[1]), p.parameters[0][4:]
            expected[1] += expected[0] * o * (1 - tanh_c**2)
            if "peephole" in cell:  # and through p_o its o
                expected[1] += expected[0] * tanh_c * o * (1 - o) * more[0][-2:]
        for ds, ds_expected in zip(found.dsteps, expected, strict=True):
            np.testing.assert_allclose(ds[t], ds_expected[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_clipping_is_chunks_of_one_step_with_the_gradient_clipped_between(cell: str, form: Any) -> None:
    bound = 0.2
    p: Any = replace(form(make_problem(cell, np.float64, Shape(T=4, B=3, I=3, H=4))), clip_dh=bound)
    results = solve(reference, p)
    *_, tape = reference.forward(p.cell, p.x, p.parameters, p.state0, **p.options("lengths", "resets"))
    anew = np.zeros((4, 3), np.bool_) if p.resets is None else p.resets
    dstate = list(p.dstate)
    dfirst = [np.zeros_like(ds) for ds in dstate]
    cut = 0
    for t in reversed(range(4)):
        here = p.real[t : t + 1]
        before = tuple(s[None] for s in tape.kept[0][t][: len(dstate)])
        step = p.with_each(itemgetter(np.s_[t : t + 1]), "x", "dy", "dsteps").without("resets", "clip_dh")
        step = replace(step, state0=before, dstate=tuple(dstate), lengths=here[0, :, 0].astype(int))
        found = solve(reference, step)
        np.testing.assert_array_equal(results["dx"][t], found["dx"][0])
        for k, ds in enumerate(found[f"d{name}0"] for name in _core.cells[cell].states):
            clipped = np.where(here, np.minimum(np.maximum(ds, -bound), bound), ds)
            cut += int((clipped != ds).sum())
            crosses = ~(here & anew[t, :, None])
            dfirst[k] += np.where(crosses, 0, clipped)
            dstate[k] = np.where(crosses, clipped, 0)
    assert cut > 0
    expected = named_state(cell, tuple(a + b for a, b in zip(dfirst, dstate, strict=True)), "d{}0")
    assert_equal_to_rounding({name: results[name] for name in expected}, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_a_bound_that_nothing_reaches_changes_nothing(cell: str) -> None:
    p = make_problem(cell, np.float64, Shape(T=4, B=2, I=3, H=4, D=2))
    clipped = solve(reference, replace(p, clip_dh=1e3))
    for name, a in solve(reference, p).items():
        np.testing.assert_array_equal(a, clipped[name], err_msg=name)


# Truncated backpropagation through time, of stacks

T = 7
K1_K2 = [(1, 4), (2, 2), (2, 5), (3, 2), (4, 1), (1, 9), (9, 3)]
by_window = pytest.mark.parametrize(("k1", "k2"), K1_K2)
by_losses = pytest.mark.parametrize("losses", ["new", "window"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((7, 3, 2, "new"), [(1, 0, 3), (4, 3, 6), (5, 6, 7)]),
        ((7, 3, 2, "window"), [(1, 1, 3), (4, 4, 6), (5, 5, 7)]),
        ((6, 3, 4, "new"), [(0, 0, 3), (2, 3, 6)]),
        ((6, 3, 4, "window"), [(0, 0, 3), (2, 2, 6)]),
        ((3, 5, 9, "new"), [(0, 0, 3)]),
    ],
)
def test_windows_end_at_multiples_of_k1_and_at_the_end(arguments: Any, expected: list[tuple[int, ...]]) -> None:
    assert reference.windows(*arguments) == expected


def make_stack(cell: str, L: int, T: int = T) -> tuple[Any, list[Any]]:
    """Return a problem whose states and dy are those of a stack of L layers, and the layers."""
    each = [make_problem(cell, np.float64, Shape(T, B=3, I=2 if k == 0 else 4, H=4), seed=k) for k in range(L)]
    state0 = joined([p.state0 for p in each])
    return replace(each[0], state0=state0, dstate=None), [p.parameters for p in each]


def joined(states: Any) -> tuple[Array, ...]:
    """Return the state of a stack from those of its layers."""
    return tuple(map(np.concatenate, zip(*states, strict=True)))


def named_stack(cell: str, dx: Array | None, dstate0: Any, grads: Any) -> Results:
    """Return the gradients of a stack by name; the second index is the layer."""
    layers = [named_grads(layer).items() for layer in grads]
    own = {f"{n}[{k}]": a for k, new in enumerate(layers) for n, a in new}
    return {**named(dx=dx), **named_state(cell, dstate0, "d{}0"), **own}


def truncated(p: Any, layers: list[Any], k1: int, k2: int, **options: Any) -> Results:
    """Return the results of `reference.tbptt_gradient` by name."""
    names = ("embedding", "lengths", "resets", "gate_override", "clip_dh")
    found = reference.tbptt_gradient(p.cell, p.x, layers, p.dy, k1, k2, p.state0, **p.options(*names), **options)
    return named_stack(p.cell, *found)


def untruncated(p: Any, layers: list[Any]) -> Results:
    """Return the gradients of a stack, forward and backward layer by layer."""
    tapes, y = [], p.x
    for k, parameters in enumerate(layers):
        state = of_layer(p.state0, k)
        options = p.options("lengths", "resets", "gate_override", *(() if k else ("embedding",)))
        y, _, tape = reference.forward(p.cell, y, parameters, state, **options)
        tapes.append(tape)
    return named_stack(p.cell, *stack_backward(tapes, p.dy, clip_dh=p.clip_dh))


def of_layer(state: Any, k: int) -> tuple[Array, ...]:
    """Return the state of one layer of a stack."""
    return tuple(s[k : k + 1] for s in state)


def stack_backward(tapes: list[reference.Tape], d: Any, **options: Any) -> tuple[Any, Any, list[Any]]:
    """Run a stack backwards layer by layer; return dx, dstate0 and the gradients of the layers."""
    dstate0: list[Any] = []
    grads: list[Any] = []
    for tape in reversed(tapes):
        d, ds, new = reference.backward(tape, d, **options)
        dstate0.insert(0, ds)
        grads.insert(0, new)
    return d, joined(dstate0), grads


SEQUENCES: dict[str, Callable[[Problem], Problem]] = {
    "whole": lambda p: p,
    "lengths": lambda p: ragged(p, 4, 0, 7),
    "resets": with_resets,
    "lengths, resets": lambda p: ragged(with_resets(p), 7, 5, 2),
    "clipped": lambda p: replace(p, clip_dh=0.05),
    "embedded tokens": lambda p: replace(p, x=np.arange(21).reshape(7, 3) % 5, embedding=np.ones((5, 2))),
    "one-hot tokens": lambda p: replace(p, x=np.arange(21).reshape(7, 3) % 2),
}


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("form", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("cell", CELLS)
def test_one_window_is_backpropagation_through_all_of_time(cell: str, form: Any, L: int) -> None:
    p, layers = make_stack(cell, L)
    p = form(p)
    if gates := _core.cells[cell].held:
        p = replace(p, gate_override={gates[1]: 0.7})
    assert_equal_to_rounding(truncated(p, layers, T, T), untruncated(p, layers))


@by_losses
@pytest.mark.parametrize("k1", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_windows_that_reach_back_to_the_start_add_up_to_all_of_time(cell: str, k1: int, losses: Any) -> None:
    p, layers = make_stack(cell, 2)
    p = with_resets(p)
    windows = reference.windows(T, k1, T, losses)
    times = np.array([sum(w.start <= t < w.stop for w in windows) for t in range(T)])  # that the loss of a step counts
    whole = untruncated(replace(p, dy=p.dy * times[:, None, None]), layers)
    assert_equal_to_rounding(truncated(p, layers, k1, T, losses=losses), whole)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("cell", CELLS)
def test_windows_as_long_as_their_distance_are_chunks_that_hand_on_their_state(cell: str, k: int) -> None:
    """Where k divides T: the last window, too, reaches back k steps, beyond the steps that are left over."""
    p, layers = make_stack(cell, 1, T=6)
    state, chunks = p.state0, []
    for t in range(0, 6, k):
        _, state, tape = reference.forward(p.cell, p.x[t : t + k], layers[0], state)
        chunks.append(reference.backward(tape, p.dy[t : t + k]))
    dx, dstate0, grads = chunks[0]
    expected = named_stack(cell, dx, dstate0, [grads])
    for dx, _, grads in chunks[1:]:
        expected["dx"] = np.concatenate([expected["dx"], dx])
        for name, a in named_grads(grads).items():
            expected[f"{name}[0]"] += a
    assert_equal_to_rounding(truncated(p, layers, k, k), expected)


def descend(layers: list[Any], grads: Any) -> list[Any]:
    """Return the layers a step down their gradients."""
    return [
        [tuple(w - 0.05 * dw for w, dw in zip(ws, dws, strict=True)) for ws, dws in zip(layer, dlayer, strict=True)]
        for layer, dlayer in zip(layers, grads, strict=True)
    ]


def sliced(tape: reference.Tape, steps: slice) -> reference.Tape:
    """Return the tape of some of its steps."""
    return tape._replace(
        x=tape.x[steps],
        candidate=[of_steps[steps] for of_steps in tape.candidate],
        kept=[kept[steps] for kept in tape.kept],
        normed=[normed[steps] for normed in tape.normed],
        steps=tuple(s[steps] for s in tape.steps),
        real=tape.real[steps],
        anew=[anew[steps] for anew in tape.anew],
    )


def longer(a: reference.Tape, b: reference.Tape) -> reference.Tape:
    """Return the tape of the steps of both."""
    return a._replace(
        x=np.concatenate([a.x, b.x]),
        candidate=[[*p, *q] for p, q in zip(a.candidate, b.candidate, strict=True)],
        kept=[[*p, *q] for p, q in zip(a.kept, b.kept, strict=True)],
        normed=[[*p, *q] for p, q in zip(a.normed, b.normed, strict=True)],
        steps=tuple(np.concatenate(s) for s in zip(a.steps, b.steps, strict=True)),
        real=np.concatenate([a.real, b.real]),
        anew=[np.concatenate(anew) for anew in zip(a.anew, b.anew, strict=True)],
    )


@by_losses
@pytest.mark.parametrize("activations", ["stored", "replay"])
@by_window
@pytest.mark.parametrize("cell", CELLS)
def test_windows_are_run_with_the_weights_of_their_time(
    cell: str, k1: int, k2: int, activations: Any, losses: Any
) -> None:
    """One layer's whole window after the other, where the oracle goes step by step through the stack."""
    p, layers = make_stack(cell, 2)
    rng = np.random.default_rng(0)
    windows = reference.windows(T, k1, k2, losses)
    dys = [rng.standard_normal((w.stop - w.start, 3, 4)) for w in windows]
    now = layers

    def update(_: int, result: reference.Truncated) -> list[Any]:
        nonlocal now
        now = descend(now, result.grads)
        return now

    results = reference.tbptt(
        cell, p.x, layers, dys, k1, k2, p.state0, losses=losses, activations=activations, update=update
    )
    tapes: list[Any] = [None, None]
    state = [of_layer(p.state0, k) for k in range(2)]
    done = 0
    for window, dy, result in zip(windows, dys, results, strict=True):
        y = p.x[done : window.stop]
        for k in range(2):
            y, state[k], tape = reference.forward(cell, y, layers[k], state[k])
            tapes[k] = longer(tapes[k], tape) if done else tape
        done = window.stop
        seen = [sliced(tape, slice(window.tau, window.stop)) for tape in tapes]
        if activations == "replay":
            below = p.x[window.tau : window.stop]
            for k in range(2):
                at_tau = tuple(s[None] for s in seen[k].kept[0][0][: len(seen[k].steps)])
                below, _, seen[k] = reference.forward(cell, below, layers[k], at_tau)
        d = np.zeros((window.stop - window.tau, 3, 4))
        d[max(0, window.start - window.tau) :] = dy[max(0, window.tau - window.start) :]
        weights: list[Any] = layers
        tapes_now = [tape._replace(parameters=w) for tape, w in zip(seen, weights, strict=True)]
        d, dstate0, grads = stack_backward(tapes_now, d)
        dx = np.zeros_like(p.x)
        dx[window.tau : window.stop] = d
        dstate0 = mapped(np.zeros_like, dstate0) if window.tau else dstate0
        expected = {"y": y, **named_stack(cell, dx, dstate0, grads)}
        found = named_stack(cell, result.dx, result.dstate0, result.grads)
        assert_equal_to_rounding({"y": result.y, **found}, expected)
        layers = descend(layers, grads)


@by_losses
@by_window
def test_a_replay_with_the_same_weights_is_what_is_stored(k1: int, k2: int, losses: Any) -> None:
    p, layers = make_stack("lstm", 2)
    p = ragged(with_resets(p), 7, 5, 2)
    replayed = truncated(p, layers, k1, k2, losses=losses, activations="replay")
    for name, a in truncated(p, layers, k1, k2, losses=losses).items():
        np.testing.assert_array_equal(a, replayed[name], err_msg=name)


def test_a_layer_of_a_stack_holds_its_own_gates() -> None:
    p, layers = make_stack("lstm", 2)
    held = truncated(replace(p, gate_override=None), layers, 2, 3, gate_override=[None, {"f": 0.5}])
    rows = {k: np.split(held[f"dw_hh[0][{k}]"], 4)[1] for k in range(2)}
    assert rows[0].any()
    assert not rows[1].any()


def test_the_oracle_and_the_kernels_have_the_same_cells() -> None:
    files = {name: (cell.states, cell.gates, cell.parameters) for name, cell in _core.cells.items()}
    assert files == {name: (cell.states, cell.gates, cell.parameters) for name, cell in reference.CELLS.items()}
