"""The nodes of an ONNX graph as what they do: recurrent operators, which our kernels run, and those that move data.

A model may come from anywhere. Whatever is wrong with it becomes a `ModelError` that names the node or the tensor, no
file is opened, and `Room` bounds the memory that its nodes can ask for.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.reference import ReferenceEvaluator

from ..functional import Array, quiet
from ._operators import KINDS, WEIGHTS, Operator, Weights

Values: TypeAlias = Mapping[str, Any]  # arrays by their names in the graph

# Operators that exporters put around and between recurrent ones. The onnx package's own implementation runs them: they
# compute nothing, so there is nothing to gain.
KEEPS = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # all elements, from input to output
MOVES = KEEPS | {"Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Shape", "Slice", "Split"}
# Those by which exporters compute sizes and put sequences in the order of their lengths: of integers, to integers
COUNTS = frozenset({"Cast", "Mul", "Range", "ReduceProd", "ScatterElements", "TopK"})

SIGNED = TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64
INTEGERS = frozenset({*SIGNED, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64})
NUMBERS = INTEGERS | {TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16}

OLDEST = 7  # opset; before it the operators had other attributes
KNOWN_SCHEMA = 22  # the newest opset that we know to have changed one of them

LEAST_ROOM = 1 << 28  # bytes that the nodes of any model may make: zero states and indices, never near it
COPIES = (
    16  # as many times what it is given may a model make: torch's exporter needs 7 to split, reorder and join weights
)


class ModelError(ValueError):
    """A model that cannot be read or run: what is wrong, after the name of the node or tensor where it is wrong."""


class ModelTypeError(ModelError, TypeError):
    """A `ModelError` about a type or dtype."""


class SchemaError(ModelError, ValidationError):  # type: ignore[misc]
    """A `ModelError` about a node that is not what the schema of its operator says."""


class at:  # a class, as a generator would cost more at each node
    """Raise what goes wrong inside as a ModelError that names the place."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ModelError | MemoryError):
            return
        # The onnx package raises anything, given a malformed node.
        kinds = {TypeError: ModelTypeError, ValidationError: SchemaError}
        kind = next((ours for theirs, ours in kinds.items() if isinstance(error, theirs)), ModelError)
        what = str(error).removeprefix(f"{self.place}: ").partition("\n")[0] or type(error).__name__
        msg = f"{self.place}: {what}"
        raise kind(msg) from error


class Room:
    """How many bytes the nodes of a model may still make of what they are given."""

    def __init__(self, given: Iterable[Array] = ()) -> None:
        self.whole = self.left = LEAST_ROOM
        self.extend(given)

    def extend(self, given: Iterable[Array], width: int = 1) -> None:
        """Allow for more arrays, each element of which may come to be so many."""
        more = COPIES * width * sum(a.nbytes for a in given)
        self.whole, self.left = self.whole + more, self.left + more

    def take(self, needed: int) -> None:
        """Use some of it up."""
        if needed > self.left:
            msg = f"expected results of at most {self.whole} bytes, all nodes together, got {needed} more"
            raise ValueError(msg)
        self.left -= max(needed, 0)  # what a negative size asks for fails when it is made


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

    def __init__(self, node: onnx.NodeProto, opset: int, constants: Values, room: Room) -> None:
        self.title = title_of(node)
        with at(self.title):
            self.attributes = _attributes(node, opset)
            self.operator = Operator(node.op_type, name_of(node), self.attributes)
            kind = self.operator.kind
            self.inputs = {name: given for name, given in zip(kind.inputs, node.input, strict=False) if given}
            self.outputs = [*node.output] + [""] * (len(kind.outputs) - len(node.output))
            self.computed = [name for name in WEIGHTS if name in self.inputs and self.inputs[name] not in constants]
            self.weights: list[Weights] | None = None if self.computed else self._weights(constants, room)
            self.reads = [given for name, given in self.inputs.items() if self.computed or name not in WEIGHTS]

    def __call__(self, values: Values, room: Room) -> dict[str, Any]:
        with at(self.title):
            weights = self.weights or self._weights(values, room)
            x, lengths, h, c = self._given(values, ("X", "sequence_lens", "initial_h", "initial_c"))
            sizes = (*x.shape, 0, 0)
            T, B = sizes[1::-1] if self.operator.batch_first else sizes[:2]
            room.take(8 * (T + 1) * B * len(weights) * weights[0].w_hh.shape[1])
            results = self.operator.run(weights, x, lengths, h, c)
        return dict(zip(self.outputs, results, strict=True))

    def width(self, values: Values) -> int:
        """Return how many features its input and its outputs have, I + D·H, where the weights are known."""
        if self.weights is not None:
            shapes = [(len(self.weights), *w.shape) for w in self.weights[0][:2]]
        else:
            shapes = [np.shape(values.get(self.inputs[name], ())) for name in ("W", "R")]
        w, r = shapes
        return int(w[2] + r[0] * r[2]) if len(w) == len(r) == 3 else 0

    def _weights(self, values: Values, room: Room) -> list[Weights]:
        given = self._given(values, WEIGHTS)
        room.take(sum(a.nbytes for a in given if a is not None))
        return self.operator.weights(*given)

    def _given(self, values: Values, names: Iterable[str]) -> list[Any]:
        return [values[self.inputs[name]] if name in self.inputs else None for name in names]


