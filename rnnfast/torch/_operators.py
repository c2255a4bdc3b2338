"""The same calls as operators of torch, for torch.compile and whatever else looks at operators alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ._derivatives import differentiable_backward
from ._kernels import Call, array_of, run_backward, tensor_of

CALL = "str cell, bool bias, bool projected, Tensor x, Tensor[] states, Tensor? batch_sizes, Tensor[] weights"


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of a function."""
    decorator: Callable[[Callable[..., Any]], Any] = torch.library.custom_op(
        f"rnnfast::{name}", mutates_args=(), device_types="cpu", schema=schema
    )
    return decorator


@operator("forward", f"({CALL}, bool training) -> Tensor[]")
def forward_operator(*arguments: Any) -> list[Tensor]:
    """Return y, the last states and what backward needs of each step, empty where nothing is."""
    call, training = Call(*arguments[:-1]), arguments[-1]
    memory: tuple[Any, ...] = (None, None, None)
    if training:
        *results, tape = call.run(_core.forward)
        memory = tape.memory
    else:
        results = call.run(_core.inference)
    return [call.x.new_empty(0) if a is None else tensor_of(a) for a in (*results, *memory)]


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    call, training = Call(*arguments[:-1]), arguments[-1]
    x, shapes = call.x, call.state_shapes
    rows = x.shape[0] * x.shape[1] if call.batch_sizes is None else x.shape[0]
    D, P, H = shapes[0][0], shapes[0][2], shapes[-1][2]
    sizes = _core.tape_row(call.cell, int(H), str(x.dtype).removeprefix("torch."), int(P))
    y = x.new_empty(*x.shape[:-1], D * P)
    states = map(x.new_empty, shapes)
    memory = (x.new_empty(D * rows * n) if training else x.new_empty(0) for n in sizes)
    return [y, *states, *memory]


@operator("backward", f"({CALL}, Tensor y, Tensor[] memory, Tensor[] dlast, bool need_dx) -> Tensor[]")
def backward_operator(*arguments: Any) -> list[Tensor]:
    """Return dx, empty where it is not needed, and the gradients of the states and weights."""
    call, (y, memory, dlast, need_dx) = Call(*arguments[:-4]), arguments[-4:]
    dx, dstates, dweights = run_backward(_filled_tape(call, y, memory), dlast, need_dx)
    return [call.x.new_empty(0) if dx is None else dx, *dstates, *dweights]


def _filled_tape(call: Call, y: Tensor, saved: Sequence[Tensor]) -> _core.Tape:
    """Return the tape of a forward from the tensors that it has saved."""
    memory = tuple(map(array_of, saved))
    tape: _core.Tape = call.run(_core.forward, out=(array_of(y.contiguous()), None), memory=memory)[-1]
    return tape


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    call, need_dx = Call(*arguments[:-4]), arguments[-1]
    shapes = call.x.shape if need_dx else (0,), *call.state_shapes, *(w.shape for w in call.weights)
    return [call.x.new_empty(shape) for shape in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *kind, x, states, batch_sizes, weights, _ = inputs
    y, *_, gates, steps, more = output
    ctx.kind, ctx.num_states = kind, len(states)
    ctx.save_for_backward(batch_sizes, y, gates, steps, more, x, *states, *weights)
    ctx.mark_non_differentiable(gates, steps, more)


def _operator_backward(ctx: Any, dresults: list[Tensor]) -> tuple[Any, ...]:
    batch_sizes, y, gates, steps, more, x, *tensors = ctx.saved_tensors
    cell, bias, projected = ctx.kind
    call = Call(cell, bias, projected, x, tensors[: ctx.num_states], batch_sizes, tensors[ctx.num_states :])
    *dlast, _, _, _ = dresults
    if torch.is_grad_enabled():
        dx, dstates, dweights = differentiable_backward(call, dlast)
    else:
        need_dx = ctx.needs_input_grad[3]
        dx, *gradients = backward_operator(*call, y, [gates, steps, more], dlast, need_dx)
        S = len(dlast) - 1
        dx, dstates, dweights = dx if need_dx else None, gradients[:S], gradients[S:]
    return None, None, None, dx, dstates[: ctx.num_states], None, dweights, None


forward_operator.register_fake(_forward_shapes)
backward_operator.register_fake(_backward_shapes)
forward_operator.register_autograd(_operator_backward, setup_context=_save)
