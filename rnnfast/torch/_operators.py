"""The same calls as operators of torch, for torch.compile and whatever else looks at operators alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _core
from ._derivatives import differentiable_backward
from ._kernels import Call, Kind, array_of, backward, forward, run_backward, tensor_of
from ._sequences import Packing, bools

CALL = (
    "str cell, bool bias, bool projected, bool rounded, Tensor x, Tensor[] states, Tensor? batch_sizes, "
    "Tensor[] weights, Tensor? lengths, Tensor? resets"
)


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of a function; `custom_op` would look at each call once more."""

    def define(function: Callable[..., Any]) -> Any:
        full = f"rnnfast::{name}"
        torch.library.define(full, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(full, "cpu", function)
        return getattr(torch.ops.rnnfast, name).default

    return define


@operator("forward", f"({CALL}, bool training) -> Tensor[]")
def forward_operator(*arguments: Any) -> list[Tensor]:
    """Return y, the last states and what backward needs, gates and states of each step; empty where nothing is."""
    call, training = _looked_at(Call(*arguments[:-1])), arguments[-1]
    return _forward(call, training) if call.lengths is None else _padded_forward(call, training)


def _forward(call: Call, training: bool) -> list[Tensor]:
    tensors = *call.weights, call.x, *call.states
    results = list(forward(call[:4], len(call.weights), tensors, call.batch_sizes, training, call.resets))
    if not training:
        return [*results, call.x.new_empty(0), call.x.new_empty(0)]
    *results, tape, gates, _ = results
    _, steps, more = tape.memory
    return [*results, gates, tensor_of(np.concatenate((steps, more)) if len(more) else steps)]


def _looked_at(call: Call) -> Call:
    """Return a call whose resets are bools."""
    return call if call.resets is None else call._replace(resets=bools(call.resets))


def _padded_forward(call: Call, training: bool) -> list[Tensor]:
    packing = Packing.of(call.lengths, *call.x.shape[:2])
    results = _forward_shapes(*call, training)
    y, *last, gates, steps = results
    first = call.states or [None] * len(last)
    if len(packing.order) == 0:
        states = [t.zero_() if part is None else t.copy_(part) for t, part in zip(last, first, strict=True)]
        return [y.zero_(), *states, gates.zero_(), steps.zero_()]
    y, *last, filled_gates, filled_steps = _forward(packing.packed(call), training)
    for whole, filled in ((gates, filled_gates), (steps, filled_steps)):  # whose sizes follow from x alone
        whole[: len(filled)], whole[len(filled) :] = filled, 0
    last = [packing.give_state(part, rest) for part, rest in zip(last, first, strict=True)]
    return [packing.give(y), *last, gates, steps]


def _memory_sizes(call: Call, rows: int) -> tuple[int, int]:
    """Return the elements of gates and of steps that so many rows have."""
    D = call.state_shapes[0][0]
    gates, steps, more = _row(call)
    return D * rows * gates, D * rows * (steps + more)


def _row(call: Call) -> tuple[int, int, int]:
    """Return the elements of one step of one sequence: gates, steps and what stands behind the steps of all."""
    shapes = call.state_shapes
    P, H = shapes[0][2], shapes[-1][2]
    return _core.tape_row(call.cell, int(H), str(call.x.dtype).removeprefix("torch."), int(P))


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    call, training = Call(*arguments[:-1]), arguments[-1]
    x, shapes = call.x, call.state_shapes
    rows = x.shape[0] * x.shape[1] if call.batch_sizes is None else x.shape[0]
    y = x.new_empty(*x.shape[:-1], shapes[0][0] * shapes[0][2])
    memory = _memory_sizes(call, rows) if training else (0, 0)
    return [y, *map(x.new_empty, shapes), *map(x.new_empty, memory)]


@operator("backward", f"({CALL}, Tensor y, Tensor gates, Tensor steps, Tensor[] dlast, bool need_dx) -> Tensor[]")
def backward_operator(*arguments: Any) -> list[Tensor]:
    """Return dx, empty where it is not needed, and the gradients of the states and weights."""
    call, (y, gates, steps, dlast, need_dx) = _looked_at(Call(*arguments[:-5])), arguments[-5:]
    of_rows = _backward if call.lengths is None else _padded_backward
    return of_rows(call, y, gates, steps, dlast, need_dx)


def _backward(
    call: Call, y: Tensor, gates: Tensor, steps: Tensor, dlast: Sequence[Tensor], need_dx: bool
) -> list[Tensor]:
    tensors = *call.weights, call.x, *call.states
    tape = _filled_tape(call, y, gates, steps)
    n, restarts = len(call.weights), call.resets is not None
    gradients = backward(tape, n, tensors, tuple(dlast), False, need_dx, len(call.states) > 0, restarts)
    if gradients is None:
        dx, dstates, dweights = run_backward(tape, dlast, need_dx, initial=call.states if restarts else ())
    else:
        dweights, dx, dstates = gradients[:n], gradients[n], gradients[n + 1 :]
    return [call.x.new_empty(0) if dx is None else dx, *dstates[: len(call.states)], *dweights]


def _padded_backward(
    call: Call, y: Tensor, gates: Tensor, steps: Tensor, dlast: Sequence[Tensor], need_dx: bool
) -> list[Tensor]:
    packing = Packing.of(call.lengths, *call.x.shape[:2])
    dy, *dparts = dlast
    if len(packing.order) == 0:
        results = _backward_shapes(*call, y, gates, steps, dlast, need_dx)
        S = len(call.states)
        return [results[0].zero_(), *map(torch.clone, dparts[:S]), *map(torch.zero_, results[1 + S :])]
    packed = packing.packed(call)
    of_gates, of_steps = _memory_sizes(packed, len(packed.x))
    dpacked = [packing.take(dy), *map(packing.take_state, dparts)]
    dx, *rest = _backward(packed, packing.take(y), gates[:of_gates], steps[:of_steps], dpacked, need_dx)
    S = len(call.states)
    dstates = map(packing.give_state, rest[:S], dparts)  # of states that were given
    return [packing.give(dx) if need_dx else dx, *dstates, *rest[S:]]


def _filled_tape(call: Call, y: Tensor, gates: Tensor, steps: Tensor) -> _core.Tape:
    """Return the tape of a forward from the tensors that it has saved."""
    _, of_step, more = _row(call)
    behind = len(steps) * of_step // ((of_step + more) or 1)
    memory = array_of(gates), array_of(steps[:behind]), array_of(steps[behind:])
    tape: _core.Tape = call.run(_core.forward, out=(array_of(y.contiguous()), None), memory=memory)[-1]
    return tape


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    call, need_dx = Call(*arguments[:-5]), arguments[-1]
    states = call.state_shapes if call.states else ()
    shapes = call.x.shape if need_dx else (0,), *states, *(w.shape for w in call.weights)
    return [call.x.new_empty(shape) for shape in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *kind, x, states, batch_sizes, weights, lengths, resets, _ = inputs
    y, *_, gates, steps = output
    ctx.kind, ctx.num_states = tuple(kind), len(states)
    ctx.save_for_backward(batch_sizes, lengths, resets, y, gates, steps, x, *states, *weights)
    ctx.mark_non_differentiable(gates, steps)


def _operator_backward(ctx: Any, dresults: list[Tensor]) -> tuple[Any, ...]:
    batch_sizes, lengths, resets, y, gates, steps, x, *tensors = ctx.saved_tensors
    states, weights = tensors[: ctx.num_states], tensors[ctx.num_states :]
    kind: Kind = ctx.kind
    call = Call(*kind, x, states, batch_sizes, weights, lengths, resets)
    *dlast, _, _ = dresults
    if torch.is_grad_enabled():
        dx, dstates, dweights = differentiable_backward(call, dlast)
    else:
        need_dx = ctx.needs_input_grad[4]
        dx, *gradients = backward_operator(*call, y, gates, steps, dlast, need_dx)
        S = ctx.num_states
        dx, dstates, dweights = dx if need_dx else None, gradients[:S], gradients[S:]
    return *(None,) * 4, dx, dstates[: ctx.num_states], None, dweights, None, None, None


@register_flop_formula([torch.ops.rnnfast.forward])  # type: ignore[untyped-decorator]
def _forward_flops(*arguments: Any, **_: Any) -> int:
    """Count multiply-adds of matrices as two, as torch does, from shapes in the place of tensors."""
    x, weights = arguments[4], arguments[7]
    rows = math.prod(x[:-1])
    return int(2 * rows * sum(math.prod(w) for w in weights if len(w) == 2))


@register_flop_formula([torch.ops.rnnfast.backward])  # type: ignore[untyped-decorator]
def _backward_flops(*arguments: Any, **_: Any) -> int:
    """Count the products of dweights, of dh and, where it is needed, of dx."""
    call, need_dx = Call(*arguments[:-5]), arguments[-1]
    rows, matrices = math.prod(arguments[4][:-1]), arguments[7][:: call.of_direction]  # the w_ih
    dx = 0 if need_dx else 2 * rows * sum(math.prod(w) for w in matrices)
    return int(2 * _forward_flops(*arguments) - dx)


torch.library.register_fake("rnnfast::forward", _forward_shapes)
torch.library.register_fake("rnnfast::backward", _backward_shapes)
torch.library.register_autograd("rnnfast::forward", _operator_backward, setup_context=_save)
