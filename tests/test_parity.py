"""The kernels against the oracle: cell x dtype x shape, then every form in which a layer can be called."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    ALL_PARTS,
    CELLS,
    DTYPES,
    REPRESENTATIVES,
    Array,
    Layout,
    Shape,
    assert_close,
    assert_parity,
    assert_same_bits,
    gradients,
    identify,
    laid_out,
    make_problem,
    mapped,
    named_grads,
    named_state,
    num_states,
    solve,
)

from rnnfast import _core, reference

pytestmark = pytest.mark.no_cover  # what is tested is no Python

# A vector has W lanes, W in {2, 4, 8, 16}: 1, W - 1, W, W + 1 and two or three vectors of each width.
AROUND_LANES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49)

SHAPES = (
    *(Shape(3, 3, I, H, D=1 + k % 2) for k, (I, H) in enumerate(zip(AROUND_LANES[::-1], AROUND_LANES, strict=True))),
    Shape(1, 1, 1, 1),
    Shape(1, 1, 20, 33, D=2),
    Shape(40, 1, 3, 20, D=2),
)
SHAPES_OF_LOOPS = (
    # A tile has up to 8 rows or a few more: every remainder, as sequences and as rows of a projection.
    *(Shape(2, B, 4, 5, D=1 + B % 2) for B in (1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 25)),
    Shape(1, 9, 16, 8),
    # Few rows of several steps, for which only w_hh is packed.
    Shape(10, 9, 70, 33),
    # Several chunks of time.
    Shape(300, 1, 1, 20),
    Shape(90, 7, 3, 24, D=2),
    # Several chunks of time, blocks of a few hundred rows, panels longer than a tile.
    Shape(20, 13, 130, 200),
    Shape(3, 40, 300, 131, D=2),
    Shape(3, 180, 5, 520),
    # Few rows of x fill a cache: projected some at a time.
    Shape(7, 2, 30_000, 5),
)


by_cell = pytest.mark.parametrize("cell", CELLS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
ODD = Shape(T=5, B=3, I=7, H=19, D=2)  # no size is a multiple of another, nor of a vector


@pytest.mark.parametrize(
    ("cell", "shape"),
    [*product(CELLS, SHAPES), *product(REPRESENTATIVES, SHAPES_OF_LOOPS)],
    ids=lambda value: identify(value) if isinstance(value, Shape) else value,
)
@by_dtype
def test_every_shape(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    if (
        _core.cells[cell].normalises and shape.H <= 2
    ):  # the gradients of so few numbers cancel but for a multiple of eps
        problem = replace(problem, layer_norm_eps=0.1)
    assert_parity(solve(_core, problem), problem)


# Of the kind that `python -m rnnfast bench` times, where float32 is promised to 1e-6 without any allowance; the
# last has as many rows in its sums over time and sequences, but fewer units, which leaves the oracle less to do.
BENCHMARK_SHAPES = (Shape(50, 32, 256, 256), Shape(100, 1, 128, 128), Shape(784, 8, 1, 128), Shape(784, 64, 1, 16))


@pytest.mark.parametrize("shape", BENCHMARK_SHAPES, ids=identify)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float32_keeps_its_promise_on_the_shapes_of_the_benchmark(cell: str, shape: Shape) -> None:
    problem = make_problem(cell, "float32", shape)
    assert_close(solve(_core, problem), solve(reference, problem))


NOT_GIVEN = {
    "no states": ("state0",),
    "no dy": ("dy",),
    "no dh": ("dh",),
    "no dc": ("dc",),
    "only dy": ("dstate",),
    "only dh": ("dy", *(name for name in ALL_PARTS if name.startswith("d") and name != "dh")),
    "nothing but dy": ("state0", "dstate"),
}
ONE_STATE_MISSING = [
    (cell, missing)
    for cell in CELLS
    if num_states(cell) > 1
    for missing in (*(f"{s}0" for s in _core.cells[cell].states), "dy and dh")
]


@pytest.mark.parametrize("names", NOT_GIVEN.values(), ids=NOT_GIVEN)
@by_dtype
@by_cell
def test_what_is_not_given_is_zero(cell: str, dtype: str, names: tuple[str, ...]) -> None:
    problem = make_problem(cell, dtype, ODD).without(*names)
    assert_parity(solve(_core, problem), problem)


@by_dtype
@pytest.mark.parametrize(("cell", "missing"), ONE_STATE_MISSING)
def test_each_state_may_be_missing_alone(cell: str, missing: str, dtype: str) -> None:
    problem = make_problem(cell, dtype, ODD).without(*missing.split(" and "))
    assert_parity(solve(_core, problem), problem)


@pytest.mark.parametrize("without", [(2,), (3,), (2, 3)], ids=["b_ih", "b_hh", "both"])
@by_dtype
@by_cell
def test_each_bias_may_be_missing(cell: str, dtype: str, without: tuple[int, ...]) -> None:
    problem = make_problem(cell, dtype, ODD)
    parameters = [tuple(None if k in without else a for k, a in enumerate(ps)) for ps in problem.parameters]
    problem = replace(problem, parameters=parameters)
    assert_parity(solve(_core, problem), problem)


@by_dtype
@by_cell
def test_no_sequences_give_empty_outputs_and_zero_gradients(cell: str, dtype: str) -> None:
    problem = make_problem(cell, dtype, ODD._replace(B=0))
    assert_same_bits(solve(_core, problem), solve(reference, problem))


@pytest.mark.parametrize("shape", [ODD, Shape(T=70, B=6, I=4, H=16), Shape(T=30, B=1, I=40, H=65)], ids=identify)
@by_dtype
@by_cell
def test_inference_gives_the_bits_of_forward(cell: str, dtype: str, shape: Shape) -> None:
    p = make_problem(cell, dtype, shape)
    y, state, _ = _core.forward(p.cell, p.x, p.parameters, p.state0)
    y_inferred, state_inferred = _core.inference(p.cell, p.x, p.parameters, p.state0)
    assert_same_bits({"y": y_inferred, **named_state(cell, state_inferred)}, {"y": y, **named_state(cell, state)})


@by_dtype
@by_cell
def test_without_dx_the_other_gradients_have_the_same_bits(cell: str, dtype: str) -> None:
    problem = make_problem(cell, dtype, ODD)
    expected = solve(_core, problem)
    del expected["dx"]
    assert_same_bits(solve(_core, problem, need_dx=False), expected)


# Layouts: the same numbers, stored in other ways


def batch_first(a: Array) -> Array:
    """Store the first two axes the other way round."""
    return np.swapaxes(np.swapaxes(a, 0, 1).copy(), 0, 1) if a.ndim > 1 else a


def transposed(a: Array) -> Array:
    """Store the last axis with the largest stride."""
    return np.asfortranarray(a)


def every_other(a: Array) -> Array:
    """Store NaN between the numbers."""
    spaced = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    view = spaced[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def rows_apart(a: Array) -> Array:
    """Store the last axis contiguously, with NaN between its rows."""
    view = np.full([*a.shape[:-1], a.shape[-1] + 3], np.nan, a.dtype)[..., : a.shape[-1]]
    view[...] = a
    return view


def backwards(a: Array) -> Array:
    """Store with negative strides."""
    return np.flip(np.flip(a).copy())


def read_only(a: Array) -> Array:
    """Store where nobody may write."""
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a: Array) -> Array:
    """Store at an odd address."""
    view = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


READABLE = (batch_first, transposed, every_other, rows_apart, backwards, read_only, unaligned)
WRITABLE = (batch_first, transposed, every_other, rows_apart, backwards)

by_writable_layout = pytest.mark.parametrize("layout", WRITABLE)


@pytest.mark.parametrize("shape", [ODD, Shape(T=30, B=1, I=1, H=16), Shape(T=2, B=9, I=16, H=8)], ids=identify)
@by_dtype
@by_cell
def test_layout_of_the_arguments_does_not_matter(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    expected = solve(_core, problem)
    for layout in READABLE:
        both = solve(_core, laid_out(problem, layout)), expected
        assert_same_bits(*({f"{name}, {layout.__name__}": a for name, a in each.items()} for each in both))


@by_dtype
@by_cell
def test_broadcast_arguments_are_as_good_as_full_ones(cell: str, dtype: str) -> None:
    p = make_problem(cell, dtype, ODD)
    assert p.dy is not None
    thin = replace(p, x=np.broadcast_to(p.x[:1, :1], p.x.shape), dy=np.broadcast_to(np.ones(1, dtype), p.dy.shape))
    full = replace(thin, x=thin.x.copy(), dy=np.ones_like(p.dy))
    assert_same_bits(solve(_core, thin), solve(_core, full))


def blank(a: Any, layout: Layout) -> Any:
    """Return arrays to write those of a in, stored in the layout and full of NaN."""
    return mapped(lambda a: layout(np.full_like(a, np.nan)), a)


@by_writable_layout
@by_dtype
@by_cell
def test_out_holds_what_a_new_array_would(cell: str, dtype: str, layout: Layout) -> None:
    p = make_problem(cell, dtype, ODD)
    *expected, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    out = tuple(blank(expected, layout))
    for call in (_core.inference, _core.forward):
        assert_written(call(p.cell, p.x, p.parameters, p.state0, out=out), out, expected)

    *expected, _ = _core.backward(tape, p.dy, p.dstate)
    out = tuple(blank(expected, layout))
    assert_written(_core.backward(tape, p.dy, p.dstate, out=out), out, expected)


def assert_written(result: Any, out: Any, expected: Any) -> None:
    """Assert that the call returned the arrays of out, where there are any, with the numbers expected."""
    each = ((array, *state) for array, state, *_ in (result, out, expected))
    for returned, given_array, a in zip(*each, strict=True):
        assert given_array is None or returned is given_array
        np.testing.assert_array_equal(returned, a)


@pytest.mark.parametrize(("cell", "k"), [(cell, k) for cell in CELLS for k in range(1 + num_states(cell))])
def test_out_may_hold_one_array_of_all(cell: str, k: int) -> None:
    p = make_problem(cell, "float32", ODD)

    def alone(array: Any, state: Any) -> tuple[Any, Any]:
        first, *others = (blank(a, np.copy) if i == k else None for i, a in enumerate((array, *state)))
        return first, tuple(others)

    *expected, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    out = alone(*expected)
    assert_written(_core.forward(p.cell, p.x, p.parameters, p.state0, out=out), out, expected)

    *expected, _ = _core.backward(tape, p.dy, p.dstate)
    out = alone(*expected)
    assert_written(_core.backward(tape, p.dy, p.dstate, out=out), out, expected)


@by_cell
def test_backward_from_a_tape_whose_outputs_went_to_out(cell: str) -> None:
    p = make_problem(cell, "float64", ODD)
    *expected, _ = _core.forward(p.cell, p.x, p.parameters, p.state0)
    out = tuple(blank(expected, every_other))
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, out=out)
    assert_parity(gradients(_core, tape, p), p, without=("y", *_core.cells[cell].states))


@by_writable_layout
@by_dtype
@by_cell
def test_gradients_are_added_into_given_arrays(cell: str, dtype: str, layout: Layout) -> None:
    p = make_problem(cell, dtype, ODD)
    rng = np.random.default_rng(1)
    start = [tuple(rng.standard_normal(w.shape).astype(dtype) for w in ps if w is not None) for ps in p.parameters]
    given_arrays = [tuple(layout(g.copy()) for g in gs) for gs in start]
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    *_, grads = _core.backward(tape, p.dy, p.dstate, grads=given_arrays)
    others = solve(reference, p).keys() - named_grads(start).keys()
    assert_parity(named_grads(given_arrays), p, others, added_to=named_grads(start))
    for returned, g in zip(named_grads(grads).values(), named_grads(given_arrays).values(), strict=True):
        assert returned is g


@by_cell
def test_arguments_stay_as_they_were(cell: str) -> None:
    p = make_problem(cell, "float32", ODD)
    before = laid_out(p, np.copy)
    solve(_core, p)
    for name in ("x", "parameters", "state0", "dy", "dstate"):
        np.testing.assert_equal(getattr(p, name), getattr(before, name))


# Drawn problems


@given(
    cell=st.sampled_from(CELLS),
    dtype=st.sampled_from(DTYPES),
    shape=st.builds(
        Shape,
        T=st.integers(1, 9),
        B=st.integers(1, 20),
        I=st.integers(1, 40),
        H=st.integers(1, 40),
        D=st.integers(1, 2),
        P=st.just(0),
    ),
    bias=st.booleans(),
    missing=st.sets(st.sampled_from([name for name in ALL_PARTS if name != "dh"])),
    missing_too=st.sampled_from(((), ("dy",), ("dh",))),
    need_dx=st.booleans(),
    layout=st.sampled_from((np.copy, *READABLE)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_problem(
    cell: str,
    dtype: str,
    shape: Shape,
    bias: bool,
    missing: set[str],
    missing_too: tuple[str, ...],
    need_dx: bool,
    layout: Layout,
    seed: int,
) -> None:
    problem = make_problem(cell, dtype, shape, bias=bias, seed=seed).without(*missing, *missing_too)
    actual = solve(_core, laid_out(problem, layout), need_dx=need_dx)
    assert_parity(actual, problem, without=() if need_dx else ("dx",))
