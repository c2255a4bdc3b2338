"""Training without a framework: losses, gradient clipping, optimizers, schedules, batches and pruning.

A loss function returns the loss and its gradient. An optimizer takes a layer, `rnnfast.Modules` or a dict of arrays,
and changes the parameters in place. Gradients are dicts of arrays with the same keys, as returned by ``layer.backward``
and `Modules.join`; clipping changes them in place. As in the layers, subnormal numbers count as zero, and results do
not depend on the number of threads.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy
>>> lstm, readout = rnnfast.LSTM(3, 8, rng=0), rnnfast.Linear(8, 5, rng=1)
>>> model = rnnfast.Modules(lstm=lstm, readout=readout)
>>> adam = Adam(model, lr=0.1)
>>> x = np.ones((4, 2, 3), np.float32)
>>> targets = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
>>> losses = []
>>> for step in range(60):
...     y, state, lstm_tape = lstm.forward(x)
...     logits, readout_tape = readout.forward(y)
...     loss, dlogits = softmax_cross_entropy(logits, targets)
...     dy, readout_grads = readout.backward(readout_tape, dlogits)
...     dx, dstate, lstm_grads = lstm.backward(lstm_tape, dy, need_dx=False)
...     grads = model.join(lstm=lstm_grads, readout=readout_grads)
...     norm = clip_grad_norm(grads, 1.0)
...     adam.step(grads)
...     losses.append(loss)
>>> losses[0] > 1.5 > 0.8 > losses[-1]  # two equal inputs with different targets: at best log(2)
True
"""

from ..pruning import Pruner
from .batches import Minibatch, minibatches
from .clipping import clip_grad_norm, clip_grad_value
from .ctc import ctc_loss
from .losses import (
    binary_cross_entropy,
    gaussian_nll,
    huber_loss,
    quantile_loss,
    softmax_cross_entropy,
    squared_error,
)
from .optimizers import SGD, Adam, AdamW
from .schedules import CosineSchedule, ExponentialSchedule
from .stopping import EarlyStopping

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineSchedule",
    "EarlyStopping",
    "ExponentialSchedule",
    "Minibatch",
    "Pruner",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "ctc_loss",
    "gaussian_nll",
    "huber_loss",
    "minibatches",
    "quantile_loss",
    "softmax_cross_entropy",
    "squared_error",
]