class MovingNode:
    """A node that moves data or counts; attributes as of `RecurrentNode`."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.title, self._kind = title_of(node), node.op_type
        with at(self.title):
            self._attributes = _attributes(node, opset)
            if {"value_string", "value_strings"} & self._attributes.keys():
                msg = "expected floats, integers or bools, got strings"
                raise TypeError(msg)
            self.reads = list(filter(None, node.input))
            self.outputs = list(filter(None, node.output))
            self._evaluator = ReferenceEvaluator(alone(node, opset))

    def __call__(self, values: Values, room: Room) -> dict[str, Any]:
        with at(self.title):
            room.take(self._bytes([values[name] for name in self.reads]))
            results = self._evaluator.run(None, {name: values[name] for name in self.reads})
            return {name: np.asarray(a) for name, a in zip(self.outputs, results, strict=True)}

    def _bytes(self, given: Sequence[Array]) -> int:
        """Return at least as many bytes as the node is going to use."""
        first, *others = given or [np.zeros(0)]
        match self._kind:
            case "Cast":
                return 8 * int(first.size)
            case "ConstantOfShape":
                value = self._attributes.get("value")
                return int(4 if value is None else value.itemsize) * math.prod(map(int, first))
            case "Expand":
                return int(first.itemsize) * math.prod(np.broadcast_shapes(first.shape, tuple(map(int, others[0]))))
            case "Gather":
                n = first.shape[self._attributes.get("axis", 0)]
                return int(first.nbytes // max(n, 1) * others[0].size)
            case "Mul":
                return 8 * math.prod(np.broadcast_shapes(first.shape, others[0].shape))
            case "Range":
                return 8 * len(range(*(a.item() for a in given)))
            case "Split":
                return int(first.nbytes) + 8 * int(self._attributes.get("num_outputs", 0))
            case "TopK":
                k = self._attributes.get("k", 0) if not others else others[0].item()
                return int(8 * (first.size * (first.ndim + 4) + k))
        return sum(a.nbytes for a in given)


def alone(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    """Return a model of the one node: its inputs and outputs are those that the node has a name for."""
    ends = dict.fromkeys(filter(None, node.input)), filter(None, node.output)
    with at(title_of(node)):
        graph = helper.make_graph([node], "node", *([onnx.ValueInfoProto(name=name) for name in end] for end in ends))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of a model, if it is one that we know."""
    if not isinstance(model, onnx.ModelProto):
        msg = f"model: expected an onnx.ModelProto, got {type(model).__name__}"
        raise TypeError(msg)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    with at("model"):
        newest = max(onnx.defs.get_schema(operator, max(opset, 1)).since_version for operator in KINDS)
        if opset < OLDEST or newest > KNOWN_SCHEMA:
            msg = f"expected an opset that has the operators of opset {OLDEST} to {KNOWN_SCHEMA}, got {opset}"
            raise ValueError(msg)
    return opset


def check_order(graph: onnx.GraphProto) -> None:
    """Check that each name of a graph has one source, which comes before its users: there are no cycles."""
    ends = {each.name for each in (*graph.initializer, *graph.input, *graph.output)}
    names = (name for node in graph.node for name in (node.op_type, node.domain, node.name, *node.input, *node.output))
    for name in (*ends, *names):
        if isinstance(name, bytes):  # as protobuf gives what it cannot decode
            msg = f"model: expected names in UTF-8, got {name!r}"
            raise ModelError(msg)
    there = {each.name for each in (*graph.initializer, *graph.input)}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in there]
        if missing:
            msg = f"expected inputs, constants and results of nodes before, got {', '.join(missing)}"
            raise ModelError(f"{title_of(node)}: {msg}")
        for name in filter(None, node.output):
            if name in there:
                msg = f"{title_of(node)}: expected a name of its own for each result, got {name} again"
                raise ModelError(msg)
            there.add(name)
    missing = [each.name for each in graph.output if each.name not in there]
    if missing:
        msg = f"model: expected outputs that are inputs, constants or results of nodes, got {', '.join(missing)}"
        raise ModelError(msg)


