"""How far results may lie from torch's, and how both are taken."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
PackedSequence = torch.nn.utils.rnn.PackedSequence

# Relative to the largest number of an array. Both round, torch's float32 by up to 7.5e-7 on large layers; a model adds
# readouts and the rounding of its losses. An error of the arithmetic is far above either.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def tensors(value: Any) -> list[Any]:
    """Return the tensors of nested tuples, of a packed sequence its data."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [value.data] if isinstance(value, PackedSequence) else [t for part in value for t in tensors(part)]


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return nested tuples with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    return tuple(mapped(change, part) for part in value)


def assert_agree(actual: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Assert that the same tensors came, of the same shapes and dtypes, and that each is within the tolerance."""
    assert actual.keys() == expected.keys()
    for name, b in expected.items():
        a = actual[name]
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), name
        error, scale = ((t.detach().abs().max() if t.numel() else torch.zeros(())) for t in (a - b, b))
        assert error <= TOLERANCE[b.dtype] * scale, f"{name}: {error} of {scale}"


def results(module: Any, inputs: tuple[Any, ...], layout: Callable[[Any], Any] = lambda t: t) -> dict[str, Any]:
    """Return the outputs, and the gradients of inputs and parameters for a loss that is the same in each call.

    All that the module is given and holds has the layout in memory that `layout` gives it.
    """
    module, inputs = copy.deepcopy(module), mapped(lambda t: layout(t.detach().clone()).requires_grad_(), inputs)
    for parameter in module.parameters():
        parameter.data = layout(parameter.data)
    parameters = dict(module.named_parameters())
    outputs = tensors(module(*inputs))
    douts = [layout(torch.linspace(-1, 2, t.numel(), dtype=t.dtype).reshape(t.shape).cos()) for t in outputs]
    grads = torch.autograd.grad(outputs, [*tensors(inputs), *parameters.values()], douts)
    names = [f"d(input {k})" for k in range(len(tensors(inputs)))] + [f"d({name})" for name in parameters]
    return {f"output {k}": t for k, t in enumerate(outputs)} | dict(zip(names, grads, strict=True))
