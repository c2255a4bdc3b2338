"""ONNX: models of recurrent layers on our kernels, and layers as models, both ways.

`prepare`, `run_model`, `run_node` and `supports_device` are a backend as `onnx.backend.base` describes it, for the
operators LSTM, GRU and RNN of opset 7 and newer with all their inputs, outputs and attributes. What our kernels do not
compute (peepholes, clipping, coupled gates, other activation functions) NumPy does one step at a time. Beside them a
model may have operators that only move data, such as Reshape, or compute sizes; one with any others is refused. A model
from anywhere can be read: what is wrong with it is a `ModelError`, no file is opened, and memory is bounded.

`to_onnx` and `from_onnx` convert layers.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> lstm = rnnfast.LSTM(3, 4, num_layers=2, bidirectional=True, seed=0)
>>> x = np.ones((5, 2, 3), np.float32)
>>> model = to_onnx(lstm)
>>> y, h_n, c_n = run_model(model, [x])
>>> np.array_equal(y, lstm(x)[0])
True
>>> from_onnx(model)
LSTM(3, 4, num_layers=2, bidirectional=True)
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .._module import explain_missing

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnx.backend.base import Backend, BackendRep, namedtupledict
except ModuleNotFoundError as error:
    explain_missing("onnx", error)
    raise

from .. import _core, layers
from .._module import reordered
from .._recurrent import Recurrent
from .._scalars import flag, integer
from ..functional import Array, quiet
from ._nodes import (
    KEEPS,
    ModelError,
    MovingNode,
    RecurrentNode,
    Room,
    alone,
    at,
    behind,
    check,
    check_order,
    constants_of,
    kind_of,
    name_of,
    opset_of,
    refuse_others,
    title_of,
)
from ._operators import KINDS

__all__ = [
    "ModelError",
    "RnnfastBackend",
    "RnnfastRep",
    "from_onnx",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
    "to_onnx",
]


class RnnfastRep(BackendRep):  # type: ignore[misc]
    """A model that is ready to run, as `prepare` returns it. Its constant weights have been converted once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        opset, graph = opset_of(model), model.graph
        check_order(graph)
        refuse_others(graph)
        given = {each.name for each in graph.initializer}
        self._inputs = [each.name for each in graph.input if each.name not in given]
        self._outputs = [each.name for each in graph.output]
        self._results: Any = namedtupledict("Outputs", self._outputs)
        nodes, needed = behind(graph, self._outputs)
        constants, room = constants_of(graph, opset, nodes, needed)
        self._steps = [
            RecurrentNode(node, opset, constants, room) if node.op_type in KINDS else MovingNode(node, opset)
            for node in nodes
            if not constants.keys() >= set(filter(None, node.output))
        ]
        read = {*self._outputs, *(name for step in self._steps for name in step.reads)}
        self._constants = {name: constant for name, constant in constants.items() if name in read}

    @quiet
    def run(self, inputs: Sequence[object] | Mapping[str, object], **kwargs: Any) -> tuple[Array, ...]:  # noqa: ARG002
        """Run the model.

        Parameters
        ----------
        inputs : sequence of arrays, or mapping
            The inputs of the graph that are no constants, in its order, or by their names.
        **kwargs
            What other backends take; nothing here.

        Returns
        -------
        named tuple of ndarrays
            The outputs of the graph in its order; ``outputs["name"]`` is one of them too.

        Raises
        ------
        TypeError, ValueError
            If the inputs are not those of the graph, or no arrays.
        ModelError
            If a node cannot do with them what the model says, or would need more memory than `rnnfast.onnx` allows. It
            is a ValueError, and a TypeError too where a dtype does not fit; the message names the node and its input,
            what was expected and what came.
        """
        given = inputs if isinstance(inputs, Mapping) else dict(zip(self._inputs, inputs, strict=False))
        if given.keys() != {*self._inputs} or len(inputs) != len(self._inputs):
            got = ", ".join(given) if given is inputs else f"{len(inputs)} arrays"
            msg = f"inputs: expected {', '.join(self._inputs)}, got {got}"
            raise ValueError(msg)
        values = self._constants | {name: _core.asarray(a, f"inputs: {name}") for name, a in given.items()}
        room = self._room(values)
        for step in self._steps:
            values |= step(values, room)
        results: tuple[Array, ...] = self._results(*map(values.get, self._outputs))
        return results

    def _room(self, values: Mapping[str, Array]) -> Room:
        """Return the room of a run: an element of an input may come to be as wide as all recurrent nodes together."""
        room = Room(self._constants.values())
        width = sum(step.width(values) for step in self._steps if isinstance(step, RecurrentNode))
        room.extend((values[name] for name in self._inputs), 1 + width)
        return room


