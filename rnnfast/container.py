"""Layers, cells and arrays joined under names, as one model to train, to count and to keep in files."""

from collections.abc import Iterable, Iterator, Mapping
from keyword import iskeyword
from typing import Any

import numpy as np

from ._base.arrays import Array, checked, checked_target
from ._base.blocks import unpacked
from ._base.files import UNREADABLE, Name
from ._base.module import Module, Stateful, described, description_of
from ._base.named import check_apart, checked_keys
from ._base.tensors import read_tensors

__all__ = ["Modules", "load"]

RESERVED = "", "__metadata__"  # the second one stands for something else in the header of a safetensors file


class Modules(Stateful, Mapping[str, Any]):
    """A model of several modules, whose parameters are named ``"<module>.<parameter>"`` as in torch.

    Parameters
    ----------
    modules : mapping, optional
        The modules by name; names are printable and have no dot. A module is a layer, a cell, `Linear`, an array of
        parameters such as an embedding, or another `Modules` or mapping.
    **named
        More modules; they replace those of the same name.

    Attributes
    ----------
    parameters : dict of ndarrays
        The same as `state_dict()`.

    Raises
    ------
    TypeError, ValueError
        If a name or a module is invalid, or if two modules share parameters, which an optimizer would change twice. If
        an embedding is also the weight of a readout, pass only the readout, and add the two gradients.

    Notes
    -----
    A module is available as an item, ``model["lstm"]``, and as an attribute, ``model.lstm``, unless the class has
    another attribute of that name. Modules can be changed in place but not replaced. A container is only equal to
    itself. `copy.copy` shares the modules; `copy.deepcopy` and pickling copy them.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> from rnnfast.training import Adam
    >>> model = rnnfast.Modules(lstm=rnnfast.LSTM(3, 8, rng=0), readout=rnnfast.Linear(8, 5, rng=1))
    >>> list(model.state_dict())[-3:]
    ['lstm.bias_hh_l0', 'readout.weight', 'readout.bias']
    >>> adam = Adam(model)
    >>> y, state, lstm_tape = model.lstm.forward(np.ones((4, 2, 3), np.float32))
    >>> logits, readout_tape = model.readout.forward(y)
    >>> dy, readout_grads = model.readout.backward(readout_tape, np.ones_like(logits))
    >>> dx, dstate, lstm_grads = model.lstm.backward(lstm_tape, dy)
    >>> adam.step(model.join(lstm=lstm_grads, readout=readout_grads))
    """

    _modules: dict[str, Any]

    def __init__(self, modules: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        given = _named("modules", modules, named)
        vars(self)["_modules"] = {name: _module(module, name) for name, module in given.items()}
        check_apart(self.parameters, "modules")

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        modules = vars(self).get("_modules", {})  # there are none yet while a copy is being made
        if name not in modules:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg, name=name, obj=self)
        return modules[name]

    def __setattr__(self, name: str, value: object) -> None:
        own = vars(self).get("_modules", {}).get(name)
        if isinstance(own, np.ndarray):
            np.copyto(own, checked(value, name, own.shape, own.dtype))
        elif own is not None or isinstance(value, Stateful):
            msg = f"{name}: expected modules as arguments of the constructor, got one assigned to an attribute"
            raise AttributeError(msg, name=name, obj=self)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        return sorted({*super().__dir__(), *filter(str.isidentifier, self)})

    def __repr__(self) -> str:
        """Return the constructor's call, with arrays as their dtype and shape."""
        words = {
            name: f"<{m.dtype} {list(m.shape)}>" if isinstance(m, np.ndarray) else repr(m) for name, m in self.items()
        }
        if all(name.isidentifier() and not iskeyword(name) for name in words):
            call = ", ".join(f"{name}={word}" for name, word in words.items())
        else:
            call = f"{{{', '.join(f'{name!r}: {word}' for name, word in words.items())}}}"
        return f"{type(self).__name__}({call})"

    @property
    def parameters(self) -> dict[str, Array]:
        """The same as `state_dict()`."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by names like ``lstm.weight_ih_l0``: the arrays themselves, not copies."""
        return joined({name: m.state_dict() if isinstance(m, Stateful) else m for name, m in self.items()})

    def join(self, grads: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Array]:
        """Combine the gradients of all modules into one dict, with the keys of `state_dict()`.

        Parameters
        ----------
        grads : mapping, optional
            The gradients returned by each module's backward, by the names of the modules; for an array of parameters,
            an array. A layer returns the gradient of its embedding together with its own, so pass
            ``embedding=lstm_grads.pop("embedding"), lstm=lstm_grads``.
        **named
            More gradients.

        Returns
        -------
        dict of ndarrays
            The arrays themselves, not copies.

        Raises
        ------
        TypeError, ValueError
            If a gradient is missing, or does not belong to a parameter. Shapes are checked when the gradients are used.
        """
        together = joined(_named("grads", grads, named))
        checked_keys(together, self.state_dict(), "grads")
        return together


