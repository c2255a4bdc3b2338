"""Models of fewer bits: DynamicQuantizeLSTM beside ONNX Runtime, DequantizeLinear, and layers of int8 and bfloat16."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_onnx import assert_near, assert_same, run_onnxruntime

import rnnfast
from rnnfast import Quantized

onnx: Any = pytest.importorskip("onnx", reason='onnx is not installed (pip install ".[onnx]")')
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rnnfast.onnx import ModelError, from_onnx, prepare, run_model, run_node, to_onnx  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]

T, I, H = 7, 5, 6
MOST = 1e-2  # of y and h_n at B = 1, beside ONNX Runtime: activations are quantised there in another way
NOISE = 0.02  # of what int8 does to the results of float32
LAYERS: dict[str, Any] = {
    "lstm": lambda: rnnfast.LSTM(I, H, num_layers=2, bidirectional=True, rng=0),
    "lstm_peephole": lambda: rnnfast.LSTM(I, H, peephole=True, rng=0),
    "cifg": lambda: rnnfast.LSTM(I, H, coupled_gates=True, bias=False, rng=0),
    "gru": lambda: rnnfast.GRU(I, H, num_layers=2, bidirectional=True, rng=0),
    "gru_reset_before": lambda: rnnfast.GRU(I, H, reset_after=False, rng=0),
    "rnn_tanh": lambda: rnnfast.RNN(I, H, batch_first=True, rng=0),
    "rnn_relu": lambda: rnnfast.RNN(I, H, nonlinearity="relu", bidirectional=True, rng=0),
}
by_layer = pytest.mark.parametrize("name", LAYERS)


def draw(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized_by_onnxruntime(model: Any, folder: Path, *, per_channel: bool, unsigned: bool = False) -> Any:
    """Return a model after ONNX Runtime's own tool."""
    tool: Any = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime is not installed")
    onnx.save(model, folder / "plain.onnx")
    kind = tool.QuantType.QUInt8 if unsigned else tool.QuantType.QInt8
    logging.disable()  # advice
    try:
        tool.quantize_dynamic(
            folder / "plain.onnx", folder / "quantized.onnx", weight_type=kind, per_channel=per_channel
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "quantized.onnx")


def initializer(model: Any, name: str) -> Any:
    return next(each for each in model.graph.initializer if each.name == name)


def array(model: Any, name: str) -> Array:
    a: Array = numpy_helper.to_array(initializer(model, name))
    return a


def put(model: Any, name: str, a: Any) -> None:
    initializer(model, name).CopyFrom(numpy_helper.from_array(np.asarray(a), name))


# Beside ONNX Runtime


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "rows"])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1), {}),
        ((3, 17), {"bidirectional": True, "num_layers": 2}),
        ((64, 64), {"peephole": True}),
        ((40, 128), {"coupled_gates": True, "bidirectional": True}),
    ],
    ids=str,
)
def test_lstms_that_onnxruntime_has_quantised_run_as_there(
    sizes: tuple[int, int], options: Any, per_channel: bool, tmp_path: Path
) -> None:
    lstm = rnnfast.LSTM(*sizes, rng=0, **options)
    model = quantized_by_onnxruntime(to_onnx(lstm, state=True), tmp_path, per_channel=per_channel)
    D = lstm.num_layers * lstm.directions
    inputs = {"x": draw((20, 1, sizes[0])), "h_0": draw((D, 1, sizes[1]), 1) / 3, "c_0": draw((D, 1, sizes[1]), 2) / 3}
    actual = run_model(model, inputs)
    expected = run_onnxruntime(model, inputs)
    assert_near(actual[:2], expected[:2], MOST)
    assert_near(actual[2:], expected[2:], 2 * MOST)  # c adds up what h has in it
    again = from_onnx(model)
    assert isinstance(again, Quantized)
    y, (h, c) = again(inputs["x"], (inputs["h_0"], inputs["c_0"]))
    assert_same((y, h, c), actual)
    if per_channel and not lstm.num_layers > 1:
        assert np.abs(y - lstm.quantize("int8")(inputs["x"], (inputs["h_0"], inputs["c_0"]))[0]).max() < 1e-3


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_all_inputs_of_the_operator_are_read(direction: str) -> None:
    D = 2 if direction == "bidirectional" else 1
    inputs = {"X": draw((T, 1, I)), "initial_h": draw((D, 1, H), 1) / 3, "initial_c": draw((D, 1, H), 2) / 3}
    inputs["sequence_lens"] = np.array([T - 2], np.int32)
    model = dynamic(direction)
    model.graph.node[0].attribute.append(helper.make_attribute("input_forget", 0))
    actual, expected = run_model(model, inputs), run_onnxruntime(model, inputs)
    assert_near(actual, expected, MOST)
    assert not actual[0][T - 2 :].any()
    model.graph.node[0].attribute.append(helper.make_attribute("clip", 0.5))  # step by step, of floats
    assert_near(run_model(model, inputs), run_onnxruntime(model, inputs), MOST)


