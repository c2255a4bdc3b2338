"""Layers whose weights have fewer bits: beside the oracle, their promises bit by bit, their files."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from modules import KINDS, make_layer, normal, parameters_of
from problems import (
    CELLS,
    Array,
    Problem,
    Shape,
    assert_same_bits,
    make_problem,
    make_token_problem,
    named_state,
    parts,
)
from scripts import run_script
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core
from rnnfast._base import formats
from rnnfast._base.tensors import read_tensors
from rnnfast.reference import bfloat16
from rnnfast.reference import quantized as oracle
from rnnfast.reference.quantized import Rows

FORMATS = formats.FORMATS
INT8_CELLS = [cell for cell in CELLS if "slstm" not in cell and not _core.cells[cell].normalises]
RELU = "rnn_relu"
SIZES = ((1, 1), (3, 2), (2, 3), (5, 5), (33, 17), (17, 33), (100, 100))

by_format = pytest.mark.parametrize("form", FORMATS)
by_cell = pytest.mark.parametrize("cell", INT8_CELLS)


# Problems with matrices of integers


def is_projected(cell: str) -> bool:
    return cell.startswith(("lstm", "cifg"))


def with_rows(problem: Problem) -> Problem:
    """Return the problem with the integers and scales of its matrices."""
    n = 4 + len(_core.cells[problem.cell].parameters)
    quantized: Any = [
        tuple(oracle.quantized_weights(a) if a is not None and (k < 2 or k >= n) else a for k, a in enumerate(ps))
        for ps in problem.parameters
    ]
    return replace(problem, parameters=quantized)


def expected(p: Problem) -> dict[str, Array]:
    """Return y and the last state of the oracle."""
    options = p.options("lengths", "resets", "gate_override", "zoneout", "embedding")
    y, state = oracle.forward(p.cell, p.x, p.parameters, p.state0, **options)
    return {"y": y, **named_state(p.cell, state)}


def actual(p: Problem) -> dict[str, Array]:
    """Return those of the kernels."""
    y, state = _core.inference(p.cell, p.x, as_pairs(p), p.state0, **p.options("gate_override", "zoneout", "embedding"))
    return {"y": y, **named_state(p.cell, state)}


def as_pairs(p: Problem) -> list[tuple[Any, ...]]:
    parameters: Any = p.parameters
    return [tuple(tuple(a) if isinstance(a, Rows) else a for a in ps) for ps in parameters]


def assert_near(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert values.dtype == np.float32
        error = relative_error(values, b[name])
        assert error <= TOLERANCE[values.dtype], f"{name}: relative error {error}"


def digits_away_from_ties(p: Problem) -> bool:
    """Return whether what one step makes and then rounds to integers, r * h' or u, has no element next to a tie.

    There the integers depend on the last bit of an activation.
    """
    if p.cell != "gru_reset_before" and p.state_sizes[0] == p.hidden_size:
        return True
    near = False
    round_rows = oracle.quantized_activations

    def watched(a: Any, bounded: bool) -> Rows:
        nonlocal near
        made = round_rows(a, bounded)
        exact = np.asarray(a, np.float64) / np.where(made.scales == 0, 1, made.scales)[:, None]
        near |= bool((np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-4).any())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "quantized_activations", watched)
        expected(p)
    return not near


def settled(cell: str, shape: Shape) -> Problem:
    """Return a problem whose integers no rounding of an activation decides."""
    problems = (with_rows(make_problem(cell, "float32", shape, seed=seed)) for seed in range(50))
    return next(filter(digits_away_from_ties, problems))


# The oracle


def test_bfloat16_is_the_nearest_with_8_bits_ties_to_even() -> None:
    values = np.array(
        [1, 1 + 2**-8, 1 + 2**-7, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.0e-40, 3.4e38, np.inf], np.float32
    )
    rounded = bfloat16.from_bfloat16(bfloat16.to_bfloat16(values))
    want = [1, 1, 1 + 2**-7, 1 + 2**-6, 1 + 2**-7, rounded[5], np.inf, np.inf]
    assert np.array_equal(rounded, np.array(want, np.float32))
    assert abs(rounded[5] + 3.0e-40) < 2.0**-134
    assert np.isnan(bfloat16.from_bfloat16(bfloat16.to_bfloat16(np.array([0x7F800001], np.uint32).view(np.float32))))


@pytest.mark.parametrize("bounded", [False, True])
def test_a_product_of_integers_is_as_near_as_their_scales_say(bounded: bool) -> None:
    a, w = normal((7, 50), np.float32, 0), normal((9, 50), np.float32, 1)
    rows, weights = oracle.quantized_activations(a, bounded), oracle.quantized_weights(w)
    per_element = np.abs(a).max(1)[:, None] * weights.scales / 2 + np.abs(w).max(1) * rows.scales[:, None] / 2
    error = np.abs(oracle.part(a, weights, bounded) - a.astype(np.float64) @ w.T.astype(np.float64))
    assert (error <= 50 * per_element * 1.01).all()
    assert np.abs(rows.q).max() <= 127
    assert np.abs(oracle.dequantized(weights) - w).max() <= weights.scales.max() / 2 * 1.001


def test_tiny_rows_are_zeros_and_others_use_all_integers() -> None:
    w = np.array([[0, 0], [2.0**-101, 0], [2.0**-100, 0], [3e38, -3e38], [1, 0.5]], np.float32)
    q, scales = oracle.quantized_weights(w)
    assert q.tolist() == [[0, 0], [0, 0], [127, 0], [127, -127], [127, 64]]
    assert (scales > 0).tolist() == [False, False, True, True, True]


def test_layers_round_as_the_oracle_does() -> None:
    layer = rnnfast.GRU(33, 17, rng=0)
    layer.weight_ih_l0[3] = 0
    layer.weight_hh_l0[4] *= 2.0**-110
    layer.weight_hh_l0[5] *= 2.0**-90
    for name, w in layer.parameters.items():
        if not name.startswith("weight"):
            continue
        q = layer.quantize("int8")
        rows = oracle.quantized_weights(w)
        assert np.array_equal(q.parameters[name], rows.q)
        assert np.array_equal(q.parameters[name + "_scale"], rows.scales)
        bits = layer.quantize("bfloat16").parameters[name]
        assert np.array_equal(bits, bfloat16.to_bfloat16(w))
        assert np.array_equal(layer.quantize("bfloat16").dequantize().parameters[name], bfloat16.from_bfloat16(bits))
        assert np.array_equal(q.dequantize().parameters[name], oracle.dequantized(rows))


# The kernels' integers


SPECIAL = np.array(
    [
        [0.0, 0.0, 0.0],
        [np.nan, 1, 2],
        [1, -np.inf, 2],
        [2.0**-101, 0, -(2.0**-101)],
        [2.0**-100, 2.0**-101, 0],
        [3e34, -3e34, 1.5e34],
        [1.0, 0.5 / 127, 1.5 / 127],  # near ties
        [-127, 62.5, 63.5],  # ties
        [0.25, -0.125, 1e-30],
        [200, 100, -1],
    ],
    np.float32,
)


def products(a: Array, w: Array) -> Array:
    """Return float(sum) * scale [N,O] of rows [N,K] by integers [O,K], as the kernels have them.

    It is what a step with relu makes of w, and of -w where that is above 0. Sums up to 2^22 show all their digits.
    """
    O = 2 * len(w)
    w_ih, w_hh = (np.concatenate([w, -w]), np.ones(O, np.float32)), (np.zeros((O, O), np.int8), np.zeros(O, np.float32))
    y, _ = _core.inference(RELU, a[np.newaxis], [(w_ih, w_hh, None, None)])
    above, below = np.split(y[0], 2, axis=1)
    found: Array = above - below
    return found


def test_sums_of_products_are_the_oracles_integers() -> None:
    rng = np.random.default_rng(0)
    for N, O, K in (
        (1, 1, 1),
        (1, 4, 2),
        (10, 5, 3),
        (2, 17, 5),
        (3, 33, 64),
        (7, 16, 65),
        (4, 100, 200),
        (1, 3, 5000),
    ):
        a = (rng.standard_normal((N, K)) * 10.0 ** rng.integers(-3, 3, (N, 1))).astype(np.float32)
        if K == 3:
            a = SPECIAL
        w = rng.integers(-127, 128, (O, K)).astype(np.int8)
        w[0], w[-1] = 127, -127
        if N > 1 and K > 3:
            a[-1] = np.abs(a[-1]).max()  # the largest sums of all
        rows = oracle.quantized_activations(a, bounded=False)
        sums = oracle.sums(rows, Rows(w, np.ones(O, np.float32)))
        assert np.array_equal(products(a, w), sums.astype(np.float32) * rows.scales[:, np.newaxis], equal_nan=True)


@by_cell
def test_one_step_from_any_state(cell: str) -> None:
    for (I, H), k in zip(SIZES, range(100), strict=False):
        for P in (0, (H + 1) // 2) if is_projected(cell) and H > 1 else (0,):
            shape = Shape(1, 1 + k % 4, I, H, D=1 + k % 2, P=P)
            p = settled(cell, shape)
            assert_near(actual(p), expected(p))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("I", "H"), SIZES)
def test_relu_networks_have_the_oracles_bits_at_all_steps(I: int, H: int, bias: bool) -> None:
    p = with_rows(make_problem(RELU, "float32", Shape(9, 5, I, H, D=2), bias=bias))
    assert_same_bits(actual(p), expected(p))


@by_cell
def test_each_step_of_a_sequence_follows_from_the_one_before(cell: str) -> None:
    p = with_rows(make_problem(cell, "float32", Shape(6, 3, 7, 10)))
    state: Any = p.state0
    for t in range(6):
        step = replace(p, x=p.x[t : t + 1], state0=state)
        found = actual(step)
        if digits_away_from_ties(step):
            assert_near(found, expected(step))
        state = tuple(found[name] for name in _core.cells[cell].states)
    y = actual(p)["y"]
    assert np.array_equal(y[-1], state[0][0])


@by_cell
def test_states_may_be_beyond_1_and_sizes_of_rows_as_far_apart_as_they_like(cell: str) -> None:
    p = make_problem(cell, "float32", Shape(1, 4, 6, 9))
    big = np.array([1, 30, 1e-3, 0], np.float32)[:, None]
    h, *others = p.state0 or ()
    p = replace(p, x=p.x * big, state0=(big if h is None else h * big, *others))
    for w in p.parameters[0][:2]:
        assert w is not None
        w[0], w[1], w[2] = 0, w[1] * 1e-20, w[2] * 100
    p = with_rows(p)
    if digits_away_from_ties(p):
        assert_near(actual(p), expected(p))


HELD = {"lstm": {"i": 0.25, "o": 1.0}, "cifg": {"g": -0.5}, "gru": {"z": 0.5}, "gru_reset_before": {"r": 0.75}}


@pytest.mark.parametrize("cell", HELD)
def test_held_gates_and_the_mean_of_zoneout(cell: str) -> None:
    p = with_rows(make_problem(cell, "float32", Shape(1, 3, 5, 8)))
    p = replace(p, gate_override=HELD[cell], zoneout=(0.25, 0.5)[: len(_core.cells[cell].states)])
    assert_near(actual(p), expected(p))


# Layers


def stack_of_the_oracle(q: Any, x: Array, state: Any = None, **options: Any) -> tuple[Array, list[Array]]:
    """Run a quantised layer's stack by the oracle; return y and h of the last state."""
    y, last = x, []
    for k in range(q.num_layers):
        ends = [f"_l{k}", f"_l{k}_reverse"][: q.directions]
        rows: Any = {name: Rows(*a) if isinstance(a, tuple) else a for name, a in q.operands.items()}
        own = slice(k * q.directions, (k + 1) * q.directions)
        first = None if state is None else tuple(s[own] for s in parts(state))
        y, (h, *_) = oracle.forward(q.cell, y, [parameters_of(q, rows, end) for end in ends], first, **options)
        options.pop("embedding", None)
        last.append(h)
    return y, last


