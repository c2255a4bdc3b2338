"""Models as layers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from .._base.arrays import Array
from .._base.module import Kept, description_of
from .._base.names import SCALE
from .._base.scalars import integer
from .._stack.quantized import Quantized
from ._branches import Found, recurrent_nodes
from ._encoded import encoded_weights
from ._errors import ModelError, at
from ._forms import FORMS
from ._graphs import KEEPS, behind, check_order, constants_of, opset_of
from ._nodes import RecurrentNode
from ._operators import KINDS
from ._protos import check, name_of, operator_of, title_of


def from_onnx(model: onnx.ModelProto, node: str | int | onnx.NodeProto | None = None) -> Any:
    """Convert a node, or all recurrent nodes of a model, to a layer.

    Parameters
    ----------
    model : onnx.ModelProto
        A model of opset 7 or newer. It may contain any other operators.
    node : str, int or onnx.NodeProto, optional
        The name of an LSTM, GRU, RNN or DynamicQuantizeLSTM node, its index among these, or the node itself; it may be
        in a branch of an If. By default, all of them form a stack: each must read the output of the one before. Nodes
        in branches are used if there are no others, and if only one branch has some.

    Returns
    -------
    LSTM, GRU, RNN or Quantized
        The layer has the weights of the model, bit for bit, so ``from_onnx(to_onnx(layer))`` has the parameters of
        `layer`. If only some nodes have biases, those of the others are zero. The layer is `batch_first` if `layout` is
        1, or if the stack's input is transposed. Lengths and initial states, including learned ones, are not converted.
        The layer is `Quantized` if all its matrices are: bfloat16 numbers, integers of DynamicQuantizeLSTM, or integers
        of DequantizeLinear, if each row has one scale and its integers differ from the zero point by at most 127.

    Raises
    ------
    ModelError
        If the nodes do not form a stack, if the model is malformed, or if a node uses what a layer does not support:
        `clip`, other activation functions, a reverse direction without a forward one, or weights that are not
        constants.
    TypeError, ValueError
        If the node does not exist.

    Examples
    --------
    >>> import rnnfast
    >>> rnnfast.onnx.from_onnx(rnnfast.onnx.to_onnx(rnnfast.LSTM(3, 4, num_layers=2)))
    LSTM(3, 4, num_layers=2)
    """
    opset = opset_of(model)
    check_order(model.graph)
    found = [*recurrent_nodes(model.graph)]
    if not found:
        msg = f"model: expected a node {', '.join(KINDS)}, got none"
        raise ModelError(msg)
    taken = _stack(found) if node is None else [_chosen(found, node)]
    selected, graph = [each.node for each in taken], taken[0].graph()
    if graph is not model.graph:
        check_order(graph)
    nodes, needed = behind(graph, [name for each in selected for name in each.input])
    constants, room = constants_of(graph, opset, nodes, needed)
    chosen = [RecurrentNode(each, opset, constants, room) for each in selected]
    for each in chosen:
        _check_is_layer(each)
    places = _places(graph, opset, chosen, constants)
    first, form = chosen[0], FORMS[chosen[0].operator.cell or ""]
    dtype, I, H, D = _sizes(first)
    for before, each in pairwise(chosen):
        source, axes = places[each.inputs["X"]]
        if source != before.outputs[0] or axes != _axes_of_rows(before, each.operator.batch_first):
            got = repr(source) if source != before.outputs[0] else f"its axes as {axes}"
            msg = f"{each.operator.name}: X: expected Y of {before.operator.name}, as in a stack, got {got}"
            raise ModelError(msg)
        if (each.operator.cell, *_sizes(each)) != (first.operator.cell, dtype, D * H, H, D):
            expected = f"{first.operator.cell} of {dtype} with I, H, D = {D * H}, {H}, {D}"
            msg = f"{each.operator.name}: expected {expected}, as in a stack, got {each.operator.cell}, {_sizes(each)}"
            raise ModelError(msg)
    layer = form.layer(
        I,
        H,
        num_layers=len(chosen),
        bias=any("B" in each.inputs for each in chosen),
        batch_first=first.operator.batch_first ^ (places[first.inputs["X"]].axes == ((1,), (0,), (2,))),
        bidirectional=D == 2,
        dtype=dtype,
        **form.options,
    )
    encoded = encoded_weights(graph, opset, chosen, constants, room)
    given = {
        name: a
        for k, of_node in enumerate(encoded.weights)
        for names, of_direction in zip(layer.names_of(k), of_node, strict=True)
        for name, a in zip(names, of_direction, strict=False)
        if a is not None
    }
    zero = {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    if encoded.format is None:
        layer.load_state_dict(zero | given)
        return layer
    scales = {name + SCALE: a[1] for name, a in given.items() if isinstance(a, tuple)}
    arrays = {name: a[0] if isinstance(a, tuple) else a for name, a in given.items()}
    with at("model"):  # parameters that are not finite
        return Quantized(description_of(layer), encoded.format, kept=Kept(zero | arrays | scales))


def _sizes(node: RecurrentNode) -> tuple[np.dtype[Any], int, int, int]:
    """Return the dtype, I, H and D of a node with constant weights."""
    weights = node.weights or []
    return weights[0].dtype, *weights[0].sizes, len(weights)


def _stack(found: Sequence[Found]) -> list[Found]:
    """Return the nodes of the model's own graph, or where it has none those of the one branch that has some."""
    graphs = {each.path: [other for other in found if other.path == each.path] for each in found}
    if ("",) not in graphs and len(graphs) > 1:
        nodes = ", ".join(f"{name_of(each.node)} in {each.where}" for each in found)
        msg = f"model: expected recurrent nodes in one branch, got {nodes}; from_onnx(model, node) takes one of them"
        raise ModelError(msg)
    return graphs.get(("",)) or next(iter(graphs.values()))


