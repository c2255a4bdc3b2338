"""What calls take as an array, for type checkers: what the border reads, and neither str nor tuples."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias


class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class _HasArray(Protocol):
    def __array__(self) -> Any: ...


class _HasArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> Mapping[str, Any]: ...


class _HasDLPack(Protocol):
    def __dlpack__(self) -> Any: ...


class _List(Protocol):
    """A list of numbers, tuples of numbers, arrays, or such lists. A tuple itself is a state or a `PackedSequence`."""

    def __getitem__(self, i: int, /) -> "float | tuple[float, ...] | ArrayLike": ...
    def append(self, value: Any, /) -> None: ...


ArrayLike: TypeAlias = _Buffer | _HasArray | _HasArrayInterface | _HasDLPack | _List
Integers: TypeAlias = ArrayLike | Sequence[int]  # one for each sequence