def test_stacks_directions_lengths_and_resets_of_relu_have_the_oracles_bits() -> None:
    q = rnnfast.RNN(7, 10, 2, "relu", bidirectional=True, rng=0).quantize("int8")
    x, h0 = normal((11, 5, 7), np.float32, 1), np.abs(normal((4, 5, 10), np.float32, 2))
    lengths, resets = np.array([11, 0, 4, 7, 1]), np.random.default_rng(0).random((11, 5)) < 0.2
    y, h = q(x, h0, lengths=lengths, resets=resets)
    want, last = stack_of_the_oracle(q, x, h0, lengths=lengths, resets=resets)
    assert np.array_equal(y, want)
    real = lengths > 0  # others keep the initial state
    assert np.array_equal(h[:, real], np.concatenate(last)[:, real])


@pytest.mark.parametrize("V", [None, 6])
def test_tokens_are_rows_of_the_embedding_or_one_hot(V: int | None) -> None:
    for cell in (RELU, "lstm", "gru"):
        p = with_rows(make_token_problem(cell, "float32", Shape(8, 3, 9, 12, D=2), V=V))
        rows: Any = np.eye(9, dtype=np.float32) if V is None else p.embedding
        dense = replace(p, x=rows[p.x], embedding=None)
        assert_same_bits(actual(p), actual(dense))
    p = with_rows(make_token_problem(RELU, "float32", Shape(8, 3, 9, 12), V=V))
    assert_same_bits(actual(p), expected(p))


