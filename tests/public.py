"""What of the package is public, found by looking: its modules, and their functions, classes and methods."""

import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import rnnfast

MODULES = [
    "rnnfast",
    *(info.name for info in pkgutil.iter_modules(rnnfast.__path__, "rnnfast.") if "._" not in info.name),
]


def public_callables(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Return all functions and classes that a module lists or defines without an underscore, and their methods."""
    names = {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    for name in sorted({*getattr(module, "__all__", ()), *names}):
        value = getattr(module, name)
        if not callable(value) or name.startswith("_"):
            continue
        if not (inspect.isclass(value) and issubclass(value, Exception)):  # which take any arguments
            yield name, value
        for method in dir(value) if inspect.isclass(value) else ():
            own = any(method in vars(kind) for kind in value.__mro__ if kind.__module__.startswith("rnnfast"))
            if own and callable(getattr(value, method)) and not method.startswith("_"):
                yield f"{name}.{method}", getattr(value, method)
