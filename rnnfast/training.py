"""As much as training without a framework needs: losses, clipping, SGD, Adam and pruning.

A loss returns its value and its gradient. An optimizer takes the parameters of a layer, of several that
`rnnfast.Modules` joins, or of a dict of arrays, and changes them in place. Gradients are dicts of arrays with the same
keys, as ``layer.backward`` and `Modules.join` return them; clipping changes them in place. As in the layers, numbers
below the smallest normal one count as zero, and the number of threads changes no bit.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> lstm, readout = rnnfast.LSTM(3, 8, seed=0), rnnfast.Linear(8, 5, seed=1)
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

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, checked, checked_floats, checked_target, quiet
from ._base.module import Stateful, parameters_of
from ._base.named import check_apart, checked_keys, checked_values
from ._base.scalars import Integer, Number, choice, int64, not_negative, number, positive
from .pruning import Pruner

__all__ = ["SGD", "Adam", "Pruner", "clip_grad_norm", "clip_grad_value", "softmax_cross_entropy", "squared_error"]

Reduction: TypeAlias = Literal["mean", "sum"]


def softmax_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "mean", ignore_index: Integer | None = None
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
    ignored = None if ignore_index is None else int64(ignore_index, "ignore_index")
    return _core.softmax_cross_entropy(logits, targets, _is_mean(reduction), ignored)


@quiet
def squared_error(y: ArrayLike, target: ArrayLike, *, reduction: Reduction = "mean") -> tuple[float, Array]:
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
    given = checked_floats(y, "y")
    dy = np.asarray(given - checked(target, "target", given.shape, given.dtype))
    scale = 1 / max(dy.size, 1) if _is_mean(reduction) else 1.0
    loss = scale * _core.sum_of_squares(dy)
    dy *= 2 * scale
    return loss, dy


@quiet
def clip_grad_norm(grads: Mapping[str, Array], max_norm: Number) -> float:
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
    bound = positive(max_norm, "max_norm")
    targets = _targets(grads, "grads")
    norm = math.sqrt(sum(map(_core.sum_of_squares, targets.values())))
    scale = bound / (norm + 1e-6)
    if scale < 1:
        for g in targets.values():
            g *= scale
    return norm


@quiet
def clip_grad_value(grads: Mapping[str, Array], max_value: Number) -> None:
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
    bound = positive(max_value, "max_value")
    targets = _targets(grads, "grads")
    for g in targets.values():
        np.clip(g, -bound, bound, out=g)  # a bound that the dtype cannot hold bounds nothing


class Optimizer:
    """What SGD and Adam share: parameters to change in place, and what is carried from step to step.

    Attributes
    ----------
    params : dict of ndarrays
    lr : float
        The learning rate, at least 0; assigning another one takes effect at the next step.
    """

    def __init__(self, params: Stateful | Mapping[str, Array], lr: Number, carried: tuple[str, ...]) -> None:
        arrays = params.state_dict() if isinstance(params, Stateful) else params
        targets = _targets(arrays, "params")
        check_apart(targets, "params")
        self.params = dict(arrays)
        self._lr = np.array(not_negative(lr, "lr"))
        self._carried = {kind: {name: np.zeros_like(p) for name, p in targets.items()} for kind in carried}

    @property
    def lr(self) -> float:
        return float(self._lr)

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr[...] = not_negative(lr, "lr")

    def __repr__(self) -> str:
        """Return the constructor's call, with the parameters as their number, without what is at its default."""
        kind: Any = type(self)
        sizes = [p.size for p in self.params.values()]
        words = [f"<{sum(sizes)} parameters in {len(sizes)} arrays>"]
        for name, parameter in parameters_of(kind).items():
            value = getattr(self, name, parameter.default)
            if name != "params" and value != parameter.default:
                words.append(f"{name}={value!r}")
        return f"{kind.__name__}({', '.join(words)})"

    def state_dict(self) -> dict[str, Array]:
        """Return what changes from step to step: the arrays themselves, lr, and others by names like ``m.weight``."""
        carried = {f"{kind}.{name}": a for kind, arrays in self._carried.items() for name, a in arrays.items()}
        return {"lr": self._lr, **carried}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the values of `state_dict`; training then goes on with the same bits.

        Parameters
        ----------
        state_dict : mapping of arrays
            From `state_dict()` of an optimizer of the same kind and parameters. Where it has no ``lr``, the
            learning rate stays as it is.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value does not fit. Then nothing has been changed.
        """
        own = self.state_dict()
        given: object = state_dict
        if isinstance(given, Mapping) and "lr" not in given:
            del own["lr"]
        values = checked_values(given, own, "state_dict")
        for key in values.keys() & {"lr", "t"}:
            not_negative(values[key].item(), key)
        for key, value in values.items():
            np.copyto(own[key], value)

    def _check(self, grads: Mapping[str, Array]) -> None:
        """Check all arrays before any parameter is changed."""
        _targets(self.params, "params")
        checked_keys(grads, self.params, "grads")
        for name, p in self.params.items():
            try:
                checked(grads[name], f"grads[{name!r}]", p.shape, p.dtype)
            except ValueError as error:
                if "." in name or np.shape(grads[name]) == p.shape:
                    raise
                msg = f"{error}; layers with equal names of parameters are joined by rnnfast.Modules"
                raise ValueError(msg) from None


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch has it.

    With v starting at 0, a step is ::

        v = momentum * v + g
        p = p - lr * v

    Parameters
    ----------
    params : layer, `rnnfast.Modules` or dict of ndarrays
        Changed in place by `step`; no two arrays may share memory.
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

    def __init__(self, params: Stateful | Mapping[str, Array], lr: Number, *, momentum: Number = 0.0) -> None:
        self.momentum = not_negative(momentum, "momentum")
        super().__init__(params, lr, ("v",) if self.momentum else ())

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
        lr, v = not_negative(self.lr, "lr"), self._carried.get("v", {})
        for name, p in self.params.items():
            _core.sgd_step(p, grads[name], v.get(name), lr, self.momentum)


class Adam(Optimizer):
    """Adam [1]_.

    With m and v starting at 0, step t = 1, 2, ... is ::

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g²
        p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    params : layer, `rnnfast.Modules` or dict of ndarrays
        Changed in place by `step`; no two arrays may share memory.
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
        params: Stateful | Mapping[str, Array],
        lr: Number = 1e-3,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
    ) -> None:
        self.betas = _two_decays(betas)
        self.eps = not_negative(eps, "eps")
        super().__init__(params, lr, ("m", "v"))
        self._t = np.zeros((), np.int64)

    def state_dict(self) -> dict[str, Array]:
        """Return what changes from step to step: the arrays themselves, t, lr, and by name those of m and v."""
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
        rate = not_negative(self.lr, "lr")
        self._t += 1
        b1, b2 = self.betas
        # The corrections of m and v as two scalars, which saves two operations on each element
        root = math.sqrt(1 - b2 ** int(self._t))
        lr, eps = rate * root / (1 - b1 ** int(self._t)), self.eps * root
        m, v = self._carried["m"], self._carried["v"]
        for name, p in self.params.items():
            _core.adam_step(p, grads[name], m[name], v[name], lr, b1, b2, eps)


def _is_mean(reduction: Reduction) -> bool:
    return choice(reduction, "reduction", ("mean", "sum")) == "mean"


def _two_decays(betas: object) -> tuple[float, float]:
    if not isinstance(betas, Iterable):
        msg = f"betas: expected two numbers, got {type(betas).__name__}"
        raise TypeError(msg)
    rates = tuple(number(beta, "betas") for beta in betas)
    if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
        msg = f"betas: expected two numbers from 0 to less than 1, got {rates}"
        raise ValueError(msg)
    return rates


def _targets(arrays: object, name: str) -> dict[str, Array]:
    """Return views of arrays of floats that can be changed in place, each of them once."""
    if not isinstance(arrays, Mapping):
        expected = "a layer, rnnfast.Modules or a dict of arrays" if name == "params" else "a dict of arrays"
        msg = f"{name}: expected {expected}, got {type(arrays).__name__}"
        raise TypeError(msg)
    targets = {key: checked_target(a, f"{name}[{key!r}]") for key, a in arrays.items()}
    if len({*map(id, arrays.values())}) < len(arrays):
        check_apart(targets, name)
    return targets
