"""The ONNX backend beside ONNX Runtime and the cases of the onnx package; layers as models and back."""

import itertools
import re
import subprocess
import sys
import unittest
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from modules import make_layer, make_state
from problems import parts

import rnnfast
from rnnfast import _core, functional

onnx: Any = pytest.importorskip("onnx", reason='onnx is not installed (pip install ".[onnx]")')
from onnx import helper, numpy_helper  # noqa: E402

from rnnfast.onnx import (  # noqa: E402
    ModelError,
    RnnfastBackend,
    _forms,
    _memory,
    from_onnx,
    prepare,
    run_model,
    run_node,
    supports_device,
    to_onnx,
)

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = dict[str, Array]

OPERATORS = {form.operator: cell for cell, form in reversed(_forms.FORMS.items())}  # and the first cell of each
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
INPUTS = "X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"
OUTPUTS = "Y", "Y_h", "Y_c"
T, B, I, H = 5, 4, 3, 6
RUNTIME_TOLERANCE = 1e-5  # of float32; what is held against ONNX Runtime has no elements far above 1

by_operator = pytest.mark.parametrize("operator", OPERATORS)
by_direction = pytest.mark.parametrize("direction", DIRECTIONS)
by_cell = pytest.mark.parametrize("cell", _forms.FORMS)


def make_inputs(
    operator: str, direction: str = "forward", *, seed: int = 0, dtype: Any = "float32", **has: bool
) -> Inputs:
    """Draw the inputs of a node: X, W, R, and of the others those that it `has`, lengths from 0 to T among them."""
    rng = np.random.default_rng(seed)
    D, G = DIRECTIONS[direction], _core.cells[OPERATORS[operator]].num_gates
    shapes = {
        "X": (T, B, I),
        "W": (D, G * H, I),
        "R": (D, G * H, H),
        "B": (D, 2 * G * H),
        "initial_h": (D, B, H),
        "initial_c": (D, B, H),
        "P": (D, 3 * H),
    }
    drawn = {name: (rng.standard_normal(shape) / 3).astype(dtype) for name, shape in shapes.items()}
    drawn["sequence_lens"] = rng.permutation([0, 2, T, *rng.integers(0, T + 1, B - 3)]).astype(np.int32)
    return {name: drawn[name] for name in INPUTS if name in "XWR" or has.get(name)}


def node_of(operator: str, inputs: Inputs, outputs: tuple[str, ...] | None = None, **attributes: Any) -> Any:
    given = [name if name in inputs else "" for name in INPUTS]
    outputs = OUTPUTS[: 3 if operator == "LSTM" else 2] if outputs is None else outputs
    while not given[-1]:
        given.pop()
    return helper.make_node(operator, given, outputs, "a", **{"hidden_size": H, **attributes})


def model_of(nodes: Any, inputs: Inputs, constants: Inputs | None = None, *, opset: int = 22) -> Any:
    """Return a model whose outputs are those of the last node."""
    nodes = nodes if isinstance(nodes, list) else [nodes]
    element = {np.dtype(a): helper.np_dtype_to_tensor_dtype(np.dtype(a)) for a in ("float32", "float64", "int32")}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, element[a.dtype], a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info(name, element[inputs["X"].dtype], None) for name in nodes[-1].output if name],
        [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(operator: str, inputs: Inputs, *, opset: int = 22, **attributes: Any) -> tuple[Array, ...]:
    """Run a node with our backend."""
    model = model_of(node_of(operator, inputs, **attributes), inputs, opset=opset)
    outputs: tuple[Array, ...] = run_model(model, list(inputs.values()))
    return outputs


def run_onnxruntime(model: Any, inputs: Mapping[str, Array]) -> list[Array]:
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))


def assert_same(actual: Any, expected: Any) -> None:
    assert len(actual) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


# The cases of the onnx package, as they are

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # making the cases of other operators overflows on purpose
    from onnx.backend.test import BackendTest
    from onnx.backend.test.loader import load_model_tests

    PACKAGE = load_model_tests(kind="node")
    RUNNER = BackendTest(RnnfastBackend)
OURS = re.compile(r"test_(lstm|gru|rnn|simple_rnn)_.*_cpu")
CASES = {
    name: case(name)
    for case in RUNNER.test_cases.values()
    for name in unittest.defaultTestLoader.getTestCaseNames(case)
    if OURS.fullmatch(name)
}


@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_onnx_package_pass(name: str) -> None:
    getattr(CASES[name], name)()


def test_these_are_all_its_cases_with_our_operators() -> None:
    models = {case.name: case.model or onnx.load(f"{case.model_dir}/model.onnx") for case in PACKAGE}
    ours = {name for name, model in models.items() if {node.op_type for node in model.graph.node} & OPERATORS.keys()}
    assert {f"{name}_cpu" for name in ours} == CASES.keys()
    assert len(CASES) >= 18


# Beside ONNX Runtime

FUNCTIONS = (
    *("Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus", "Softsign", "Tanh"),
    "ThresholdedRelu",
)


def draw(rng: np.random.Generator, operator: str, direction: str) -> tuple[Inputs, dict[str, Any]]:
    """Draw the inputs and attributes of a node."""
    optional = {name: bool(rng.random() < 0.5) for name in INPUTS[3:6]}
    attributes: dict[str, Any] = {"direction": direction}
    if operator == "LSTM":
        optional |= {"initial_c": bool(rng.random() < 0.5), "P": bool(rng.random() < 0.3)}
        attributes["input_forget"] = int(rng.random() < 0.3)
    if operator == "GRU":
        attributes["linear_before_reset"] = int(rng.random() < 0.5)
    if rng.random() < 0.7:
        n = DIRECTIONS[direction] * {"LSTM": 3, "GRU": 2, "RNN": 1}[operator]
        attributes["activations"] = [str(name) for name in rng.choice(FUNCTIONS, n)]
        attributes |= {f"activation_{k}": rng.uniform(0.2, 0.8, n).tolist() for k in ("alpha", "beta")}
    if rng.random() < 0.3:
        attributes["clip"] = float(rng.uniform(0.1, 1))
    return make_inputs(operator, direction, seed=int(rng.integers(1 << 30)), **optional), attributes


