"""Products whose factors are rounded to bfloat16: beside the oracle, their bits, `set_precision`, what has none."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import make_layer, normal, results
from problems import (
    CELLS,
    Array,
    Problem,
    Results,
    Shape,
    identify,
    integers,
    make_problem,
    make_token_problem,
    named_gradients,
    ragged,
)
from scripts import run_script

import rnnfast
from rnnfast import _core, reference
from rnnfast.reference.bfloat16 import from_bfloat16, to_bfloat16

ROUNDED = [cell for cell in CELLS if not _core.cells[cell].normalises]
LAYERS = [cell for cell in ROUNDED if not cell.startswith("slstm")]
SHAPES = (Shape(1, 1, 1, 1), Shape(3, 2, 4, 3), Shape(2, 5, 33, 17, 2), Shape(5, 3, 20, 70), Shape(2, 7, 130, 40, 2))
HARDWARE = "needs a processor with AVX512_BF16"


def solve_core(p: Problem, **options: Any) -> Results:
    """Return all results of the kernels, with rounded factors."""
    options = {"rounded": True, **options, **p.options("resets", "recurrent_factors")}
    y, last, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, None, p.embedding, **options)
    gradients = named_gradients(p.cell, *_core.backward(tape, p.dy, p.dstate))
    return {"y": y, **{f"last {n}": s for n, s in enumerate(last)}, **gradients}


def solve_oracle(p: Problem, *, rounded: bool = True) -> Results:
    """Return all results of the oracle."""
    options = p.options("resets", "embedding", "recurrent_factors")
    y, last, tape = reference.forward(p.cell, p.x, p.parameters, p.state0, rounded=rounded, **options)
    gradients = named_gradients(p.cell, *reference.backward(tape, p.dy, p.dstate))
    return {"y": y, **{f"last {n}": s for n, s in enumerate(last)}, **gradients}


def assert_near(actual: Results, expected: Results) -> None:
    """Compare all but what the last digit of a number has rounded to another neighbour, and bound that."""
    assert actual.keys() == expected.keys()
    errors = []
    for name, a in actual.items():
        scale = np.abs(expected[name]).max(initial=1e-3)
        error = np.abs(a - expected[name]) / scale
        assert error.max(initial=0) < 0.02, name
        errors.append(error.ravel())
    every = np.concatenate(errors)
    assert np.median(every) < 2e-7
    assert np.mean(every < 1e-5) > 0.8


@pytest.mark.parametrize("shape", SHAPES, ids=identify)
@pytest.mark.parametrize("cell", ROUNDED)
def test_results_are_those_of_the_oracle(cell: str, shape: Shape) -> None:
    p = make_problem(cell, "float32", shape, heads=1)
    assert_near(solve_core(p), solve_oracle(p))
    once = make_problem(cell, "float32", shape._replace(T=1), heads=1)
    y, expected = solve_core(once)["y"], solve_oracle(once)["y"]
    assert np.abs(y - expected).max() < 1e-6 * max(1, np.abs(expected).max())  # nothing is rounded but what is given


@pytest.mark.parametrize("shape", [Shape(3, 2, 4, 7, 1, 3), Shape(2, 5, 33, 40, 2, 17), Shape(4, 3, 5, 70, 1, 33)])
@pytest.mark.parametrize("cell", ["lstm", "cifg_peephole"])
def test_projections_are_products(cell: str, shape: Shape) -> None:
    p = make_problem(cell, "float32", shape)
    assert_near(solve_core(p), solve_oracle(p))
    assert_near(
        solve_core(replace(p, resets=np.arange(shape.T * shape.B).reshape(shape[:2]) % 3 == 0)),
        solve_oracle(replace(p, resets=np.arange(shape.T * shape.B).reshape(shape[:2]) % 3 == 0)),
    )


@pytest.mark.parametrize("by_gate", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_dropped_h_is_a_factor(cell: str, *, by_gate: bool) -> None:
    """What h' is multiplied by is 0 or 2 here, which changes no rounding."""
    for shape in (Shape(3, 2, 4, 7), Shape(2, 5, 33, 17, 2), Shape(4, 3, 20, 70)):
        p = make_problem(cell, "float32", shape)
        gates = (_core.cells[cell].num_gates,) if by_gate else ()
        kept = np.random.default_rng(0).random((shape.D, shape.B, *gates, shape.H)) < 0.5
        p = replace(p, recurrent_factors=2 * kept.astype(np.float32))
        assert_near(solve_core(p), solve_oracle(p))


