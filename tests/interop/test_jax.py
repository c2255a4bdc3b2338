"""The functions of rnnfast.jax against lax.scan, under JAX's transformations, and what they refuse."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from scripts import run_script
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import rnnfast.jax as ours  # noqa: E402
from rnnfast.jax import _kernels  # noqa: E402

CELLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "lstm": (ours.lstm, {}),
    "gru": (ours.gru, {}),
    "gru_reset_before": (ours.gru, {"reset_after": False}),
    "rnn_tanh": (ours.rnn, {}),
    "rnn_relu": (ours.rnn, {"nonlinearity": "relu"}),
}
AGREEMENT = 1e-10  # of float64 with lax.scan

by_cell = pytest.mark.parametrize("cell", CELLS)
by_reverse = pytest.mark.parametrize("reverse", [False, True])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def step(cell: str, weights: Any, state: Any, x: Any) -> Any:
    """Return the state after one step."""
    w_ih, w_hh, *biases = weights
    h = state[0]
    b_ih, b_hh = biases or (0, 0)
    sigmoid = jax.nn.sigmoid
    from_x = x @ w_ih.T + b_ih
    if cell == "gru_reset_before":
        (xr, xz, xn), (wr, wz, wn) = jnp.split(from_x, 3, -1), jnp.split(w_hh, 3)
        br, bz, bn = jnp.split(b_hh, 3) if biases else (0, 0, 0)
        r, z = sigmoid(xr + h @ wr.T + br), sigmoid(xz + h @ wz.T + bz)
        return ((1 - z) * jnp.tanh(xn + (r * h) @ wn.T + bn) + z * h,)
    from_h = h @ w_hh.T + b_hh
    if cell == "lstm":
        i, f, g, o = jnp.split(from_x + from_h, 4, -1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c
    if cell == "gru":
        (xr, xz, xn), (hr, hz, hn) = jnp.split(from_x, 3, -1), jnp.split(from_h, 3, -1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        return ((1 - z) * jnp.tanh(xn + r * hn) + z * h,)
    return ((jnp.tanh if cell == "rnn_tanh" else jax.nn.relu)(from_x + from_h),)


def scanned(
    cell: str, parameters: Any, x: Any, state: Any, reverse: bool = False, mask: Any = None, resets: Any = None
) -> Any:
    """Return y and the last state, by lax.scan; where the mask is false, the state stays and y is zero."""
    weights = [parameters[name] for name in NAMES if name in parameters]
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
    resets = jnp.zeros(x.shape[:2], bool) if resets is None else resets
    if reverse:
        resets = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    first = tuple(s[0] for s in state)

    def one(state: Any, row: Any) -> Any:
        x, real, begins = row[0], row[1][:, None], row[2][:, None]
        state = tuple(jnp.where(begins, s, old) for s, old in zip(first, state, strict=True))
        new = step(cell, weights, state, x)
        state = tuple(jnp.where(real, s, old) for s, old in zip(new, state, strict=True))
        return state, jnp.where(real, state[0], 0)

    state, y = jax.lax.scan(one, first, (x, mask, resets), reverse=reverse)
    return y, tuple(s[None] for s in state)


NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Problem:
    """One layer and direction with all its data."""

    def __init__(self, cell: str, T: int, B: int, I: int, H: int, *, bias: bool = True, dtype: str = "float64") -> None:
        rng = np.random.default_rng(5)
        G, S = _core.cells[cell].num_gates, len(_core.cells[cell].states)

        def normal(*shape: int, scale: float = 1.0) -> Any:
            return jnp.asarray(scale * rng.standard_normal(shape), dtype)

        self.cell, self.size = cell, (T, B, I, H)
        self.parameters = {"weight_ih_l0": normal(G * H, I, scale=I**-0.5)}
        self.parameters |= {"weight_hh_l0": normal(G * H, H, scale=H**-0.5)}
        if bias:
            self.parameters |= {"bias_ih_l0": normal(G * H), "bias_hh_l0": normal(G * H)}
        self.x, self.state = normal(T, B, I), tuple(normal(1, B, H) for _ in range(S))
        self.dy, self.dstate = normal(T, B, H), tuple(normal(1, B, H) for _ in range(S))

    def run(self, parameters: Any, x: Any, state: Any, **options: Any) -> Any:
        """Return y and the state as a tuple."""
        function, own = CELLS[self.cell]
        y, state = function(parameters, x, state if len(state) == 2 else state[0], **own, **options)
        return y, state if isinstance(state, tuple) else (state,)

    def loss(self, results: Any) -> Any:
        y, state = results
        return (y * self.dy).sum() + sum((s * d).sum() for s, d in zip(state, self.dstate, strict=True))

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.parameters, self.x, self.state


def agree(actual: Any, expected: Any, tolerance: float = AGREEMENT) -> None:
    """Assert that trees of arrays are alike, and close."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        assert relative_error(np.asarray(a), np.asarray(e)) <= tolerance


