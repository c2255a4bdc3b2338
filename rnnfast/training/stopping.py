"""Early stopping: the parameters of a model as they were when it was at its best."""

import math
from collections.abc import Mapping

import numpy as np

from .._base.arrays import Array, ArrayLike
from .._base.module import Stateful
from .._base.named import checked_floats_by_name, checked_values
from .._base.scalars import Integer, Number, count, not_negative, number

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Keep the best parameters, and stop training after a while without improvement.

    Parameters
    ----------
    params : layer, `rnnfast.Modules` or dict of ndarrays
        The parameters that `restore` puts back. They are copied at once, and again whenever the loss is the lowest so
        far.
    patience : int
        The number of checks in a row without improvement that are tolerated, at least 0.
    min_delta : float, optional
        A loss counts as an improvement if it is lower by more than this, at least 0.

    Attributes
    ----------
    best : float
        The lowest loss; infinity before the first check.
    since : int
        The number of checks since then.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"w": np.zeros(1)}
    >>> stopping = EarlyStopping(params, patience=1)
    >>> for loss in (3.0, 2.0, 2.5, 2.2, 1.0):
    ...     params["w"] += 1
    ...     if stopping.step(loss):
    ...         break
    >>> stopping.restore()
    >>> stopping.best, params["w"]
    (2.0, array([2.]))
    """

    def __init__(self, params: Stateful | Mapping[str, Array], patience: Integer, *, min_delta: Number = 0.0) -> None:
        arrays = params.state_dict() if isinstance(params, Stateful) else params
        self.params = checked_floats_by_name(arrays, "params")
        self.patience = count(patience, "patience")
        self.min_delta = not_negative(min_delta, "min_delta")
        self._best = np.array(math.inf)
        self._since = np.zeros((), np.int64)
        self._kept = {name: p.copy() for name, p in self.params.items()}

    @property
    def best(self) -> float:
        """The lowest loss."""
        return float(self._best)

    @property
    def since(self) -> int:
        """The number of checks since then."""
        return int(self._since)

    def step(self, loss: Number) -> bool:
        """Report the current loss.

        Parameters
        ----------
        loss : float
            The loss of the model on data that it was not trained on. NaN never counts as an improvement.

        Returns
        -------
        bool
            Whether to stop: more than `patience` checks in a row brought no improvement.
        """
        now = number(loss, "loss")
        if now < self.best - self.min_delta:
            self._best[...], self._since[...] = now, 0
            for name, p in self.params.items():
                np.copyto(self._kept[name], p)
        else:
            self._since += 1
        return self.since > self.patience

    def restore(self) -> None:
        """Set the parameters to the values that they had when the loss was lowest."""
        for name, p in self.params.items():
            np.copyto(p, self._kept[name])

    def state_dict(self) -> dict[str, Array]:
        """Return what changes: the arrays themselves, ``best``, ``since``, and those kept by names like ``kept.w``."""
        return {"best": self._best, "since": self._since, **{f"kept.{name}": a for name, a in self._kept.items()}}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the values of `state_dict`, to continue where another one stopped.

        Parameters
        ----------
        state_dict : mapping of arrays
            From `state_dict()` of one with the same parameters.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value does not fit. In that case nothing has changed.
        """
        own = self.state_dict()
        values = checked_values(state_dict, own, "state_dict")
        count(values["since"].item(), "since")
        for key, value in values.items():
            np.copyto(own[key], value)
