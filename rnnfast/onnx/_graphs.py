"""The graph of a model: which operators it may have, their order, and what is constant in it.

A model may come from anywhere. Whatever is wrong with it becomes a `ModelError` that names the node or the tensor, no
file is opened, and `Room` bounds the memory that its nodes can ask for.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from .._base.arrays import Array, quiet
from ._errors import ModelError, at
from ._memory import Room
from ._nodes import MovingNode
from ._operators import KINDS
from ._protos import INTEGERS, MICROSOFT, array_of, operator_of, title_of
from ._quantizing import QUANTIZES, QuantizingNode

# Operators that exporters put around and between recurrent ones. The onnx package's own implementation runs them: they
# compute nothing, so there is nothing to gain.
KEEPS = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # all elements, from input to output
MOVES = KEEPS | {"Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Shape", "Slice", "Split"}
# Those by which exporters compute sizes and put sequences in the order of their lengths: of integers, to integers
COUNTS = frozenset({"Cast", "Mul", "Range", "ReduceProd", "ScatterElements", "TopK"})

OLDEST = 7  # opset; before it the operators had other attributes
KNOWN_SCHEMA = 22  # the newest opset that we know to have changed one of them


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of a model, if it is one that we know."""
    if not isinstance(model, onnx.ModelProto):
        msg = f"model: expected an onnx.ModelProto, got {type(model).__name__}"
        raise TypeError(msg)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    with at("model"):
        own = [kind for kind in KINDS if not kind.startswith(MICROSOFT)]
        newest = max(onnx.defs.get_schema(kind, max(opset, 1)).since_version for kind in own)
        if opset < OLDEST or newest > KNOWN_SCHEMA:
            msg = f"expected an opset that has the operators of opset {OLDEST} to {KNOWN_SCHEMA}, got {opset}"
            raise ValueError(msg)
        others = [each.version for each in model.opset_import if each.domain == MICROSOFT and each.version != 1]
        if others:
            msg = f"expected version 1 of {MICROSOFT}, got {others[0]}"
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
    halves = {each.name for each in graph.initializer if each.data_type == TensorProto.BFLOAT16}
    others = set()
    for node in graph.node:
        kind, given = operator_of(node), [*filter(None, node.input)]
        made = _element_type(node)
        counts = kind in COUNTS and integers.issuperset(given) and (kind != "Cast" or made in INTEGERS)
        widens = kind == "Cast" and halves.issuperset(given) and made == TensorProto.FLOAT
        if not counts and not widens and kind not in {*KINDS, *MOVES, *QUANTIZES}:
            others.add(kind)
        keeps = made is None and kind not in {*KINDS, *QUANTIZES} and given[:1] and given[0] in integers
        if kind in ("Shape", "QuantizeLinear") or made in INTEGERS or keeps:
            integers.update(node.output)
    if others:
        expected = f"{', '.join(KINDS)} and operators that only move data or count"
        msg = f"model: expected {expected}, got {', '.join(sorted(others))}"
        raise ModelError(msg)


def _element_type(node: onnx.NodeProto) -> int | None:
    """Return the type of what Cast, Constant and ConstantOfShape make; None of others."""
    if operator_of(node) not in ("Cast", "Constant", "ConstantOfShape"):
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
        if operator_of(node) in {*KINDS, *MOVES, *COUNTS, *QUANTIZES} and not needed.isdisjoint(
            filter(None, node.output)
        ):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1], needed


def widens(node: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    """Return whether a node makes float32 of constants of bfloat16, which are arrays of float32 here."""
    given = [*filter(None, node.input)]
    floats = all(name in constants and constants[name].dtype == np.float32 for name in given)
    return operator_of(node) == "Cast" and floats and _element_type(node) == TensorProto.FLOAT


def step_of(node: onnx.NodeProto, opset: int) -> MovingNode | QuantizingNode:
    """Return what a node does that is not recurrent."""
    return (QuantizingNode if operator_of(node) in QUANTIZES else MovingNode)(node, opset)


@quiet
def constants_of(
    graph: onnx.GraphProto, opset: int, nodes: Iterable[onnx.NodeProto], needed: set[str]
) -> tuple[dict[str, Array], Room]:
    """Return the constants that are needed by name, those too that nodes make of others, and the room that is left."""
    constants = {each.name: array_of(each) for each in graph.initializer if each.name in needed}
    room = Room(constants.values())
    for node in nodes:
        kind, given = operator_of(node), {*filter(None, node.input)}
        if constants.keys() >= given and (
            kind in {*MOVES, *QUANTIZES}
            or (kind in COUNTS and all(constants[name].dtype.kind in "iu" for name in given))
            or widens(node, constants)
        ):
            made = step_of(node, opset)(constants, room)
            if kind == "Constant":
                room.extend(made.values())
            constants |= made
    return constants, room
