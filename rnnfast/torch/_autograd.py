"""A call in eager mode, which autograd follows."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from .. import _core
from ._derivatives import differentiable_backward
from ._kernels import Call, run_backward, tensor_of


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    """A call, given with its tensors: the weights, x and the states."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        array, *last, tape = call.run(_core.forward)
        y, token = torch.from_numpy(array), torch.from_numpy(tape.memory[0])
        # A saved tensor owns the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        ctx.save_for_backward(*tensors, call.batch_sizes, token)
        ctx.kind, ctx.num_weights, ctx.tape = call[:3], len(call.weights), weakref.ref(tape)
        ctx.addresses, ctx.y = _addresses(tensors), y.detach()  # which is told of changes of y in place
        ctx.set_materialize_grads(False)
        step = call.is_step
        return None if step else y, *(tensor_of(a, step) for a in last)

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, batch_sizes, _ = ctx.saved_tensors
        if all(d is None for d in dlast):
            return (None,) * (1 + len(tensors))
        n = ctx.num_weights
        weights, x, states = tensors[:n], tensors[n], tensors[n + 1 :]
        cell, bias, projected = ctx.kind
        call = Call(cell, bias, projected, x, states, batch_sizes, weights)
        if torch.is_grad_enabled() or any(d is not None and is_legacy_batchedtensor(d) for d in dlast):
            dx, dstates, dweights = differentiable_backward(call, dlast)
        else:
            tape = ctx.tape()
            if tape is None or ctx.y._version or ctx.addresses != _addresses(tensors):
                *_, tape = call.run(_core.forward)
            dx, dstates, dweights = run_backward(tape, dlast, ctx.needs_input_grad[1 + n], call.is_step)
        return None, *dweights, dx, *dstates[: len(states)]


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Return where tensors are: hooks may give others back, which are not those that a tape refers to."""
    return [t.data_ptr() for t in tensors]


# What Function.apply comes to where no transform of torch.func is at work, and none gets here: 4 µs of 90 for a call.
_apply = super(torch.autograd.Function, _Layer).apply


def followed(call: Call) -> tuple[Tensor | None, ...]:
    """Return y, None of a step, and the last states."""
    results: tuple[Tensor | None, ...] = _apply(call, *call.weights, call.x, *call.states)
    return results
