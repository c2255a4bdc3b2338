"""The compiled kernels: one layer, all its directions, one call. See `rnnfast.functional` for the public form."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Float = np.float32 | np.float64
Array = NDArray[Any]
Parameters = Sequence[Sequence[object]]
Grads = list[tuple[Array, Array, Array | None, Array | None]]

CELLS: tuple[str, ...]

@final
class Tape:
    """What a training forward keeps for its backward. Opaque and read-only."""

    @property
    def cell(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

def inference(
    cell: str,
    x: object,
    parameters: Parameters,
    h0: object | None = None,
    c0: object | None = None,
    out: Sequence[object] | None = None,
) -> tuple[Array, Array, Array | None]: ...
def forward(
    cell: str,
    x: object,
    parameters: Parameters,
    h0: object | None = None,
    c0: object | None = None,
    out: Sequence[object] | None = None,
) -> tuple[Array, Array, Array | None, Tape]: ...
def backward(
    tape: Tape,
    dy: object | None = None,
    dh: object | None = None,
    dc: object | None = None,
    need_dx: bool = True,
    grads: Parameters | None = None,
    out: Sequence[object] | None = None,
) -> tuple[Array | None, Array, Array | None, Grads]: ...
def sigmoid(x: object, out: object | None = None) -> Array: ...
def tanh(x: object, out: object | None = None) -> Array: ...
def asarray(x: object, name: str = "x") -> Array: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...
