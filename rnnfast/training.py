"""As much as training without a framework needs: losses, clipping, SGD and Adam.

A loss returns its value and its gradient. Parameters and gradients are dicts of arrays with the same keys, as
``layer.state_dict()`` and ``layer.backward`` return them. Clipping changes the gradients in place, an optimizer
changes the parameters. As in the layers, numbers below the smallest normal one count as zero, and the number of
threads changes no bit.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> lstm, readout = rnnfast.LSTM(3, 8, seed=0), rnnfast.Linear(8, 5, seed=1)
>>> adam = Adam({**lstm.state_dict(), **readout.state_dict()}, lr=0.1)
>>> x = np.ones((4, 2, 3), np.float32)
>>> targets = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
>>> losses = []
>>> for step in range(60):
...     y, state, lstm_tape = lstm.forward(x)
...     logits, readout_tape = readout.forward(y)
...     loss, dlogits = softmax_cross_entropy(logits, targets)
...     dy, readout_grads = readout.backward(readout_tape, dlogits)
...     dx, dstate, lstm_grads = lstm.backward(lstm_tape, dy, need_dx=False)
...     grads = {**lstm_grads, **readout_grads}
...     norm = clip_grad_norm(grads, 1.0)
...     adam.step(grads)
...     losses.append(loss)
>>> losses[0] > 1.5 > 0.8 > losses[-1]  # two equal inputs with different targets: at best log(2)
True
"""

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from . import _core
from ._module import integer
from .functional import Array, checked, checked_target, number, quiet

__all__ = ["SGD", "Adam", "clip_grad_norm", "clip_grad_value", "softmax_cross_entropy", "squared_error"]

Reduction: TypeAlias = Literal["mean", "sum"]


def softmax_cross_entropy(
    logits: object, targets: object, *, reduction: Reduction = "mean", ignore_index: int | None = None
) -> tuple[float, Array]:
    """Return the loss ``-log softmax(logits)[target]`` in nats, over all targets, and its gradient.

    Parameters
    ----------
    logits : array [..., V], float32 or float64
        Of any size: the largest of a row is subtracted before the exponential.
    targets : array [...] of integers
        The class of each row of logits, at least 0 and less than V.
    reduction : {"mean", "sum"}, optional
        Over the targets that are not ignored.
    ignore_index : int, optional
        Targets of this value have no loss and no gradient. Where all are ignored the mean is 0, not 0/0 as in
        torch: a batch with nothing to learn from must not make the weights NaN.

    Returns
    -------
    loss : float
    dlogits : ndarray [..., V]

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or a target is no class.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_cross_entropy(np.zeros((2, 4)), np.array([3, -1]), ignore_index=-1)
    (1.3862943611198906, array([[ 0.25,  0.25,  0.25, -0.75],
           [ 0.  ,  0.  ,  0.  ,  0.  ]]))
    """
    ignored = None if ignore_index is None else integer(ignore_index, "ignore_index")
    return _core.softmax_cross_entropy(logits, targets, _is_mean(reduction), ignored)


@quiet
def squared_error(y: object, target: object, *, reduction: Reduction = "mean") -> tuple[float, Array]:
    """Return the loss ``(y - target)²``, over all elements, and its gradient.

    Parameters
    ----------
    y : array [...], float32 or float64
    target : array like y
    reduction : {"mean", "sum"}, optional
        The mean of no elements is 0.

    Returns
    -------
    loss : float
    dy : ndarray like y

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> squared_error(np.array([1.0, 5.0]), np.array([2.0, 2.0]))
    (5.0, array([-1.,  3.]))
    """
    y = _floats(y, "y")
    dy = np.asarray(y - checked(target, "target", y.shape, y.dtype))
    scale = 1 / max(dy.size, 1) if _is_mean(reduction) else 1.0
    loss = scale * _core.sum_of_squares(dy)
    dy *= 2 * scale
    return loss, dy


