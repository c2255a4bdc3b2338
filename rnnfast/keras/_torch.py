"""The kernels under Keras's torch backend, by the operators of `rnnfast.torch`. Arrays are [B,T,I] and [B,T,H]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..torch._kernels import Call
from ..torch._modules import layer

SIZES = (int, torch.SymInt)  # what the sizes of a tensor may be


def misfit(x: Tensor) -> str:
    """Return why a tensor is not computed with, or nothing."""
    return "" if x.device.type in ("cpu", "meta") else f"inputs: expected a tensor on the CPU, got one on {x.device}"


def whole(
    cell: str, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor], backwards: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return h of every step in the order in which they are computed, and the last states [B,H]."""
    x = x.transpose(0, 1)
    y, *last = layer(_call(cell, weights, x.flip(0) if backwards else x, states))
    return y.transpose(0, 1), [state[0] for state in last]


def masked(
    cell: str, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor], backwards: bool, mask: Tensor, zero: bool
) -> tuple[Tensor, Tensor, list[Tensor]] | None:
    """Return the last output, the outputs and the last states where a mask [B,T] is one of lengths, at least 1."""
    if mask.is_meta:  # shapes alone are asked for
        y, last = whole(cell, weights, x, states, backwards)
        return last[0], y, last
    lengths = _lengths_of(mask)
    if lengths is None:
        return None
    y, last = _ragged(cell, weights, x, states, backwards, lengths)
    if backwards:  # what is left out comes first: there is no output yet that could stay
        return last[0], y, last
    if zero:
        return y[:, -1], y, last
    return last[0], torch.where(mask.bool().unsqueeze(-1), y, last[0].unsqueeze(1)), last


def _lengths_of(mask: Tensor) -> Tensor | None:
    """Return the lengths [B] of which a mask is one, or None."""
    if mask.dim() != 2 or torch.compiler.is_compiling():
        return None
    mask = mask.bool()
    lengths = mask.sum(1)
    is_prefix = torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None])
    return lengths if is_prefix and bool(lengths.all()) else None


def _ragged(
    cell: str, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor], backwards: bool, lengths: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return what `whole` does for sequences of these lengths: outputs are zero where a step is none of them."""
    B, T, _ = x.shape
    ordered, order = lengths.sort(descending=True, stable=True)
    t, k = (torch.arange(T)[:, None] < ordered).nonzero(as_tuple=True)  # of each row of a packed sequence
    read = write = t
    if backwards:
        read, write = ordered[k] - 1 - t, T - ordered[k] + t
    start = order[k] * T
    packed = x.flatten(0, 1).index_select(0, start + read)
    call = _call(cell, weights, packed, [state.index_select(0, order) for state in states])
    y, *last = layer(call._replace(batch_sizes=t.bincount()))
    y = y.new_zeros(B * T, y.shape[-1]).index_copy(0, start + write, y)
    places = order.argsort()
    return y.unflatten(0, (B, T)), [state[0].index_select(0, places) for state in last]


def _call(cell: str, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor]) -> Call:
    rows = [w.contiguous() for w in weights]  # Keras's kernels are transposed
    return Call(cell, len(rows) == 4, False, False, x, [state[None] for state in states], None, rows)
