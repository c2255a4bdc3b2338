"""Recurrent dropout: kernels with factors of h', where masks come from, when they act. (test_sequences has stacks.)"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import B, H, I, T, make_layer, normal, results
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
from test_layers import central_differences
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


# Masks of layers


def layer_of(per_gate: bool = False, **options: Any) -> Any:
    own = {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.3, "recurrent_dropout_per_gate": per_gate}
    return make_layer("lstm", **{**own, **options})


def masks_of(layer: Any, x: Any, **options: Any) -> Results:
    masks: Results = layer.forward(x, **options)[2].recurrent_masks
    return masks


def all_of(layer: Any, x: Array, **options: Any) -> Results:
    y, state, tape = layer.forward(x, **options)
    return results(y, state, *layer.backward(tape, np.ones_like(y)))


X = normal((T, B, I), "float32", 1)


@by_gate
def test_as_many_are_kept_as_the_rate_says(per_gate: bool) -> None:
    layer = layer_of(per_gate, sizes=(1, 50))
    masks = masks_of(layer, np.zeros((1, 90, 1), np.float32))
    assert list(masks) == ["recurrent_l0", "recurrent_l0_reverse", "recurrent_l1", "recurrent_l1_reverse"]
    for mask in masks.values():
        assert mask.shape == ((90, 4, 50) if per_gate else (90, 50))
        assert abs(mask.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / mask.size)
        assert not mask.flags.writeable
    one, *others = masks.values()
    assert not any(np.array_equal(one, other) for other in others)
    assert not np.array_equal(one[0], one[1])


@by_gate
def test_masks_are_those_of_the_seed_and_of_the_call(per_gate: bool) -> None:
    layer, again = layer_of(per_gate), layer_of(per_gate)
    first, second = masks_of(layer, X), masks_of(layer, X)
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    assert_same_bits(masks_of(again, X), first)
    twin = copy.deepcopy(again)
    assert_same_bits(masks_of(again, X), second)
    assert_same_bits(masks_of(twin, X), second)


CALLS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {  # options of the layer, x, those of forward
    "lengths": ({}, X, {"lengths": [2, 5, 0]}),
    "packed": ({}, rnnfast.pack_padded(X, [2, 5, 4]), {}),
    "checkpoint": ({"dropout": 0.5}, X, {"checkpoint": 1}),
    "last": ({}, X[:2], {"outputs": "last"}),
    "options": ({"batch_first": True}, X.swapaxes(0, 1), {"gate_override": {"f": 0.5}}),
    "tokens": ({"learn_initial_state": True}, np.zeros((T, B), int), {}),
    "float64": ({"dtype": "float64"}, X.astype(np.float64), {}),
}


@pytest.mark.parametrize("call", CALLS)
@by_gate
def test_masks_depend_on_nothing_but_seed_and_call(per_gate: bool, call: str) -> None:
    own, x, options = CALLS[call]
    assert_same_bits(masks_of(layer_of(per_gate, **own), x, **options), masks_of(layer_of(per_gate), X))


@by_gate
def test_a_sequence_has_its_mask_beside_any_that_follow(per_gate: bool) -> None:
    whole = masks_of(layer_of(per_gate), X)
    assert_same_bits(masks_of(layer_of(per_gate), X[:, :2]), {name: mask[:2] for name, mask in whole.items()})
    assert_same_bits(masks_of(layer_of(per_gate), X[:, 0]), {name: mask[0] for name, mask in whole.items()})
    assert {mask.shape[0] for mask in masks_of(layer_of(per_gate), X[:, :0]).values()} == {0}


@by_gate
def test_one_sequence_is_a_batch_of_one(per_gate: bool) -> None:
    one, batch = (all_of(layer_of(per_gate), x) for x in (X[:, 0], X[:, :1]))
    assert_same_bits({name: a.reshape(batch[name].shape) for name, a in one.items()}, batch)
    layer = layer_of(per_gate)
    y, _, tape = layer.forward(X[:, 0], lengths=[3])
    assert np.array_equal(layer.forward(X[:, 0], lengths=[3], masks=tape.recurrent_masks)[0], y)
    assert not layer.forward(X[:, 0], lengths=[0])[0].any()


@by_gate
def test_results_do_not_depend_on_threads(per_gate: bool) -> None:
    layers = [layer_of(per_gate, sizes=(33, 65)) for _ in range(2)]
    x = normal((70, 9, 33), "float32", 2)
    with rnnfast.threads(1):
        expected = all_of(layers[0], x)
    with rnnfast.threads(3):
        assert_same_bits(all_of(layers[1], x), expected)


@by_gate
def test_a_tape_gives_the_same_gradients_any_number_of_times(per_gate: bool) -> None:
    layer = layer_of(per_gate)
    y, _, tape = layer.forward(X)
    expected = layer.backward(tape, y)[2]
    layer.forward(X)
    assert_same_bits(layer.backward(tape, y)[2], expected)


@by_gate
def test_masks_that_are_given_are_used_and_the_others_drawn(per_gate: bool) -> None:
    layer, twin = layer_of(per_gate), layer_of(per_gate)
    drawn = masks_of(layer, X)
    expected = all_of(layer, X)
    name, kept = "recurrent_l1", np.random.default_rng(0).random(drawn["recurrent_l1"].shape) < 0.5
    masks = masks_of(twin, X, masks={name: kept})
    assert_same_bits(masks, {**drawn, name: kept})
    assert masks[name] is not kept
    assert_same_bits(all_of(twin, X), expected)  # the call that was given a mask counts as one


@by_gate
def test_it_goes_with_dropout_of_weights(per_gate: bool) -> None:
    layer = layer_of(per_gate, weight_dropout=0.3, dtype="float64")
    x, dy = X.astype(np.float64), normal((T, B, 2 * H), "float64", 2)
    y, _, tape = layer.forward(x)
    masks = {**tape.weight_masks, **tape.recurrent_masks}
    assert len(masks) == 8
    assert np.array_equal(layer.forward(x, masks=masks)[0], y)
    grads = layer.backward(tape, dy)[2]

    def loss() -> float:
        return float((dy * layer.forward(x, masks=masks)[0]).sum())

    for name in ("weight_hh_l0", "weight_hh_l1_reverse"):
        assert relative_error(central_differences(loss, layer.parameters[name]), grads[name]) < 1e-7


def test_the_rate_is_not_of_the_masks_that_are_given() -> None:
    layer, plain = layer_of(recurrent_dropout=0.25), layer_of(recurrent_dropout=0)
    kept = {name: np.ones_like(mask) for name, mask in masks_of(layer, X).items()}
    for name, p in plain.parameters.items():
        if name.startswith("weight_hh"):
            p /= np.float32(0.75)
    assert np.abs(layer.forward(X, masks=kept)[0] - plain(X)[0]).max() < 1e-6


@by_gate
def test_only_forward_leaves_something_out(per_gate: bool) -> None:
    options: dict[str, Any] = {"recurrent_dropout": 0.5, "recurrent_dropout_per_gate": per_gate}
    layer, plain = make_layer("gru", **options), make_layer("gru")
    before = layer.rng.bit_generator.state
    assert np.array_equal(layer(X)[0], plain(X)[0])
    assert np.array_equal(layer(X, outputs="last")[0], plain(X, outputs="last")[0])
    assert np.array_equal(layer.stream(B).run(X), plain(X)[0])
    dy = np.ones((T, B, H), np.float32)
    assert np.array_equal(rnnfast.gradient_flow(layer, X, dy).h, rnnfast.gradient_flow(plain, X, dy).h)
    assert layer.rng.bit_generator.state == before
    assert not np.array_equal(layer.forward(X)[0], plain(X)[0])


@by_gate
def test_a_rate_of_zero_is_the_plain_layer(per_gate: bool) -> None:
    layer, plain = layer_of(per_gate, recurrent_dropout=0.0), layer_of(recurrent_dropout=0)
    assert_same_bits(all_of(layer, X), all_of(plain, X))
    assert layer.forward(X)[2].recurrent_masks == {}
    assert layer.rng.bit_generator.state == plain.rng.bit_generator.state


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_a_forward_that_fails_draws_nothing(checkpoint: Any) -> None:
    layer = layer_of()
    before = layer.rng.bit_generator.state
    tokens = np.zeros((T, B), int)
    tokens[-1, -1] = I
    for x, masks in ((tokens, None), (X, {"recurrent_l0": np.ones(3, bool)})):
        with pytest.raises(ValueError, match="expected"):
            layer.forward(x, checkpoint=checkpoint, masks=masks)
    assert layer.rng.bit_generator.state == before