@quiet
def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scale the gradients, in place, so that the norm of all their elements together is at most `max_norm`.

    As in torch, they are multiplied by ``max_norm / (norm + 1e-6)`` where that is less than 1.

    Parameters
    ----------
    grads : dict of ndarrays
    max_norm : float
        Positive.

    Returns
    -------
    float
        The norm before. If it is NaN, the gradients are left as they are.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
    >>> clip_grad_norm(grads, 1.0)
    5.0
    >>> grads["b"].round(5)
    array([0.8])
    """
    max_norm = _positive(max_norm, "max_norm")
    _check_targets(grads, "grads")
    norm = math.sqrt(sum(map(_core.sum_of_squares, grads.values())))
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for g in grads.values():
            g *= scale
    return norm


@quiet
def clip_grad_value(grads: Mapping[str, Array], max_value: float) -> None:
    """Limit each element of the gradients to -max_value ... max_value, in place.

    Parameters
    ----------
    grads : dict of ndarrays
    max_value : float
        Positive.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> grads = {"w": np.array([0.5, -3.0])}
    >>> clip_grad_value(grads, 1.0)
    >>> grads["w"]
    array([ 0.5, -1. ])
    """
    max_value = _positive(max_value, "max_value")
    _check_targets(grads, "grads")
    for g in grads.values():
        np.clip(g, -max_value, max_value, out=g)


class Optimizer:
    """What SGD and Adam share: parameters to change in place, and what is carried from step to step.

    Attributes
    ----------
    params : dict of ndarrays
    lr : float
        The learning rate; assigning another one takes effect at the next step.
    """

    def __init__(self, params: Mapping[str, Array], lr: float, carried: tuple[str, ...]) -> None:
        _check_targets(params, "params")
        self.params = dict(params)
        self.lr = _not_negative(lr, "lr")
        self._carried = {kind: {name: np.zeros_like(p) for name, p in params.items()} for kind in carried}

    def state_dict(self) -> dict[str, Array]:
        """Return what is carried from step to step: the arrays themselves, by names such as ``m.weight``."""
        return {f"{kind}.{name}": a for kind, arrays in self._carried.items() for name, a in arrays.items()}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Copy the values of `state_dict`; training then goes on with the same bits.

        Parameters
        ----------
        state_dict : mapping of arrays
            From `state_dict()` of an optimizer of the same kind and parameters.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value does not fit. Then nothing has been changed.
        """
        own = self.state_dict()
        _check_keys(state_dict, own, "state_dict")
        values = [checked(state_dict[key], key, a.shape, a.dtype) for key, a in own.items()]
        for a, value in zip(own.values(), values, strict=True):
            np.copyto(a, value)

    def _check(self, grads: Mapping[str, Array]) -> None:
        """Check all arrays before any parameter is changed."""
        _check_targets(self.params, "params")
        _check_keys(grads, self.params, "grads")
        for name, p in self.params.items():
            checked(grads[name], f"grads[{name!r}]", p.shape, p.dtype)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch has it.

    With v starting at 0, a step is ::

        v = momentum * v + g
        p = p - lr * v

    Parameters
    ----------
    params : dict of ndarrays
        Changed in place by `step`.
    lr : float
        At least 0.
    momentum : float, optional
        At least 0; with 0 there is no v.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"w": np.array([1.0])}
    >>> SGD(params, lr=0.1).step({"w": np.array([2.0])})
    >>> params["w"]
    array([0.8])
    """

    def __init__(self, params: Mapping[str, Array], lr: float, *, momentum: float = 0.0) -> None:
        self.momentum = _not_negative(momentum, "momentum")
        super().__init__(params, lr, ("v",) if momentum else ())

    def step(self, grads: Mapping[str, Array]) -> None:
        """Change the parameters.

        Parameters
        ----------
        grads : dict of ndarrays
            With the keys, shapes and dtypes of the parameters; not changed.

        Raises
        ------
        TypeError, ValueError
            If they do not fit. Then nothing has been changed.
        """
        self._check(grads)
        v = self._carried.get("v", {})
        for name, p in self.params.items():
            _core.sgd_step(p, grads[name], v.get(name), self.lr, self.momentum)


class Adam(Optimizer):
    """Adam [1]_.

    With m and v starting at 0, step t = 1, 2, ... is ::

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g²
        p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    params : dict of ndarrays
        Changed in place by `step`.
    lr : float, optional
        At least 0.
    betas : pair of floats, optional
        b1 and b2, at least 0 and less than 1.
    eps : float, optional
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (arXiv:1412.6980).

    Examples
    --------
    >>> import numpy as np
    >>> params = {"w": np.array([1.0])}
    >>> Adam(params, lr=0.1).step({"w": np.array([2.0])})
    >>> params["w"]  # the first step is lr, whatever the gradient's size
    array([0.9])
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        b1, b2 = betas
        if not (0 <= b1 < 1 and 0 <= b2 < 1):
            msg = f"betas: expected two numbers from 0 to less than 1, got {betas}"
            raise ValueError(msg)
        self.betas = float(b1), float(b2)
        self.eps = _not_negative(eps, "eps")
        super().__init__(params, lr, ("m", "v"))
        self._t = np.zeros((), np.int64)

    def state_dict(self) -> dict[str, Array]:
        """Return what is carried from step to step: the arrays themselves, t and by name those of m and v."""
        return {"t": self._t, **super().state_dict()}

    def step(self, grads: Mapping[str, Array]) -> None:
        """Change the parameters.

        Parameters
        ----------
        grads : dict of ndarrays
            With the keys, shapes and dtypes of the parameters; not changed.

        Raises
        ------
        TypeError, ValueError
            If they do not fit. Then nothing has been changed.
        """
        self._check(grads)
        self._t += 1
        b1, b2 = self.betas
        # The corrections of m and v as two scalars, which saves two operations on each element
        root = math.sqrt(1 - b2 ** int(self._t))
        lr, eps = self.lr * root / (1 - b1 ** int(self._t)), self.eps * root
        m, v = self._carried["m"], self._carried["v"]
        for name, p in self.params.items():
            _core.adam_step(p, grads[name], m[name], v[name], lr, b1, b2, eps)


