"""The kernels under Keras's JAX backend, as `rnnfast.jax` has them. Arrays are [B,T,I] and [B,T,H]."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..jax._kernels import Array, run

SIZES = (int,)  # what the sizes of an array may be


def misfit(x: Array) -> str:  # noqa: ARG001 (traced, it is on no device)
    """Return why an array is not computed with, or nothing."""
    platform = jax.default_backend()
    return "" if platform == "cpu" else f"inputs: expected arrays on the CPU, got JAX's backend {platform}"


def whole(
    cell: str, weights: Sequence[Array], x: Array, states: Sequence[Array], backwards: bool, mask: Array | None = None
) -> tuple[Array, list[Array]]:
    """Return h of every step in the order in which they are computed, and the last states [B,H]."""
    flags = None if mask is None else mask.T
    y, last = run(cell, x.swapaxes(0, 1), weights, states, mask=flags, reverse=backwards)
    return (jnp.flip(y, 0) if backwards else y).swapaxes(0, 1), [*last]


def masked(
    cell: str, weights: Sequence[Array], x: Array, states: Sequence[Array], backwards: bool, mask: Array, zero: bool
) -> tuple[Array, Array, list[Any]] | None:
    """Return the last output, the outputs and the last states where a mask [B,T] leaves out steps."""
    if mask.ndim != 2:
        return None
    mask = mask.astype(bool)
    y, last = whole(cell, weights, jnp.where(mask[..., None], x, 0), states, backwards, mask)
    seen = jnp.flip(mask, 1) if backwards else mask
    if not zero:  # an output stays until the next one, and there is none before the first
        seen = jnp.cumsum(seen, axis=1) > 0
    y = jnp.where(seen[..., None], y, 0)
    return y[:, -1], y, last
