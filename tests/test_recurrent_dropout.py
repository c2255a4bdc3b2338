"""Recurrent dropout: kernels with factors of h', and Keras's form. (test_masks has masks, test_sequences stacks.)"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import B, H, I, T, central_differences, make_layer, normal
from problems import (
    CELLS,
    DTYPES,
    REPRESENTATIVES,
    Array,
    Problem,
    Results,
    Shape,
    assert_close,
    assert_parity,
    assert_same_bits,
    identify,
    make_problem,
    make_token_problem,
    named_state,
    solve,
    with_dsteps,
    with_resets,
)
from tolerances import relative_error

import rnnfast
from rnnfast import _core, functional, reference

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_gate = pytest.mark.parametrize("per_gate", [False, True], ids=["tied", "per gate"])


def by_shape(*shapes: Shape) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=identify)


# The kernels


def with_factors(problem: Problem, per_gate: bool, seed: int = 0) -> Problem:
    """Return the problem with factors of h', a third of them zero."""
    D, B = len(problem.parameters), problem.x.shape[1]
    gates = (_core.cells[problem.cell].num_gates,) if per_gate else ()
    kept = np.random.default_rng(seed).random((D, B, *gates, problem.hidden_size)) > 1 / 3
    dtype = np.asarray(problem.parameters[0][0]).dtype
    return replace(problem, recurrent_factors=(kept * 1.5).astype(dtype))


# Around the lanes of vectors, one step, one row, a few rows, several chunks of time; I small and not against H
SHAPES = (Shape(3, 4, 7, 5, D=2), Shape(5, 3, 1, 20), Shape(1, 1, 4, 5, D=2), Shape(2, 9, 40, 33, D=2))
LONG_SHAPES = (Shape(140, 2, 6, 17), Shape(4, 13, 30, 200))
DROPPING = [cell for cell in CELLS if not cell.startswith("slstm")]


@pytest.mark.parametrize(
    ("cell", "shape"),
    [(cell, shape) for cell in DROPPING for shape in SHAPES + LONG_SHAPES * (cell in REPRESENTATIVES)],
    ids=lambda value: identify(value) if isinstance(value, Shape) else value,
)
@by_gate
@by_dtype
def test_every_shape(cell: str, shape: Shape, dtype: str, per_gate: bool) -> None:
    problem = with_factors(make_problem(cell, dtype, shape), per_gate)
    assert_parity(solve(_core, problem), problem)