def layers(form: Any) -> dict[str, Any]:
    """Return quantised layers of every cell that the format has."""
    found = {}
    for cell in CELLS if form == "bfloat16" else INT8_CELLS:
        one_head = {"num_heads": 1} if KINDS[cell][0] == "SLSTM" else {}
        layer = make_layer(cell, (7, 19), num_layers=2, learn_initial_state=True, **one_head)
        if is_projected(cell) and layer.layer_norm is None:
            found[f"{cell} projected"] = make_layer(cell, (7, 19), num_layers=2, proj_size=5)
        found[cell] = layer
        for name in ("initial_h", "initial_c"):
            if name in layer.parameters:
                layer.parameters[name][...] = normal(layer.parameters[name].shape, np.float32, 3) / 2
    found["zoneout"] = make_layer("lstm", (7, 19), zoneout=(0.25, 0.5))
    found["no bias"] = make_layer("gru", (7, 19), bias=False)
    found["masks of training"] = make_layer(
        "lstm", (7, 19), num_layers=2, dropout=0.5, weight_dropout=0.5, recurrent_dropout=0.5, candidate_dropout=0.5
    )
    return {name: layer.quantize(form) for name, layer in found.items()}


QUANTIZED = {(form, name): q for form in FORMATS for name, q in layers(form).items()}
by_layer = pytest.mark.parametrize("q", QUANTIZED.values(), ids=[" ".join(key) for key in QUANTIZED])
OF_BFLOAT16 = {name: q for (form, name), q in QUANTIZED.items() if form == "bfloat16"}


