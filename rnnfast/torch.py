"""The recurrent modules of `torch.nn` on rnnfast's kernels, forward and backward, without copying contiguous tensors.

`accelerate` changes the modules of a model in place. The classes are those of `torch.nn` with a forward of their own:
constructors, parameters, errors, ``state_dict``, ``repr`` and ``isinstance`` are torch's.

What is computed here are float32 and float64 tensors on the CPU. Left to torch's operators, correct though slower, are
second derivatives and calls under `torch.func`, forward-mode differentiation and ``torch.jit.trace``.

Importing this module sets ``torch._dynamo.config.allow_rnn``: without it `torch.compile` stops at every subclass of
torch's recurrent modules.

Examples
--------
>>> import torch
>>> import rnnfast.torch
>>> model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(28, 64), "out": torch.nn.Linear(64, 10)})
>>> model = rnnfast.torch.accelerate(model)
>>> y, h = model["rnn"](torch.zeros(50, 32, 28))
>>> model["out"](y).sum().backward()
>>> isinstance(model["rnn"], rnnfast.torch.GRU), isinstance(model["rnn"], torch.nn.GRU)
(True, True)
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch._dynamo.config
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from . import _core

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "restore"]

Model = TypeVar("Model")

torch._dynamo.config.allow_rnn = True

DTYPES = torch.float32, torch.float64
MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}  # torch's names
OPERATORS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


# One layer in all its directions


class Call(NamedTuple):
    """The arguments of a forward."""

    cell: str
    bias: bool
    x: Tensor  # [T,B,I], or [N,I] with batch_sizes
    h0: Tensor | None  # [D,B,H]; None: zero
    c0: Tensor | None
    batch_sizes: Tensor | None  # [T]
    weights: Sequence[Tensor]  # w_ih, w_hh and, with bias, b_ih, b_hh of each direction

    @property
    def state_shape(self) -> tuple[Any, Any, Any]:
        """D, B, H; B is that of h0 where there is one."""
        sizes = self.x.shape[1] if self.batch_sizes is None else self.batch_sizes[0]
        B = int(sizes) if self.h0 is None else self.h0.shape[1]
        return len(self.weights) // (4 if self.bias else 2), B, self.weights[1].shape[1]

    def run(self, kernel: Callable[..., Any], **options: Any) -> Any:
        """Return what one of `_core.forward` and `_core.inference` does."""
        step = 4 if self.bias else 2
        weights = [_array(w) for w in self.weights]
        return kernel(
            self.cell,
            _array(self.x),
            [(*weights[k : k + step], None, None)[:4] for k in range(0, len(weights), step)],
            _array(self.h0),
            _array(self.c0),
            batch_sizes=_array(self.batch_sizes),
            threads=torch.get_num_threads(),
            **options,
        )


def layer(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return y and the last h and c, None where the cell has none."""
    tensors = call.x, call.h0, call.c0, *call.weights
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.compiler.is_compiling() or type(call.x) not in (Tensor, torch.nn.Parameter) or not call.x.is_cpu:
        if call.batch_sizes is not None and call.h0 is None:  # the operator's results have its shape
            call = call._replace(h0=call.x.new_zeros(call.state_shape))
        y, h, c, *_ = forward_operator(*call, differentiable)
        return y, h, c if call.cell == "lstm" else None
    if not differentiable:
        return _tensors(call.run(_core.inference))
    results: tuple[Tensor, Tensor, Tensor | None] = _Layer.apply(*call[:6], *call.weights)
    return results


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    """A layer in eager mode."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        call = Call(*arguments[:6], arguments[6:])
        *results, tape = call.run(_core.forward)
        y, h, c = _tensors(results)
        # Saved tensors own the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        gates, cells, _ = _tensors(tape.memory)
        ctx.save_for_backward(*call[2:6], y, gates, cells, *call.weights)
        ctx.cell, ctx.bias, ctx.tape = call.cell, call.bias, weakref.ref(tape)
        ctx.set_materialize_grads(False)
        return y, h, c

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h0, c0, batch_sizes, y, gates, cells, *weights = ctx.saved_tensors
        call = Call(ctx.cell, ctx.bias, x, h0, c0, batch_sizes, weights)
        if all(d is None for d in dlast):
            return (None,) * (6 + len(weights))
        if torch.is_grad_enabled():
            dx, dh0, dc0, dweights = differentiable_backward(call, dlast)
        else:
            tape = ctx.tape() or _filled_tape(call, y, gates, cells)
            dx, dh0, dc0, dweights = _backward(tape, dlast, ctx.needs_input_grad[2])
        return None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, None, *dweights


Gradients = tuple[Tensor | None, Tensor, Tensor | None, Sequence[Tensor]]  # dx, dh0, dc0 and those of the weights


def _backward(tape: _core.Tape, dlast: Iterable[Tensor | None], need_dx: bool) -> Gradients:
    *gradients, grads = _core.backward(tape, *map(_array, dlast), need_dx=need_dx, threads=torch.get_num_threads())
    dweights = [torch.from_numpy(array) for direction in grads for array in direction if array is not None]
    return *_tensors(gradients), dweights


def _filled_tape(call: Call, y: Tensor, gates: Tensor, cells: Tensor) -> _core.Tape:
    """Return the tape of a forward from the tensors that it has saved."""
    memory = _array(gates), _array(cells), _array(gates[:0])
    tape: _core.Tape = call.run(_core.forward, out=(_array(y.contiguous()), None, None), memory=memory)[3]
    return tape


def differentiable_backward(call: Call, dlast: Sequence[Tensor | None]) -> Gradients:
    """Return the gradients computed by torch's operators, so that they have gradients themselves."""
    zeros = call.x.new_zeros(call.state_shape)
    states = [zeros if state is None else state for state in call[3:5]][: 2 if call.cell == "lstm" else 1]

    def run(x: Tensor, states: list[Tensor], weights: list[Tensor]) -> Any:
        state = tuple(states) if call.cell == "lstm" else states[0]
        rows = (x,) if call.batch_sizes is None else (x, call.batch_sizes)
        options = call.bias, 1, 0.0, False, call.state_shape[0] == 2  # layers, dropout, training, bidirectional
        batch_first = (False,) if call.batch_sizes is None else ()
        return OPERATORS[call.cell](*rows, state, weights, *options, *batch_first)

    with torch.autocast("cpu", enabled=False), by_torch():
        last, pullback = torch.func.vjp(run, call.x, states, list(call.weights))
        dx, dstates, dweights = pullback(
            tuple(torch.zeros_like(a) if d is None else d for a, d in zip(last, dlast, strict=False))
        )
    return dx, *(*dstates, None)[:2], dweights


