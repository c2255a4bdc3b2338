"""Layers as models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import _core
from .._base.arrays import Array
from .._base.module import CLASSES
from .._base.scalars import flag
from .._base.state import STATES
from .._stack.quantized import Quantized
from .._stack.recurrent import Recurrent
from ._forms import FORMS
from ._operators import DYNAMIC_LSTM, KINDS, PEEPHOLES
from ._protos import MICROSOFT

OPSET = 14  # of the models that we write: nothing in them is newer, and older programs can read them


def to_onnx(layer: Recurrent[Any] | Quantized[Any], *, state: bool = False) -> onnx.ModelProto:
    """Convert a layer to an ONNX model.

    Parameters
    ----------
    layer : LSTM, GRU or RNN, or what its `quantize` makes
        Dropout of all kinds is left out, as in a call of the layer.
    state : bool, optional
        If True, the initial state is an input of the model. By default it is zero, or the learned one of a layer with
        `learn_initial_state`.

    Returns
    -------
    onnx.ModelProto
        A model of opset 14 in the layer's dtype, for any T and B. Inputs: x [T,B,I], or [B,T,I] if the layer is
        `batch_first`; with `state`, h_0 and, for an LSTM, c_0, [L·D,B,H]. Outputs: y [T,B,D·H] or [B,T,D·H]; h_n and,
        for an LSTM, c_n, [L·D,B,H].

    Raises
    ------
    TypeError
        If an argument is invalid.
    ValueError
        If ONNX has no operator for the layer: it has none with leaky units, zoneout, projections or layer
        normalisation.

    Notes
    -----
    Dropout of all kinds only affects training and is not converted.

    An int8 LSTM becomes ``com.microsoft.DynamicQuantizeLSTM``, an operator of ONNX Runtime. It has the layer's integers
    and scales, but another rule for those of x and h'. The matrices of an int8 GRU or RNN are converted to floats by
    DequantizeLinear, and bfloat16 matrices by Cast.

    ONNX Runtime supports these operators in float32 only, and without the attribute `layout`. A layer that is
    `batch_first` is therefore written as one that is not, between transposes.

    Examples
    --------
    >>> import rnnfast
    >>> model = rnnfast.onnx.to_onnx(rnnfast.LSTM(3, 4, num_layers=2))
    >>> [node.op_type for node in model.graph.node].count("LSTM")
    2
    """
    kind = CLASSES[layer.layer["class"]] if isinstance(layer, Quantized) else type(layer)
    if not issubclass(kind, tuple(form.layer for form in FORMS.values())):
        msg = f"layer: expected an LSTM, a GRU or an RNN, got {kind.__name__}"
        raise TypeError(msg)
    if layer.layer_norm:
        msg = f"layer: expected layer_norm=None, as ONNX has it, got {layer!r}"
        raise ValueError(msg)
    if layer.cell not in FORMS:
        msg = f"layer: expected leak=1.0, as ONNX has it, got {layer!r}"
        raise ValueError(msg)
    if layer.zoneout:
        msg = f"layer: expected zoneout=0, as ONNX has it, got {layer!r}"
        raise ValueError(msg)
    if layer.proj_size:
        msg = f"layer: expected proj_size=0, as ONNX has it, got {layer!r}"
        raise ValueError(msg)
    state = flag(state, "state")
    L, D, H, batch_first = layer.num_layers, layer.directions, layer.hidden_size, layer.batch_first
    form, graph = FORMS[layer.cell], _Graph()
    parts = STATES[layer.cell]
    if layer.learn_initial_state and not state:
        graph.node("Shape", ["x"], "shape")
        graph.node("Gather", ["shape", graph.constant("batch_axis", [1 - batch_first])], "B")
        graph.node("Concat", [graph.constant("one", [1]), "B", "one"], "rows", axis=0)
    initial = [_initial(graph, layer, part, state) for part in parts]
    attributes = {name: value * D if isinstance(value, list) else value for name, value in form.attributes.items()}
    attributes |= {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    last = [_of_layers(f"{part}_n", L) for part in parts]
    y = graph.node("Transpose", ["x"], "x_steps", perm=[1, 0, 2]) if batch_first else "x"
    for k in range(L):
        weights = _weights(layer, k)
        if layer.format == "int8" and form.operator == "LSTM":
            operator, given = DYNAMIC_LSTM, _dynamic(graph, weights, f"_{k}")
        else:
            operator = form.operator
            given = {name: _matrix(graph, f"{name}_{k}", weights.pop(name)) for name in ("W", "R")}
        given |= {name: graph.constant(f"{name}_{k}", a) for name, a in weights.items() if a is not None}
        given |= {"X": y} | {f"initial_{part}": names[k] for part, names in zip(parts, initial, strict=True)}
        inputs = [given.get(name, "") for name in KINDS[operator].inputs]
        graph.node(operator, inputs, f"Y_{k}", *(names[k] for names in last), **attributes)
        # From [T,D,B,H] to [T,B,D,H], in the end perhaps [B,T,D,H]; then D·H features
        order = [2, 0, 1, 3] if batch_first and k == L - 1 else [0, 2, 1, 3]
        beside = graph.node("Transpose", [f"Y_{k}"], f"Y_{k}_beside", perm=order)
        features = graph.constant("features", [0, 0, D * H])
        y = graph.node("Reshape", [beside, features], "y" if k == L - 1 else f"y_{k}")
    for part, names in zip(parts, last, strict=True):
        if L > 1:
            graph.node("Concat", names, f"{part}_n", axis=0)
    steps, states = ["B", "T"] if batch_first else ["T", "B"], [L * D, "B", H]
    ends = {"x": [*steps, layer.input_size]} | {f"{part}_0": states for part in parts if state}
    return graph.model(layer, ends, {"y": [*steps, D * H]} | {f"{part}_n": states for part in parts})


def _initial(graph: "_Graph", layer: Any, part: str, given: bool) -> list[str]:
    """Return the names of what each layer has of a part of the initial state; empty ones where it is zero."""
    name, L = f"{part}_0", layer.num_layers
    if not given:
        if not layer.learn_initial_state:
            return [""] * L
        learned = graph.constant(f"initial_{part}", layer.parameters[f"initial_{part}"][:, None])
        graph.node("Expand", [learned, "rows"], name)
    names = _of_layers(name, L)
    if L > 1:
        graph.node("Split", [name], *names, axis=0)
    return names


def _of_layers(name: str, L: int) -> list[str]:
    """Return the names of what each of L layers has of a part of a state."""
    return [name] if L == 1 else [f"{name}_{k}" for k in range(L)]


def _dynamic(graph: "_Graph", weights: dict[str, Any], end: str) -> dict[str, str]:
    """Take W and R out of the weights and return the names of what DynamicQuantizeLSTM has for them."""
    given: dict[str, str] = {}
    for name in ("W", "R"):
        q, scale = weights.pop(name)
        own = {name: q.swapaxes(1, 2), f"{name}_scale": scale, f"{name}_zero_point": np.zeros(scale.shape, np.int8)}
        given |= {each: graph.constant(each + end, a) for each, a in own.items()}
    return given


def _matrix(graph: "_Graph", name: str, a: Any) -> str:
    """Return the name of matrices [D,G·H,K] of floats, those that others are made into among them."""
    if isinstance(a, tuple):
        q, scale = a
        integers = graph.constant(f"{name}_integers", q.reshape(-1, q.shape[2]))
        scales = graph.constant(f"{name}_scale", scale.ravel())
        rows = graph.node("DequantizeLinear", [integers, scales], f"{name}_rows", axis=0)
        return graph.node("Reshape", [rows, graph.constant(f"{name}_shape", q.shape)], name)
    if a.dtype == np.uint16:
        return graph.node("Cast", [graph.constant(f"{name}_bfloat16", a)], name, to=TensorProto.FLOAT)
    return graph.constant(name, a)


def _weights(layer: Any, k: int) -> dict[str, Any]:
    """Return W, R and B of a layer, and P where it has peepholes; of int8, W and R are integers and scales."""
    letters, gates = _core.cells[layer.cell].gates, KINDS[FORMS[layer.cell].operator].gates
    seeing = [letter for letter in letters if letter in PEEPHOLES]
    orders = [(letters, gates)] * 4 + [(seeing, PEEPHOLES)]
    w, r, b_ih, b_hh, *p = (
        _stacked(each, *order) for each, order in zip(zip(*layer.of_layer(k), strict=True), orders, strict=False)
    )
    b = None if b_ih is None else np.concatenate([b_ih, b_hh], axis=1)
    return {"W": w, "R": r, "B": b} | dict.fromkeys(("P",) if p else (), *p)


def _stacked(each: Sequence[Any], letters: Sequence[str], order: str) -> Any:
    """Return an array of all directions; a tuple of arrays of tuples, None of None."""
    if each[0] is None:
        return None
    if isinstance(each[0], tuple):
        return tuple(_stacked(arrays, letters, order) for arrays in zip(*each, strict=True))
    return np.stack([_in_order(a, letters, order) for a in each])


def _in_order(a: Array, letters: Sequence[str], order: str) -> Array:
    """Return the blocks of rows of our gates in another order, zeros of a gate that we do not have."""
    blocks = dict(zip(letters or " ", np.split(a, len(letters) or 1), strict=True))
    return np.concatenate([blocks.get(letter, np.zeros_like(next(iter(blocks.values())))) for letter in order or " "])


class _Graph:
    """Nodes and constants on their way to a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def node(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node and return its first output."""
        names = list(inputs)
        while not names[-1]:
            names.pop()
        domain, _, name = operator.rpartition(".")
        made = helper.make_node(name, names, outputs, outputs[0], domain=domain or None, **attributes)
        self.nodes.append(made)
        return outputs[0]

    def constant(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        self.constants[name] = np.asarray(value)
        return name

    def model(self, layer: Any, *ends: dict[str, Any]) -> onnx.ModelProto:
        """Return the model, given the shapes of its inputs and those of its outputs."""
        dtype = helper.np_dtype_to_tensor_dtype(layer.dtype)
        infos = [[helper.make_tensor_value_info(name, dtype, shape) for name, shape in end.items()] for end in ends]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for tensor in constants:
            if tensor.data_type == TensorProto.UINT16:
                tensor.data_type = TensorProto.BFLOAT16  # NumPy has none: these are its bits
        graph = helper.make_graph(self.nodes, type(layer).__name__, *infos, constants)
        opsets = [helper.make_opsetid("", OPSET)]
        version = helper.find_min_ir_version_for(opsets)
        if any(node.domain for node in self.nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        return helper.make_model(graph, producer_name="rnnfast", opset_imports=opsets, ir_version=version)
