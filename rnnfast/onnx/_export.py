"""Layers as models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .. import _core
from .._base.arrays import Array
from .._base.scalars import flag
from .._base.state import STATES
from .._stack.recurrent import Recurrent
from ._forms import FORMS
from ._operators import KINDS, PEEPHOLES

OPSET = 14  # of the models that we write: nothing in them is newer, and older programs can read them


def to_onnx(layer: Recurrent[Any], *, state: bool = False) -> onnx.ModelProto:
    """Make a model of a layer.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Its dropout, of weights too, is left out, as in a call of the layer.
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
    ValueError
        If ONNX has no such operator: none has leaky units, zoneout, a projection or layer normalisation.

    Notes
    -----
    Dropout of all kinds acts in training only, and is not carried.

    ONNX Runtime has these operators in float32 only, and without the attribute `layout`: therefore a layer that is
    `batch_first` is written as one that is not, between transposes.

    Examples
    --------
    See `rnnfast.onnx`.
    """
    if not isinstance(layer, tuple(form.layer for form in FORMS.values())):
        msg = f"layer: expected an LSTM, a GRU or an RNN, got {type(layer).__name__}"
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
        weights = [graph.constant(f"{name}_{k}", a) if a is not None else "" for name, a in _weights(layer, k).items()]
        inputs = [y, *weights[:3], "", *(names[k] for names in initial), *weights[3:]]
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
    """Return W, R and B of a layer, and P where it has peepholes."""
    letters, gates = _core.cells[layer.cell].gates, KINDS[FORMS[layer.cell].operator].gates
    seeing = [letter for letter in letters if letter in PEEPHOLES]
    orders = [(letters, gates)] * 4 + [(seeing, PEEPHOLES)]
    w, r, b_ih, b_hh, *p = (
        None if each[0] is None else np.stack([_in_order(a, *order) for a in each])
        for each, order in zip(zip(*layer.of_layer(k), strict=True), orders, strict=False)
    )
    b = None if b_ih is None else np.concatenate([b_ih, b_hh], axis=1)
    return {"W": w, "R": r, "B": b} | dict.fromkeys(("P",) if p else (), *p)


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