@pytest.mark.parametrize("seed", range(50))
@by_direction
@by_operator
def test_random_nodes_agree_with_onnxruntime(operator: str, direction: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *map(ord, operator + direction)])
    inputs, attributes = draw(rng, operator, direction)
    model = model_of(node_of(operator, inputs, **attributes), inputs, opset=int(rng.choice([7, 13, 14, 21, 22])))
    actual = run_model(model, list(inputs.values()))
    assert_near(actual, run_onnxruntime(model, inputs), RUNTIME_TOLERANCE)


# Of the three others ONNX Runtime takes alpha and beta as zero, where the specification has 1, or nothing.
@pytest.mark.parametrize("name", sorted({*FUNCTIONS} - {"Affine", "ScaledTanh", "ThresholdedRelu"}))
def test_functions_without_alpha_and_beta_agree_with_onnxruntime(name: str) -> None:
    inputs = make_inputs("RNN")
    model = model_of(node_of("RNN", inputs, activations=[name]), inputs)
    assert_near(run_model(model, inputs), run_onnxruntime(model, inputs), RUNTIME_TOLERANCE)


def test_the_default_that_the_specification_gives_is_for_two_directions_and_fits_one() -> None:
    inputs = make_inputs("RNN")
    assert_same(run("RNN", inputs, activations=["Tanh", "Tanh"]), run("RNN", inputs))


# What the specification says of the functions, one number at a time
FORMULAS: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {
    "relu": ({}, lambda x: max(0.0, x)),
    "Tanh": ({}, lambda x: (1 - np.exp(-2 * x)) / (1 + np.exp(-2 * x))),
    "SIGMOID": ({}, lambda x: 1 / (1 + np.exp(-x))),
    "Affine": ({"activation_alpha": [0.25]}, lambda x: 0.25 * x),
    "affine": ({"activation_alpha": [0.25], "activation_beta": [0.5]}, lambda x: 0.25 * x + 0.5),
    "LeakyRelu": ({}, lambda x: x if x >= 0 else 0.01 * x),
    "leakyrelu": ({"activation_alpha": [0.25]}, lambda x: x if x >= 0 else 0.25 * x),
    "ThresholdedRelu": ({}, lambda x: x if x >= 1 else 0),
    "thresholdedrelu": ({"activation_alpha": [0.25]}, lambda x: x if x >= 0.25 else 0),
    "ScaledTanh": ({"activation_alpha": [0.25], "activation_beta": [0.5]}, lambda x: 0.25 * np.tanh(0.5 * x)),
    "HardSigmoid": ({}, lambda x: min(max(0.2 * x + 0.5, 0), 1)),
    "hardsigmoid": ({"activation_alpha": [0.25], "activation_beta": [0.75]}, lambda x: min(max(x / 4 + 0.75, 0), 1)),
    "Elu": ({}, lambda x: x if x >= 0 else np.exp(x) - 1),
    "elu": ({"activation_alpha": [0.25]}, lambda x: x if x >= 0 else 0.25 * (np.exp(x) - 1)),
    "Softsign": ({}, lambda x: x / (1 + abs(x))),
    "Softplus": ({}, lambda x: np.log(1 + np.exp(x))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_functions_are_those_of_the_specification_whatever_the_case_of_their_names(name: str) -> None:
    attributes, formula = FORMULAS[name]
    x = np.array([-30, -3, -1, -0.3, 0, 0.25, 0.3, 1, 1.5, 30])
    one, zero = np.ones((1, 1, 1)), np.zeros((1, 1, 1))  # one unit without memory: Y = f(X)
    inputs = {"X": x[:, None, None], "W": one, "R": zero}
    y, _ = run("RNN", inputs, hidden_size=1, activations=[name], **attributes)
    np.testing.assert_allclose(y.ravel(), [formula(value) for value in x], rtol=1e-14, atol=1e-16)


def test_functions_of_huge_numbers_and_nan_are_no_warning() -> None:
    x = np.array([[[3e38]], [[-3e38]], [[np.nan]]], np.float32)
    inputs = {"X": x, "W": np.ones((1, 1, 1), np.float32), "R": np.zeros((1, 1, 1), np.float32)}
    for name in FUNCTIONS:
        alpha_beta: dict[str, Any] = {"activation_alpha": [2.0], "activation_beta": [0.5]}
        y, _ = run("RNN", inputs, hidden_size=1, activations=[name], **alpha_beta)
        assert np.isnan(y[2]).all(), name
        assert not np.isnan(y[0]).any(), name


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e38])
@by_operator
def test_steps_of_tiny_and_huge_numbers_raise_nothing(operator: str, scale: float) -> None:
    inputs = make_inputs(operator, B=True, initial_h=True, initial_c=operator == "LSTM", P=operator == "LSTM")
    inputs = {name: a if name == "X" else (a * scale).astype(np.float32) for name, a in inputs.items()}
    n = {"LSTM": 3, "GRU": 2, "RNN": 1}[operator]
    for name in FUNCTIONS:
        given: dict[str, Any] = {"activations": [name] * n, "activation_alpha": [0.3] * n, "activation_beta": [0.2] * n}
        with np.errstate(all="ignore"):
            expected = run(operator, inputs, **given)
        with np.errstate(all="raise"):
            outputs = run(operator, inputs, **given)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(outputs, expected, strict=True))


# Two ways to the same


@by_direction
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("has", [{}, {"B": True, "sequence_lens": True, "initial_h": True, "initial_c": True}])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LSTM", {}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("RNN", {}),
        ("RNN", {"activations": ["Relu"]}),
    ],
)
def test_kernels_agree_with_the_steps_that_others_take(
    operator: str, attributes: dict[str, Any], has: dict[str, bool], dtype: str, direction: str
) -> None:
    has = {name: True for name in has if operator == "LSTM" or name != "initial_c"}
    inputs = make_inputs(operator, direction, dtype=dtype, **has)
    attributes = {k: v * DIRECTIONS[direction] if isinstance(v, list) else v for k, v in attributes.items()}
    fused = run(operator, inputs, direction=direction, **attributes)
    stepwise = run(operator, inputs, direction=direction, clip=1e30, **attributes)  # no kernel clips
    assert_near(stepwise, fused, 1e-6 if dtype == "float32" else 1e-14)