@pytest.mark.parametrize("V", [None, 6])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "slstm"])
def test_tokens_are_what_their_rows_are(cell: str, V: int | None) -> None:
    """One-hot ones, or rows of an embedding, as numbers: in full precision and rounded."""
    for shape in (Shape(4, 3, 5, 17), Shape(9, 4, 20, 33, 2)):
        p = make_token_problem(cell, "float32", shape, V=V)
        table = np.eye(shape.I, dtype=np.float32) if p.embedding is None else p.embedding
        for rounded in (False, True):
            tokens = solve_core(p, rounded=rounded)
            rows = solve_core(replace(p, x=table[p.x], embedding=None), rounded=rounded)
            dx = rows.pop("dx")
            if V is not None:
                rows["dx"] = np.zeros_like(table)
                np.add.at(rows["dx"], p.x, dx)
            assert tokens.keys() == rows.keys()
            assert np.array_equal(tokens["y"], rows["y"])
            for name, a in rows.items():
                assert np.abs(tokens[name] - a).max() < 2e-6 * max(1, np.abs(a).max()), name
        if V is None or cell != "slstm":
            assert_near(solve_core(p), solve_oracle(p))


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_factors_are_rounded(cell: str) -> None:
    p = make_problem(cell, "float32", Shape(4, 3, 40, 30))
    exact, rounded = solve_oracle(p, rounded=False), solve_core(p)
    for name, a in rounded.items():
        assert 1e-4 < np.abs(a - exact[name]).max() / np.abs(exact[name]).max() < 0.1, name


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("H", [1, 3, 16, 20, 33, 70])
@pytest.mark.parametrize(("T", "B", "I"), [(1, 1, 1), (2, 3, 5), (5, 2, 16), (17, 3, 40), (3, 33, 3), (70, 8, 2)])
def test_small_integers_are_exact(T: int, B: int, I: int, H: int, D: int) -> None:
    """Where no sum exceeds 2^8, what bfloat16 holds, nothing is rounded: bits are those of full precision."""
    rng = np.random.default_rng(T * H)
    p = integers(make_problem("rnn_relu", "float32", Shape(T, B, I, H, D)), rng)
    full = solve_core(p, rounded=False)
    largest = max(np.abs(full[name]).max() for name in full if name != "dw_ih")
    keep = {name: a for name, a in full.items() if largest <= 256 or name == "y"}
    rounded = solve_core(p)
    for name, a in keep.items():
        assert np.array_equal(a, rounded[name]), name


def test_nan_and_infinity_pass() -> None:
    """A NaN whose upper half would round to infinity stays one; numbers near the end of the range become infinite."""
    x = np.zeros((1, 3, 2), np.float32)
    x.view(np.uint32)[0, 0, 0] = 0x7F800001
    x[0, 1, 1], x[0, 2, 0] = np.inf, np.finfo(np.float32).max
    weights = [(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32), None, None)]
    y, _ = _core.inference("rnn_relu", x, weights, rounded=True)
    assert np.isnan(y[0, 0, 0])
    assert y[0, 1, 1] == y[0, 2, 0] == np.inf


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh_leaky"])
@pytest.mark.parametrize("B", [1, 4, 5])
def test_bits_depend_on_sizes_alone(cell: str, B: int) -> None:
    T, I, H = 40, 18, 40
    layer = make_layer(cell, (I, H), num_layers=2, bidirectional=True, precision="bfloat16")
    x, dy = normal((T, B, I), "float32", 1), normal((T, B, 2 * H), "float32", 2)
    resets = np.random.default_rng(3).random((T, B)) < 0.1
    lengths = np.random.default_rng(4).integers(0, T + 1, B)

    def solve(**options: Any) -> Results:
        y, state, tape = layer.forward(x, lengths=lengths, resets=resets, **options)
        return results(y, state, *layer.backward(tape, dy))

    expected = solve()
    assert np.array_equal(layer(x, lengths=lengths, resets=resets)[0], expected["y"])
    for threads in (2, 3):
        _core.set_num_threads(threads)
        for name, a in solve().items():
            assert np.array_equal(a, expected[name]), name
    for name, a in solve(checkpoint=7).items():
        assert np.array_equal(a, expected[name]), name
    alone = layer(
        x[:, 1:2] if B > 1 else x,
        lengths=lengths[1:2] if B > 1 else lengths,
        resets=resets[:, 1:2] if B > 1 else resets,
    )[0]
    assert np.array_equal(alone[:, 0], expected["y"][:, min(1, B - 1)])
    short = make_layer(cell, (I, H), precision="bfloat16")
    whole, after = short(x)
    first, state = short(x[:13])
    second, last = short(x[13:], state)
    assert np.array_equal(np.concatenate([first, second]), whole)
    assert all(np.array_equal(a, b) for a, b in zip(np.atleast_1d(after), np.atleast_1d(last), strict=True))


