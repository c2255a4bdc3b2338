"""Which matrices of a model have fewer bits, so that the layer has them too."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import onnx

from .._base.arrays import Array, quiet
from .._base.formats import LARGEST, Format
from .._stack.quantized import MOST_COLUMNS
from ._graphs import KEEPS, widens
from ._memory import Room
from ._nodes import MovingNode, RecurrentNode
from ._protos import operator_of
from ._quantizing import QuantizingNode, centred
from ._stepwise import Weights


class Encoded(NamedTuple):
    """The weights of a stack: by node, by direction."""

    format: Format | None
    weights: list[list[Weights]]  # the matrices integers and scales, or bits, as `format` has them


@quiet
def encoded_weights(
    graph: onnx.GraphProto, opset: int, nodes: Sequence[RecurrentNode], constants: Mapping[str, Array], room: Room
) -> Encoded:
    """Return the weights of nodes in the format that all their matrices have, of floats where there is none."""
    makers = {name: node for node in graph.node for name in node.output if name}
    formats, weights = set(), []
    for node in nodes:
        given = node.weights or []
        if not node.operator.kind.quantized:
            matrices = [_encoded(node.inputs[name], makers, opset, constants, room) for name in ("W", "R")]
            if None not in matrices:
                w, r = (_by_direction(node, cast("tuple[Array, ...]", each)) for each in matrices)
                given = [each._replace(w_ih=w[d], w_hh=r[d]) for d, each in enumerate(given)]
        widest = max(*given[0].sizes, given[0].sizes[1] * len(given))
        for of_direction in given:
            formats |= {_format(a) if widest <= MOST_COLUMNS else None for a in of_direction[:2]}
        weights.append(given)
    if len(formats) == 1 and None not in formats:
        return Encoded(formats.pop(), weights)
    return Encoded(None, [[each.floats() for each in node.weights or []] for node in nodes])


def _format(matrix: Any) -> Format | None:
    if isinstance(matrix, tuple):
        return "int8"
    return "bfloat16" if matrix.dtype == np.uint16 else None


def _by_direction(node: RecurrentNode, arrays: tuple[Array, ...]) -> list[Any]:
    """Return a matrix for each direction of arrays [D,G·H,..], the gates in our order."""
    parts = [[node.operator.in_our_order(each) for each in a] for a in arrays]
    return parts[0] if len(parts) == 1 else [*zip(*parts, strict=True)]


def _encoded(
    name: str, makers: Mapping[str, onnx.NodeProto], opset: int, constants: Mapping[str, Array], room: Room
) -> tuple[Array, ...] | None:
    """Return bits of bfloat16, or integers and the scales of their rows, that a constant [D,G·H,K] is made of."""
    chain = []
    while name in makers and operator_of(makers[name]) in KEEPS:
        chain.append(makers[name])
        name = makers[name].input[0]
    maker = makers.get(name)
    if maker is None:
        return None
    if widens(maker, constants):
        bits = np.ascontiguousarray(constants[maker.input[0]]).view(np.uint32)
        if (bits & 0xFFFF).any():
            return None
        arrays: tuple[Array, ...] = ((bits >> 16).astype(np.uint16),)
    elif operator_of(maker) == "DequantizeLinear":
        q, scale, zero_point = QuantizingNode(maker, opset).parts(constants, room)
        q, scale = centred(q, zero_point), np.broadcast_to(scale, q.shape)
        fits = (np.abs(q) <= LARGEST) & np.isfinite(scale) & ((scale > 0) | (q == 0) & (scale == 0))
        if not fits.all():
            return None
        arrays = q.astype(np.int8), scale
    else:
        return None
    for node in reversed(chain):
        step = MovingNode(node, opset)
        arrays = tuple(step({**constants, node.input[0]: a}, room)[node.output[0]] for a in arrays)
    if len(arrays) == 1:
        return arrays
    q, scale = arrays
    return (q, scale[..., 0]) if (scale == scale[..., :1]).all() else None