def dynamic(direction: str = "forward", dtype: str = "int8", *, rows: bool = True) -> Any:
    """Return a model of a node DynamicQuantizeLSTM, of all inputs."""
    D, rng = 2 if direction == "bidirectional" else 1, np.random.default_rng(0)
    bounds = np.iinfo(dtype)
    constants: dict[str, Array] = {"B": draw((D, 8 * H), 3) / 3, "P": draw((D, 3 * H), 4) / 3}
    for name, n in (("W", I), ("R", H)):
        zero = 0 if dtype == "int8" else 120
        constants[name] = rng.integers(max(bounds.min, -127), bounds.max + 1, (D, n, 4 * H)).astype(dtype)
        shape = (D, 4 * H) if rows else (D,)
        constants[f"{name}_scale"] = rng.uniform(0.003, 0.006, shape).astype(np.float32)
        constants[f"{name}_zero_point"] = np.full(shape, zero, dtype)
    states = "initial_h", "initial_c"
    steps = "W_scale", "W_zero_point", "R_scale", "R_zero_point"
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["X", "W", "R", "B", "sequence_lens", *states, "P", *steps],
        ["Y", "Y_h", "Y_c"],
        "a",
        domain="com.microsoft",
        hidden_size=H,
        direction=direction,
    )
    given = [
        helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "N", I]),
        helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, ["N"]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [D, "N", H]) for name in states),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    tensors = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph([node], "graph", given, ends, tensors)
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("rows", [False, True], ids=["tensor", "rows"])
def test_zero_points_are_subtracted(rows: bool) -> None:
    inputs = {"X": draw((T, 1, I)), "initial_h": np.zeros((1, 1, H), np.float32)}
    inputs |= {"initial_c": inputs["initial_h"], "sequence_lens": np.array([T], np.int32)}
    model = dynamic(dtype="uint8", rows=rows)
    assert_near(run_model(model, inputs), run_onnxruntime(model, inputs), 2 * MOST)  # quantised twice
    layer = from_onnx(model)
    for name, own in (("W", "weight_ih_l0"), ("R", "weight_hh_l0")):
        scale = np.broadcast_to(array(model, f"{name}_scale").reshape(1, -1), (1, 4 * H))[0]
        w = (array(model, name)[0].T - 120.0) * scale[:, None]
        w = w.reshape(4, H, -1)[[0, 2, 3, 1]].reshape(4 * H, -1)  # i, f, g, o
        assert np.abs(layer.dequantize().parameters[own] - w).max() <= scale.max() * 0.55
    assert layer.weight_ih_l0.min() >= -127


def test_integers_that_fit_keep_their_scale_and_others_are_quantised_anew() -> None:
    model = dynamic()
    w, scale = array(model, "W").copy(), array(model, "W_scale")
    w[0, 0, :2] = -128, -127
    put(model, "W", w)
    layer = from_onnx(model)
    assert np.array_equal(layer.weight_ih_l0[1:H], w[0].T[1:H])
    assert np.array_equal(layer.weight_ih_l0_scale[1:H], scale[0, 1:H])
    assert layer.weight_ih_l0[0, 0] == -127
    assert layer.weight_ih_l0_scale[0] == scale[0, 0] * np.float32(128) / np.float32(127)
    shifted = dynamic()  # 128 as the zero point of uint8
    for name in ("W", "R"):
        put(shifted, name, (array(shifted, name).astype(np.int16) + 128).astype(np.uint8))
        put(shifted, f"{name}_zero_point", np.full((1, 4 * H), 128, np.uint8))
    expected, actual = from_onnx(dynamic()).state_dict(), from_onnx(shifted).state_dict()
    assert all(np.array_equal(actual[name], a) for name, a in expected.items())


