"""One direction of one layer as a primitive of JAX: what it returns, how it is compiled, batched and differentiated.

`run` is what the rest stands on. Below it, `_forward` and `_backward` are the two functions of ``csrc/xla/layers.cpp``,
which XLA calls by itself, from its own threads and without Python. A forward that keeps no tape is what a program has
at first; it becomes one that keeps a tape, with a backward, when it is differentiated. That happens after `jax.vmap`
where this lies inside of `jax.grad`, so that a batched call is one call of more sequences, also in backward.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .. import _core

Array: TypeAlias = Any  # of JAX: concrete, or traced

_SECOND = (
    "rnnfast.jax: expected first derivatives in reverse mode (jax.grad, jax.vjp), got derivatives of a backward or of "
    "what a forward keeps for it; jax.lax.scan over a cell has these"
)


class _Call(NamedTuple):
    """What a call is, beside its arrays."""

    cell: str
    reverse: bool
    biased: bool
    masked: bool
    restarts: bool

    @property
    def num_weights(self) -> int:
        return 4 if self.biased else 2

    @property
    def num_states(self) -> int:
        return len(_core.cells[self.cell].states)


def run(
    cell: str,
    x: Array,
    weights: Sequence[Array],
    state: Sequence[Array],
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, ...]]:
    """Run one direction of one layer over whole sequences.

    Parameters
    ----------
    cell : str
        A cell of `rnnfast.functional` without parameters of its own.
    x : array [T,B,I]
        float32 or float64, like all others but `mask`.
    weights : sequence of arrays
        w_ih [G·H,I], w_hh [G·H,H] and, if there are biases, b_ih and b_hh [G·H].
    state : sequence of S arrays [B,H]
    mask : bool array [T,B], optional
        Where it is false, the state stays as it is, and y is h before the step; x should be finite there.
    resets : bool array [T,B], optional
        Where an episode begins: before such a step the state is the initial one. Backwards in time, it is that where
        one ends.
    reverse : bool, optional
        Run from the last step to the first.

    Returns
    -------
    y : array [T,B,H]
    state : tuple of S arrays [B,H]
    """
    call = _Call(cell, reverse, len(weights) == 4, mask is not None, resets is not None)
    T, B, _ = x.shape
    H = weights[1].shape[1]
    if T == 0 or B == 0:
        return jnp.zeros((T, B, H), x.dtype), tuple(state)
    flags = [] if mask is None else [_bits(mask, H)]
    if resets is not None:
        flags.append(resets.astype(jnp.uint8))
    y, *last = _forward.bind(x, *weights, *state, *flags, **call._asdict(), kept=False)
    return y, tuple(last)


def _bits(mask: Array, H: int) -> Array:
    """Return flags [T,B] as bits of all units, [T,B,ceil(H/8)]."""
    whole = jnp.where(mask, 255, 0).astype(jnp.uint8)[..., None]
    return jnp.broadcast_to(whole, (*mask.shape, (H + 7) // 8))


# ---- What XLA calls --------------------------------------------------------------------------------------------------


def _sizes(x: Array, w_hh: Array) -> tuple[int, int, int, int]:
    return (*x.shape, w_hh.shape[1])


def _shape_of_forward(x: Any, *arrays: Any, kept: bool, **options: Any) -> list[Any]:
    call = _Call(**options)
    T, B, I, H = _sizes(x, arrays[1])
    shapes = [jax.core.ShapedArray((T, B, H), x.dtype)]
    shapes += [jax.core.ShapedArray((B, H), x.dtype)] * call.num_states
    if kept:
        size = _core.xla_tape_bytes(call.cell, np.dtype(x.dtype), T, B, I, H, call.masked)
        shapes.append(jax.core.ShapedArray((size,), jnp.uint8))
    return shapes


def _shape_of_backward(x: Any, *arrays: Any, need_dx: bool, **options: Any) -> list[Any]:
    call = _Call(**options)
    states = arrays[call.num_weights :][: call.num_states]
    like = [*([x] if need_dx else []), *arrays[: call.num_weights], *states]
    return [jax.core.ShapedArray(a.shape, a.dtype) for a in like]


def _refuse(ctx: Any, *arrays: Any, **options: Any) -> Any:  # noqa: ARG001
    platform = " or ".join(ctx.module_context.platforms)
    msg = f"rnnfast.jax: expected arrays on the CPU, where jax.device_put(a, jax.devices('cpu')[0]) is, got {platform}"
    raise NotImplementedError(msg)


def _primitive(name: str, shape: Any) -> Any:
    """Make a primitive that calls the function of this name."""
    jax.ffi.register_ffi_target(name, _core.xla_handlers[name], platform="cpu")
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(shape)

    @cache
    def compiled(**options: Any) -> Any:
        return jax.jit(partial(primitive.bind, **options))

    def evaluate(*arrays: Array, **options: Any) -> Any:
        with jax.disable_jit(False):
            return compiled(**options)(*arrays)

    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, _refuse)
    mlir.register_lowering(primitive, jax.ffi.ffi_lowering(name), platform="cpu")
    return primitive


_forward = _primitive("rnnfast_forward", _shape_of_forward)
_backward = _primitive("rnnfast_backward", _shape_of_backward)


# ---- Derivatives -----------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(call: _Call, need_dx: bool, *arrays: Array) -> list[Array]:  # noqa: ARG001
    results: list[Array] = _forward.bind(*arrays, **call._asdict(), kept=False)
    return results


def _keep(call: _Call, need_dx: bool, *arrays: Array) -> tuple[list[Array], Any]:  # noqa: ARG001
    *results, tape = _forward.bind(*arrays, **call._asdict(), kept=True)
    return results, (arrays, results[0], tape)


def _backpropagate(call: _Call, need_dx: bool, kept: Any, dresults: list[Array]) -> tuple[Array | None, ...]:
    arrays, y, tape = kept
    gradients = _backward.bind(*arrays, y, tape, *dresults, **call._asdict(), need_dx=need_dx)
    dx = [] if need_dx else [jnp.zeros_like(arrays[0])]
    return (*dx, *gradients, *[None] * (call.masked + call.restarts))


_differentiable.defvjp(_keep, _backpropagate)


def _jvp_of_forward(primals: Sequence[Array], tangents: Sequence[Any], *, kept: bool, **options: Any) -> Any:
    if kept:
        raise NotImplementedError(_SECOND)
    need_dx = type(tangents[0]) is not ad.Zero
    tangents = [_tangent(p, t) for p, t in zip(primals, tangents, strict=True)]
    return jax.jvp(partial(_differentiable, _Call(**options), need_dx), tuple(primals), tuple(tangents))


def _tangent(primal: Array, tangent: Any) -> Array:
    if not jnp.issubdtype(primal.dtype, jnp.floating):
        return np.zeros(primal.shape, jax.dtypes.float0)
    return jnp.zeros(primal.shape, primal.dtype) if type(tangent) is ad.Zero else tangent


def _jvp_of_backward(primals: Sequence[Array], tangents: Sequence[Any], **options: Any) -> Any:
    raise NotImplementedError(_SECOND)


ad.primitive_jvps[_forward] = _jvp_of_forward
ad.primitive_jvps[_backward] = _jvp_of_backward


# ---- Batches ---------------------------------------------------------------------------------------------------------


def _batched_forward(arrays: Sequence[Array], axes: Sequence[int | None], *, kept: bool, **options: Any) -> Any:
    """Take the axis into B where neither weights differ along it nor a tape of each call is wanted."""
    call = _Call(**options)
    weights = slice(1, 1 + call.num_weights)
    if kept or any(axis is not None for axis in axes[weights]):
        return _one_by_one(_forward, arrays, axes, kept=kept, **options)
    n = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    folded = list(arrays)
    flags = 1 + call.num_weights + call.num_states
    for i in (0, *range(1 + call.num_weights, len(arrays))):
        at = 1 if i == 0 or i >= flags else 0  # where B is: in x and flags, and in states
        a, axis = arrays[i], axes[i]
        a = jnp.moveaxis(a, axis, at) if axis is not None else jnp.repeat(jnp.expand_dims(a, at), n, axis=at)
        folded[i] = a.reshape(*a.shape[:at], -1, *a.shape[at + 2 :])
    B = folded[0].shape[1] // (n or 1)
    y, *states = _forward.bind(*folded, kept=False, **options)
    states = [s.reshape(n, B, -1) for s in states]
    return [y.reshape(y.shape[0], n, B, -1), *states], [1, *[0] * len(states)]


def _one_by_one(primitive: Any, arrays: Sequence[Array], axes: Sequence[int | None], **options: Any) -> Any:
    mapped = [jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True) if axis is not None]

    def one(parts: Sequence[Array]) -> Any:
        each = iter(parts)
        return primitive.bind(
            *(a if axis is None else next(each) for a, axis in zip(arrays, axes, strict=True)), **options
        )

    results = jax.lax.map(one, mapped)
    return results, [0] * len(results)


batching.primitive_batchers[_forward] = _batched_forward
batching.primitive_batchers[_backward] = partial(_one_by_one, _backward)