def _floats(a: object, name: str) -> Array:
    array = _core.asarray(a, name)
    if array.dtype not in (np.float32, np.float64):
        msg = f"{name}: expected dtype float32 or float64, got {array.dtype}"
        raise TypeError(msg)
    return array


def _is_mean(reduction: Reduction) -> bool:
    if reduction not in ("mean", "sum"):
        msg = f"reduction: expected 'mean' or 'sum', got {reduction!r}"
        raise ValueError(msg)
    return reduction == "mean"


def _positive(value: float, name: str) -> float:
    if not number(value, name) > 0:
        msg = f"{name}: expected more than 0, got {value}"
        raise ValueError(msg)
    return float(value)


def _not_negative(value: float, name: str) -> float:
    if not number(value, name) >= 0:
        msg = f"{name}: expected at least 0, got {value}"
        raise ValueError(msg)
    return float(value)


def _check_dict(arrays: object, name: str) -> None:
    if not isinstance(arrays, Mapping):
        msg = f"{name}: expected a dict of arrays, got {type(arrays).__name__}"
        raise TypeError(msg)


def _check_keys(given: Mapping[str, object], own: Mapping[str, object], name: str) -> None:
    _check_dict(given, name)
    if given.keys() != own.keys():
        unknown, missing = sorted(given.keys() - own.keys()), sorted(own.keys() - given.keys())
        msg = f"{name}: expected the keys of the parameters, got {unknown} besides and not {missing}"
        raise ValueError(msg)


def _check_targets(arrays: Mapping[str, object], name: str) -> None:
    """Check that these are arrays of floats that can be changed in place."""
    _check_dict(arrays, name)
    for key, a in arrays.items():
        array = _floats(a, f"{name}[{key!r}]")
        checked_target(a, f"{name}[{key!r}]", array.shape, array.dtype)
