"""Calls of the kernels with tensors, whose memory they read and write."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from .. import _core
from .._base.state import STATES

# The calls that take tensors as they are. Where an older torch lacks DLPack's C functions all of them go by arrays.
TENSORS = _core.Tensors(Tensor, torch.nn.Parameter) if hasattr(Tensor, "__dlpack_c_exchange_api__") else None

Kind: TypeAlias = tuple[str, bool, bool, bool]  # the cell, and as in Call
Gradients: TypeAlias = tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]  # dx, dstates and dweights


class Call(NamedTuple):
    """The arguments of a forward, of a layer in all its directions or of a cell's one step."""

    cell: str
    bias: bool
    projected: bool
    rounded: bool  # the factors of products are, to bfloat16
    x: Tensor  # [T,B,I], or [N,I] with batch_sizes; [B,I] of a step
    states: Sequence[Tensor]  # S initial states [D,B,H], of h [D,B,P], without D of a step; none: zero
    batch_sizes: Tensor | None  # [T]
    weights: Sequence[Tensor]  # of each direction w_ih, w_hh, with bias b_ih, b_hh, and what else there is
    lengths: Tensor | None = None  # [B], where x is padded
    resets: Tensor | None = None  # of each row, bools or 0 and 1: whether the state before it is zero

    @property
    def is_step(self) -> bool:
        """Whether x is the input of one step."""
        return self.batch_sizes is None and self.x.dim() == 2

    @property
    def of_direction(self) -> int:
        """The number of weights of one direction."""
        return (4 if self.bias else 2) + len(_core.cells[self.cell].parameters) + self.projected

    @property
    def state_shapes(self) -> list[tuple[Any, Any, Any]]:
        """The shapes of the states of a layer; B is that of the initial states where there are some."""
        if self.states:
            B = self.states[0].shape[1]
        else:
            B = self.x.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])
        H = self.weights[1].shape[0] // _core.cells[self.cell].num_gates
        P = self.weights[self.of_direction - 1].shape[0] if self.projected else H
        sizes = P, *[H] * (len(STATES[self.cell]) - 1)
        return [(len(self.weights) // self.of_direction, B, n) for n in sizes]

    def as_layer(self) -> "Call":
        """Return a step as a layer's call."""
        return self._replace(x=self.x[None], states=[state[None] for state in self.states])

    def run(self, kernel: Callable[..., Any], out: Any = None, **options: Any) -> list[Any]:
        """Return y, the S last states and a tape, as far as one of `_core.forward` and `_core.inference` has them."""
        step, n = self.is_step, self.of_direction
        weights = [w.numpy(force=True) for w in self.weights]
        biases = () if self.bias else (None, None)
        sizes = array_of(self.batch_sizes)
        if self.rounded:
            options["rounded"] = True
        if self.resets is not None:
            options |= {"resets": array_of(self.resets), "start": zeros_like(self.states) or None}
        y, last, *tape = kernel(
            self.cell,
            array_of(self.x, step),
            [(*weights[k : k + 2], *biases, *weights[k + 2 : k + n]) for k in range(0, len(weights), n)],
            tuple([array_of(state, step) for state in self.states]) or None,
            out,
            None,
            sizes,
            torch.get_num_threads(),
            **options,
        )
        return [y, *last, *tape]


def forward(
    kind: Kind,
    n: int,
    tensors: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    training: bool,
    resets: Tensor | None = None,
) -> Sequence[Any]:
    """Return y, None of a step, and the last states; in training also the tape, its owner, and whether y shares memory.

    The owner is a tensor. The tape reads the memory that y shares with it.

    `tensors` are n weights, x and the initial states, if there are any.
    """
    if TENSORS is not None and resets is None:
        sizes = None if batch_sizes is None else array_of(batch_sizes)
        results = TENSORS.forward(kind, n, tensors, sizes, training, torch.get_num_threads())
        if results is not None:
            return results
    call = Call(*kind, tensors[n], tensors[n + 1 :], batch_sizes, tensors[:n], None, resets)
    step = call.is_step
    if training:
        y, *last, tape = call.run(_core.forward)
        kept = [tape, torch.from_numpy(tape.memory[0]), not step]
    else:
        (y, *last), kept = call.run(_core.inference), []
    return [None if step else torch.from_numpy(y), *[tensor_of(a, step) for a in last], *kept]


def backward(
    tape: _core.Tape,
    n: int,
    tensors: tuple[Tensor, ...],
    dlast: tuple[Tensor | None, ...],
    step: bool,
    need_dx: bool,
    need_dstates: bool,
    restarts: bool = False,
) -> Sequence[Tensor | None] | None:
    """Return the gradients of the tensors of a forward, or None where its tape does not refer to these tensors."""
    if TENSORS is not None and not restarts:
        gradients = TENSORS.backward(tape, n, tensors, dlast, step, need_dx, need_dstates, torch.get_num_threads())
        # Where the tape refers to other memory, arrays would only keep that of these tensors from being resized.
        if gradients is not None or not any(t is not None and t.is_neg() for t in (*tensors, *dlast)):
            return gradients
    if any(d is not None and is_legacy_batchedtensor(d) for d in dlast):
        return None
    arrays = *map(array_of, tensors[:n]), *(array_of(t, step) for t in tensors[n:])
    if not _core.reads_from(tape, arrays):
        return None
    if all(d is None for d in dlast):
        return [None] * len(tensors)
    dx, dstates, dweights = run_backward(tape, dlast, need_dx, step, tensors[n + 1 :] if restarts else ())
    return [*dweights, dx, *dstates[: len(tensors) - n - 1]]


def run_backward(
    tape: _core.Tape,
    dlast: Sequence[Tensor | None],
    need_dx: bool,
    step: bool = False,
    initial: Sequence[Tensor] = (),
) -> Gradients:
    """Return the gradients, given those of y and of the last states; with resets also the initial states, if any."""
    dy, *dparts = [array_of(d, step) for d in dlast]
    options: dict[str, Any] = (
        {"dstart": zeros_like(initial)} if initial else {}
    )  # of the zeros after resets, which nobody asks for
    dx, dstates, grads = _core.backward(
        tape, dy, tuple(dparts), need_dx, None, None, torch.get_num_threads(), **options
    )
    dweights = [torch.from_numpy(g) for direction in grads for g in direction if g is not None]
    return None if dx is None else tensor_of(dx, step), [tensor_of(d, step) for d in dstates], dweights


def array_of(tensor: Tensor | None, step: bool = False) -> Any:
    """Return the memory of a CPU tensor as an array; what belongs to a step gets an axis, of time or of directions."""
    if tensor is None:
        return None
    array = tensor.numpy(force=True)
    return array[None] if step else array


def zeros_like(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return arrays of the tensors' shapes and dtypes."""
    return tuple([torch.zeros_like(t, memory_format=torch.contiguous_format).numpy() for t in tensors])


def tensor_of(array: Any, step: bool = False) -> Tensor:
    """Return the reverse."""
    return torch.from_numpy(array[0] if step else array)


def each(change: Callable[[Tensor], Tensor], tensors: Iterable[Tensor | None]) -> list[Any]:
    """Return the tensors that are there changed."""
    return [t if t is None else change(t) for t in tensors]
