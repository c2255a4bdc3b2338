"""Bounds on gradients before a step."""

import math
from collections.abc import Mapping

import numpy as np

from .. import _core
from .._base.arrays import Array, quiet
from .._base.named import checked_floats_by_name
from .._base.scalars import Number, positive

__all__ = ["clip_grad_norm", "clip_grad_value"]


@quiet
def clip_grad_norm(grads: Mapping[str, Array], max_norm: Number) -> float:
    """Scale the gradients in place, so that the norm of all their elements together is at most `max_norm`.

    As in torch, they are multiplied by ``max_norm / (norm + 1e-6)`` where that is less than 1.

    Parameters
    ----------
    grads : dict of ndarrays
    max_norm : float
        Positive.

    Returns
    -------
    float
        The norm before scaling. If it is NaN, the gradients are not changed.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

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
    targets = checked_floats_by_name(grads, "grads")
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
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> grads = {"w": np.array([0.5, -3.0])}
    >>> clip_grad_value(grads, 1.0)
    >>> grads["w"]
    array([ 0.5, -1. ])
    """
    bound = positive(max_value, "max_value")
    targets = checked_floats_by_name(grads, "grads")
    for g in targets.values():
        np.clip(g, -bound, bound, out=g)  # a bound that the dtype cannot hold bounds nothing
