"""What `torch.compile` is told of our modules, and of nobody else's."""

from typing import Any

import torch._dynamo.config


def _wrap(builder: Any, module: Any) -> Any:
    """Return what stands for a module in a trace: what it would be if it were none of torch's recurrent ones."""
    with torch._dynamo.config.patch(allow_rnn=True):  # where it is asked, of this module alone
        return builder.wrap_module(module)


def _tables() -> list[dict[type, Any]]:
    """Return the tables in which the tracer looks for the class of a value before all else; none in other releases."""
    try:
        from torch._dynamo.variables.builder import VariableBuilder

        if hasattr(VariableBuilder, "_type_dispatch_impl"):
            return [VariableBuilder._type_dispatch_impl(with_numpy) for with_numpy in (False, True)]
        return [VariableBuilder._type_dispatch()]
    except (ImportError, AttributeError, TypeError):
        return []


TABLES = _tables()


class Traceable:
    """Classes that a compiler looks into, though it stops at subclasses of torch's recurrent modules."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Enter the class into the tracer's tables."""
        super().__init_subclass__(**options)
        for table in TABLES:
            table[cls] = _wrap
