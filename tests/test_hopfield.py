"""Hopfield networks: rules and updates against plain NumPy, energies and capacities, and what is refused."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPES, Array, assert_same_bits
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast.hopfield import AT_ONCE, Hopfield, Mode, ModernHopfield, Recall, Rule

RULES: tuple[Rule, ...] = ("hebbian", "storkey", "pseudo_inverse")
MODES: tuple[Mode, ...] = ("asynchronous", "synchronous")
N = 150  # more than two blocks of units

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_rule = pytest.mark.parametrize("rule", RULES)
by_mode = pytest.mark.parametrize("mode", MODES)


def signs(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).choice([-1, 1], shape)


def damaged(patterns: Array, rate: float, seed: int) -> Array:
    return np.where(np.random.default_rng(seed).random(patterns.shape) < rate, -patterns, patterns)


def of_random_weights(units: int, dtype: str, seed: int, diagonal: float = 0.0) -> Hopfield:
    """Return a network of symmetric weights and thresholds in which no field is close to 0."""
    rng = np.random.default_rng(seed)
    network = Hopfield(units, dtype=dtype)
    half = np.triu(rng.standard_normal((units, units)), 1)
    network.weight = (half + half.T + diagonal * np.eye(units)).astype(dtype)
    network.threshold = rng.standard_normal(units).astype(dtype)
    return network


def holding(patterns: Array, rule: Rule = "hebbian", dtype: str = "float32") -> Hopfield:
    network = Hopfield(patterns.shape[-1], dtype=dtype)
    network.store(patterns, rule)
    return network


# The oracle: the definitions, in float64


def hebbian(patterns: Array) -> Array:
    w = np.zeros((patterns.shape[1],) * 2)
    for x in patterns:
        w += np.outer(x, x) / len(x)
    return w - np.diag(w.diagonal())


def storkey(patterns: Array) -> Array:
    units = patterns.shape[1]
    w = np.zeros((units, units))
    for x in patterns:
        h = np.zeros((units, units))
        for i in range(units):
            for j in range(units):
                h[i, j] = sum(w[i, k] * x[k] for k in range(units) if k not in (i, j))
        before = w.copy()
        for i in range(units):
            for j in range(units):
                if i != j:
                    w[i, j] = before[i, j] + (x[i] * x[j] - x[i] * h[j, i] - h[i, j] * x[j]) / units
    return w


def pseudo_inverse(patterns: Array) -> Array:
    return patterns.T @ np.linalg.pinv(patterns.T)


ORACLES: dict[Rule, Callable[[Array], Array]] = {
    "hebbian": hebbian,
    "storkey": storkey,
    "pseudo_inverse": pseudo_inverse,
}


def energy(network: Hopfield, states: Array) -> Array:
    w, t, s = (a.astype(np.float64) for a in (network.weight, network.threshold, states))
    return np.asarray(-0.5 * np.einsum("...i,ij,...j->...", s, w, s) + s @ t)


def sweep(network: Hopfield, state: Array, order: Array) -> Array:
    w, t, s = (a.astype(np.float64) for a in (network.weight, network.threshold, state))
    for i in order:
        h = w[i] @ s - t[i]
        s[i] = s[i] if h == 0 else np.sign(h)
    return s


# Storing


@pytest.mark.parametrize(("units", "M"), [(1, 1), (2, 1), (10, 3), (15, 15)])
@by_dtype
@by_rule
def test_the_weights_are_those_of_the_definition(rule: Rule, dtype: str, units: int, M: int) -> None:
    patterns = signs((M, units), M)
    w = holding(patterns, rule, dtype).weight
    assert relative_error(w, ORACLES[rule](patterns)) < 3 * TOLERANCE[w.dtype]
    assert np.array_equal(w, w.T)


@by_dtype
@by_rule
def test_patterns_can_be_added_later(rule: Rule, dtype: str) -> None:
    patterns = signs((2 * AT_ONCE + 5, N), 1)
    parts = Hopfield(N, dtype=dtype)
    for part in (*patterns[: AT_ONCE + 3], patterns[:0], patterns[AT_ONCE + 3 :]):
        parts.store(part, rule)
    assert relative_error(parts.weight, holding(patterns, rule, dtype).weight) < 5 * TOLERANCE[parts.weight.dtype]


@by_dtype
def test_the_projection_takes_no_notice_of_patterns_that_depend_on_others(dtype: str) -> None:
    patterns = signs((20, 40), 1)
    network = holding(patterns, "pseudo_inverse", dtype)
    before = network.weight.copy()
    network.store(np.concatenate([patterns[::-1], -patterns[3:5]]), "pseudo_inverse")
    assert np.array_equal(network.weight, before)
    many = holding(np.concatenate([patterns] * 50), "pseudo_inverse", dtype)
    assert relative_error(many.weight, before) < 5 * TOLERANCE[before.dtype]


@by_dtype
def test_hebb_and_storkey_leave_the_diagonal(dtype: str) -> None:
    patterns = signs((3, 12), 1)
    for rule in RULES[:2]:
        network = Hopfield(12, dtype=dtype)
        network.weight = 2 * np.eye(12, dtype=dtype)
        network.store(patterns, rule)
        assert relative_error(network.weight, ORACLES[rule](patterns) + 2 * np.eye(12)) < TOLERANCE[network.dtype]


@by_rule
def test_patterns_are_integers_or_of_the_networks_dtype(rule: Rule) -> None:
    patterns = signs((4, 9), 1)
    expected = holding(patterns, rule).weight
    others: tuple[Any, ...] = (
        *(patterns.astype(dtype) for dtype in ("int8", "int16", "float32")),
        patterns.tolist(),
        patterns.astype(float).tolist(),
        np.asfortranarray(patterns),
    )
    for other in others:
        network = Hopfield(9)
        network.store(other, rule)
        assert np.array_equal(network.weight, expected)


# Recall


@pytest.mark.parametrize("units", [1, 2, AT_ONCE, AT_ONCE + 1, N])
@by_dtype
def test_asynchronous_steps_update_one_unit_after_the_other(dtype: str, units: int) -> None:
    network, states = of_random_weights(units, dtype, 1, diagonal=0.5), signs((5, units), 2)
    for steps in range(4):
        rng, expected = np.random.default_rng(3), states
        for _ in range(steps):
            order = rng.permutation(units)
            expected = np.array([sweep(network, s, order) for s in expected])
        recalled = network.recall(states, max_steps=steps, rng=3)
        assert np.array_equal(recalled.states, expected)
        assert recalled.states.dtype == dtype


@by_dtype
def test_synchronous_steps_update_all_units_at_once(dtype: str) -> None:
    network, states = of_random_weights(N, dtype, 1), signs((5, N), 2)
    expected = states.astype(np.float64)
    for steps in range(4):
        recalled = network.recall(states, "synchronous", steps)
        assert np.array_equal(recalled.states[recalled.period == 0], expected[recalled.period == 0])
        expected = np.sign(expected @ network.weight.astype(np.float64).T - network.threshold)


@settings(max_examples=60, deadline=None)
@given(
    units=st.integers(1, 2 * AT_ONCE),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    rule=st.sampled_from((None, *RULES)),
)
def test_energy_never_rises_in_asynchronous_recall(units: int, dtype: str, seed: int, rule: Rule | None) -> None:
    if rule is None:
        network = of_random_weights(units, dtype, seed, diagonal=0.25)
    else:
        network = holding(signs((units // 2 + 1, units), seed), rule, dtype)
    states = signs((7, units), seed + 1)
    before = energy(network, states)
    for step in range(10):
        recalled = network.recall(states, max_steps=1, rng=seed + step)
        after = energy(network, recalled.states)
        moved = (recalled.states != states).any(axis=1)
        assert (after[moved] < before[moved]).all()
        assert np.array_equal(moved, recalled.steps > 0)
        assert np.allclose(network.energy(recalled.states), after, rtol=1e-4, atol=1e-4)
        states, before = recalled.states, after


@by_dtype
def test_the_energy_is_that_of_the_definition(dtype: str) -> None:
    network, states = of_random_weights(N, dtype, 1, diagonal=1), signs((2, 3, N), 2)
    found = network.energy(states)
    assert found.shape == (2, 3)
    assert relative_error(found, energy(network, states)) < TOLERANCE[found.dtype]
    assert network.energy(states[0, 0]).shape == ()


@by_dtype
@by_mode
def test_a_unit_without_a_field_stays(mode: Mode, dtype: str) -> None:
    states = signs((4, 30), 1)
    recalled = Hopfield(30, dtype=dtype).recall(states, mode)
    assert np.array_equal(recalled.states, states)
    assert recalled.steps.tolist() == [0] * 4
    assert recalled.period.tolist() == [1] * 4
    network = Hopfield(3, dtype=dtype)
    network.weight = np.array([[0, 0.1, -0.1], [0.1, 0, 0.3], [-0.1, 0.3, 0]], dtype)
    network.threshold = np.array([0, 0.4, 0.4], dtype)
    assert network.recall([-1, 1, 1], mode).states.tolist() == [
        -1,
        -1,
        -1,
    ]  # what 0.1 + 0.3 - 0.4 rounds to is no field
    assert network.recall([1, 1, 1], mode, 0).period == 0


@by_dtype
def test_synchronous_updates_between_two_states_are_told(dtype: str) -> None:
    network = Hopfield(2, dtype=dtype)
    network.weight = np.array([[0, -1], [-1, 0]], dtype)
    states, steps, period = network.recall([[1, 1], [1, -1], [-1, -1]], "synchronous")
    assert period.tolist() == [2, 1, 2]
    assert steps.tolist() == [1, 0, 1]
    assert np.array_equal(states, [[-1, -1], [1, -1], [1, 1]])
    assert network.recall([1, 1], "synchronous", max_steps=1).period == 2
    assert network.recall([1, 1], "synchronous", max_steps=0).period == 0
    settled = network.recall([[1, 1], [-1, -1]], "asynchronous", rng=0)
    assert settled.period.tolist() == [1, 1]
    assert (settled.states.prod(axis=1) == -1).all()


@by_mode
def test_the_last_step_is_seen_to_be_the_last(mode: Mode) -> None:
    network = holding(signs((5, N), 1))
    start = damaged(signs((5, N), 1), 0.2, 2)
    steps = network.recall(start, mode, rng=0).steps
    assert (steps > 0).all()
    for most in range(steps.max() + 1):
        recalled = network.recall(start, mode, max_steps=most, rng=0)
        assert np.array_equal(recalled.period == 1, steps <= most)
        assert np.array_equal(recalled.steps, np.minimum(steps, most))


@by_dtype
@by_mode
@by_rule
def test_what_comes_of_a_state_depends_neither_on_others_nor_on_threads(rule: Rule, mode: Mode, dtype: str) -> None:
    patterns = signs((30, N), 1)
    network, states = holding(patterns, rule, dtype), damaged(patterns, 0.3, 2).reshape(5, 6, N)
    together, energies = network.recall(states, mode, rng=4), network.energy(states)
    for i, j in np.ndindex(5, 6):
        alone = network.recall(states[i, j], mode, rng=4)
        assert_same_bits(alone._asdict(), {name: a[i, j] for name, a in together._asdict().items()})
        assert network.energy(states[i, j]) == energies[i, j]
    with rnnfast.threads(3):
        assert_same_bits(network.recall(states, mode, rng=4)._asdict(), together._asdict())
        assert np.array_equal(holding(patterns, rule, dtype).weight, network.weight)


def test_the_generator_decides_the_orders() -> None:
    patterns = signs((60, N), 1)
    start = damaged(patterns, 0.3, 2)

    def recalled(seed: Any = None, own: Any = None) -> Array:
        network = Hopfield(N, rng=own)
        network.store(patterns)
        return network.recall(start, rng=seed).states

    first = recalled(seed=0)
    for other in (recalled(seed=np.random.default_rng(0)), recalled(own=0), recalled(seed=np.array(0))):
        assert np.array_equal(first, other)
    assert not np.array_equal(first, recalled(seed=1))
    network = Hopfield(N, rng=0)
    network.store(patterns)
    assert not np.array_equal(network.recall(start).states, network.recall(start).states)  # it goes on


@by_mode
def test_no_states_give_none_and_inputs_stay(mode: Mode) -> None:
    network = holding(signs((3, 20), 1))
    recalled = network.recall(np.zeros((2, 0, 20), int), mode)
    assert [a.shape for a in recalled] == [(2, 0, 20), (2, 0), (2, 0)]
    assert network.energy(np.zeros((0, 20), np.float32)).shape == (0,)
    start = damaged(signs((3, 20), 1), 0.3, 2).astype(np.float32)
    given = start.copy()
    states, *_ = network.recall(given, mode)
    assert np.array_equal(given, start)
    assert not np.may_share_memory(states, given)


# What is held


@by_dtype
@by_mode
@pytest.mark.parametrize(("rule", "M"), [("hebbian", 10), ("storkey", 30), ("pseudo_inverse", 199)])
def test_patterns_below_capacity_stay(rule: Rule, M: int, mode: Mode, dtype: str) -> None:
    patterns = signs((M, 200), 1)
    recalled = holding(patterns, rule, dtype).recall(patterns, mode, max_steps=0)
    assert (recalled.period == 1).all()


@by_mode
@pytest.mark.parametrize(("rule", "M"), [("hebbian", 20), ("storkey", 50), ("pseudo_inverse", 80)])
def test_patterns_are_repaired(rule: Rule, M: int, mode: Mode) -> None:
    patterns = signs((M, 400), 1)
    states, _, period = holding(patterns, rule).recall(damaged(patterns, 0.1, 2), mode, rng=0)
    assert np.array_equal(states, patterns)
    assert (period == 1).all()


def error_of_recall(rule: Rule, load: float, units: int = 500) -> float:
    """Return the fraction of units that recall from the stored patterns leaves wrong."""
    patterns = signs((round(load * units), units), 5)
    return float((holding(patterns, rule).recall(patterns, rng=0).states != patterns).mean())


def test_hebbs_rule_holds_some_14_patterns_for_100_units() -> None:
    assert error_of_recall("hebbian", 0.11) < 0.01
    assert error_of_recall("hebbian", 0.18) > 0.1


def test_storkeys_rule_holds_more() -> None:
    capacity = 1 / math.sqrt(2 * math.log(500))  # 0.28
    assert error_of_recall("storkey", 0.7 * capacity) < 0.001
    assert error_of_recall("storkey", capacity) < 0.01
    assert error_of_recall("storkey", 2 * capacity) > 0.1


def test_the_pseudo_inverse_holds_a_pattern_for_each_unit() -> None:
    assert error_of_recall("pseudo_inverse", 0.998) == 0


# The modern network


def modern_oracle(network: ModernHopfield, states: Array) -> tuple[Array, Array]:
    """Return the energy and the update of the definition."""
    x, s, beta = network.patterns.astype(np.float64), states.astype(np.float64), network.beta
    z = beta * s @ x.T
    lse = np.log(np.exp(z - z.max(axis=-1, keepdims=True)).sum(axis=-1)) + z.max(axis=-1)
    e = -lse / beta + (s * s).sum(axis=-1) / 2 + math.log(len(x)) / beta + (x * x).sum(axis=-1).max() / 2
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return e, p / p.sum(axis=-1, keepdims=True) @ x


def normal(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("M", "units"), [(1, 1), (5, 3), (200, 37)])
@by_dtype
def test_a_modern_update_and_its_energy_are_those_of_the_definition(dtype: str, M: int, units: int) -> None:
    network = ModernHopfield(normal((M, units), dtype, 1), beta=0.3, dtype=dtype)
    states = 3 * normal((2, 7, units), dtype, 2)
    energies, updated = modern_oracle(network, states)
    found, steps, period = network.recall(states, max_steps=1, tolerance=0)
    moved = period == 0
    assert np.array_equal(steps, moved)
    assert relative_error(found[moved], updated[moved]) < 3 * TOLERANCE[found.dtype]
    assert relative_error(network.energy(states), energies) < 3 * TOLERANCE[found.dtype]
    assert network.energy(states[0, 0]).shape == ()


@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(1, 20),
    units=st.integers(1, 40),
    beta=st.floats(0.01, 100),
    scale=st.floats(0.01, 10),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_modern_energy_never_rises(M: int, units: int, beta: float, scale: float, dtype: str, seed: int) -> None:
    network = ModernHopfield(normal((M, units), dtype, seed), beta=beta, dtype=dtype)
    states = (scale * normal((6, units), dtype, seed + 1)).astype(dtype)
    before, _ = modern_oracle(network, states)
    assert (before >= -1e-9 * (1 + np.abs(before))).all()
    for _ in range(5):
        states = network.recall(states, max_steps=1, tolerance=0).states
        after, _ = modern_oracle(network, states)
        assert (after <= before + 20 * np.finfo(dtype).eps * (1 + np.abs(before) + units)).all()
        before = after


@by_dtype
def test_one_update_suffices_where_patterns_are_apart(dtype: str) -> None:
    patterns = signs((500, 100), 1).astype(dtype)
    network = ModernHopfield(patterns, beta=1, dtype=dtype)
    states, steps, period = network.recall(damaged(patterns, 0.1, 2))
    assert (steps == 1).all()
    assert (period == 1).all()
    assert np.array_equal(np.sign(states), patterns)
    assert np.abs(states - patterns).max() < 1e-2


@by_dtype
def test_what_comes_of_a_modern_state_depends_neither_on_others_nor_on_threads(dtype: str) -> None:
    network = ModernHopfield(normal((300, 70), dtype, 1), beta=0.125, dtype=dtype)
    states = 2 * normal((4, 5, 70), dtype, 2)
    together, energies = network.recall(states), network.energy(states)
    assert len(np.unique(together.steps)) > 1
    for i, j in np.ndindex(4, 5):
        alone = network.recall(states[i, j])
        assert_same_bits(alone._asdict(), {name: a[i, j] for name, a in together._asdict().items()})
        assert network.energy(states[i, j]) == energies[i, j]
    with rnnfast.threads(3):
        assert_same_bits(network.recall(states)._asdict(), together._asdict())


def test_modern_states_stay_within_the_tolerance() -> None:
    network = ModernHopfield(normal((50, 20), "float64", 1), beta=0.2, dtype="float64")
    states, steps, period = network.recall(normal((9, 20), "float64", 2), tolerance=1e-8)
    assert (period == 1).all()
    assert steps.max() > 3
    longest = np.linalg.norm(network.patterns, axis=1).max()
    assert np.linalg.norm(modern_oracle(network, states)[1] - states, axis=-1).max() <= 1.01e-8 * longest
    assert network.recall(states, max_steps=0).period.tolist() == [0] * 9
    assert [a.shape for a in network.recall(np.zeros((0, 20)))] == [(0, 20), (0,), (0,)]


def test_large_products_with_patterns_do_not_overflow() -> None:
    network = ModernHopfield(100 * normal((5, 8), "float32", 1))
    states = 100 * normal((3, 8), "float32", 2)
    energies, updated = modern_oracle(network, states)
    assert relative_error(network.energy(states), energies) < 1e-5
    assert relative_error(network.recall(states, max_steps=1).states, updated) < 1e-5


# Manners


NETWORKS: dict[str, Callable[[], Any]] = {
    "Hopfield(20)": lambda: holding(signs((3, 20), 1)),
    "Hopfield(20, dtype='float64')": lambda: holding(signs((3, 20), 1), dtype="float64"),
    "ModernHopfield(<float32 [3, 20]>, beta=0.5)": lambda: ModernHopfield(normal((3, 20), "float32", 1), beta=0.5),
    "ModernHopfield(<float64 [3, 20]>, beta=1.0)": lambda: ModernHopfield(normal((3, 20), "float64", 1), dtype=float),
}
by_network = pytest.mark.parametrize("call", NETWORKS)


def outcome(network: Any) -> dict[str, Array]:
    states = signs((4, 20), 2).astype(network.dtype)
    recalled: Recall = network.recall(states)
    return {**recalled._asdict(), "energy": network.energy(states)}


@by_network
def test_a_saved_network_comes_back(call: str, tmp_path: Path) -> None:
    network = NETWORKS[call]()
    network.save(tmp_path / "network")
    rnnfast.Modules(memory=network).save(tmp_path / "model")
    for loaded in (rnnfast.load(tmp_path / "network"), rnnfast.load(tmp_path / "model")["memory"]):  # type: ignore[index]
        assert repr(loaded) == repr(network) == call
        assert_same_bits(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@by_network
def test_a_copy_goes_on_alike_and_shares_nothing(call: str, copied: Callable[[Any], Any]) -> None:
    network = NETWORKS[call]()
    twin = copied(network)
    assert repr(twin) == call
    assert vars(twin).keys() == vars(network).keys()
    assert_same_bits(outcome(twin), outcome(network))
    for name, p in network.parameters.items():
        assert not np.may_share_memory(twin.parameters[name], p)


@by_network
def test_values_are_loaded_and_assigned(call: str) -> None:
    network, other = NETWORKS[call](), NETWORKS[call]()
    for p in other.parameters.values():
        p *= 0.5
    network.load_state_dict(other.state_dict())
    network.rng = copy.deepcopy(other.rng)
    assert_same_bits(outcome(network), outcome(other))
    assert rnnfast.num_parameters(network) == sum(p.size for p in network.parameters.values())


def test_patterns_are_copied() -> None:
    patterns = normal((3, 4), "float32", 1)
    network = ModernHopfield(patterns)
    patterns[...] = 0
    assert network.patterns.all()


# Bad input


class World:
    """Networks that a bad call could change."""

    def __init__(self) -> None:
        self.network: Any = holding(signs((2, 4), 1))
        self.network.rng = np.random.default_rng(0)
        self.projection: Any = holding(signs((2, 4), 1), "pseudo_inverse")
        self.modern: Any = ModernHopfield(normal((3, 4), "float32", 1))
        self.states = signs((2, 4), 2)

    def with_threshold(self, value: Any) -> Any:
        network = holding(signs((2, 4), 1))
        network.threshold[2] = value
        return network

    def with_weight(self, value: Any) -> Any:
        network = holding(signs((2, 4), 1))
        network.weight[1, 2] = value
        return network


SIGNS = r"expected \+1 and -1, got"
H: Any = Hopfield
M: Any = ModernHopfield
BAD: dict[str, tuple[Callable[[World], object], type[Exception], str]] = {
    "no units": (lambda _: H(0), ValueError, "units: expected at least 1, got 0"),
    "units of no int": (lambda _: H(3.5), TypeError, "units: expected an int, got float"),
    "too many units": (lambda _: H(2**40), ValueError, "units: expected sizes that fit the address space"),
    "a dtype of none": (lambda _: H(3, dtype="int8"), TypeError, "dtype: expected float32 or float64"),
    "no generator": (lambda _: H(3, rng="x"), TypeError, "rng: "),
    "a pattern of 0": (lambda w: w.network.store([1, 0, 1, 1]), ValueError, f"patterns: {SIGNS} 0"),
    "a pattern of 2": (lambda w: w.network.store([[1, 1, 1, 1], [1, 1, 1, 2]]), ValueError, f"patterns: {SIGNS} 2"),
    "a pattern of NaN": (
        lambda w: w.network.store(np.full((2, 4), np.nan, "f4")),
        ValueError,
        f"patterns: {SIGNS} nan",
    ),
    "bytes": (lambda w: w.network.store(np.full(4, 255, "u1")), ValueError, f"patterns: {SIGNS} 255"),
    "bools": (lambda w: w.network.store(np.ones(4, bool)), TypeError, "patterns: expected dtype float32, got bool"),
    "another dtype": (
        lambda w: w.network.store(np.ones(4)),
        TypeError,
        "patterns: expected dtype float32, got float64",
    ),
    "complex": (lambda w: w.network.store(np.ones(4, "c8")), TypeError, "patterns: expected dtype float32"),
    "text": (lambda w: w.network.store("1111"), TypeError, "patterns: expected an array, got"),
    "another size": (
        lambda w: w.network.store(np.ones((2, 5), int)),
        ValueError,
        r"patterns: expected shape \(..., 4\), got \(2, 5\)",
    ),
    "a number": (lambda w: w.network.store(np.array(1)), ValueError, r"patterns: expected shape .*, got \(\)"),
    "three axes": (
        lambda w: w.network.store(np.ones((1, 2, 4), int)),
        ValueError,
        r"patterns: expected shape \(M, 4\) or \(4,\), got \(1, 2, 4\)",
    ),
    "another rule": (
        lambda w: w.network.store(w.states, "hebb"),
        ValueError,
        "rule: expected 'hebbian' or 'storkey' or",
    ),
    "a rule of nothing": (lambda w: w.network.store(w.states, None), ValueError, "rule: expected"),
    "mixed rules": (
        lambda w: w.network.store(w.states, "pseudo_inverse"),
        ValueError,
        "rule: expected 'hebbian' or 'storkey' for weights that another rule",
    ),
    "states of 0": (lambda w: w.network.recall(np.zeros((2, 4), int)), ValueError, f"states: {SIGNS} 0"),
    "states of a dtype": (lambda w: w.network.recall(np.ones(4)), TypeError, "states: expected dtype float32, got"),
    "states of a size": (lambda w: w.network.recall([1, 1]), ValueError, r"states: expected shape \(..., 4\), got"),
    "another mode": (lambda w: w.network.recall(w.states, "both"), ValueError, "mode: expected 'asynchronous' or"),
    "negative steps": (lambda w: w.network.recall(w.states, max_steps=-1), ValueError, "max_steps: .* 0, got -1"),
    "steps of no int": (lambda w: w.network.recall(w.states, max_steps=2.0), TypeError, "max_steps: expected an int"),
    "no steps": (lambda w: w.network.recall(w.states, max_steps=None), TypeError, "max_steps: expected an int"),
    "a bad seed": (lambda w: w.network.recall(w.states, rng=-1), ValueError, "rng: "),
    "a seed of text": (lambda w: w.network.recall(w.states, rng="x"), TypeError, "rng: "),
    "energy of 3": (lambda w: w.network.energy([1, 1, 1, 3]), ValueError, f"states: {SIGNS} 3"),
    "a NaN threshold": (
        lambda w: w.with_threshold(np.nan).recall(w.states),
        ValueError,
        "threshold: expected finite numbers, got nan",
    ),
    "an infinite weight": (
        lambda w: w.with_weight(-np.inf).recall(w.states, "synchronous"),
        ValueError,
        "weight: expected finite numbers, got -inf",
    ),
    "thresholds of a shape": (
        lambda w: setattr(w.network, "threshold", np.zeros(3, "f4")),
        ValueError,
        r"threshold: expected shape \(4,\), got \(3,\)",
    ),
    "thresholds of a dtype": (
        lambda w: setattr(w.network, "threshold", np.zeros(4)),
        TypeError,
        "threshold: expected dtype float32, got float64",
    ),
    "initialized": (
        lambda w: rnnfast.initialize(w.network, "xavier"),
        TypeError,
        "layer: expected a layer, a cell or Linear, got Hopfield",
    ),
    "one pattern": (lambda _: M(np.ones(4, "f4")), ValueError, r"patterns: expected shape \(M, N\), .*, got \(4,\)"),
    "no patterns": (lambda _: M(np.ones((0, 4), "f4")), ValueError, r"patterns: expected shape .*, got \(0, 4\)"),
    "no numbers": (lambda _: M(np.ones((4, 0), "f4")), ValueError, r"patterns: expected shape .*, got \(4, 0\)"),
    "doubles": (lambda _: M(np.ones((4, 2))), TypeError, "patterns: expected dtype float32, got float64"),
    "integers": (lambda _: M(np.ones((4, 2), int)), TypeError, "patterns: expected dtype float32, got int64"),
    "infinite": (lambda _: M([[1.0, np.inf]]), ValueError, "patterns: expected finite numbers, got inf"),
    "nothing": (lambda _: M(None), TypeError, "patterns: expected an array, got None"),
    "beta of 0": (lambda _: M([[1.0]], beta=0), ValueError, "beta: expected more than 0, got 0"),
    "beta of NaN": (lambda _: M([[1.0]], beta=math.nan), ValueError, "beta: expected more than 0, got nan"),
    "endless beta": (lambda _: M([[1.0]], beta=math.inf), ValueError, "beta: expected finite numbers, got inf"),
    "beta of text": (lambda _: M([[1.0]], beta="1"), TypeError, "beta: expected a number, got str"),
    "modern states of a size": (
        lambda w: w.modern.recall(np.ones((2, 3), "f4")),
        ValueError,
        r"states: expected shape \(..., 4\), got \(2, 3\)",
    ),
    "modern states of a dtype": (lambda w: w.modern.energy(np.ones(4)), TypeError, "states: expected dtype float32"),
    "modern states of NaN": (
        lambda w: w.modern.recall(np.full(4, np.nan, "f4")),
        ValueError,
        "states: expected finite numbers, got nan",
    ),
    "huge states": (
        lambda w: w.modern.energy(np.full(4, 3e38, "f4")),
        ValueError,
        "states: expected finite products with the patterns times beta in float32, got others",
    ),
    "negative tolerance": (
        lambda w: w.modern.recall(np.ones(4, "f4"), tolerance=-1),
        ValueError,
        "tolerance: expected at least 0, got -1",
    ),
    "modern steps": (lambda w: w.modern.recall(np.ones(4, "f4"), -1), ValueError, "max_steps: expected at least 0"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    call: Callable[[World], object], error: type[Exception], message: str
) -> None:
    world = World()
    before = pickle.dumps([world.network, world.projection, world.modern, world.states])
    with pytest.raises(error, match=message):
        call(world)
    assert pickle.dumps([world.network, world.projection, world.modern, world.states]) == before


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no patterns": lambda state: state["state_dict"].clear(),
    "one pattern": lambda state: state["state_dict"].update(patterns=np.ones(3, "f4")),
    "NaN": lambda state: state["state_dict"].update(patterns=np.full((2, 3), np.nan, "f4")),
    "another dtype": lambda state: state["arguments"].update(dtype="float64"),
    "no array": lambda state: state["state_dict"].update(patterns="x"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pickle_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    state = ModernHopfield(normal((2, 3), "float32", 1)).__getstate__()
    damage(state)
    with pytest.raises((TypeError, ValueError), match="patterns: expected"):
        ModernHopfield.__new__(ModernHopfield).__setstate__(state)
