"""Problems to solve twice, by the kernels and by the oracle: one layer with all its data."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tolerances import TOLERANCE, relative_error

from rnnfast import _core, reference

Array = NDArray[Any]
State = tuple[Array | None, ...]  # an entry for each of the cell's states
Results = dict[str, Array]
Layout = Callable[[Array], Array]

CELLS = tuple(_core.cells)
DTYPES = ("float32", "float64")
PARTS = {"state0": "{}0", "dstate": "d{}"}  # how the parts of a problem's states are named
ALL_PARTS = sorted({form.format(s) for cell in _core.cells.values() for s in cell.states for form in PARTS.values()})


def representatives() -> tuple[str, ...]:
    """Return cells among which each fact that loops over time know of a cell occurs.

    Where loops, layers or windows are tested, and not what a cell computes, these stand for all.
    """
    seen: set[tuple[str, object]] = set()
    chosen = []
    for name, cell in _core.cells.items():
        facts = {
            ("gates", cell.num_gates),
            ("states", cell.states),
            ("phases", cell.num_phases),
            ("vectors", bool(cell.parameters)),
        }
        if facts - seen:
            chosen.append(name)
        seen |= facts
    return tuple(chosen)


REPRESENTATIVES = representatives()


class Shape(NamedTuple):
    """Sizes: T time steps, B sequences, I inputs, H hidden units, D directions; P of h where that is a projection."""

    T: int
    B: int
    I: int
    H: int
    D: int = 1
    P: int = 0


def num_states(cell: str) -> int:
    """Return how many states the cell has."""
    return len(_core.cells[cell].states)


def state_names(cell: str, form: str = "{}") -> list[str]:
    """Return the names of the cell's states, in the form."""
    return [form.format(name) for name in _core.cells[cell].states]


def state_of(parts: tuple[Any, ...] | None) -> Any:
    """Return a state as the public functions have it: its parts, or the only one."""
    return parts[0] if parts is not None and len(parts) == 1 else parts


def parts(state: Any) -> tuple[Any, ...]:
    """Return the parts of a state as the public functions have it: (h,), or (h, c)."""
    return state if isinstance(state, tuple) else (state,)


def mapped(f: Callable[[Any], Any], a: Any) -> Any:
    """Apply f to an array, or to each in a tuple or a list of them; None remains None."""
    if isinstance(a, tuple | list):
        return type(a)(mapped(f, part) for part in a)
    return None if a is None else f(a)


def identify(shape: Shape) -> str:
    """Return the name of a shape in a test's name."""
    return "-".join(f"{letter}{n}" for letter, n in shape._asdict().items() if n)