@pytest.mark.parametrize("cell", LAYERS)
def test_options_go_with_it(cell: str) -> None:
    """Tokens, held gates, zoneout, gradients that are added to: all near those of full precision."""
    T, B, I, H = 12, 3, 9, 24
    options: dict[str, Any] = {"zoneout": 0.2, "weight_dropout": 0.1, "recurrent_dropout": 0.2}
    full, rounded = (
        make_layer(cell, (I, H), rng=0, **options),
        make_layer(cell, (I, H), rng=0, precision="bfloat16", **options),
    )
    tokens = np.random.default_rng(0).integers(0, I, (T, B))
    embedding, dy = normal((I, I), "float32", 1), normal((T, B, H), "float32", 2)
    held = {_core.cells[cell].held[0]: 0.5} if _core.cells[cell].held else None
    for x, table in ((tokens, None), (tokens, embedding), (normal((T, B, I), "float32", 3), None)):
        all_results = []
        for layer in (full, rounded):
            y, state, tape = layer.forward(x, embedding=table, gate_override=held)
            grads = {name: np.ones_like(a) for name, a in layer.parameters.items()}
            if table is not None:
                grads["embedding"] = np.ones_like(table)
            all_results.append(results(y, state, *layer.backward(tape, dy, grads=grads)))
        for name, a in all_results[0].items():
            error = np.linalg.norm(all_results[1][name] - a) / np.linalg.norm(a)
            assert error < (0.25 if "relu" in cell else 0.01), name  # an active unit more or less
        assert not np.array_equal(all_results[0]["y"], all_results[1]["y"])


def test_backward_is_linear_and_adjoint() -> None:
    """What follows a rounding of dgates is linear in powers of two, which rounding leaves alone."""
    layer = rnnfast.LSTM(7, 20, rng=0, precision="bfloat16")
    x, dy = normal((9, 4, 7), "float32", 1), normal((9, 4, 20), "float32", 2)
    y, _, tape = layer.forward(x)
    dx, dstate, grads = layer.backward(tape, dy)
    twice = layer.backward(tape, 4 * dy)
    assert np.array_equal(twice[0], 4 * dx)
    for name, a in grads.items():
        assert np.array_equal(twice[2][name], 4 * a), name
    again = layer.backward(tape, dy)
    assert all(np.array_equal(a, b) for a, b in zip(again[1], dstate, strict=True))
    assert y.dtype == np.float32


def test_the_oracle_rounds_to_nearest() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(1000).astype(np.float32)
    near = from_bfloat16(to_bfloat16(a))
    assert np.all(np.abs(near - a) <= np.abs(a) * 2.0**-8)
    p = make_problem("lstm", "float64", Shape(2, 3, 4, 5))
    exact, rounded = solve_oracle(p, rounded=False), solve_oracle(p)
    assert 1e-4 < np.abs(exact["dx"] - rounded["dx"]).max() < 0.1


def test_set_precision() -> None:
    x = normal((5, 3, 4), "float32", 1)
    layer, own = rnnfast.GRU(4, 6, rng=0), rnnfast.GRU(4, 6, rng=0, precision="full")
    rounded = rnnfast.GRU(4, 6, rng=0, precision="bfloat16")
    full, expected = layer(x)[0], rounded(x)[0]
    assert not np.array_equal(full, expected)
    with rnnfast.set_precision("bfloat16"):
        assert np.array_equal(layer(x)[0], expected)
        assert np.array_equal(own(x)[0], full)
        with rnnfast.set_precision("full"):
            assert np.array_equal(layer(x)[0], full)
            assert np.array_equal(rounded(x)[0], expected)
        assert np.array_equal(layer(x)[0], expected)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(layer(x)[0]))
        thread.start()
        thread.join()
        assert np.array_equal(seen[0], full)  # another thread has its own
        y, _, tape = layer.forward(x)
    assert np.array_equal(layer(x)[0], full)
    gradients = layer.backward(tape, np.ones_like(y))  # as forward ran
    y, _, tape = rounded.forward(x)
    assert np.array_equal(gradients[0], rounded.backward(tape, np.ones_like(y))[0])
    layer.precision = "bfloat16"
    assert np.array_equal(layer(x)[0], expected)
    layer.precision = None
    assert np.array_equal(layer(x)[0], full)


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        (rnnfast.LSTM, {"dtype": "float64"}, "dtype float64"),
        (rnnfast.GRU, {"layer_norm": "inside"}, "layer_norm"),
        (rnnfast.SLSTM, {"num_heads": 2}, None),
        (rnnfast.SLSTM, {}, None),
    ],
)
def test_what_has_none(kind: Any, options: dict[str, Any], what: str | None) -> None:
    if what is not None:
        with pytest.raises(ValueError, match=f"precision: expected None or 'full' for a layer with {what}"):
            kind(4, 6, precision="bfloat16", **options)
    layer = kind(4, 6, rng=0, **options)
    x = normal((5, 3, 4), layer.dtype, 1)
    with rnnfast.set_precision("bfloat16"):  # is then of no consequence
        y = layer(x)[0]
    assert np.array_equal(layer(x)[0], y)