def load(path: Name) -> Module | Modules:
    """Load a layer, cell, `Linear` or `Modules` from a file that its `save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Module or Modules
        A module of the saved class, with the saved constructor arguments and parameters, and its own random generator.
        For type checkers, write ``assert isinstance(layer, LSTM)``.

    Raises
    ------
    OSError
        If the file cannot be read, or is not a regular file.
    ValueError
        If the file was not written by `save`, or is damaged.

    Examples
    --------
    >>> import rnnfast, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rnnfast.GRU(3, 4, batch_first=True).save(f"{folder}/gru.safetensors")
    ...     rnnfast.load(f"{folder}/gru.safetensors")
    GRU(3, 4, batch_first=True)
    """
    import json

    import safetensors

    metadata: dict[str, str] = {}
    try:
        metadata, tensors = read_tensors(path)
        description = json.loads(metadata["rnnfast"])
        tensors = unpacked(tensors, metadata)
        made: Module | Modules = _made(description, tensors)
        if tensors:
            raise ValueError([*tensors])
    except (*UNREADABLE, safetensors.SafetensorError) as error:
        msg = f"path: expected a file that save has written, got {str(path)!r}: {error!r}"
        if "rnnfast.lm" in metadata:
            what = f"path: expected the file of a layer, got that of a language model, {str(path)!r}"
            msg = f"{what}; to load it: rnnfast.lm.Checkpoint.read({str(path)!r}).model()"
        raise ValueError(msg) from error
    return made


def joined(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays and those of mappings, however deep, as one dict by names ``<part>.<name>``."""
    flat: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, np.ndarray) or not isinstance(part, Mapping):  # the first is quicker to tell
            flat[name] = part
        else:
            for key, a in joined(part).items():
                flat[f"{name}.{key}"] = a
    return flat


def _named(name: str, given: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        msg = f"{name}: expected a mapping of names to {name}, got {type(given).__name__}"
        raise TypeError(msg)
    return {**(given or {}), **named}


def _module(module: Any, name: object) -> Any:
    """Return what a container holds by this name."""
    if not isinstance(name, str):
        msg = f"modules: expected names of type str, got {name!r}"
        raise TypeError(msg)
    if name in RESERVED or "." in name or not name.isprintable():
        msg = f"modules: expected printable names without a dot, got {name!r}"
        raise ValueError(msg)
    if isinstance(module, np.ndarray):
        checked_target(module, f"modules[{name!r}]")
        return module
    if isinstance(module, Stateful):
        return module
    if isinstance(module, Mapping):
        return Modules(module)
    msg = f"modules[{name!r}]: expected a layer, a cell, Linear, an array or a mapping, got {type(module).__name__}"
    raise TypeError(msg)


@description_of.register
def _(modules: Modules) -> dict[str, Any]:
    if type(modules) is not Modules:
        kind = type(modules).__name__
        msg = f"self: expected a class of rnnfast's own, got {kind}; rnnfast.Modules(self) can be saved"
        raise TypeError(msg)
    parts = {name: description_of(m) if isinstance(m, Stateful) else None for name, m in modules.items()}
    return {"class": "Modules", "modules": parts}


def _made(description: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
    """Make what a file describes, of parameters that it takes out of `tensors`."""
    if description["class"] != "Modules":
        return described(description, tensors)
    modules = description["modules"]
    made = {name: tensors.pop(name) if module is None else None for name, module in modules.items()}
    parts: dict[str, dict[str, Any]] = {name: {} for name, module in modules.items() if module is not None}
    for key in list(tensors):
        name, _, parameter = key.partition(".")
        if parameter and name in parts:
            parts[name][parameter] = tensors.pop(key)
    for name, part in parts.items():
        made[name] = _made(modules[name], part)
    tensors |= joined(parts)  # what nothing has taken
    return Modules(made)
