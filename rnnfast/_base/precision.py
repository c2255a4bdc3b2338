"""How exact the factors of a layer's products are: `set_precision` and what layers ask of it."""

from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TypeAlias

from .. import _core
from .scalars import choice

Precision: TypeAlias = Literal["full", "bfloat16"]
PRECISIONS = "full", "bfloat16"

_chosen: ContextVar[str] = ContextVar("precision", default="full")
default_precision = _chosen.get  # of layers without their own


class set_precision:
    """Set the precision of layers without their own setting; as a context manager, only inside the block.

    Like `numpy.errstate`, it applies to the current thread or task, but it takes effect when it is called.

    Parameters
    ----------
    precision : {"full", "bfloat16"}
        With "bfloat16", the factors of products (x, h, weights and the gradients of gates) are rounded to bfloat16, and
        their sums are float32; states, gates, gradients and the weights themselves remain float32. It does not affect
        layers without such products: sLSTMs, float64 layers, and layers with `layer_norm`.

    Raises
    ------
    TypeError, ValueError
        If `precision` is anything else.
    RuntimeError
        If the processor has no instruction for bfloat16 products.

    Examples
    --------
    >>> import rnnfast
    >>> with rnnfast.set_precision("full"):
    ...     layer = rnnfast.GRU(3, 4)
    """

    def __init__(self, precision: Precision) -> None:
        chosen = checked_precision(precision, "precision")
        self._chosen, self._before, self._entered = chosen, [_chosen.set(chosen)], False

    def __enter__(self) -> None:
        if self._entered:  # again, or within itself
            self._before.append(_chosen.set(self._chosen))
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _chosen.reset(self._before.pop())


def checked_precision(precision: object, name: str) -> Precision:
    """Return a precision that this machine has."""
    chosen: Precision = choice(precision, name, PRECISIONS)  # type: ignore[assignment]
    if chosen == "bfloat16":
        _core.check_pairs(name)
    return chosen


def is_rounded(layer: Any) -> bool:
    """Return whether the factors of a layer's products are rounded in calls that begin now."""
    own = layer.precision
    if own is None:
        return _chosen.get() == "bfloat16" and refusal_of(layer) is None
    return bool(own == "bfloat16") and layer.format is None


def refusal_of(layer: Any) -> str | None:
    """Return the option with which a layer has no products whose factors are rounded, if there is one."""
    if layer.format is not None:
        return "fewer bits"
    if layer.dtype.itemsize != 4:
        return "dtype float64"
    if "num_heads" in vars(layer):  # an sLSTM
        return "heads"
    return "layer_norm" if getattr(layer, "layer_norm", None) else None
