"""What is read of the messages of ONNX: names, attributes and arrays, each checked before it is used."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .._base.arrays import Array
from ._errors import at

SIGNED = TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64
INTEGERS = frozenset({*SIGNED, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64})
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
NUMBERS = INTEGERS | {
    TensorProto.BFLOAT16,
    TensorProto.BOOL,
    TensorProto.DOUBLE,
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
}


def operator_of(node: onnx.NodeProto) -> str:
    """Return a node's operator, with the domain if it is none of ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def name_of(node: onnx.NodeProto) -> str:
    """Return a node's name; of one without, that of its first output."""
    return node.name or next(filter(None, node.output), "")


def title_of(node: onnx.NodeProto) -> str:
    """Return a node's operator and name, as errors have them."""
    return f"{operator_of(node)} {name_of(node)!r}"


def alone(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    """Return a model of the one node: its inputs and outputs are those that the node has a name for."""
    ends = dict.fromkeys(filter(None, node.input)), filter(None, node.output)
    with at(title_of(node)):
        graph = helper.make_graph([node], "node", *([onnx.ValueInfoProto(name=name) for name in end] for end in ends))
        own = [] if node.domain in ("", "ai.onnx") else [helper.make_opsetid(node.domain, 1)]
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *own])


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
        return array.astype(np.float32) if tensor.data_type == TensorProto.BFLOAT16 else array  # NumPy has no bfloat16


def check(node: onnx.NodeProto, opset: int) -> None:
    """Check that a node is what the schema of its operator says."""
    with at(title_of(node)):
        if node.domain == MICROSOFT:  # the onnx package does not know it: an LSTM of opset 7 and more inputs
            known = helper.make_node("LSTM", node.input[:8], node.output, node.name)
            known.attribute.extend(node.attribute)
            node, opset = known, 7
        context = onnx.checker.C.CheckerContext()
        context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset, "ai.onnx": opset}
        onnx.checker.check_node(node, context)


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
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
