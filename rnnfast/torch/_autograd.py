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
        y, *last, tape, token, shares = forward(kind, n, tensors, batch_sizes, True, resets)
        # A saved tensor owns the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        ctx.save_for_backward(*tensors, batch_sizes, resets, token)
        ctx.set_materialize_grads(False)
        told = y.detach() if shares else None  # of changes in place
        ctx.call = kind, n, weakref.ref(tape), told, y is None
        return y, *last

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, (batch_sizes, resets, _) = saved[:-3], saved[-3:]
        kind, n, kept, told, is_step = ctx.call
        need_dx, *need_dstates = ctx.needs_input_grad[4 + n :]
        gradients, tape = None, kept()
        if tape is not None and (told is None or not told._version) and not torch.is_grad_enabled():
            gradients = backward(tape, n, tensors, dlast, is_step, need_dx, any(need_dstates), resets is not None)
        if gradients is None:
            gradients = _anew(kind, n, tensors, batch_sizes, resets, dlast, is_step, need_dx)
        return None, None, None, None, *gradients


def _anew(
    kind: Kind,
    n: int,
    tensors: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    dlast: tuple[Tensor | None, ...],
    is_step: bool,
    need_dx: bool,
) -> Any:
    """Return the gradients where those that the tape refers to are of no use, or are to have gradients themselves."""
    if all(d is None for d in dlast):
        return [None] * len(tensors)
    if torch.is_grad_enabled() or any(d is not None and is_legacy_batchedtensor(d) for d in dlast):
        call = Call(*kind, tensors[n], tensors[n + 1 :], batch_sizes, tensors[:n], None, resets)
        dx, dstates, dweights = differentiable_backward(call, dlast)
    else:
        *_, tape, _, _ = forward(kind, n, tensors, batch_sizes, True, resets)
        initial = () if resets is None else tensors[n + 1 :]
        dx, dstates, dweights = run_backward(tape, dlast, need_dx, is_step, initial)
    return *dweights, dx, *dstates[: len(tensors) - n - 1]


# Returns y, None of a step, and the last states. It is what Function.apply comes to where no transform of torch.func is
# at work, and none gets here: 3 µs of a call.
followed = super(torch.autograd.Function, _Layer).apply
