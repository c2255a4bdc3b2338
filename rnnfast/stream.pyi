"""Streaming: running a layer step by step. `layer.stream()` returns a `Stream`."""

from collections.abc import Sequence
from types import GenericAlias
from typing import Any, Generic, final

from typing_extensions import TypeVar

from ._base.arrays import Array, ArrayLike
from ._base.scalars import Integer
from ._base.state import State, StateLike
from ._stack.stack import Stack

__all__ = ["Stream"]

_State = TypeVar("_State", bound=State, default=Any)  # of the layer: h, or (h, c)

@final
class Stream(Generic[_State]):
    """Runs a layer over B sequences, one or several steps at a time."""

    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __new__(cls, layer: Stack[_State], batch_size: Integer = 1) -> Stream[_State]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def state(self) -> _State: ...
    @state.setter
    def state(self, value: StateLike | None) -> None: ...
    def __reduce__(self) -> tuple[type[Stream[_State]], tuple[Any, int], _State]: ...
    def __setstate__(self, state: _State) -> None: ...
    def step(self, x: ArrayLike, out: Array | None = None) -> Array: ...
    def run(self, x: ArrayLike, out: Array | None = None) -> Array: ...
    def reset(self, rows: Integer | Sequence[int] | ArrayLike | None = None) -> None: ...
