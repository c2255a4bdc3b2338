"""The leak of leaky units."""

from typing import Any, TypeAlias

import numpy as np

from .. import _core
from .arrays import Array, ArrayLike, checked, float_dtype, quiet
from .scalars import Integer, Number, addressable, held, number, size

Leak: TypeAlias = Number | ArrayLike


@quiet
def leak_of(leak: Leak, hidden_size: Integer, dtype: object) -> tuple[float | Array, dict[str, Array]]:
    """Return a leak as a number, or as a read-only array of each unit's, and the kernels' vectors of it.

    Where nothing leaks, there are none.
    """
    H, kind = size(hidden_size, "hidden_size"), float_dtype(dtype)
    value: Any = held(leak)
    if isinstance(value, list | tuple) or np.ndim(value):
        given = _core.asarray(value, "leak")
        if given.dtype.kind not in "fiu":
            msg = f"leak: expected numbers, got {given.dtype}"
            raise TypeError(msg)
        vector = checked(given.astype(kind), "leak", (H,), kind)
        value = vector
    else:
        value = number(value, "leak")
        if value == 1:
            return value, {}
        addressable(H * H, "hidden_size")  # the elements of w_hh, before any are made
        vector = np.full(H, value, kind)
    if not ((vector > 0) & (vector <= 1)).all():
        msg = f"leak: expected numbers above 0 and up to 1, got {value}"
        raise ValueError(msg)
    vector.flags.writeable = False
    return value, {"leak": vector}