def refuse_others(graph: onnx.GraphProto) -> None:
    """Name the operators that we do not run."""
    integers = {each.name for each in graph.initializer if each.data_type in INTEGERS}
    integers |= {each.name for each in graph.input if each.type.tensor_type.elem_type in INTEGERS}
    others = set()
    for node in graph.node:
        kind, given = kind_of(node), [*filter(None, node.input)]
        made = _element_type(node)
        counts = kind in COUNTS and integers.issuperset(given) and (kind != "Cast" or made in INTEGERS)
        if not counts and kind not in KINDS and kind not in MOVES:
            others.add(kind)
        if kind == "Shape" or made in INTEGERS or (made is None and given[:1] and given[0] in integers):
            integers.update(node.output)
    if others:
        expected = f"{', '.join(KINDS)} and operators that only move data or count"
        msg = f"model: expected {expected}, got {', '.join(sorted(others))}"
        raise ModelError(msg)


def _element_type(node: onnx.NodeProto) -> int | None:
    """Return the type of what Cast, Constant and ConstantOfShape make; None of others."""
    if kind_of(node) not in ("Cast", "Constant", "ConstantOfShape"):
        return None
    for a in node.attribute:
        if a.name in ("value_int", "value_ints"):
            return int(TensorProto.INT64)
        if a.name in ("to", "value"):
            return int(a.i if a.name == "to" else a.t.data_type)
    return int(TensorProto.FLOAT)


def behind(graph: onnx.GraphProto, names: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes, in their order, and all values that some values depend on through operators that we know."""
    needed, nodes = set(names), []
    for node in reversed(graph.node):
        if kind_of(node) in {*KINDS, *MOVES, *COUNTS} and not needed.isdisjoint(filter(None, node.output)):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1], needed


@quiet
def constants_of(
    graph: onnx.GraphProto, opset: int, nodes: Iterable[onnx.NodeProto], needed: set[str]
) -> tuple[dict[str, Array], Room]:
    """Return the constants that are needed by name, those too that nodes make of others, and the room that is left."""
    constants = {each.name: array_of(each) for each in graph.initializer if each.name in needed}
    room = Room(constants.values())
    for node in nodes:
        kind, given = kind_of(node), {*filter(None, node.input)}
        if constants.keys() >= given and (
            kind in MOVES or (kind in COUNTS and all(constants[name].dtype.kind in "iu" for name in given))
        ):
            made = MovingNode(node, opset)(constants, room)
            if kind == "Constant":
                room.extend(made.values())
            constants |= made
    return constants, room


def array_of(tensor: onnx.TensorProto) -> Array:
    """Return a tensor as an array; of a tensor whose data lie in a file nothing is read."""
    with at(f"tensor {tensor.name!r}"):
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            msg = "expected its data in the model, as onnx.load(path) puts them there, got the name of a file"
            raise ValueError(msg)
        if tensor.data_type not in NUMBERS:  # strings, say, take as many bytes each as the longest
            names = {number: name for name, number in TensorProto.DataType.items()}
            msg = f"expected floats, integers or bools, got {names.get(tensor.data_type, tensor.data_type)}"
            raise TypeError(msg)
        if any(n < 0 for n in tensor.dims):
            msg = f"expected sizes of at least 0, got {[*tensor.dims]}"
            raise ValueError(msg)
        array: Array = numpy_helper.to_array(tensor)
        return array


def kind_of(node: onnx.NodeProto) -> str:
    """Return a node's operator, with the domain if it is none of ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def name_of(node: onnx.NodeProto) -> str:
    """Return a node's name; of one without, that of its first output."""
    return node.name or next(filter(None, node.output), "")


def title_of(node: onnx.NodeProto) -> str:
    """Return a node's operator and name, as errors have them."""
    return f"{kind_of(node)} {name_of(node)!r}"


def check(node: onnx.NodeProto, opset: int) -> None:
    """Check that a node is what the schema of its operator says."""
    with at(title_of(node)):
        context = onnx.checker.C.CheckerContext()
        context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset, "ai.onnx": opset}
        onnx.checker.check_node(node, context)


def _attributes(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """Check a node and return its attributes: bytes as strings, tensors as arrays."""
    attributes = {a.name: _decoded(helper.get_attribute_value(a)) for a in node.attribute}
    check(node, opset)
    return attributes


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, onnx.TensorProto):
        return array_of(value)
    if isinstance(value, onnx.SparseTensorProto):
        msg = "expected a dense tensor, got a sparse one"
        raise ValueError(msg)
    return value.decode() if isinstance(value, bytes) else value
