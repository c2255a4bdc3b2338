"""Functions of `rnnfast.functional` that are no layers: the activations, and the linear map."""

from .. import _core
from .arrays import Array, ArrayLike
from .scalars import Flag, flag


def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise, at most 2 ULP off, as the kernels compute it.

    Parameters
    ----------
    x : array, float32 or float64
    out : array like x, optional

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape and dtype, within [0, 1].

    Raises
    ------
    TypeError, ValueError
        If x or `out` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    return _core.sigmoid(x, out)


def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Return the hyperbolic tangent, elementwise, at most 2 ULP off, as the kernels compute it.

    Parameters
    ----------
    x : array, float32 or float64
    out : array like x, optional

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape and dtype, within [-1, 1].

    Raises
    ------
    TypeError, ValueError
        If x or `out` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    return _core.tanh(x, out)


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None) -> Array:
    """Return ``x weight^T + bias``.

    Parameters
    ----------
    x : array [..., I]
    weight : array [O,I]
    bias : array [O], optional
    out : array [..., O], optional
        Filled and returned.

    Returns
    -------
    ndarray [..., O]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid (see `rnnfast.functional`).

    Examples
    --------
    >>> import numpy as np
    >>> linear(np.ones((2, 3)), np.ones((1, 3)), np.array([0.5]))
    array([[3.5],
           [3.5]])
    """
    return _core.linear(x, weight, bias, out)


def linear_backward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    dy: ArrayLike,
    *,
    need_dx: Flag = True,
    grads: tuple[Array, Array | None] | None = None,
) -> tuple[Array | None, tuple[Array, Array | None]]:
    """Return the gradients of ``sum(dy * linear(x, weight, bias))``.

    Parameters
    ----------
    x, weight, bias
        What `linear` was given.
    dy : array [..., O]
        The gradient of its result.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.
    grads : pair (dweight, dbias), optional
        The gradients are added to these arrays.

    Returns
    -------
    dx : ndarray [..., I] or None
    grads : pair (dweight [O,I], dbias [O] or None)

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid (see `rnnfast.functional`).

    Examples
    --------
    >>> import numpy as np
    >>> dx, (dweight, dbias) = linear_backward(np.ones((2, 3)), np.ones((1, 3)), np.ones(1), np.ones((2, 1)))
    >>> dweight, dbias
    (array([[2., 2., 2.]]), array([2.]))
    """
    return _core.linear_backward(x, weight, bias, dy, flag(need_dx, "need_dx"), grads)
