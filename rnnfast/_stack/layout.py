"""How the arrays of a call lie: [T,B,*] or [B,T,*], one sequence, with padding or packed; and how the kernels see them.

The kernels take [T,B,*], or the packed rows [N,*] of sequences in descending order of length. Every array of a layer's
call passes through its `Layout`, on the way in and on the way out.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._base.arrays import Array, checked
from .._base.packed import PackedSequence, checked_lengths, checked_packed, rows
from .._base.state import Parts, each, state_of

LISTS = list, tuple, range  # whose numbers take the layer's dtype


class Layout(NamedTuple):
    """The layout of one call.

    Attributes
    ----------
    axes : tuple of ints
        The shape of x, or of packed data, without its features: (T, B), (B, T), (T,) or (N,).
    T, B : int
        Steps, of the longest sequence where they are packed, and sequences.
    batch_first, unbatched : bool
    packed : PackedSequence, optional
        x, where it came as one.
    batch_sizes, order, rows : ndarrays, optional
        Where lengths differ: the sequences that each step has, which sequence has each place of a step, and, but for
        packed data, the number of each row in the caller's array. Where no sequence has a step, the kernels are given
        one step of no sequences: there are no batch_sizes then.
    """

    axes: tuple[int, ...]
    T: int
    B: int
    batch_first: bool
    unbatched: bool
    packed: PackedSequence | None = None
    batch_sizes: Array | None = None
    order: Array | None = None
    rows: Array | None = None

    @property
    def running(self) -> Array | None:
        """The sequences that have a step at all, in the kernels' order; None: all, in the caller's."""
        return None if self.order is None else self.order[: 0 if self.batch_sizes is None else self.batch_sizes[0]]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape in which the kernels see the rows, without their features."""
        if self.batch_sizes is not None:
            return (int(self.batch_sizes.sum()),)
        return (self.T, self.B) if self.order is None else (1, 0)

    @property
    def places(self) -> tuple[Array, Array]:
        """The step and the sequence, as the caller numbers them, of each of the kernels' rows."""
        sizes = self.batch_sizes
        if self.order is None or sizes is None:
            T, B = self.row_shape
            return np.repeat(np.arange(T), B), np.tile(np.arange(B), T)
        first_row = np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(np.arange(len(sizes)), sizes), self.order[np.arange(len(first_row)) - first_row]

    def checked(self, a: object, name: str, features: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array like x, but with other features, as the kernels see it."""
        if self.packed is not None and isinstance(a, PackedSequence):
            for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
                own = getattr(a, part)
                if own is not None and not np.array_equal(own, getattr(self.packed, part)):
                    msg = f"{name}: expected the {part} of x, got others"
                    raise ValueError(msg)
            a = a.data
        return self.take(checked(a, name, (*self.axes, *features), dtype))

    def take(self, a: Array) -> Array:
        """Return an array of the caller's as the kernels see it."""
        if self.rows is not None:
            return a.reshape(-1, *a.shape[len(self.axes) :]).take(self.rows, 0)
        if self.packed is not None:
            return a.reshape(*self.row_shape, *a.shape[1:])
        if self.unbatched:
            return a[:, None]
        return a.swapaxes(0, 1) if self.batch_first else a

    def give(self, a: Array) -> Any:
        """Return an array of the kernels' as the caller has x; zero in the padding."""
        features = a.shape[len(self.row_shape) :]
        if self.rows is not None:
            padded = np.zeros((self.T * self.B, *features), a.dtype)
            padded[self.rows] = a
            return padded.reshape(*self.axes, *features)
        if self.packed is not None:
            return self.packed._replace(data=a.reshape(*self.axes, *features))
        if self.unbatched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    def take_state(self, parts: Parts) -> Parts:
        """Return the parts [K,B,H] of a state for the sequences that have a step."""
        running = self.running
        return parts if running is None else each(lambda part: part[:, running], parts)

    def whole_state(self, parts: Parts, rest: Parts) -> Parts:
        """Return a state in the caller's order; of sequences without a step it is that of `rest`, or zero."""
        running = self.running
        return parts if running is None else tuple(map(partial(self._whole, running), parts, rest))

    def _whole(self, running: Array, part: Array, rest: Array | None) -> Array:
        whole = np.zeros((part.shape[0], self.B, part.shape[2]), part.dtype) if rest is None else np.array(rest)
        whole[:, running] = part
        return whole

    def give_state(self, parts: Parts) -> Any:
        """Return a state in the caller's order as the caller has it."""
        return state_of(each(lambda part: part[:, 0], parts) if self.unbatched else parts)


def layout_of(
    x: object,
    lengths: object,
    input_size: int,
    batch_first: bool,
    embedded: bool,
    dtype: np.dtype[Any],
    *,
    least_steps: int = 1,
) -> tuple[Array, Layout]:
    """Check the input of a call: return it as an array and its layout."""
    packed = None
    if isinstance(x, PackedSequence):
        packed = checked_packed(x, "x")
        if lengths is not None:
            msg = "lengths: expected None, since x is packed, got lengths"
            raise ValueError(msg)
    given: Any = x.data if isinstance(x, PackedSequence) else x
    array = packed.data if packed else _core.asarray(given, "x")
    most = 1 if packed else 2
    tokens = embedded or (array.dtype.kind in "iu" and array.ndim <= most)
    if isinstance(given, LISTS) and (not tokens or array.size == 0):
        array = array.astype(np.int64) if tokens else _core.asarray(given, "x", dtype)
    features = () if tokens else (input_size,)
    axes = array.shape[: array.ndim - len(features)]
    end = f", {features[0]}" if features else ""
    batch = "B, T" if batch_first else "T, B"
    expected = f"(N{end or ','})" if packed else f"({batch}{end}) or (T{end or ','})"
    if len(axes) not in (most, 1) or array.shape[len(axes) :] != features:
        msg = f"x{'.data' if packed else ''}: expected shape {expected}, got {array.shape}"
        raise ValueError(msg)
    if packed:
        sizes, order = packed.batch_sizes, packed.sorted_indices
        some = sizes if len(sizes) else None
        return array, Layout(axes, len(sizes), len(order), batch_first, False, packed, some, order)
    unbatched = len(axes) == 1
    T, B = (axes[0], 1) if unbatched else axes[:: -1 if batch_first else 1]
    if least_steps > T:
        msg = f"x: expected shape {expected} with T >= 1, got {array.shape}"
        raise ValueError(msg)
    if lengths is None:
        return array, Layout(axes, T, B, batch_first, unbatched)
    steps = checked_lengths(lengths, T, B)
    numbers, sizes, order = rows(steps, T, batch_first=batch_first and not unbatched)
    if len(sizes) == 0:
        numbers, sizes = numbers.reshape(1, 0), None
    return array, Layout(axes, T, B, batch_first, unbatched, None, sizes, order, numbers)
