"""Candidate dropout: its values beside the oracle, and masks of sequences. (test_masks has its masks.)"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import B, I, T, candidates_of, factors_of, make_layer, normal, oracle, results, zoneout_of
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
    parts,
    solve,
    state_of,
    with_dsteps,
    with_resets,
)
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core, functional

WITH = [cell for cell in CELLS if _core.cells[cell].has_candidate]
RATE = 0.4
X = normal((T, B, I), "float32", 1)
each_or_all = pytest.mark.parametrize("of_all", [False, True], ids=["each step", "all steps"])


def drawn(layer: Any, steps: int, batch: int, seed: int) -> Results:
    """Return masks, time-major."""
    rng = np.random.default_rng(seed)
    shape = (batch, layer.hidden_size) if layer.candidate_dropout_per_sequence else (steps, batch, layer.hidden_size)
    ends = [f"_l{k}{end}" for k in range(layer.num_layers) for end in ("", "_reverse")[: layer.directions]]
    return {f"candidate{end}": rng.random(shape) < 0.6 for end in ends}


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
    assert_parity(solve(_core, problem), problem)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
@each_or_all
def test_it_goes_with_tokens_and_gradients_of_every_step(of_all: bool, cell: str) -> None:
    tokens = make_token_problem(cell, "float64", Shape(70, 5, 9, 20, D=2), V=11)
    steps = replace(with_dsteps(with_resets(make_problem(cell, "float64", Shape(9, 3, 5, 20, D=2)))), clip_dh=0.5)
    for problem in (tokens, steps):
        problem = with_candidates(problem, of_all)
        assert_parity(solve(_core, problem), problem)


@pytest.mark.parametrize("shape", [Shape(12, 5, 17, 272), Shape(9, 1, 40, 264, D=2)], ids=identify)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
@each_or_all
def test_any_number_of_threads_gives_the_same_bits(of_all: bool, cell: str, shape: Shape) -> None:
    problem = with_candidates(with_resets(make_problem(cell, "float32", shape), 0.1), of_all)
    with rnnfast.threads(1):
        expected = solve(_core, problem)
    for threads in (2, 3, 7):
        with rnnfast.threads(threads):
            assert_same_bits(solve(_core, problem), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@each_or_all
def test_functions_of_arrays_take_masks_of_any_kind(of_all: bool, cell: str) -> None:
    p = with_candidates(make_problem(cell, "float32", Shape(5, 3, 4, 11, D=2)), of_all)
    expected = solve(_core, p)
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
    options: dict[str, Any] = {
        "candidates": candidates_of(layer, tape.candidate_masks),
        "zoneout": zoneout_of(layer, tape.zoneout_masks),
        "factors": factors_of(layer, tape.recurrent_masks),
    }
    expected = oracle(layer, x, None, dy, None, **options)
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
    dx = oracle(layer, x, None, dy, None, candidates=candidates)["dx"]

    def loss(x: Array) -> float:
        return float((oracle(layer, x, None, dy, None, candidates=candidates)["y"] * dy).sum())

    direction, step = rng.standard_normal(x.shape), 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert abs(difference - (dx * direction).sum()) < 1e-7


@pytest.mark.parametrize(("cell", "gate"), [("lstm", "g"), ("cifg", "g"), ("gru", "n"), ("gru_reset_before", "n")])
def test_the_tape_has_the_candidate_itself_and_held_ones_are_dropped(cell: str, gate: str) -> None:
    layer = make_layer(cell, candidate_dropout=RATE, dtype="float64")
    x, masks = X.astype(np.float64), drawn(layer, T, B, 3)
    assert np.abs(layer.forward(x, masks=masks)[2].gates(0)[gate]).min() > 0
    y, state, tape = layer.forward(x, masks=masks, gate_override={gate: 0.5})
    assert (tape.gates(0)[gate] == 0.5).all()
    got = results(y, state, *layer.backward(tape, np.ones_like(y)))
    candidates = candidates_of(layer, masks)
    expected = oracle(layer, x, None, np.ones_like(y), None, held=[{gate: 0.5}], candidates=candidates)
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


def test_the_mask_of_a_sequence_is_that_of_its_first_step() -> None:
    of_steps, of_sequences = (
        make_layer("lstm", candidate_dropout=RATE, candidate_dropout_per_sequence=of_all).forward(X)[2].candidate_masks
        for of_all in (False, True)
    )
    assert_same_bits(of_sequences, {name: mask[0] for name, mask in of_steps.items()})
