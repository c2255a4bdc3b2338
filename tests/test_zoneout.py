"""Zoneout: its values beside the oracle, its mean, its generator and its rates. (test_masks has its masks.)"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import B, H, I, T, make_layer, make_state, normal, oracle, results, solve_layer, zoneout_of
from problems import (
    CELLS,
    DTYPES,
    Array,
    Results,
    Shape,
    assert_parity,
    assert_same_bits,
    make_problem,
    named_gradients,
    named_state,
    num_states,
    parts,
    solve,
    state_of,
)
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core, functional, reference

ZONED = [cell for cell in CELLS if not cell.startswith("slstm")]


def drawn(layer: Any, steps: int, batch: int, seed: int) -> Results:
    """Return masks for all states that have zoneout, time-major."""
    rng = np.random.default_rng(seed)
    rates = np.broadcast_to(layer.zoneout, num_states(layer.cell))
    ends = [f"_l{k}{end}" for k in range(layer.num_layers) for end in ("", "_reverse")[: layer.directions]]
    states = [name for name, rate in zip(_core.cells[layer.cell].states, rates, strict=True) if rate]
    return {f"zoneout_{s}{end}": rng.random((steps, batch, layer.hidden_size)) < 0.6 for end in ends for s in states}


X = normal((T, B, I), "float32", 1)


@pytest.mark.parametrize("cell", ZONED)
def test_the_oracles_gradients_are_central_differences(cell: str) -> None:
    rng = np.random.default_rng(0)
    layer = make_layer(cell, (2, 3), zoneout=0.4, dtype="float64", bidirectional=True)
    x, dy = normal((4, 2, 2), "float64", 1), normal((4, 2, 6), "float64", 2)
    for zoneout in (zoneout_of(layer, drawn(layer, 4, 2, 3)), [(0.3,) * num_states(cell)]):

        def loss(x: Array, zoneout: Any = zoneout) -> float:
            y = oracle(layer, x, None, dy, None, zoneout=zoneout)["y"]
            return float((y * dy).sum())

        dx = oracle(layer, x, None, dy, None, zoneout=zoneout)["dx"]
        direction = rng.standard_normal(x.shape)
        step = 1e-6
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        assert abs(difference - (dx * direction).sum()) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ZONED)
def test_calls_and_streams_have_the_mean(cell: str, dtype: str) -> None:
    rate: Any = (0.2, 0.5) if num_states(cell) == 2 else 0.3
    layer = make_layer(cell, (I, 21), zoneout=rate, dtype=dtype, num_layers=2)
    x, state = normal((T, B, I), dtype, 1), make_state(layer, (B,), 2)
    zoneout = [rate if isinstance(rate, tuple) else (rate,)] * 2
    expected = oracle(layer, x, state, None, state, zoneout=zoneout)
    y, last = layer(x, state)
    got = results(y, last, None, (), {})
    for name, value in got.items():
        assert relative_error(value, expected[name]) < TOLERANCE[np.dtype(dtype)], name
    assert np.array_equal(layer(x, state, outputs="last")[0], y[-1])
    stream = layer.stream(B)
    stream.state = state
    assert np.array_equal([stream.step(x_t) for x_t in x], y)
    again = copy.copy(stream)
    again.state = state
    assert np.array_equal(again.run(x), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_functions_of_arrays_have_it_too(cell: str, dtype: str) -> None:
    p, states = make_problem(cell, dtype, Shape(T, B, I, 12, D=2)), _core.cells[cell].states
    masks = tuple(np.random.default_rng(4).random((T, B, 24)) < 0.6 for _ in states)
    if "n" in states:  # c, n and m have one scale
        masks = masks[0], *masks[1:2] * 3
    some = masks[0], *(None for _ in states[1:])
    for zoneout in (masks, some, (0.3,) * len(states)) if "n" not in states else (masks, some):
        problem = replace(p, zoneout=zoneout)
        y, last, tape = functional.forward(cell, p.x, p.parameters, state_of(p.state0), zoneout=state_of(zoneout))
        dx, dstate0, grads = functional.backward(tape, p.dy, state_of(p.dstate))
        got = {"y": y, **named_state(cell, parts(last)), **named_gradients(cell, dx, parts(dstate0), grads)}
        assert_parity(got, problem)
        assert_same_bits(got, solve(_core, problem))
        again, _ = functional.inference(cell, p.x, p.parameters, state_of(p.state0), zoneout=state_of(zoneout))
        assert np.array_equal(again, y)
    numbers = tuple(m.astype(int) for m in masks), (np.array(0.3),) * len(states)
    for given, other in zip((masks, (0.3,) * len(states)), numbers, strict=True):
        expected, _ = functional.inference(cell, p.x, p.parameters, zoneout=state_of(given))
        assert np.array_equal(functional.inference(cell, p.x, p.parameters, zoneout=state_of(other))[0], expected)


def test_functions_of_arrays_take_packed_masks() -> None:
    p, rng = make_problem("gru", "float64", Shape(1, 6, I, 9, D=2)), np.random.default_rng(3)
    new, sizes = rng.random((6, 18)) < 0.6, [3, 2, 1]
    y, _ = functional.inference("gru", p.x[0], p.parameters, batch_sizes=sizes, zoneout=new)
    padded, masks, rows = np.zeros((3, 3, I)), np.zeros((3, 3, 18), bool), ([0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 0])
    padded[rows], masks[rows] = p.x[0], new
    expected, _, _ = reference.forward("gru", padded, p.parameters, lengths=[3, 2, 1], zoneout=(masks,))
    assert relative_error(y, expected[rows]) < TOLERANCE[np.dtype("float64")]


def test_gradient_flow_is_that_of_the_mean() -> None:
    layer = make_layer("lstm", zoneout=(0.3, 0.4), dtype="float64")
    x, dy = X.astype(np.float64), normal((T, B, H), "float64", 2)
    zoneout = (0.3, 0.4)
    parameters = [tuple(layer.parameters[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]
    _, _, tape = reference.forward("lstm", x, parameters, zoneout=zoneout)
    expected = reference.gradients(tape, dy).dsteps
    flow = rnnfast.gradient_flow(layer, x, dy)
    for got, value in zip((flow.h, flow.c), expected, strict=True):
        assert got is not None
        assert relative_error(got[0, 0], np.sqrt((value**2).sum(axis=(1, 2)))) < 1e-12


def test_each_state_has_its_rate() -> None:
    layer = make_layer("lstm", (1, 40), num_layers=2, bidirectional=True, zoneout=(0.1, 0.6))
    masks = layer.forward(np.zeros((50, 20, 1), np.float32))[2].zoneout_masks
    assert list(masks) == [f"zoneout_{s}_l{k}{end}" for k in range(2) for end in ("", "_reverse") for s in ("h", "c")]
    for name, mask in masks.items():
        new = 0.9 if "_h_" in name else 0.4
        assert abs(mask.mean() - new) < 5 * np.sqrt(new * (1 - new) / mask.size)


def test_a_unit_that_keeps_its_value_does_not_see_the_new_one() -> None:
    layer = make_layer("rnn_relu", (1, 2), zoneout=0.5)
    layer.weight_ih_l0 = np.array([[np.inf], [1]], np.float32)
    for name in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        layer.parameters[name][:] = 0
    y, _, tape = layer.forward(np.ones((3, 1, 1), np.float32), masks={"zoneout_h_l0": np.array([[[0, 1]]] * 3)})
    assert y[:, 0].tolist() == [[0, 1]] * 3
    _, dh0, _ = layer.backward(tape, np.full_like(y, 2))
    assert dh0.tolist() == [[[6, 0]]]


@pytest.mark.parametrize("rate", [(0, 0), [0.0, 0.0]], ids=str)
def test_rates_of_zero_are_none(rate: Any) -> None:
    layer = make_layer("lstm", zoneout=rate)
    assert layer.zoneout == 0
    assert_same_bits(solve_layer(layer, X), solve_layer(make_layer("lstm"), X))
    assert layer.forward(X)[2].zoneout_masks == {}


def test_a_state_without_rate_has_no_masks() -> None:
    layer = make_layer("lstm", zoneout=(0, 0.4), dtype="float64")
    x, masks = X.astype(np.float64), drawn(layer, T, B, 3)
    assert list(masks) == ["zoneout_c_l0"]
    y, state, tape = layer.forward(x, masks=masks)
    got = results(y, state, *layer.backward(tape, np.ones_like(y)))
    expected = oracle(layer, x, None, np.ones_like(y), None, zoneout=zoneout_of(layer, masks))
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[np.dtype("float64")], name
