"""Linear readouts, fitted to rows of states x [n,F] and targets y [n,O] of float64 as they come, O and F known before.

The products are those of `rnnfast.Linear` and its backward pass.
"""

import math
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from .. import _core
from .._base.arrays import Array, sum_of_products

Rows: TypeAlias = Iterable[tuple[Array, Array]]

AT_ONCE = 64  # rows that recursive least squares takes in by one system of equations


def ridge_regression(rows: Rows, F: int, O: int, penalty: float) -> tuple[Array, Array]:
    """Return the W [O,F] and b [O] that minimize ``sum |y - W x - b|² + penalty |W|²``."""
    products, sums = np.zeros((F + O, F)), np.zeros(F + O)
    places, n, near = (np.empty_like(products), np.empty_like(sums)), 0, np.zeros(0)
    for x, y in rows:
        together = np.concatenate([x, y], axis=1)
        near = near if n else together.mean(axis=0)
        together -= near  # or small differences would drown in their mean
        _core.linear_backward(together[:, :F], *places, together, need_dx=False, grads=(products, sums))
        n += len(x)
    means = sums / n
    products -= np.outer(sums, means[:F])
    try:
        weight = np.linalg.solve(products[:F] + penalty * np.eye(F), products[F:].T).T
    except np.linalg.LinAlgError as error:
        msg = f"ridge: expected more, since the states of {n} steps do not determine the readout, got {penalty}"
        raise ValueError(msg) from error
    means += near
    return weight, means[F:] - weight @ means[:F]


def recursive_least_squares(rows: Rows, w: Array, P: Array, forgetting: float) -> tuple[Array, Array]:
    """Return w [O,F+1], weights and bias, and P [F+1,F+1] after some more rows.

    With l the forgetting, one row is ``k = P x / (l + x^T P x)``, ``w += (y - w x) k^T``, ``P = (P - k x^T P) / l``.
    For n rows X at once, by the identity of Woodbury, the gains are ``K = (R + X P X^T)^-1 X P`` with R the diagonal of
    l, l², .., l^n, and ``w += (Y - X w^T)^T K``, ``P = (P - (X P)^T K) / l^n``.
    """
    half_life = math.inf if forgetting == 1 else math.log(0.5) / math.log(forgetting)
    n = int(min(AT_ONCE, 1 + half_life))  # the elements of R are of like size
    for x, y in rows:
        X = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        for first in range(0, len(X), n):
            x_n, y_n = X[first : first + n], y[first : first + n]
            spread = _core.linear(x_n, P)
            R = np.diag(forgetting ** np.arange(1, len(x_n) + 1))
            gains = np.linalg.solve(R + _core.linear(x_n, spread), spread)
            w = w + sum_of_products(y_n - _core.linear(x_n, w), gains)
            change = sum_of_products(spread, gains)
            P = (P - (change + change.T) / 2) / forgetting ** len(x_n)
    return w, P
