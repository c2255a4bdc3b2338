"""Layer normalisation: the oracle by central differences, layers beside it, bit for bit, files, what is refused."""

import copy
import pickle
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modules import KINDS, B, I, T, make_layer, make_state, named_states, normal, oracle, results, state_sizes
from problems import DTYPES, Array, Results, assert_close, assert_same_bits, parts, state_of
from test_tbptt import assert_oracle
from test_tbptt_gradient import gradient
from test_tbptt_gradient import oracle as sum_of_windows
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import convert, reference

rf: Any = rnnfast  # these calls are not what the types allow

CELLS = "lstm_norm", "lstm_norm_carried", "gru_norm"
UNITS = 1, 3, 17, 33

by_cell = pytest.mark.parametrize("cell", CELLS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_units = pytest.mark.parametrize("units", UNITS)


# The oracle

ROWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no bias": {},
    "lengths and resets": {"lengths": [5, 3, 0], "resets": np.arange(15).reshape(5, 3) % 4 == 2},
    "held": {"gate_override": 0.4},
    "factors of h'": {"recurrent_factors": np.arange(2 * 3 * 3).reshape(2, 3, 3) % 3 / 2},
    "zoneout": {"zoneout": np.arange(5 * 3 * 6).reshape(5, 3, 6) % 7 < 4},
}


@pytest.mark.parametrize("rows", ROWS)
@by_cell
def test_the_oracles_gradients_are_central_differences(cell: str, rows: str) -> None:
    """Along a line through everything that has a gradient, and along one through each array alone."""
    T, B, I, H, D = 5, 3, 2, 3, 2
    rng, step, options = np.random.default_rng(0), reference.CELLS[cell], {"layer_norm_eps": 0.3, **ROWS[rows]}
    G, S = len(step.gates), len(step.states)
    if rows == "held":
        options["gate_override"] = dict.fromkeys(step.gates[:-1], 0.4)
    if rows == "zoneout":
        options["zoneout"] = (options["zoneout"], 0.3)[:S]
    shapes = {"w_ih": (G * H, I), "w_hh": (G * H, H), "b_ih": (G * H,), "b_hh": (G * H,)}
    shapes |= {name: (n * H,) for name, n in step.parameters.items()}
    left_out = {"b_ih", "b_hh", "b_c"} if rows == "no bias" else set()
    parameters = [None if name in left_out else rng.standard_normal(shape) for name, shape in [*shapes.items()] * D]
    arrays = [rng.standard_normal((T, B, I)), *(rng.standard_normal((D, B, H)) for _ in range(S)), *parameters]
    dy, *dsteps = (rng.standard_normal((T, B, D * H)) for _ in range(S))
    dlast = [rng.standard_normal((D, B, H)) for _ in range(S)]

    def forward(arrays: list[Any]) -> Any:
        x, state, weights = arrays[0], tuple(arrays[1 : 1 + S]), arrays[1 + S :]
        return reference.forward(cell, x, [weights[: len(shapes)], weights[len(shapes) :]], state, **options)

    def loss(arrays: list[Any]) -> float:
        y, last, tape = forward(arrays)
        pairs = zip((dy, *dlast, *dsteps), (y, *last, *tape.steps[1:]), strict=True)
        return float(sum(np.vdot(d, a) for d, a in pairs))

    dx, dstate0, grads = reference.backward(forward(arrays)[2], dy, tuple(dlast), dsteps=tuple(dsteps))
    slopes = [dx, *dstate0, *chain(*grads)]
    assert [a is None for a in slopes] == [a is None for a in arrays]
    lines = [np.zeros(()) if a is None else rng.standard_normal(a.shape) for a in arrays]
    for along in (lines, *([d * (k == n) for k, d in enumerate(lines)] for n in range(len(lines)))):
        up, down = (
            [None if a is None else a + h * d for a, d in zip(arrays, along, strict=True)] for h in (1e-5, -1e-5)
        )
        expected = sum(np.vdot(d, slope) for d, slope in zip(along, slopes, strict=True) if slope is not None)
        assert (loss(up) - loss(down)) / 2e-5 == pytest.approx(expected, rel=1e-7, abs=1e-7)