def test_a_node_alone_takes_its_integers_as_inputs() -> None:
    model = dynamic()
    node = model.graph.node[0]
    given = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    given |= {"X": draw((T, 2, I)), "sequence_lens": np.array([T, 2], np.int32)}
    given |= {f"initial_{k}": np.zeros((1, 2, H), np.float32) for k in "hc"}
    expected = run_model(model, {name: given[name] for name in ("X", "sequence_lens", "initial_h", "initial_c")})
    assert_same(run_node(node, [given[name] for name in node.input]), expected)


# Layers as models, and back


@by_layer
@pytest.mark.parametrize("form", ["int8", "bfloat16"])
def test_layers_of_fewer_bits_come_back_with_the_same_bits(form: Any, name: str) -> None:
    layer = LAYERS[name]()
    layer.weight_hh_l0[1] = 0  # a scale of zero
    q = layer.quantize(form)
    model = to_onnx(q)
    onnx.checker.check_model(model)
    again = from_onnx(model)
    assert repr(again) == repr(q)
    zero = {each: np.zeros_like(a) for each, a in again.state_dict().items()}  # a layer of which no node has a bias
    assert all(np.array_equal(a, q.state_dict().get(each, zero[each])) for each, a in again.state_dict().items())
    x = draw((1, T, I) if q.batch_first else (T, 1, I))
    y, actual = q(x)[0], run_model(model, [x])[0]
    assert np.abs(actual - run_onnxruntime(model, {"x": x})[0]).max() < MOST
    if form == "bfloat16" or model.graph.node[0].domain:
        assert np.array_equal(actual, y)
    else:  # what the model says: floats that integers have been made into
        assert np.array_equal(actual, q.dequantize()(x)[0])
        assert np.abs(actual - y).max() < NOISE


def test_the_learned_initial_state_and_a_given_one_are_carried() -> None:
    lstm = rnnfast.LSTM(I, H, learn_initial_state=True, rng=0)
    lstm.initial_h[:] = 0.3
    q, x = lstm.quantize("int8"), draw((T, 1, I))
    assert np.array_equal(run_model(to_onnx(q), [x])[0], q(x)[0])
    state = draw((1, 1, H), 1), draw((1, 1, H), 2)
    assert np.array_equal(run_model(to_onnx(q, state=True), [x, *state])[0], q(x, state)[0])


def test_models_of_fewer_bits_are_smaller() -> None:
    gru = rnnfast.GRU(128, 128, rng=0)
    whole = to_onnx(gru).ByteSize()
    assert to_onnx(gru.quantize("int8")).ByteSize() < 0.3 * whole
    assert to_onnx(gru.quantize("bfloat16")).ByteSize() < 0.55 * whole


@pytest.mark.parametrize("option", [{"proj_size": 3}, {"zoneout": 0.1}], ids=str)
def test_what_onnx_does_not_have_is_refused_of_fewer_bits_too(option: Any) -> None:
    with pytest.raises(ValueError, match=rf"^layer: expected {next(iter(option))}=0, as ONNX has it, got LSTM\("):
        to_onnx(rnnfast.LSTM(I, H, **option).quantize("int8"))


# DequantizeLinear and QuantizeLinear