@contextmanager
def by_torch() -> Iterator[None]:
    """Keep torch from oneDNN, whose LSTM has no second derivatives."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy(force=True)  # of a CPU's tensor, its memory


def _tensors(arrays: Iterable[Any]) -> Any:
    return tuple(None if array is None else torch.from_numpy(array) for array in arrays)


# The same as operators, for torch.compile and whatever else looks at operators alone

CALL = "str cell, bool bias, Tensor x, Tensor? h0, Tensor? c0, Tensor? batch_sizes, Tensor[] weights"


def operator(name: str, schema: str) -> Any:
    """Return a decorator that makes an operator of a function."""
    return torch.library.custom_op(f"rnnfast::{name}", mutates_args=(), device_types="cpu", schema=schema)


@operator("forward", f"({CALL}, bool training) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def forward_operator(*arguments: Any) -> tuple[Tensor, ...]:
    """Return y, h, c and what backward needs, gates and c of every step; empty where there is nothing."""
    *call, training = arguments
    *results, tape = (*Call(*call).run(_core.forward if training else _core.inference), None)[:4]
    memory = (None, None) if tape is None else tape.memory[:2]
    return tuple(call[2].new_empty(0) if t is None else t for t in _tensors((*results, *memory)))


@forward_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    call, training = Call(*arguments[:7]), arguments[7]
    x, (D, B, H) = call.x, call.state_shape
    rows = x.shape[0] * x.shape[1] if call.batch_sizes is None else x.shape[0]
    gates, cells, _ = _core.tape_row(call.cell, int(H), str(x.dtype).removeprefix("torch."))
    y, h, nothing = x.new_empty(*x.shape[:-1], D * H), x.new_empty(D, B, H), x.new_empty(0)
    c = x.new_empty(D, B, H) if call.cell == "lstm" else nothing
    memory = (x.new_empty(D * rows * n) if training else x.new_empty(0) for n in (gates, cells))
    return y, h, c, *memory


@operator("backward", f"({CALL}, Tensor y, Tensor gates, Tensor cells, Tensor[] dlast, bool need_dx) -> Tensor[]")
def backward_operator(*arguments: Any) -> list[Tensor]:
    """Return dx, dh0, dc0 and the gradients of the weights; empty where there is nothing."""
    call, (y, gates, cells, dlast, need_dx) = Call(*arguments[:7]), arguments[7:]
    *gradients, dweights = _backward(_filled_tape(call, y, gates, cells), dlast, need_dx)
    return [call.x.new_empty(0) if t is None else t for t in gradients] + list(dweights)


@backward_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    call, need_dx = Call(*arguments[:7]), arguments[11]
    shapes = call.x.shape if need_dx else (0,), call.state_shape, call.state_shape if call.cell == "lstm" else (0,)
    return [call.x.new_empty(shape) for shape in (*shapes, *(w.shape for w in call.weights))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, bias, *tensors, weights, _ = inputs
    y, _, c, *memory = output
    ctx.cell, ctx.bias = cell, bias
    ctx.save_for_backward(*tensors, y, *memory, *weights)
    ctx.mark_non_differentiable(*memory, *(() if cell == "lstm" else (c,)))


def _operator_backward(ctx: Any, *dlast: Tensor) -> tuple[Any, ...]:
    *tensors, y, gates, cells = ctx.saved_tensors[:7]
    call = Call(ctx.cell, ctx.bias, *tensors, ctx.saved_tensors[7:])
    last = dlast[: 3 if call.cell == "lstm" else 2]
    if torch.is_grad_enabled():
        dx, dh0, dc0, dweights = differentiable_backward(call, last)
    else:
        need_dx = ctx.needs_input_grad[2]
        dx, dh0, dc0, *dweights = backward_operator(*call, y, gates, cells, last, need_dx)
        dx = dx if need_dx else None
    return None, None, dx, None if call.h0 is None else dh0, None if call.c0 is None else dc0, None, dweights, None


forward_operator.register_autograd(_operator_backward, setup_context=_save)


# The modules


def left_to_torch() -> bool:
    """Return whether something follows a call that sees torch's own operators alone."""
    if torch.compiler.is_compiling():
        return False
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return bool(transformed or torch.jit.is_tracing())


