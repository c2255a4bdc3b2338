"""Arrays by name: the mappings of parameters, of their gradients and of values for them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import Any

import numpy as np

from .arrays import Array, checked, checked_target

EFFORT = 10_000  # that NumPy may spend to tell whether two arrays overlap; past it, they count as overlapping


def checked_keys(given: object, own: Mapping[str, object], name: str) -> Mapping[str, Any]:
    """Return a mapping that has the keys of one of our own."""
    if not isinstance(given, Mapping):
        msg = f"{name}: expected a mapping of names to arrays, got {type(given).__name__}"
        raise TypeError(msg)
    if given.keys() != own.keys():
        found = {"missing": own.keys() - given.keys(), "unexpected": given.keys() - own.keys()}
        parts = [f"{kind} keys: {sorted(keys, key=str)}" for kind, keys in found.items() if keys]
        parts += [f"the keys that start with {prefix!r} fit without it" for prefix in _prefixes(given, own)]
        msg = f"{name}: {'; '.join(parts)}"
        raise ValueError(msg)
    return given


def _prefixes(given: Mapping[Any, object], own: Mapping[str, object]) -> list[str]:
    """Return what stands before our keys in a mapping that has all of them, as that of a model with this layer does."""
    first = next(iter(own), None)
    found = (key.removesuffix(first) for key in given if first and isinstance(key, str) and key.endswith(f".{first}"))
    return sorted(prefix for prefix in found if all(prefix + key in given for key in own))


def checked_values(given: object, own: Mapping[str, Array], name: str) -> dict[str, Array]:
    """Return the values of a mapping that are to be copied to the arrays of the same keys."""
    mapping = checked_keys(given, own, name)
    values = {key: checked(mapping[key], key, a.shape, a.dtype) for key, a in own.items()}
    for key, value in values.items():
        if any(np.may_share_memory(value, a) for a in own.values()):
            values[key] = value.copy()  # where two names are exchanged, it would be overwritten before it is read
    return values


def check_apart(arrays: Mapping[str, Array], name: str) -> None:
    """Refuse arrays that share memory: what changes each of them once would change that memory twice."""
    spans = sorted((*np.lib.array_utils.byte_bounds(a), key) for key, a in arrays.items() if a.size)
    before: list[tuple[int, str]] = []  # the ends and keys of those that reach beyond the start of the next
    for start, end, key in spans:
        before = [(other_end, other) for other_end, other in before if other_end > start]
        for _, other in before:
            if np.may_share_memory(arrays[key], arrays[other], max_work=EFFORT):  # type: ignore[arg-type] # any int
                msg = f"{name}: expected arrays of their own, got {other!r} and {key!r} that share memory"
                raise ValueError(msg)
        before.append((end, key))


def checked_grads(
    grads: dict[str, Array] | None, parameters: Mapping[str, Array], *read: Any, **others: Array
) -> dict[str, Array] | None:
    """Return views of what a backward is to add into, checked also against what it reads.

    `others` are what `grads` has an entry for beside the parameters.
    """
    if grads is None:
        return None
    own = {**parameters, **others}
    checked_keys(grads, own, "grads")
    into = {
        name: checked_target(grads[name], f"grads[{name!r}]", parameter.shape, parameter.dtype)
        for name, parameter in own.items()
    }
    sources = [*parameters.values(), *_arrays(read)]
    pairs = (*combinations(into.values(), 2), *product(into.values(), sources))
    if any(np.may_share_memory(a, b) for a, b in pairs):
        msg = "grads: expected arrays of their own, got some that overlap each other or what backward reads"
        raise ValueError(msg)
    return into


def _arrays(values: Iterable[Any]) -> Iterator[Array]:
    """Return the arrays among values and tuples of values, leaving out what is None."""
    for value in values:
        if isinstance(value, tuple):
            yield from _arrays(value)
        elif value is not None:
            yield value


def checked_floats_by_name(arrays: object, name: str) -> dict[str, Array]:
    """Return views of arrays of floats that can be changed in place, each of them once."""
    if not isinstance(arrays, Mapping):
        expected = "a layer, rnnfast.Modules or a dict of arrays" if name == "params" else "a dict of arrays"
        msg = f"{name}: expected {expected}, got {type(arrays).__name__}"
        raise TypeError(msg)
    targets = {key: checked_target(a, f"{name}[{key!r}]") for key, a in arrays.items()}
    if len({*map(id, arrays.values())}) < len(arrays):
        check_apart(targets, name)
    return targets
