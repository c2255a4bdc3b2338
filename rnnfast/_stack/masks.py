"""The masks of a forward: of the recurrent weights, and of the states."""

from collections.abc import Mapping
from typing import Any

from . import weight_dropout, zoneout
from .call import Call
from .stack import Stack


def with_masks(stack: Stack[Any], call: Call, masks: object) -> Call:
    """Return the call with the masks of a forward: those that the caller gives by name, the others drawn."""
    names = [*weight_dropout.names_of(stack), *zoneout.names_of(stack)]
    given = _checked(masks, names)
    return call._replace(dropped=weight_dropout.dropped(stack, given), zoneout=zoneout.zoned(stack, call.layout, given))


def _checked(masks: object, names: list[str]) -> Mapping[str, object]:
    """Return the masks that the caller gives, each of which has one of these names."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        msg = f"masks: expected a mapping of names to arrays of bools, got {type(masks).__name__}"
        raise TypeError(msg)
    given = dict(masks)
    if given and not names:
        msg = f"masks: expected none for a layer without weight_dropout and zoneout, got {sorted(given, key=str)}"
        raise ValueError(msg)
    if unknown := sorted(given.keys() - names, key=str):
        msg = f"masks: expected names among {names}, got {unknown}"
        raise ValueError(msg)
    return given