# Layers beside the oracle


def make(cell: str, units: int = 17, **options: Any) -> Any:
    """Return a layer whose gains, biases and eps are not those that it would have.

    What reaches h' or c of one unit cancels, but for a multiple of eps.
    """
    layer = make_layer(cell, (I, units), **{"layer_norm_eps": 1e-3 if units > 1 else 0.1, **options})
    rng = np.random.default_rng(3)
    for name, p in layer.parameters.items():
        if name.startswith(("gain", "bias")):
            p[...] = name.startswith("gain") + 0.5 * rng.standard_normal(p.shape)
    return layer


def gradients_of(layer: Any, size: tuple[int, int]) -> tuple[Array, Any, dict[str, Array]]:
    """Return gradients of y, of the last state and, where there is c, of c of every step."""
    width = layer.directions * layer.hidden_size
    of_c = {"dc": normal((layer.num_layers, *size, width), layer.dtype, 7)} if len(state_sizes(layer)) > 1 else {}
    return normal((*size, width), layer.dtype, 5), make_state(layer, size[1:], 6), of_c


def solve(layer: Any, x: Array, state: Any = None, **options: Any) -> Results:
    """Run the layer forwards and backwards."""
    dy, dstate, of_c = gradients_of(layer, x.shape[:2])
    y, last, tape = layer.forward(x, state, **options)
    return results(y, last, *layer.backward(tape, dy, dstate, **of_c))


def expected_of(layer: Any, x: Array, state: Any = None, **options: Any) -> Results:
    """Return the oracle's results of what `solve` runs."""
    dy, dstate, of_c = gradients_of(layer, x.shape[:2])
    return oracle(layer, x, state, dy, dstate, dc=of_c.get("dc"), **options)


def assert_oracles(layer: Any, x: Array, state: Any = None, **options: Any) -> None:
    """Assert that the results are the oracle's.

    Rows of numbers that are nearly equal make their rounding larger: where the tolerance of the dtype does not hold,
    what parameters and x that are rounded anew change in the oracle's results is allowed beside it.
    """
    found, expected = solve(layer, x, state, **options), expected_of(layer, x, state, **options)
    assert found.keys() == expected.keys()
    limits = dict.fromkeys(found, layer.num_layers**0.5 * TOLERANCE[layer.dtype])
    errors = {name: relative_error(a, expected[name]) for name, a in found.items()}
    rng, eps = np.random.default_rng(0), float(np.finfo(layer.dtype).eps)
    for _ in range(3 if any(not e <= limits[name] for name, e in errors.items()) else 0):
        twin = copy.deepcopy(layer)
        for p in twin.parameters.values():
            p *= (1 + eps * rng.choice([-1.0, 1.0], p.shape)).astype(p.dtype)
        moved = expected_of(twin, x * (1 + eps * rng.choice([-1.0, 1.0], x.shape)), state, **options)
        limits = {name: limit + 2 * relative_error(moved[name], expected[name]) for name, limit in limits.items()}
    assert not {name: (e, limits[name]) for name, e in errors.items() if not e <= limits[name]}


@by_units
@by_dtype
@by_cell
def test_all_that_a_layer_returns_is_the_oracles(cell: str, dtype: str, units: int) -> None:
    for own in ({}, {"num_layers": 2, "bidirectional": True}):
        layer = make(cell, units, dtype=dtype, **own)
        assert_oracles(layer, normal((T, B, I), dtype, 1), make_state(layer, (B,), 2))


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the layer and of forward
    "lengths": ({"bidirectional": True}, {"lengths": [2, 5, 0]}),
    "resets": ({"bidirectional": True, "num_layers": 2}, {"resets": np.random.default_rng(2).random((T, B)) < 0.3}),
    "no bias": ({"bias": False, "num_layers": 2}, {}),
    "default eps": ({"layer_norm_eps": 1e-5, "num_layers": 2}, {}),
    "learned": ({"learn_initial_state": True, "bidirectional": True}, {}),
}


