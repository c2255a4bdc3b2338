"""Malformed ONNX models: whatever comes of them is a result or a ModelError, in bounded memory and without files.

Each call takes one of a few models, changes its bytes or its graph, and prepares, runs and converts it. Its number and
the seed determine a call, so that any can be repeated: a failure prints the command for that.

    python tests/interop/fuzz_onnx.py --calls 100000 --seed 1
"""

import argparse
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.onnx import ModelError, _graphs, _memory, _operators, _quantizing, from_onnx, prepare, run_node, to_onnx

Rng: TypeAlias = np.random.Generator
Model: TypeAlias = Any  # onnx.ModelProto

T, B, I, H = 5, 4, 3, 6
ROOM = 1 << 20  # bytes, in place of LEAST_ROOM: what a model may make takes no time
MEMORY = 2 << 30  # bytes beside those at the start: enough for any call, and far from what models ask for
SECONDS = 60  # of a call: if it takes longer it does not come back
ENORMOUS = (-1, 0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**60, 2**62, 2**63 - 1, -(2**31), -(2**63))


# Seeds


def seed_of_lengths() -> Model:
    """Return what torch exports of packed sequences in any order, with the sizes computed."""
    gru = rnnfast.GRU(I, H, bidirectional=True, rng=0)
    model = to_onnx(gru, state=False)
    recurrent = next(node for node in model.graph.node if node.op_type == "GRU")
    constants = {
        "axis_1": [1],
        "minus_1": -1,
        "0": 0,
        "1": 1,
        "units": [H],
        "two": [2],
        "zero": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["lengths"], ["long"], to=TensorProto.INT64),
        helper.make_node("Shape", ["long"], ["all"]),
        helper.make_node("TopK", ["long", "all"], ["sorted", "order"], axis=-1, largest=1),
        helper.make_node("Gather", ["x", "order"], ["x_sorted"], axis=1),
        helper.make_node("Cast", ["sorted"], ["sequence_lens"], to=TensorProto.INT32),
        helper.make_node("ReduceProd", ["all"], ["n"], keepdims=0),
        helper.make_node("Range", ["0", "n", "1"], ["places"]),
        helper.make_node("ConstantOfShape", ["all"], ["zeros"], value=numpy_helper.from_array(np.zeros(1, np.int64))),
        helper.make_node("ScatterElements", ["zeros", "order", "places"], ["unsort"], axis=0),
        helper.make_node("Mul", ["two", "axis_1"], ["directions"]),
        helper.make_node("Concat", ["directions", "all", "units"], ["state_shape"], axis=0),
        helper.make_node("Expand", ["zero", "state_shape"], ["h_0"]),
    ]
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    recurrent.input[0] = "x_sorted"
    recurrent.input.extend(["sequence_lens", "h_0"])
    model.graph.node.append(helper.make_node("Gather", ["h_n", "unsort"], ["h_unsorted"], axis=1))
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
    model.graph.output[-1].name = "h_unsorted"
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return model