@pytest.mark.parametrize(("cell", "options"), [("lstm", {}), ("lstm", {"proj_size": 9}), ("gru_reset_before", {})])
def test_windows_are_those_of_calls(cell: str, options: dict[str, Any]) -> None:
    """Each window alone has the gradients of a call from the state before it; their sums are those of all at once."""
    T, B, I, H = 40, 3, 5, 17
    layer = make_layer(cell, (I, H), num_layers=2, precision="bfloat16", **options)
    x, dy = normal((T, B, I), "float32", 1), normal((T, B, layer.h_size), "float32", 2)
    y, _, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, dy)
    whole = rnnfast.tbptt_gradient(layer, x, dy, T, T)
    assert np.array_equal(whole[0], dx)  # type: ignore[arg-type]
    assert all(np.array_equal(whole[2][name], a) for name, a in grads.items())
    for k1, k2, tolerance in ((8, 8, 5e-6), (5, 12, 0.02), (10, 5, 5e-6)):  # those of the second overlap
        sums: dict[str, Array] = {name: np.zeros_like(a) for name, a in grads.items()}
        dx_sum = np.zeros_like(x)
        for window in rnnfast.tbptt(layer, x, k1, k2):
            start = slice(max(window.tau, window.start), window.stop)
            assert np.array_equal(window.y, y[window.start : window.stop])
            piece = np.zeros((window.stop - window.start, *dy.shape[1:]), np.float32)
            piece[start.start - window.start :] = dy[start]
            dx_window = np.zeros_like(x[window.tau : window.stop])
            new = window.backward(piece, out=(dx_window, None))
            dx_sum[window.tau : window.stop] += dx_window
            state = layer(x[: window.tau])[1] if window.tau else None
            _, _, own = layer.forward(x[window.tau : window.stop], state)
            dy_own = np.zeros((window.stop - window.tau, *dy.shape[1:]), np.float32)
            dy_own[start.start - window.tau :] = dy[start]
            dx_call, _, by_call = layer.backward(own, dy_own)
            assert np.abs(dx_window - dx_call).max() <= 1e-6 * np.abs(dx_call).max()
            for name, a in by_call.items():
                assert np.abs(new[name] - a).max() <= 2e-6 * max(np.abs(a).max(), 1e-3), name
                sums[name] += new[name]
        dx, _, grads = rnnfast.tbptt_gradient(layer, x, dy, k1, k2)
        assert dx is not None
        assert np.abs(dx - dx_sum).max() <= tolerance * np.abs(dx_sum).max()
        for name, a in sums.items():
            assert np.abs(grads[name] - a).max() <= tolerance * np.abs(a).max(), name


def test_windows_of_cells_have_full_precision() -> None:
    x, dy, cell = normal((7, 2, 3), "float32", 1), normal((7, 2, 6), "float32", 2), rnnfast.GRUCell(3, 6, rng=0)
    _, _, grads = rnnfast.tbptt_gradient(cell, x, dy, 3, 5)
    with rnnfast.set_precision("bfloat16"):
        again = rnnfast.tbptt_gradient(cell, x, dy, 3, 5)
    assert all(np.array_equal(a, again[2][name]) for name, a in grads.items())