def calls(layer: Any) -> dict[str, tuple[Any, Any]]:
    """Return y and the state of calls with all options."""
    x = normal((9, 4, 7), np.float32, 0)
    lengths, resets = np.array([9, 0, 5, 2]), np.random.default_rng(1).random((9, 4)) < 0.3
    held = {"o": 0.5} if "o" in _core.cells[layer.cell].held else None
    tokens = np.random.default_rng(2).integers(0, 7, (9, 4))
    return {
        "plain": layer(x),
        "one": layer(x[:, 0]),
        "lengths": layer(x, lengths=lengths, resets=resets),
        "last": layer(x, outputs="last", gate_override=held),
        "packed": layer(rnnfast.pack_padded(x, [9, 7, 3, 1])),
        "one-hot": layer(tokens),
        "embedded": layer(tokens, embedding=normal((7, 7), np.float32, 3)),
        "many": layer(normal((3, 40, 7), np.float32, 4)),
        "long": layer(normal((300, 1, 7), np.float32, 5)),
    }


def flat(results: dict[str, tuple[Any, Any]]) -> dict[str, Array]:
    """Return arrays by name."""
    found = {}
    for name, (y, state) in results.items():
        found[name] = y.data if isinstance(y, rnnfast.PackedSequence) else y
        found |= {f"{name} {k}": part for k, part in enumerate(parts(state))}
    return found


@pytest.mark.parametrize("q", OF_BFLOAT16.values(), ids=OF_BFLOAT16)
def test_bfloat16_has_the_bits_of_the_layer_of_rounded_weights(q: Any) -> None:
    assert_same_bits(flat(calls(q)), flat(calls(q.dequantize())))
    stream, twin = q.stream(3), q.dequantize().stream(3)
    x = normal((5, 3, 7), np.float32, 0)
    assert np.array_equal(stream.run(x), twin.run(x))


@pytest.mark.parametrize(("I", "H"), SIZES)
def test_bfloat16_of_awkward_sizes(I: int, H: int) -> None:
    for cell in ("lstm", "gru_reset_before", "rnn_relu_leaky"):
        q = make_layer(cell, (I, H), bidirectional=True).quantize("bfloat16")
        for shape in ((2, 1, I), (3, 9, I)):
            x = normal(shape, np.float32, 0)
            assert_same_bits(flat({"y": q(x)}), flat({"y": q.dequantize()(x)}))


@by_layer
def test_calls_do_not_depend_on_threads(q: Any) -> None:
    results = []
    for n in (1, 2, 3, 4):
        with rnnfast.threads(n):
            results.append(flat(calls(q)))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@by_layer
