"""h as a projection: the kernels against the oracle, bit for bit, and in layers, files, C and torch's names."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import capi
import numpy as np
import pytest
from modules import make_layer, make_state, named_states, normal
from problems import (
    DTYPES,
    Problem,
    Results,
    Shape,
    assert_close,
    assert_parity,
    assert_same_bits,
    gradients,
    identify,
    make_problem,
    make_token_problem,
    named_grads,
    named_state,
    solve,
    with_dsteps,
)

import rnnfast
from rnnfast import _core, convert, functional, reference

rf: Any = rnnfast  # these calls are not what the types allow

PROJECTED = [cell for cell, shape in _core.cells.items() if shape.projects]

# Around the lanes of vectors; few rows, whose weights stay as they are, and several chunks of time
SHAPES = (
    Shape(3, 4, 7, 5, D=2, P=3),
    Shape(5, 3, 7, 20, P=1),
    Shape(1, 1, 4, 5, D=2, P=4),
    Shape(4, 2, 3, 64, P=17),
    Shape(2, 9, 40, 33, D=2, P=32),
    Shape(300, 2, 6, 17, P=16),
    Shape(20, 13, 130, 200, P=70),
)

by_cell = pytest.mark.parametrize("cell", PROJECTED)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def by_shape(*shapes: Shape) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=identify)


def test_where_h_reaches_h_unit_by_unit_or_by_heads_there_is_no_projection() -> None:
    others = {"gru", "gru_reset_before", "rnn_tanh_leaky", "rnn_relu_leaky", "slstm", "slstm_exp"}
    normalised = {"lstm_norm", "lstm_norm_carried", "gru_norm"}
    assert set(_core.cells) - set(PROJECTED) == others | normalised


@by_shape(*SHAPES)
@by_dtype
@by_cell
def test_every_shape(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, dtype, shape)
    assert_parity(solve(_core, problem), problem)


@by_dtype
def test_what_is_not_given_is_zero(dtype: str) -> None:
    problem = make_problem("lstm", dtype, SHAPES[0], bias=False)
    for names in (("state0",), ("dy",), ("dstate",), ("h0",), ("dc", "dy")):
        some = problem.without(*names)
        assert_parity(solve(_core, some), some)


@pytest.mark.parametrize("V", [None, 11], ids=["one-hot", "embedded"])
@by_dtype
def test_tokens(dtype: str, V: int | None) -> None:
    problem = make_token_problem("lstm", dtype, Shape(70, 5, 9, 20, D=2, P=7), V=V)
    assert_parity(solve(_core, problem), problem)


@by_dtype
def test_gradients_of_every_step(dtype: str) -> None:
    p = with_dsteps(make_problem("lstm", dtype, Shape(9, 3, 5, 20, D=2, P=7)))
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    flow = tuple(np.full_like(a, np.nan) for a in (p.dy, *(p.dsteps or ())))
    results = gradients(_core, tape, replace(p, clip_dh=0.5), flow=flow)
    _, _, kept = reference.forward(p.cell, p.x, p.parameters, p.state0)
    dx, dstate0, grads, dsteps = reference.gradients(kept, p.dy, p.dstate, dsteps=p.dsteps, clip_dh=0.5)
    expected = {"dx": dx, **named_state(p.cell, dstate0, "d{}0"), **named_grads(grads)}
    assert_close(results, expected)
    assert_close(named_state(p.cell, flow), named_state(p.cell, dsteps))
    assert tape.states[0].shape == (27, 40)


# Bit for bit


@by_shape(Shape(12, 3, 200, 130, P=70), Shape(60, 5, 17, 272, P=40), Shape(30, 1, 40, 264, D=2, P=130))
@by_dtype
def test_any_number_of_threads_gives_the_same_bits(dtype: str, shape: Shape) -> None:
    problem = make_problem("lstm", dtype, shape)
    problem = replace(problem, resets=np.random.default_rng(0).random(problem.x.shape[:2]) < 0.1)

    def results() -> Results:
        p = problem
        y, state, tape = _core.forward(p.cell, p.x, p.parameters, p.state0, resets=p.resets)
        return {"y": y, **named_state(p.cell, state), **gradients(_core, tape, p)}

    _core.set_num_threads(1)
    expected = results()
    assert_close(expected, solve(reference, problem), layers=4)
    for threads in (2, 3, 7):
        _core.set_num_threads(threads)
        assert_same_bits(results(), expected)


@by_shape(Shape(7, 11, 5, 19, D=2, P=9), Shape(15, 40, 30, 96, P=33), Shape(1, 20, 70, 75, P=8))
@by_dtype
def test_a_sequence_gets_the_same_bits_in_any_batch(dtype: str, shape: Shape) -> None:
    problem = make_problem("lstm", dtype, shape)
    whole = solve(_core, problem)
    for rows in (slice(0, 1), slice(4, 5), slice(shape.B - 1, shape.B), slice(3, 8), slice(1, 10)):
        part = solve(_core, problem.with_each(itemgetter(np.s_[:, rows]), "x", "state0", "dy", "dstate"))
        for name in ("y", "h", "c", "dx", "dh0", "dc0"):
            np.testing.assert_array_equal(part[name], whole[name][:, rows], err_msg=f"{name} {rows}")


@by_dtype
def test_inference_gives_the_bits_of_forward(dtype: str) -> None:
    for shape in SHAPES:
        p = make_problem("lstm", dtype, shape)
        y, state, _ = _core.forward(p.cell, p.x, p.parameters, p.state0)
        inferred, last = _core.inference(p.cell, p.x, p.parameters, p.state0)
        assert_same_bits({"y": inferred, **named_state("lstm", last)}, {"y": y, **named_state("lstm", state)})


# Few rows, and many that are packed
@by_shape(Shape(1, 3, 7, 20, D=2, P=7), Shape(50, 8, 7, 20, P=7))
def test_gradients_are_added_into_given_arrays(shape: Shape) -> None:
    p = make_problem("lstm_peephole", "float64", shape)
    expected = solve(reference, p)
    *_, tape = _core.forward(p.cell, p.x, p.parameters, p.state0)
    grads = [tuple(np.ones_like(w) for w in ws) for ws in p.parameters]
    _core.backward(tape, p.dy, p.dstate, grads=grads)
    assert_close(named_grads(grads), {name: 1 + expected[name] for name in named_grads(grads)})


@by_dtype
@pytest.mark.parametrize("D", [1, 2])
def test_c_gives_pythons_bits(dtype: str, D: int) -> None:
    for shape in (Shape(40, 9, 7, 33, D, P=20), Shape(1, 1, 5, 6, D, P=2)):
        problem = make_problem("lstm", dtype, shape)
        assert_same_bits(capi.Call(problem).solve(capi.Handle()), solve(_core, problem))


def in_c(problem: Problem, **changes: Any) -> None:
    """Make the call, with other sizes of its layer."""
    call = capi.Call(problem)
    for name, value in changes.items():
        setattr(call.layer, name, value)
    call.solve(capi.Handle())


def test_c_refuses_what_does_not_fit() -> None:
    problem = make_problem("lstm", "float32", Shape(3, 2, 5, 6, P=2))
    for proj_size in (-1, 6, 7):
        with pytest.raises(ValueError, match="proj_size: expected 0 to 5, less than H, got"):
            in_c(problem, proj_size=proj_size)
    with pytest.raises(ValueError, match="proj_size: expected 0 for gru, got 2"):
        in_c(make_problem("gru", "float32", Shape(3, 2, 5, 6)), proj_size=2)
    call = capi.Call(problem)
    call.layer.weights[0].more = capi.state_of(None)
    with pytest.raises(ValueError, match="w_hr: expected an array, got NULL"):
        call.solve(capi.Handle())
    call = capi.Call(problem)
    call.backward.gradients[0].dmore = None
    with pytest.raises(ValueError, match="dw_hr: expected an array, got NULL"):
        call.solve(capi.Handle())
    stack = capi.stack_of(make_layer("lstm"))
    stack.proj_size = 9
    with pytest.raises(ValueError, match="proj_size: expected 0 to 5"):
        capi.check(capi.API.stream_create(stack, 1, ctypes.c_void_p()))


# Layers


def test_states_and_parameters_have_torchs_names_shapes_and_order() -> None:
    layer = rnnfast.LSTM(7, 6, 2, bidirectional=True, proj_size=2, rng=0)
    own = {"weight_ih": (24, 7), "weight_hh": (24, 2), "bias_ih": (24,), "bias_hh": (24,), "weight_hr": (2, 6)}
    inner = own | {"weight_ih": (24, 4)}
    ends = {"_l0": own, "_l0_reverse": own, "_l1": inner, "_l1_reverse": inner}
    expected = [(name + end, shape) for end, shapes in ends.items() for name, shape in shapes.items()]
    assert [(name, p.shape) for name, p in layer.parameters.items()] == expected
    y, (h, c), tape = layer.forward(np.ones((5, 3, 7), np.float32))
    assert (y.shape, h.shape, c.shape) == ((5, 3, 4), (4, 3, 2), (4, 3, 6))
    assert tape.h(0).shape == (5, 3, 4)
    assert tape.c(1).shape == tape.gates(1)["o"].shape == (5, 3, 12)
    for name in ("weight_hr_l0", "weight_hr_l1_reverse"):
        assert 0.3 < np.abs(layer.parameters[name]).max() <= 1 / np.sqrt(6)


def test_the_projection_of_what_the_gates_make_is_h() -> None:
    layer = make_layer("lstm", proj_size=2, dtype="float64")
    y, _, tape = layer.forward(normal((5, 3, 7), "float64", 1))
    u = tape.gates(0)["o"] * np.tanh(tape.c(0))
    np.testing.assert_allclose(y, u @ layer.weight_hr_l0.T, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"peephole": True, "coupled_gates": True, "learn_initial_state": True}])
def test_a_saved_layer_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    layer = rnnfast.LSTM(7, 6, 2, proj_size=3, rng=0, **options)
    layer.save(tmp_path / "layer")
    twin: Any = rnnfast.load(tmp_path / "layer")
    assert repr(twin) == repr(layer)
    assert "proj_size=3" in repr(layer)
    x, state = normal((5, 2, 7), "float32", 1), make_state(layer, (2,), 2)
    results = [{"y": y, **named_states(last)} for y, last in (module(x, state) for module in (layer, twin))]
    assert_same_bits(*results)


@pytest.mark.parametrize("scheme", ["torch", "xavier", "orthogonal", "identity"])
def test_every_scheme_starts_a_projection(scheme: str) -> None:
    layer = rnnfast.LSTM(7, 6, proj_size=3, dtype="float64", rng=0)
    rnnfast.initialize(layer, scheme, forget_bias=1)
    w = layer.weight_hr_l0
    assert np.abs(w).max() > 0
    if scheme == "xavier":
        assert np.abs(w).max() <= np.sqrt(6 / 9)
    if scheme == "orthogonal":
        for block in np.split(layer.weight_hh_l0, 4):
            np.testing.assert_allclose(block.T @ block, np.eye(3), atol=1e-12)


def test_gradient_flow_has_both_states() -> None:
    layer = make_layer("lstm", proj_size=2, num_layers=2, bidirectional=True)
    x, dy = normal((9, 3, 7), "float32", 1), normal((9, 3, 4), "float32", 2)
    flow = rnnfast.gradient_flow(layer, x, dy, lengths=[9, 2, 0])
    assert flow.c is not None
    assert flow.h.shape == flow.c.shape == (2, 2, 9)
    assert (flow.h[:, :, :2] > 0).all()


# What does not fit

w = np.ones


def call(*parameters: Any, cell: str = "lstm", **options: Any) -> Any:
    return functional.forward(cell, w((3, 2, 5)), [parameters], **options)


LSTM = w((24, 5)), w((24, 2)), None, None, w((2, 6))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "P of H": (lambda: call(*LSTM[:1], w((24, 6)), None, None, w((6, 6))), r"w_hh: expected shape \(4·H, P\) with 1 <"),
    "rows of w_hh": (lambda: call(*LSTM[:1], w((23, 2)), None, None, w((2, 6))), r"w_hh: expected shape \(4·H, P\)"),
    "w_hr": (lambda: call(*LSTM[:4], w((3, 6))), r"w_hr: expected shape \(2, 6\), got \(3, 6\)"),
    "no w_hr": (lambda: call(*LSTM[:4]), r"w_hh: expected shape \(4·H, H\) with H >= 1, got \(24, 2\)"),
    "too many": (lambda: call(*LSTM, w(1)), r"parameters: expected 4 entries .*, got 6"),
    "gru": (
        lambda: call(w((18, 5)), w((18, 2)), None, None, w((2, 6)), cell="gru"),
        "parameters: expected 4 entries",
    ),
    "h0": (lambda: call(*LSTM, state=(w((1, 2, 6)), None)), r"h0: expected shape \(1, 2, 2\)"),
    "c0": (lambda: call(*LSTM, state=(None, w((1, 2, 2)))), r"c0: expected shape \(1, 2, 6\)"),
    "y": (lambda: call(*LSTM, out=(w((3, 2, 6)), None)), r"out\[0\]: expected shape \(3, 2, 2\)"),
    "dy": (
        lambda: functional.backward(call(*LSTM)[2], w((3, 2, 6))),
        r"dy: expected shape \(3, 2, 2\)",
    ),
    "dc": (
        lambda: functional.backward(call(*LSTM)[2], dc=w((3, 2, 2))),
        r"dc: expected shape \(3, 2, 6\)",
    ),
    "P": (
        lambda: rnnfast.LSTM(5, 6, proj_size=6),
        "proj_size: expected 0, for none, to 5, less than hidden_size, got 6",
    ),
    "P < 0": (lambda: rnnfast.LSTM(5, 6, proj_size=-1), "proj_size: expected at least 0, got -1"),
    "state": (
        lambda: rnnfast.LSTM(5, 6, proj_size=2)(w((3, 2, 5), "f4"), (w((1, 2, 6), "f4"), None)),
        "state: expected",
    ),
    "tape row": (lambda: _core.tape_row("lstm", 6, "float32", 7), "P: expected 0 to 6, got 7"),
    "onnx": (lambda: to_onnx(rnnfast.LSTM(5, 6, proj_size=2)), "layer: expected proj_size=0, as ONNX has it"),
    "keras": (lambda: convert.to_keras_weights(rnnfast.LSTM(5, 6, proj_size=2)), "layer: expected proj_size=0"),
}


def to_onnx(layer: Any) -> Any:
    onnx: Any = pytest.importorskip("rnnfast.onnx", reason="onnx is not installed")
    return onnx.to_onnx(layer)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    f, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        f()


def test_a_projections_gradient_is_wanted_and_its_entry_an_array() -> None:
    *_, tape = call(*LSTM)
    grads = [(w((24, 5)), w((24, 2)), None, None, None)]
    with pytest.raises(TypeError, match=r"grads\[0\]: w_hr: expected an array, got None"):
        functional.backward(tape, w((3, 2, 2)), grads=grads)
    with pytest.raises(TypeError, match="proj_size"):
        rf.GRU(5, 6, proj_size=2)
    with pytest.raises(TypeError, match="w_hr"):
        call(*LSTM[:4], None)