@pytest.mark.parametrize("call", CALLS)
@by_dtype
@by_cell
def test_options_are_the_oracles(cell: str, dtype: str, call: str) -> None:
    own, options = CALLS[call]
    assert_oracles(make(cell, dtype=dtype, **own), normal((T, B, I), dtype, 1), **options)


@by_cell
def test_a_call_of_many_rows_and_steps_is_the_oracles(cell: str) -> None:
    """Several chunks of time, weights that are packed, sequences of unequal length."""
    layer = make(cell, 65, dtype="float64")
    lengths = np.random.default_rng(1).integers(60, size=50)
    assert_oracles(layer, normal((60, 50, I), "float64", 1), make_state(layer, (50,), 2), lengths=lengths)


@pytest.mark.parametrize("V", [None, 4], ids=["one-hot", "embedded"])
@by_cell
def test_tokens_are_rows(cell: str, V: int | None) -> None:
    layer = make(cell, dtype="float64", bidirectional=True)
    tokens = np.random.default_rng(4).integers(V or I, size=(T, B))
    embedding = None if V is None else normal((V, I), "float64", 2)
    of_rows = solve(layer, (np.eye(I) if embedding is None else embedding)[tokens])
    found = solve(layer, tokens, **({} if embedding is None else {"embedding": embedding}))
    if embedding is not None:
        dembedding = np.zeros_like(embedding)
        np.add.at(dembedding, tokens, of_rows["dx"])
        of_rows["embedding"] = dembedding
    del of_rows["dx"]
    assert_close(found, of_rows)


@by_cell
def test_steps_show_the_oracles_states_and_gates(cell: str) -> None:
    layer = make(cell, dtype="float64", bidirectional=True)
    x, state = normal((T, B, I), "float64", 1), make_state(layer, (B,), 2)
    _, _, tape = layer.forward(x, state, lengths=[5, 2, 4])
    options = {"lengths": [5, 2, 4], "layer_norm_eps": layer.layer_norm_eps}
    *_, theirs = reference.forward(cell, x, layer.of_layer(0), parts(state), **options)
    gates = reference.gates(theirs)
    expected = {name: np.concatenate([g[name] for g in gates], axis=2) for name in gates[0]}
    assert_close({"h": tape.h(0), **tape.gates(0)}, {"h": theirs.steps[0], **expected})
    if len(theirs.steps) > 1:
        assert_close({"c": tape.c(0)}, {"c": theirs.steps[1]})


@by_cell
def test_windows_are_the_oracles(cell: str) -> None:
    """With weights, gains and biases that change after each window."""
    x = normal((47, 50, I), "float64", 1)
    for (k1, k2), activations, losses in (((3, 7), "stored", "new"), ((13, 40), "replay", "window")):
        layer = make(cell, dtype="float64", num_layers=2)
        state = make_state(layer, (50,), 2)
        assert_oracle(layer, x, k1, k2, state=state, activations=activations, losses=losses)


@by_units
@by_cell
def test_the_gradient_of_all_windows_is_the_oracles(cell: str, units: int) -> None:
    layer = make(cell, units, dtype="float64", num_layers=2)
    x, dy, state = normal((11, B, I), "float64", 1), normal((11, B, units), "float64", 2), make_state(layer, (B,), 3)
    for k1, k2, losses in ((3, 7, "new"), (4, 3, "window"), (1, 5, "new")):
        found = gradient(layer, x, dy, k1, k2, losses=losses, state=state)
        assert_close(found, sum_of_windows(layer, x, dy, k1, k2, losses, state), layers=2)


# Regularisers