def test_sequences_do_not_depend_on_neighbours_cuts_and_padding(q: Any) -> None:
    x = normal((12, 11, 7), np.float32, 0)
    y, state = q(x)
    for b in (0, 4, 10):
        alone, last = q(x[:, b])
        assert np.array_equal(alone, y[:, b])
        assert all(np.array_equal(a, s[:, b]) for a, s in zip(parts(last), parts(state), strict=True))
    first, middle = q(x[:5])
    second, last = q(x[5:], middle)
    assert np.array_equal(np.concatenate([first, second]), y)
    assert all(map(np.array_equal, parts(last), parts(state)))
    shorter, at_end = q(np.where(np.arange(12)[:, None, None] < 5, x, np.nan), lengths=[5] * 11)
    assert np.array_equal(shorter[:5], first)
    assert all(map(np.array_equal, parts(at_end), parts(middle)))


@by_layer
def test_copies_have_the_bits_of_calls(q: Any, tmp_path: Path) -> None:
    x = normal((7, 3, 7), np.float32, 0)
    y, _ = q(x)
    q.save(tmp_path / "q")
    twins = [copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q)), rnnfast.load(tmp_path / "q")]
    for twin in [*twins, *(pickle.loads(pickle.dumps(twin)) for twin in twins)]:
        assert np.array_equal(twin(x)[0], y)
        assert np.array_equal(twin.stream(3).run(x), y)


@by_layer
def test_streams_have_the_bits_of_calls(q: Any) -> None:
    x = normal((7, 3, 7), np.float32, 0)
    y, _ = q(x)
    stream = q.stream(3)
    steps = [stream.step(x_t) for x_t in x[:4]]
    assert np.array_equal([*steps, *stream.run(x[4:])], y)
    one = q.stream()
    assert np.array_equal([one.step(x_t) for x_t in x[:, 0]], q(x[:, 0])[0])


@by_layer
def test_weights_are_packed_once(q: Any) -> None:
    """By the first call, for all others of any thread; the bits are those of the arrays as they are, zeros or not."""
    x = normal((9, 3, q.input_size), np.float32, 1)
    layer = q.dequantize()
    layer.weight_hh_l0[:, 1:] = 0
    made = layer.quantize(q.format)
    tokens = np.random.default_rng(0).integers(0, q.input_size, (9, 3))
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: made(x)[0], range(6)))
    packed = made._packed[0]
    assert all(np.array_equal(y, results[0]) for y in results)
    for given, embedding in ((x, None), (tokens, None), (tokens % 5, x[0, :1].repeat(5, axis=0))):
        made(given, embedding=embedding)
        assert made._packed[0] is packed
        options: Any = {"embedding": embedding, "layer_norm_eps": made.eps}
        as_they_are, _ = _core.inference(made.cell, given, made.of_layer(0), **options)
        assert np.array_equal(_core.inference(made.cell, given, packed, **options)[0], as_they_are)
    assert "packed" not in made.__getstate__()["attributes"]
    assert np.array_equal(pickle.loads(pickle.dumps(made))(x)[0], results[0])
    if not made.bidirectional:
        assert made.stream().__reduce__()[1][0] is made


def test_packed_parameters_that_do_not_fit_are_refused() -> None:
    x, layer = np.zeros((2, 1, 3), np.float32), rnnfast.LSTM(3, 4, rng=0)
    own, other = (made.quantize("int8")._for_calls(0)[0] for made in (layer, rnnfast.LSTM(5, 4)))
    with pytest.raises(TypeError, match="parameters: expected arrays of fewer bits, got others"):
        _core.pack("lstm", layer.of_layer(0)[0])
    with pytest.raises(ValueError, match="parameters: expected ones packed for gru, got some for lstm"):
        _core.inference("gru", x, [own])
    with pytest.raises(TypeError, match="parameters: expected both directions packed or none, got one"):
        _core.inference("lstm", x, [own, layer.quantize("int8").of_layer(0)[0]])
    with pytest.raises(ValueError, match=r"w_ih: expected shape \(16, 3\), got \(16, 5\)"):
        _core.inference("lstm", x, [own, other])
    with pytest.raises(TypeError, match="w_ih: expected float32 or float64 to train, got fewer bits"):
        _core.forward("lstm", x, [own])
    assert own.nbytes > 0


