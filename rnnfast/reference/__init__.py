"""The oracle: recurrent layers in plain NumPy and float64. The kernels are tested against it and share no code with it.

`cells` has the equations and one step of each cell, `sequence` the loop over time, `truncated` the windows of truncated
backpropagation, `quantized` the arithmetic of weights with fewer bits, `bfloat16` rounding, `ctc` a loss.
"""

from . import bfloat16, quantized
from .cells import CELLS, Cell, linear, linear_backward, sigmoid
from .ctc import ctc_loss
from .sequence import Gradients, Tape, backward, forward, gates, gradients
from .truncated import Truncated, Window, tbptt, tbptt_gradient, windows

__all__ = [
    "CELLS",
    "Cell",
    "Gradients",
    "Tape",
    "Truncated",
    "Window",
    "backward",
    "bfloat16",
    "ctc_loss",
    "forward",
    "gates",
    "gradients",
    "linear",
    "linear_backward",
    "quantized",
    "sigmoid",
    "tbptt",
    "tbptt_gradient",
    "windows",
]