OPTIONS: dict[str, Callable[[Problem], Problem]] = {
    "not given": lambda p: p.without("state0", "dstate"),
    "resets": with_resets,
    "held": lambda p: replace(p, gate_override={_core.cells[p.cell].held[-1]: 0.25}),
    "every step": lambda p: replace(with_dsteps(p), clip_dh=0.5),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", ["lstm_peephole", "cifg", "gru", "gru_reset_before"])
@by_gate
def test_options(cell: str, per_gate: bool, option: str) -> None:
    problem = with_factors(OPTIONS[option](make_problem(cell, "float64", Shape(9, 3, 5, 20, D=2))), per_gate)
    assert_parity(solve(_core, problem), problem)


@pytest.mark.parametrize("V", [None, 11], ids=["one-hot", "embedded"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
@by_gate
def test_tokens(cell: str, per_gate: bool, V: int | None) -> None:
    for shape in (Shape(70, 5, 9, 20, D=2), Shape(3, 1, 9, 20)):
        problem = with_factors(make_token_problem(cell, "float64", shape, V=V), per_gate)
        assert_parity(solve(_core, problem), problem)


@by_shape(Shape(12, 5, 17, 272), Shape(9, 1, 40, 264, D=2))
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "rnn_tanh"])
@by_gate
def test_any_number_of_threads_gives_the_same_bits(cell: str, per_gate: bool, shape: Shape) -> None:
    problem = with_factors(with_resets(make_problem(cell, "float32", shape), 0.1), per_gate)
    with rnnfast.threads(1):
        expected = solve(_core, problem)
    assert_close(expected, solve(reference, problem), layers=4)
    for threads in (2, 3, 7):
        with rnnfast.threads(threads):
            assert_same_bits(solve(_core, problem), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
@by_gate
def test_no_sequence_depends_on_those_beside_it(cell: str, per_gate: bool) -> None:
    p = with_factors(make_problem(cell, "float32", Shape(20, 9, 7, 33, D=2)), per_gate)

    def run(rows: slice) -> Results:
        first = tuple(a[:, rows] for a in p.state0 or () if a is not None)
        factors: Any = p.recurrent_factors
        y, state, _ = _core.forward(p.cell, p.x[:, rows], p.parameters, first, recurrent_factors=factors[:, rows])
        return {"y": y.swapaxes(0, 1)} | {name: a.swapaxes(0, 1) for name, a in named_state(cell, state).items()}

    whole, parts = run(slice(None)), [run(slice(0, 2)), run(slice(2, 9))]
    assert_same_bits({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


@pytest.mark.parametrize("cell", REPRESENTATIVES[:-1])
@by_gate
def test_inference_is_forward(cell: str, per_gate: bool) -> None:
    p = with_factors(make_problem(cell, "float32", Shape(20, 3, 7, 33, D=2)), per_gate)
    run = (p.cell, p.x, p.parameters, p.state0)
    y, state = _core.inference(*run, recurrent_factors=p.recurrent_factors)
    expected, state_too, _ = _core.forward(*run, recurrent_factors=p.recurrent_factors)
    assert_same_bits({"y": y, **named_state(cell, state)}, {"y": expected, **named_state(cell, state_too)})


@pytest.mark.parametrize("cell", DROPPING)
@by_gate
def test_the_oracle_has_the_gradients_of_central_differences(cell: str, per_gate: bool) -> None:
    p = with_factors(make_problem(cell, "float64", Shape(3, 2, 2, 3, D=2)), per_gate)
    dy: Any = p.dy
    dstate: Any = p.dstate

    def loss() -> float:
        y, state, _ = reference.forward(cell, p.x, p.parameters, p.state0, recurrent_factors=p.recurrent_factors)
        return float((dy * y).sum() + sum((d * s).sum() for d, s in zip(dstate, state, strict=True)))

    got = solve(reference, p)
    (w_ih, w_hh, _, b_hh, *_), h0 = p.parameters[1], (p.state0 or ())[0]
    for name, a in {"dx": p.x, "dh0": h0, "dw_ih[1]": w_ih, "dw_hh[1]": w_hh, "db_hh[1]": b_hh}.items():
        assert a is not None
        assert relative_error(central_differences(loss, a), got[name]) < 1e-6


@by_gate
def test_functions_take_factors(per_gate: bool) -> None:
    p = with_factors(make_problem("gru", "float32", Shape(4, 3, 5, 6, D=2)), per_gate)
    expected, _ = _core.inference(p.cell, p.x, p.parameters, recurrent_factors=p.recurrent_factors)
    strided = np.repeat(np.asarray(p.recurrent_factors), 2, axis=-1)[..., ::2]
    for run in (functional.inference, functional.forward):
        assert np.array_equal(run(p.cell, p.x, p.parameters, recurrent_factors=strided)[0], expected)


# Other implementations


def keras_lstm(x: Array, kernel: Array, recurrent_kernel: Array, bias: Array, masks: Array) -> Array:
    """Return h of every step as `keras.layers.LSTMCell` has it, where masks [4,B,H] are of its gates i, f, c, o."""

    def sigmoid(a: Array) -> Array:
        return 1 / (1 + np.exp(-a))

    h, c = np.zeros(masks.shape[1:]), np.zeros(masks.shape[1:])
    hs = []
    for inputs in x:
        x_i, x_f, x_c, x_o = np.split(inputs @ kernel + bias, 4, axis=1)
        k_i, k_f, k_c, k_o = np.split(recurrent_kernel, 4, axis=1)
        h_i, h_f, h_c, h_o = h * masks
        i, f = sigmoid(x_i + h_i @ k_i), sigmoid(x_f + h_f @ k_f)
        c = f * c + i * np.tanh(x_c + h_c @ k_c)
        h = sigmoid(x_o + h_o @ k_o) * np.tanh(c)
        hs.append(h)
    return np.array(hs)


@by_gate
def test_the_lstm_is_that_of_keras(per_gate: bool) -> None:
    layer = make_layer("lstm", dtype="float64", recurrent_dropout=0.4, recurrent_dropout_per_gate=per_gate)
    x = normal((T, B, I), "float64", 1)
    kept = np.random.default_rng(0).random((B, 4, H) if per_gate else (B, H)) < 0.6
    y, _, _ = layer.forward(x, masks={"recurrent_l0": kept})
    masks = np.broadcast_to(kept.swapaxes(0, 1) if per_gate else kept, (4, B, H)) / 0.6
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    expected = keras_lstm(x, layer.weight_ih_l0.T, layer.weight_hh_l0.T, bias, masks)
    assert relative_error(y, expected) < 1e-12


# Layers


@by_gate
def test_it_goes_with_dropout_of_weights(per_gate: bool) -> None:
    rates: dict[str, Any] = {"recurrent_dropout": 0.3, "recurrent_dropout_per_gate": per_gate, "weight_dropout": 0.3}
    layer = make_layer("lstm", num_layers=2, bidirectional=True, dtype="float64", **rates)
    x, dy = normal((T, B, I), "float64", 1), normal((T, B, 2 * H), "float64", 2)
    y, _, tape = layer.forward(x)
    masks = {**tape.weight_masks, **tape.recurrent_masks}
    assert len(masks) == 8
    assert np.array_equal(layer.forward(x, masks=masks)[0], y)
    grads = layer.backward(tape, dy)[2]

    def loss() -> float:
        return float((dy * layer.forward(x, masks=masks)[0]).sum())

    for name in ("weight_hh_l0", "weight_hh_l1_reverse"):
        assert relative_error(central_differences(loss, layer.parameters[name]), grads[name]) < 1e-7