@by_format
def test_both_directions_and_the_last_output_alone(form: Any) -> None:
    q: Any = rnnfast.LSTM(7, 19, 2, bidirectional=True, rng=0).quantize(form)
    twin: Any = rnnfast.LSTM(7, 19, 2, bidirectional=True, batch_first=True, rng=0).quantize(form)
    x, lengths = normal((300, 3, 7), np.float32, 0), [300, 1, 170]
    y, (h, c) = q(x, lengths=lengths)
    last, (h_alone, c_alone) = q(x, lengths=lengths, outputs="last")
    assert np.array_equal(h_alone, h)
    assert np.array_equal(c_alone, c)
    assert np.array_equal(last, np.concatenate([h[2], h[3]], axis=1))
    assert np.array_equal(twin(x.swapaxes(0, 1), lengths=lengths)[0].swapaxes(0, 1), y)


def test_a_sequence_with_nan_or_infinity_concerns_no_other() -> None:
    x = normal((6, 3, 5), np.float32, 0)
    for form, bad in ((form, bad) for form in FORMATS for bad in (np.nan, np.inf)):
        for cell in ("lstm", "gru", "rnn_tanh"):
            q = make_layer(cell, (5, 20)).quantize(form)
            y, _ = q(x)
            x_bad = x.copy()
            x_bad[2, 1, 3] = bad
            found, _ = q(x_bad)
            assert np.array_equal(found[:, [0, 2]], y[:, [0, 2]])
            assert np.array_equal(found[:2], y[:2])
            if form == "int8" or np.isnan(bad):
                assert np.isnan(found[2:, 1]).all()


def test_int8_is_near_the_layer_that_it_was_made_of() -> None:
    for cell in INT8_CELLS:
        layer = make_layer(cell, (40, 64))
        x = normal((20, 4, 40), np.float32, 0)
        (y, _), (near, _) = layer(x), layer.quantize("int8")(x)
        assert np.abs(near - y).max() < 0.03 * np.abs(y).max()


# Every instruction set

DIGEST = """
import hashlib, json, sys
sys.path.insert(0, {tests!r})
import numpy as np
import test_quantized as t
from rnnfast import _core
found = hashlib.sha256()
for I, H in t.SIZES:
    p = t.with_rows(t.make_problem(t.RELU, "float32", t.Shape(5, 4, I, H, D=2)))
    found.update(t.actual(p)["y"].tobytes())
    found.update(t.products(p.x[0], p.parameters[0][0].q).tobytes())
config = _core.config()
print(json.dumps([found.hexdigest(), config["isa"], config["integers"], config["available_integers"]]))
"""


@pytest.mark.skipif(bool(os.environ.get("RNNFAST_ISA")), reason="runs each of the instruction sets")
def test_all_instruction_sets_have_the_same_integers() -> None:
    script = DIGEST.format(tests=str(Path(__file__).parent))
    digests = {}
    for isa in _core.config()["available"]:
        digest, _, _, integers = json.loads(run_script(script, RNNFAST_ISA=isa, RNNFAST_INTEGERS=""))
        digests[isa] = digest
        for kernel in integers:
            digest, own, chosen, _ = json.loads(run_script(script, RNNFAST_ISA=isa, RNNFAST_INTEGERS=kernel))
            assert (own, chosen) == (isa, kernel)
            digests[isa, kernel] = digest
    assert len(set(digests.values())) == 1, digests


# Objects and files


@by_format
def test_a_quantised_layer_is_for_inference_alone(form: Any) -> None:
    layer = rnnfast.LSTM(3, 4, rng=0)
    q: Any = layer.quantize(form)
    before = q.state_dict()["weight_hh_l0"].copy()
    layer.weight_hh_l0 *= 2
    assert np.array_equal(q.weight_hh_l0, before)
    assert rnnfast.num_parameters(q) == rnnfast.num_parameters(layer)
    x = np.ones((2, 1, 3), np.float32)
    with pytest.raises(TypeError, match=r"^forward: expected a layer to train, got LSTM"):
        q.forward(x)
    with pytest.raises(TypeError, match=r"^backward: expected a layer to train"):
        q.backward(None)
    for refused in (rnnfast.gradient_flow, lambda q, x, _: rnnfast.tbptt(q, x, 1, 1)):
        with pytest.raises(TypeError, match=r"^layer: expected .*, got Quantized"):
            refused(q, x, x)
    with pytest.raises(TypeError, match=r"^layer: expected .*, got Quantized"):
        rnnfast.initialize(q, "xavier")
    with pytest.raises(TypeError, match=r"^params\['weight_ih_l0'\]: expected dtype"):
        rnnfast.training.SGD(q, 0.1)
    for name in ("weight_ih_l0", "num_layers", "zoneout", "operands", "parameters", "format", "names_of"):
        with pytest.raises(AttributeError, match=f"^{name}: expected no assignment"):
            setattr(q, name, 1)
    with pytest.raises(AttributeError, match=r"^format: expected no assignment"):
        del q.format
    q.note = "a user's own"
    with pytest.raises(ValueError, match="read-only"):
        q.bias_ih_l0[0] = 1
    model = rnnfast.Modules(readout=rnnfast.Linear(4, 2), rnn=q)
    with pytest.raises(ValueError, match=r"^rnn.weight_ih_l0: expected an array to write to"):
        model.load_state_dict(model.state_dict())