@by_cell
def test_masks_act_as_elsewhere(cell: str) -> None:
    """Zoneout after the cell, dropout on h' before the product whose rows are normalised."""
    layer = make(cell, dtype="float64", num_layers=2, bidirectional=True, zoneout=0.4, recurrent_dropout=0.3)
    x, state = normal((T, B, I), "float64", 1), make_state(layer, (B,), 2)
    dy, dstate, of_c = gradients_of(layer, (T, B))
    y, last, tape = layer.forward(x, state)
    found = results(y, last, *layer.backward(tape, dy, dstate, **of_c))
    ends, letters = ("", "_reverse"), "hc"[: len(parts(state))]

    def kept(name: str, k: int) -> Array:
        return np.concatenate([tape.zoneout_masks[f"zoneout_{name}_l{k}{end}"] for end in ends], axis=-1)

    zoneout = [tuple(kept(name, k) for name in letters) for k in range(2)]
    factors = [np.stack([tape.recurrent_masks[f"recurrent_l{k}{end}"] for end in ends]) / 0.7 for k in range(2)]
    assert_close(found, expected_of(layer, x, state, zoneout=zoneout, factors=factors), layers=2)


@by_cell
def test_dropout_between_layers_and_of_weights(cell: str) -> None:
    layer = make(cell, dtype="float64", num_layers=2, dropout=0.3, weight_dropout=0.4)
    x = normal((T, B, I), "float64", 1)
    dy, dstate, of_c = gradients_of(layer, (T, B))
    y, last, tape = layer.forward(x)
    found = results(y, last, *layer.backward(tape, dy, dstate, **of_c))
    twin, factors = copy.deepcopy(layer), {name: kept / 0.6 for name, kept in tape.weight_masks.items()}
    for name, factor in factors.items():
        twin.parameters[name] *= factor
    expected = oracle(twin, x, None, dy, dstate, tape.masks, dc=of_c.get("dc"))
    assert_close(found, expected | {name: expected[name] * factor for name, factor in factors.items()}, layers=2)


# Bit for bit


@pytest.mark.parametrize("units", [3, 33, 130])
@by_dtype
@by_cell
def test_threads_change_no_bit(cell: str, dtype: str, units: int) -> None:
    for rows in (1, 2, 13):
        layer = make(cell, units, dtype=dtype, num_layers=2, bidirectional=True)
        x = normal((40, rows, I), dtype, 1)
        resets = np.random.default_rng(1).random((40, rows)) < 0.1
        with rnnfast.threads(1):
            expected, called = solve(layer, x, resets=resets), layer(x, resets=resets)[0]
        assert np.array_equal(called, expected["y"])
        with rnnfast.threads(3):
            assert_same_bits(solve(layer, x, resets=resets), expected)
            assert np.array_equal(layer(x, resets=resets)[0], called)


@by_units
@by_dtype
@by_cell
def test_a_sequence_has_the_same_bits_alone_and_among_neighbours(cell: str, dtype: str, units: int) -> None:
    layer = make(cell, units, dtype=dtype, bidirectional=True)
    x, state = normal((9, 20, I), dtype, 1), make_state(layer, (20,), 2)
    x[:, 7] = np.nan

    def run(rows: slice) -> Results:
        y, last, tape = layer.forward(x[:, rows], state_of(tuple(s[:, rows] for s in parts(state))))
        dx, dstate0, _ = layer.backward(tape, np.cos(y))
        return results(y, last, dx, dstate0, {})

    whole = run(slice(None))
    assert not np.isnan(whole["y"][:, :7]).any()
    for rows in (slice(0, 1), slice(5, 7), slice(3, 20), slice(19, 20)):
        assert_same_bits(run(rows), {name: a[:, rows] for name, a in whole.items()})


@pytest.mark.parametrize("rows", [1, 3])
@by_units
@by_dtype
@by_cell
def test_streams_and_chunks_are_the_whole(cell: str, dtype: str, units: int, rows: int) -> None:
    layer = make(cell, units, dtype=dtype, num_layers=2)
    x, state = normal((300, rows, I), dtype, 1), make_state(layer, (rows,), 2)
    y, last = layer(x, state)
    expected = results(y, last, None, (), {})
    streams = [layer.stream(rows) for _ in range(2)]
    streams[0].state = streams[1].state = state
    stepped = np.stack([streams[0].step(x_t) for x_t in x])
    cut = np.concatenate([streams[1].run(x[t:u]) for t, u in pairwise([0, 1, 2, 90, 300])])
    for stream, got in zip(streams, (stepped, cut), strict=True):
        assert_same_bits(results(got, stream.state, None, (), {}), expected)
    ys, carried = [], state
    for chunk in np.split(x, [1, 4, 111]):
        y, carried, _ = layer.forward(chunk, carried)
        ys.append(y)
    assert_same_bits(results(np.concatenate(ys), carried, None, (), {}), expected)