def seed_of_folding() -> Model:
    """Return a node whose weights are made of constants by all that moves data."""
    rng = np.random.default_rng(0)
    tensor = numpy_helper.from_array(rng.standard_normal((2, 4 * H, I)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Constant", [], ["both"], value=tensor),
        helper.make_node("Split", ["both"], ["first", "second"], axis=0),
        helper.make_node("Slice", ["second", "from", "to", "axes"], ["part"]),
        helper.make_node("Concat", ["part", "rest"], ["W"], axis=1),
        helper.make_node("Squeeze", ["first", "from"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "shape"], ["shaped"]),
        helper.make_node("Unsqueeze", ["shaped", "from"], ["lifted"]),
        helper.make_node("ConstantOfShape", ["r_shape"], ["R"]),
        helper.make_node("Expand", ["b", "b_shape"], ["B"]),
        helper.make_node("Identity", ["p"], ["P"]),
        helper.make_node(
            "LSTM",
            ["X", "W", "R", "B", "", "", "", "P"],
            ["Y", "Y_h", ""],
            "a",
            hidden_size=H,
            clip=3.0,
            input_forget=1,
            activations=["HardSigmoid", "LeakyRelu", "Softsign"],
            activation_alpha=[0.2, 0.1],
        ),
    ]
    constants: dict[str, Any] = {"from": [0], "to": [4 * H - 2], "axes": [1], "shape": [I, 4 * H]}
    constants |= {"r_shape": [1, 4 * H, H], "b_shape": [1, 8 * H]}
    floats = {"rest": (1, 2, I), "b": (1, 1), "p": (1, 3 * H)}
    constants |= {name: np.full(shape, 0.1, np.float32) for name, shape in floats.items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h", "lifted")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def seed_of_integers() -> Model:
    """Return an LSTM of integers with zero points, and a GRU whose weights are quantised and dequantised."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "W": rng.integers(256, size=(2, I, 4 * H)).astype(np.uint8),
        "R": rng.integers(256, size=(2, H, 4 * H)).astype(np.uint8),
        "W_scale": np.full((2, 4 * H), 0.01, np.float32),
        "W_zero": np.full((2, 4 * H), 128, np.uint8),
        "R_scale": np.full(2, 0.01, np.float32),
        "R_zero": np.full(2, 130, np.uint8),
        "G": rng.standard_normal((1, 3 * H, I)).astype(np.float32),
        "G_scale": np.full(3 * H, 0.02, np.float32),
        "G_zero": np.zeros(3 * H, np.int8),
        "S": rng.integers(-127, 128, size=(3 * H, H)).astype(np.int8),
        "S_scale": np.float32(0.01),
        "S_shape": np.array([1, 3 * H, H]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["G", "G_scale", "G_zero"], ["G_integers"], axis=1),
        helper.make_node("DequantizeLinear", ["G_integers", "G_scale", "G_zero"], ["G_floats"], axis=1),
        helper.make_node("DequantizeLinear", ["S", "S_scale"], ["S_floats"]),
        helper.make_node("Reshape", ["S_floats", "S_shape"], ["S_shaped"]),
        helper.make_node("GRU", ["X", "G_floats", "S_shaped"], ["", "h"], hidden_size=H),
        helper.make_node(
            "DynamicQuantizeLSTM",
            ["X", "W", "R", "", "lengths", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"],
            ["Y", "Y_h", ""],
            domain="com.microsoft",
            direction="bidirectional",
            hidden_size=H,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", I]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h", "h")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


SEEDS: dict[str, Callable[[], Model]] = {
    "stack": lambda: to_onnx(rnnfast.LSTM(I, H, num_layers=2, bidirectional=True, rng=0), state=True),
    "peepholes": lambda: to_onnx(rnnfast.LSTM(I, H, peephole=True, coupled_gates=True, rng=0)),
    "learned": lambda: to_onnx(rnnfast.GRU(I, H, batch_first=True, learn_initial_state=True, rng=0)),
    "one": lambda: to_onnx(rnnfast.RNN(I, H, nonlinearity="relu", bias=False, rng=0)),
    "lengths": seed_of_lengths,
    "integers": seed_of_integers,
    "dynamic": lambda: to_onnx(rnnfast.LSTM(I, H, num_layers=2, rng=0).quantize("int8")),
    "dequantised": lambda: to_onnx(rnnfast.GRU(I, H, bidirectional=True, rng=0).quantize("int8")),
    "bfloat16": lambda: to_onnx(rnnfast.RNN(I, H, rng=0).quantize("bfloat16")),
    "folding": seed_of_folding,
}


@cache
def serialized(name: str) -> bytes:
    data: bytes = SEEDS[name]().SerializeToString()
    return data


def inputs_of(model: Model) -> dict[str, Any]:
    """Return arrays for the inputs of a model, of the shapes that it says where these are small."""
    constants = {each.name for each in model.graph.initializer}
    given: dict[str, Any] = {}
    for each in model.graph.input:
        if each.name not in constants:
            sizes = {"T": T, "B": B}
            dims = [d.dim_value or sizes.get(d.dim_param, 2) for d in each.type.tensor_type.shape.dim]
            shape = [min(max(n, 0), 8) for n in dims[:5]]
            lengths = each.type.tensor_type.elem_type == TensorProto.INT32
            given[each.name] = np.arange(1, B + 1, dtype=np.int32) if lengths else np.ones(shape, np.float32)
    return given


# Changes


def choose(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))] if len(options) else None


def changed_bytes(rng: Rng, data: bytes) -> bytes:
    """Change some bytes."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, n = int(rng.integers(len(changed) or 1)), int(rng.integers(1, 9))
        match int(rng.integers(5)):
            case 0 if changed:
                changed[at] = int(rng.integers(256))
            case 1 if changed:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                del changed[at : at + n]
            case 3:
                changed[at:at] = rng.bytes(n)
            case _:
                other = int(rng.integers(len(changed) or 1))
                changed[at : at + n] = changed[other : other + n]
    return bytes(changed)


def names_of(model: Model) -> list[str]:
    graph = model.graph
    made = [name for node in graph.node for name in (*node.input, *node.output)]
    return [*made, *(each.name for each in (*graph.initializer, *graph.input)), "", "nobody"]


def change_edges(rng: Rng, model: Model) -> None:
    """Swap a name of an input or output, drop it, or add one."""
    node = choose(rng, model.graph.node)
    if node is not None:
        names = choose(rng, (node.input, node.output))
        match int(rng.integers(3)):
            case 0 if len(names):
                names[int(rng.integers(len(names)))] = choose(rng, names_of(model))
            case 1 if len(names):
                del names[int(rng.integers(len(names)))]
            case _:
                names.append(choose(rng, names_of(model)))


def change_nodes(rng: Rng, model: Model) -> None:
    """Drop, repeat, move or rename a node."""
    nodes = model.graph.node
    if not len(nodes):
        return
    k, other = (int(n) for n in rng.integers(len(nodes), size=2))
    match int(rng.integers(5)):
        case 0:
            del nodes[k]
        case 1:
            nodes.append(nodes[k])
        case 2:
            node = onnx.NodeProto.FromString(nodes[k].SerializeToString())
            del nodes[k]
            nodes.insert(other, node)
        case 3:
            nodes[k].op_type = choose(
                rng,
                sorted(
                    {
                        *(kind.rpartition(".")[2] for kind in _operators.KINDS),
                        *_graphs.MOVES,
                        *_graphs.COUNTS,
                        *_quantizing.QUANTIZES,
                        *("If", "", "\ud7ff"),
                    }
                ),
            )
        case _:
            nodes[k].domain = choose(rng, ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "mine"))


def any_value(rng: Rng) -> Any:
    """Draw the value of an attribute."""
    floats = (0.0, -1.0, np.nan, np.inf, 1e300)
    return choose(
        rng,
        (
            choose(rng, ENORMOUS),
            [choose(rng, ENORMOUS) for _ in range(int(rng.integers(1, 5)))],
            float(choose(rng, floats)),
            [float(choose(rng, floats)) for _ in range(int(rng.integers(1, 5)))],
            choose(rng, ("", "Tanh", "both", "reverse", b"\xff")),
            ["Tanh", "Nothing", ""][: int(rng.integers(1, 4))],
            numpy_helper.from_array(np.zeros(int(rng.integers(3)), choose(rng, ("float32", "int64", "bool")))),
            helper.make_graph([], "inner", [], []),
        ),
    )


def change_attributes(rng: Rng, model: Model) -> None:
    """Drop, add or replace an attribute, or leave it with another type."""
    node = choose(rng, [node for node in model.graph.node if len(node.attribute) or rng.random() < 0.2])
    if node is None:
        return
    known = ["axis", "perm", "to", "value", "hidden_size", "direction", "layout", "num_outputs", "value_ints"]
    names = [a.name for a in node.attribute] + known
    match int(rng.integers(4)):
        case 0 if len(node.attribute):
            del node.attribute[int(rng.integers(len(node.attribute)))]
        case 1 if len(node.attribute):
            choose(rng, node.attribute).type = choose(rng, AttributeProto.AttributeType.values())
        case 2 if len(node.attribute):
            a = choose(rng, node.attribute)
            a.CopyFrom(helper.make_attribute(a.name, any_value(rng)))
        case _:
            node.attribute.append(helper.make_attribute(choose(rng, names), any_value(rng)))


def tensors_of(model: Model) -> list[Any]:
    inner = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return [*model.graph.initializer, *inner]


def change_tensors(rng: Rng, model: Model) -> None:
    """Change the sizes, the type, the data or the place of a tensor."""
    tensor = choose(rng, tensors_of(model))
    if tensor is None:
        return
    match int(rng.integers(6)):
        case 0 if len(tensor.dims):
            tensor.dims[int(rng.integers(len(tensor.dims)))] = choose(rng, ENORMOUS)
        case 1:
            tensor.dims.append(choose(rng, ENORMOUS))
        case 2:
            tensor.data_type = choose(rng, (*TensorProto.DataType.values(), 99))
        case 3:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
        case 4:
            tensor.data_location = TensorProto.EXTERNAL
            location = choose(rng, ("/dev/zero", "../secret", "fuzz_onnx.py", ""))
            tensor.external_data.add(key="location", value=location)
        case _:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(np.array([choose(rng, ENORMOUS) for _ in range(3)]), name))