@dataclass(frozen=True)
class Problem:
    """One layer, its input and the gradients of its outputs; what is None is not given to the call."""

    cell: str
    x: Array  # [T,B,I], or tokens [T,B]
    # D tuples: w_ih [G·H,I], w_hh [G·H,P] or [G·H,H/heads], b_ih, b_hh [G·H] or None, ..
    parameters: list[tuple[Array | None, ...]]
    state0: State | None  # [D,B,H] each, of h [D,B,P]
    dy: Array | None  # [T,B,D·P]
    dstate: State | None  # [D,B,H] each, of h [D,B,P]
    embedding: Array | None = None  # [V,I]
    lengths: Array | None = None  # [B]
    resets: Array | None = None  # [T,B]
    gate_override: dict[str, float] | None = None
    dsteps: State | None = None  # [T,B,D·H] each, of the states beside h
    clip_dh: float | None = None
    recurrent_factors: Array | None = None  # [D,B,H] or [D,B,G,H]
    candidate_dropout: tuple[Array, float] | None = None  # bools [T,B,D·H] or [1,B,D·H], and the rate of what is False
    zoneout: tuple[Any, ...] | None = None  # of each state bools [T,B,D·H], a rate, or None
    layer_norm_eps: float | None = None

    def without(self, *names: str) -> "Problem":
        """Return the problem with the named fields None, or parts of states: h0 of state0, dh of dstate and so on."""
        without: dict[str, Any] = {name: None for name in names if name not in ALL_PARTS}
        p = replace(self, **without)
        for field, form in PARTS.items():
            if state := getattr(p, field):
                own = zip(state_names(p.cell, form), state, strict=True)
                parts: Any = {field: tuple(None if name in names else part for name, part in own)}
                p = replace(p, **parts)
        return p

    def options(self, *names: str) -> dict[str, Any]:
        """Return those of the named fields that are given, to be handed to a call by name."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def with_each(self, f: Callable[[Any], Any], *names: str) -> "Problem":
        """Return the problem with f applied to the arrays of the named fields."""
        return replace(self, **{name: mapped(f, getattr(self, name)) for name in names})

    @property
    def hidden_size(self) -> int:
        """H."""
        w_ih: Any = self.parameters[0][0]
        return len(w_ih) // _core.cells[self.cell].num_gates

    @property
    def state_sizes(self) -> list[int]:
        """The sizes of the states: P of h where that is a projection, else H."""
        H, own = self.hidden_size, 4 + len(_core.cells[self.cell].parameters)
        projection: Any = self.parameters[0][own:]
        return [len(projection[0]) if projection else H, *[H] * (num_states(self.cell) - 1)]

    @property
    def real(self) -> Array:
        """Whether a step of a sequence is real, [T,B,1]; the others are padding."""
        T, B = self.x.shape[:2]
        return (np.arange(T)[:, None] < (np.full(B, T) if self.lengths is None else self.lengths))[..., None]


def make_problem(
    cell: str, dtype: DTypeLike, shape: Shape, *, bias: bool = True, seed: int = 0, heads: int | None = None
) -> Problem:
    """Draw a problem with weights as torch initialises them, U(-1/sqrt(H), 1/sqrt(H)).

    By default, an sLSTM with the sigmoid has two heads where H is even. A normalizer n is above 0.

    Where I > H, x is scaled down so that few units saturate: there 1 - h^2 is rounding, in any implementation.
    """
    rng = np.random.default_rng(seed)
    T, B, I, H, D, proj_size = shape
    P, G, states = proj_size or H, _core.cells[cell].num_gates, _core.cells[cell].states
    if heads is None:
        heads = 2 if cell == "slstm" and H % 2 == 0 else 1
    sizes = [P, *[H] * (len(states) - 1)]

    def uniform(*size: int) -> Array:
        return np.asarray(rng.uniform(-1, 1, size) / np.sqrt(H), dtype)

    def normal(*size: int) -> Array:
        return np.asarray(rng.standard_normal(size), dtype)

    def state(name: str, n: int) -> Array:
        return normal(D, B, n) if name != "n" else np.asarray(0.5 + rng.random((D, B, n)), dtype)

    def vectors(name: str, n: int) -> Array:
        match name:
            case "leak":  # within (0, 1]: past it the state would grow
                return np.asarray(1 - 0.9 * rng.random(n * H), dtype)
            case "bounds":  # of n from below and of f from above
                return np.asarray(rng.random(n * H) + np.repeat([0.5, 1], H), dtype)
            case "gain_ih" | "gain_hh" | "gain_c":  # about 1, as they start
                return np.asarray(0.5 + rng.random(n * H), dtype)
        return uniform(n * H)

    problem = Problem(
        cell=cell,
        x=normal(T, B, I) * np.asarray(min(1, np.sqrt(H / I)), dtype),
        parameters=[
            (uniform(G * H, I), uniform(G * H, P // heads), *(uniform(G * H) if bias else None for _ in range(2)))
            for _ in range(D)
        ],
        state0=tuple(map(state, states, sizes)),
        dy=normal(T, B, D * P),
        dstate=tuple(normal(D, B, n) for n in sizes),
    )
    for name, n in _core.cells[cell].parameters.items():
        new = [vectors(name, n) for _ in range(D)]
        problem = replace(problem, parameters=[(*ws, w) for ws, w in zip(problem.parameters, new, strict=True)])
    if proj_size:
        problem = replace(problem, parameters=[(*ws, uniform(P, H)) for ws in problem.parameters])
    return problem


def make_token_problem(
    cell: str, dtype: DTypeLike, shape: Shape, *, V: int | None = None, bias: bool = True, seed: int = 0
) -> Problem:
    """Draw a problem with tokens, from an embedding [V,I] or, without V, one-hot: from 0 to I - 1.

    The smaller a token is, the more often it occurs.
    """
    rng = np.random.default_rng(seed)
    problem = make_problem(cell, dtype, shape, bias=bias, seed=seed)
    n = shape.I if V is None else V
    tokens = np.floor(n * rng.random((shape.T, shape.B)) ** 2).astype(np.int64)
    embedding = None if V is None else np.asarray(rng.standard_normal((n, shape.I)), dtype)
    return replace(problem, x=tokens, embedding=embedding)


def integers(p: Problem, rng: np.random.Generator) -> Problem:
    """Return the problem, in float32, with small integers, and few weights that are not 0: bfloat16 holds them all."""

    def some(a: Any) -> Any:
        return rng.integers(-1, 2, a.shape).astype(np.float32)

    def few(a: Any) -> Any:
        return some(a) * (rng.random(a.shape) < 1 / a.shape[-1])

    parameters: list[Any] = [(few(w_ih), few(w_hh), some(b_ih), some(b_hh)) for w_ih, w_hh, b_ih, b_hh in p.parameters]
    return replace(p.with_each(some, "x", "state0", "dy", "dstate"), parameters=parameters)


def ragged(problem: Problem, *lengths: int, pad: float = np.nan) -> Problem:
    """Return the problem with these lengths, one of each sequence; what it holds in the padding is of no account.

    Tokens in the padding are the largest.
    """
    p = replace(problem, lengths=np.array(lengths))

    def padded(a: Array) -> Array:
        if a.ndim == 2:
            return np.where(p.real[..., 0], a, a.max(initial=0))
        return np.where(p.real, a, a.dtype.type(pad))

    return p.with_each(padded, "x", "dy", "dsteps")


def with_resets(problem: Problem, share: float = 0.3, seed: int = 0) -> Problem:
    """Return the problem with an episode that starts at about this share of all steps."""
    return replace(problem, resets=np.random.default_rng(seed).random(problem.x.shape[:2]) < share)


def with_dsteps(problem: Problem, seed: int = 0) -> Problem:
    """Return the problem with a gradient of every step's states beside h, as many as the cell has."""
    rng, dy = np.random.default_rng(seed), problem.dy
    assert dy is not None
    shapes = [(*dy.shape[:2], len(problem.parameters) * n) for n in problem.state_sizes[1:]]
    return replace(problem, dsteps=tuple(rng.standard_normal(shape).astype(dy.dtype) for shape in shapes))


