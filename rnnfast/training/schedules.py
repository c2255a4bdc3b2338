"""Learning rates that follow a schedule: functions of the number of steps that have been taken.

Examples
--------
>>> import numpy as np
>>> from rnnfast.training import Adam
>>> params = {"w": np.ones(3)}
>>> adam, schedule = Adam(params), CosineSchedule(1e-2, 100, warmup=10)
>>> for step in range(100):
...     adam.lr = schedule(step)
...     adam.step({"w": 2 * params["w"]})
"""

import math
from dataclasses import dataclass

from .._base.scalars import Integer, count, not_negative, positive, size

__all__ = ["CosineSchedule", "ExponentialSchedule"]


@dataclass(frozen=True)
class CosineSchedule:
    """A linear rise to `lr` and then half a cosine down to `final` [1]_.

    With W = `warmup` and n steps taken, the learning rate of the next is ::

        lr * (n + 1) / W                                                              n < W
        final + (lr - final) * (1 + cos(pi * (n - W) / (steps - W))) / 2              W <= n < steps
        final                                                                         steps <= n

    Without a rise it is torch's `CosineAnnealingLR`.

    Parameters
    ----------
    lr : float
        At least 0.
    steps : int
        Of the whole run, at least 1.
    warmup : int, optional
        Steps of the rise, less than `steps`.
    final : float, optional
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (arXiv:1608.03983).

    Examples
    --------
    >>> schedule = CosineSchedule(1.0, 10, warmup=2)
    >>> [round(schedule(n), 3) for n in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    lr: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        values = {
            "lr": not_negative(self.lr, "lr"),
            "steps": size(self.steps, "steps"),
            "warmup": count(self.warmup, "warmup"),
            "final": not_negative(self.final, "final"),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.warmup >= self.steps:
            msg = f"warmup: expected less than steps, {self.steps}, got {self.warmup}"
            raise ValueError(msg)

    def __call__(self, step: Integer) -> float:
        """Return the learning rate of the next step.

        Parameters
        ----------
        step : int
            How many have been taken, at least 0.
        """
        n = count(step, "step")
        if n < self.warmup:
            return self.lr * (n + 1) / self.warmup
        progress = (min(n, self.steps) - self.warmup) / (self.steps - self.warmup)
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ExponentialSchedule:
    """The learning rate ``lr * gamma ** (n // every)`` after n steps: torch's `ExponentialLR` and `StepLR`.

    It is infinite where it is larger than any float.

    Parameters
    ----------
    lr : float
        At least 0.
    gamma : float
        Above 0.
    every : int, optional
        For how many steps it stays the same.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> schedule = ExponentialSchedule(1.0, 0.5, every=10)
    >>> [schedule(n) for n in (0, 9, 10, 25)]
    [1.0, 1.0, 0.5, 0.25]
    """

    lr: float
    gamma: float
    every: int = 1

    def __post_init__(self) -> None:
        values = {
            "lr": not_negative(self.lr, "lr"),
            "gamma": positive(self.gamma, "gamma"),
            "every": size(self.every, "every"),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(self, step: Integer) -> float:
        """Return the learning rate of the next step.

        Parameters
        ----------
        step : int
            How many have been taken, at least 0.
        """
        n = min(count(step, "step") // self.every, 2**63)  # of more, the powers are the same
        try:
            return self.lr * self.gamma**n
        except OverflowError:
            return math.inf if self.lr else 0.0