def test_a_kernel_gives_its_own_bits() -> None:
    inputs = make_inputs("GRU", B=True)
    y, y_h = run("GRU", inputs)
    order = np.r_[H : 2 * H, :H, 2 * H : 3 * H]  # z, r, n to r, z, n
    w, r, b_w, b_r = (a[0][order] for a in (inputs["W"], inputs["R"], *np.split(inputs["B"], 2, axis=1)))
    expected = functional.inference("gru_reset_before", inputs["X"], [(w, r, b_w, b_r)])
    assert_same((y[:, 0], y_h), expected)


@by_direction
@pytest.mark.parametrize("clip", [{}, {"clip": 0.5}], ids=["fused", "stepwise"])
@by_operator
def test_layout_1_is_layout_0_with_the_batch_first(operator: str, clip: dict[str, Any], direction: str) -> None:
    has = {"B": True, "sequence_lens": True, "initial_h": True, "initial_c": operator == "LSTM"}
    inputs = make_inputs(operator, direction, **has)
    y, *last = run(operator, inputs, direction=direction, **clip)
    moved = {name: a.swapaxes(0, 1) if name in ("X", "initial_h", "initial_c") else a for name, a in inputs.items()}
    y_moved, *last_moved = run(operator, moved, direction=direction, layout=1, opset=14, **clip)
    assert_same((y_moved, *last_moved), (y.transpose(2, 0, 1, 3), *(part.swapaxes(0, 1) for part in last)))


@pytest.mark.parametrize("clip", [{}, {"clip": 0.5}], ids=["fused", "stepwise"])
@by_direction
@by_operator
def test_sequences_are_as_if_alone_and_what_lies_beyond_is_not_read(
    operator: str, direction: str, clip: dict[str, Any]
) -> None:
    inputs = make_inputs(operator, direction, B=True, sequence_lens=True, initial_h=True)
    lengths = inputs["sequence_lens"]
    inputs["X"][np.arange(T)[:, None] >= lengths] = np.nan
    y, *last = run(operator, inputs, direction=direction, **clip)
    for b, n in enumerate(lengths):
        assert not y[n:, :, b].any()
        if n == 0:
            assert not any(part[:, b].any() for part in last)
            continue
        alone = {name: inputs[name] for name in ("X", "W", "R", "B", "initial_h")}
        alone |= {"X": inputs["X"][:n, [b]], "initial_h": inputs["initial_h"][:, [b]]}
        y_alone, *last_alone = run(operator, alone, direction=direction, **clip)
        assert_near((y[:n, :, [b]], *(part[:, [b]] for part in last)), (y_alone, *last_alone), 1e-6)


@pytest.mark.parametrize("clip", [{}, {"clip": 0.5}], ids=["fused", "stepwise"])
@pytest.mark.parametrize(("steps", "sequences"), [(0, B), (T, 0), (0, 0)])
@by_operator
def test_no_steps_and_no_sequences_give_empty_outputs(
    operator: str, steps: int, sequences: int, clip: dict[str, Any]
) -> None:
    inputs = make_inputs(operator, "bidirectional")
    inputs["X"] = inputs["X"][:steps, :sequences]
    y, *last = run(operator, inputs, direction="bidirectional", **clip)
    assert y.shape == (steps, 2, sequences, H)
    assert all(part.shape == (2, sequences, H) and not part.any() for part in last[:1] if steps == 0)


@by_operator
def test_each_output_may_be_left_out(operator: str) -> None:
    inputs = make_inputs(operator)
    names = OUTPUTS[: 3 if operator == "LSTM" else 2]
    whole = dict(zip(names, run(operator, inputs), strict=True))
    for kept in itertools.product([True, False], repeat=len(names)):
        outputs = tuple(name if keep else "" for name, keep in zip(names, kept, strict=True))
        if any(kept):
            got = run_node(node_of(operator, inputs, outputs), list(inputs.values()))
            assert_same(got, [whole[name] for name in outputs if name])


@pytest.mark.parametrize("opset", [7, None])
def test_a_node_runs_alone(opset: int | None) -> None:
    inputs = make_inputs("LSTM", B=True, P=True)
    options: dict[str, Any] = {} if opset is None else {"opset_version": opset}
    outputs = run_node(node_of("LSTM", inputs), list(inputs.values()), **options)
    assert_same(outputs, run("LSTM", inputs))


# Models


def test_weights_may_be_constants_or_come_with_each_call() -> None:
    inputs = make_inputs("GRU", B=True)
    weights = {name: a for name, a in inputs.items() if name != "X"}
    x = {"X": inputs["X"]}
    prepared = prepare(model_of(node_of("GRU", inputs), x, weights))
    both = prepare(model_of(node_of("GRU", inputs), inputs, weights))  # inputs with a default, which it stays at
    for _ in range(2):
        assert_same(prepared.run(x), run("GRU", inputs))
        assert_same(prepared.run([inputs["X"]]), run("GRU", inputs))
        assert_same(both.run(x), run("GRU", inputs))


def test_outputs_have_their_names() -> None:
    inputs = make_inputs("LSTM")
    outputs: Any = prepare(model_of(node_of("LSTM", inputs), inputs)).run(inputs)
    assert_same([outputs[name] for name in OUTPUTS], outputs)