def laid_out(problem: Problem, layout: Layout) -> Problem:
    """Return the problem with every array stored in the layout."""
    return problem.with_each(layout, "x", "parameters", "state0", "dy", "dstate", "embedding", "dsteps")


def solve(engine: Any, problem: Problem, **options: Any) -> Results:
    """Run forward and backward of the kernels or of the oracle; return what came, by name.

    The states are named after those of the cell, ``h`` and ``c``, the gradients of the initial ones ``dh0`` and
    ``dc0``, those of the parameters of direction d ``dw_ih[d]`` and so on; what is None has no entry.
    """
    p = problem
    y, state, tape = engine.forward(
        p.cell,
        p.x,
        p.parameters,
        p.state0,
        embedding=p.embedding,
        **p.options(
            "lengths",
            "resets",
            "gate_override",
            "recurrent_factors",
            "candidate_dropout",
            "zoneout",
            "layer_norm_eps",
        ),
    )
    return {"y": y, **named_state(p.cell, state), **gradients(engine, tape, p, **options)}


def gradients(engine: Any, tape: Any, problem: Problem, **options: Any) -> Results:
    """Run backward; return what came, by name, as `solve` does."""
    p = problem
    dx, dstate0, grads = engine.backward(tape, p.dy, p.dstate, **p.options("dsteps", "clip_dh"), **options)
    return named_gradients(p.cell, dx, dstate0, grads)


