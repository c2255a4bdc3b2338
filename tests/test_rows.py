"""The kernels over rows of unequal steps and episodes, against the oracle and bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pytest
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
    identify,
    make_problem,
    make_token_problem,
    mapped,
    num_states,
    of_states,
    parts,
    ragged,
    solve,
    state_of,
    with_dsteps,
    with_resets,
)

import rnnfast
from rnnfast import PackedSequence, _core, functional, pack_padded, pad_packed, reference
from rnnfast._base.packed import inverse

pytestmark = pytest.mark.no_cover  # what is tested is no Python

# 1, W - 1, W, W + 1 and two vectors of each width W in {2, 4, 8, 16}
AROUND_LANES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
ODD = Shape(T=5, B=4, I=7, H=19, D=2)
CHUNKS = Shape(T=90, B=9, I=3, H=24, D=2)

SHAPES = (
    *(Shape(4, 4, I, H, D=1 + k % 2) for k, (I, H) in enumerate(zip(AROUND_LANES[::-1], AROUND_LANES, strict=True))),
    # Every remainder of a tile's rows occurs in some step.
    Shape(30, 26, 4, 5, D=2),
    Shape(1, 3, 2, 3, D=2),
    CHUNKS,
    Shape(300, 3, 1, 20),
    Shape(20, 13, 130, 200),
    Shape(4, 300, 5, 33, D=2),  # more rows in a step than in a chunk
)

Form = Callable[[Problem], Problem]

by_cell = pytest.mark.parametrize("cell", REPRESENTATIVES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def by_shape(*shapes: Shape) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=identify)


class Packed(NamedTuple):
    """What a backward of packed rows needs."""

    tape: Any
    lengths: Array | None
    order: Any  # the sequence at each place, or all of them as they are
    T: int


class Kernels:
    """`functional` as an engine of `problems.solve`, which packs what has lengths; all of them at least 1."""

    @staticmethod
    def forward(
        cell: str,
        x: Array,
        parameters: Any,
        state0: Any,
        *,
        lengths: Any = None,
        resets: Any = None,
        **options: Any,
    ) -> Any:
        packed, order = None, slice(None)
        if lengths is not None:
            packed = pack_padded(x, lengths)
            x, order = packed.data, packed.sorted_indices
            options["batch_sizes"] = packed.batch_sizes
            resets = None if resets is None else pack_padded(resets, lengths).data
        state = state_of(mapped(itemgetter(np.s_[:, order]), state0))
        y, last, tape = functional.forward(cell, x, parameters, state, resets=resets, **options)
        bare = functional.inference(cell, x, parameters, state, resets=resets, **options)
        assert np.array_equal(bare[0], y)
        T = len(x) if packed is None else len(packed.batch_sizes)
        kept = Packed(tape, lengths, order, T)
        return padded(kept, y), given_back(kept, last), kept

    @staticmethod
    def gradients(kept: Packed, dy: Any, dstate: Any, *, dsteps: Any = (), **options: Any) -> Any:
        def rows(a: Any) -> Any:
            return a if a is None or kept.lengths is None else pack_padded(a, kept.lengths).data

        last = state_of(mapped(itemgetter(np.s_[:, kept.order]), dstate))
        flow = tuple(np.full_like(rows(dy), np.nan) for _ in range(min(num_states(kept.tape.cell), 2)))  # of h and c
        dc = dict(zip(["dc"], map(rows, dsteps), strict=False))
        dx, dstate0, grads = functional.backward(kept.tape, rows(dy), last, **dc, flow=(*flow, None)[:2], **options)
        if dx is not None and len(dx) == len(rows(dy)):  # not that of an embedding
            dx = padded(kept, dx)
        return reference.Gradients(dx, given_back(kept, dstate0), grads, tuple(padded(kept, ds) for ds in flow))

    @classmethod
    def backward(cls, kept: Packed, dy: Any, dstate: Any, **options: Any) -> Any:
        return cls.gradients(kept, dy, dstate, **options)[:3]


def padded(kept: Packed, a: Array) -> Array:
    if kept.lengths is None:
        return a
    sizes = pack_padded(np.zeros((kept.T, len(kept.lengths))), kept.lengths)
    return pad_packed(PackedSequence(a, *sizes[1:]))[0]


def given_back(kept: Packed, state: Any) -> tuple[Array, ...]:
    if kept.lengths is None:
        return parts(state)
    return tuple(part[:, inverse(kept.order)] for part in parts(state))


def with_lengths(problem: Problem, seed: int = 0) -> Problem:
    """Return the problem with random lengths, one of them T, and NaN in the padding."""
    T, B = problem.x.shape[:2]
    lengths = np.random.default_rng(seed).integers(1, T + 1, B)
    lengths[B // 2] = T
    return ragged(problem, *lengths)


def with_dc(problem: Problem) -> Problem:
    """Return the problem with a gradient of every step's c, if there is one: `functional` takes no others."""
    p: Any = with_dsteps(problem)
    only_c: Problem = replace(p, dsteps=tuple(None if k else ds for k, ds in enumerate(p.dsteps)))
    return only_c


