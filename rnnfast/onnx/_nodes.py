"""The nodes of an ONNX graph as what they do: recurrent operators, which our kernels run, and those that move data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .._base.arrays import Array
from ._errors import at
from ._memory import Room
from ._operators import KINDS, Operator
from ._protos import alone, attributes_of, name_of, operator_of, title_of
from ._stepwise import Weights

Values: TypeAlias = Mapping[str, Any]  # arrays by their names in the graph


class RecurrentNode:
    """A node LSTM, GRU, RNN or DynamicQuantizeLSTM.

    Attributes
    ----------
    attributes : dict
    operator : Operator
    inputs : dict
        The names of the inputs that it has, by those of the specification.
    outputs : list of str
    computed : list of str
        Those weights, W, R and others, that it has, but not as constants.
    weights : list of D Weights, or None
        Converted, where all of them are constants.
    reads : list of str
        What it needs of the values when it runs.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, constants: Values, room: Room) -> None:
        self.title = title_of(node)
        with at(self.title):
            self.attributes = attributes_of(node, opset)
            kind = KINDS[operator_of(node)]
            if len(node.input) > len(kind.inputs):
                msg = f"expected at most {len(kind.inputs)} inputs, got {len(node.input)}"
                raise ValueError(msg)
            self.inputs = {name: given for name, given in zip(kind.inputs, node.input, strict=False) if given}
            missing = [name for name in kind.required if name not in self.inputs]
            if missing:
                msg = f"{missing[0]}: expected an input, got none"
                raise ValueError(msg)
            self.operator = Operator(operator_of(node), name_of(node), self.attributes, peephole="P" in self.inputs)
            self.outputs = [*node.output] + [""] * (len(kind.outputs) - len(node.output))
            self.computed = [
                name for name in kind.weights if name in self.inputs and self.inputs[name] not in constants
            ]
            self.weights: list[Weights] | None = None if self.computed else self._weights(constants, room)
            self.reads = [given for name, given in self.inputs.items() if self.computed or name not in kind.weights]

    def __call__(self, values: Values, room: Room) -> dict[str, Any]:
        with at(self.title):
            weights = self.weights or self._weights(values, room)
            x, lengths, *initial = self._given(values, ("X", "sequence_lens", *self.operator.kind.initial))
            sizes = (*x.shape, 0, 0)
            T, B = sizes[1::-1] if self.operator.batch_first else sizes[:2]
            room.take(8 * (T + 1) * B * len(weights) * weights[0].sizes[1])
            results = self.operator.run(weights, x, lengths, initial)
        return dict(zip(self.outputs, results, strict=True))

    def width(self, values: Values) -> int:
        """Return how many features its input and its outputs have, I + D·H, where the weights are known."""
        if self.weights is not None:
            I, H = self.weights[0].sizes
            return I + len(self.weights) * H
        w, r = (np.shape(values.get(self.inputs[name], ())) for name in ("W", "R"))
        axis = 1 if self.operator.kind.quantized else 2
        return int(w[axis] + r[0] * r[axis]) if len(w) == len(r) == 3 else 0

    def _weights(self, values: Values, room: Room) -> list[Weights]:
        given = self._given(values, self.operator.kind.weights)
        room.take(sum(a.size * max(a.itemsize, 4) for a in given if a is not None))  # integers may become floats
        return self.operator.weights(*given)

    def _given(self, values: Values, names: Iterable[str]) -> list[Any]:
        return [values[self.inputs[name]] if name in self.inputs else None for name in names]


class MovingNode:
    """A node that moves data or counts; attributes as of `RecurrentNode`."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.title, self._kind = title_of(node), node.op_type
        with at(self.title):
            self._attributes = attributes_of(node, opset)
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
