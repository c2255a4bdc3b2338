"""Classes that derive from a recurrent module of torch without a forward of their own."""

from functools import cache
from typing import Any

from ._modules import OURS, THEIRS

# What torch's forward calls of the module; whoever has another of these computes something else.
CALLED = (
    "__call__",
    "forward",
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
    "all_weights",
)


def base_of(kind: type) -> Any:
    """Return what a class is or derives from of the classes of torch.nn that are computed here, and of those here."""
    return next((base for base in kind.__mro__ if base in OURS or base in THEIRS), None)


def own_methods(kind: type) -> list[str]:
    """Return what a class has in place of methods of torch's that a forward needs."""
    base = base_of(kind)
    return [name for name in CALLED if getattr(kind, name, None) is not getattr(base, name, None)]


@cache
def accelerated(kind: Any) -> Any:
    """Return the class that computes here what a class of torch, or one derived from it, computes there."""
    base = base_of(kind)
    if kind is base:
        return OURS[kind]
    made = type(
        kind.__name__,
        (OURS[base], kind),
        {
            "__doc__": kind.__doc__,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__reduce_ex__": _reduce,
        },
    )
    THEIRS[made] = kind
    return made


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Have copies and pickles find the class by the one that it stands for."""
    reduced: Any = object.__reduce_ex__(module, protocol)
    make, (kind, *arguments), *state = reduced
    return _make, (make, THEIRS[kind], *arguments), *state


def _make(make: Any, kind: type, *arguments: Any) -> Any:
    return make(accelerated(kind), *arguments)