def test_nodes_of_different_operators_follow_each_other() -> None:
    inputs = make_inputs("LSTM")
    gru = {name + "2": a for name, a in make_inputs("GRU", seed=1).items() if name != "X"}
    gru["W2"] = np.concatenate([gru["W2"]] * 2, axis=2)
    nodes = [
        node_of("LSTM", inputs, ("Y", "", "")),
        helper.make_node("Squeeze", ["Y", "axes"], ["y"]),
        helper.make_node("GRU", ["y", "W2", "R2"], ["", "Y_h"], hidden_size=H),
    ]
    model = model_of(nodes, inputs, gru | {"axes": np.array([1])})
    assert_near(run_model(model, inputs), run_onnxruntime(model, inputs), RUNTIME_TOLERANCE)


def test_exporters_may_compute_the_sizes_of_a_reshape() -> None:
    inputs = make_inputs("RNN", "bidirectional")
    x = {"X": inputs.pop("X")}
    nodes = [
        node_of("RNN", inputs | x, ("Y", ""), direction="bidirectional"),
        helper.make_node("Transpose", ["Y"], ["y"], perm=[0, 2, 1, 3]),
        helper.make_node("Shape", ["X"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "zero", "two"], ["rows"]),
        helper.make_node("Mul", ["two", "units"], ["features"]),
        helper.make_node("Concat", ["rows", "features"], ["shape"], axis=0),
        helper.make_node("Reshape", ["y", "shape"], ["out"]),
    ]
    sizes = {"zero": np.array([0]), "two": np.array([2]), "units": np.array([H])}
    (y,) = run_model(model_of(nodes, x, inputs | sizes), x)
    Y, _ = run("RNN", x | inputs, direction="bidirectional")
    assert np.array_equal(y, np.concatenate([Y[:, 0], Y[:, 1]], axis=-1))


def test_the_device_is_the_cpu() -> None:
    assert supports_device("CPU")
    assert supports_device("CPU:0")
    assert not supports_device("CUDA")
    model = to_onnx(rnnfast.GRU(I, H))
    assert RnnfastBackend.is_compatible(model)
    assert not RnnfastBackend.is_compatible(model, "CUDA")
    with pytest.raises(ValueError, match=r"^device: expected 'CPU', got 'CUDA'$"):
        prepare(model, "CUDA")


