"""Streaming: a layer's sequences as their steps come. `layer.stream()` makes a `Stream`."""

from collections.abc import Sequence
from typing import Any, final

from numpy.typing import NDArray

from .functional import Array, State

__all__ = ["Stream"]

@final
class Stream:
    """B sequences on their way through a layer, some steps at a time."""

    state: State
    def __new__(cls, layer: object, batch_size: int = 1) -> Stream: ...
    @property
    def batch_size(self) -> int: ...
    def __reduce__(self) -> tuple[type[Stream], tuple[Any, int], State]: ...
    def __setstate__(self, state: State) -> None: ...
    def step(self, x: object, out: Array | None = None) -> Array: ...
    def run(self, x: object, out: Array | None = None) -> Array: ...
    def reset(self, rows: int | Sequence[int] | NDArray[Any] | None = None) -> None: ...