def dequantised(
    dtype: str = "int8", axis: int = 1, *, low: int = -127, zero: int = 0, size: tuple[int, ...] | None = None
) -> Any:
    """Return a model of a GRU whose W is dequantised, along an axis, and whose R too, of one scale."""
    rng = np.random.default_rng(0)
    shape = 1, 3 * H, I
    w = rng.integers(low, np.iinfo(dtype).max + 1, shape).astype(dtype)
    n = (shape[axis],) if size is None else size
    constants: dict[str, Any] = {
        "w": w,
        "w_scale": rng.uniform(0.002, 0.004, n).astype(np.float32),
        "w_zero": np.full(n, zero, dtype),
        "r": rng.integers(-127, 128, (1, 3 * H, H)).astype(np.int8),
        "r_scale": np.float32(0.003),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["W"], "of_w", axis=axis),
        helper.make_node("DequantizeLinear", ["r", "r_scale"], ["R"], "of_r"),
        helper.make_node("GRU", ["X", "W", "R"], ["Y", "h"], hidden_size=H, linear_before_reset=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "N", I])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "h")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@pytest.mark.parametrize(
    ("case", "quantised"),
    [
        ({}, True),
        ({"axis": 0}, True),
        ({"size": ()}, True),
        ({"axis": 2}, False),  # a scale for each column
        ({"low": -128}, False),
        ({"dtype": "uint8", "low": 1, "zero": 128}, True),
        ({"dtype": "uint8", "low": 0, "zero": 100}, False),
        ({"axis": -2}, True),
    ],
    ids=str,
)
def test_dequantised_weights_are_a_layer_of_integers_where_that_loses_nothing(case: Any, quantised: bool) -> None:
    model, x = dequantised(**case), draw((T, 1, I))
    layer = from_onnx(model)
    assert isinstance(layer, Quantized) == quantised
    floats = layer.dequantize() if quantised else layer
    scale, zero = array(model, "w_scale"), array(model, "w_zero").astype(np.float32)
    shape = [1, 1, 1]
    shape[case.get("axis", 1)] = scale.size
    w = (array(model, "w") - zero.reshape(shape)) * scale.reshape(shape)
    w = w[0].reshape(3, H, -1)[[1, 0, 2]].reshape(3 * H, -1)  # r, z, n
    assert np.array_equal(floats.weight_ih_l0, w)
    y = run_model(model, [x])[0][:, 0]
    assert np.array_equal(y, floats(x)[0])
    assert np.abs(y - run_onnxruntime(model, {"X": x})[0][:, 0]).max() < 1e-5


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_numbers_are_quantised_as_the_onnx_package_does(dtype: str) -> None:
    x, scale = 3 * draw((4, H)), np.linspace(0.01, 0.02, H).astype(np.float32)
    zero = np.full(H, 5, dtype)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1)
    from onnx.reference import ReferenceEvaluator

    (q,) = run_node(node, [x, scale, zero], opset_version=18)
    (expected,) = ReferenceEvaluator(node).run(None, {"x": x, "s": scale, "z": zero})
    assert q.dtype == dtype
    assert np.array_equal(q, expected)
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], axis=1)
    (y,) = run_node(back, [q, scale, zero], opset_version=18)
    assert np.array_equal(y, ReferenceEvaluator(back).run(None, {"q": q, "s": scale, "z": zero})[0])


def test_a_stack_of_which_some_matrices_are_integers_is_of_floats() -> None:
    model = to_onnx(rnnfast.LSTM(I, H, num_layers=2, rng=0).quantize("int8"))
    plain = to_onnx(rnnfast.LSTM(I, H, num_layers=2, rng=0))
    for name in ("W_0", "R_0"):
        put(model, name, array(plain, name))
    node = model.graph.node[0]
    node.op_type, node.domain = "LSTM", ""
    del node.input[4:]
    layer, x = from_onnx(model), draw((T, 1, I))
    assert isinstance(layer, rnnfast.LSTM)
    assert np.array_equal(layer.weight_ih_l0, rnnfast.LSTM(I, H, num_layers=2, rng=0).weight_ih_l0)
    assert np.abs(run_model(model, [x])[0] - layer(x)[0]).max() < NOISE


def test_inputs_may_be_quantised_and_dequantised() -> None:
    model = dequantised()
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "r_scale"], ["x_integers"]),
        helper.make_node("DequantizeLinear", ["x_integers", "r_scale"], ["X"]),
    ]
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    model.graph.input[0].name = "x"
    x = draw((T, 1, I))
    assert_near(run_model(model, [x]), run_onnxruntime(model, {"x": x}), 1e-5)
    assert isinstance(from_onnx(model), Quantized)


# What is wrong is named


def drop(k: int) -> Any:
    def change(model: Any) -> None:
        model.graph.node[0].input[k] = ""

    return change


def replace(name: str, a: Any) -> Any:
    return lambda model: put(model, name, a)


def attribute(name: str, value: Any) -> Any:
    return lambda model: model.graph.node[0].attribute.append(helper.make_attribute(name, value))


