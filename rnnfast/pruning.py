"""`Pruner`: recurrent layers lose the weights that matter least while they are trained, block by block.

Sizes are those of layers: H hidden units, G gates; a matrix has rows G·H and K columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._base.arrays import Array, ArrayLike, checked_target, quiet
from ._base.blocks import spread, sums_of_blocks
from ._base.module import Stateful, owners_of_matrices
from ._base.named import checked_values
from ._base.scalars import Flag, Integer, Number, count, flag, number, size

__all__ = ["Pruner"]


class Pruner:
    """Prune weight_ih and weight_hh of recurrent layers in blocks, on the cubic schedule of Zhu and Gupta [1]_.

    With d the final `density`, each matrix is pruned after the steps t = `start`, `start` + `every`, .. and `stop`. It
    then keeps the fraction ::

        d + (1 - d) * (1 - (t - start) / (stop - start))^3

    of its elements: those of the blocks with the largest mean square. All others are zero from then on; pruned weights
    never come back. Blocks lie within the rows of a gate. A stream of the layer skips the zeros, with the same bits:
    the fewer blocks remain, the faster is its step.

    Parameters
    ----------
    module : layer, cell or `rnnfast.Modules`
        In a container, all layers and cells are pruned. Readouts, embeddings, projections, biases and the like are not.
    density : float
        d, above 0 and up to 1.
    block : pair of ints, optional
        Units and columns of a block. Streams of float32 and bfloat16 skip blocks of (16, 1), those of int8 blocks of
        (16, 4). If the size does not divide H or K, blocks at the edge are smaller.
    start, stop, every : int
        In optimizer steps, counted from 1: 0 <= start < stop, and every >= 1.
    keep_diagonal : bool, optional
        If True, blocks on the diagonal of a gate's weight_hh, through which a unit reads its own h', are always kept,
        and count towards the density. If h is a projection or K is not H, as with heads, there is no such diagonal.
    balanced : bool, optional
        If True, the fraction is kept in each row of blocks, not only in the matrix as a whole [2]_. All units of all
        gates then keep equally many weights, which makes the step of a stream faster.

    Attributes
    ----------
    density : float
        The current density: 1 before `start`, and `final_density` from `stop` on. A matrix keeps slightly more, since
        blocks are kept as a whole, and more still if its diagonal alone exceeds the density.
    masks : dict of ndarrays of bools
        The masks by the names of the matrices in ``module.state_dict()``, in their shapes; True where a weight is kept.
    final_density, block, start, stop, every, keep_diagonal, balanced
        The arguments. `start`, `stop` and `every` may be changed between steps; the density never grows.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or there is no matrix to prune.

    References
    ----------
    .. [1] Zhu, Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
       arXiv:1710.01878, 2017.
    .. [2] Yao et al., "Balanced Sparsity for Efficient DNN Inference on GPU", AAAI 2019 (arXiv:1811.00206).

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> from rnnfast.training import Adam, Pruner
    >>> lstm = rnnfast.LSTM(32, 64, rng=0)
    >>> adam, pruner = Adam(lstm), Pruner(lstm, 0.3, start=2, stop=8, every=2)
    >>> x = np.random.default_rng(0).standard_normal((5, 4, 32), np.float32)
    >>> densities = []
    >>> for step in range(9):
    ...     y, _, tape = lstm.forward(x)
    ...     adam.step(lstm.backward(tape, y)[2])
    ...     pruner.step()
    ...     densities.append(round(pruner.density, 3))
    >>> densities
    [1.0, 1.0, 1.0, 0.507, 0.507, 0.326, 0.326, 0.3, 0.3]
    >>> round(float(np.mean(lstm.weight_ih_l0 != 0)), 3)
    0.301
    """

    def __init__(
        self,
        module: Stateful,
        density: Number,
        block: tuple[Integer, Integer] = (16, 1),
        *,
        start: Integer,
        stop: Integer,
        every: Integer,
        keep_diagonal: Flag = True,
        balanced: Flag = False,
    ) -> None:
        given: object = module
        owners = owners_of_matrices(module) if isinstance(given, Stateful) else {}
        if not owners:
            msg = f"module: expected a recurrent layer, a cell or Modules with one, got {type(module).__name__}"
            raise TypeError(msg)
        self._matrices = {name: a for name, a in module.state_dict().items() if name in owners}
        self._owners = owners
        for name, owner in owners.items():
            if owner.format is not None:
                msg = f"module: expected layers to train, got {owner!r}, which is for inference"
                raise TypeError(msg)
            checked_target(self._matrices[name], f"module[{name!r}]")
        self.final_density = number(density, "density")
        if not 0 < self.final_density <= 1:
            msg = f"density: expected a number above 0 and up to 1, got {self.final_density}"
            raise ValueError(msg)
        self.block = _block(block)
        self.start, self.stop, self.every = count(start, "start"), count(stop, "stop"), size(every, "every")
        if self.stop <= self.start:
            msg = f"stop: expected more than start, {self.start}, got {self.stop}"
            raise ValueError(msg)
        self.keep_diagonal, self.balanced = flag(keep_diagonal, "keep_diagonal"), flag(balanced, "balanced")
        self.masks = {name: np.ones(w.shape, np.bool) for name, w in self._matrices.items()}
        self._density, self._t = np.ones(()), np.zeros((), np.int64)

    @property
    def density(self) -> float:
        """The fraction that a matrix currently keeps."""
        return float(self._density)

    def __repr__(self) -> str:
        """Return the constructor's call, with the module as the number of its matrices."""
        sizes = [w.size for w in self._matrices.values()]
        words = [f"<{sum(sizes)} weights in {len(sizes)} matrices>", repr(self.final_density)]
        words += [f"block={self.block}"] * (self.block != (16, 1))
        words += [f"{name}={getattr(self, name)}" for name in ("start", "stop", "every")]
        words += ["keep_diagonal=False"] * (not self.keep_diagonal) + ["balanced=True"] * self.balanced
        return f"Pruner({', '.join(words)})"

    def step(self) -> None:
        """Set pruned weights to zero, in place.

        Call it after each step of the optimizer, whose momentum changes them.
        """
        for name, w in self._matrices.items():
            checked_target(w, f"module[{name!r}]")
        self._t += 1
        self._apply()
        t = int(self._t)
        late = t >= self.stop and self.density > self.final_density
        if late or (self.start <= t <= self.stop and (t - self.start) % self.every == 0):
            self._density[...] = min(self.density, self._scheduled(t))
            for name in self._matrices:
                self.masks[name] &= self._largest(name)
            self._apply()

    def state_dict(self) -> dict[str, Array]:
        """Return what changes from step to step, without copies: t, density, and the masks as ``mask.<name>``."""
        masks = {f"mask.{name}": mask for name, mask in self.masks.items()}
        return {"t": self._t, "density": self._density, **masks}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the values of `state_dict`; training then continues with the same bits.

        Parameters
        ----------
        state_dict : mapping of arrays
            From `state_dict()` of a pruner of layers with the same matrices.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value does not fit. In that case nothing has changed.
        """
        own = self.state_dict()
        values = checked_values(state_dict, own, "state_dict")
        if values["t"] < 0:
            msg = f"t: expected at least 0, got {values['t']}"
            raise ValueError(msg)
        if not 0 < values["density"] <= 1:
            msg = f"density: expected a number above 0 and up to 1, got {values['density']}"
            raise ValueError(msg)
        for key, value in values.items():
            np.copyto(own[key], value)

    def _scheduled(self, t: int) -> float:
        d = self.final_density
        rest: float = 0 if t >= self.stop else (1 - (t - self.start) / (self.stop - self.start)) ** 3
        return d + (1 - d) * rest

    def _apply(self) -> None:
        for name, w in self._matrices.items():
            np.copyto(w, 0, where=~self.masks[name])

    @quiet
    def _largest(self, name: str) -> Array:
        """Return the mask of the blocks of a matrix that the present density keeps."""
        w, H = self._matrices[name], self._owners[name].hidden_size
        by_gate = w.reshape(-1, H, w.shape[1])
        sizes = sums_of_blocks(np.ones(by_gate.shape, np.int64), self.block)
        energies = sums_of_blocks(np.square(by_gate, dtype=np.float64), self.block) / sizes
        energies[np.isnan(energies)] = np.inf  # not lost
        if self.keep_diagonal and name.rpartition(".")[2].startswith("weight_hh") and w.shape[1] == H:
            diagonal = np.broadcast_to(np.eye(H, dtype=np.int64), by_gate.shape)
            energies[sums_of_blocks(diagonal, self.block) > 0] = np.inf
        rows = sizes.shape[0] * sizes.shape[1] if self.balanced else 1  # of which each keeps its share
        order = np.argsort(-energies.reshape(rows, -1), axis=1, kind="stable")
        ordered = np.take_along_axis(sizes.reshape(rows, -1), order, axis=1)
        before = np.cumsum(ordered, axis=1) - ordered  # elements of all blocks with more
        kept = np.isinf(energies).reshape(rows, -1)
        enough = before >= self.density * ordered.sum(axis=1, keepdims=True)
        np.put_along_axis(kept, order, np.take_along_axis(kept, order, axis=1) | ~enough, axis=1)
        return spread(kept.reshape(sizes.shape), self.block, H, w.shape[1])


def _block(block: Any) -> tuple[int, int]:
    if not isinstance(block, tuple | list):
        msg = f"block: expected two integers, got {type(block).__name__}"
        raise TypeError(msg)
    if len(block) != 2:
        msg = f"block: expected two integers, got {block!r}"
        raise ValueError(msg)
    return size(block[0], "block"), size(block[1], "block")
