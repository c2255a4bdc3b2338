"""Optimizers: SGD, Adam and AdamW, whose steps are kernels."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, checked
from .._base.module import Stateful, parameters_of
from .._base.named import check_apart, checked_floats_by_name, checked_keys, checked_values
from .._base.scalars import Number, not_negative, number

__all__ = ["SGD", "Adam", "AdamW"]


class Optimizer:
    """What all optimizers share: parameters to change in place, and what is carried from step to step.

    Attributes
    ----------
    params : dict of ndarrays
    lr : float
        The learning rate, at least 0; assigning another one takes effect at the next step.
    """

    def __init__(self, params: Stateful | Mapping[str, Array], lr: Number, carried: tuple[str, ...]) -> None:
        arrays = params.state_dict() if isinstance(params, Stateful) else params
        targets = checked_floats_by_name(arrays, "params")
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
        """Copy the values of `state_dict`; training then continues with the same bits.

        Parameters
        ----------
        state_dict : mapping of arrays
            From `state_dict()` of an optimizer of the same kind and parameters. Where it has no ``lr``, the
            learning rate stays as it is.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value does not fit. In that case nothing has changed.
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
        checked_floats_by_name(self.params, "params")
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
    """Stochastic gradient descent with momentum, as in torch.

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
        At least 0; without momentum there is no v.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

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
            If they are invalid. In that case nothing has changed.
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
        If an argument is invalid.

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

    weight_decay = 0.0  # of what `AdamW` is

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
        """Return what changes from step to step, without copies: t, lr, and the arrays of m and v by name."""
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
            If they are invalid. In that case nothing has changed.
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
            _core.adam_step(p, grads[name], m[name], v[name], lr, b1, b2, eps, rate * self.weight_decay)


class AdamW(Adam):
    """Adam with weight decay that is decoupled from the gradient [1]_, as in torch.

    A step is ``p = p - lr * weight_decay * p`` followed by a step of `Adam`.

    Parameters
    ----------
    params : layer, `rnnfast.Modules` or dict of ndarrays
        Changed in place by `step`; no two arrays may share memory. All of them decay; use another optimizer for those
        that should not, such as biases.
    lr : float, optional
        At least 0.
    betas : pair of floats, optional
        b1 and b2, at least 0 and less than 1.
    eps : float, optional
        At least 0.
    weight_decay : float, optional
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (arXiv:1711.05101).

    Examples
    --------
    >>> import numpy as np
    >>> params = {"w": np.array([1.0])}
    >>> AdamW(params, lr=0.1, weight_decay=0.5).step({"w": np.array([2.0])})
    >>> params["w"]  # 0.05 less for the decay, 0.1 for the gradient
    array([0.85])
    """

    def __init__(
        self,
        params: Stateful | Mapping[str, Array],
        lr: Number = 1e-3,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
    ) -> None:
        self.weight_decay = not_negative(weight_decay, "weight_decay")
        super().__init__(params, lr, betas=betas, eps=eps)


def _two_decays(betas: object) -> tuple[float, float]:
    if not isinstance(betas, Iterable):
        msg = f"betas: expected two numbers, got {type(betas).__name__}"
        raise TypeError(msg)
    rates = tuple(number(beta, "betas") for beta in betas)
    if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
        msg = f"betas: expected two numbers from 0 to less than 1, got {rates}"
        raise ValueError(msg)
    return rates