NODE = r"^com\.microsoft\.DynamicQuantizeLSTM 'a': "
ONES = np.ones(4 * H, np.float32)
WRONG = {
    "no W_scale": (drop(8), "W_scale: expected an input, got none"),
    "no R_zero_point": (drop(11), "R_zero_point: expected an input, got none"),
    "no W": (drop(1), ""),
    "scales of rows": (
        replace("W_scale", ONES),
        rf"W_scale: expected shape \(1,\) or \(1, {4 * H}\), got \({4 * H},\)",
    ),
    "one zero point": (replace("R_zero_point", np.int8(0)), r"R_zero_point: expected shape .*, got \(\)"),
    "scales of float64": (replace("R_scale", np.ones(1)), "R_scale: expected dtype float32, got float64"),
    "zero points of uint8": (replace("W_zero_point", np.zeros(1, np.uint8)), "W_zero_point: expected dtype int8, got"),
    "W of int16": (replace("W", np.zeros((1, I, 4 * H), np.int16)), "W: expected dtype int8 or uint8, got int16"),
    "R of uint8": (replace("R", np.zeros((1, H, 4 * H), np.uint8)), "R: expected dtype int8, got uint8"),
    "as of LSTM": (replace("W", np.zeros((1, 4 * H, I), np.int8)), r"W: expected shape "),
    "two axes": (replace("W", np.zeros((I, 4 * H), np.int8)), r"W: expected shape \(D, I, 4·H\), got"),
    "negative": (replace("W_scale", np.full(1, -1, np.float32)), "W_scale: expected numbers from 0 to 1e.36, got -1"),
    "NaN": (replace("W_scale", np.full(1, np.nan, np.float32)), "W_scale: expected numbers from 0 to 1e.36, got nan"),
    "huge": (replace("R_scale", np.full(1, 3e38, np.float32)), "R_scale: expected numbers from 0 to 1e.36, got 3"),
    "layout": (attribute("layout", 1), ".*layout"),
    "an attribute of another": (attribute("linear_before_reset", 1), ".*linear_before_reset"),
    "an input more": (lambda model: model.graph.node[0].input.append("X"), "expected at most 12 inputs, got 13"),
}


@pytest.mark.parametrize("take", [prepare, from_onnx])
@pytest.mark.parametrize("case", WRONG)
def test_malformed_nodes_are_refused_by_the_name_of_the_input(case: str, take: Any) -> None:
    change, message = WRONG[case]
    model = dynamic()
    change(model)
    with pytest.raises(ModelError, match=NODE + message):
        take(model)


def test_another_version_of_the_domain_is_refused() -> None:
    model = dynamic()
    model.opset_import[1].version = 2
    for take in (prepare, from_onnx):
        with pytest.raises(ModelError, match=r"^model: expected version 1 of com\.microsoft, got 2$"):
            take(model)


WRONG_STEPS = {
    "scales": (replace("w_scale", np.ones(5, np.float32)), rf"x_scale: expected shape \({3 * H},\), got \(5,\)"),
    "scales of float64": (replace("w_scale", np.ones(3 * H)), "x_scale: expected dtype float32, got float64"),
    "zero points": (replace("w_zero", np.zeros(5, np.int8)), rf"x_zero_point: expected shape \({3 * H},\), got \(5,\)"),
    "zero points of uint8": (replace("w_zero", np.zeros(3 * H, np.uint8)), "x_zero_point: expected dtype int8, got"),
    "floats": (replace("w", np.zeros((1, 3 * H, I), np.float32)), "x: expected dtype int8 or .*, got float32"),
    "no scale": (drop(1), ""),
    "axis": (lambda model: model.graph.node[0].attribute[0].__setattr__("i", 3), "axis: expected .*, got 3"),
}


@pytest.mark.parametrize("take", [prepare, from_onnx])
@pytest.mark.parametrize("case", WRONG_STEPS)
def test_malformed_scales_are_refused_by_the_name_of_the_input(case: str, take: Any) -> None:
    change, message = WRONG_STEPS[case]
    model = dequantised()
    change(model)
    with pytest.raises(ModelError, match=f"^DequantizeLinear 'of_w': {message}"):
        take(model)


def test_biases_that_are_not_finite_are_no_layer_of_integers() -> None:
    model = dynamic()
    put(model, "B", np.full((1, 8 * H), np.nan, np.float32))
    with pytest.raises(ModelError, match=r"^model: bias_ih_l0: expected finite numbers, got nan$"):
        from_onnx(model)