def with_both(problem: Problem) -> Problem:
    """Return the problem with lengths, episodes, and a gradient of every step's c."""
    return with_lengths(with_resets(with_dc(problem), 0.2))


@by_shape(*SHAPES)
@by_dtype
@by_cell
def test_every_shape(cell: str, dtype: str, shape: Shape) -> None:
    problem = with_both(make_problem(cell, dtype, shape))
    assert_parity(solve(Kernels, problem), problem)


FORMS: dict[str, Form] = {
    "lengths": with_lengths,
    "resets": with_resets,
    "resets everywhere": lambda p: with_resets(p, 1.1),
    "clipped": lambda p: replace(with_both(p), clip_dh=0.25),
    "every step": with_dc,
}


@pytest.mark.parametrize("form", FORMS)
@by_shape(ODD, CHUNKS)
@by_cell
def test_every_form(cell: str, shape: Shape, form: str) -> None:
    problem = FORMS[form](make_problem(cell, "float64", shape))
    assert_close(solve(Kernels, problem), solve(reference, problem))


@pytest.mark.parametrize("V", [None, 11])
@by_shape(ODD, CHUNKS)
@by_cell
def test_tokens(cell: str, shape: Shape, V: int | None) -> None:
    problem = with_both(make_token_problem(cell, "float64", shape, V=V))
    assert_close(solve(Kernels, problem), solve(reference, problem))


@by_shape(ODD, CHUNKS)
@by_cell
def test_gates_that_are_held(cell: str, shape: Shape) -> None:
    for name in _core.cells[cell].held:
        problem = replace(with_both(make_problem(cell, "float64", shape)), gate_override={name: 0.375})
        assert_close(solve(Kernels, problem), solve(reference, problem))


@pytest.mark.parametrize("clip_dh", [None, 0.25])
@by_shape(ODD, CHUNKS, Shape(20, 13, 30, 65))
@by_cell
def test_flow_is_all_that_reaches_a_state(cell: str, shape: Shape, clip_dh: float | None) -> None:
    p = replace(with_both(make_problem(cell, "float64", shape)), clip_dh=clip_dh)

    def flow(engine: Any) -> Results:
        tape = engine.forward(cell, p.x, p.parameters, p.state0, lengths=p.lengths, resets=p.resets)[-1]
        gradients = engine.gradients(tape, p.dy, p.dstate, **p.options("dsteps", "clip_dh"))
        return dict(zip("hc", gradients.dsteps, strict=False))

    assert_close(flow(Kernels), flow(reference))


# Bit for bit


# The last three are divided by units among members: these meet where they bring rows of several places together.
@by_shape(
    Shape(20, 40, 30, 96, D=2),
    Shape(60, 9, 1, 40),
    Shape(80, 40, 30, 48),  # many chunks, in which members do not wait for each other
    Shape(12, 3, 200, 130),
    Shape(20, 2, 40, 300),
    Shape(55, 5, 4, 264, D=2),
)
@pytest.mark.parametrize(("form", "dtype"), [(with_both, "float32"), (with_resets, "float64")])
@by_cell
def test_any_number_of_threads_gives_the_same_bits(cell: str, form: Form, dtype: str, shape: Shape) -> None:
    problem = form(make_problem(cell, dtype, shape))
    rnnfast.set_num_threads(1)
    expected = solve(Kernels, problem)
    for threads in (2, 3, 7):
        rnnfast.set_num_threads(threads)
        assert_same_bits(solve(Kernels, problem), expected)


@by_shape(ODD, CHUNKS, Shape(20, 13, 30, 200))
@by_dtype
@by_cell
def test_a_sequence_among_others_gets_the_bits_it_gets_alone(cell: str, dtype: str, shape: Shape) -> None:
    problem = with_both(make_problem(cell, dtype, shape))
    together = solve(Kernels, problem)
    for b, length in enumerate(problem.lengths if problem.lengths is not None else ()):
        rows = slice(0, length)
        own = problem.with_each(itemgetter(np.s_[:, b : b + 1]), "state0", "dstate").without("lengths")
        own = own.with_each(itemgetter(np.s_[rows, b : b + 1]), "x", "dy", "dsteps", "resets")
        alone = solve(Kernels, own)
        for name in alone.keys() & {"y", "dx"}:
            assert np.array_equal(together[name][rows, b], alone[name][:, 0]), name
        for name in alone.keys() & of_states(cell):
            assert np.array_equal(together[name][:, b], alone[name][:, 0]), name


@by_shape(ODD, CHUNKS)
@by_dtype
@by_cell
def test_equal_lengths_and_no_episodes_change_no_bit(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    expected = solve(Kernels, problem)
    assert_same_bits(solve(Kernels, ragged(problem, *[shape.T] * shape.B)), expected)
    assert_same_bits(solve(Kernels, with_resets(problem, 0)), expected)
