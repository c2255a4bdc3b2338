"""The modules of a model: `accelerate` and `restore`."""

from typing import Any, TypeVar

import torch

from ._modules import DTYPES, OURS, THEIRS

Model = TypeVar("Model")


def accelerate(model: Model) -> Model:
    """Let rnnfast compute the recurrent modules of a model, in place.

    Each module stays the object that it is, with its parameters, buffers, hooks and mode: only its class changes, from
    one of torch.nn to the one of the same name here. Left as they are: modules whose parameters are not float32 or
    float64 on the CPU, and subclasses, which may have a forward of their own.

    Parameters
    ----------
    model : torch.nn.Module
        A module of any kind, maybe a recurrent one itself.

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
    for module in modules_of(model):
        parameters = module.parameters(recurse=False)
        computable = getattr(module, "nonlinearity", "tanh") in ("tanh", "relu")
        if type(module) in OURS and computable and all(p.is_cpu and p.dtype in DTYPES for p in parameters):
            module.__class__ = OURS[type(module)]
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: let torch compute the recurrent modules of a model again, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        `model`. Modules that were made as rnnfast's become torch's too.

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
    return model


def modules_of(model: Any) -> list[Any]:
    """Return a model's modules, itself the first."""
    if not isinstance(model, torch.nn.Module):
        msg = f"model: expected a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    return list(model.modules())
