"""The linear readout, with the constructor, parameter names and shapes of torch's."""

from typing import Any

from . import _core
from ._base.arrays import Array, ArrayLike, checked
from ._base.module import Module, Tape, check_tape
from ._base.named import checked_grads
from ._base.scalars import RNG, Flag, Integer, addressable, flag, size

__all__ = ["Linear"]


class Linear(Module):
    """The readout ``y = x weight^T + bias``, as `torch.nn.Linear`.

    Parameters
    ----------
    in_features, out_features : int
        I and O.
    bias : bool, optional
        If False, there is no bias.
    dtype : {"float32", "float64"}, optional
        The dtype of the parameters, and of all arrays that the layer takes and returns.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, U(-1/sqrt(I), 1/sqrt(I)).
    seed : as `rng`, optional
        Its older name.

    Attributes
    ----------
    weight : ndarray [O,I]
    bias : ndarray [O] or None

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> readout = rnnfast.Linear(4, 2)
    >>> y, tape = readout.forward(np.ones((5, 3, 4), np.float32))
    >>> dx, grads = readout.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, grads["bias"]
    ((5, 3, 2), (5, 3, 4), array([15., 15.], dtype=float32))
    """

    weight: Array
    bias: Array | None

    def __init__(
        self,
        in_features: Integer,
        out_features: Integer,
        bias: Flag = True,
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
        seed: RNG | None = None,
    ) -> None:
        self.in_features = size(in_features, "in_features")
        self.out_features = size(out_features, "out_features")
        addressable(self.out_features * (self.in_features + 1), "in_features, out_features")
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if flag(bias, "bias"):
            shapes["bias"] = (self.out_features,)
        else:
            self.bias = None
        super().__init__(shapes.items(), self.in_features, dtype, rng, seed)

    def __call__(self, x: ArrayLike) -> Array:
        """Return ``x weight^T + bias``.

        Parameters
        ----------
        x : array [..., I]

        Returns
        -------
        y : ndarray [..., O]

        Raises
        ------
        TypeError, ValueError
            If x does not fit.
        """
        return _core.linear(x, self.weight, self.bias)

    def forward(self, x: ArrayLike) -> tuple[Array, Tape]:
        """Return y, and the tape for `backward`, which refers to x and the parameters without copying them.

        It takes and raises what a call of the layer does.
        """
        x = _core.asarray(x, "x", self.dtype)
        y = self(x)
        return y, Tape(self, x, y.view())

    def backward(
        self, tape: Tape, dy: ArrayLike, *, need_dx: Flag = True, grads: dict[str, Array] | None = None
    ) -> tuple[Array | None, dict[str, Array]]:
        """Return the gradients of ``sum(dy * y)``.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`.
        dy : array [..., O]
            The gradient of y.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`. The gradients are added to these arrays.

        Returns
        -------
        dx : ndarray [..., I] or None
        grads : dict of ndarrays
            By the keys of `state_dict()`; `grads` itself if it was given.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        check_tape(tape, self)
        dy = checked(dy, "dy", tape.y.shape, self.dtype)
        into = checked_grads(grads, self.parameters, tape.x, tape.y, dy)
        given = None if into is None else (into["weight"], into.get("bias"))
        dx, new = _core.linear_backward(tape.x, self.weight, self.bias, dy, flag(need_dx, "need_dx"), given)
        made = {name: d for name, d in zip(("weight", "bias"), new, strict=True) if d is not None}
        return dx, made if grads is None else grads
