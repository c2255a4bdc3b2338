"""Echo state networks: states and readouts against plain NumPy, the tasks of the literature, and what is refused."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import DTYPES, Array, assert_same_bits
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core
from rnnfast.reservoir import ESN, State
from rnnfast.reservoir._esn import ROWS

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"units": 30},
    "relu": {"units": 30, "activation": "relu", "spectral_radius": 0.5},
    "series": {"units": (30, 20, 10), "spectral_radius": (0.9, 0.5, 1.1), "bias_scaling": 0.2},
    "parallel": {"units": (30, 20), "density": (0.1, 0.5), "arrangement": "parallel"},
}
LEAKS = (1.0, 0.3)
I, O = 3, 2

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_form = pytest.mark.parametrize("form", FORMS)
by_leak = pytest.mark.parametrize("leak", LEAKS)


def make(form: str = "plain", dtype: str = "float64", **options: Any) -> ESN:
    return ESN(I, **{"dtype": dtype, "rng": 1, **FORMS[form], **options})


def normal(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# The oracle


class Oracle:
    """One sequence, step by step, in float64."""

    def __init__(self, esn: ESN) -> None:
        self.esn = esn
        self.h = [np.zeros(rnn.hidden_size) for rnn in esn.reservoirs]
        self.leaks = esn.leak if isinstance(esn.leak, tuple) else (esn.leak,) * len(self.h)

    def step(self, u: Array) -> Array:
        f: Any = np.tanh if self.esn.activation == "tanh" else partial(np.maximum, 0)
        inputs = u
        for k, (rnn, leak) in enumerate(zip(self.esn.reservoirs, self.leaks, strict=True)):
            w, w_in, b = (a.astype(np.float64) for a in (rnn.weight_hh_l0, rnn.weight_ih_l0, rnn.bias_ih_l0))
            self.h[k] = (1 - leak) * self.h[k] + leak * f(w @ self.h[k] + w_in @ inputs + b)
            if self.esn.arrangement == "series":
                inputs = self.h[k]
        return np.concatenate(self.h)

    def states(self, x: Array) -> Array:
        return np.array([self.step(u) for u in x])


def readout_of(esn: ESN) -> tuple[Array, Array]:
    """Return the weight and the bias."""
    readout = esn.readout
    assert readout is not None
    assert readout.bias is not None
    return readout.weight, readout.bias


def ridge_oracle(states: Array, y: Array, ridge: float) -> tuple[Array, Array]:
    """Return weight and bias, by least squares of more rows."""
    F = states.shape[1]
    x, means = states - states.mean(axis=0), y.mean(axis=0)
    rows = np.concatenate([x, math.sqrt(ridge) * np.eye(F)])
    targets = np.concatenate([y - means, np.zeros((F, y.shape[1]))])
    weight = np.linalg.lstsq(rows, targets)[0].T
    return weight, means - weight @ states.mean(axis=0)


# States


@by_dtype
@by_form
@by_leak
def test_states_are_those_of_the_definition(form: str, dtype: str, leak: float) -> None:
    esn, x = make(form, dtype, leak=leak), normal((20, 4, I), dtype, 2)
    states, state = esn.states(x)
    assert states.dtype == dtype
    for b in range(4):
        assert relative_error(states[:, b], Oracle(esn).states(x[:, b])) < 3 * TOLERANCE[states.dtype]
    assert np.array_equal(np.concatenate(state.h, axis=-1), states[-1])


@by_dtype
@by_form
@by_leak
def test_fed_back_outputs_follow_the_inputs(form: str, dtype: str, leak: float) -> None:
    esn = make(form, dtype, feedback_size=O, leak=leak)
    x, y = normal((20, I), dtype, 2), normal((20, O), dtype, 3)
    expected = Oracle(esn).states(np.concatenate([x, np.concatenate([np.zeros((1, O)), y[:-1]])], axis=1))
    states, _ = esn.states(x, y=y)
    assert relative_error(states, expected) < 3 * TOLERANCE[states.dtype]
    _, state = esn.states(x[:7], y=y[:7])
    assert np.array_equal(esn.states(x[7:], state, y=y[7:])[0], states[7:])


@by_form
@by_leak
def test_a_spectral_radius_is_that_of_the_weights(form: str, leak: float) -> None:
    esn = make(form, leak=leak)
    radii = esn.spectral_radius if isinstance(esn.spectral_radius, tuple) else (esn.spectral_radius,) * 3
    for rnn, radius in zip(esn.reservoirs, radii, strict=False):
        assert np.isclose(np.abs(np.linalg.eigvals(rnn.weight_hh_l0)).max(), radius, rtol=1e-9)


def test_weights_have_the_density_and_the_scaling() -> None:
    esn = ESN(5, 400, density=0.2, input_scaling=0.5, bias_scaling=0.25, feedback_size=1, rng=0)
    [rnn] = esn.reservoirs
    assert rnn.weight_ih_l0.shape == (400, 6)
    for w in (rnn.weight_hh_l0, rnn.weight_ih_l0):
        assert abs(np.mean(w != 0) - 0.2) < 0.03
    assert set(np.unique(rnn.weight_ih_l0)) == {-0.5, 0, 0.5}
    assert set(np.unique(rnn.bias_ih_l0)) == {-0.25, 0.25}
    assert not ESN(1, 9, spectral_radius=0, density=0).reservoirs[0].weight_hh_l0.any()
    same = ESN(5, 400, density=0.2, input_scaling=0.5, bias_scaling=0.25, feedback_size=1, rng=np.random.default_rng(0))
    assert_same_bits(same.state_dict(), esn.state_dict())


# One sequence or many


@by_dtype
@by_form
@by_leak
def test_many_sequences_give_what_each_gives_alone(form: str, dtype: str, leak: float) -> None:
    esn, x, y = make(form, dtype, leak=leak), normal((50, 6, I), dtype, 2), normal((50, 6, I), dtype, 3)
    lengths = [50, 3, 0, 49, 50, 17]
    esn.fit(x, y, lengths=lengths, warmup=5, ridge=0.1)
    states, state = esn.states(x, lengths=lengths)
    outputs, after = esn.predict(x, lengths=lengths)
    more, _ = esn.generate(9, after)
    with rnnfast.threads(3):
        assert np.array_equal(esn.predict(x, lengths=lengths)[0], outputs)
    for b, n in enumerate(lengths):
        assert not states[n:, b].any()
        assert not outputs[n:, b].any()
        if n:
            alone, end = esn.states(x[:n, b])
            assert np.array_equal(states[:n, b], alone)
            assert all(np.array_equal(h[b], h_alone) for h, h_alone in zip(state.h, end.h, strict=True))
            alone, end = esn.predict(x[:n, b])
            assert np.array_equal(outputs[:n, b], alone)
            assert np.array_equal(more[:, b], esn.generate(9, end)[0])


@by_dtype
@by_form
@by_leak
def test_calls_go_on_where_others_ended(form: str, dtype: str, leak: float) -> None:
    esn, x = make(form, dtype, leak=leak), normal((40, 3, I), dtype, 2)
    esn.fit(x, normal((40, 3, I), dtype, 3), ridge=0.1)
    for call in (esn.states, esn.predict):
        whole, end = call(x)
        first, state = call(x[:11])
        second, state = call(x[11:], state)
        assert np.array_equal(np.concatenate([first, second]), whole)
        assert all(np.array_equal(a, b) for a, b in zip(state.h, end.h, strict=True))
    first, state = esn.generate(4, end)
    second, _ = esn.generate(5, state)
    assert np.array_equal(np.concatenate([first, second]), esn.generate(9, end)[0])
    assert np.array_equal(esn.generate(9, esn.states(x)[1])[0], esn.generate(9, end)[0])
    nothing, same = esn.generate(0, end)
    assert nothing.shape == (0, 3, I)
    assert np.array_equal(same.h[0], end.h[0])


# Few connections


def pruned(units: int, density: float, dtype: str, **options: Any) -> ESN:
    """Return a network of which every density is possible, as its weights need no circle."""
    esn = ESN(I, units, density=1, spectral_radius=0.5, bias_scaling=0.2, dtype=dtype, rng=1, **options)
    [rnn] = esn.reservoirs
    for w in (rnn.weight_ih_l0, rnn.weight_hh_l0):
        w[np.random.default_rng(units).random(w.shape) >= density] = 0
    return esn


def packed(esn: ESN, before: _core.SparseReservoir | None = None) -> _core.SparseReservoir | None:
    [rnn] = esn.reservoirs
    weights = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0)
    return _core.sparse_reservoir(*weights, rnn.fixed.get("leak"), rnn.nonlinearity == "relu", before)


@by_dtype
@pytest.mark.parametrize(
    ("units", "density"), [(257, 0.1), *((units, d) for units in (1, 3, 17, 100) for d in (0, 0.01, 0.1, 1))]
)
def test_few_connections_give_what_the_full_matrix_gives(units: int, density: float, dtype: str) -> None:
    for options in ({}, {"activation": "relu", "leak": 0.3}):
        esn, x = pruned(units, density, dtype, **options), normal((30, 37, I), dtype, 2)
        [rnn] = esn.reservoirs
        if density < 0.1 or units >= 100:
            assert (packed(esn) is None) == (density == 1)
        states, state = esn.states(x)
        tolerance = 3 * TOLERANCE[states.dtype]
        assert relative_error(states, rnn(x)[0]) < tolerance
        for b in (0, 20, 36):
            assert relative_error(states[:, b], Oracle(esn).states(x[:, b])) < tolerance
        with rnnfast.threads(3):
            assert np.array_equal(esn.states(x)[0], states)
        for B in (1, 2, 33):  # vectors of units, or of sequences
            some, middle = esn.states(x[:7, :B])
            assert some.tobytes() == states[:7, :B].tobytes()
            assert np.array_equal(esn.states(x[7:, :B], middle)[0], states[7:, :B])
        assert np.array_equal(esn.states(x[:, 3])[0], states[:, 3])
        assert np.array_equal(state.h[0], states[-1])


@by_dtype
def test_nan_passes_along_connections_only(dtype: str) -> None:
    esn, x = pruned(100, 0.05, dtype, leak=0.5), normal((3, 9, I), dtype, 2)
    [rnn] = esn.reservoirs
    x[0, 4, 1] = np.nan
    x[0, 5, 1] = np.inf
    states, _ = esn.states(x)
    reached = rnn.weight_ih_l0[:, 1] != 0
    for t in range(3):
        assert np.array_equal(np.isnan(states[t, 4]), reached)
        reached = reached | (rnn.weight_hh_l0[:, reached] != 0).any(axis=1)
    assert not reached.all()
    assert np.array_equal(np.abs(states[0, 5]) >= 0.49, rnn.weight_ih_l0[:, 1] != 0)
    assert np.isfinite(np.delete(states, 4, axis=1)).all()
    assert np.array_equal(esn.states(x[:, 4])[0], states[:, 4], equal_nan=True)
    rnn.weight_hh_l0[7, 8] = np.nan  # which is a connection
    assert np.isnan(esn.states(x[:, 0])[0][:, 7]).all()


@by_dtype
def test_lists_are_used_again_until_a_weight_changes(dtype: str) -> None:
    esn, x = pruned(100, 0.05, dtype, leak=0.5), normal((9, 3, I), dtype, 2)
    [rnn] = esn.reservoirs
    made = packed(esn)
    assert made is not None
    assert packed(esn, made) is made
    assert packed(pruned(100, 0.05, dtype, leak=0.4), made) is not made
    none, some = np.argwhere(rnn.weight_hh_l0 == 0)[0], np.argwhere(rnn.weight_hh_l0)[0]
    for name, place, value in (
        ("weight_hh_l0", tuple(some), 0.25),
        ("weight_hh_l0", tuple(none), 0.25),
        ("weight_hh_l0", tuple(some), 0),
        ("weight_ih_l0", (3, 1), 0.75),
        ("bias_hh_l0", 5, 1),
    ):
        before, _ = esn.states(x)
        getattr(rnn, name)[place] = value
        states, _ = esn.states(x)
        assert not np.array_equal(states, before)
        assert np.array_equal(states, copy.deepcopy(esn).states(x)[0])
        assert packed(esn, made) is not made
        made = packed(esn)


def test_each_density_and_size_has_its_way() -> None:
    def way(H: int, I: int, connections: int, dtype: str = "float64") -> object:
        w_ih, w_hh, b = np.zeros((H, I), dtype), np.zeros((H, H), dtype), np.zeros(H, dtype)
        w_hh.flat[:connections] = 1
        return _core.sparse_reservoir(w_ih, w_hh, b, b, None, False)

    # One of 8, of 5; beyond 2 MiB one of 5, of 3
    for H, dtype, most in (
        (20, "float32", 60),
        (20, "float64", 96),
        (800, "float32", 128_640),
        (600, "float64", 120_800),
    ):
        assert way(H, 4, most, dtype) is not None
        assert way(H, 4, most + 1, dtype) is None
    assert way(3, 57_000, 0) is not None
    assert way(3, 66_000, 0) is None  # more operands than two bytes tell apart


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"w_ih": np.zeros(3)}, ValueError, r"w_ih: expected shape \(H, I\), got \(3,\)"),
        ({"w_hh": np.zeros((9, 8))}, ValueError, r"w_hh: expected shape \(9, 9\), got \(9, 8\)"),
        ({"w_hh": np.zeros((9, 9), "f4")}, TypeError, "w_hh: expected dtype float64, got float32"),
        ({"b_ih": np.zeros(8)}, ValueError, r"b_ih: expected shape \(9,\), got \(8,\)"),
        ({"b_hh": None}, TypeError, "b_hh: expected an array, got None"),
        ({"leak": 0.5}, TypeError, "leak: expected an array, got float"),
        ({"x": np.zeros((2, 3))}, ValueError, r"x: expected shape \(T, B, 3\), got \(2, 3\)"),
        ({"x": np.zeros((2, 3, 3), int)}, TypeError, "x: expected dtype float64, got int64"),
        ({"x": np.broadcast_to(0.0, (2**29, 2**28, 3))}, ValueError, "x: expected a size that fits the address space"),
        ({"h": np.zeros((1, 9))}, ValueError, r"h: expected shape \(2, 9\), got \(1, 9\)"),
    ],
)
def test_the_border_refuses_other_shapes_and_dtypes(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    b = np.zeros(9)
    fine = {"w_ih": np.zeros((9, 3)), "w_hh": np.zeros((9, 9)), "b_ih": b, "b_hh": b, "leak": None, "is_relu": False}
    calls: Any = [{name: arguments.get(name, a) for name, a in fine.items()}]
    calls.append({name: arguments.get(name, a) for name, a in (("x", np.zeros((4, 2, 3))), ("h", np.zeros((2, 9))))})
    with pytest.raises(error, match=message):
        _core.sparse_reservoir(**calls[0]).states(**calls[1])  # type: ignore[union-attr]


def test_arrays_of_any_strides_and_without_steps() -> None:
    esn = pruned(17, 0.05, "float64")
    reservoir, x, h = packed(esn), normal((6, 10, 2 * I), "float64", 1), normal((2 * 17, 10), "float64", 2)
    assert reservoir is not None
    turned = reservoir.states(x[::-2, :, ::2], h[::2].T)
    assert np.array_equal(reservoir.states(x[::-2, :, ::2].copy(), h[::2].T.copy()), turned)
    for T, B in ((0, 2), (2, 0), (0, 0)):
        assert reservoir.states(x[:T, :B, :I], h[:17, :B].T).shape == (T, B, 17)


# Readouts


@by_form
@by_leak
@pytest.mark.parametrize("ridge", [1e-8, 0.1, 100])
def test_the_readout_is_that_of_ridge_regression(form: str, ridge: float, leak: float) -> None:
    esn, T, B = make(form, leak=leak), 2 * ROWS // 3 + 5, 2
    x, y = normal((T, B, I), "float64", 2), normal((T, B, O), "float64", 3)
    lengths = [T, T - 70]
    esn.fit(x, y, warmup=10, ridge=ridge, lengths=lengths)
    rows = [(esn.states(x[:n, b])[0][10:], y[10:n, b]) for b, n in enumerate(lengths)]
    weight, bias = ridge_oracle(np.concatenate([r for r, _ in rows]), np.concatenate([t for _, t in rows]), ridge)
    found = readout_of(esn)
    assert relative_error(found[0], weight) < 1e-7
    assert relative_error(found[1], bias) < 1e-7
    outputs, _ = esn.predict(x)
    assert relative_error(outputs, esn.states(x)[0] @ weight.T + bias) < 1e-7


def test_a_float32_readout_is_fitted_in_float64() -> None:
    esn = make(dtype="float32")
    x, y = normal((500, I), "float32", 2), normal((500, O), "float32", 3)
    esn.fit(x, y, ridge=1e-7)
    weight, bias = ridge_oracle(esn.states(x)[0].astype(np.float64), y.astype(np.float64), 1e-7)
    found = readout_of(esn)
    assert relative_error(found[0], weight) < 1e-6
    assert relative_error(found[1], bias) < 1e-6


@pytest.mark.parametrize("forgetting", [1.0, 0.999, 0.9])
def test_a_partial_fit_is_recursive_least_squares(forgetting: float) -> None:
    esn, x, y = make(), normal((300, I), "float64", 2), normal((300, O), "float64", 3)
    w, P = np.zeros((O, 31)), np.eye(31) / 0.5
    for row, target in zip(esn.states(x)[0][20:], y[20:], strict=True):
        s = np.append(row, 1)
        k = P @ s / (forgetting + s @ P @ s)
        w += np.outer(target - w @ s, k)
        P = (P - np.outer(k, s @ P)) / forgetting
    state = esn.partial_fit(x[:150], y[:150], warmup=20, ridge=0.5, forgetting=forgetting)
    esn.partial_fit(x[150:], y[150:], forgetting=forgetting, state=state)
    assert relative_error(np.column_stack(readout_of(esn)), w) < 1e-7


def test_partial_fits_without_forgetting_are_one_ridge_regression() -> None:
    esn, x, y = make(), normal((200, 3, I), "float64", 2), normal((200, 3, O), "float64", 3)
    esn.partial_fit(x, y, ridge=0.5)
    rows = np.concatenate([esn.states(x)[0].reshape(-1, 30), np.ones((600, 1))], axis=1)
    expected = np.linalg.solve(rows.T @ rows + 0.5 * np.eye(31), rows.T @ y.reshape(-1, O)).T
    assert relative_error(np.column_stack(readout_of(esn)), expected) < 1e-9


def test_a_partial_fit_follows_a_target_that_changes() -> None:
    esn, x = make(), normal((1000, I), "float64", 2)
    esn.fit(x, x[:, :1])
    esn.partial_fit(x, -x[:, :1], ridge=1, forgetting=0.98)
    y, _ = esn.predict(x)
    assert np.abs(y[500:] + x[500:, :1]).mean() < 0.3 * np.abs(x).mean()


@by_dtype
@by_form
@by_leak
def test_generated_outputs_are_the_next_inputs(form: str, dtype: str, leak: float) -> None:
    esn, x = make(form, dtype, leak=leak), normal((60, I), dtype, 2)
    state = esn.fit(x[:-1], x[1:], ridge=1)
    oracle = Oracle(esn)
    oracle.states(x[:-1])
    (weight, bias), y, expected = readout_of(esn), x[-1], []
    for _ in range(10):
        y = weight.astype(np.float64) @ oracle.step(y) + bias
        expected.append(y)
    found, _ = esn.generate(10, state)
    assert relative_error(found, np.array(expected)) < 10 * TOLERANCE[found.dtype]


@by_dtype
@by_form
@by_leak
def test_a_network_with_feedback_hears_its_outputs(form: str, dtype: str, leak: float) -> None:
    esn = make(form, dtype, feedback_size=O, leak=leak)
    x, y = normal((60, 2, I), dtype, 2), normal((60, 2, O), dtype, 3)
    state = esn.fit(x[:50], y[:50], ridge=1)
    weight, bias = readout_of(esn)
    found, _ = esn.predict(x[50:], state)
    assert np.array_equal(esn.generate(10, state, x[50:])[0], found)
    for b in range(2):
        oracle, last, expected = Oracle(esn), np.zeros(O), []
        for t in range(60):
            states = oracle.step(np.concatenate([x[t, b], last]))
            last = y[t, b] if t < 50 else weight.astype(np.float64) @ states + bias
            expected.append(last)
        assert relative_error(found[:, b], np.array(expected[50:])) < 10 * TOLERANCE[found.dtype]


# The tasks of the literature


def rk4(f: Callable[[Array], Array], v: Array, dt: float) -> Array:
    a = f(v)
    b = f(v + dt / 2 * a)
    c = f(v + dt / 2 * b)
    after: Array = v + dt / 6 * (a + 2 * b + 2 * c + f(v + dt * c))
    return after


def mackey_glass(n: int, tau: int = 17, steps: int = 10) -> Array:
    """Return the series dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x at t = 0, 1, .., as tanh(x - 1)."""
    delay, dt = tau * steps, 1 / steps
    x = np.full(delay + (n + 500) * steps + 1, 1.2)

    def slope(x: float, late: float) -> float:
        return 0.2 * late / (1 + late**10) - 0.1 * x

    for i in range(delay, len(x) - 1):
        first, last = x[i - delay], x[i - delay + 1]
        a = slope(x[i], first)
        b = slope(x[i] + dt / 2 * a, (first + last) / 2)
        c = slope(x[i] + dt / 2 * b, (first + last) / 2)
        x[i + 1] = x[i] + dt / 6 * (a + 2 * b + 2 * c + slope(x[i] + dt * c, last))
    series: Array = np.tanh(x[delay::steps][500:] - 1)[:n, np.newaxis]
    return series


def narma10(n: int) -> tuple[Array, Array]:
    u, y = np.random.default_rng(1).uniform(0, 0.5, n), np.zeros(n)
    for t in range(9, n - 1):
        y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
    return u[:-1, np.newaxis], y[1:, np.newaxis]


def lorenz(n: int, dt: float = 0.02) -> Array:
    def slope(v: Array) -> Array:
        return np.array([10 * (v[1] - v[0]), v[0] * (28 - v[2]) - v[1], v[0] * v[1] - 8 / 3 * v[2]])

    v, path = np.ones(3), []
    for _ in range(n + 500):
        v = rk4(slope, rk4(slope, v, dt / 2), dt / 2)
        path.append(v)
    series = np.array(path[500:])
    scaled: Array = (series - series.mean(axis=0)) / series.std(axis=0)
    return scaled


def nrmse(y: Array, target: Array) -> float:
    return float(np.sqrt(np.square(y - target).mean() / target.var()))


@pytest.mark.parametrize("seed", [0, 1])
def test_mackey_glass_is_told_and_goes_on_by_itself(seed: int) -> None:
    x = mackey_glass(3601)
    esn = ESN(1, 500, spectral_radius=0.95, bias_scaling=0.2, dtype="float64", rng=seed)
    state = esn.fit(x[:2500], x[1:2501], warmup=200, ridge=1e-10)
    y, _ = esn.predict(x[2500:-1], state)
    assert nrmse(y, x[2501:]) < 1e-3  # one step
    y, _ = esn.generate(84, state)
    assert abs(y[-1, 0] - x[2584, 0]) < 0.02 * x.std()  # 84 steps on


@pytest.mark.parametrize("seed", [0, 1])
def test_narma10_is_followed(seed: int) -> None:
    x, y = narma10(4000)
    esn = ESN(1, 200, input_scaling=0.2, bias_scaling=0.2, dtype="float64", rng=seed)
    state = esn.fit(x[:3000], y[:3000], warmup=200, ridge=1e-9)
    assert nrmse(esn.predict(x[3000:], state)[0], y[3000:]) < 0.3  # a linear delay line reaches 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_lorenz_runs_free(seed: int) -> None:
    x = lorenz(5500)
    esn = ESN(3, 400, spectral_radius=0.6, input_scaling=0.3, bias_scaling=0.3, density=0.3, dtype="float64", rng=seed)
    state = esn.fit(x[:5000], x[1:5001], warmup=100, ridge=1e-7)
    y, state = esn.generate(450, state)
    distance = np.linalg.norm(y - x[5001:5451], axis=1) / math.sqrt(3)
    lyapunov_times = 0.02 * 0.906 * np.argmax(distance > 0.4)
    assert lyapunov_times > 3
    y, _ = esn.generate(5000, state)  # the attractor, long after
    assert np.abs(y.std(axis=0) - 1).max() < 0.15
    assert np.abs(y).max() < 4


def test_the_memory_capacity_is_that_of_the_literature() -> None:
    H, delays = 50, 100
    u = np.random.default_rng(1).uniform(-0.8, 0.8, (6000, 1))
    y = np.stack([np.roll(u[:, 0], k) for k in range(1, delays + 1)], axis=1)
    capacities = []
    for scaling in (0.01, 1.0):
        esn = ESN(1, H, spectral_radius=0.95, input_scaling=scaling, density=0.3, dtype="float64", rng=0)
        state = esn.fit(u[:4000], y[:4000], warmup=200, ridge=1e-12 * scaling**2)
        out, _ = esn.predict(u[4000:], state)
        capacities.append(sum(np.corrcoef(out[:, k], y[4000:, k])[0, 1] ** 2 for k in range(delays)))
    assert 0.4 * H < capacities[0] <= H  # nearly linear units
    assert capacities[1] < capacities[0] - 5  # saturated ones forget sooner


# Manners


CALLS = (
    "ESN(3, 8, density=0.5)",
    "ESN(3, (8, 4), spectral_radius=(0.5, 0.0), density=0.5, feedback_size=2, arrangement='parallel', dtype='float64')",
)
by_call = pytest.mark.parametrize("call", CALLS)


def fitted(call: str) -> ESN:
    esn: ESN = eval(call, {"ESN": ESN})
    esn.partial_fit(normal((20, I), str(esn.dtype), 1), normal((20, O), str(esn.dtype), 2))
    return esn


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda esn: pickle.loads(pickle.dumps(esn))])
@by_call
def test_a_copy_goes_on_alike_and_shares_nothing(call: str, copied: Callable[[Any], Any]) -> None:
    esn = fitted(call)
    twin = copied(esn)
    assert repr(twin) == call
    for network in (esn, twin):
        network.partial_fit(normal((20, I), str(esn.dtype), 3), normal((20, O), str(esn.dtype), 4))
    assert_same_bits(twin.state_dict(), esn.state_dict())
    assert {*twin.parameters} > {"readout.weight", "reservoirs.0.weight_hh_l0"}
    for name, p in esn.parameters.items():
        assert not np.may_share_memory(twin.parameters[name], p)
    twin.parameters["reservoirs.0.bias_ih_l0"] += 1
    x, y = np.zeros((2, I), esn.dtype), np.zeros((2, O), esn.dtype) if esn.feedback_size else None
    assert not np.array_equal(twin.states(x, y=y)[0], esn.states(x, y=y)[0])


@pytest.mark.parametrize("is_fitted", [True, False])
@by_call
def test_a_saved_network_comes_back(call: str, is_fitted: bool, tmp_path: Path) -> None:
    esn = fitted(call) if is_fitted else eval(call, {"ESN": ESN})
    esn.save(tmp_path / "esn")
    loaded = rnnfast.load(tmp_path / "esn")
    assert repr(loaded) == call
    assert_same_bits(loaded.state_dict(), esn.state_dict())
    assert isinstance(loaded, ESN)
    assert (loaded.readout is not None) == is_fitted
    x, y = normal((5, I), str(esn.dtype), 1), normal((5, O), str(esn.dtype), 2) if esn.feedback_size else None
    assert np.array_equal(loaded.states(x, y=y)[0], esn.states(x, y=y)[0])


def test_a_fit_of_another_size_makes_another_readout() -> None:
    esn, x = make(), normal((50, I), "float64", 1)
    for outputs in (1, 4, 1):
        esn.fit(x, normal((50, outputs), "float64", 2))
        assert esn.predict(x)[0].shape == (50, outputs)
        assert esn.parameters["readout.weight"].shape == (outputs, 30)


# Bad input


class World:
    """Networks that a bad call could change."""

    def __init__(self) -> None:
        self.esn: Any = make()
        self.x, self.y = normal((20, I), "float64", 1), normal((20, O), "float64", 2)
        self.state = self.esn.partial_fit(self.x, self.y)
        self.new: Any = make(feedback_size=O)


E: Any = ESN
NAN = np.full((20, O), np.nan)
BAD: dict[str, tuple[Callable[[World], object], type[Exception], str]] = {
    "no inputs": (lambda _: E(0, 5), ValueError, "input_size: expected at least 1, got 0"),
    "no units": (lambda _: E(1, 0), ValueError, "units: expected at least 1, got 0"),
    "no reservoirs": (lambda _: E(1, ()), ValueError, "units: expected at least one number, got 0"),
    "units of text": (lambda _: E(1, "5"), TypeError, "units: expected an int, got str"),
    "too many units": (lambda _: E(1, 2**40), ValueError, "input_size, units: expected sizes that fit"),
    "a radius without connections": (
        lambda _: E(1, 5, density=0),
        ValueError,
        "spectral_radius: expected 0 for connections without a circle, got 0.9",
    ),
    "a negative radius": (lambda _: E(1, 5, spectral_radius=-1), ValueError, "spectral_radius: expected at least 0"),
    "an endless radius": (lambda _: E(1, 5, spectral_radius=np.inf), ValueError, "spectral_radius: expected finite"),
    "radii of another number": (
        lambda _: E(1, (5, 5), spectral_radius=(1, 1, 1)),
        ValueError,
        "spectral_radius: expected a number for each reservoir, 2, got 3",
    ),
    "a leak of 0": (lambda _: E(1, 5, leak=0), ValueError, "leak: expected more than 0 and at most 1, got 0"),
    "a leak of 2": (lambda _: E(1, 5, leak=2), ValueError, "leak: expected more than 0 and at most 1, got 2"),
    "a density of 2": (lambda _: E(1, 5, density=2), ValueError, "density: expected 0 to 1, got 2"),
    "NaN": (lambda _: E(1, 5, input_scaling=np.nan), ValueError, "input_scaling: expected at least 0, got nan"),
    "bias of text": (lambda _: E(1, 5, bias_scaling="1"), TypeError, "bias_scaling: expected a number, got str"),
    "feedback of -1": (lambda _: E(1, 5, feedback_size=-1), ValueError, "feedback_size: expected at least 0, got -1"),
    "activation": (lambda _: E(1, 5, activation="exp"), ValueError, "activation: expected 'tanh' or 'relu'"),
    "arrangement": (lambda _: E(1, 5, arrangement="ring"), ValueError, "arrangement: expected 'series' or 'parallel'"),
    "a bad seed": (lambda _: E(1, 5, rng=-1), ValueError, "rng: "),
    "x of a size": (lambda w: w.esn.states(w.x[:, :2]), ValueError, r"x: expected shape \(T, B, 3\) or \(T, 3\), got"),
    "x of a dtype": (lambda w: w.esn.states(w.x.astype("f4")), TypeError, "x: expected dtype float64, got float32"),
    "no steps": (lambda w: w.esn.states(w.x[:0]), ValueError, r"x: expected at least 1 step, got shape \(0, 3\)"),
    "y of a length": (lambda w: w.esn.fit(w.x, w.y[1:]), ValueError, r"y: expected shape \(20, O\), got \(19, 2\)"),
    "y of one axis": (lambda w: w.esn.fit(w.x, w.y[:, 0]), ValueError, r"y: expected shape \(20, O\), got \(20,\)"),
    "y of nothing": (lambda w: w.esn.fit(w.x, w.y[:, :0]), ValueError, r"y: expected shape \(20, O\), got \(20, 0\)"),
    "no y": (lambda w: w.esn.fit(w.x, None), TypeError, "y: expected an array, got None"),
    "y of NaN": (lambda w: w.esn.fit(w.x, NAN), ValueError, "y: expected finite numbers, got nan"),
    "y of NaN online": (lambda w: w.esn.partial_fit(w.x, NAN), ValueError, "y: expected finite numbers, got nan"),
    "x of NaN": (lambda w: w.esn.fit(w.x + np.nan, w.y), ValueError, "x: expected finite numbers, got nan"),
    "feedback of another size": (
        lambda w: w.new.fit(w.x, w.y[:, :1]),
        ValueError,
        r"y: expected shape \(20, 2\), got \(20, 1\)",
    ),
    "no feedback": (lambda w: w.new.states(w.x), TypeError, "y: expected an array, got None"),
    "unwanted feedback": (lambda w: w.esn.states(w.x, y=w.y), ValueError, "y: expected None for a network without"),
    "a long warmup": (
        lambda w: w.esn.fit(w.x, w.y, warmup=20),
        ValueError,
        "warmup: expected less than the steps of a sequence, got 20",
    ),
    "a negative warmup": (lambda w: w.esn.fit(w.x, w.y, warmup=-1), ValueError, "warmup: expected at least 0, got -1"),
    "a negative ridge": (lambda w: w.esn.fit(w.x, w.y, ridge=-1), ValueError, "ridge: expected at least 0, got -1"),
    "no ridge": (
        lambda w: w.esn.fit(0 * w.x, w.y, ridge=0),
        ValueError,
        "ridge: expected more, since the states of 20 steps do not determine the readout",
    ),
    "an online ridge of 0": (lambda w: w.esn.partial_fit(w.x, w.y, ridge=0), ValueError, "ridge: expected more than 0"),
    "forgetting all": (lambda w: w.esn.partial_fit(w.x, w.y, forgetting=0), ValueError, "forgetting: expected more"),
    "online outputs": (
        lambda w: w.esn.partial_fit(w.x, w.y[:, :1]),
        ValueError,
        "y: expected 2 outputs, as the readout has, got 1",
    ),
    "lengths": (lambda w: w.esn.fit(w.x, w.y, lengths=[21]), ValueError, "lengths: expected 0 to 20, got"),
    "lengths with feedback": (
        lambda w: (w.new.fit(w.x, w.y), w.new.predict(w.x, lengths=[3])),
        ValueError,
        "lengths: expected None for a network with feedback",
    ),
    "not fitted": (lambda w: w.new.predict(w.x), ValueError, "readout: expected one that has been fitted, got none"),
    "generate before": (
        lambda w: w.new.generate(20, None, w.x),
        ValueError,
        "readout: expected one that has been fitted, got",
    ),
    "outputs that are no inputs": (lambda w: w.esn.generate(3, w.state), ValueError, "n: expected 0 for outputs that"),
    "negative n": (lambda w: w.esn.generate(-3, w.state), ValueError, "n: expected at least 0, got -3"),
    "x without feedback": (lambda w: w.esn.generate(3, w.state, w.x), ValueError, "x: expected None for a network"),
    "no state": (lambda w: w.esn.states(w.x, w.x), TypeError, "state: expected a State that a call has returned, got"),
    "states of other reservoirs": (
        lambda w: w.esn.states(w.x, State((), None)),
        ValueError,
        "state: expected the states of 1 reservoirs, got 0",
    ),
    "a state of a batch": (
        lambda w: w.esn.states(w.x[:, np.newaxis], w.state),
        ValueError,
        r"state: expected shape \(1, 30\), got \(30,\)",
    ),
    "a state of an output": (
        lambda w: w.esn.predict(w.x, State(w.state.h, np.zeros(5))),
        ValueError,
        r"state: expected shape \(2,\), got \(5,\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    call: Callable[[World], object], error: type[Exception], message: str
) -> None:
    world = World()
    before = pickle.dumps([world.esn, world.state])
    with pytest.raises(error, match=message):
        call(world)
    assert pickle.dumps([world.esn, world.state]) == before


def test_connections_without_a_circle_have_no_radius() -> None:
    for seed in range(40):
        try:
            esn = ESN(1, 6, density=0.15, spectral_radius=2, dtype="float64", rng=seed)
        except ValueError as error:
            assert str(error).startswith("spectral_radius: expected 0 for connections without a circle")  # noqa: PT017
        else:
            w = esn.reservoirs[0].weight_hh_l0
            assert np.isclose(np.abs(np.linalg.eigvals(w)).max(), 2)