def _chosen(found: Sequence[Found], node: str | int | onnx.NodeProto) -> Found:
    """Return the node that `from_onnx` is asked for."""
    if isinstance(node, onnx.NodeProto):
        candidates = [each for each in found if each.node == node]
    elif isinstance(node, str):
        candidates = [each for each in found if name_of(each.node) == node]
    else:
        number = integer(node, "node")
        candidates = [each for k, each in enumerate(found) if k == number]
    if len(candidates) != 1:
        got = repr(name_of(node) if isinstance(node, onnx.NodeProto) else node)
        msg = f"node: expected one of {', '.join(name_of(each.node) for each in found)}, by name or number, got {got}"
        raise ValueError(msg)
    return candidates[0]


def _check_is_layer(node: RecurrentNode) -> None:
    """Refuse a node that does what no layer does."""
    attributes, operator = node.attributes, node.operator
    checks = [
        (", ".join(node.computed), "constants", bool(node.computed), "computed values"),
        ("clip", "none", "clip" in attributes, attributes.get("clip")),
        ("direction", "'forward' or 'bidirectional'", operator.backwards == (True,), "'reverse'"),
        ("activations", "those of a layer", operator.cell is None, attributes.get("activations")),
    ]
    for name, expected, fails, got in checks:
        if fails:
            msg = f"{operator.name}: {name}: expected {expected}, as a layer has, got {got}"
            raise ModelError(msg)


class Place(NamedTuple):
    """Where a value comes from, through operators that keep all its elements."""

    source: str
    axes: tuple[tuple[int, ...], ...]  # those of the source that each axis consists of; none where its size is 1


def _places(
    graph: onnx.GraphProto, opset: int, chosen: Sequence[RecurrentNode], constants: Mapping[str, Array]
) -> dict[str, Place]:
    """Return the places of all values of a graph, of Y with its four axes and of others as if they had three."""
    known = [*constants, *(each.name for each in graph.input), *(name for each in graph.node for name in each.output)]
    places = {name: Place(name, ((0,), (1,), (2,))) for name in known}
    for each in chosen:
        direction = () if len(each.operator.backwards) == 1 else (2 if each.operator.batch_first else 1,)
        axes: list[tuple[int, ...]] = [(0,), (1,), (2,), (3,)]
        axes[2 if each.operator.batch_first else 1] = direction
        places[each.outputs[0]] = Place(each.outputs[0], tuple(axes))
    for each in graph.node:
        if operator_of(each) in KEEPS:
            check(each, opset)
            with at(title_of(each)):
                source, before = places[each.input[0]]
                moved = _moved(each, before, constants)
            if moved is not None:
                places[each.output[0]] = Place(source, moved)
    return places


def _moved(
    node: onnx.NodeProto, axes: tuple[tuple[int, ...], ...], constants: Mapping[str, Array]
) -> tuple[tuple[int, ...], ...] | None:
    """Return where axes come to lie behind one of KEEPS; None if that cannot be told, or they are torn apart."""
    kind, given = node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if len(node.input) > 1:  # what used to be an attribute
        given |= {"axes": constants.get(node.input[1], ())}
    where = [int(axis) for axis in given.get("axes", ())]
    if kind == "Transpose":
        order = given.get("perm", range(len(axes))[::-1])
        return tuple(axes[axis] for axis in order) if sorted(order) == [*range(len(axes))] else None
    rank = len(axes) + (len(where) if kind == "Unsqueeze" else 0)
    if kind != "Reshape" and len({axis % rank for axis in where if -rank <= axis < rank}) < len(where):
        return None
    if kind == "Squeeze":
        gone = {axis % rank for axis in where} if len(node.input) > 1 or where else {*range(rank)}
        rest = tuple(axis for k, axis in enumerate(axes) if k not in gone or (axis and not where))
        return rest if sum(map(len, rest)) == sum(map(len, axes)) else None
    if kind == "Unsqueeze":
        made = {axis % rank for axis in where}
        left = iter(axes)
        return tuple(() if k in made else next(left) for k in range(rank)) if made else None
    if kind == "Reshape":  # to the three axes of X, as a stack needs it
        flat = [part for axis in axes for part in axis]
        shape = constants.get(node.input[1])
        return (
            ((flat[0],), (flat[1],), tuple(flat[2:])) if len(flat) > 2 and (shape is None or len(shape) == 3) else None
        )
    return axes


def _axes_of_rows(node: RecurrentNode, batch_first: bool) -> tuple[tuple[int, ...], ...]:
    """Return how the axes of Y lie in the X of the next layer."""
    steps, rows, direction = (1, 0, 2) if node.operator.batch_first else (0, 2, 1)
    units = (3,) if len(node.operator.backwards) == 1 else (direction, 3)
    return ((rows,), (steps,), units) if batch_first else ((steps,), (rows,), units)
