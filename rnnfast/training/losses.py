"""Losses of what a network returns, each with its gradient."""

import math
from typing import Any, Literal, TypeAlias

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, checked, checked_floats, quiet
from .._base.scalars import Flag, Integer, Number, choice, flag, int64, positive

__all__ = [
    "Reduction",
    "binary_cross_entropy",
    "gaussian_nll",
    "huber_loss",
    "is_mean",
    "quantile_loss",
    "softmax_cross_entropy",
    "squared_error",
]

Reduction: TypeAlias = Literal["mean", "sum"]


def is_mean(reduction: Reduction) -> bool:
    """Return whether a loss is to be the mean, and not the sum."""
    return choice(reduction, "reduction", ("mean", "sum")) == "mean"


def softmax_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "mean", ignore_index: Integer | None = None
) -> tuple[float, Array]:
    """Return the loss ``-log softmax(logits)[target]`` in nats, over all targets, and its gradient.

    Parameters
    ----------
    logits : array [..., V], float32 or float64
        Logits may be of any size: the largest in a row is subtracted before the exponential.
    targets : array [...] of integers
        The class of each row of logits, at least 0 and less than V.
    reduction : {"mean", "sum"}, optional
        Over the targets that are not ignored.
    ignore_index : int, optional
        Targets with this value have no loss and no gradient. If all are ignored, the mean is 0 instead of 0/0 as in
        torch, so that such a batch does not turn the weights into NaN.

    Returns
    -------
    loss : float
    dlogits : ndarray [..., V]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or a target is not a class.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_cross_entropy(np.zeros((2, 4)), np.array([3, -1]), ignore_index=-1)
    (1.3862943611198906, array([[ 0.25,  0.25,  0.25, -0.75],
           [ 0.  ,  0.  ,  0.  ,  0.  ]]))
    """
    ignored = None if ignore_index is None else int64(ignore_index, "ignore_index")
    return _core.softmax_cross_entropy(logits, targets, is_mean(reduction), ignored)


@quiet
def squared_error(y: ArrayLike, target: ArrayLike, *, reduction: Reduction = "mean") -> tuple[float, Array]:
    """Return the loss ``(y - target)²``, over all elements, and its gradient.

    Parameters
    ----------
    y : array [...], float32 or float64
    target : array like y
    reduction : {"mean", "sum"}, optional
        The mean over no elements is 0.

    Returns
    -------
    loss : float
    dy : ndarray like y

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> squared_error(np.array([1.0, 5.0]), np.array([2.0, 2.0]))
    (5.0, array([-1.,  3.]))
    """
    given = checked_floats(y, "y")
    dy = np.asarray(given - checked(target, "target", given.shape, given.dtype))
    scale = 1 / max(dy.size, 1) if is_mean(reduction) else 1.0
    loss = scale * _core.sum_of_squares(dy)
    dy *= 2 * scale
    return loss, dy


@quiet
def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Return the loss ``-t log p - (1 - t) log(1 - p)``, p = sigmoid(logits), in nats, over all elements.

    It is computed from the logits, like torch's `binary_cross_entropy_with_logits`, and is accurate for logits of any
    size.

    Parameters
    ----------
    logits : array [...], float32 or float64
    targets : array like logits, or of bools
        The target probabilities t, from 0 to 1.
    reduction : {"mean", "sum"}, optional
        The mean over no elements is 0.

    Returns
    -------
    loss : float
    dlogits : ndarray like logits
        ``p - t``, divided by the number of elements for the mean.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or a target is not a probability.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dlogits = binary_cross_entropy(np.array([0.0, 0.0]), np.array([True, False]))
    >>> round(loss, 4), dlogits
    (0.6931, array([-0.25,  0.25]))
    """
    x = checked_floats(logits, "logits")
    given = _core.asarray(targets, "targets")
    t = checked(given.astype(x.dtype) if given.dtype == bool else given, "targets", x.shape, x.dtype)
    others = t[~((t >= 0) & (t <= 1))]
    if others.size:
        msg = f"targets: expected probabilities from 0 to 1, got {others[0]}"
        raise ValueError(msg)
    e = np.exp(-np.abs(x))  # up to 1: nothing overflows
    losses = np.maximum(x, 0) - x * t + np.log1p(e)
    return _reduced(losses, reduction, np.where(x >= 0, 1, e) / (1 + e) - t)


@quiet
def huber_loss(
    y: ArrayLike, target: ArrayLike, *, delta: Number = 1.0, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Return the loss ``e² / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``; ``e = y - target`` [1]_.

    Parameters
    ----------
    y : array [...], float32 or float64
    target : array like y
    delta : float, optional
        Positive. Errors above delta have a linear instead of a quadratic loss.
    reduction : {"mean", "sum"}, optional
        Over all elements; the mean over none is 0.

    Returns
    -------
    loss : float
    dy : ndarray like y

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964.

    Examples
    --------
    >>> import numpy as np
    >>> huber_loss(np.array([1.5, 5.0]), np.array([2.0, 2.0]), reduction="sum")
    (2.625, array([-0.5,  1. ]))
    """
    given, bound = checked_floats(y, "y"), positive(delta, "delta")
    e = np.asarray(given - checked(target, "target", given.shape, given.dtype))
    size = np.abs(e)
    losses = np.where(size <= bound, e * e / 2, bound * (size - bound / 2))
    return _reduced(losses, reduction, np.clip(e, -bound, bound))


