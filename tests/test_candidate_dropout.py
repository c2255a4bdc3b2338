"""Candidate dropout: its values beside the oracle, where its masks come from, when it acts, what it leaves alone."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import B, H, I, T, factors_of, make_layer, make_state, normal, oracle, results
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
    named_gradients,
    named_state,
    num_states,
    parts,
    state_of,
    with_dsteps,
    with_resets,
)
from problems import solve as solve_problem
from test_layers import central_differences
from test_zoneout import of_oracle
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core, functional

WITH = [cell for cell in CELLS if _core.cells[cell].has_candidate]
RATE = 0.4
X = normal((T, B, I), "float32", 1)
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the layer and of forward
    "two layers": ({"num_layers": 2, "bidirectional": True}, {}),
    "checkpoint": ({"num_layers": 2}, {"checkpoint": 1}),
    "checkpoint, two directions": ({"bidirectional": True, "num_layers": 2}, {"checkpoint": 1}),
    "lengths": ({"bidirectional": True, "batch_first": True}, {"lengths": [2, 5, 4]}),
    "lengths, checkpoint": ({"bidirectional": True}, {"lengths": [2, 0, 4], "checkpoint": 1}),
    "resets": ({"bidirectional": True}, {"resets": np.random.default_rng(2).random((T, B)) < 0.3}),
}
each_or_all = pytest.mark.parametrize("of_all", [False, True], ids=["each step", "all steps"])


def layer_of(of_all: bool = False, **options: Any) -> Any:
    own = {"num_layers": 2, "bidirectional": True, "candidate_dropout": RATE, **options}
    return make_layer("lstm", **own, candidate_dropout_per_sequence=of_all)


def solve(layer: Any, x: Any, **options: Any) -> Results:
    y, state, tape = layer.forward(x, **options)
    return results(y, state, *layer.backward(tape, np.ones_like(y)))


def masks_of(layer: Any, x: Any, **options: Any) -> Results:
    masks: Results = layer.forward(x, **options)[2].candidate_masks
    return masks


def drawn(layer: Any, steps: int, batch: int, seed: int) -> Results:
    """Return masks, time-major."""
    rng = np.random.default_rng(seed)
    shape = (batch, layer.hidden_size) if layer.candidate_dropout_per_sequence else (steps, batch, layer.hidden_size)
    ends = [f"_l{k}{end}" for k in range(layer.num_layers) for end in ("", "_reverse")[: layer.directions]]
    return {f"candidate{end}": rng.random(shape) < 0.6 for end in ends}


def candidates_of(layer: Any, masks: Results) -> list[tuple[Array, float]]:
    """Return the dropout of each layer as the oracle takes it."""
    D, kept = layer.directions, list(masks.values())
    of_layers = [np.concatenate(kept[k : k + D], axis=-1) for k in range(0, len(kept), D)]
    return [(m[None] if m.ndim == 2 else m, layer.candidate_dropout) for m in of_layers]


def nothing(layer: Any) -> Any:
    """Return the gradient of a last state on which nothing depends."""
    return state_of((None,) * num_states(layer.cell))


def with_candidates(problem: Problem, of_all: bool) -> Problem:
    """Return the problem with some candidates dropped."""
    T, B = problem.x.shape[:2]
    units = len(problem.parameters) * problem.hidden_size
    kept = np.random.default_rng(0).random((1 if of_all else T, B, units)) < 0.6
    return replace(problem, candidate_dropout=(kept, RATE))


# The kernels


# Around the lanes of vectors, one step, one row, a few rows, several chunks of time; I small and not against H
SHAPES = (Shape(3, 4, 7, 5, D=2), Shape(5, 3, 1, 20), Shape(1, 1, 4, 5, D=2), Shape(2, 9, 40, 33, D=2))
LONG_SHAPES = (Shape(140, 2, 6, 17), Shape(4, 13, 30, 200))


@pytest.mark.parametrize(
    ("cell", "shape"),
    [(cell, shape) for cell in WITH for shape in SHAPES + LONG_SHAPES * (cell in REPRESENTATIVES)],
    ids=lambda value: identify(value) if isinstance(value, Shape) else value,
)
@pytest.mark.parametrize("dtype", DTYPES)
@each_or_all
def test_every_shape(of_all: bool, cell: str, shape: Shape, dtype: str) -> None:
    problem = with_candidates(make_problem(cell, dtype, shape), of_all)
    assert_parity(solve_problem(_core, problem), problem)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
@each_or_all
def test_it_goes_with_tokens_and_gradients_of_every_step(of_all: bool, cell: str) -> None:
    tokens = make_token_problem(cell, "float64", Shape(70, 5, 9, 20, D=2), V=11)
    steps = replace(with_dsteps(with_resets(make_problem(cell, "float64", Shape(9, 3, 5, 20, D=2)))), clip_dh=0.5)
    for problem in (tokens, steps):
        problem = with_candidates(problem, of_all)
        assert_parity(solve_problem(_core, problem), problem)


@pytest.mark.parametrize("shape", [Shape(12, 5, 17, 272), Shape(9, 1, 40, 264, D=2)], ids=identify)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
@each_or_all
def test_any_number_of_threads_gives_the_same_bits(of_all: bool, cell: str, shape: Shape) -> None:
    problem = with_candidates(with_resets(make_problem(cell, "float32", shape), 0.1), of_all)
    with rnnfast.threads(1):
        expected = solve_problem(_core, problem)
    for threads in (2, 3, 7):
        with rnnfast.threads(threads):
            assert_same_bits(solve_problem(_core, problem), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@each_or_all
def test_functions_of_arrays_take_masks_of_any_kind(of_all: bool, cell: str) -> None:
    p = with_candidates(make_problem(cell, "float32", Shape(5, 3, 4, 11, D=2)), of_all)
    expected = solve_problem(_core, p)
    assert p.candidate_dropout
    kept, rate = p.candidate_dropout
    strided = np.repeat(kept, 2, axis=-1)[..., ::2]
    for given in (kept, strided, kept.astype(np.float32), kept.astype(np.uint8), kept.tolist()):
        y, last, tape = functional.forward(
            cell, p.x, p.parameters, state_of(p.state0), candidate_dropout=(given, np.float32(rate))
        )
        dx, dstate0, grads = functional.backward(tape, p.dy, state_of(p.dstate))
        got = {"y": y, **named_state(cell, parts(last)), **named_gradients(cell, dx, parts(dstate0), grads)}
        assert_close(got, expected)
        y_too, _ = functional.inference(cell, p.x, p.parameters, state_of(p.state0), candidate_dropout=(given, rate))
        assert np.array_equal(y_too, expected["y"])


# The layers


def test_lstms_and_grus_have_candidates() -> None:
    assert WITH == ["lstm", "lstm_peephole", "cifg", "cifg_peephole", "gru", "gru_reset_before"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("units", [1, 3, 17, 31, 64])
@pytest.mark.parametrize("cell", WITH)
@each_or_all
def test_all_that_a_layer_returns_is_the_oracles(of_all: bool, cell: str, units: int, dtype: str) -> None:
    own = {"candidate_dropout": RATE, "candidate_dropout_per_sequence": of_all}
    layer = make_layer(cell, (I, units), dtype=dtype, bidirectional=True, **own)
    x, state = normal((T, 4, I), dtype, 1), make_state(layer, (4,), 2)
    dy, dstate = normal((T, 4, 2 * units), dtype, 5), make_state(layer, (4,), 6)
    dc = normal((1, T, 4, 2 * units), dtype, 7) if num_states(cell) > 1 else None
    masks = drawn(layer, T, 4, 8)
    y, last, tape = layer.forward(x, state, masks=masks)
    got = results(y, last, *layer.backward(tape, dy, dstate, dc=dc, clip_dh=0.7))
    expected = oracle(layer, x, state, dy, dstate, dc=dc, clip_dh=0.7, candidates=candidates_of(layer, masks))
    assert got.keys() == expected.keys()
    for name, value in expected.items():  # with one unit, a sum of few terms that cancel
        assert relative_error(got[name], value) < (1 if units > 1 else 10) * TOLERANCE[np.dtype(dtype)], name
    assert_same_bits(tape.candidate_masks, masks)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
@each_or_all
def test_it_goes_with_other_options(of_all: bool, cell: str, call: str) -> None:
    own, options = CALLS[call]
    layer = make_layer(cell, candidate_dropout=RATE, candidate_dropout_per_sequence=of_all, dtype="float64", **own)
    x, masks = normal((T, B, I), "float64", 3), drawn(layer, T, B, 4)
    given, x_given = masks, x
    rows = {name: options[name] for name in ("lengths", "resets") if name in options}
    if layer.batch_first:
        x_given = x.swapaxes(0, 1)
        given = masks if of_all else {name: m.swapaxes(0, 1) for name, m in masks.items()}
    y, state, tape = layer.forward(x_given, masks=given, **options)
    dy = normal(y.shape, "float64", 5)
    got = results(y, state, *layer.backward(tape, dy))
    d = dy.swapaxes(0, 1) if layer.batch_first else dy
    expected = oracle(layer, x, None, d, nothing(layer), candidates=candidates_of(layer, masks), **rows)
    if layer.batch_first:
        got |= {name: got[name].swapaxes(0, 1) for name in ("y", "dx")}
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[np.dtype("float64")], name


@pytest.mark.parametrize(
    ("rates", "cell"),
    [
        *((rates, cell) for rates in ({"zoneout": 0.3}, {"recurrent_dropout": 0.3}) for cell in WITH[1:]),
        *(({"proj_size": 4}, cell) for cell in WITH if _core.cells[cell].projects),
    ],
)
def test_it_goes_with_other_regularisers_and_projections(rates: dict[str, Any], cell: str) -> None:
    layer = make_layer(cell, (I, 19), candidate_dropout=RATE, dtype="float64", **rates)
    x = X.astype(np.float64)
    y, state, tape = layer.forward(x)
    dy = normal(y.shape, "float64", 2)
    got = results(y, state, *layer.backward(tape, dy))
    options: dict[str, Any] = {"candidates": candidates_of(layer, tape.candidate_masks)}
    if "zoneout" in rates:
        options["zoneout"] = of_oracle(layer, tape.zoneout_masks)
    options["factors"] = factors_of(layer, tape.recurrent_masks)
    expected = oracle(layer, x, None, dy, nothing(layer), **options)
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[np.dtype("float64")], name


@pytest.mark.parametrize("cell", WITH)
@each_or_all
def test_the_oracles_gradients_are_central_differences(of_all: bool, cell: str) -> None:
    rng = np.random.default_rng(0)
    own = {"candidate_dropout": RATE, "candidate_dropout_per_sequence": of_all}
    layer = make_layer(cell, (2, 3), dtype="float64", bidirectional=True, **own)
    x, dy = normal((4, 2, 2), "float64", 1), normal((4, 2, 6), "float64", 2)
    candidates = candidates_of(layer, drawn(layer, 4, 2, 3))
    dx = oracle(layer, x, None, dy, nothing(layer), candidates=candidates)["dx"]

    def loss(x: Array) -> float:
        return float((oracle(layer, x, None, dy, nothing(layer), candidates=candidates)["y"] * dy).sum())

    direction, step = rng.standard_normal(x.shape), 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert abs(difference - (dx * direction).sum()) < 1e-7


@pytest.mark.parametrize("cell", ["lstm", "cifg_peephole", "gru"])
def test_gradients_of_parameters_are_central_differences(cell: str) -> None:
    layer = make_layer(cell, candidate_dropout=RATE, dtype="float64", num_layers=2)
    x, dy = X.astype(np.float64), normal((T, B, H), "float64", 2)
    _, _, tape = layer.forward(x)
    grads, masks = layer.backward(tape, dy)[2], tape.candidate_masks

    def loss() -> float:
        return float((layer.forward(x, masks=masks)[0] * dy).sum())

    for name, parameter in layer.parameters.items():
        assert relative_error(grads[name], central_differences(loss, parameter)) < 1e-6, name


@pytest.mark.parametrize(("cell", "gate"), [("lstm", "g"), ("cifg", "g"), ("gru", "n"), ("gru_reset_before", "n")])
def test_the_tape_has_the_candidate_itself_and_held_ones_are_dropped(cell: str, gate: str) -> None:
    layer = make_layer(cell, candidate_dropout=RATE, dtype="float64")
    x, masks = X.astype(np.float64), drawn(layer, T, B, 3)
    assert np.abs(layer.forward(x, masks=masks)[2].gates(0)[gate]).min() > 0
    y, state, tape = layer.forward(x, masks=masks, gate_override={gate: 0.5})
    assert (tape.gates(0)[gate] == 0.5).all()
    got = results(y, state, *layer.backward(tape, np.ones_like(y)))
    candidates = candidates_of(layer, masks)
    expected = oracle(layer, x, None, np.ones_like(y), nothing(layer), held=[{gate: 0.5}], candidates=candidates)
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[np.dtype("float64")], name


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_candidate_that_is_dropped_counts_for_nothing(cell: str) -> None:
    layer = make_layer(cell, (1, 2), candidate_dropout=0.5)
    held = {"g" if cell == "lstm" else "n": np.inf}
    y, _, _ = layer.forward(
        np.ones((3, 1, 1), np.float32), masks={"candidate_l0": np.zeros((3, 1, 2))}, gate_override=held
    )
    assert not y.any()


@each_or_all
def test_as_many_are_dropped_as_the_rate_says(of_all: bool) -> None:
    own: dict[str, Any] = {"candidate_dropout": 0.3, "candidate_dropout_per_sequence": of_all}
    layer = make_layer("gru", (1, 40), num_layers=2, bidirectional=True, **own)
    masks = masks_of(layer, np.zeros((50, 200, 1), np.float32))
    assert list(masks) == [f"candidate_l{k}{end}" for k in range(2) for end in ("", "_reverse")]
    for mask in masks.values():
        assert mask.shape == ((200, 40) if of_all else (50, 200, 40))
        assert mask.dtype == bool
        for axis in (None, *range(mask.ndim)):  # all of them, and for each of the others
            kept = mask.mean(axis=axis)
            n = mask.size / kept.size
            assert (np.abs(kept - 0.7) < 5 * np.sqrt(0.21 / n)).mean() > 0.999
    one, *others = masks.values()
    assert not any(np.array_equal(one, other) for other in others)


@each_or_all
def test_masks_are_those_of_the_seed_and_of_the_call(of_all: bool) -> None:
    layer, again = layer_of(of_all), layer_of(of_all)
    first, second = masks_of(layer, X), masks_of(layer, X)
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    assert_same_bits(masks_of(again, X), first)
    twin = copy.deepcopy(again)
    assert_same_bits(masks_of(again, X), second)
    assert_same_bits(masks_of(twin, X), second)


def test_masks_depend_on_nothing_but_key_and_place() -> None:
    whole = masks_of(layer_of(), X)
    assert_same_bits(masks_of(layer_of(), X[:2, :2]), {name: m[:2, :2] for name, m in whole.items()})
    assert_same_bits(masks_of(layer_of(), X, checkpoint=1), whole)
    assert_same_bits(masks_of(layer_of(dtype="float64"), X.astype(np.float64)), whole)
    lengths = np.array([2, 5, 0])
    real = np.arange(T)[:, None] < lengths
    assert_same_bits(masks_of(layer_of(), X, lengths=lengths), {n: m & real[..., None] for n, m in whole.items()})
    packed = rnnfast.pack_padded(X, [2, 5, 4])
    for name, mask in masks_of(layer_of(), packed).items():
        steps, sequences = (np.arange(T)[:, None] < np.array([2, 5, 4])[packed.sorted_indices]).nonzero()
        assert np.array_equal(mask.data, whole[name][steps, packed.sorted_indices[sequences]])
    assert_same_bits(masks_of(layer_of(of_all=True), X), {name: m[0] for name, m in whole.items()})


def test_a_sequence_has_its_mask_in_any_call() -> None:
    whole = masks_of(layer_of(of_all=True), X)
    assert_same_bits(masks_of(layer_of(of_all=True), X[:2, :2]), {name: m[:2] for name, m in whole.items()})
    assert_same_bits(masks_of(layer_of(of_all=True), X[:, 0]), {name: m[0] for name, m in whole.items()})
    for options in ({"lengths": [2, 5, 0]}, {"checkpoint": 1}, {"lengths": [0, 0, 0]}):
        assert_same_bits(masks_of(layer_of(of_all=True), X, **options), whole)
    assert_same_bits(masks_of(layer_of(of_all=True), rnnfast.pack_padded(X, [2, 5, 4])), whole)


@each_or_all
def test_one_sequence_is_a_batch_of_one_and_there_may_be_none(of_all: bool) -> None:
    one, batch = (solve(layer_of(of_all), x) for x in (X[:, 0], X[:, :1]))
    assert_same_bits({name: a.reshape(batch[name].shape) for name, a in one.items()}, batch)
    layer = layer_of(of_all)
    y, _, tape = layer.forward(X[:, 0], lengths=[3])
    assert np.array_equal(layer.forward(X[:, 0], lengths=[3], masks=tape.candidate_masks)[0], y)
    assert not layer.forward(X[:, 0], lengths=[0])[0].any()
    assert layer.forward(X[:, :0])[0].shape == (T, 0, 2 * H)


@each_or_all
def test_results_depend_on_neither_threads_nor_checkpoints(of_all: bool) -> None:
    own: dict[str, Any] = {"candidate_dropout": 0.2, "candidate_dropout_per_sequence": of_all}
    x = normal((40, 9, 33), "float32", 2)
    for cell in ("lstm", "gru"):
        layers = [make_layer(cell, (33, 65), num_layers=2, dropout=0.3, **own) for _ in range(3)]
        with rnnfast.threads(1):
            expected = solve(layers[0], x)
            assert_same_bits(solve(layers[1], x, checkpoint=7), expected)
        with rnnfast.threads(3):
            assert_same_bits(solve(layers[2], x), expected)


def test_units_are_divided_as_rows_are() -> None:
    layers = [make_layer("gru", (8, 300), candidate_dropout=0.2) for _ in range(2)]
    x = normal((6, 1, 8), "float32", 2)
    with rnnfast.threads(1):
        expected = solve(layers[0], x)
    with rnnfast.threads(4):
        assert_same_bits(solve(layers[1], x), expected)


@each_or_all
def test_a_tape_gives_the_same_gradients_any_number_of_times(of_all: bool) -> None:
    layer = layer_of(of_all)
    y, _, tape = layer.forward(X)
    expected = layer.backward(tape, y)[2]
    layer.forward(X)
    assert_same_bits(layer.backward(tape, y)[2], expected)


@each_or_all
def test_given_masks_are_copied_and_leave_the_later_draws_alone(of_all: bool) -> None:
    layer, other = layer_of(of_all), layer_of(of_all)
    masks, name = masks_of(layer, X), "candidate_l1_reverse"
    given = {name: ~masks[name]}
    _, _, tape = other.forward(X, masks=given)
    expected = masks | {name: ~masks[name]}
    given[name][:] = True
    assert_same_bits(tape.candidate_masks, expected)
    assert_same_bits(masks_of(other, X), masks_of(layer, X))


@each_or_all
def test_only_forward_leaves_something_out(of_all: bool) -> None:
    own: dict[str, Any] = {"candidate_dropout": 0.5, "candidate_dropout_per_sequence": of_all}
    layer, plain = make_layer("gru", **own), make_layer("gru")
    before = layer.rng.bit_generator.state
    assert np.array_equal(layer(X)[0], plain(X)[0])
    assert np.array_equal(layer(X, outputs="last")[0], plain(X, outputs="last")[0])
    assert np.array_equal(layer.stream(B).run(X), plain(X)[0])
    dy = np.ones((T, B, H), np.float32)
    assert np.array_equal(rnnfast.gradient_flow(layer, X, dy).h, rnnfast.gradient_flow(plain, X, dy).h)
    assert layer.rng.bit_generator.state == before
    assert not np.array_equal(layer.forward(X)[0], plain(X)[0])


@each_or_all
def test_a_rate_of_zero_is_the_plain_layer(of_all: bool) -> None:
    layer, plain = layer_of(of_all, candidate_dropout=0), layer_of(candidate_dropout=0.0)
    assert_same_bits(solve(layer, X), solve(plain, X))
    assert layer.forward(X)[2].candidate_masks == {}
    assert layer.rng.bit_generator.state == plain.rng.bit_generator.state


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_a_forward_that_fails_draws_nothing(checkpoint: Any) -> None:
    layer = layer_of()
    before = layer.rng.bit_generator.state
    tokens = np.zeros((T, B), int)
    tokens[-1, -1] = I
    for x, masks in ((tokens, None), (X, {"candidate_l0": np.ones(3, bool)})):
        with pytest.raises(ValueError, match="expected"):
            layer.forward(x, checkpoint=checkpoint, masks=masks)
    assert layer.rng.bit_generator.state == before
