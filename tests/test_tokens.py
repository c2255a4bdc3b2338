"""Tokens in place of x: against the oracle, against the rows that they stand for, and bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from modules import KINDS, make_layer, normal, results
from problems import (
    DTYPES,
    REPRESENTATIVES,
    Array,
    Problem,
    Results,
    Shape,
    assert_close,
    assert_parity,
    assert_same_bits,
    gradients,
    identify,
    laid_out,
    make_token_problem,
    named_gradients,
    named_grads,
    named_state,
    of_states,
    solve,
)
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core, reference

pytestmark = pytest.mark.no_cover  # what is tested is no Python

by_cell = pytest.mark.parametrize("cell", REPRESENTATIVES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_form = pytest.mark.parametrize("embedded", [False, True], ids=["one-hot", "embedded"])


def by_shape(*shapes: Shape) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=identify)


ODD = Shape(T=5, B=3, I=7, H=19, D=2)
CHUNKS = Shape(T=90, B=7, I=6, H=24, D=2)  # several chunks of time

SHAPES = (
    ODD,
    CHUNKS,
    Shape(1, 1, 9, 5),
    Shape(2, 3, 3, 33),
    Shape(3, 2, 150, 16),  # more tokens than rows
    Shape(3, 300, 5, 20, D=2),  # more rows in a step than in a chain
    Shape(20, 40, 100, 48),
    Shape(2, 2, 4, 140, D=2),
)


def make(cell: str, dtype: str, shape: Shape, embedded: bool, **options: Any) -> Problem:
    """Draw a problem with tokens; those of an embedding are twice as many as its columns."""
    return make_token_problem(cell, dtype, shape, V=2 * shape.I if embedded else None, **options)


# Against the oracle


@by_shape(*SHAPES)
@by_form
@by_dtype
@by_cell
def test_every_shape(cell: str, dtype: str, embedded: bool, shape: Shape) -> None:
    problem = make(cell, dtype, shape, embedded)
    assert_parity(solve(_core, problem), problem)


@by_form
@by_cell
def test_biases_and_states_may_be_missing(cell: str, embedded: bool) -> None:
    problem = make(cell, "float64", ODD, embedded, bias=False).without("state0", "dstate")
    assert_parity(solve(_core, problem), problem)


@by_form
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float32_keeps_its_promise_for_a_token_that_is_nearly_all(cell: str, embedded: bool) -> None:
    problem = make(cell, "float32", Shape(784, 64, 8, 16), embedded)
    problem.x[np.random.default_rng(1).random(problem.x.shape) < 0.9] = 3
    assert_close(solve(_core, problem), solve(reference, problem))


@by_form
@by_dtype
@by_cell
def test_gradients_are_added_into_given_arrays(cell: str, dtype: str, embedded: bool) -> None:
    p = make(cell, dtype, CHUNKS, embedded)
    start = [tuple(np.full_like(w, k + 1) for k, w in enumerate(ps) if w is not None) for ps in p.parameters]
    given = [tuple(g.copy() for g in gs) for gs in start]
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, embedding=p.embedding)
    gradients(_core, tape, p, grads=given)
    others = solve(reference, p).keys() - named_grads(given).keys()
    assert_parity(named_grads(given), p, others, added_to=named_grads(start))


@by_form
@by_cell
def test_no_sequences_give_empty_outputs_and_zero_gradients(cell: str, embedded: bool) -> None:
    problem = make(cell, "float32", ODD._replace(B=0), embedded)
    assert_same_bits(solve(_core, problem), solve(reference, problem))


# Bit for bit


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "u8", ">i4", ">u8"])
@by_form
def test_any_integers_are_tokens(kind: str, embedded: bool) -> None:
    problem = make("gru", "float32", ODD, embedded)
    assert_same_bits(solve(_core, replace(problem, x=problem.x.astype(kind))), solve(_core, problem))


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "columns": np.asfortranarray,
    "backwards": lambda a: np.flip(np.flip(a).copy()),
    "spaced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@by_form
@by_cell
def test_layout_of_the_arguments_does_not_matter(cell: str, embedded: bool, layout: Callable[[Array], Array]) -> None:
    problem = make(cell, "float32", ODD, embedded)
    assert_same_bits(solve(_core, laid_out(problem, layout)), solve(_core, problem))


@by_form
@by_dtype
@by_cell
def test_inference_gives_the_bits_of_forward(cell: str, dtype: str, embedded: bool) -> None:
    p = make(cell, dtype, CHUNKS, embedded)
    y, state, _ = _core.forward(p.cell, p.x, p.parameters, p.state0, embedding=p.embedding)
    y_inferred, state_inferred = _core.inference(p.cell, p.x, p.parameters, p.state0, embedding=p.embedding)
    assert_same_bits({"y": y_inferred, **named_state(cell, state_inferred)}, {"y": y, **named_state(cell, state)})


@by_shape(Shape(20, 40, 30, 96, D=2), Shape(70, 1, 80, 300), Shape(12, 7, 200, 200, D=2))
@by_form
@by_dtype
@by_cell
def test_any_number_of_threads_gives_the_same_bits(cell: str, dtype: str, embedded: bool, shape: Shape) -> None:
    problem = make(cell, dtype, shape, embedded)
    _core.set_num_threads(1)
    expected = solve(_core, problem)
    for threads in (2, 3, 7):
        _core.set_num_threads(threads)
        assert_same_bits(solve(_core, problem), expected)


@by_shape(Shape(7, 11, 5, 19, D=2), Shape(15, 40, 30, 96))
@by_form
@by_dtype
@by_cell
def test_a_sequence_gets_the_same_bits_in_any_batch(cell: str, dtype: str, embedded: bool, shape: Shape) -> None:
    p = make(cell, dtype, shape, embedded)
    whole = solve(_core, p)
    for rows in (slice(0, 1), slice(4, 5), slice(0, 2), slice(3, 8)):
        some = p.with_each(itemgetter(np.s_[:, rows]), "x", "state0", "dy", "dstate")
        part = solve(_core, some)
        for name in {"y", *of_states(cell)}:
            np.testing.assert_array_equal(part[name], whole[name][:, rows], err_msg=f"{name} {rows}")


def solve_in_chunks(problem: Problem, starts: tuple[int, ...]) -> Results:
    """Solve chunk by chunk: states carried forwards, their gradients backwards, those of parameters added up."""
    p = problem
    chunks = [slice(*ends) for ends in pairwise((*starts, len(p.x)))]
    state, ys, tapes = p.state0, [], []
    for chunk in chunks:
        y, state, tape = _core.forward(p.cell, p.x[chunk], p.parameters, state, embedding=p.embedding)
        ys.append(y)
        tapes.append(tape)
    dstate, grads = p.dstate, None
    dembedding: Any = None
    for chunk, tape in zip(chunks[::-1], tapes[::-1], strict=True):
        dy = None if p.dy is None else p.dy[chunk]
        new, dstate, grads = _core.backward(tape, dy, dstate, grads=grads)
        dembedding = new if dembedding is None else dembedding + new
    last = named_state(p.cell, state or ())
    return {"y": np.concatenate(ys), **last, **named_gradients(p.cell, dembedding, dstate or (), grads)}


@pytest.mark.parametrize(
    ("shape", "starts", "whole_blocks"),
    [
        (Shape(12, 5, 7, 19), (0, 1, 4, 11), False),
        (Shape(30, 40, 30, 48), (0, 1, 16), False),
        # Gradients are summed over blocks of 256 rows.
        (Shape(300, 4, 5, 24), (0, 128, 256), True),
    ],
    ids=str,
)
@by_form
@by_dtype
@by_cell
def test_chunks_with_carried_state_give_the_bits_of_the_whole(
    cell: str, dtype: str, embedded: bool, shape: Shape, starts: tuple[int, ...], whole_blocks: bool
) -> None:
    problem = make(cell, dtype, shape, embedded)
    whole, chunks = solve(_core, problem), solve_in_chunks(problem, starts)
    assert_close(chunks, whole)
    exact = {"y", *of_states(cell)}
    if whole_blocks:  # with an embedding, what follows from the table is computed at the end of each call
        exact |= {"dw_hh[0]", "db_hh[0]"} if embedded else whole.keys()
    assert_same_bits(*({name: a for name, a in r.items() if name in exact} for r in (chunks, whole)))


@by_form
@by_cell
def test_backward_only_reads_the_tape_which_has_a_copy_of_the_tokens(cell: str, embedded: bool) -> None:
    p = make(cell, "float32", CHUNKS, embedded)
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, embedding=p.embedding)
    first = gradients(_core, tape, p)
    p.x[...] = 0
    assert_same_bits(gradients(_core, tape, p), first)
    first.pop("dx", None)
    assert_same_bits(gradients(_core, tape, p, need_dx=False), first)


@by_dtype
@by_cell
def test_a_bad_embedding_reaches_the_sequences_that_have_its_token(cell: str, dtype: str) -> None:
    p = make(cell, dtype, CHUNKS, embedded=True)
    assert p.embedding is not None
    p.x[p.x == 2] = 3
    clean = solve(_core, p)
    p.x[40, 1] = 2
    p.embedding[2] = np.nan
    spoiled = solve(_core, p)
    others = np.arange(CHUNKS.B) != 1
    for name in {"y", *of_states(cell)}:
        np.testing.assert_array_equal(spoiled[name][:, others], clean[name][:, others], err_msg=name)
    assert np.isnan(spoiled["y"][40, 1]).all()


# Layers


FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "stack": {"num_layers": 3, "bidirectional": True},
    "batch_first": {"num_layers": 2, "batch_first": True},
    "learned": {"learn_initial_state": True, "bias": False},
}


@pytest.mark.parametrize("unbatched", [False, True], ids=["batch", "one sequence"])
@by_form
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", KINDS)
def test_a_layer_takes_tokens_for_the_rows_they_stand_for(
    cell: str, form: str, embedded: bool, unbatched: bool
) -> None:
    layer = make_layer(cell, dtype="float64", **FORMS[form])
    V, I = (20, layer.input_size) if embedded else (layer.input_size,) * 2
    embedding = normal((V, I), "float64", 1) if embedded else None
    rows = np.eye(I) if embedding is None else embedding
    tokens = np.random.default_rng(0).integers(V, size=(5,) if unbatched else (4, 5))
    y, last, tape = layer.forward(tokens, embedding=embedding)
    y_rows, last_rows, tape_rows = layer.forward(rows[tokens])
    y_inference, last_inference = layer(tokens, embedding=embedding)
    assert_same_bits(results(y_inference, last_inference, None, (), {}), results(y, last, None, (), {}))

    dy = normal(y.shape, "float64", 2)
    dx, dstate0, grads = layer.backward(tape, dy)
    dx_rows, dstate0_rows, grads_rows = layer.backward(tape_rows, dy)
    assert dx is None
    if embedded:
        grads_rows["embedding"] = np.zeros((V, I))
        np.add.at(grads_rows["embedding"], tokens, dx_rows)
    expected = results(y_rows, last_rows, None, dstate0_rows, grads_rows)
    assert_close(results(y, last, None, dstate0, grads), expected, layer.num_layers)

    again = {name: np.ones_like(g) for name, g in grads.items()}
    assert layer.backward(tape, dy, grads=again)[2] is again
    assert_close(again, {name: g + 1 for name, g in grads.items()})
    assert layer.backward(tape, dy, need_dx=False)[2].keys() == layer.parameters.keys()


def test_only_the_first_layer_of_a_stack_sees_tokens() -> None:
    stack, lower, upper = (rnnfast.GRU(I, 6, L, rng=0) for I, L in ((9, 2), (9, 1), (6, 1)))
    for part, ends in ((lower, ("l0", "l0")), (upper, ("l0", "l1"))):
        part.load_state_dict({name: stack.parameters[name.replace(*ends)] for name in part.parameters})
    tokens = np.arange(8).reshape(4, 2)
    assert np.array_equal(stack(tokens)[0], upper(lower(tokens)[0])[0])


def test_tokens_cost_no_rows_of_their_own() -> None:
    """The table has a row for each token that occurs: a vocabulary that is mostly absent changes nothing."""
    small = make("lstm", "float32", ODD, embedded=True)
    assert small.embedding is not None
    large = np.concatenate([small.embedding, np.full((10_000, ODD.I), np.nan, np.float32)])
    expected, actual = solve(_core, small), solve(_core, replace(small, embedding=large))
    assert not actual["dx"][len(small.embedding) :].any()
    actual["dx"] = actual["dx"][: len(small.embedding)]
    assert_same_bits(actual, expected)
    assert relative_error(actual["y"], solve(reference, small)["y"]) <= TOLERANCE[actual["y"].dtype]