def both(problem: Problem, **options: Any) -> None:
    """Compare values and all gradients with lax.scan."""
    expected = partial(scanned, problem.cell, **options)
    agree(problem.run(*problem.arguments, **options), expected(*problem.arguments))
    gradients = [
        jax.jit(jax.grad(lambda *a, f=f: problem.loss(f(*a)), argnums=(0, 1, 2)))(*problem.arguments)
        for f in (partial(problem.run, **options), expected)
    ]
    agree(*gradients)


# Values and gradients


@by_cell
@by_reverse
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (5, 3, 4, 17)])
def test_values_and_gradients_are_those_of_a_scan(cell: str, reverse: bool, size: tuple[int, ...]) -> None:
    both(Problem(cell, *size, bias=size[0] > 1), reverse=reverse)


@by_cell
def test_float32_is_that_of_float64_to_rounding(cell: str) -> None:
    problems = [Problem(cell, 6, 3, 5, 20, dtype=dtype) for dtype in ("float32", "float64")]
    results = [jax.value_and_grad(lambda *a, p=p: p.loss(p.run(*a)), argnums=(0, 1, 2))(*p.arguments) for p in problems]
    for a, e in zip(*map(jax.tree.leaves, results), strict=True):
        assert a.dtype == "float32"
        assert relative_error(np.asarray(a), np.asarray(e)) < 10 * TOLERANCE[np.dtype(np.float32)]


