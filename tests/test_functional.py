"""The functions of bare arrays: the forms of a state and of `out`, activations, the readout."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from modules import named_states
from problems import (
    CELLS,
    DTYPES,
    Array,
    Shape,
    assert_close,
    assert_same_bits,
    gradients,
    make_problem,
    mapped,
    named,
    named_gradients,
    named_state,
    parts,
    solve,
    state_of,
)

from rnnfast import _core, reference
from rnnfast import functional as F

SHAPE = Shape(T=5, B=3, I=7, H=6, D=2)

by_cell = pytest.mark.parametrize("cell", CELLS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


@by_dtype
@by_cell
def test_states_go_in_and_come_out_in_one_form(cell: str, dtype: str) -> None:
    p = make_problem(cell, dtype, SHAPE)
    state = state_of(p.state0)
    y, last, tape = F.forward(cell, p.x, p.parameters, state)
    dx, dstate0, grads = F.backward(tape, p.dy, state_of(p.dstate))
    actual = {"y": y, **named_state(cell, parts(last)), **named_gradients(cell, dx, parts(dstate0), grads)}
    assert_same_bits(actual, solve(_core, p))
    assert_close(actual, solve(reference, p))
    y_inference, last_inference = F.inference(cell, p.x, p.parameters, state)
    assert_same_bits({"y": y_inference, **named_states(last_inference)}, {"y": y, **named_states(last)})


@by_cell
def test_out_is_filled_and_returned(cell: str) -> None:
    p = make_problem(cell, "float32", SHAPE)
    y, last, tape = F.forward(cell, p.x, p.parameters)
    dx, dstate0, _ = F.backward(tape, p.dy)

    def like(state: Any) -> Any:
        return mapped(lambda s: np.full_like(s, np.nan), state)

    for run in (F.forward, F.inference):
        out = np.full_like(y, np.nan), like(last)
        y_out, last_out, *_ = run(cell, p.x, p.parameters, out=out)
        assert y_out is out[0]
        assert all(a is b for a, b in zip(parts(last_out), parts(out[1]), strict=True))
        assert np.array_equal(y_out, y)
        assert_same_bits(named_states(last_out), named_states(last))
    out = np.full_like(p.x, np.nan), like(dstate0)
    dx_out, dstate0_out, _ = F.backward(tape, p.dy, out=out)
    assert dx_out is out[0]
    assert all(a is b for a, b in zip(parts(dstate0_out), parts(out[1]), strict=True))
    assert_same_bits(named(dx=dx_out, **named_states(dstate0_out)), named(dx=dx, **named_states(dstate0)))


def test_what_is_none_in_out_is_allocated() -> None:
    p = make_problem("lstm", "float32", SHAPE)
    y, (h, c), tape = F.forward("lstm", p.x, p.parameters)
    c_out = np.empty_like(c)
    y2, (h2, c2) = F.inference("lstm", p.x, p.parameters, out=(None, (None, c_out)))
    assert c2 is c_out
    assert_same_bits({"y": y2, "h": h2, "c": c2}, {"y": y, "h": h, "c": c})
    y3, (h3, c3) = F.inference("lstm", p.x, p.parameters, out=(np.empty_like(y), None))
    assert_same_bits({"y": y3, "h": h3, "c": c3}, {"y": y, "h": h, "c": c})
    dx, _, _ = F.backward(tape, p.dy)
    none, _, _ = F.backward(tape, p.dy, need_dx=False, out=(None, (np.empty_like(h), None)))
    assert dx is not None
    assert none is None


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
@by_dtype
def test_activations_write_where_they_are_told(function: str, dtype: str) -> None:
    x = np.linspace(-9, 9, 60).astype(dtype).reshape(3, 20)
    f = getattr(F, function)
    y, x64 = f(x), x.astype(np.float64)
    assert y.dtype == x.dtype
    assert_close({"y": y}, {"y": np.tanh(x64) if function == "tanh" else 1 / (1 + np.exp(-x64))})
    for strided in (x.T, x[::-1, ::2]):
        assert np.array_equal(f(strided), f(np.ascontiguousarray(strided)))
    out = np.empty_like(x)
    assert f(x, out=out) is out
    assert np.array_equal(out, y)
    assert f(out, out=out) is out  # in place
    assert np.array_equal(out, f(y))


# The readout


class Map(NamedTuple):
    """Sizes: [*rows,I] inputs, [*rows,O] outputs."""

    rows: tuple[int, ...]
    I: int
    O: int


# Around the widths of vectors, the heights of tiles and the lengths of chains; the last ones are work for 7 threads
MAPS = (
    Map((), 7, 4),
    Map((0, 3), 7, 4),
    Map((1,), 1, 1),
    Map((5, 3), 3, 17),
    Map((2, 5, 3), 16, 31),
    Map((5,), 33, 1),
    Map((3, 5), 0, 3),
    Map((3, 5), 3, 0),
    Map((127,), 65, 15),
    Map((129,), 200, 67),
    Map((1000,), 256, 103),
    Map((3, 500), 130, 95),
)
LARGE = MAPS[-2:]

by_map = pytest.mark.parametrize("sizes", MAPS, ids=str)
by_large_map = pytest.mark.parametrize("sizes", LARGE, ids=str)


def linear_problem(dtype: str, sizes: Map) -> tuple[Array, Array, Array, Array]:
    """Draw x [*rows,I], weight [O,I], bias [O], dy [*rows,O]."""
    rng = np.random.default_rng(0)
    rows, I, O = sizes
    shapes = ((*rows, I), (O, I), (O,), (*rows, O))
    x, weight, bias, dy = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, weight, bias, dy


def solve_linear(x: Array, weight: Array, bias: Array | None, dy: Array) -> dict[str, Array]:
    """Return all results by name."""
    dx, (dweight, dbias) = F.linear_backward(x, weight, bias, dy)
    return named(y=F.linear(x, weight, bias), dx=dx, dweight=dweight, dbias=dbias)


@by_map
@by_dtype
def test_linear_and_its_gradients(sizes: Map, dtype: str) -> None:
    (rows, I, O), (x, weight, bias, dy) = sizes, linear_problem(dtype, sizes)
    x64, weight64, dy64 = (a.astype(np.float64) for a in (x, weight, dy))
    N = math.prod(rows)
    expected = {
        "y": x64 @ weight64.T + bias,
        "dx": dy64 @ weight64,
        "dweight": dy64.reshape(N, O).T @ x64.reshape(N, I),
        "dbias": dy64.reshape(N, O).sum(axis=0),
    }
    actual = solve_linear(x, weight, bias, dy)
    assert_close(actual, expected)
    assert_close({"y": F.linear(x, weight)}, {"y": x64 @ weight64.T})
    none, (dweight, no_dbias) = F.linear_backward(x, weight, None, dy, need_dx=False)
    assert none is None
    assert no_dbias is None
    assert np.array_equal(dweight, actual["dweight"])
    for y in (np.full((*rows, O), np.nan, dtype), np.full((O, *rows), np.nan, dtype).transpose(*range(1, x.ndim), 0)):
        assert F.linear(x, weight, bias, out=y) is y
        assert np.array_equal(y, actual["y"])


@by_map
@by_dtype
def test_linear_adds_into_gradients_that_are_given(sizes: Map, dtype: str) -> None:
    x, weight, bias, dy = linear_problem(dtype, sizes)
    _, (dweight, dbias) = F.linear_backward(x, weight, bias, dy)
    given = weight.copy(), np.repeat(bias, 2)[::2]
    _, grads = F.linear_backward(x, weight, bias, dy, grads=given)
    assert all(a is b for a, b in zip(grads, given, strict=True))
    assert_close(named(dweight=given[0], dbias=given[1]), named(dweight=weight + dweight, dbias=bias + dbias))


@by_large_map
@by_dtype
def test_threads_do_not_change_the_bits_of_linear(sizes: Map, dtype: str) -> None:
    problem = linear_problem(dtype, sizes)
    _core.set_num_threads(1)
    expected = solve_linear(*problem)
    for n in (2, 3, 7):
        _core.set_num_threads(n)
        assert_same_bits(solve_linear(*problem), expected)


@by_large_map
@by_dtype
def test_rows_do_not_change_their_neighbours(sizes: Map, dtype: str) -> None:
    x, weight, bias, dy = linear_problem(dtype, sizes)
    whole = solve_linear(x, weight, bias, dy)
    x, dy = x.reshape(-1, sizes.I), dy.reshape(-1, sizes.O)
    for rows in (slice(0, 1), slice(5, 12), slice(100, 333), slice(len(x) - 2, None)):
        part = solve_linear(x[rows], weight, bias, dy[rows])
        for name, width in (("y", sizes.O), ("dx", sizes.I)):
            assert np.array_equal(part[name], whole[name].reshape(-1, width)[rows])
    x[7] = math.nan
    assert np.flatnonzero(np.isnan(F.linear(x, weight, bias)).any(axis=1)).tolist() == [7]


def test_linear_reads_any_layout() -> None:
    x, weight, bias, dy = linear_problem("float64", Map((5, 3), 7, 4))
    wide = np.repeat(np.repeat(x, 2, axis=0), 2, axis=2)[::2, :, ::2]
    strided = wide, np.asfortranarray(weight), np.repeat(bias, 2)[::2], np.asfortranarray(dy)
    assert_same_bits(solve_linear(*strided), solve_linear(x, weight, bias, dy))


# What a tape holds


@by_dtype
@by_cell
def test_a_tape_is_made_again_from_what_it_holds(cell: str, dtype: Any) -> None:
    p = make_problem(cell, dtype, SHAPE)
    arguments = cell, p.x, p.parameters, p.state0
    y, _, tape = _core.forward(*arguments)
    rows = SHAPE.T * SHAPE.B * SHAPE.D
    assert [a.size for a in tape.memory] == [rows * n for n in _core.tape_row(cell, SHAPE.H, dtype)]
    *_, again = _core.forward(*arguments, out=(y, None), memory=tape.memory)
    assert_same_bits(gradients(_core, again, p), gradients(_core, tape, p))


def test_memory_that_does_not_fit_is_an_error() -> None:
    p = make_problem("lstm", np.float32, SHAPE)
    arguments = "lstm", p.x, p.parameters
    gates, c, nothing = _core.forward(*arguments)[-1].memory
    for memory, message in (
        ((gates[1:], c, nothing), "memory: expected shape"),
        ((gates, c.astype(np.float64), nothing), "memory: expected dtype float32, got float64"),
        ((gates, c), "memory: expected 3 entries"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            _core.forward(*arguments, memory=memory)
    with pytest.raises(ValueError, match="memory: expected None, since steps are still to come"):
        _core.forward("lstm", p.x, p.parameters[:1], memory=(gates, c, nothing), steps=(0, 0))
    with pytest.raises(ValueError, match="memory: expected None, since inference makes no tape"):
        _core.inference(*arguments, memory=(gates, c, nothing))
