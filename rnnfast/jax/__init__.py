"""Recurrent layers as functions for JAX on rnnfast's kernels, forward and backward: `lstm`, `gru`, `rnn`.

They work under `jax.jit`, `jax.grad`, `jax.vmap` and within `jax.lax.scan`. XLA calls the kernels by itself: nothing
goes through Python when a program runs. Arrays are float32 or float64, on the CPU.

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

from ._functions import gru, lstm, rnn

__all__ = ["gru", "lstm", "rnn"]

for _function in (gru, lstm, rnn):
    _function.__module__ = __name__