@pytest.mark.parametrize(("kind", "cell"), [(rnnfast.LSTM, "lstm"), (rnnfast.GRU, "gru"), (rnnfast.RNN, "rnn_tanh")])
def test_layers_and_directions_have_the_bits_of_the_layers(kind: Any, cell: str) -> None:
    layer = kind(5, 6, num_layers=2, bidirectional=True, rng=1)
    x = np.random.default_rng(2).standard_normal((7, 3, 5), np.float32)
    dy = np.random.default_rng(3).standard_normal((7, 3, 12), np.float32)
    y, state, tape = layer.forward(x)
    dx, _, gradients = layer.backward(tape, dy)
    parameters = {name: jnp.asarray(a) for name, a in layer.parameters.items()}
    function, _ = CELLS[cell]
    (actual_y, actual_state), pull = jax.vjp(function, parameters, jnp.asarray(x))
    np.testing.assert_array_equal(actual_y, y)
    for a, e in zip(jax.tree.leaves(actual_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, e)
    actual, actual_dx = pull((jnp.asarray(dy), jax.tree.map(jnp.zeros_like, actual_state)))
    np.testing.assert_allclose(actual_dx, dx, rtol=1e-5, atol=1e-6)  # both directions' parts are summed elsewhere
    for name, gradient in gradients.items():
        np.testing.assert_allclose(actual[name], gradient, rtol=1e-5, atol=2e-5)


@by_cell
@by_reverse
def test_lengths_end_sequences(cell: str, reverse: bool) -> None:
    problem = Problem(cell, 6, 4, 3, 9)
    lengths = jnp.array([6, 2, 0, 5])
    mask = jnp.arange(6)[:, None] < lengths
    expected = partial(scanned, cell, reverse=reverse, mask=mask)
    agree(problem.run(*problem.arguments, lengths=lengths, reverse=reverse), expected(*problem.arguments))

    def ours_of(parameters: Any, x: Any, state: Any, lengths: Any) -> Any:
        return problem.loss(problem.run(parameters, x, state, lengths=lengths, reverse=reverse))

    actual = jax.jit(jax.grad(ours_of, argnums=(0, 1, 2)))(*problem.arguments, lengths)
    agree(actual, jax.grad(lambda *a: problem.loss(expected(*a)), argnums=(0, 1, 2))(*problem.arguments))
    padded = jnp.where(mask[..., None], problem.x, jnp.nan)
    agree(jax.grad(ours_of, argnums=(0, 1, 2))(problem.parameters, padded, problem.state, lengths), actual)


@by_cell
@by_reverse
def test_resets_begin_episodes(cell: str, reverse: bool) -> None:
    problem = Problem(cell, 7, 3, 2, 5)
    both(problem, resets=jnp.asarray(np.random.default_rng(4).random((7, 3)) < 0.3), reverse=reverse)


def test_resets_and_lengths_go_together_and_fold() -> None:
    problem = Problem("lstm", 7, 3, 2, 5)
    lengths, resets = jnp.array([7, 3, 4]), np.random.default_rng(4).random((2, 7, 3)) < 0.4
    mask = jnp.arange(7)[:, None] < lengths
    f = jax.vmap(lambda r: problem.run(*problem.arguments, lengths=lengths, resets=r))
    for n, reset in enumerate(resets):
        expected = scanned("lstm", problem.parameters, problem.x, problem.state, mask=mask, resets=reset & mask)
        agree(jax.tree.map(lambda a, n=n: a[n], f(resets.astype(float))), expected)


# Transformations


def calls_of(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the names and the first shapes of the kernels' calls in a program, loops included."""
    found: list[Any] = []

    def look(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name.startswith("rnnfast"):
                found.append((equation.primitive.name, equation.invars[0].aval.shape))
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    look(inner.jaxpr)

    look(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@by_cell
def test_vmap_folds_into_the_batch(cell: str) -> None:
    problem = Problem(cell, 4, 2, 3, 5)
    xs = jnp.stack([problem.x, 2 * problem.x, -problem.x])
    states = tuple(jnp.stack([s, -s, 3 * s]) for s in problem.state)
    f = jax.vmap(problem.run, (None, 0, 0))
    each = [problem.run(problem.parameters, xs[n], tuple(s[n] for s in states)) for n in range(3)]
    agree(f(problem.parameters, xs, states), jax.tree.map(lambda *a: jnp.stack(a), *each))
    g = jax.vmap(problem.run, (None, 2, None), 1)  # another axis; and what has none is the same for all
    agree(
        g(problem.parameters, jnp.moveaxis(xs, 0, 2), problem.state)[0][:, 1],
        problem.run(problem.parameters, xs[1], problem.state)[0],
    )

    def loss(parameters: Any, xs: Any, states: Any) -> Any:
        return jax.vmap(problem.loss)(f(parameters, xs, states)).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    expected = jax.vmap(jax.grad(lambda *a: problem.loss(problem.run(*a)), argnums=(0, 1, 2)), (None, 0, 0))
    dp, dx, ds = expected(problem.parameters, xs, states)
    agree(gradients(problem.parameters, xs, states), (jax.tree.map(lambda a: a.sum(0), dp), dx, ds))
    folded = [("rnnfast_forward", (4, 6, 3)), ("rnnfast_backward", (4, 6, 3))]
    assert calls_of(gradients, problem.parameters, xs, states) == folded
    each_dp = [
        jax.grad(lambda *a: problem.loss(problem.run(*a)))(problem.parameters, xs[n], tuple(s[n] for s in states))
        for n in range(3)
    ]
    agree(dp, jax.tree.map(lambda *a: jnp.stack(a), *each_dp))


def test_vmap_over_parameters_and_lengths_maps_one_by_one() -> None:
    problem = Problem("gru", 4, 2, 3, 5)
    parameters = jax.tree.map(lambda a: jnp.stack([a, a / 2]), problem.parameters)
    lengths = jnp.array([[4, 1], [2, 3]])
    f = jax.vmap(lambda p, n: problem.run(p, problem.x, problem.state, lengths=n)[0])
    for n in range(2):
        alone = jax.tree.map(lambda a, n=n: a[n], parameters)
        agree(f(parameters, lengths)[n], problem.run(alone, problem.x, problem.state, lengths=lengths[n])[0])
    g = jax.vmap(lambda n: problem.run(problem.parameters, problem.x, problem.state, lengths=n)[0])
    agree(g(lengths)[1], problem.run(problem.parameters, problem.x, problem.state, lengths=lengths[1])[0])
    twice = jax.vmap(jax.vmap(problem.run, (None, 0, None)), (None, 0, None))
    xs = jnp.stack([jnp.stack([problem.x] * 3)] * 2)
    assert twice(problem.parameters, xs, problem.state)[0].shape == (2, 3, 4, 2, 5)


@by_cell
def test_a_scan_over_windows_is_the_whole(cell: str) -> None:
    problem = Problem(cell, 6, 3, 4, 7)

    def windows(parameters: Any, x: Any, state: Any) -> Any:
        def one(state: Any, x: Any) -> Any:
            y, state = problem.run(parameters, x, state)
            return state, y

        state, y = jax.lax.scan(jax.checkpoint(one), state, x.reshape(3, 2, 3, 4))
        return y.reshape(6, 3, 7), state

    agree(jax.jit(windows)(*problem.arguments), problem.run(*problem.arguments))
    actual, expected = (
        jax.jit(jax.grad(lambda *a, f=f: problem.loss(f(*a)), argnums=(0, 1, 2))) for f in (windows, problem.run)
    )
    agree(actual(*problem.arguments), expected(*problem.arguments))


def test_without_compilation_and_in_branches_values_are_the_same() -> None:
    problem = Problem("lstm", 4, 2, 3, 5)
    expected = problem.run(*problem.arguments)
    with jax.disable_jit():
        agree(problem.run(*problem.arguments), expected)
    chosen = jax.jit(lambda p, *a: jax.lax.cond(p, lambda *a: problem.run(*a), lambda *a: scanned("lstm", *a), *a))
    agree(chosen(True, *problem.arguments), expected)


def test_x_without_a_gradient_costs_none() -> None:
    problem = Problem("gru", 4, 2, 3, 5)
    gradient = jax.make_jaxpr(jax.grad(lambda p: problem.loss(problem.run(p, problem.x, problem.state))))
    assert "need_dx=False" in str(gradient(problem.parameters))


def test_forward_mode_and_second_derivatives_are_refused() -> None:
    problem = Problem("gru", 4, 2, 3, 5)

    def f(x: Any) -> Any:
        return problem.run(problem.parameters, x, problem.state)[0].sum()

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (problem.x,), (problem.x,))
    with pytest.raises(NotImplementedError, match="expected first derivatives"):
        jax.grad(lambda x: jax.grad(f)(x).sum())(problem.x)


# What is refused, and what is not


def changed(**changes: Any) -> Any:
    problem = Problem("lstm", 4, 2, 3, 5)
    return problem.parameters | changes


def lstm(x: Any, state: Any = None, parameters: Any = None, **options: Any) -> Callable[[], Any]:
    """Return a call with parameters of I = 3 and H = 5, unless others are given."""
    return lambda: ours.lstm(changed() if parameters is None else parameters, x, state, **options)


X, H_ONLY = np.ones((4, 2, 3)), np.ones((1, 2, 5))
REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "axes": (ValueError, r"x: expected shape \(T, B, I\), got \(4, 2\)", lstm(X[..., 0])),
    "I": (ValueError, r"weight_ih_l0: expected shape \(20, 4\), got \(20, 3\)", lstm(np.ones((4, 2, 4)))),
    "no I": (ValueError, "x: expected shape", lstm(X[..., :0])),
    "cell": (ValueError, r"weight_ih_l0: expected shape \(15, 3\)", lambda: ours.gru(changed(), X)),
    "integers": (TypeError, "x: expected float32 or float64, got int", lstm(X.astype(int))),
    "half": (TypeError, "x: expected float32 or float64, got float16", lstm(X.astype("float16"))),
    "dtypes": (TypeError, "weight_ih_l0: expected float32, got float64", lstm(X.astype("float32"))),
    "no array": (TypeError, "x: expected an array, got str", lstm("x")),
    "no mapping": (TypeError, "parameters: expected a mapping", lstm(X, parameters=[X])),
    "missing": (
        ValueError,
        r"missing keys: \['bias_hh_l0'\]",
        lambda: ours.lstm(without("bias_hh_l0"), X),
    ),
    "unexpected": (ValueError, r"unexpected keys: \['w'\]", lambda: ours.lstm(changed(w=X), X)),
    "nothing": (ValueError, "missing keys", lstm(X, parameters={})),
    "H": (ValueError, "weight_hh_l0: expected shape", lambda: ours.lstm(changed(weight_hh_l0=np.ones(20)), X)),
    "state": (TypeError, r"state: expected a tuple \(h, c\)", lstm(X, H_ONLY)),
    "c": (ValueError, r"state: expected c of shape \(1, 2, 5\), got \(2, 5\)", lstm(X, (H_ONLY, H_ONLY[0]))),
    "lengths": (TypeError, "lengths: expected integers", lstm(X, lengths=np.ones(2))),
    "lengths of": (ValueError, r"lengths: expected shape \(2,\)", lstm(X, lengths=np.ones(3, int))),
    "resets": (ValueError, r"resets: expected shape \(4, 2\)", lstm(X, resets=np.ones(2))),
    "nonlinearity": (ValueError, "nonlinearity: expected", lambda: ours.rnn(changed(), X, nonlinearity="elu")),  # type: ignore[arg-type]
    "reverse": (ValueError, "reverse: expected False", lambda: ours.lstm(two_directions(), X, reverse=True)),
}


def without(name: str) -> Any:
    return {other: a for other, a in changed().items() if other != name}


def two_directions() -> Any:
    return changed() | {f"{name}_reverse": a for name, a in changed().items()}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit_are_named(case: str) -> None:
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", [(0, 3, 4, 5), (3, 0, 4, 5)])
def test_no_steps_and_no_sequences_leave_the_state(size: tuple[int, ...]) -> None:
    problem = Problem("lstm", *size)
    y, state = problem.run(*problem.arguments)
    assert y.shape == (size[0], size[1], 5)
    agree(state, problem.state)
    gradients = jax.grad(lambda *a: problem.loss(problem.run(*a)), argnums=(0, 1, 2))(*problem.arguments)
    agree(gradients, (jax.tree.map(jnp.zeros_like, problem.parameters), jnp.zeros_like(problem.x), problem.dstate))


def test_nan_stays_in_its_sequence() -> None:
    problem = Problem("lstm", 5, 3, 4, 6)
    y, _ = problem.run(problem.parameters, problem.x.at[2, 1].set(jnp.nan), problem.state)
    assert jnp.isnan(y[2:, 1]).all()
    assert not jnp.isnan(y[:, ::2]).any()
    assert not jnp.isnan(y[:2]).any()


def test_other_devices_are_refused() -> None:
    export = pytest.importorskip("jax.export")
    problem = Problem("gru", 4, 2, 3, 5)
    with pytest.raises(NotImplementedError, match=r"rnnfast.jax: expected arrays on the CPU, .* got cuda"):
        export.export(jax.jit(problem.run), platforms=["cuda"])(*problem.arguments)


# What XLA calls


def call_directly(name: str, shapes: Any, *arrays: Any, **attributes: Any) -> Any:
    options = {"cell": "gru", "biased": False, "masked": False, "restarts": False, "reverse": False, **attributes}
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.block_until_ready(jax.ffi.ffi_call(name, shapes)(*arrays, **options))


GRU = [np.ones((4, 2, 3)), np.ones((15, 3)), np.ones((15, 5)), np.ones((2, 5))]
RESULTS = [((4, 2, 5), "float64"), ((2, 5), "float64")]
BROKEN: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "no x": ("x: expected an input, got none", RESULTS, [], {"kept": False}),
    "axes of x": (r"x: expected shape \[T,B,I\]", RESULTS, [GRU[0][0], *GRU[1:]], {"kept": False}),
    "integers": ("x: expected float32 or float64", RESULTS, [GRU[0].astype(int), *GRU[1:]], {"kept": False}),
    "w_ih": (r"w_ih: expected shape \[3\*H,3\]", RESULTS, [GRU[0], GRU[1][1:], *GRU[2:]], {"kept": False}),
    "w_hh": ("w_hh: expected another shape", RESULTS, [*GRU[:2], GRU[2].T, GRU[3]], {"kept": False}),
    "too many": ("expected 4 inputs, got 5", RESULTS, [*GRU, GRU[0]], {"kept": False}),
    "y": ("y: expected another shape", [((4, 5, 2), "float64"), RESULTS[1]], GRU, {"kept": False}),
    "tape": ("tape: expected at least [0-9]+ bytes, got 7", [*RESULTS, ((7,), "uint8")], GRU, {"kept": True}),
    "kept": ("kept: expected an attribute, got none", RESULTS, GRU, {}),
    "flag": ("kept: expected a bool", RESULTS, GRU, {"kept": np.float32(0.5)}),
    "cell": ("cell: expected the name of a cell, got 'lsd'", RESULTS, GRU, {"kept": False, "cell": "lsd"}),
    "vectors": ("cell: expected one without parameters", RESULTS, GRU, {"kept": False, "cell": "lstm_peephole"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_frames_that_do_not_fit_become_errors(case: str) -> None:
    message, results, arrays, attributes = BROKEN[case]
    with pytest.raises(Exception, match=rf"rnnfast: {message}"):
        call_directly("rnnfast_forward", results, *arrays, **attributes)


class Extension(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p), ("data", ctypes.c_void_p))


class Metadata(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("version_size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("traits", ctypes.c_uint32),
        ("behind", ctypes.c_uint32),
    )


@pytest.mark.parametrize("name", ["rnnfast_forward", "rnnfast_backward"])
def test_handlers_tell_their_version(name: str) -> None:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(pointer(_core.xla_handlers[name], None))
    metadata = Metadata(traits=7, behind=9)
    asks = Extension(ctypes.sizeof(Extension), 1, None, ctypes.addressof(metadata))
    other = Extension(ctypes.sizeof(Extension), 77, ctypes.addressof(asks), None)
    frame = (ctypes.c_size_t * 40)(320, ctypes.addressof(other))
    assert handler(ctypes.addressof(frame)) is None
    assert (metadata.major, metadata.minor, metadata.traits, metadata.behind) == (0, 1, 0, 9)


# Processes and threads


def test_threads_run_programs_at_once() -> None:
    problem = Problem("lstm", 20, 8, 16, 40)
    f = jax.jit(jax.grad(lambda *a: problem.loss(problem.run(*a)), argnums=(0, 1, 2)))
    expected = f(*problem.arguments)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                jax.tree.map(np.testing.assert_array_equal, f(*problem.arguments), expected)
        except BaseException as error:  # noqa: BLE001  # told below
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_the_number_of_threads_changes_no_bit() -> None:
    problem = Problem("gru", 10, 16, 16, 70)
    f = jax.jit(jax.grad(lambda *a: problem.loss(problem.run(*a)), argnums=(0, 1, 2)))
    before = rnnfast.get_num_threads()
    results = []
    for n in (1, 3):
        rnnfast.set_num_threads(n)
        results.append(f(*problem.arguments))
    rnnfast.set_num_threads(before)
    jax.tree.map(np.testing.assert_array_equal, *results)


FORKS = """
import os
import jax, jax.numpy as jnp, numpy as np
import rnnfast, rnnfast.jax

layer = rnnfast.LSTM(16, 64)
x = np.ones((30, 16, 16), np.float32)
expected, _ = layer(x)
y, _ = jax.jit(rnnfast.jax.lstm)({name: jnp.asarray(a) for name, a in layer.parameters.items()}, x)
assert (np.asarray(y) == expected).all()
child = os.fork()
if not child:
    os._exit(not (layer(x)[0] == expected).all())
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_the_kernels() -> None:
    assert run_script(FORKS) == "done\n"


def test_rnnfast_itself_leaves_jax_alone() -> None:
    assert run_script("import sys, rnnfast; print('jax' in sys.modules)") == "False\n"


def test_a_missing_jax_is_explained() -> None:
    script = "import sys; sys.modules['jax'] = None\ntry: import rnnfast.jax\nexcept ModuleNotFoundError as e: print(e)"
    assert 'pip install "rnnfast[jax]"' in run_script(script)


# Flax


def flax_cells() -> dict[str, Any]:
    linen = pytest.importorskip("flax.linen")
    return {name: getattr(linen, name) for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")}


FUNCTIONS = {"LSTMCell": "lstm", "OptimizedLSTMCell": "lstm", "GRUCell": "gru", "SimpleCell": "rnn_tanh"}


def with_biases(params: Any) -> Any:
    """Return parameters in which those that begin as zeros are random, too."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.standard_normal(a.shape) / 2) for a in leaves])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_linen_cells_compute_the_same(name: str) -> None:
    linen = pytest.importorskip("flax.linen")
    x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3, 4)))  # of linen [B,T,I]
    layer = linen.RNN(getattr(linen, name)(5, param_dtype="float64"))
    params = with_biases(layer.init(jax.random.key(0), x))
    [cell] = params["params"].values()
    function, _ = CELLS[FUNCTIONS[name]]

    def run(cell: Any) -> Any:
        return function(ours.from_flax(cell), x.swapaxes(0, 1))[0].swapaxes(0, 1)

    agree(run(cell), layer.apply(params, x))
    expected = jax.grad(lambda params: (layer.apply(params, x) ** 2).sum())(params)
    agree(jax.grad(lambda cell: (run(cell) ** 2).sum())(cell), *expected["params"].values())
    back = ours.to_flax(ours.from_flax(cell), jax.tree.map(jnp.zeros_like, cell))
    agree(back, cell)
    agree(ours.to_flax(ours.from_flax({"params": cell}), {"params": cell}), {"params": cell})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nnx_cells_compute_the_same(name: str) -> None:
    nnx = pytest.importorskip("flax.nnx")
    if not hasattr(nnx, "to_pure_dict"):
        pytest.skip("an older Flax has no such function")
    made = getattr(nnx, name)(
        4, 5, param_dtype="float64", **({"dtype": "float64"} if name == "SimpleCell" else {}), rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(made)
    params = with_biases(nnx.to_pure_dict(nnx.filter_state(state, nnx.Param)))
    nnx.replace_by_pure_dict(state, params)
    cell = nnx.merge(graph, state)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3, 4)))
    carry = jax.tree.map(jnp.zeros_like, cell.initialize_carry((3, 4), nnx.Rngs(0)))
    expected = []
    for row in x:
        carry, y = cell(carry, row)
        expected.append(y)
    function, _ = CELLS[FUNCTIONS[name]]
    agree(function(ours.from_flax(params), x)[0], jnp.stack(expected))
    agree(ours.to_flax(ours.from_flax(params), params), params)