def test_models_with_other_operators_are_refused_with_all_their_names() -> None:
    inputs = make_inputs("RNN")
    nodes = [
        helper.make_node("MatMul", ["X", "X"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Step", ["b"], ["c"], domain="of.mine"),
        node_of("RNN", inputs),
    ]
    model = model_of(nodes, inputs)
    with pytest.raises(ValueError, match=r"got MatMul, Mul, of\.mine\.Step$"):
        prepare(model)
    assert not RnnfastBackend.is_compatible(model)


@pytest.mark.parametrize("opset", [1, 6])
def test_older_opsets_are_refused(opset: int) -> None:
    inputs = make_inputs("RNN")
    with pytest.raises(ValueError, match=rf"^model: expected an opset .* 7 to 22, got {opset}$"):
        prepare(model_of(node_of("RNN", inputs), inputs, opset=opset))


def test_newer_opsets_that_have_the_same_operators_are_read() -> None:
    inputs = make_inputs("RNN")
    assert_same(run("RNN", inputs, opset=onnx.defs.onnx_opset_version()), run("RNN", inputs))


def half(inputs: Inputs) -> Inputs:
    return {name: a.astype(np.float16) for name, a in inputs.items()}


def changed(**arrays: Any) -> Callable[[Inputs], Inputs]:
    return lambda inputs: inputs | arrays


F32 = np.float32
INVALID: dict[str, tuple[str, dict[str, Any], Callable[[Inputs], Inputs], str]] = {
    "direction": (
        "GRU",
        {"direction": "both"},
        changed(),
        "direction: expected 'forward' or 'reverse' or .*, got 'both'",
    ),
    "layout": ("GRU", {"layout": 2}, changed(), "layout: expected 0 or 1, got 2"),
    "clip": ("GRU", {"clip": -1.0}, changed(), "clip: expected a positive number, got -1.0"),
    "hidden_size": ("GRU", {"hidden_size": 0}, changed(), "hidden_size: expected at least 1, got 0"),
    "too few": ("GRU", {"activations": ["Tanh"]}, changed(), r"activations: expected 2 names, got \['Tanh'\]"),
    "too many": ("LSTM", {"activations": ["Tanh"] * 6}, changed(), "activations: expected 3 names, got"),
    "unknown": ("RNN", {"activations": ["Swish"]}, changed(), r"activations: expected .*, got \['Swish'\]"),
    "no alpha": (
        "RNN",
        {"activations": ["Affine"]},
        changed(),
        "activation_alpha: expected a value for affine, got none",
    ),
    "no beta": (
        "RNN",
        {"activations": ["ScaledTanh"], "activation_alpha": [1.0]},
        changed(),
        "activation_beta: expected a value for scaledtanh, got none",
    ),
    "X of two axes": (
        "RNN",
        {},
        changed(X=np.zeros((T, I), F32)),
        rf"X: expected shape \(T, B, {I}\), got \({T}, {I}\)",
    ),
    "X": ("RNN", {}, changed(X=np.zeros((T, B, 9), F32)), rf"X: expected shape \({T}, {B}, {I}\), got \({T}, {B}, 9\)"),
    "W": ("RNN", {}, changed(W=np.zeros((2, H, I), F32)), rf"W: expected shape \(1, {H}, {I}\), got"),
    "R": ("LSTM", {}, changed(R=np.zeros((1, 4 * H, 9), F32)), rf"R: expected shape \(1, {4 * H}, {H}\), got"),
    "R of two axes": ("GRU", {}, changed(R=np.zeros((3, 9), F32)), r"R: expected shape \(D, 3·H, H\), got \(3, 9\)"),
    "B": ("GRU", {}, changed(B=np.zeros((1, 3 * H), F32)), rf"B: expected shape \(1, {6 * H}\), got"),
    "P": ("LSTM", {}, changed(P=np.zeros((1, 4 * H), F32)), rf"P: expected shape \(1, {3 * H}\), got"),
    "initial_h": (
        "RNN",
        {},
        changed(initial_h=np.zeros((B, 1, H), F32)),
        rf"initial_h: expected shape \(1, {B}, {H}\), got",
    ),
    "lengths": (
        "RNN",
        {},
        changed(sequence_lens=np.array([0, T + 1, 1, 1], np.int32)),
        rf"sequence_lens: expected 0 to {T}, got \[0 {T + 1} 1 1\]",
    ),
    "number of lengths": (
        "RNN",
        {},
        changed(sequence_lens=np.ones(2, np.int32)),
        r"sequence_lens: expected shape \(4,\)",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_errors_name_the_node_what_was_expected_and_what_came(case: str) -> None:
    operator, attributes, change, message = INVALID[case]
    inputs = change(make_inputs(operator))
    inputs = {name: inputs[name] for name in INPUTS if name in inputs}
    with pytest.raises(ValueError, match=f"^{operator} 'a': {message}"):
        run(operator, inputs, **attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half, "W: expected dtype float32 or float64, got float16"),
        (changed(X=np.zeros((T, B, I))), "X: expected dtype float32, got float64"),
        (changed(sequence_lens=np.ones(B, np.int64)), "sequence_lens: expected dtype int32, got int64"),
    ],
)
def test_errors_name_the_dtype(change: Callable[[Inputs], Inputs], message: str) -> None:
    inputs = change(make_inputs("RNN"))
    inputs = {name: inputs[name] for name in INPUTS if name in inputs}
    with pytest.raises(TypeError, match=f"^RNN 'a': {message}(;|$)"):
        run_node(node_of("RNN", inputs), list(inputs.values()))


def test_inputs_that_are_missing_or_too_many_are_named() -> None:
    inputs = make_inputs("RNN")
    prepared = prepare(model_of(node_of("RNN", inputs), inputs))
    with pytest.raises(ValueError, match=r"^inputs: expected X, W, R, got 1 arrays$"):
        prepared.run([inputs["X"]])
    with pytest.raises(ValueError, match=r"^inputs: expected X, W, R, got X$"):
        prepared.run({"X": inputs["X"]})
    with pytest.raises(ValueError, match=r"^inputs: expected X, W, R, got 4 arrays$"):
        prepared.run([*inputs.values(), inputs["X"]])


def test_a_value_that_nothing_computes_is_named() -> None:
    inputs = make_inputs("RNN")
    nodes = [helper.make_node("RNN", ["X", "W", "R"], ["Y"], hidden_size=H)]
    model = model_of(nodes, {"X": inputs["X"]})
    with pytest.raises(
        ValueError, match=r"^RNN 'Y': expected inputs, constants and results of nodes before, got W, R$"
    ):
        prepare(model)


def test_errors_of_nodes_that_move_data_name_them() -> None:
    inputs = make_inputs("RNN")
    node = helper.make_node("Reshape", ["X", "shape"], ["Y"], "flat")
    model = model_of(node, inputs, {"shape": np.array([7, 7])})
    with pytest.raises(ModelError, match=r"^Reshape 'flat': .*reshape"):
        run_model(model, inputs)


def test_nodes_are_held_to_the_schema_of_their_operator() -> None:
    inputs = make_inputs("RNN")
    for kind in (onnx.checker.ValidationError, ModelError):
        with pytest.raises(kind, match=r"^RNN 'a': .*layout"):
            run("RNN", inputs, opset=13, layout=1)


# Layers

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "three layers, two directions": {"num_layers": 3, "bidirectional": True},
    "no bias": {"num_layers": 2, "bias": False},
    "batch first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "batch first, one layer": {"batch_first": True},
    "learned state": {"num_layers": 2, "bidirectional": True, "learn_initial_state": True},
    "learned state, batch first": {"batch_first": True, "learn_initial_state": True},
}
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
by_state = pytest.mark.parametrize("given", [False, True], ids=["no state", "state"])


def layer_of(cell: str, form: dict[str, Any], dtype: str) -> Any:
    layer = make_layer(cell, (I, H), dtype=dtype, **form)
    for name in {"initial_h", "initial_c"} & layer.parameters.keys():
        layer.parameters[name][...] = np.random.default_rng(1).standard_normal(layer.parameters[name].shape)
    return layer


@by_state
@by_dtype
@by_form
@by_cell
def test_a_model_of_a_layer_gives_what_the_layer_gives(
    cell: str, form: dict[str, Any], dtype: str, given: bool
) -> None:
    layer = layer_of(cell, form, dtype)
    model = to_onnx(layer, state=given)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(2).standard_normal((B, T, I) if layer.batch_first else (T, B, I)).astype(dtype)
    state = make_state(layer, (B,), 3) if given else None
    y, last = layer(x, state)
    inputs = {"x": x} | (dict(zip(("h_0", "c_0"), parts(state), strict=False)) if given else {})
    outputs = run_model(model, inputs)
    assert_same(outputs, (y, *parts(last)))
    assert [each.name for each in model.graph.output] == ["y", "h_n", "c_n"][: len(outputs)]
    if dtype == "float32":  # all that ONNX Runtime has
        assert_near(run_onnxruntime(model, inputs), (y, *parts(last)), RUNTIME_TOLERANCE)


@by_dtype
@by_form
@by_cell
def test_a_layer_comes_back_from_its_model_bit_for_bit(cell: str, form: dict[str, Any], dtype: str) -> None:
    layer = layer_of(cell, form, dtype)
    back = from_onnx(to_onnx(layer))
    expected = layer_of(cell, {**form, "learn_initial_state": False}, dtype)
    assert repr(back) == repr(expected)
    assert back.state_dict().keys() == expected.state_dict().keys()
    assert all(np.array_equal(p, layer.parameters[name]) for name, p in back.state_dict().items())


@by_cell
def test_a_model_takes_any_number_of_steps_and_sequences(cell: str) -> None:
    layer = make_layer(cell, num_layers=2)
    prepared = prepare(to_onnx(layer))
    for steps, sequences in [(1, 1), (3, 7), (8, 0)]:
        x = np.ones((steps, sequences, layer.input_size), np.float32)
        assert_same(prepared.run([x])[:1], [layer(x)[0]])


def test_one_layer_of_a_stack_is_found_by_name_by_number_or_as_itself() -> None:
    stack = rnnfast.GRU(I, H, num_layers=2, bidirectional=True, rng=0)
    model = to_onnx(stack)
    node = next(each for each in model.graph.node if each.name == "Y_1")
    for chosen in ("Y_1", 1, node):
        layer = from_onnx(model, chosen)
        assert repr(layer) == f"GRU({2 * H}, {H}, bidirectional=True)"
        for name, p in layer.state_dict().items():
            assert np.array_equal(p, stack.parameters[name.replace("_l0", "_l1")])


def branched(*branches: Sequence[Any], within: str = "") -> Any:
    """Return a model whose input goes through the layers of one branch or of another, maybe in another If's branch."""
    graphs = []
    for k, layers in enumerate(branches):
        parts = [to_onnx(layer).graph for layer in layers]
        for n, part in enumerate(parts):
            for node in part.node:
                node.name = f"{k}_{n}_{node.name}" if node.name else ""
                node.input[:] = [f"{k}_{n}_{name}" if name and name != "x" else name for name in node.input]
                node.output[:] = [f"{k}_{n}_{name}" if name else "" for name in node.output]
            for tensor in part.initializer:
                tensor.name = f"{k}_{n}_{tensor.name}"
        nodes = [node for part in parts for node in part.node] or [helper.make_node("Identity", ["x"], [f"{k}_0_y"])]
        out = helper.make_tensor_value_info(f"{k}_0_y", onnx.TensorProto.FLOAT, [None] * 3)
        graphs.append(
            helper.make_graph(nodes, f"branch_{k}", [], [out], [t for part in parts for t in part.initializer])
        )
    node = helper.make_node("If", ["which"], ["y"], "choice", then_branch=graphs[0], else_branch=graphs[1])
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 3)]
    if within:
        inner = helper.make_graph([node], "inner", [], outputs)
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["other"])], "other", [], [])
        other.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [None] * 3))
        node = helper.make_node("If", ["which"], ["y_outer"], within, then_branch=other, else_branch=inner)
        outputs = [helper.make_tensor_value_info("y_outer", onnx.TensorProto.FLOAT, [None] * 3)]
    inputs = [
        helper.make_tensor_value_info("which", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["T", "B", I]),
    ]
    graph = helper.make_graph([node], "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def then_branch_of(model: Any) -> Any:
    return next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")


@pytest.mark.parametrize("within", ["", "outer"])
def test_layers_in_branches_are_found(within: str) -> None:
    one, other = rnnfast.LSTM(I, H, num_layers=2, rng=0), rnnfast.GRU(I, H, bidirectional=True, rng=1)
    none: list[Any] = []
    for first, second in (([one], none), (none, [one])):
        back = from_onnx(branched(first, second, within=within))
        assert repr(back) == repr(one)
        assert all(np.array_equal(p, one.parameters[name]) for name, p in back.state_dict().items())
    model = branched([one], [other], within=within)
    for chosen in (2, "1_0_Y_0"):
        back = from_onnx(model, chosen)
        assert repr(back) == repr(other)
        assert all(np.array_equal(p, other.parameters[name]) for name, p in back.state_dict().items())
    inside = f" in else_branch of {within}" if within else ""
    where = (
        f"0_0_Y_0 in then_branch of choice{inside}, 0_0_Y_1 in then_branch of choice{inside}, 1_0_Y_0 in else_branch"
    )
    with pytest.raises(
        ModelError, match=f"^model: expected recurrent nodes in one branch, got {where} of choice{inside};"
    ):
        from_onnx(model)


def test_weights_of_a_branch_may_lie_around_it() -> None:
    layer = rnnfast.RNN(I, H, rng=0)
    model = branched([layer], [])
    inside = then_branch_of(model)
    tensors = [*inside.initializer]
    model.graph.initializer.extend(tensors[:2])
    for tensor in tensors[2:]:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del inside.initializer[:]
    back = from_onnx(model)
    assert all(np.array_equal(p, layer.parameters[name]) for name, p in back.state_dict().items())


def test_what_is_wrong_in_a_branch_is_named() -> None:
    model = branched([rnnfast.RNN(I, H)], [])
    then_branch_of(model).node[-1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="expected inputs, constants and results of nodes before, got nowhere"):
        from_onnx(model)


def test_a_node_of_layout_1_is_a_layer_with_the_batch_first() -> None:
    inputs = make_inputs("LSTM", B=True)
    x = inputs.pop("X").swapaxes(0, 1)
    model = model_of(node_of("LSTM", inputs | {"X": x}, layout=1), {"X": x}, inputs)
    layer = from_onnx(model)
    assert layer.batch_first
    assert np.array_equal(layer(x)[0], run_model(model, [x])[0][:, :, 0])


def test_a_stack_whose_input_is_transposed_and_transposed_back_is_as_before() -> None:
    model = to_onnx(rnnfast.RNN(I, H, batch_first=True))
    again = helper.make_node("Transpose", ["x_steps"], ["x_again"], perm=[1, 0, 2])
    model.graph.node.insert(1, again)
    model.graph.node[2].input[0] = "x_again"
    assert not from_onnx(model).batch_first


def test_a_bias_that_one_layer_has_is_zero_in_the_others() -> None:
    model = to_onnx(rnnfast.RNN(I, H, num_layers=2, rng=0))
    next(each for each in model.graph.node if each.name == "Y_1").input[3] = ""
    layer = from_onnx(model)
    assert layer.bias
    assert layer.bias_ih_l0.any()
    assert not layer.bias_ih_l1.any()
    assert not layer.bias_hh_l1.any()


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "clip": ("GRU", {"clip": 1.0}, {}, "clip: expected none, as a layer has, got 1.0"),
    "reverse": (
        "RNN",
        {"direction": "reverse"},
        {},
        "direction: expected 'forward' or 'bidirectional', .* got 'reverse'",
    ),
    "activations": ("RNN", {"activations": ["Elu"]}, {}, r"activations: expected those of a layer, .* got \['Elu'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nodes_that_no_layer_can_be_are_refused(case: str) -> None:
    operator, attributes, has, message = REFUSED[case]
    inputs = make_inputs(operator, **has)
    constants = {name: a for name, a in inputs.items() if name != "X"}
    model = model_of(node_of(operator, inputs, **attributes), {"X": inputs["X"]}, constants)
    with pytest.raises(ValueError, match=f"^{operator} 'a': {message}"):
        from_onnx(model)


def test_weights_that_are_no_constants_are_refused() -> None:
    inputs = make_inputs("GRU")
    model = model_of(node_of("GRU", inputs), inputs)
    with pytest.raises(ValueError, match=r"^GRU 'a': W, R: expected constants, as a layer has, got computed values$"):
        from_onnx(model)


def test_nodes_that_are_no_stack_are_refused() -> None:
    inputs = make_inputs("RNN")
    constants = {name: a for name, a in inputs.items() if name != "X"}
    beside = [helper.make_node("RNN", ["X", "W", "R"], [f"Y{k}"], f"rnn{k}", hidden_size=H) for k in range(2)]
    with pytest.raises(ValueError, match=r"^RNN 'rnn1': X: expected Y of RNN 'rnn0', as in a stack, got 'X'$"):
        from_onnx(model_of(beside, {"X": inputs["X"]}, constants))
    square = rnnfast.RNN(H, H, num_layers=2, batch_first=True)
    for swapped in (to_onnx(square), to_onnx(rnnfast.GRU(H, H, num_layers=2, bidirectional=True))):
        second = next(each for each in swapped.graph.node if each.name == "Y_1")
        turn = helper.make_node("Transpose", [second.input[0]], ["turned"], perm=[1, 0, 2])
        swapped.graph.node.insert([*swapped.graph.node].index(second), turn)
        second.input[0] = "turned"
        with pytest.raises(ValueError, match=r"X: expected Y of .*, as in a stack, got its axes as"):
            from_onnx(swapped)
    untransposed = to_onnx(rnnfast.LSTM(I, H, num_layers=2, bidirectional=True))
    reshape = next(each for each in untransposed.graph.node if each.op_type == "Reshape")
    reshape.input[0] = "Y_0"
    with pytest.raises(ValueError, match=r"X: expected Y of .*, as in a stack, got its axes as"):
        from_onnx(untransposed)
    model = to_onnx(rnnfast.RNN(I, H, num_layers=2))
    second = next(each for each in model.graph.node if each.name == "Y_1")
    second.attribute.append(helper.make_attribute("activations", ["Relu"]))
    del second.attribute[0]
    with pytest.raises(ValueError, match=r"^RNN 'Y_1': expected rnn_tanh of float32 .*, as in a stack, got rnn_relu"):
        from_onnx(model)


@pytest.mark.parametrize("node", ["Y_2", 2, -1, helper.make_node("Relu", ["x"], ["y"], "Y_2")], ids=str)
def test_a_node_that_is_not_there_is_named(node: Any) -> None:
    model = to_onnx(rnnfast.RNN(I, H, num_layers=2))
    with pytest.raises(ValueError, match=r"^node: expected one of Y_0, Y_1, by name or number, got"):
        from_onnx(model, node)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (rnnfast.LSTM(I, H, zoneout=(0.0, 0.1)), "zoneout=0"),
        (rnnfast.GRU(I, H, zoneout=0.1), "zoneout=0"),
        (rnnfast.RNN(I, H, leak=0.5), "leak=1"),
        (rnnfast.LSTM(I, H, proj_size=2), "proj_size=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_options_that_onnx_lacks_are_refused_by_name(layer: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^layer: expected {name}.*, as ONNX has it, got {type(layer).__name__}\("):
        to_onnx(layer)


def test_dropout_that_acts_in_training_only_is_not_carried() -> None:
    rates: dict[str, Any] = {"weight_dropout": 0.5, "recurrent_dropout": 0.5, "candidate_dropout": 0.5}
    layer = rnnfast.GRU(I, H, rng=0, **rates)
    assert to_onnx(layer) == to_onnx(rnnfast.GRU(I, H, rng=0))


def test_what_is_no_layer_and_no_model_is_refused() -> None:
    for take in (prepare, from_onnx):
        with pytest.raises(TypeError, match=r"^model: expected an onnx\.ModelProto, got str$"):
            take("model.onnx")
    others: list[Any] = [rnnfast.Linear(I, H), rnnfast.SLSTM(I, H)]
    for other in others:
        with pytest.raises(TypeError, match=rf"^layer: expected an LSTM, a GRU or an RNN, got {type(other).__name__}$"):
            to_onnx(other)
    with pytest.raises(
        ValueError, match=r"^model: expected a node LSTM, GRU, RNN, com\.microsoft\.DynamicQuantizeLSTM, got none$"
    ):
        from_onnx(model_of(helper.make_node("Identity", ["X"], ["Y"]), make_inputs("RNN")))


@pytest.mark.parametrize(
    ("form", "dynamo"),
    [({}, False), ({"batch_first": True}, False), ({"bias": False}, False), ({}, True)],  # the last takes ten seconds
    ids=["TorchScript", "TorchScript, batch first", "TorchScript, no bias", "torch.export"],
)
def test_models_that_torch_exports_are_layers_and_run(
    form: dict[str, Any], dynamo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "LEAST_ROOM", 1 << 12)  # what is relative to the sizes is enough
    torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    pytest.importorskip("onnxscript", reason="onnxscript, which torch exports with, is not installed")
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(I, H, num_layers=2, bidirectional=True, **form).eval()
    x, batch = torch.randn(B, T, I), 0 if form.get("batch_first") else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch's own exporters
        if dynamo:
            sizes = ({batch: torch.export.Dim("batch")},)
            model = torch.onnx.export(theirs, (x,), dynamo=True, dynamic_shapes=sizes, verbose=False).model_proto
        else:
            file, axes = BytesIO(), {"x": {batch: "batch"}}
            torch.onnx.export(theirs, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
            model = onnx.load_from_string(file.getvalue())
    layer = from_onnx(model)
    assert layer.batch_first == form.get("batch_first", False)
    assert layer.state_dict().keys() == theirs.state_dict().keys()
    assert all(np.array_equal(p, theirs.state_dict()[name].numpy()) for name, p in layer.state_dict().items())
    with torch.no_grad():
        y, (h, c) = theirs(x)
    expected = [part.numpy() for part in (y, h, c)]
    assert_near(run_model(model, [x.numpy()]), expected, RUNTIME_TOLERANCE)


def exported_with_lengths(kind: str, inputs: Any, form: dict[str, Any], *, in_order: bool) -> tuple[Any, Any]:
    """Return a layer of torch between packing and unpacking, and what torch exports of it."""
    torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    pytest.importorskip("onnxscript", reason="onnxscript, which torch exports with, is not installed")
    rnn, batch_first = torch.nn.utils.rnn, form.get("batch_first", False)

    class Packed(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(torch.nn, kind)(I, H, **form)

        def forward(self, x: Any, lengths: Any) -> Any:
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=in_order)
            y, last = self.layer(packed)
            return rnn.pad_packed_sequence(y, batch_first=batch_first)[0], last

    torch.manual_seed(0)
    module, file = Packed().eval(), BytesIO()
    names = {"input_names": ["x", "lengths"], "dynamic_axes": {"x": {0: "a", 1: "b"}, "lengths": {0: "c"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch's own exporter; the newer one takes no packed sequences
        torch.onnx.export(module, inputs, file, dynamo=False, **names)
    return module, onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "in any order"])
@pytest.mark.parametrize("form", [{}, {"batch_first": True, "num_layers": 2, "bidirectional": True}], ids=["", "stack"])
@by_operator
def test_models_that_torch_exports_with_lengths_run_and_are_layers(
    operator: str, form: dict[str, Any], in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "LEAST_ROOM", 1 << 12)
    torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    batch_first = form.get("batch_first", False)

    def inputs_of(lengths: list[int], seed: int) -> Inputs:
        shape = (len(lengths), max(lengths), I) if batch_first else (max(lengths), len(lengths), I)
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return {"x": x, "lengths": np.array(lengths)}

    first = inputs_of([5, 3, 2, 1], 0)
    module, model = exported_with_lengths(
        operator, tuple(map(torch.from_numpy, first.values())), form, in_order=in_order
    )
    counting = {"Cast"} if in_order else {"Cast", "Range", "ReduceProd", "ScatterElements", "TopK"}
    assert counting <= {node.op_type for node in model.graph.node}
    assert RnnfastBackend.is_compatible(model)
    prepared = prepare(model)
    for inputs in (first, inputs_of([7, 7, 1] if in_order else [2, 7, 1, 5, 7], 1)):
        outputs = prepared.run(inputs)
        assert_near(outputs, run_onnxruntime(model, inputs), RUNTIME_TOLERANCE)
        with torch.no_grad():
            y, last = module(*map(torch.from_numpy, inputs.values()))
        assert_near(outputs, [a.numpy() for a in (y, *parts(last))], RUNTIME_TOLERANCE)
    layer = from_onnx(model)
    assert layer.batch_first == batch_first
    theirs = module.layer.state_dict()
    assert layer.state_dict().keys() == theirs.keys()
    assert all(np.array_equal(p, theirs[name].numpy()) for name, p in layer.state_dict().items())


def test_zero_states_as_tensorflow_exports_them_run() -> None:
    inputs = make_inputs("LSTM", B=True)
    x = {"X": inputs["X"]}
    nodes = [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["shape_32"], to=onnx.TensorProto.INT32),
        helper.make_node("Slice", ["shape_32", "one", "two", "zero"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "zero"], ["sequences"]),
        helper.make_node("Unsqueeze", ["sequences", "zero"], ["rows_32"]),
        helper.make_node("Concat", ["one_32", "rows_32", "units_32"], ["state_32"], axis=0),
        helper.make_node("Cast", ["state_32"], ["state"], to=onnx.TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["state"], ["h"]),
        helper.make_node("Expand", ["nothing", "state"], ["c"]),
        helper.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "Y_h", "Y_c"], hidden_size=H),
    ]
    constants = {name: inputs[name] for name in "WRB"}
    constants |= {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "nothing": np.zeros(1, np.float32)}
    constants |= {"one_32": np.array([1], np.int32), "units_32": np.array([H], np.int32)}
    model = model_of(nodes, x, constants)
    outputs = run_model(model, x)
    assert_near(outputs, run_onnxruntime(model, x), RUNTIME_TOLERANCE)
    assert_same(outputs, run("LSTM", inputs))


FLOATS = {
    "Cast to floats": helper.make_node("Cast", ["lengths"], ["out"], to=onnx.TensorProto.FLOAT),
    "Cast": helper.make_node("Cast", ["X"], ["out"], to=onnx.TensorProto.INT64),
    "Mul": helper.make_node("Mul", ["X", "X"], ["out"]),
    "Mul of constants": helper.make_node("Mul", ["half", "half"], ["out"]),
    "TopK": helper.make_node("TopK", ["X", "k"], ["out", "places"]),
    "ReduceProd": helper.make_node("ReduceProd", ["X"], ["out"]),
}


@pytest.mark.parametrize("case", FLOATS)
def test_operators_that_count_take_integers_alone(case: str) -> None:
    half = helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.full(2, 0.5, np.float32)))
    inputs = {"X": make_inputs("RNN")["X"], "lengths": np.ones(B, np.int32)}
    model = model_of([half, FLOATS[case]], inputs, {"k": np.array([1])})
    with pytest.raises(ModelError, match=rf"^model: expected .* got {FLOATS[case].op_type}$"):
        prepare(model)


def test_rnnfast_does_without_onnx() -> None:
    subprocess.run([sys.executable, "-c", "import rnnfast, sys; assert 'onnx' not in sys.modules"], check=True)
