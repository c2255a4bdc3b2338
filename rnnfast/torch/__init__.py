"""The recurrent modules of `torch.nn` on rnnfast's kernels, forward and backward, without copying contiguous tensors.

`accelerate` changes the modules of a model in place. The classes are derived from those of `torch.nn` and override
``forward``: constructors, parameters, errors, ``state_dict``, ``repr`` and ``isinstance`` are torch's. `SLSTM`, which
torch lacks, is a module in the same style.

The kernels compute float32 and float64 tensors on the CPU. Second derivatives, forward-mode differentiation, and calls
under `torch.func` and ``torch.jit.trace`` use torch's operators, which is correct but slower.

Examples
--------
>>> import torch
>>> import rnnfast.torch
>>> model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(28, 64), "out": torch.nn.Linear(64, 10)})
>>> model = rnnfast.torch.accelerate(model)
>>> y, h = model["rnn"](torch.zeros(50, 32, 28))
>>> model["out"](y).sum().backward()
>>> isinstance(model["rnn"], rnnfast.torch.GRU), isinstance(model["rnn"], torch.nn.GRU)
(True, True)
"""

from .._base.frameworks import explain_missing

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    explain_missing("torch", error)
    raise

from ._models import accelerate, report, restore
from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from ._slstm import SLSTM

__all__ = ["GRU", "LSTM", "RNN", "SLSTM", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "report", "restore"]

for _kind in (GRU, LSTM, RNN, SLSTM, GRUCell, LSTMCell, RNNCell):
    _kind.__module__ = __name__  # where pickles look for them