def named_gradients(cell: str, dx: Array | None, dstate0: State, grads: Any) -> Results:
    """Return what a backward gave by name."""
    return {**named(dx=dx), **named_state(cell, dstate0, "d{}0"), **named_grads(grads)}


def named_state(cell: str, state: State, form: str = "{}") -> Results:
    """Return the parts of a state by name, which is their own in the form."""
    return named(**dict(zip(state_names(cell, form), state, strict=True)))


def of_states(cell: str) -> set[str]:
    """Return the names of the results that are states or their gradients, [D,B,H] each."""
    return {*state_names(cell), *state_names(cell, "d{}0")}


def named_grads(grads: Any) -> Results:
    """Return the D tuples (dw_ih, dw_hh, db_ih, db_hh, and what the cell has more) by name."""
    names = ("dw_ih", "dw_hh", "db_ih", "db_hh", "dmore", "dmore_too", "dmore_third", "dmore_fourth")
    return named(**{f"{n}[{d}]": g for d, gs in enumerate(grads) for n, g in zip(names, gs, strict=False)})


def named(**arrays: Array | None) -> Results:
    """Return the arrays by name, without those that are None."""
    return {name: a for name, a in arrays.items() if a is not None}


def assert_close(actual: Results, expected: Results, layers: int = 1) -> None:
    """Assert that the same arrays came, and that each is within the tolerance of its dtype.

    The errors of the layers of a stack are independent: their squares add up.
    """
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(a, expected[name]) for name, a in actual.items()}
    far = {name: e for name, e in errors.items() if not e <= layers**0.5 * TOLERANCE[actual[name].dtype]}
    assert not far, f"relative errors {far}"


def tolerance_of(problem: Problem, dtype: np.dtype[Any]) -> float:
    """Return how far a result may lie from the oracle.

    A cell that normalises divides its rows, rounding and all, by their deviation, which is mostly below 1.
    """
    return TOLERANCE[dtype] * (4 if _core.cells[problem.cell].normalises else 1)


def assert_parity(
    actual: Results, problem: Problem, without: Collection[str] = (), added_to: Results | None = None
) -> None:
    """Assert that the oracle's arrays came, but for those named, and that each is close to the oracle's.

    `added_to` is what they were added to, if they were.

    In an array of few numbers all may cancel at once, and what remains is rounding: no kernel can be expected to
    come closer to the exact result than those of neighbouring problems do. Their distance is allowed beside the
    tolerance, a few times since it is only sampled.
    """
    expected = {name: a for name, a in solve(reference, problem).items() if name not in without}
    assert actual.keys() == expected.keys()
    sums = expected if added_to is None else {name: a + added_to[name] for name, a in expected.items()}
    errors = {name: relative_error(a, sums[name]) for name, a in actual.items()}
    far = {name: e for name, e in errors.items() if not e <= tolerance_of(problem, actual[name].dtype)}
    if far:
        moved = sensitivity(problem, expected)
        far = {
            name: e for name, e in far.items() if not e <= tolerance_of(problem, actual[name].dtype) + 4 * moved[name]
        }
    assert not far, f"relative errors {far}"


def sensitivity(problem: Problem, expected: Results) -> dict[str, float]:
    """Return how far each result of the oracle moves, relatively, when all numbers given are rounded anew."""
    moved = dict.fromkeys(expected, 0.0)
    rng = np.random.default_rng(0)

    def neighbour(a: Array) -> Array:
        if a.dtype.kind == "i":
            return a
        return a * (1 + float(np.finfo(a.dtype).eps) * rng.choice([-1.0, 1.0], a.shape))

    for _ in range(3):
        results = solve(reference, laid_out(problem, neighbour))
        moved = {name: max(m, relative_error(results[name], expected[name])) for name, m in moved.items()}
    return moved


def assert_same_bits(actual: Results, expected: Results) -> None:
    """Assert that the same arrays came, with equal numbers (NaN equals NaN)."""
    assert actual.keys() == expected.keys()
    differ = [name for name, a in actual.items() if not np.array_equal(a, expected[name], equal_nan=True)]
    assert not differ, f"differ: {differ}"
