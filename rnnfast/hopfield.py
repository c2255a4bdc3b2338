"""Hopfield networks: associative memories that restore stored patterns from damaged ones.

`Hopfield` stores patterns of +1 and -1 in the weights between its units. `ModernHopfield` stores patterns of real
numbers directly. Both lower an energy at each step, and accept any number of states at once.

Examples
--------
>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> patterns = rng.choice([-1, 1], (10, 200))
>>> network = Hopfield(200)
>>> network.store(patterns)
>>> damaged = np.where(rng.random(patterns.shape) < 0.2, -patterns, patterns)
>>> states, steps, period = network.recall(damaged, rng=0)
>>> bool((states == patterns).all()), period
(True, array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1]))
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, check_finite, float_dtype, quiet, sum_of_products
from ._base.module import Check, Kept, Module
from ._base.scalars import RNG, Integer, Number, addressable, choice, count, generator, not_negative, positive, size

__all__ = ["Hopfield", "ModernHopfield", "Recall"]

Rule: TypeAlias = Literal["hebbian", "storkey", "pseudo_inverse"]
Mode: TypeAlias = Literal["asynchronous", "synchronous"]

AT_ONCE = 64  # units whose fields come from one product: enough for the tiles, few beside the work between products


class Recall(NamedTuple):
    """The result of a recall, for each state.

    Attributes
    ----------
    states : ndarray [..., N]
        The states at the end of the recall.
    steps : ndarray [...] of int64
        The number of updates of all units that changed the state.
    period : ndarray [...] of int64
        1 if another update would not change the state, 2 if synchronous updates alternate between it and one other
        state, 0 if `max_steps` was reached before either was found.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> network = rnnfast.hopfield.Hopfield(4)
    >>> network.store(np.array([[1, 1, -1, -1]]))
    >>> recall = network.recall(np.array([1, 1, 1, -1]))
    >>> recall.states, int(recall.period)
    (array([ 1.,  1., -1., -1.], dtype=float32), 1)
    """

    states: Array
    steps: Array
    period: Array


class Hopfield(Module):
    r"""The network of Hopfield [1]_: N units with the values +1 and -1, and a weight between any two of them.

    With weights w, thresholds t and the state s, unit i is updated by ::

        h_i = sum_j w_ij s_j - t_i
        s_i = +1 if h_i > 0, -1 if h_i < 0, else as it was

    which never raises the energy ``E(s) = -s^T w s / 2 + t^T s``, as long as w is symmetric and has no negative
    diagonal. Fields h that differ from 0 by no more than rounding, ``4 eps (sum_j |w_ij| + |t_i|)``, count as 0.

    Parameters
    ----------
    units : int
        N.
    dtype : {"float32", "float64"}, optional
        The dtype of the parameters and of the returned states.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        Draws the orders of asynchronous updates where `recall` is given nothing else to draw them by.

    Attributes
    ----------
    weight : ndarray [N,N]
        Zero at first.
    threshold : ndarray [N]
        Initially zero; ``network.threshold = t`` sets it.
    units : int

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Hopfield, "Neural Networks and Physical Systems with Emergent Collective Computational Abilities",
       PNAS 79(8), 1982.

    Examples
    --------
    >>> import numpy as np
    >>> network = Hopfield(4, dtype="float64")
    >>> network.store([1, 1, -1, -1])
    >>> network.recall([1, 1, 1, -1]).states
    array([ 1.,  1., -1., -1.])
    >>> network.energy([[1, 1, 1, -1], [1, 1, -1, -1]])
    array([ 0. , -1.5])
    """

    weight: Array
    threshold: Array

    def __init__(self, units: Integer, *, dtype: Any = "float32", rng: RNG | None = None) -> None:
        self.units = N = size(units, "units")
        addressable(N * (N + 1), "units")
        super().__init__({"weight": (N, N), "threshold": (N,)}.items(), None, dtype, rng)

    @quiet
    def store(self, patterns: ArrayLike, rule: Rule = "hebbian") -> None:
        """Add patterns to those already stored. The thresholds do not change.

        ==================== ============================================================= ==================
        rule                 for each pattern x                                            holds about
        ==================== ============================================================= ==================
        ``"hebbian"``        ``w_ij += x_i x_j / N``, i ≠ j                                0.138 N
        ``"storkey"``        ``w_ij += (x_i x_j - x_i h_ji - h_ij x_j) / N``, i ≠ j,       N / sqrt(2 ln N)
                             with ``h_ij = sum of w_ik x_k over k ≠ i, j``
        ``"pseudo_inverse"`` w is the projection on the span of all patterns, diagonal     N
                             included: ``w x = x``
        ==================== ============================================================= ==================

        The last column is for random patterns. Sources: Hebb's rule [1]_ with its capacity [2]_, Storkey's [3]_,
        the pseudo-inverse [4]_.

        Parameters
        ----------
        patterns : array [M,N] or [N]
            Of +1 and -1, in the network's dtype or in integers.
        rule : {"hebbian", "storkey", "pseudo_inverse"}, optional
            The first two add to existing weights and do not change the diagonal. The pseudo-inverse requires weights
            that are zero or were stored with this rule.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. In that case nothing has changed.

        References
        ----------
        .. [1] Hopfield, "Neural Networks and Physical Systems with Emergent Collective Computational Abilities",
           PNAS 79(8), 1982.
        .. [2] Amit, Gutfreund, Sompolinsky, "Storing Infinite Numbers of Patterns in a Spin-Glass Model of Neural
           Networks", Physical Review Letters 55(14), 1985.
        .. [3] Storkey, "Increasing the Capacity of a Hopfield Network without Sacrificing Functionality",
           ICANN 1997.
        .. [4] Personnaz, Guyon, Dreyfus, "Information Storage and Retrieval in Spin-Glass like Neural Networks",
           Journal de Physique Lettres 46(8), 1985.
        """
        x = self._signs(patterns, "patterns")
        if x.ndim > 2:
            msg = f"patterns: expected shape (M, {self.units}) or ({self.units},), got {x.shape}"
            raise ValueError(msg)
        change = {"hebbian": self._hebbian, "storkey": self._storkey, "pseudo_inverse": self._pseudo_inverse}
        self.weight = change[choice(rule, "rule", tuple(change))](x.reshape(-1, self.units))

    @quiet
    def recall(
        self, states: ArrayLike, mode: Mode = "asynchronous", max_steps: Integer = 100, rng: RNG | None = None
    ) -> Recall:
        """Update states until they are stable.

        Parameters
        ----------
        states : array [..., N]
            Of +1 and -1, in the network's dtype or in integers; not changed. States do not affect each other.
        mode : {"asynchronous", "synchronous"}, optional
            Asynchronous: one unit after the other, in a random order that is drawn anew for each step and is the same
            for all states. Synchronous: all units at once; a state may then alternate between two.
        max_steps : int, optional
            The maximum number of updates of all units. With 0, `period` says which states are stable.
        rng : int, Generator or what `numpy.random.default_rng` takes, optional
            For the orders. By default the network's own generator goes on.

        Returns
        -------
        Recall
            The states, the number of steps that they took, and whether they are stable.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or the weights or thresholds are not finite.
        """
        given = self._signs(states, "states")
        synchronous = choice(mode, "mode", ("asynchronous", "synchronous")) == "synchronous"
        limit = count(max_steps, "max_steps")
        orders = self.rng if rng is None else generator(rng)
        ties = self._ties()

        shape = given.shape[:-1]
        out = np.array(given.reshape(-1, self.units), order="C")
        steps, period = np.zeros(len(out), np.int64), np.zeros(len(out), np.int64)
        rows, before = np.arange(len(out)), out  # those that still change, and what they were a step ago
        for step in range(limit + 1):
            now, last = out[rows], step == limit  # which only sees whether the states stay
            if synchronous or last:
                after = self._updated(now, ties)
            else:
                after = self._swept(now, ties, orders.permutation(self.units))
            moved = (after != now).any(axis=1)
            returned = moved & synchronous & (after == before).all(axis=1)
            period[rows[~moved]], period[rows[returned]] = 1, 2
            going = moved & ~returned
            rows, before = rows[going], now[going]
            if last or not len(rows):
                break
            out[rows] = after[going]
            steps[rows] += 1
        return Recall(out.reshape(given.shape), steps.reshape(shape), period.reshape(shape))

    @quiet
    def energy(self, states: ArrayLike) -> Array:
        """Return ``-s^T w s / 2 + t^T s``.

        Parameters
        ----------
        states : array [..., N]
            Of +1 and -1, in the network's dtype or in integers.

        Returns
        -------
        energy : ndarray [...]

        Raises
        ------
        TypeError, ValueError
            If the states do not fit.
        """
        s = self._signs(states, "states")
        return np.asarray((s * (self.threshold - _core.linear(s, self.weight) / 2)).sum(axis=-1))

    def _signs(self, a: ArrayLike, name: str) -> Array:
        """Return an array [..., N] of +1 and -1 in the network's dtype."""
        array = _core.asarray(a, name)
        if array.dtype.kind not in "iu":
            array = _core.asarray(a, name, self.dtype)
        if array.ndim == 0 or array.shape[-1] != self.units:
            msg = f"{name}: expected shape (..., {self.units}), got {array.shape}"
            raise ValueError(msg)
        others = array[np.abs(array) != 1]
        if others.size:
            msg = f"{name}: expected +1 and -1, got {others[0]}"
            raise ValueError(msg)
        return array.astype(self.dtype, copy=False)

    # How patterns are stored: each returns the new weights

    def _hebbian(self, x: Array) -> Array:
        change = sum_of_products(x, x) / self.units
        np.fill_diagonal(change, 0)
        return self.weight + change

    def _storkey(self, x: Array) -> Array:
        """Return the weights after all patterns in turn, of which `AT_ONCE` at a time are added to them.

        With f = w x, without the diagonal of w, and u = x / 2 - f the rule is ``w = a w + (x u^T + u x^T) / N``,
        where a = 1 + 2 / N: the terms that the sum h_ij leaves out make the 2 / N. So after k patterns of a block
        w is ``a^k w_0 + sum_m a^(k-1-m) (x_m u_m^T + u_m x_m^T) / N``, and the next f takes a product with w_0, that
        of all patterns of the block at once, and two with the k rows.
        """
        N, w, growth = self.units, self.weight.copy(), 1 + 2 / self.units
        for block in np.split(x, range(AT_ONCE, len(x), AT_ONCE)):
            K = len(block)
            ages = (growth ** np.arange(K) / N).astype(self.dtype)  # of the latest pattern first
            first, overlaps = _core.linear(block, w), _core.linear(block, block)
            u, diagonal = np.zeros_like(block), w.diagonal().copy()
            rows = np.concatenate([block, u]).T.copy()  # [N,2K], to be summed up by factors [2K]
            for k, pattern in enumerate(block):
                factors = np.zeros((2, K), self.dtype)
                factors[:, :k] = ages[:k][::-1] * (_core.linear(pattern, u)[:k], overlaps[k, :k])
                f = growth**k * first[k] + _core.linear(factors.reshape(-1), rows) - diagonal * pattern
                u[k] = rows[:, K + k] = pattern / 2 - f
                diagonal = growth * diagonal + 2 * pattern * u[k] / N
            half = sum_of_products(ages[::-1, np.newaxis] * block, u)
            w = growth**K * w + (half + half.T)
        np.fill_diagonal(w, self.weight.diagonal())
        return w

    def _pseudo_inverse(self, x: Array) -> Array:
        """Return the projection on what w projects on and the part of the patterns outside of it."""
        w, eps = self.weight, np.finfo(self.dtype).eps
        squares = np.einsum("ij,ij->i", w, w)
        if not (abs(w.diagonal() - squares) <= math.sqrt(eps) * squares).all():  # as w w = w has it
            msg = "rule: expected 'hebbian' or 'storkey' for weights that another rule has made, got 'pseudo_inverse'"
            raise ValueError(msg)
        outside = (x - _core.linear(x, w)).astype(np.float64)
        _, lengths, axes = np.linalg.svd(outside, full_matrices=False)
        # What rounding leaves of patterns that are held already, and of those that depend on others
        noise = max(4 * self.units * eps, max(x.shape) * np.finfo(np.float64).eps * lengths.max(initial=0))
        axes = axes[lengths > noise].astype(self.dtype)
        return w + sum_of_products(axes, axes)

    # How states are updated: [B,N], and `ties` [N] are the fields that count as 0

    def _ties(self) -> Array:
        check_finite(self.weight, "weight")
        check_finite(self.threshold, "threshold")
        eps = np.finfo(self.dtype).eps
        ties: Array = 4 * eps * (np.abs(self.weight).sum(axis=1) + np.abs(self.threshold))
        return ties

    def _updated(self, states: Array, ties: Array) -> Array:
        """Return the states after an update of all units at once."""
        fields = _core.linear(states, self.weight, -self.threshold)
        return np.where(fields * states < -ties, -states, states)

    def _swept(self, states: Array, ties: Array, order: Array) -> Array:
        """Return the states after an update of one unit after the other.

        The fields of some units at a time are computed from the states that all units before them have left. Where
        one of these units changes, the fields of the later ones among them change by its weights to them.
        """
        states = states.copy()
        for units in np.split(order, range(AT_ONCE, len(order), AT_ONCE)):
            w = self.weight[units]
            fields, signs = _core.linear(states, w, -self.threshold[units]), states[:, units]
            rows = np.flatnonzero((fields * signs < -ties[units]).any(axis=1))  # a first one changes in no other
            if not len(rows):
                continue
            h, s, among = fields[rows].T.copy(), signs[rows].T.copy(), w[:, units]
            for k, tie in enumerate(ties[units]):
                changes = h[k] * s[k] < -tie
                if changes.any():
                    change = np.where(changes, -2 * s[k], 0)
                    s[k] += change
                    h[k + 1 :] += np.multiply.outer(among[k + 1 :, k], change)
            states[np.ix_(rows, units)] = s.T
        return states