def change_ends(rng: Rng, model: Model) -> None:
    """Change an input or output of the graph, an initializer's name or the opset."""
    graph = model.graph
    match int(rng.integers(4)):
        case 0:
            end = choose(rng, [*graph.input, *graph.output, *graph.initializer])
            if end is not None:
                end.name = choose(rng, names_of(model))
        case 1 if len(graph.input):
            choose(rng, graph.input).type.tensor_type.elem_type = choose(rng, TensorProto.DataType.values())
        case 2:
            end = choose(rng, (graph.input, graph.output, graph.initializer))
            if len(end):
                del end[int(rng.integers(len(end)))]
        case _:
            if len(model.opset_import):
                model.opset_import[0].version = choose(rng, (*ENORMOUS, *range(7, 28)))


def drop_a_field(rng: Rng, model: Model) -> None:
    """Go down to some message and clear one of its fields."""
    message = model
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = choose(rng, fields)
        inner = [each for each in (value if hasattr(value, "__getitem__") else [value]) if hasattr(each, "ListFields")]
        if not inner or rng.random() < 0.1:
            message.ClearField(field.name)
            return
        message = choose(rng, inner)


CHANGES = (change_edges, change_nodes, change_attributes, change_tensors, change_ends, drop_a_field)


def make_model(rng: Rng) -> Model:
    """Make a malformed model; None where no bytes are left that are a model at all."""
    data = serialized(choose(rng, tuple(SEEDS)))
    if rng.random() < 0.3:
        try:
            return onnx.ModelProto.FromString(changed_bytes(rng, data))
        except DecodeError:
            return None
    model = onnx.ModelProto.FromString(data)
    for _ in range(choose(rng, (1, 1, 1, 2, 3))):  # the more, the sooner it is refused
        choose(rng, CHANGES)(rng, model)
    return model