def prepared(weight: Tensor, x: Tensor, states: Iterable[Any]) -> list[Any]:
    """Return x and the states as autocast hands them to the kernels, where these can take the weights at all."""
    if weight.dtype not in DTYPES or weight.device.type not in ("cpu", "meta"):
        msg = (
            f"weight_ih: expected dtype float32 or float64 on the CPU, got {weight.dtype} on {weight.device}; "
            "rnnfast.torch.restore(model) leaves the rest to torch"
        )
        raise TypeError(msg)
    given = [x, *states]
    if torch.is_autocast_enabled("cpu"):
        given = [t.to(weight.dtype) if t.dtype in (torch.bfloat16, torch.float16) else t for t in given]
    return given


def same_kind(weight: Tensor, *tensors: Tensor) -> bool:
    """Return whether tensors have the dtype and the device of the weights."""
    return all(t.dtype == weight.dtype and t.device == weight.device for t in tensors)


class _Scriptable:
    def __prepare_scriptable__(self) -> Any:
        """Return what torch.jit.script is to compile: torch's own module, with the same parameters."""
        return restore(copy.copy(self))


class _Recurrent(_Scriptable):
    """The forward of LSTM, GRU and RNN."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        if left_to_torch():
            with by_torch():
                return super().forward(input, hx)
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, places = input if packed else (input, None, None, None)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        x, *states = prepared(weights[0], x, () if hx is None else hx if self.mode == "LSTM" else (hx,))

        L, D = self.num_layers, 1 + self.bidirectional
        batched, batch_first = packed or x.dim() == 3, self.batch_first and not packed and x.dim() == 3
        T, B = x.shape[1::-1] if batch_first else (*x.shape, 0, 0)[:2]
        rows = (int(batch_sizes[0]),) if packed else (B,) if batched else ()
        if not (
            (x.dim() == 2 if packed else x.dim() in (2, 3) and T > 0)
            and x.shape[-1] == self.input_size
            and same_kind(weights[0], x, *states)
            and len(states) in (0, 1 + (self.mode == "LSTM"))
            and all(state.shape == (L * D, *rows, self.hidden_size) for state in states)
        ):
            return super().forward(input, hx)  # which says what is wrong

        if order is not None:
            states = [state.index_select(1, order) for state in states]
        if not batched:
            x, states = x.unsqueeze(1), [state.unsqueeze(1) for state in states]
        if batch_first:
            x = x.transpose(0, 1)
        last, n = [], len(weights) // L
        for k in range(L):
            if k and self.training and self.dropout:
                x = torch.nn.functional.dropout(x, self.dropout)
            first = states if L == 1 else [state[k * D : (k + 1) * D] for state in states]
            h0, c0 = (*first, None, None)[:2]
            own = weights[k * n : (k + 1) * n]
            x, *state = layer(Call(MODES[self.mode], self.bias, x, h0, c0, batch_sizes, own))
            last.append(state)
        hidden = [parts[0] if L == 1 else torch.cat(parts) for parts in zip(*last, strict=True) if parts[0] is not None]

        if batch_first:
            x = x.transpose(0, 1)
        if not batched:
            x, hidden = x.squeeze(1), [state.squeeze(1) for state in hidden]
        if places is not None:
            hidden = [state.index_select(1, places) for state in hidden]
        y = PackedSequence(x, batch_sizes, order, places) if packed else x
        return y, tuple(hidden) if self.mode == "LSTM" else hidden[0]


class _Cell(_Scriptable):
    """The forward of LSTMCell, GRUCell and RNNCell."""

    cell: str

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        if left_to_torch():
            return super().forward(input, hx)
        weights = [w for w in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh) if w is not None]
        x, *states = prepared(weights[0], input, () if hx is None else hx if self.cell == "lstm" else (hx,))
        shape = (*x.shape[:-1], self.hidden_size)
        if not (
            x.dim() in (1, 2)
            and x.shape[-1] == self.input_size
            and same_kind(weights[0], x, *states)
            and len(states) in (0, 1 + (self.cell == "lstm"))
            and all(state.shape == shape for state in states)
            and self.cell in OPERATORS
        ):
            return super().forward(input, hx)  # which says what is wrong
        B = x.shape[0] if x.dim() == 2 else 1
        x = x.reshape(1, B, self.input_size)
        h0, c0 = (*(state.reshape(1, B, self.hidden_size) for state in states), None, None)[:2]
        _, h, c = layer(Call(self.cell, self.bias, x, h0, c0, None, weights))
        return h.reshape(shape) if c is None else (h.reshape(shape), c.reshape(shape))


class LSTM(_Recurrent, torch.nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` on rnnfast's kernels.

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.nn.LSTM`, without `proj_size`.

    Raises
    ------
    ValueError
        If `proj_size` is not 0.
    TypeError
        In forward, if the parameters are not float32 or float64 on the CPU. All other errors are torch's.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> lstm = rnnfast.torch.LSTM(28, 64, num_layers=2)
    >>> y, (h, c) = lstm(torch.zeros(50, 32, 28))
    >>> y.shape, h.shape
    (torch.Size([50, 32, 64]), torch.Size([2, 32, 64]))
    >>> lstm
    LSTM(28, 64, num_layers=2)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.proj_size:
            msg = f"proj_size: expected 0, as torch.nn.LSTM alone has projections, got {self.proj_size}"
            raise ValueError(msg)


class GRU(_Recurrent, torch.nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` on rnnfast's kernels. Takes and raises what `LSTM` does."""