@by_cell
def test_checkpoints_give_the_same_bits(cell: str) -> None:
    layer = make(cell, num_layers=2, bidirectional=True)
    x = normal((40, B, I), "float32", 1)
    expected = solve(layer, x)
    for checkpoint in (1, 7):
        assert_same_bits(solve(layer, x, checkpoint=checkpoint), expected)


@by_cell
def test_what_is_left_out_of_a_backward_changes_no_bit_of_the_rest(cell: str) -> None:
    layer = make(cell, bidirectional=True)
    y, _, tape = layer.forward(normal((T, B, I), "float32", 1))
    dx, dstate0, grads = layer.backward(tape, np.cos(y))
    given = {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    none, again, _ = layer.backward(tape, np.cos(y), need_dx=False, grads=given)
    assert none is None
    assert dx.any()
    assert_same_bits({**named_states((), again), **given}, {**named_states((), dstate0), **grads})
    layer.backward(tape, np.cos(y), grads=given)
    assert_close(given, {name: 2 * g.astype(np.float64) for name, g in grads.items()})


# What normalising does


@by_dtype
@by_cell
def test_the_scale_of_weights_does_not_matter(cell: str, dtype: str) -> None:
    """Normalised rows do not change when all of their numbers are multiplied, but by eps."""
    layer = make(cell, dtype=dtype, layer_norm_eps=1e-30)
    x, state = normal((T, B, I), dtype, 1), make_state(layer, (B,), 2)
    expected = layer(x, state)[0]
    for scale in (2.0**-20, 2.0**40):  # squares of differences stay within float32
        for name in ("weight_ih_l0", "weight_hh_l0"):
            layer.parameters[name] *= layer.dtype.type(scale)
        assert_close({"y": layer(x, state)[0]}, {"y": expected.astype(np.float64)})


@by_units
@by_dtype
@by_cell
def test_rows_of_equal_numbers_become_biases(cell: str, dtype: str, units: int) -> None:
    """Their variance is 0. That of c is, too, of one unit and of units that do the same, unless c is carried."""
    layer = make(cell, units, dtype=dtype, layer_norm_eps=1e-5)
    layer.weight_ih_l0[...], layer.weight_hh_l0[...] = 3, 0  # the sum of x for all, and nothing
    for name in ("bias_ih_l0", "bias_hh_l0"):
        gates = layer.parameters[name].reshape(layer.gates, units)
        gates[...] = gates[:, :1]
    x = normal((T, B, I), dtype, 1)
    found, expected = solve(layer, x), expected_of(layer, x)
    assert all(np.isfinite(a).all() for a in found.values())
    assert not found["gain_hh_l0"].any()
    for name in ("gain_ih_l0", "gain_c_l0") if cell == "lstm_norm" else ("gain_ih_l0",):
        assert np.abs(found[name]).max() < 1e4 * np.finfo(dtype).eps, name
    assert_close({"y": found["y"]}, {"y": expected["y"]})


@by_dtype
@pytest.mark.parametrize("cell", CELLS[:2])
def test_a_c_of_one_unit_hands_on_no_gradient(cell: str, dtype: str) -> None:
    """It is its own mean; what reaches it as a state of its own remains."""
    layer = make(cell, 1, dtype=dtype)
    y, _, tape = layer.forward(normal((T, B, I), dtype, 1), make_state(layer, (B,), 2))
    _, (_, dc0), grads = layer.backward(tape, np.cos(y), dc=np.ones((1, T, B, 1), dtype))
    of_f = np.split(grads["bias_ih_l0"], 4)[1]
    assert dc0.any() == of_f.any() == (cell == "lstm_norm")
    assert not grads["gain_c_l0"].any()
    assert grads["bias_c_l0"].any()


@by_dtype
def test_a_carried_c_of_one_unit_is_its_bias_whatever_gate_is_held(dtype: str) -> None:
    layer = make("lstm_norm_carried", 1, dtype=dtype)
    layer.bias_c_l0[...] = 0
    for gate in "ifgo":
        y, _ = layer(normal((40, 9, I), dtype, 1), make_state(layer, (9,), 2), gate_override={gate: 0.3})
        assert not y.any(), gate


@by_cell
def test_eps_counts(cell: str) -> None:
    x = normal((T, B, I), "float64", 1)
    kind, layer_norm = (rf.GRU, "inside") if cell == "gru_norm" else (rf.LSTM, KINDS[cell][1]["layer_norm"])
    default, same, other = (
        kind(I, 17, dtype="float64", rng=0, layer_norm=layer_norm, **own)
        for own in ({}, {"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-3})
    )
    assert default.layer_norm_eps == 1e-5
    y = default(x)[0]
    assert np.array_equal(same(x)[0], y)
    assert 1e-6 < np.abs(other(x)[0] - y).max() < 1e-1


# Parameters and files


def test_parameters_have_their_names_shapes_and_first_values() -> None:
    sizes = {"weight_ih": (24, 7), "weight_hh": (24, 6), "bias_ih": (24,), "bias_hh": (24,)}
    gains = {"gain_ih": (24,), "gain_hh": (24,), "gain_c": (6,), "bias_c": (6,)}
    for cell in CELLS:
        G, extra = (3, 2) if cell == "gru_norm" else (4, 4)
        own = {n: (G * 6, *s[1:]) if s[0] == 24 else s for n, s in [*sizes.items(), *[*gains.items()][:extra]]}
        layer = make_layer(cell, (7, 6), num_layers=2, bidirectional=True)
        inner = own | {"weight_ih": (G * 6, 12)}
        ends = {"_l0": own, "_l0_reverse": own, "_l1": inner, "_l1_reverse": inner}
        expected = {name + end: shape for end, shapes in ends.items() for name, shape in shapes.items()}
        assert {name: p.shape for name, p in layer.state_dict().items()} == expected
        for name, p in layer.parameters.items():
            if name.startswith("gain"):
                assert (p == 1).all()
            elif name.startswith("bias_c"):
                assert not p.any()
            else:
                assert len(np.unique(p)) > 1
        plain = make_layer("gru" if cell == "gru_norm" else "lstm", (7, 6), num_layers=2, bidirectional=True)
        assert_same_bits({name: layer.parameters[name] for name in plain.parameters}, dict(plain.parameters))


@by_cell
def test_without_biases_there_are_gains(cell: str) -> None:
    names = [name for name in make(cell, bias=False).parameters if not name.startswith("weight")]
    assert names == ["gain_ih_l0", "gain_hh_l0", "gain_c_l0"][: 3 if cell.startswith("lstm") else 2]


@by_cell
def test_files_and_copies_are_the_layer(cell: str, tmp_path: Path) -> None:
    layer = make(cell, num_layers=2, bidirectional=True, layer_norm_eps=0.25)
    x = normal((T, B, I), "float32", 1)
    expected = solve(layer, x)
    layer.save(tmp_path / "layer.npz")
    loaded: Any = rnnfast.load(tmp_path / "layer.npz")
    fresh = make_layer(cell, (I, 17), num_layers=2, bidirectional=True, layer_norm_eps=0.25, rng=5)
    fresh.load_state_dict(layer.state_dict())
    for twin in (loaded, fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert twin.layer_norm_eps == 0.25
        assert repr(twin) == repr(layer)
        assert_same_bits(solve(twin, x), expected)
    assert "layer_norm='inside'" in repr(layer) or "layer_norm='carried'" in repr(layer)
    assert "layer_norm_eps=0.25" in repr(layer)
    other = make_layer("gru" if cell == "gru_norm" else "lstm", (I, 17), num_layers=2, bidirectional=True)
    with pytest.raises((KeyError, ValueError), match="gain_ih_l0"):
        other.load_state_dict(layer.state_dict())
    with pytest.raises((KeyError, ValueError), match="gain_ih_l0"):
        layer.load_state_dict(other.state_dict())


# What is refused


def lstm(**options: Any) -> Any:
    return rf.LSTM(5, 6, **{"layer_norm": "inside", **options})


def gru(**options: Any) -> Any:
    return rf.GRU(5, 6, **{"layer_norm": "inside", **options})


def to_onnx(layer: Any) -> Any:
    onnx: Any = pytest.importorskip("rnnfast.onnx", reason="onnx is not installed")
    return onnx.to_onnx(layer)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a word": (lambda: lstm(layer_norm="outside"), "layer_norm: expected .*inside.*carried.*outside"),
    "a flag": (lambda: lstm(layer_norm=True), "layer_norm: expected .*True"),
    "carried without c": (lambda: gru(layer_norm="carried"), "layer_norm: expected .*inside.*carried"),
    "peephole": (lambda: lstm(peephole=True), "layer_norm.*peephole|peephole.*layer_norm"),
    "coupled gates": (lambda: lstm(coupled_gates=True), "layer_norm.*coupled_gates|coupled_gates.*layer_norm"),
    "projection": (lambda: lstm(proj_size=2), "layer_norm.*proj_size|proj_size.*layer_norm"),
    "reset before": (lambda: gru(reset_after=False), "layer_norm.*reset_after|reset_after.*layer_norm"),
    "candidate dropout": (lambda: lstm(candidate_dropout=0.5), "candidate_dropout: expected 0 .*layer_norm.*0.5"),
    "candidate dropout of a GRU": (lambda: gru(candidate_dropout=0.5), "candidate_dropout: expected 0 .*layer_norm"),
    "eps below 0": (lambda: lstm(layer_norm_eps=-1e-5), "layer_norm_eps: expected .*-1e-05"),
    "eps NaN": (lambda: gru(layer_norm_eps=np.nan), "layer_norm_eps: expected .*nan"),
    "eps infinite": (lambda: lstm(layer_norm_eps=np.inf), "layer_norm_eps: expected .*inf"),
    "eps of a word": (lambda: lstm(layer_norm_eps="small"), "layer_norm_eps: expected .*"),
    "RNN": (lambda: rf.RNN(5, 6, layer_norm="inside"), "layer_norm"),
    "SLSTM": (lambda: rf.SLSTM(5, 6, layer_norm="inside"), "layer_norm"),
    "LSTMCell": (lambda: rf.LSTMCell(5, 6, layer_norm="inside"), "layer_norm"),
    "to_onnx": (lambda: to_onnx(lstm()), "layer: expected layer_norm=None"),
    "to_torch": (lambda: convert.to_torch(lstm()), "layer: expected layer_norm=None"),
    "to_keras": (lambda: convert.to_keras_weights(gru()), "layer: expected layer_norm=None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    f, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        f()


@pytest.mark.parametrize("name", ["gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0"])
def test_an_array_that_does_not_fit_is_refused_by_its_name(name: str) -> None:
    layer = lstm()
    kept = layer.state_dict()
    for bad in (np.ones(5, np.float32), np.ones((1, len(kept[name])), np.float32), None, "gains"):
        with pytest.raises((TypeError, ValueError), match=name):
            layer.load_state_dict({**kept, name: bad})
    assert_same_bits(layer.state_dict(), kept)
    y, _, tape = layer.forward(np.ones((3, 2, 5), np.float32))
    with pytest.raises((TypeError, ValueError), match=name):
        layer.backward(
            tape, y, grads={n: np.zeros(7, np.float32) if n == name else np.zeros_like(p) for n, p in kept.items()}
        )