@by_format
def test_a_quantised_layer_of_a_users_class_is_of_its_base(form: Any) -> None:
    class Own(rnnfast.GRU):
        def __init__(self) -> None:
            super().__init__(3, 4, rng=0)

    q = Own().quantize(form)
    assert repr(q) == f"GRU(3, 4).quantize({form!r})"
    assert type(q.dequantize()) is rnnfast.GRU


TYPES = {"bfloat16": {"F32", "BF16"}, "int8": {"F32", "I8"}}


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry for name, entry in found.items() if name != "__metadata__"}


@by_format
def test_files_have_the_types_of_the_format(form: Any, tmp_path: Path) -> None:
    q = rnnfast.LSTM(3, 5, proj_size=2, learn_initial_state=True, rng=0).quantize(form)
    q.save(tmp_path / "q")
    types = {name: entry["dtype"] for name, entry in header(tmp_path / "q").items()}
    assert set(types.values()) == TYPES[form]
    for name, dtype in types.items():
        assert (dtype == "F32") == (not name.startswith("weight") or name.endswith("_scale"))
    model = rnnfast.Modules(
        rnn=q, embedding=np.ones((2, 3), np.float32), inner={"q": rnnfast.GRU(3, 5, rng=0).quantize(form)}
    )
    model.save(tmp_path / "model")
    loaded = rnnfast.load(tmp_path / "model")
    assert repr(loaded) == repr(model)
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_bfloat16_of_a_file_is_what_others_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    layer = rnnfast.GRU(3, 4, rng=0)
    layer.quantize("bfloat16").save(tmp_path / "q")
    for name, tensor in load_file(tmp_path / "q").items():
        rounded = torch.from_numpy(layer.parameters[name])
        assert torch.equal(tensor, rounded.to(tensor.dtype))


def changed(change: Callable[[dict[str, Array]], object], form: Any = "int8") -> dict[str, Array]:
    """Return the arrays of a quantised RNN(3, 4), changed."""
    arrays = {name: a.copy() for name, a in rnnfast.RNN(3, 4, rng=0).quantize(form).state_dict().items()}
    change(arrays)
    return arrays


def put(name: str, place: Any, value: Any) -> Callable[[dict[str, Array]], object]:
    return lambda arrays: arrays[name].__setitem__(place, value)


def other(name: str, array: Any) -> Callable[[dict[str, Array]], object]:
    return lambda arrays: arrays.__setitem__(name, array)


def zero_row(arrays: dict[str, Array]) -> None:
    arrays["weight_ih_l0"][2] = 0
    arrays["weight_ih_l0_scale"][2] = 0