@quiet
def quantile_loss(
    y: ArrayLike, target: ArrayLike, quantiles: ArrayLike, *, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Return the quantile or pinball loss ``max(q e, (q - 1) e)`` with ``e = target - y`` [1]_.

    At its minimum, a fraction q of all targets lies below y.

    Parameters
    ----------
    y : array [..., Q], float32 or float64
        The forecasts of Q quantiles.
    target : array [...] of the same dtype
    quantiles : array [Q] of numbers
        The q, above 0 and below 1.
    reduction : {"mean", "sum"}, optional
        Over all elements of y; the mean of none is 0.

    Returns
    -------
    loss : float
    dy : ndarray [..., Q]
        ``-q`` where y is below the target, ``1 - q`` where it is above, 0 where they are equal.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Koenker, Bassett, "Regression Quantiles", Econometrica 46(1), 1978.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dy = quantile_loss(np.array([[1.0, 4.0]]), np.array([2.0]), [0.1, 0.9], reduction="sum")
    >>> round(loss, 2), dy.round(2)
    (0.3, array([[-0.1,  0.1]]))
    """
    given = checked_floats(y, "y")
    q = checked(quantiles, "quantiles", given.shape[-1:], np.dtype(np.float64))
    others = q[~((q > 0) & (q < 1))]
    if given.ndim == 0 or others.size:
        what = "numbers above 0 and below 1" if given.ndim else "quantiles of y [..., Q]"
        msg = f"quantiles: expected {what}, got {others[0] if others.size else 'an array without axes as y'}"
        raise ValueError(msg)
    q = q.astype(given.dtype)
    e = checked(target, "target", given.shape[:-1], given.dtype)[..., np.newaxis] - given
    return _reduced(np.maximum(q * e, (q - 1) * e), reduction, np.where(e < 0, 1 - q, np.where(e > 0, -q, 0 * e)))


@quiet
def gaussian_nll(
    mean: ArrayLike, log_variance: ArrayLike, target: ArrayLike, *, full: Flag = False, reduction: Reduction = "mean"
) -> tuple[float, tuple[Array, Array]]:
    """Return the negative log-likelihood of a normal distribution, ``(s + (target - mean)² e^-s) / 2``.

    s is the logarithm of the variance, which can be any number [1]_. This is torch's `gaussian_nll_loss` with the
    variance ``e^s``, but without a minimum variance.

    Parameters
    ----------
    mean : array [...], float32 or float64
    log_variance, target : arrays like mean
    full : bool, optional
        If True, add the constant ``log(2 pi) / 2`` for each element.
    reduction : {"mean", "sum"}, optional
        Over all elements; the mean over none is 0.

    Returns
    -------
    loss : float
    gradients : tuple of ndarrays like mean
        dmean and dlog_variance.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Nix, Weigend, "Estimating the Mean and Variance of the Target Probability Distribution", ICNN 1994.

    Examples
    --------
    >>> import numpy as np
    >>> gaussian_nll(np.array([1.0]), np.array([0.0]), np.array([3.0]))
    (2.0, (array([-2.]), array([-1.5])))
    """
    m = checked_floats(mean, "mean")
    s = checked(log_variance, "log_variance", m.shape, m.dtype)
    e = np.asarray(m - checked(target, "target", m.shape, m.dtype))
    constant = math.log(2 * math.pi) / 2 if flag(full, "full") else 0.0
    dmean = e * np.exp(-s)
    squares = e * dmean
    loss, dlog_variance = _reduced((s + squares) / 2 + constant, reduction, (1 - squares) / 2)
    return loss, (dmean * dmean.dtype.type(_scale(dmean, reduction)), dlog_variance)


def _scale(elements: Array, reduction: Reduction) -> float:
    return 1 / max(elements.size, 1) if is_mean(reduction) else 1.0


def _reduced(losses: Array, reduction: Reduction, gradient: Any) -> tuple[float, Array]:
    """Return the sum or mean of the losses and of them the gradient, given that of each."""
    scale, d = _scale(losses, reduction), np.asarray(gradient)
    d *= scale
    return scale * float(np.sum(losses, dtype=np.float64)), d
