"""Sequences of unequal length, and episodes in them: the arguments `lengths` and `resets`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._base.packed import checked_lengths, rows
from ._kernels import Call


def checked(lengths: Any, resets: Any, T: int, B: int | None, batch_first: bool) -> tuple[Any, Any]:
    """Return lengths as a tensor [B] and resets as one [T,B], what is None as it is; B is None without a batch.

    Values are looked at where the call is computed, as they may not be there yet.
    """
    if lengths is not None:
        if not isinstance(lengths, Tensor):
            try:
                lengths = torch.as_tensor(lengths)
            except (TypeError, ValueError, RuntimeError) as error:
                msg = f"lengths: expected integers, got {type(lengths).__name__}: {error}"
                raise TypeError(msg) from None
        if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            msg = f"lengths: expected integers, got {lengths.dtype}"
            raise TypeError(msg)
        if tuple(lengths.shape) != (B or 1,) and (B is not None or lengths.dim() > 0):
            msg = f"lengths: expected shape {() if B is None else (B,)}, got {tuple(lengths.shape)}"
            raise ValueError(msg)
        lengths = lengths.reshape(-1)
    if resets is not None:
        if not isinstance(resets, Tensor):
            msg = f"resets: expected a tensor of bools, or of 0 and 1, got {type(resets).__name__}"
            raise TypeError(msg)
        shape = (T,) if B is None else (B, T) if batch_first else (T, B)
        if tuple(resets.shape) != shape:
            msg = f"resets: expected shape {shape}, got {tuple(resets.shape)}"
            raise ValueError(msg)
        resets = resets.detach()
        resets = resets.unsqueeze(1) if B is None else resets.transpose(0, 1) if batch_first else resets
    return lengths, resets


def bools(resets: Tensor) -> Tensor:
    """Return resets whose values can be looked at as bools."""
    if resets.dtype != torch.bool:
        as_bools = resets != 0
        if not bool((resets == as_bools).all()):
            msg = "resets: expected bools, or 0 and 1, got other numbers"
            raise ValueError(msg)
        resets = as_bools
    return resets


def turned(lengths: Tensor, resets: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a function that turns round padded sequences [T,B,*], and the resets as they are before such steps."""
    steps = torch.arange(len(resets), device=resets.device)[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    later = torch.cat((resets[1:], resets[:1])).take_along_dim(order, 0)
    return lambda a: a.take_along_dim(order[..., None], 0), later.masked_fill(steps == 0, 0)


class Packing(NamedTuple):
    """Where the steps of padded sequences [T,B,*] stand among packed rows [N,*]."""

    T: int
    B: int
    rows: Tensor  # the number in [T·B] of each packed row, [N]
    batch_sizes: Tensor  # [steps of the longest]
    order: Tensor  # of the sequences that have a step, the longest first

    @classmethod
    def of(cls, lengths: Tensor, T: int, B: int) -> "Packing":
        """Return that of lengths whose values are there."""
        numbers, sizes, order = rows(checked_lengths(lengths.numpy(force=True), T, B), T)
        running = int(sizes[0]) if len(sizes) else 0
        return cls(T, B, *map(torch.from_numpy, (numbers, sizes, order[:running])))

    def take(self, a: Tensor) -> Tensor:
        """Return the rows of a padded tensor."""
        return a.reshape(self.T * self.B, *a.shape[2:]).index_select(0, self.rows)

    def give(self, a: Tensor) -> Tensor:
        """Return the reverse, zero in the padding."""
        padded = a.new_zeros(self.T * self.B, *a.shape[1:])
        return padded.index_copy(0, self.rows, a).unflatten(0, (self.T, self.B))

    def take_state(self, part: Tensor) -> Tensor:
        """Return the states of those that have a step."""
        return part.index_select(1, self.order)

    def give_state(self, part: Tensor, rest: Tensor | None) -> Tensor:
        """Return the states of all; of sequences without a step they are those of `rest`, or zero."""
        if rest is None:
            rest = part.new_zeros(part.shape[0], self.B, part.shape[2])
        return rest.index_copy(1, self.order, part)

    def packed(self, call: Call) -> Call:
        """Return the call on packed rows."""
        return call._replace(
            x=self.take(call.x),
            states=[self.take_state(part) for part in call.states],
            batch_sizes=self.batch_sizes,
            lengths=None,
            resets=None if call.resets is None else self.take(call.resets),
        )