def _beta(_: Any, value: object, name: str) -> float:
    beta = positive(value, name)
    check_finite(np.array(beta), name)
    return beta


class ModernHopfield(Module):
    """The network of Ramsauer et al. [1]_, which stores M patterns x_m of N numbers.

    With X the patterns as columns, the update of a state s and its energy are ::

        s = X softmax(beta X^T s)
        E(s) = -lse(beta X^T s) / beta + s^T s / 2 + log(M) / beta + max_m x_m^T x_m / 2

    where lse is the logarithm of the sum of exponentials. An update never raises E, which is at least 0. If a pattern
    is well separated from the others, a single update reaches it.

    Parameters
    ----------
    patterns : array [M,N]
        Finite, in the network's dtype; copied.
    beta : float, optional
        Positive. With a large beta, an update moves a state close to one pattern; with a small beta, close to a mean of
        several. With 1 / sqrt(N) the update is the attention of transformers.
    dtype : {"float32", "float64"}, optional
        Of the patterns and states.

    Attributes
    ----------
    patterns : ndarray [M,N]
    beta : float

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    .. [1] Ramsauer et al., "Hopfield Networks is All You Need", ICLR 2021 (arXiv:2008.02217).

    Examples
    --------
    >>> import numpy as np
    >>> patterns = np.random.default_rng(0).standard_normal((1000, 64), np.float32)
    >>> network = ModernHopfield(patterns)
    >>> damaged = patterns[:5].copy()
    >>> damaged[:, 32:] = 0
    >>> states, steps, period = network.recall(damaged)
    >>> bool(abs(states - patterns[:5]).max() < 1e-3)
    True
    """

    patterns: Array
    changeable: ClassVar[Mapping[str, Check]] = {**Module.changeable, "beta": _beta}
    kept_as = "patterns"

    def __init__(self, patterns: ArrayLike, *, beta: Number = 1.0, dtype: Any = "float32") -> None:
        self.beta = _beta(self, beta, "beta")
        dtype = float_dtype(dtype)
        kept: Any = patterns
        if not isinstance(kept, Kept):
            kept = Kept({"patterns": np.array(_core.asarray(patterns, "patterns", dtype))})
        shape = np.shape(kept.tensors.get("patterns"))
        if len(shape) != 2 or 0 in shape:
            msg = f"patterns: expected shape (M, N), neither of them 0, got {shape}"
            raise ValueError(msg)
        super().__init__([("patterns", shape)], None, dtype, kept)
        check_finite(self.patterns, "patterns")

    def __repr__(self) -> str:
        """Return the constructor's call, with the patterns as their dtype and shape."""
        return f"{type(self).__name__}(<{self.dtype} {list(self.patterns.shape)}>, beta={self.beta!r})"

    @quiet
    def recall(self, states: ArrayLike, max_steps: Integer = 100, tolerance: Number = 1e-4) -> Recall:
        """Update states until they are stable.

        Parameters
        ----------
        states : array [..., N]
            Finite, in the network's dtype; not changed. States do not affect each other.
        max_steps : int, optional
            The maximum number of updates. Often one is enough.
        tolerance : float, optional
            At least 0. A state is stable if an update would move it by no more than this times the length of the
            longest pattern.

        Returns
        -------
        Recall
            The states, the number of updates that they took, and a period of 1 for those found to be stable, else 0.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or ``beta X^T s`` is not finite.
        """
        given = self._numbers(states)
        limit = count(max_steps, "max_steps")
        longest = np.linalg.norm(self.patterns, axis=-1).max()
        bound = not_negative(tolerance, "tolerance") * longest
        columns = self.patterns.T.copy()

        shape = given.shape[:-1]
        out = np.array(given.reshape(-1, given.shape[-1]), order="C")
        steps, period = np.zeros(len(out), np.int64), np.zeros(len(out), np.int64)
        rows = np.arange(len(out))  # those that still move
        for _ in range(limit):
            if not len(rows):
                break
            now = out[rows]
            shares, _ = self._exponentials(now)
            shares /= shares.sum(axis=-1, keepdims=True)
            after = _core.linear(shares, columns)
            moved = np.linalg.norm(after - now, axis=-1) > bound
            period[rows[~moved]] = 1
            rows = rows[moved]
            out[rows] = after[moved]
            steps[rows] += 1
        return Recall(out.reshape(given.shape), steps.reshape(shape), period.reshape(shape))

    @quiet
    def energy(self, states: ArrayLike) -> Array:
        """Return the energy E of the equation above.

        Parameters
        ----------
        states : array [..., N]
            Finite, in the network's dtype.

        Returns
        -------
        energy : ndarray [...]

        Raises
        ------
        TypeError, ValueError
            If the states do not fit, or ``beta X^T s`` is not finite.
        """
        s = self._numbers(states)
        exponentials, largest = self._exponentials(s)
        lse = np.log(exponentials.sum(axis=-1)) + largest[..., 0]
        constant = math.log(len(self.patterns)) / self.beta + np.square(self.patterns).sum(axis=-1).max() / 2
        return np.asarray(np.square(s).sum(axis=-1) / 2 - lse / self.beta + constant)

    def _numbers(self, states: ArrayLike) -> Array:
        """Return finite states [..., N]."""
        s = _core.asarray(states, "states", self.dtype)
        N = self.patterns.shape[1]
        if s.ndim == 0 or s.shape[-1] != N:
            msg = f"states: expected shape (..., {N}), got {s.shape}"
            raise ValueError(msg)
        check_finite(s, "states")
        return s

    def _exponentials(self, states: Array) -> tuple[Array, Array]:
        """Return ``exp(z - max z)`` [..., M] and ``max z`` [..., 1] of ``z = beta X^T s``."""
        z = self.beta * _core.linear(states, self.patterns)
        if not np.isfinite(z).all():
            msg = f"states: expected finite products with the patterns times beta in {self.dtype}, got others"
            raise ValueError(msg)
        largest = z.max(axis=-1, keepdims=True)
        return np.exp(z - largest), largest