def test_a_precision_is_set_within_itself_and_again() -> None:
    x, layer = normal((2, 1, 3), "float32", 1), rnnfast.GRU(3, 4, rng=0)
    full, setting = layer(x)[0], rnnfast.set_precision("bfloat16")
    with setting, setting:
        assert not np.array_equal(layer(x)[0], full)
    assert np.array_equal(layer(x)[0], full)
    with setting:
        assert not np.array_equal(layer(x)[0], full)
    assert np.array_equal(layer(x)[0], full)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="precision: expected 'full' or 'bfloat16', got 'half'"):
        rnnfast.set_precision("half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: expected 'full' or 'bfloat16', got 16"):
        rnnfast.LSTM(2, 3, precision=16)  # type: ignore[arg-type]
    layer = rnnfast.LSTM(2, 3, precision="bfloat16")
    with pytest.raises(ValueError, match="precision"):
        layer.precision = "int8"  # type: ignore[assignment]
    assert layer.precision == "bfloat16"
    p = make_problem("lstm", "float64", Shape(1, 1, 1, 1))
    with pytest.raises(TypeError, match="precision: expected parameters of float32 for 'bfloat16', got float64"):
        solve_core(p)
    p = make_problem("lstm_norm", "float32", Shape(1, 1, 2, 3))
    with pytest.raises(ValueError, match="precision: expected None for layer_norm"):
        solve_core(p)


def test_a_quantised_layer_keeps_its_own() -> None:
    layer = rnnfast.LSTM(4, 6, rng=0, precision="bfloat16")
    x = normal((5, 3, 4), "float32", 1)
    quantized = layer.quantize("bfloat16")
    y = quantized(x)[0]
    with rnnfast.set_precision("bfloat16"):
        assert np.array_equal(quantized(x)[0], y)


def test_streams_have_full_precision() -> None:
    layer, full = rnnfast.GRU(4, 6, rng=0, precision="bfloat16"), rnnfast.GRU(4, 6, rng=0)
    x = normal((5, 4), "float32", 1)
    assert np.array_equal(layer.stream().run(x), full(x)[0])


def test_a_machine_without_it_says_so() -> None:
    script = """
import numpy as np, rnnfast
from rnnfast import _core
if _core.config()["bfloat16"]:
    print("has it")
else:
    for f in (lambda: rnnfast.set_precision("bfloat16"), lambda: rnnfast.GRU(2, 3, precision="bfloat16")):
        try:
            f()
        except RuntimeError as error:
            print(error)
"""
    printed = run_script(script, RNNFAST_BF16="")
    assert printed == "has it\n" or printed.count(HARDWARE) == 2
    script = "import sys\ntry:\n import rnnfast\nexcept ImportError as error: print(error)"
    assert "RNNFAST_BF16: expected one of emulate" in run_script(script, RNNFAST_BF16="always")


def test_instructions_compute_what_is_emulated() -> None:
    """AMX adds in another order than AVX512_BF16."""
    script = """
import numpy as np, rnnfast
x = np.random.default_rng(0).standard_normal((5, 20, 40), np.float32)
layer = rnnfast.GRU(40, 70, rng=0, precision="bfloat16")
y, _, tape = layer.forward(x)
print(y.tobytes().hex(), layer.backward(tape, y)[0].tobytes().hex())
"""
    bits = {way: run_script(script, RNNFAST_BF16=way) for way in _core.config()["available_bfloat16"]}
    assert bits.get("avx512bf16", bits["emulate"]) == bits["emulate"]
    if "emulate-amx" in bits:
        assert bits["emulate-amx"] != bits["emulate"]
        assert bits.get("amx", bits["emulate-amx"]) == bits["emulate-amx"]


def test_ragged_rows_are_paired_within_a_step() -> None:
    p = ragged(make_problem("gru", "float32", Shape(6, 5, 4, 20)), 6, 5, 3, 3, 1)
    layer = rnnfast.GRU(4, 20, rng=0, precision="bfloat16")
    x = np.nan_to_num(p.x)
    y, _, tape = layer.forward(x, lengths=p.lengths)
    dx, _, grads = layer.backward(tape, p.dy)
    sums: dict[str, Array] = {name: np.zeros_like(a) for name, a in grads.items()}
    for b, n in enumerate([6, 5, 3, 3, 1]):
        y_b, _, tape = layer.forward(x[:n, b])
        assert np.array_equal(y_b, y[:n, b])
        dx_b, _, grads_b = layer.backward(tape, p.dy[:n, b])  # type: ignore[index]
        assert np.array_equal(dx_b, dx[:n, b])
        for name, a in grads_b.items():
            sums[name] += a
    for name, a in grads.items():
        assert np.abs(sums[name] - a).max() < 1e-5 * np.abs(a).max(), name