class RNN(_Recurrent, torch.nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN` on rnnfast's kernels. Takes and raises what `LSTM` does, and `nonlinearity`."""


class LSTMCell(_Cell, torch.nn.LSTMCell):  # type: ignore[misc]
    """`torch.nn.LSTMCell` on rnnfast's kernels.

    Raises
    ------
    TypeError
        In forward, if the parameters are not float32 or float64 on the CPU. All other errors are torch's.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> cell = rnnfast.torch.LSTMCell(3, 4)
    >>> h, c = cell(torch.zeros(2, 3))
    >>> h, c = cell(torch.zeros(2, 3), (h, c))
    >>> h.shape
    torch.Size([2, 4])
    """

    cell = "lstm"


class GRUCell(_Cell, torch.nn.GRUCell):  # type: ignore[misc]
    """`torch.nn.GRUCell` on rnnfast's kernels. Raises what `LSTMCell` does."""

    cell = "gru"


class RNNCell(_Cell, torch.nn.RNNCell):  # type: ignore[misc]
    """`torch.nn.RNNCell` on rnnfast's kernels. Raises what `LSTMCell` does."""

    @property
    def cell(self) -> str:
        """The kernels' name of it."""
        return f"rnn_{self.nonlinearity}"


# Modules that are there already

OURS: dict[type, type] = {
    getattr(torch.nn, kind.__name__): kind for kind in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def accelerate(model: Model) -> Model:
    """Let rnnfast compute the recurrent modules of a model, in place.

    Each module stays the object that it is, with its parameters, buffers, hooks and mode: only its class changes, from
    one of torch.nn to the one of the same name here. Left as they are: modules whose parameters are not float32 or
    float64 on the CPU, those with projections, and subclasses, which may have a forward of their own.

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
    See `rnnfast.torch`.
    """
    for module in modules_of(model):
        parameters = list(module.parameters(recurse=False))
        computable = all(p.is_cpu and p.dtype in DTYPES and p.dtype == parameters[0].dtype for p in parameters)
        if type(module) in OURS and computable and not getattr(module, "proj_size", 0):
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
