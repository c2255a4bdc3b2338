"""The modules of a model: `accelerate`, `restore` and `report`."""

import sys
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.utils.parametrize import is_parametrized

from ._modules import DTYPES, OURS, THEIRS
from ._policies import accelerate_policy, is_policy, restore_policy
from ._slstm import SLSTM
from ._subclasses import accelerated, base_of, own_methods

Model = TypeVar("Model")

NAMES = {kind.__name__ for kind in OURS}


class Reported(NamedTuple):
    """What `report` says of one module."""

    name: str  # in the model, "" of the model itself
    kind: str  # the name of the class
    why: str  # it is left to torch; empty of what rnnfast computes

    def __str__(self) -> str:
        return f"{self.name or 'the model'}: {self.kind}, {self.why and 'left to torch: '}{self.why or 'rnnfast'}"


def accelerate(model: Model) -> Model:
    """Let rnnfast compute the recurrent modules of a model, in place.

    Each module remains the same object, with its parameters, buffers, hooks and mode; only its class changes. A class
    of torch.nn becomes the class of the same name in this module; a subclass that does not override ``forward`` becomes
    a subclass of both. `report` lists what is not accelerated, and why. The recurrent policies of sb3-contrib then call
    their LSTM once for all steps of a batch, instead of in a loop.

    Parameters
    ----------
    model : torch.nn.Module
        Any module; it may be a recurrent module itself.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> model = rnnfast.torch.accelerate(torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 4)}))
    >>> type(model["rnn"]) is rnnfast.torch.GRU
    True
    """
    tell_opacus()
    for module in modules_of(model):
        kind: Any = type(module)
        if base_of(kind) in OURS and not _why_left(module):
            module.__class__ = accelerated(kind)
        elif is_policy(module):
            accelerate_policy(module)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: let torch compute the recurrent modules of a model again, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        `model`. Modules that were created as rnnfast's become torch's, too.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> type(rnnfast.torch.restore(rnnfast.torch.GRU(3, 4))) is torch.nn.GRU
    True
    """
    for module in modules_of(model):
        module.__class__ = THEIRS.get(type(module), type(module))
        restore_policy(module)
    return model


def report(model: Any) -> list[Reported]:
    r"""List the recurrent modules of a model, with the reason for each that rnnfast does not compute.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of Reported
        A named tuple for each module: `name`, its path in the model; `kind`, the name of its class; and `why`, the
        reason why torch computes it, empty if rnnfast does. `str` formats it as one line.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4), "decoder": torch.nn.LSTM(4, 3).bfloat16()})
    >>> print(*rnnfast.torch.report(rnnfast.torch.accelerate(model)), sep="\n")
    encoder: GRU, rnnfast
    decoder: LSTM, left to torch: parameters torch.bfloat16 on cpu, not float32 or float64 on the CPU
    """
    modules_of(model)  # or an error
    return [
        Reported(name, getattr(module, "original_name", type(module).__name__), why)
        for name, module in model.named_modules()
        if (why := _why_not(module)) is not None
    ]


def _why_not(module: Any) -> str | None:
    """Return why rnnfast does not compute a module, empty if it does, None of a module that is not recurrent."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit" if module.original_name in NAMES else None
    if isinstance(module, SLSTM):
        return ""
    if base_of(kind) is None:
        if isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
            return f"{kind.__name__} has a forward of its own"
        quantised = kind.__name__ in NAMES and kind.__module__.startswith(("torch.ao.nn.", "torch.nn.quant"))
        return f"quantised, of {kind.__module__}" if quantised else None
    return _why_left(module) or ("accelerate has not been called since it was made" if base_of(kind) in OURS else "")


def _why_left(module: Any) -> str:
    """Return why a module of torch, or one derived from it, is left to torch; empty if it is not."""
    kind = THEIRS.get(type(module), type(module))
    if is_parametrized(module) and type(module) not in THEIRS:
        return "parametrised; parametrise after accelerate"
    if own := own_methods(kind):
        return f"{kind.__name__} has its own {', '.join(own)}"
    if "forward" in vars(module):
        return "its forward has been replaced"
    if getattr(module, "nonlinearity", "tanh") not in ("tanh", "relu"):
        return f"nonlinearity {module.nonlinearity!r}"
    for p in module.parameters(recurse=False):
        if not p.is_cpu or p.dtype not in DTYPES:
            return f"parameters {p.dtype} on {p.device}, not float32 or float64 on the CPU"
    return ""


def tell_opacus() -> None:
    """Let Opacus, where it is loaded, refuse and replace our modules as it does torch's; it looks them up by class."""
    opacus = sys.modules.get("opacus.validators")
    validator = getattr(opacus, "ModuleValidator", None)
    for name in ("VALIDATORS", "FIXERS"):
        known = getattr(validator, name, {})
        for ours, theirs in THEIRS.items():
            if theirs in known:
                known.setdefault(ours, known[theirs])


def modules_of(model: Any) -> list[Any]:
    """Return a model's modules, itself the first."""
    if not isinstance(model, torch.nn.Module):
        msg = f"model: expected a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    return list(model.modules())
