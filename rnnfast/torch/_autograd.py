"""A call in eager mode, which autograd follows."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from ._derivatives import differentiable_backward
from ._kernels import Call, Kind, backward, forward, run_backward


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    """A call, given with its tensors: n weights, x and the states."""

    @staticmethod
    def forward(
        ctx: Any, kind: Kind, n: int, batch_sizes: Tensor | None, resets: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        y, *last, tape, token = forward(kind, n, tensors, batch_sizes, True, resets)
        # A saved tensor owns the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        ctx.save_for_backward(*tensors, batch_sizes, resets, token)
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.num_weights, ctx.tape = kind, n, weakref.ref(tape)
        ctx.y = None if y is None else y.detach()  # which is told of changes of y in place; of a step there is none
        return y, *last

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, n, y, tape = saved[:-3], ctx.num_weights, ctx.y, ctx.tape()
        gradients = None
        if tape is not None and (y is None or not y._version) and not torch.is_grad_enabled():
            need_dx, *need_dstates = ctx.needs_input_grad[4 + n :]
            restarts = saved[-2] is not None
            gradients = backward(tape, n, tensors, dlast, y is None, need_dx, any(need_dstates), restarts)
        if gradients is None:
            gradients = _anew(ctx, tensors, saved[-3:-1], dlast)
        return None, None, None, None, *gradients


def _anew(
    ctx: Any, tensors: tuple[Tensor, ...], rows: tuple[Tensor | None, ...], dlast: tuple[Tensor | None, ...]
) -> Any:
    """Return the gradients where those that the tape refers to are of no use, or are to have gradients themselves."""
    n: int = ctx.num_weights
    kind: Kind = ctx.kind
    batch_sizes, resets = rows
    if all(d is None for d in dlast):
        return [None] * len(tensors)
    if torch.is_grad_enabled() or any(d is not None and is_legacy_batchedtensor(d) for d in dlast):
        call = Call(*kind, tensors[n], tensors[n + 1 :], batch_sizes, tensors[:n], None, resets)
        dx, dstates, dweights = differentiable_backward(call, dlast)
    else:
        *_, tape, _ = forward(kind, n, tensors, batch_sizes, True, resets)
        initial = () if resets is None else tensors[n + 1 :]
        dx, dstates, dweights = run_backward(tape, dlast, ctx.needs_input_grad[4 + n], ctx.y is None, initial)
    return *dweights, dx, *dstates[: len(tensors) - n - 1]


# What Function.apply comes to where no transform of torch.func is at work, and none gets here: 3 µs of a call.
_apply = super(torch.autograd.Function, _Layer).apply


def followed(
    kind: Kind, n: int, batch_sizes: Tensor | None, tensors: tuple[Tensor, ...], resets: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Return y, None of a step, and the last states, given n weights, x and the states."""
    results: tuple[Tensor | None, ...] = _apply(kind, n, batch_sizes, resets, *tensors)
    return results
