"""The recurrent layers of Keras 3 on rnnfast's kernels, forward and backward.

`accelerate` changes the layers of a model in place; the files that the model saves do not change. The classes are
derived from Keras's and override their inner loop: constructors, weights, configurations and call arguments are
Keras's.

What is computed here are float32 and float64 on the CPU, with Keras's torch backend.

Examples
--------
>>> import os
>>> os.environ["KERAS_BACKEND"] = "torch"
>>> import keras
>>> import rnnfast.keras
>>> model = keras.Sequential([keras.Input((None, 28)), keras.layers.GRU(64), keras.layers.Dense(10)])
>>> model = rnnfast.keras.accelerate(model)
>>> model.compile("adam", "mse")
"""

from .._base.frameworks import explain_missing

try:
    import keras  # noqa: F401
except ModuleNotFoundError as error:
    explain_missing("keras", error)
    raise

from ._layers import GRU, LSTM, SimpleRNN
from ._models import accelerate, restore

__all__ = ["GRU", "LSTM", "SimpleRNN", "accelerate", "restore"]

for _kind in (GRU, LSTM, SimpleRNN):
    _kind.__module__ = __name__
