"""The states of a cell: which parts they have, as users give and get them, and as everything inside passes them on.

Inside, a state is a tuple with a place for each part, in the order of the cell's own file; None stands for zeros. Users
have a state of one part as an array, h, and one of several as a tuple, (h, c) or (h, c, n, m). No other
module knows which cell has which.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from .. import _core
from .arrays import Array, ArrayLike

FourStates: TypeAlias = tuple[Array, Array, Array, Array]
State: TypeAlias = Array | tuple[Array, Array] | FourStates
StateT = TypeVar("StateT", bound=State)  # which of them it is, to type checkers
StateLike: TypeAlias = (
    ArrayLike
    | tuple[ArrayLike | None, ArrayLike | None]
    | tuple[ArrayLike | None, ArrayLike | None, ArrayLike | None, ArrayLike | None]
)
Parts: TypeAlias = tuple[Any, ...]

SEVERAL = tuple, list  # what a state of several parts may be; the union `tuple | list` would be made at each call
STATES: dict[str, tuple[str, ...]] = {name: cell.states for name, cell in _core.cells.items()}


def initial_names(cell: str) -> list[str]:
    """Return the names of the parameters of `learn_initial_state`, one for each part."""
    return [f"initial_{part}" for part in STATES[cell]]


def add_to_initial(cell: str, grads: dict[str, Array], parts: Parts) -> None:
    """Add the gradients [L·D,B,H] of an initial state that all sequences share to those of its parameters."""
    for name, part in zip(initial_names(cell), parts, strict=True):
        grads[name] += part.sum(axis=1)


def parts_of(cell: object, state: object, name: str) -> Parts:
    """Return the parts of a state that a user gives; `name` is what messages call it."""
    parts = STATES.get(cell, ("h",)) if isinstance(cell, str) else ("h",)  # the kernels say what is wrong with others
    if len(parts) == 1:
        if isinstance(state, tuple):
            msg = f"{name}: expected one array, {parts[0]}, got a tuple of {len(state)}"
            raise TypeError(msg)
        return (state,)
    if state is None:
        return (None,) * len(parts)
    if not isinstance(state, SEVERAL):
        msg = f"{name}: expected a tuple ({', '.join(parts)}), got {type(state).__name__}"
        raise TypeError(msg)
    if len(state) != len(parts):
        msg = f"{name}: expected a tuple ({', '.join(parts)}), got a {type(state).__name__} of {len(state)}"
        raise ValueError(msg)
    return tuple(state)


def state_of(parts: Parts) -> Any:
    """Return the state with these parts as users get it."""
    return parts if len(parts) > 1 else parts[0]


def out_parts(cell: object, out: object, form: str) -> tuple[Any, Parts]:
    """Return the array and the parts of the state of `out`, a pair like `form` or None."""
    if out is None:
        return None, parts_of(cell, None, "out")
    if not isinstance(out, tuple):
        msg = f"out: expected a tuple {form}, got {type(out).__name__}"
        raise TypeError(msg)
    if len(out) != 2:
        msg = f"out: expected a tuple {form}, got a tuple of {len(out)}"
        raise ValueError(msg)
    return out[0], parts_of(cell, out[1], "out")


def beside_h(cell: str, c: Any, name: str) -> Parts | None:
    """Return what belongs to the parts beside h, if the user gives that of c; `name` is what messages call it."""
    if c is None:
        return None
    parts = STATES[cell][1:]
    if "c" not in parts:
        msg = f"{name}: expected None, since {cell} has no state c, got {type(c).__name__}"
        raise ValueError(msg)
    return tuple(c if part == "c" else None for part in parts)


def each(f: Callable[[Any], Any], parts: Parts) -> Parts:
    """Apply f to the parts that are there."""
    return tuple([None if part is None else f(part) for part in parts])


def fill(parts: Parts, values: Parts) -> None:
    """Copy values to a state's parts, zeros where there is none."""
    for part, value in zip(parts, values, strict=True):
        part[...] = 0 if value is None else value