def test_biases_without_a_place_in_flax_are_refused() -> None:
    dense = {"dense_i": {"kernel": jnp.ones((4, 15)), "bias": jnp.ones(15)}, "dense_h": {"kernel": jnp.ones((5, 15))}}
    parameters = ours.from_flax(dense)
    with pytest.raises(ValueError, match="bias_hh_l0: expected zeros in the new gate"):
        ours.to_flax(parameters | {"bias_hh_l0": jnp.ones(15)}, dense)
    both_gates = ours.to_flax(parameters | {"bias_hh_l0": jnp.ones(15).at[10:].set(0)}, dense)
    np.testing.assert_array_equal(both_gates["dense_i"]["bias"], [2] * 10 + [1] * 5)
    with pytest.raises(ValueError, match="parameters: expected shapes"):
        ours.to_flax(parameters | {"weight_ih_l0": jnp.ones((15, 5))}, dense)
    with pytest.raises(ValueError, match="params: expected those of an LSTMCell"):
        ours.from_flax({"kernel": jnp.ones((4, 5))})
    with pytest.raises(TypeError, match="params: expected a mapping"):
        ours.from_flax([1])  # type: ignore[arg-type]


# The seam for other adapters


def test_a_mask_of_any_form_holds_the_state() -> None:
    problem = Problem("lstm", 6, 3, 4, 9)
    mask = jnp.asarray(np.random.default_rng(8).random((6, 3)) < 0.6)
    weights = [problem.parameters[name] for name in NAMES]
    y, state = _kernels.run("lstm", problem.x, weights, [s[0] for s in problem.state], mask=mask)
    expected, last = scanned("lstm", problem.parameters, problem.x, problem.state, mask=mask)
    agree(jnp.where(mask[..., None], y, 0), expected)
    agree(tuple(s[None] for s in state), last)