class RnnfastBackend(Backend):  # type: ignore[misc]
    """The backend, for what takes a class; the functions of this module are its methods."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:  # noqa: ARG003
        """Return whether the model's operators, its opset and the device are among those that `prepare` takes."""
        try:
            opset_of(model)
            check_order(model.graph)
            refuse_others(model.graph)
        except ValueError:
            return False
        return cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether models run on a device: on ``"CPU"`` they do."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> RnnfastRep:  # noqa: ARG003
        """Check a model and convert its weights, to run it many times.

        Parameters
        ----------
        model : onnx.ModelProto
            As `onnx.load` returns it, in float32 or float64.
        device : str, optional
            ``"CPU"``.
        **kwargs
            What other backends take; nothing here.

        Returns
        -------
        RnnfastRep
            To be run by ``.run(inputs)``.

        Raises
        ------
        ModelError
            If it has other operators, all of which are named, an older opset, another dtype, a node that is not what
            its operator's schema says or whose attributes or weights do not fit, or tensors whose data lie in a file.
        TypeError, ValueError
            If it is no `ModelProto`, or the device another.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> prepared = prepare(to_onnx(rnnfast.GRU(3, 4, batch_first=True)))
        >>> prepared.run([np.zeros((2, 5, 3), np.float32)])["y"].shape
        (2, 5, 4)
        """
        cls._check_device(device)
        return RnnfastRep(model)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[object],
        device: str = "CPU",
        outputs_info: Any = None,  # noqa: ARG003
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """Run one node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of arrays
            Those that the node has a name for, in its order.
        device : str, optional
            ``"CPU"``.
        outputs_info : optional
            What other backends take; nothing here.
        opset_version : int, optional
            Of the node, by default the newest that the onnx package has.

        Returns
        -------
        named tuple of ndarrays
            The outputs that the node has a name for.

        Raises
        ------
        ModelError, TypeError, ValueError
            As `prepare` and `RnnfastRep.run` do.

        Examples
        --------
        >>> import numpy as np
        >>> node = onnx.helper.make_node("RNN", ["X", "W", "R"], ["Y", ""], activations=["Softsign"], hidden_size=1)
        >>> x, w = np.ones((2, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
        >>> run_node(node, [x, w, w])["Y"].ravel()
        array([0.5, 0.6], dtype=float32)
        """
        cls._check_device(device)
        if not isinstance(node, onnx.NodeProto):
            msg = f"node: expected an onnx.NodeProto, got {type(node).__name__}"
            raise TypeError(msg)
        prepared = RnnfastRep(alone(node, kwargs.get("opset_version", onnx.defs.onnx_opset_version())))
        names = [*filter(None, node.input)]
        if len(inputs) != len(names):
            msg = f"inputs: expected {', '.join(names)}, got {len(inputs)} arrays"
            raise ValueError(msg)
        return prepared.run(dict(zip(names, inputs, strict=True)))

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            msg = f"device: expected 'CPU', got {device!r}"
            raise ValueError(msg)


prepare = RnnfastBackend.prepare
run_model = RnnfastBackend.run_model
run_node = RnnfastBackend.run_node
supports_device = RnnfastBackend.supports_device


class Form(NamedTuple):
    """What a cell of the kernels is as a layer and as a node."""

    layer: type[Recurrent[Any]]
    options: dict[str, Any]  # of the layer
    operator: str
    attributes: dict[str, Any]  # of the node; a list has an entry for each direction


FORMS = {
    "lstm": Form(layers.LSTM, {}, "LSTM", {}),
    "gru": Form(layers.GRU, {}, "GRU", {"linear_before_reset": 1}),
    "gru_reset_before": Form(layers.GRU, {"reset_after": False}, "GRU", {}),
    "rnn_tanh": Form(layers.RNN, {}, "RNN", {"activations": ["Tanh"]}),
    "rnn_relu": Form(layers.RNN, {"nonlinearity": "relu"}, "RNN", {"activations": ["Relu"]}),
}

OPSET = 14  # of the models that we write: nothing in them is newer, and older programs can read them


