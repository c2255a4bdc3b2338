"""The options of layer normalisation."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from .arrays import float_dtype
from .scalars import number

LayerNorm: TypeAlias = Literal["inside", "carried"]


def norm_of(layer_norm: object, forms: tuple[str, ...], others: Mapping[str, bool]) -> Any:
    """Return which form a layer has, or None. `others` says which options it has that go with none."""
    if layer_norm is None:
        return None
    if not isinstance(layer_norm, str) or layer_norm not in forms:
        msg = f"layer_norm: expected None or {' or '.join(map(repr, forms))}, got {layer_norm!r}"
        raise ValueError(msg)
    for name, is_set in others.items():
        if is_set:
            msg = f"layer_norm: expected None for a layer with {name}, got {layer_norm!r}"
            raise ValueError(msg)
    return str(layer_norm)


def eps_of(layer_norm_eps: object, dtype: object) -> float:
    """Return what is added to variances."""
    eps, limits = number(layer_norm_eps, "layer_norm_eps"), np.finfo(float_dtype(dtype))
    if not float(limits.tiny) <= eps <= float(limits.max):
        msg = f"layer_norm_eps: expected a positive number within the range of {limits.dtype}, got {eps}"
        raise ValueError(msg)
    return eps
