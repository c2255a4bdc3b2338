"""The nodes of an ONNX graph as what they do: recurrent operators, which our kernels run, and those that move data."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ._operators import KINDS, WEIGHTS, Operator, Weights
from .functional import Array

Values: TypeAlias = Mapping[str, Any]  # arrays by their names in the graph

# Operators that exporters put around and between recurrent ones. The onnx package's own implementation runs them: they
# compute nothing, so there is nothing to gain.
KEEPS = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # all elements, from input to output
MOVES = KEEPS | {"Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Shape", "Slice", "Split"}

OLDEST = 7  # opset; before it the operators had other attributes
KNOWN_SCHEMA = 22  # the newest opset that we know to have changed one of them


class RecurrentNode:
    """A node LSTM, GRU or RNN.

    Attributes
    ----------
    attributes : dict
    operator : Operator
    inputs : dict
        The names of the inputs that it has, by those of the specification.
    outputs : list of str
    computed : list of str
        Those of W, R, B and P that it has, but not as constants.
    weights : list of D Weights, or None
        Converted, where all of them are constants.
    reads : list of str
        What it needs of the values when it runs.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, constants: Values) -> None:
        _check(node, opset)
        self.attributes = {a.name: _decoded(helper.get_attribute_value(a)) for a in node.attribute}
        self.operator = Operator(node.op_type, name_of(node), self.attributes)
        names = self.operator.kind.inputs
        self.inputs = {name: given for name, given in zip(names, node.input, strict=False) if given}
        self.outputs = list(node.output)
        self.computed = [name for name in WEIGHTS if name in self.inputs and self.inputs[name] not in constants]
        self.weights: list[Weights] | None = None if self.computed else self._weights(constants)
        self.reads = [given for name, given in self.inputs.items() if self.computed or name not in WEIGHTS]

    def __call__(self, values: Values) -> dict[str, Any]:
        x, lengths, h, c = self._given(values, ("X", "sequence_lens", "initial_h", "initial_c"))
        results = self.operator.run(self.weights or self._weights(values), x, lengths, h, c)
        return dict(zip(self.outputs, results, strict=False))

    def _weights(self, values: Values) -> list[Weights]:
        return self.operator.weights(*self._given(values, WEIGHTS))

    def _given(self, values: Values, names: Iterable[str]) -> list[Any]:
        return [values[self.inputs[name]] if name in self.inputs else None for name in names]


class MovingNode:
    """A node that moves data; attributes as of `RecurrentNode`."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        _check(node, opset)
        self._name = f"{node.op_type} {name_of(node)!r}"
        self.reads = list(dict.fromkeys(filter(None, node.input)))
        self.outputs = list(filter(None, node.output))
        self._evaluator = ReferenceEvaluator(alone(node, opset))

    def __call__(self, values: Values) -> dict[str, Any]:
        try:
            results = self._evaluator.run(None, {name: values[name] for name in self.reads})
        except Exception as error:
            error.add_note(f"by the node {self._name}")
            raise
        return dict(zip(self.outputs, results, strict=True))


def alone(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    """Return a model of the one node: its inputs and outputs are those that the node has a name for."""
    ends = dict.fromkeys(filter(None, node.input)), filter(None, node.output)
    graph = helper.make_graph([node], "node", *([onnx.ValueInfoProto(name=name) for name in end] for end in ends))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of a model, if it is one that we know."""
    if not isinstance(model, onnx.ModelProto):
        msg = f"model: expected an onnx.ModelProto, got {type(model).__name__}"
        raise TypeError(msg)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    newest = max(onnx.defs.get_schema(operator, max(opset, 1)).since_version for operator in KINDS)
    if opset < OLDEST or newest > KNOWN_SCHEMA:
        msg = f"model: expected an opset that has the operators of opset {OLDEST} to {KNOWN_SCHEMA}, got {opset}"
        raise ValueError(msg)
    return opset


def refuse_others(graph: onnx.GraphProto) -> None:
    """Name the operators that we do not run. Products of sizes are fine: exporters make them for Reshape."""
    sizes = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.INT64}
    others = set()
    for node in graph.node:
        kind = kind_of(node)
        if kind == "Shape" or (kind in {*MOVES, "Mul"} and sizes.issuperset(filter(None, node.input))):
            sizes.update(node.output)
        elif kind not in KINDS and kind not in MOVES:
            others.add(kind)
    if others:
        msg = f"model: expected {', '.join(KINDS)} and operators that only move data, got {', '.join(sorted(others))}"
        raise ValueError(msg)


def constants_of(graph: onnx.GraphProto, opset: int) -> dict[str, Array]:
    """Return the constants of a graph by name, those too that are others moved."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if kind_of(node) in MOVES and constants.keys() >= set(filter(None, node.input)):
            constants |= MovingNode(node, opset)(constants)
    return constants


def kind_of(node: onnx.NodeProto) -> str:
    """Return a node's operator, with the domain if it is none of ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def name_of(node: onnx.NodeProto) -> str:
    """Return a node's name; of one without, that of its first output."""
    return node.name or next(filter(None, node.output), "")


def _check(node: onnx.NodeProto, opset: int) -> None:
    """Check that a node is what the schema of its operator says."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset, "ai.onnx": opset}
    onnx.checker.check_node(node, context)


def _decoded(value: Any) -> Any:
    """Return an attribute with its bytes as strings."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value
