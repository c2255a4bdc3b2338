"""Calls of the kernels with tensors, whose memory they read and write."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import _core

Gradients: TypeAlias = tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]  # dx, dstates and dweights


class Call(NamedTuple):
    """The arguments of a forward, of a layer in all its directions or of a cell's one step."""

    cell: str
    bias: bool
    x: Tensor  # [T,B,I], or [N,I] with batch_sizes; [B,I] of a step
    states: Sequence[Tensor]  # S initial states [D,B,H], or [B,H] of a step; none: zero
    batch_sizes: Tensor | None  # [T]
    weights: Sequence[Tensor]  # w_ih, w_hh, with bias b_ih, b_hh, and what else the cell has of each direction

    @property
    def is_step(self) -> bool:
        """Whether x is the input of one step."""
        return self.batch_sizes is None and self.x.dim() == 2

    @property
    def weights_of_direction(self) -> int:
        """How many of the weights are one direction's."""
        return (4 if self.bias else 2) + len(_core.cells[self.cell].parameters)

    @property
    def state_shape(self) -> tuple[Any, Any, Any]:
        """D, B, H of a layer; B is that of the initial states where there are some."""
        if self.states:
            B = self.states[0].shape[1]
        else:
            B = self.x.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])
        H = self.weights[1].shape[0] // _core.cells[self.cell].num_gates
        return len(self.weights) // self.weights_of_direction, B, H

    def as_layer(self) -> "Call":
        """Return a step as a layer's call."""
        return self._replace(x=self.x[None], states=[state[None] for state in self.states])

    def run(self, kernel: Callable[..., Any], out: Any = None, **options: Any) -> list[Any]:
        """Return y, the S last states and a tape, as far as one of `_core.forward` and `_core.inference` has them."""
        step, n, biases = self.is_step, self.weights_of_direction, () if self.bias else (None, None)
        weights = [w.numpy(force=True) for w in self.weights]
        sizes = array_of(self.batch_sizes)
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


def run_backward(tape: _core.Tape, dlast: Sequence[Tensor | None], need_dx: bool, step: bool = False) -> Gradients:
    """Return the gradients, given those of y and of the last states."""
    dy, *dparts = [array_of(d, step) for d in dlast]
    dx, dstates, grads = _core.backward(tape, dy, tuple(dparts), need_dx, None, None, torch.get_num_threads())
    dweights = [torch.from_numpy(g) for direction in grads for g in direction if g is not None]
    return None if dx is None else tensor_of(dx, step), [tensor_of(d, step) for d in dstates], dweights


def array_of(tensor: Tensor | None, step: bool = False) -> Any:
    """Return the memory of a CPU tensor as an array; what belongs to a step gets an axis, of time or of directions."""
    if tensor is None:
        return None
    array = tensor.numpy(force=True)
    return array[None] if step else array


def tensor_of(array: Any, step: bool = False) -> Tensor:
    """Return the reverse."""
    return torch.from_numpy(array[0] if step else array)


def each(change: Callable[[Tensor], Tensor], tensors: Iterable[Tensor | None]) -> list[Any]:
    """Return the tensors that are there changed."""
    return [t if t is None else change(t) for t in tensors]
