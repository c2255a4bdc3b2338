"""Exact LSTM, GRU and Elman networks as fused CPU kernels for NumPy arrays."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # in a checkout, finds the installed extension

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from . import _core
except ImportError as error:
    error.name = error.name or __name__  # of a bad RNNFAST_*: `python -m rnnfast` then says it in one line
    raise

from . import functional, truncation
from ._base.module import Module, Tape, initialize, num_parameters
from ._base.precision import set_precision
from ._base.scalars import Integer, int64
from ._stack.quantized import Quantized
from ._stack.tape import LayerTape
from .cells import CellTape, GRUCell, LSTMCell, RNNCell
from .container import Modules, load
from .embedding import Embedding
from .flow import GradientFlow, gradient_flow
from .layers import GRU, LSTM, RNN, SLSTM
from .linear import Linear
from .ragged import PackedSequence, length_bucketed_batches, pack_padded, pad_packed, pad_sequences
from .truncation import tbptt, tbptt_gradient

if TYPE_CHECKING:
    from . import convert as convert
    from . import estimators as estimators
    from . import hopfield as hopfield
    from . import lm as lm
    from . import onnx as onnx
    from . import reference as reference
    from . import reservoir as reservoir
    from . import stream as stream
    from . import torch as torch
    from . import training as training

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "CellTape",
    "Embedding",
    "GRUCell",
    "GradientFlow",
    "LSTMCell",
    "LayerTape",
    "Linear",
    "Module",
    "Modules",
    "PackedSequence",
    "Quantized",
    "RNNCell",
    "Tape",
    "functional",
    "get_include",
    "get_num_threads",
    "gradient_flow",
    "hopfield",
    "initialize",
    "length_bucketed_batches",
    "load",
    "num_parameters",
    "pack_padded",
    "pad_packed",
    "pad_sequences",
    "reservoir",
    "set_num_threads",
    "set_precision",
    "show_config",
    "tbptt",
    "tbptt_gradient",
    "threads",
]

# The module had the name of its function once: `from rnnfast.tbptt import Window` still finds it, while the attribute
# `rnnfast.tbptt` is the function.
sys.modules[f"{__name__}.tbptt"] = truncation

__version__: str = _core.config()["version"]

_LAZY = (  # imported when first asked for
    "convert",
    "estimators",
    "hopfield",
    "lm",
    "reference",
    "reservoir",
    "stream",
    "training",
)
_FRAMEWORKS = "onnx", "torch"  # likewise, where the framework of that name is installed


if not TYPE_CHECKING:  # which would take any name

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return importlib.import_module(f".{name}", __name__)
        if name in _FRAMEWORKS:
            try:
                return importlib.import_module(f".{name}", __name__)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                raise AttributeError(error.msg) from error
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def get_num_threads() -> int:
    """Return the number of threads that a call may use.

    Examples
    --------
    >>> import rnnfast
    >>> with rnnfast.threads(2):
    ...     rnnfast.get_num_threads()
    2
    """
    return _core.get_num_threads()


def set_num_threads(n: Integer) -> None:
    """Set the number of threads that calls may use, for the whole process. Results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If n is not a positive int.

    Examples
    --------
    >>> import rnnfast
    >>> before = rnnfast.get_num_threads()
    >>> rnnfast.set_num_threads(2)
    >>> rnnfast.get_num_threads()
    2
    >>> rnnfast.set_num_threads(before)  # or use `threads`, which does so by itself
    """
    _core.set_num_threads(int64(n, "n"))


@contextmanager
def threads(n: Integer) -> Iterator[None]:
    """Use n threads inside a `with` block.

    Like `set_num_threads`, this affects the whole process. Results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If n is not a positive int.

    Examples
    --------
    >>> import rnnfast
    >>> with rnnfast.threads(1):
    ...     rnnfast.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


def get_include() -> str:
    """Return the include folder of the C API, for ``#include <rnnfast/capi.h>``.

    Cython code uses `rnnfast/capi.pxd`: ``from rnnfast.capi cimport rnnfast_api``.

    Examples
    --------
    >>> import rnnfast
    >>> include_dirs = [rnnfast.get_include()]
    """
    return str(Path(_core.__file__).with_name("include"))


def show_config() -> None:
    """Print the version, the compiler, the instructions in use and those available, and the number of threads.

    The line `bfloat16` is about the products of `precision="bfloat16"`.

    Examples
    --------
    >>> import rnnfast
    >>> rnnfast.show_config()  # doctest: +ELLIPSIS
    rnnfast       ...
    compiler      ...
    instructions  ... (available: ...)
    bfloat16      ... (available: ...)
    threads       ...
    """
    config = _core.config()
    print(f"rnnfast       {config['version']}")
    print(f"compiler      {config['compiler']}")
    print(f"instructions  {config['isa']} (available: {', '.join(config['available'])})")
    print(f"bfloat16      {config['bfloat16'] or 'none'} (available: {', '.join(config['available_bfloat16'])})")
    print(f"threads       {config['threads']}")