HOSTILE = {
    "no scales": (lambda arrays: arrays.pop("weight_hh_l0_scale"), "weight_hh_l0_scale: expected an array"),
    "no matrix": (lambda arrays: arrays.pop("weight_hh_l0"), "weight_hh_l0: expected an array"),
    "one more": (other("weight_hr_l0", np.zeros((2, 4), np.int8)), "weight_hr_l0"),
    "shape": (other("weight_ih_l0", np.ones((4, 2), np.int8)), r"weight_ih_l0: expected shape \(4, 3\)"),
    "scales' shape": (
        other("weight_ih_l0_scale", np.ones(3, np.float32)),
        r"weight_ih_l0_scale: expected shape \(4,\)",
    ),
    "dtype": (other("weight_ih_l0", np.ones((4, 3), np.float32)), "weight_ih_l0: expected dtype int8"),
    "double": (other("weight_ih_l0_scale", np.ones(4)), "weight_ih_l0_scale: expected dtype float32"),
    "zero scale": (put("weight_ih_l0_scale", 2, 0), "weight_ih_l0_scale: expected more than 0 .* 0 of row 2"),
    "negative scale": (put("weight_ih_l0_scale", 1, -1), "weight_ih_l0_scale: expected numbers of at least 0"),
    "nan scale": (put("weight_hh_l0_scale", 1, np.nan), "weight_hh_l0_scale: expected finite"),
    "infinite scale": (put("weight_hh_l0_scale", 1, np.inf), "weight_hh_l0_scale: expected finite"),
    "large scale": (
        put("weight_hh_l0_scale", 1, 3e38),
        "weight_hh_l0_scale: expected numbers whose 127-fold is finite",
    ),
    "-128": (put("weight_hh_l0", (0, 0), -128), "weight_hh_l0: expected integers from -127"),
    "nan bias": (put("bias_hh_l0", 0, np.nan), "bias_hh_l0: expected finite"),
}


def write(path: Path, arrays: dict[str, Array], form: str = "int8", **description: Any) -> None:
    layer = {"class": "RNN", "arguments": {"input_size": 3, "hidden_size": 4}}
    arguments = {"layer": layer, "format": form, **description}
    text = json.dumps({"class": "Quantized", "arguments": arguments})
    path.write_bytes(safetensors.numpy.save(arrays, {"rnnfast": text}))


@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_that_no_layer_has_are_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    write(tmp_path / "q", changed(change))
    with pytest.raises(ValueError, match=f"path: expected a file that save has written.*{message}"):
        rnnfast.load(tmp_path / "q")


def test_a_row_of_zeros_has_a_scale_of_zero(tmp_path: Path) -> None:
    write(tmp_path / "q", changed(zero_row))
    layer: Any = rnnfast.load(tmp_path / "q")
    assert np.isfinite(layer(np.ones((2, 1, 3), np.float32))[0]).all()


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "format": {"format": "int4"},
    "another format": {"format": "bfloat16"},
    "no format": {"format": None},
    "no layer": {"layer": None},
    "a list": {"layer": []},
    "unknown": {"layer": {"class": "LSTX", "arguments": {}}},
    "no arguments": {"layer": {"class": "RNN"}},
    "another class": {"layer": {"class": "Linear", "arguments": {"in_features": 3, "out_features": 4}}},
    "a cell": {"layer": {"class": "RNNCell", "arguments": {"input_size": 3, "hidden_size": 4}}},
    "of double": {"layer": {"class": "RNN", "arguments": {"input_size": 3, "hidden_size": 4, "dtype": "float64"}}},
    "sizes": {"layer": {"class": "RNN", "arguments": {"input_size": 3, "hidden_size": 5}}},
    "huge": {"layer": {"class": "RNN", "arguments": {"input_size": 3, "hidden_size": 2**27}}},
    "rng": {"layer": {"class": "RNN", "arguments": {"input_size": 3, "hidden_size": 4, "rng": 0}}},
    "itself": {"layer": {"class": "Quantized", "arguments": {"layer": {}, "format": "int8"}}},
    "modules": {"layer": {"class": "Modules", "modules": {}}},
    "kept": {"kept": None},
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "q", changed(lambda _: None), **DESCRIPTIONS[name])
    with pytest.raises(ValueError, match="path: expected a file that save has written"):
        rnnfast.load(tmp_path / "q")


@by_format
def test_damaged_files_are_refused_or_read(form: Any, tmp_path: Path) -> None:
    path, rng = tmp_path / "q", np.random.default_rng(0)
    rnnfast.RNN(3, 4, rng=0).quantize(form).save(path)
    whole = path.read_bytes()
    assert read_tensors(path)[1].keys() == header(path).keys()
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: len(data) if rng.random() < 0.7 else rng.integers(len(data))])
        with suppress(ValueError):
            q: Any = rnnfast.load(path)
            q(np.ones((2, 1, q.input_size), np.float32))


@by_format
@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0"])
def test_parameters_that_are_not_finite_are_named(name: str, value: float, form: Any) -> None:
    layer = rnnfast.LSTM(3, 4, rng=0)
    layer.parameters[name].flat[3] = value
    if np.isfinite(value) and not (form == "bfloat16" and name == "weight_hh_l0"):
        layer.quantize(form)
        return
    with pytest.raises(ValueError, match=f"^{name}: expected finite numbers"):
        layer.quantize(form)
