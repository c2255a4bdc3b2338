"""Properties of the kernels that hold bit for bit, and those of any gradient."""

import ctypes
import platform
import sys
from dataclasses import replace
from itertools import pairwise, product
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from problems import (
    CELLS,
    DTYPES,
    REPRESENTATIVES,
    Array,
    Problem,
    Results,
    Shape,
    assert_close,
    assert_same_bits,
    gradients,
    identify,
    laid_out,
    make_problem,
    named_gradients,
    named_grads,
    named_state,
    of_states,
    solve,
    tolerance_of,
)
from tolerances import relative_error

from rnnfast import _core, reference

by_cell = pytest.mark.parametrize("cell", CELLS)
by_loop = pytest.mark.parametrize("cell", REPRESENTATIVES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def by_shape(*shapes: Shape) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=identify)


ODD = Shape(T=5, B=3, I=7, H=19, D=2)


# Bit for bit


# Among them splits of the batch and, where it is small against H, of the units; directions whose last chunks differ.
@by_shape(
    Shape(20, 40, 30, 96, D=2),
    Shape(12, 3, 200, 130),
    Shape(200, 9, 1, 40),
    Shape(70, 1, 40, 300),
    Shape(300, 1, 40, 264, D=2),
    Shape(60, 5, 17, 272),
    Shape(1, 3, 130, 300, D=2),
    Shape(4, 2, 70, 264),
)
@by_dtype
@by_loop
def test_any_number_of_threads_gives_the_same_bits(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    _core.set_num_threads(1)
    expected = solve(_core, problem)
    for threads in (2, 3, 7):
        _core.set_num_threads(threads)
        assert_same_bits(solve(_core, problem), expected)


def test_a_batch_may_have_more_than_a_million_sequences() -> None:
    problem = make_problem("rnn_tanh", "float32", Shape(T=1, B=1_500_000, I=1, H=1))
    many, few = solve(_core, problem), solve(_core, sequences(problem, slice(9)))
    names = ("y", "h", "dx", "dh0")
    assert_same_bits({name: many[name][:, :9] for name in names}, {name: few[name] for name in names})


@by_shape(ODD, Shape(20, 40, 30, 96))
@by_dtype
@by_loop
def test_every_run_gives_the_same_bits(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    expected = solve(_core, problem)
    for _ in range(5):
        assert_same_bits(solve(_core, problem), expected)


def sequences(problem: Problem, rows: slice) -> Problem:
    """Return the problem of some of the sequences."""
    return problem.with_each(itemgetter(np.s_[:, rows]), "x", "state0", "dy", "dstate")


def per_sequence(results: Results) -> Results:
    """Return those of the results whose second axis is that of the sequences."""
    names = {"y", "dx"}.union(*map(of_states, CELLS))
    return {name: a for name, a in results.items() if name in names}


@by_shape(
    Shape(7, 11, 5, 19, D=2),
    Shape(9, 14, 1, 20),
    Shape(15, 40, 30, 96),
    Shape(2, 300, 6, 33, D=2),
    Shape(1, 20, 70, 75),
)
@by_dtype
@by_loop
def test_a_sequence_gets_the_same_bits_in_any_batch(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    whole = solve(_core, problem)
    last = shape.B - 1
    for rows in (slice(0, 1), slice(4, 5), slice(last, last + 1), slice(0, 2), slice(3, 8), slice(1, 10)):
        part = solve(_core, sequences(problem, rows))
        for name, a in per_sequence(part).items():
            np.testing.assert_array_equal(a, whole[name][:, rows], err_msg=f"{name} {rows}")


# Few rows and steps read the weights as they lie, more of them packed ones.
@pytest.mark.parametrize(("I", "H"), [(3, 1), (20, 20), (300, 33), (70, 500)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_a_few_steps_have_the_bits_that_they_have_among_others(cell: str, dtype: str, I: int, H: int) -> None:
    whole = make_problem(cell, dtype, Shape(8, 7, I, H))
    y, _ = _core.inference(cell, whole.x, whole.parameters, whole.state0)
    for steps, rows in [*((1, rows) for rows in range(1, 7)), (2, 1), (8, 1), (6, 2), (4, 4), (3, 5)]:
        part = sequences(whole, slice(rows))
        for call in (_core.inference, _core.forward):
            assert np.array_equal(call(cell, part.x[:steps], part.parameters, part.state0)[0], y[:steps, :rows])


# Few rows, whose weights stay as they are, beside many, whose weights are packed.
@by_shape(Shape(1, 40, 37, 50, D=2), Shape(4, 13, 5, 83), Shape(2, 20, 1, 16, D=2), Shape(1, 200, 130, 96))
@by_dtype
@by_loop
def test_sequences_without_a_gradient_add_nothing(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    some = slice(4, 7)
    others = np.r_[:4, 7 : shape.B]
    for gradient in (problem.dy, *(problem.dstate or ())):
        if gradient is not None:
            gradient[:, others] = 0
    totals = []
    for p in (problem, sequences(problem, some)):
        *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
        grads = laid_out(p, np.copy).parameters
        for _ in range(2):
            _core.backward(tape, p.dy, p.dstate, grads=grads)
        totals.append({**gradients(_core, tape, p), **{f"{n} twice": a for n, a in named_grads(grads).items()}})
    whole, part = totals
    assert_same_bits(part, whole | {name: a[:, some] for name, a in per_sequence(whole).items()})


def solve_in_chunks(problem: Problem, starts: tuple[int, ...]) -> Results:
    """Solve chunk by chunk: states carried forwards, their gradients backwards, those of parameters added up."""
    p = problem
    chunks = [slice(*ends) for ends in pairwise((*starts, len(p.x)))]
    state, ys, tapes = p.state0, [], []
    for chunk in chunks:
        y, state, tape = _core.forward(p.cell, p.x[chunk], p.parameters, state)
        ys.append(y)
        tapes.append(tape)
    dstate, grads = p.dstate, None
    dx = np.empty_like(p.x)
    for chunk, tape in zip(chunks[::-1], tapes[::-1], strict=True):
        dy = None if p.dy is None else p.dy[chunk]
        dx[chunk], dstate, grads = _core.backward(tape, dy, dstate, grads=grads)
    last = named_state(p.cell, state or ())
    return {"y": np.concatenate(ys), **last, **named_gradients(p.cell, dx, dstate or (), grads)}


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        (Shape(12, 5, 7, 19), tuple(range(12))),
        (Shape(12, 5, 7, 19), (0, 1, 4, 11)),
        (Shape(40, 1, 1, 33), (0, 7, 39)),
        (Shape(150, 4, 3, 24), (0, 64, 100)),
        (Shape(30, 40, 30, 48), (0, 1, 16)),
    ],
    ids=str,
)
@by_dtype
@by_loop
def test_chunks_with_carried_state_give_the_bits_of_the_whole(
    cell: str, dtype: str, shape: Shape, starts: tuple[int, ...]
) -> None:
    problem = make_problem(cell, dtype, shape)
    whole, chunks = solve(_core, problem), solve_in_chunks(problem, starts)
    assert_same_bits(per_sequence(chunks), per_sequence(whole))
    assert_close(chunks, whole)


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        # The gradients of parameters are sums over blocks of 256 rows (512 where H is large), in whole steps.
        (Shape(300, 4, 5, 24), (0, 128, 256)),
        (Shape(600, 1, 1, 40), (0, 512)),
        (Shape(23, 100, 9, 40), (0, 10, 20)),
        (Shape(12, 64, 3, 520), (0, 8)),
    ],
    ids=str,
)
@by_dtype
@by_loop
def test_chunks_of_whole_blocks_give_the_bits_of_every_gradient(
    cell: str, dtype: str, shape: Shape, starts: tuple[int, ...]
) -> None:
    problem = make_problem(cell, dtype, shape)
    assert_same_bits(solve_in_chunks(problem, starts), solve(_core, problem))


@by_shape(ODD, Shape(70, 12, 5, 40))
@by_dtype
@by_cell
def test_backward_only_reads_the_tape(cell: str, dtype: str, shape: Shape) -> None:
    p = make_problem(cell, dtype, shape)
    y, state, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    before, results = laid_out(p, np.copy), {"y": y, **named_state(cell, state)}
    outputs = {name: a.copy() for name, a in results.items()}
    first = gradients(_core, tape, p)
    gradients(_core, tape, p.without("dy"), need_dx=False)
    assert_same_bits(gradients(_core, tape, p), first)
    assert_same_bits(results, outputs)
    assert_same_bits(solve(_core, before), {**outputs, **first})


# Of any gradient


@by_dtype
@by_cell
def test_backward_is_linear(cell: str, dtype: str) -> None:
    p, q = (make_problem(cell, dtype, ODD, seed=seed) for seed in (0, 1))
    a, b = np.asarray(0.75, dtype), np.asarray(-1.5, dtype)
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)

    def sum_of(u: Any, v: Any) -> Any:
        return tuple(map(sum_of, u, v)) if isinstance(u, tuple) else a * u + b * v

    of_p, of_q = gradients(_core, tape, p), gradients(_core, tape, q)
    of_sum = gradients(_core, tape, replace(p, dy=sum_of(p.dy, q.dy), dstate=sum_of(p.dstate, q.dstate)))
    assert_close(of_sum, {name: a * of_p[name] + b * of_q[name] for name in of_p})


@by_shape(ODD, Shape(30, 6, 4, 40), Shape(3, 2, 50, 17, D=2))
@by_cell
def test_backward_is_the_adjoint_of_the_derivative_of_forward(cell: str, shape: Shape) -> None:
    p: Any = make_problem(cell, np.float64, shape, seed=0)
    direction: Any = make_problem(cell, np.float64, shape, seed=1)
    step = 1e-6  # the error of the difference is step^2, that of rounding 1e-16 / step

    def loss(sign: int) -> float:
        def moved(a: Any, v: Any) -> Any:
            return tuple(map(moved, a, v)) if isinstance(a, tuple) else a + sign * step * v

        parameters = [tuple(map(moved, *pair)) for pair in zip(p.parameters, direction.parameters, strict=True)]
        y, state = _core.inference(p.cell, moved(p.x, direction.x), parameters, moved(p.state0, direction.state0))
        return float(sum(np.vdot(d, a) for d, a in zip((p.dy, *p.dstate), (y, *state), strict=True)))

    along = named_gradients(cell, direction.x, direction.state0, direction.parameters)
    result = solve(_core, p)
    inner_product = sum(float(np.vdot(result[name], v)) for name, v in along.items())
    assert inner_product == pytest.approx((loss(1) - loss(-1)) / (2 * step), rel=1e-7)


# NaN and infinity


BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
by_bad = pytest.mark.parametrize("bad", BAD.values(), ids=BAD)


def spoiled(problem: Problem, name: str, index: tuple[Any, ...], bad: float) -> Problem:
    """Return the problem with a bad number in the named array, of a state in each of its parts."""

    def spoil(a: Array) -> Array:
        a = a.copy()
        a[index] = bad
        return a

    return problem.with_each(spoil, name)


@by_shape(ODD, Shape(4, 21, 3, 40), Shape(40, 9, 1, 16))
@by_dtype
@by_cell
def test_a_bad_number_stays_in_its_sequence(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    clean = per_sequence(solve(_core, problem))
    others = np.arange(shape.B) != 1
    for name, bad in product(("x", "state0", "dy", "dstate"), BAD.values()):
        result = solve(_core, spoiled(problem, name, (0, 1), bad))
        for key, a in clean.items():
            np.testing.assert_array_equal(result[key][:, others], a[:, others], err_msg=f"{bad} in {name}: {key}")


@by_shape(Shape(7, 5, 6, 19, D=2), Shape(7, 3, 1, 16, D=2))
@by_dtype
@by_cell
def test_nan_in_x_reaches_every_later_output(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    clean, result = solve(_core, problem), solve(_core, spoiled(problem, "x", (3, 1, 0), np.nan))
    expected = clean["y"].copy()
    expected[3:, 1, : shape.H] = np.nan
    expected[:4, 1, shape.H :] = np.nan
    np.testing.assert_array_equal(result["y"], expected)
    assert np.isnan(result["h"][:, 1]).all()


@by_bad
@by_shape(Shape(7, 5, 6, 19), Shape(7, 3, 1, 16))
@by_dtype
@by_cell
def test_a_bad_dy_reaches_every_earlier_dx(cell: str, dtype: str, shape: Shape, bad: float) -> None:
    problem = make_problem(cell, dtype, shape)
    clean, result = solve(_core, problem), solve(_core, spoiled(problem, "dy", (3, 1), bad))
    reached = np.zeros(result["dx"].shape, bool)
    reached[:4, 1] = True
    np.testing.assert_array_equal(~np.isfinite(result["dx"]), reached)
    np.testing.assert_array_equal(result["dx"][~reached], clean["dx"][~reached])
    assert not np.isfinite(result["dh0"][:, 1]).any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf], ids=["inf", "-inf"])
@by_shape(ODD, Shape(7, 5, 6, 33), Shape(7, 3, 1, 16))
@by_dtype
@by_cell
def test_infinite_x_does_what_the_equations_say(cell: str, dtype: str, shape: Shape, bad: float) -> None:
    problem = spoiled(make_problem(cell, dtype, shape), "x", (2, 1, 0), bad)
    y, _, _ = _core.forward(cell, problem.x, problem.parameters, problem.state0)
    with np.errstate(invalid="ignore"):
        expected, _, _ = reference.forward(cell, problem.x, problem.parameters, problem.state0)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    assert relative_error(y[finite], expected[finite]) <= tolerance_of(problem, y.dtype)


@by_dtype
@by_cell
def test_the_caller_keeps_subnormal_numbers(cell: str, dtype: str) -> None:
    subnormal = np.finfo(dtype).smallest_subnormal
    solve(_core, make_problem(cell, dtype, ODD))
    assert np.full(3, 4 * subnormal) @ np.full(3, 0.25, dtype) == 3 * subnormal


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's rounding modes are called by their numbers")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_rounding_mode_neither_reaches_the_kernels_nor_changes(threads: int) -> None:
    p = make_problem("lstm", "float32", Shape(20, 40, 16, 96))
    _core.set_num_threads(threads)
    expected = _core.inference(p.cell, p.x, p.parameters)[0]
    library = ctypes.CDLL(None)
    upwards = 0x800 if platform.machine() in ("x86_64", "AMD64") else 0x400000
    library.fesetround(upwards)
    try:
        y = _core.inference(p.cell, p.x, p.parameters)[0]
        mode = library.fegetround()
    finally:
        library.fesetround(0)
    assert mode == upwards
    assert np.array_equal(y, expected)
