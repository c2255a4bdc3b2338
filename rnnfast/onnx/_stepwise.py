"""The recurrent operators of ONNX one step at a time in NumPy, with whatever their nodes may ask for.

Sizes are B sequences, I inputs, H hidden units and G gates, which are in our order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._base.arrays import Array
from ..functional import linear, sigmoid, tanh

Activation: TypeAlias = Callable[[Array], Array]
State: TypeAlias = tuple[Array, ...]  # [B,H] each


class Function(NamedTuple):
    """An activation function f(x, alpha, beta) and its defaults; None: it takes none, NaN: it has no default."""

    f: Callable[[Array, float, float], Array]
    alpha: float | None = None
    beta: float | None = None


# By the names of the specification, in lower case: they are found whatever their case. Its defaults are those of the
# operators of the same names, of which Affine and ScaledTanh are gone.
FUNCTIONS = {
    "relu": Function(lambda x, _, __: np.maximum(x, 0)),
    "tanh": Function(lambda x, _, __: tanh(x)),
    "sigmoid": Function(lambda x, _, __: sigmoid(x)),
    "affine": Function(lambda x, alpha, beta: alpha * x + beta, np.nan, 0.0),
    "leakyrelu": Function(lambda x, alpha, _: np.where(x < 0, alpha * x, x), 0.01),
    "thresholdedrelu": Function(lambda x, alpha, _: np.where(x < alpha, 0, x), 1.0),
    "scaledtanh": Function(lambda x, alpha, beta: alpha * tanh(beta * x), np.nan, np.nan),
    "hardsigmoid": Function(lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), 0.2, 0.5),
    "elu": Function(lambda x, alpha, _: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x), 1.0),
    "softsign": Function(lambda x, _, __: x / (1 + np.abs(x))),
    "softplus": Function(lambda x, _, __: np.logaddexp(x, 0)),
}


Matrix: TypeAlias = Array | tuple[Array, Array]  # of floats; or integers of int8 and the scales of their rows


class Weights(NamedTuple):
    """The weights of one direction, the gates in our order."""

    w_ih: Any  # a Matrix [G·H,I]
    w_hh: Any  # a Matrix [G·H,H]
    b_ih: Array | None  # [G·H]
    b_hh: Array | None
    peephole: Array | None  # p_i, p_f, p_o [3·H], those of the gates that there are

    @property
    def sizes(self) -> tuple[int, int]:
        """I and H."""
        return columns(self.w_ih), columns(self.w_hh)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all but integers."""
        return np.dtype(np.float32) if isinstance(self.w_ih, tuple) else self.w_ih.dtype

    def floats(self) -> "Weights":
        """Return the same with matrices of floats."""
        return self._replace(w_ih=floats(self.w_ih), w_hh=floats(self.w_hh))


def columns(matrix: Matrix) -> int:
    """Return how many columns a matrix has."""
    return int((matrix[0] if isinstance(matrix, tuple) else matrix).shape[1])


def floats(matrix: Matrix) -> Array:
    """Return a matrix of the numbers that another one stands for."""
    return matrix[0] * matrix[1][:, np.newaxis] if isinstance(matrix, tuple) else matrix


class Step(NamedTuple):
    """What one direction does at each step, beside its weights."""

    activations: list[Activation]
    clip: Activation  # of what an activation function is given
    option: bool  # input_forget or linear_before_reset


# One step: from the input's part of the gates, x_k = W_k x + b_k [B,G·H], and the state h', c' before it to the state
# after it. s, g and h are the activation functions of the specification, on what `clip` leaves of their arguments.


def lstm(step: Step, w: Weights, gates_x: Array, state: State) -> State:
    """Return h, c.

    ::

        i = s(x_i + W_hi h' + b_hi + p_i * c')
        f = s(x_f + W_hf h' + b_hf + p_f * c'), or 1 - i with input_forget
        c = f * c' + i * g(x_g + W_hg h' + b_hg)
        h = s(x_o + W_ho h' + b_ho + p_o * c) * h(c)
    """
    (s, g_of, h_of), clip = step.activations, step.clip
    h, c = state
    p_i, p_f, p_o = np.zeros(3, c.dtype) if w.peephole is None else np.split(w.peephole, 3)
    i, f, g, o = np.split(gates_x + linear(h, w.w_hh, w.b_hh), 4, axis=-1)
    i = s(clip(i + p_i * c))
    f = 1 - i if step.option else s(clip(f + p_f * c))
    c = f * c + i * g_of(clip(g))
    return s(clip(o + p_o * c)) * h_of(c), c


def gru(step: Step, w: Weights, gates_x: Array, state: State) -> State:
    """Return h.

    ::

        r = s(x_r + W_hr h' + b_hr)
        z = s(x_z + W_hz h' + b_hz)
        n = g(x_n + W_hn (r * h') + b_hn), or g(x_n + r * (W_hn h' + b_hn)) with linear_before_reset
        h = (1 - z) * n + z * h'
    """
    (s, g_of), clip = step.activations, step.clip
    (h,) = state
    r_z, n = 2 * h.shape[-1], slice(2 * h.shape[-1], None)
    b_rz, b_n = (None, None) if w.b_hh is None else (w.b_hh[:r_z], w.b_hh[n])
    r, z = np.split(s(clip(gates_x[:, :r_z] + linear(h, w.w_hh[:r_z], b_rz))), 2, axis=-1)
    n_h = r * linear(h, w.w_hh[n], b_n) if step.option else linear(r * h, w.w_hh[n], b_n)
    return ((1 - z) * g_of(clip(gates_x[:, n] + n_h)) + z * h,)


def elman(step: Step, w: Weights, gates_x: Array, state: State) -> State:
    """Return h = s(x_h + W_hh h' + b_hh)."""
    return (step.activations[0](step.clip(gates_x + linear(state[0], w.w_hh, w.b_hh))),)
