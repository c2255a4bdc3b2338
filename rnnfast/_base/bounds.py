"""The bounds of an sLSTM's n and f."""

import numpy as np

from .arrays import Array, float_dtype
from .scalars import Flag, Integer, Number, addressable, flag, number, size

# What f is at most where it is not clamped to 1: so little that no gradient overflows
LARGEST_F = 2.0**64


def bounds_of(
    min_n: Number | None, clamp_gates: Flag, hidden_size: Integer, dtype: object
) -> tuple[float | None, bool, dict[str, Array]]:
    """Return `min_n` and `clamp_gates`, and the kernels' vectors of them."""
    H, kind = size(hidden_size, "hidden_size"), float_dtype(dtype)
    least = None if min_n is None else number(min_n, "min_n", kind.type)
    if least is not None and not 0 < kind.type(least) < np.inf:
        msg = f"min_n: expected None or a finite number above 0, got {least}"
        raise ValueError(msg)
    clamps = flag(clamp_gates, "clamp_gates")
    addressable(H * H, "hidden_size")  # the elements of w_hh, before any are made
    numbers = -np.inf if least is None else least, 1.0 if clamps else LARGEST_F
    vectors = np.repeat(np.array(numbers, kind), H)
    vectors.flags.writeable = False
    return least, clamps, {"bounds": vectors}