def to_onnx(layer: Recurrent[Any], *, state: bool = False) -> onnx.ModelProto:
    """Make a model of a layer.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Its dropout is left out, as in a call of the layer.
    state : bool, optional
        True: the initial state is an input of the model. By default it is zero, or the learned one of a layer with
        `learn_initial_state`.

    Returns
    -------
    onnx.ModelProto
        Of opset 14, in the layer's dtype, for any T and B. Inputs: x [T,B,I], or [B,T,I] if the layer is `batch_first`;
        with `state` h_0, and of the LSTM c_0, [L·D,B,H]. Outputs: y [T,B,D·H] or [B,T,D·H]; h_n, and of the LSTM c_n,
        [L·D,B,H].

    Raises
    ------
    TypeError
        If an argument does not fit.

    Notes
    -----
    ONNX Runtime has these operators in float32 only, and without the attribute `layout`: therefore a layer that is
    `batch_first` is written as one that is not, between transposes.

    Examples
    --------
    See `rnnfast.onnx`.
    """
    if not isinstance(layer, Recurrent):
        msg = f"layer: expected an LSTM, a GRU or an RNN, got {type(layer).__name__}"
        raise TypeError(msg)
    state = flag(state, "state")
    L, D, H, batch_first = layer.num_layers, layer.directions, layer.hidden_size, layer.batch_first
    form, graph = FORMS[layer.cell], _Graph()
    parts = ("h", "c") if layer.cell == "lstm" else ("h",)
    initial = [_initial(graph, layer, part, state) for part in parts]
    attributes = {name: value * D if isinstance(value, list) else value for name, value in form.attributes.items()}
    attributes |= {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    last = [_of_layers(f"{part}_n", L) for part in parts]
    y = graph.node("Transpose", ["x"], "x_steps", perm=[1, 0, 2]) if batch_first else "x"
    for k in range(L):
        weights = [graph.constant(f"{name}_{k}", a) if a is not None else "" for name, a in _weights(layer, k).items()]
        inputs = [y, *weights, "", *(names[k] for names in initial)]
        graph.node(form.operator, inputs, f"Y_{k}", *(names[k] for names in last), **attributes)
        # From [T,D,B,H] to [T,B,D,H], in the end perhaps [B,T,D,H]; then D·H features
        order = [2, 0, 1, 3] if batch_first and k == L - 1 else [0, 2, 1, 3]
        beside = graph.node("Transpose", [f"Y_{k}"], f"Y_{k}_beside", perm=order)
        features = graph.constant("features", [0, 0, D * H])
        y = graph.node("Reshape", [beside, features], "y" if k == L - 1 else f"y_{k}")
    for part, names in zip(parts, last, strict=True):
        if L > 1:
            graph.node("Concat", names, f"{part}_n", axis=0)
    steps, states = ["B", "T"] if batch_first else ["T", "B"], [L * D, "B", H]
    given = {"x": [*steps, layer.input_size]} | {f"{part}_0": states for part in parts if state}
    return graph.model(layer, given, {"y": [*steps, D * H]} | {f"{part}_n": states for part in parts})


def _initial(graph: "_Graph", layer: Recurrent[Any], part: str, given: bool) -> list[str]:
    """Return the names of what each layer has of a part of the initial state; empty ones where it is zero."""
    name, L = f"{part}_0", layer.num_layers
    if not given:
        if not layer.learn_initial_state:
            return [""] * L
        if part == "h":
            graph.node("Shape", ["x"], "shape")
            graph.node("Gather", ["shape", graph.constant("batch_axis", [1 - layer.batch_first])], "B")
            graph.node("Concat", [graph.constant("one", [1]), "B", "one"], "rows", axis=0)
        learned = graph.constant(f"initial_{part}", layer.parameters[f"initial_{part}"][:, None])
        graph.node("Expand", [learned, "rows"], name)
    names = _of_layers(name, L)
    if L > 1:
        graph.node("Split", [name], *names, axis=0)
    return names


def _of_layers(name: str, L: int) -> list[str]:
    """Return the names of what each of L layers has of a part of a state."""
    return [name] if L == 1 else [f"{name}_{k}" for k in range(L)]


def _weights(layer: Recurrent[Any], k: int) -> dict[str, Array | None]:
    """Return W, R and B of a layer."""
    order = np.argsort(KINDS[FORMS[layer.cell].operator].gates).tolist()
    w, r, b_ih, b_hh = (
        None if each[0] is None else np.stack([reordered(a, order) for a in each])
        for each in zip(*layer._tuples(layer.parameters, k), strict=True)
    )
    return {"W": w, "R": r, "B": None if b_ih is None else np.concatenate([b_ih, b_hh], axis=1)}


class _Graph:
    """Nodes and constants on their way to a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def node(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node and return its first output."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        self.constants[name] = np.asarray(value)
        return name

    def model(self, layer: Recurrent[Any], *ends: dict[str, Any]) -> onnx.ModelProto:
        """Return the model, given the shapes of its inputs and those of its outputs."""
        dtype = helper.np_dtype_to_tensor_dtype(layer.dtype)
        infos = [[helper.make_tensor_value_info(name, dtype, shape) for name, shape in end.items()] for end in ends]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, type(layer).__name__, *infos, constants)
        opsets = [helper.make_opsetid("", OPSET)]
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, producer_name="rnnfast", opset_imports=opsets, ir_version=version)


def from_onnx(model: onnx.ModelProto, node: str | int | onnx.NodeProto | None = None) -> Any:
    """Make a layer of a node, or of all recurrent nodes of a model.

    Parameters
    ----------
    model : onnx.ModelProto
        Of opset 7 or newer. It may have any other operators before, after and beside the recurrent ones.
    node : str, int or onnx.NodeProto, optional
        The name of a node LSTM, GRU or RNN, its number among these, or the node itself. By default all of them are a
        stack: each must read what the one before puts out.

    Returns
    -------
    LSTM, GRU or RNN
        In the weights' dtype and with their bits, so that ``from_onnx(to_onnx(layer))`` has the parameters of `layer`;
        the biases of a node without are zero if another node has some. The layer is `batch_first` where `layout` is 1,
        or where the stack's input is transposed. Lengths and initial states, learned ones too, are no part of it.

    Raises
    ------
    ModelError
        If the nodes are not a stack, if the model is malformed, or if a node does what a layer does not: peepholes,
        `clip`, `input_forget`, other activation functions, the direction reverse alone, weights that are no constants.
    TypeError, ValueError
        If there is no such node.

    Examples
    --------
    See `rnnfast.onnx`.
    """
    opset = opset_of(model)
    check_order(model.graph)
    found = [each for each in model.graph.node if kind_of(each) in KINDS]
    if not found:
        msg = f"model: expected a node {', '.join(KINDS)}, got none"
        raise ModelError(msg)
    selected = found if node is None else [_chosen(found, node)]
    nodes, needed = behind(model.graph, [name for each in selected for name in each.input])
    constants, room = constants_of(model.graph, opset, nodes, needed)
    chosen = [RecurrentNode(each, opset, constants, room) for each in selected]
    for each in chosen:
        _check_is_layer(each)
    places = _places(model.graph, opset, chosen, constants)
    first, form = chosen[0], FORMS[chosen[0].operator.cell or ""]
    dtype, I, H, D = _sizes(first)
    for before, each in pairwise(chosen):
        source, axes = places[each.inputs["X"]]
        if source != before.outputs[0] or axes != _rows_of(before, each.operator.batch_first):
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
    given = {
        name: a
        for of_layer, each in zip(layer._names, chosen, strict=True)
        for names, weights in zip(of_layer, each.weights or (), strict=True)
        for name, a in zip(names, weights[: len(names)], strict=True)
    }
    zero = {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    layer.load_state_dict(zero | {name: a for name, a in given.items() if a is not None})
    return layer


def _sizes(node: RecurrentNode) -> tuple[np.dtype[Any], int, int, int]:
    """Return the dtype, I, H and D of a node with constant weights."""
    weights = node.weights or []
    w_ih, w_hh, *_ = weights[0]
    return w_ih.dtype, w_ih.shape[1], w_hh.shape[1], len(weights)


def _chosen(found: Sequence[onnx.NodeProto], node: str | int | onnx.NodeProto) -> onnx.NodeProto:
    """Return the node that `from_onnx` is asked for."""
    if isinstance(node, onnx.NodeProto):
        candidates = [each for each in found if each == node]
    elif isinstance(node, str):
        candidates = [each for each in found if name_of(each) == node]
    else:
        number = integer(node, "node")
        candidates = [each for k, each in enumerate(found) if k == number]
    if len(candidates) != 1:
        got = repr(name_of(node) if isinstance(node, onnx.NodeProto) else node)
        msg = f"node: expected one of {', '.join(map(name_of, found))}, by name or number, got {got}"
        raise ValueError(msg)
    return candidates[0]


def _check_is_layer(node: RecurrentNode) -> None:
    """Refuse a node that does what no layer does."""
    attributes, operator = node.attributes, node.operator
    checks = [
        (", ".join(node.computed), "constants", bool(node.computed), "computed values"),
        ("P", "none", "P" in node.inputs, "peepholes"),
        ("clip", "none", "clip" in attributes, attributes.get("clip")),
        ("input_forget", 0, bool(attributes.get("input_forget")), attributes.get("input_forget")),
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
        if kind_of(each) in KEEPS:
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


def _rows_of(node: RecurrentNode, batch_first: bool) -> tuple[tuple[int, ...], ...]:
    """Return how the axes of Y lie in the X of the next layer."""
    steps, rows, direction = (1, 0, 2) if node.operator.batch_first else (0, 2, 1)
    units = (3,) if len(node.operator.backwards) == 1 else (direction, 3)
    return ((rows,), (steps,), units) if batch_first else ((steps,), (rows,), units)
