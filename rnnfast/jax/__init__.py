"""Recurrent layers as functions for JAX on rnnfast's kernels, forward and backward: `lstm`, `gru`, `rnn`.

They work under `jax.jit`, `jax.grad`, `jax.vmap` and within `jax.lax.scan`. XLA calls the kernels directly, without
Python. Arrays are float32 or float64, on the CPU.

Examples
--------
>>> import jax
>>> import jax.numpy as jnp
>>> import rnnfast.jax
>>> parameters = {"weight_ih_l0": jnp.ones((12, 3)), "weight_hh_l0": jnp.ones((12, 4))}
>>> y, h = jax.jit(rnnfast.jax.gru)(parameters, jnp.zeros((5, 2, 3)))
>>> y.shape, h.shape
((5, 2, 4), (1, 2, 4))
"""

from .._base.frameworks import explain_missing

try:
    import jax
except ModuleNotFoundError as error:
    explain_missing("jax", error)
    raise

if jax.__version_info__ < (0, 5):
    msg = f"rnnfast.jax: expected jax 0.5.0 or newer, got {jax.__version__}"
    raise ImportError(msg)

from ._flax import from_flax, to_flax
from ._functions import gru, lstm, rnn

__all__ = ["from_flax", "gru", "lstm", "rnn", "to_flax"]

for _function in (from_flax, gru, lstm, rnn, to_flax):
    _function.__module__ = __name__
