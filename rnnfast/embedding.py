"""The table of vectors that stand for tokens, with the constructor, parameter name and shape of torch's."""

from typing import Any

import numpy as np

from ._base.arrays import Array, ArrayLike, checked, quiet
from ._base.module import Kept, Module, Tape, check_tape
from ._base.named import checked_grads
from ._base.packed import integers
from ._base.scalars import RNG, Integer, addressable, integer, size

__all__ = ["Embedding"]


class Embedding(Module):
    """The rows of a table, ``y = weight[tokens]``, as `torch.nn.Embedding`.

    If a layer reads only tokens, pass it the table directly, ``layer(tokens, embedding=embedding.weight)``: it then
    multiplies each row of the table by its weights only once, instead of at each step.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        V and E.
    padding_idx : int, optional
        A token, counted from the end if negative, whose row is initially zero and has no gradient.
    dtype : {"float32", "float64"}, optional
        Of the parameter, and of all arrays that it returns.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, N(0, 1).

    Attributes
    ----------
    weight : ndarray [V,E]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> embedding = rnnfast.Embedding(5, 2, padding_idx=0, rng=0)
    >>> y, tape = embedding.forward(np.array([[3, 0, 3]]))
    >>> grads = embedding.backward(tape, np.ones_like(y))
    >>> y.shape, grads["weight"][:, 0]
    ((1, 3, 2), array([0., 0., 0., 2., 0.], dtype=float32))
    """

    weight: Array

    def __init__(
        self,
        num_embeddings: Integer,
        embedding_dim: Integer,
        padding_idx: Integer | None = None,
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
    ) -> None:
        V = self.num_embeddings = size(num_embeddings, "num_embeddings")
        E = self.embedding_dim = size(embedding_dim, "embedding_dim")
        addressable(V * E, "num_embeddings, embedding_dim")
        self.padding_idx = None if padding_idx is None else integer(padding_idx, "padding_idx")
        if self.padding_idx is not None and not -V <= self.padding_idx < V:
            msg = f"padding_idx: expected {-V} to {V - 1}, got {self.padding_idx}"
            raise ValueError(msg)
        self.padding_idx = self.padding_idx if self.padding_idx is None else self.padding_idx % V
        super().__init__([("weight", (V, E))], None, dtype, rng)
        if not isinstance(rng, Kept):
            self.rng.standard_normal(self.weight.shape, self.dtype, out=self.weight)
            if self.padding_idx is not None:
                self.weight[self.padding_idx] = 0

    def __call__(self, tokens: ArrayLike) -> Array:
        """Return ``weight[tokens]``.

        Parameters
        ----------
        tokens : array [...] of integers
            From 0 to V - 1.

        Returns
        -------
        y : ndarray [..., E]

        Raises
        ------
        TypeError, ValueError
            If the tokens do not fit.
        """
        return self.weight.take(self._checked(tokens), axis=0)

    def forward(self, tokens: ArrayLike) -> tuple[Array, Tape]:
        """Return y, and the tape for `backward`, which holds the tokens.

        It takes and raises what a call does.
        """
        checked_tokens = self._checked(tokens).copy()
        y = self.weight.take(checked_tokens, axis=0)
        return y, Tape(self, checked_tokens, y.view())

    @quiet
    def backward(self, tape: Tape, dy: ArrayLike, *, grads: dict[str, Array] | None = None) -> dict[str, Array]:
        """Return the gradient of ``sum(dy * y)``. All rows of dy that belong to the same token are added.

        Parameters
        ----------
        tape : Tape
            From this module's `forward`.
        dy : array [..., E]
            The gradient of y.
        grads : dict of ndarrays, optional
            With the key, shape and dtype of `state_dict()`. The gradient is added to this array.

        Returns
        -------
        grads : dict of ndarrays
            By the key of `state_dict()`; `grads` itself if it was given.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        check_tape(tape, self)
        dy = checked(dy, "dy", tape.y.shape, self.dtype)
        into = checked_grads(grads, self.parameters, tape.y, dy)
        dweight = np.zeros_like(self.weight) if into is None else into["weight"]
        tokens = tape.x.reshape(-1)
        order = np.argsort(tokens, kind="stable")
        found, starts = np.unique(tokens[order], return_index=True)
        if found.size:
            sums = np.add.reduceat(dy.reshape(-1, self.embedding_dim)[order], starts, axis=0)
            if self.padding_idx is not None:
                sums[found == self.padding_idx] = 0
            dweight[found] += sums
        return {"weight": dweight} if grads is None else grads

    def _checked(self, tokens: ArrayLike) -> Array:
        a = integers(tokens, "tokens")
        if a.size and (a.min() < 0 or a.max() >= self.num_embeddings):
            other = a.min() if a.min() < 0 else a.max()
            msg = f"tokens: expected 0 to {self.num_embeddings - 1}, got {other}"
            raise ValueError(msg)
        return a.astype(np.intp, copy=False)