# The check


def take(call: Callable[[], Any]) -> str:
    try:
        call()
    except ModelError as error:
        place, colon, _ = str(error).partition(":")
        if not (place and colon):
            raise AssertionError from error  # it names nothing
        return "refused"
    return "accepted"


def check(seed: int, k: int) -> Counter[tuple[str, str]]:
    """Make call number k and check what comes of it; return how its parts ended."""
    rng = np.random.default_rng([seed, k])
    model = make_model(rng)
    if model is None:
        return Counter({("parse", "refused"): 1})
    node = choose(rng, model.graph.node)
    prepared: list[Any] = []
    ends = Counter({("prepare", take(lambda: prepared.append(prepare(model)))): 1})
    if prepared:
        ends["run", take(lambda: prepared[0].run(inputs_of(model)))] += 1
    ends["from_onnx", take(lambda: from_onnx(model))] += 1
    if node is not None:
        arrays = [np.ones((2,) * int(rng.integers(4)), np.float32) for _ in filter(None, node.input)]
        distinct = {name for name in node.input if name}
        ends["run_node", take(lambda: run_node(node, arrays)) if len(distinct) == len(arrays) else "refused"] += 1
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description="Make malformed models and check what comes of them.")
    parser.add_argument("--calls", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call (default: 0)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="raise")
    _memory.LEAST_ROOM = ROOM
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def stop(*_: Any) -> None:
        msg = f"a call took more than {SECONDS} s"
        raise TimeoutError(msg)

    signal.signal(signal.SIGALRM, stop)
    ends: Counter[tuple[str, str]] = Counter()
    for k in range(arguments.first, arguments.first + arguments.calls):
        try:
            signal.alarm(SECONDS)
            ends += check(arguments.seed, k)
            signal.alarm(0)
        except BaseException:  # noqa: BLE001 whatever it is, it is what we look for
            traceback.print_exc()
            print(f"repeat with: python {sys.argv[0]} --calls 1 --seed {arguments.seed} --first {k}")
            return 1
    for (name, end), count in sorted(ends.items()):
        print(f"{name:12}{end:12}{count:9}")
    print(f"{arguments.calls} calls with seed {arguments.seed}: no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
