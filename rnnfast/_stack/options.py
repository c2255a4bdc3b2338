"""The options of a stack that may change while it lives, and what each may be."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from .. import _core
from .._base.layer_norm import eps_of
from .._base.module import Check
from .._base.precision import Precision, checked_precision, refusal_of
from .._base.scalars import Number, flag, number

WeightDropout: TypeAlias = Number | tuple[Literal["rows"], Number]
Zoneout: TypeAlias = Number | tuple[Number, Number]

# Options of which a forward has masks.
MASKED = "weight_dropout", "recurrent_dropout", "candidate_dropout", "zoneout"


def _flag(_: Any, value: object, name: str) -> bool:
    return flag(value, name)


def _rate(value: object, name: str) -> float:
    """Return a probability with which something is left out, or stays."""
    rate = number(value, name)
    if not 0 <= rate < 1:
        msg = f"{name}: expected a probability of at least 0 and less than 1, got {rate}"
        raise ValueError(msg)
    return rate


def _refuse(rate: Any, name: str, option: str, has_option: object) -> None:
    """Refuse a rate that does not go with another option, which the stack has or not."""
    if rate and has_option:
        msg = f"{name}: expected 0 for a layer with {option}, got {rate}"
        raise ValueError(msg)


def _dropout(_: Any, value: object, name: str) -> float:
    """Return the probability of dropout between layers."""
    rate = number(value, name)
    if not 0 <= rate <= 1:
        msg = f"{name}: expected a probability, got {rate}"
        raise ValueError(msg)
    return rate


def _weight_dropout(_: Any, value: Any, name: str) -> float | tuple[Literal["rows"], float]:
    """Return a probability, or that of rows."""
    of_rows = isinstance(value, tuple | list)  # a list, from a file
    if of_rows and not (len(value) == 2 and isinstance(value[0], str) and value[0] == "rows"):
        msg = f"{name}: expected a probability or ('rows', probability), got {value!r}"
        raise ValueError(msg)
    rate = _rate(value[1] if of_rows else value, name)
    return ("rows", rate) if of_rows and rate else rate


def _recurrent_dropout(stack: Any, value: object, name: str) -> float:
    rate = _rate(value, name)
    _refuse(rate, name, "proj_size", stack.proj_size)
    return rate


def _candidate_dropout(stack: Any, value: object, name: str) -> float:
    rate = _rate(value, name)
    _refuse(rate, name, "layer_norm", not _core.cells[stack.cell].has_candidate)
    return rate


def _zoneout(stack: Any, value: Any, name: str) -> float | tuple[float, float]:
    """Return a probability, or that of each of two states."""
    given = value if isinstance(value, tuple | list) else [value]  # a list, from a file
    states = len(stack.state_sizes)
    if len(given) not in (1, states):
        pair = " or a pair (of h, of c)" if states == 2 else ""
        msg = f"{name}: expected a probability{pair}, got {value!r}"
        raise ValueError(msg)
    rates = [_rate(rate, name) for rate in given]
    result = (rates[0], rates[-1]) if len(rates) > 1 and any(rates) else rates[0]
    _refuse(result, name, "proj_size", stack.proj_size)
    return result


def _eps(stack: Any, value: object, _: str) -> float:
    return eps_of(value, stack.dtype)


def _precision(stack: Any, value: object, name: str) -> Precision | None:
    if value is None:
        return None
    precision = checked_precision(value, name)
    if precision == "bfloat16" and (option := refusal_of(stack)):
        msg = f"{name}: expected None or 'full' for a layer with {option}, got {value!r}"
        raise ValueError(msg)
    return precision


OPTIONS: Mapping[str, Check] = {
    "batch_first": _flag,
    "dropout": _dropout,
    "weight_dropout": _weight_dropout,
    "recurrent_dropout": _recurrent_dropout,
    "recurrent_dropout_per_gate": _flag,
    "candidate_dropout": _candidate_dropout,
    "candidate_dropout_per_sequence": _flag,
    "zoneout": _zoneout,
    "layer_norm_eps": _eps,
    "precision": _precision,
}
