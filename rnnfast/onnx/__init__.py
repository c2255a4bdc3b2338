"""ONNX: models with recurrent layers on rnnfast's kernels, and conversion of layers to and from models.

`prepare`, `run_model`, `run_node` and `supports_device` implement the interface of `onnx.backend.base` for the
operators LSTM, GRU and RNN of opset 7 and newer, with all their inputs, outputs and attributes, and for ONNX Runtime's
DynamicQuantizeLSTM. NumPy computes, one step at a time, what the kernels do not support (clipping, other activation
functions). A model may also contain operators that only move data, such as Reshape, that compute sizes, or that
quantise and dequantise; any other operator is an error. Models need not be trusted: any fault in a model raises
`ModelError`, no file is opened, and memory is limited.

`to_onnx` and `from_onnx` convert layers.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> lstm = rnnfast.LSTM(3, 4, num_layers=2, bidirectional=True, rng=0)
>>> x = np.ones((5, 2, 3), np.float32)
>>> model = to_onnx(lstm)
>>> y, h_n, c_n = run_model(model, [x])
>>> np.array_equal(y, lstm(x)[0])
True
>>> from_onnx(model)
LSTM(3, 4, num_layers=2, bidirectional=True)
"""

from .._base.frameworks import explain_missing

try:
    import onnx  # noqa: F401
except ModuleNotFoundError as error:
    explain_missing("onnx", error)
    raise

from ._backend import RnnfastBackend, RnnfastRep
from ._errors import ModelError
from ._export import to_onnx
from ._import import from_onnx

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


prepare = RnnfastBackend.prepare
run_model = RnnfastBackend.run_model
run_node = RnnfastBackend.run_node
supports_device = RnnfastBackend.supports_device
