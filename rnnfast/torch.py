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
from itertools import repeat
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
STEPS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


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
        weights = map(_array, self.weights)
        directions = zip(weights, weights, *((weights, weights) if self.bias else (repeat(None), repeat(None))))
        return kernel(
            self.cell,
            _array(self.x),
            list(directions),
            _array(self.h0),
            _array(self.c0),
            batch_sizes=_array(self.batch_sizes),
            threads=torch.get_num_threads(),
            **options,
        )


def layer(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return y and the last h and c, None where the cell has none."""
    tensors = *call.weights, call.x, call.h0, call.c0
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.compiler.is_compiling() or type(call.x) not in (Tensor, torch.nn.Parameter) or not call.x.is_cpu:
        if call.batch_sizes is not None and call.h0 is None:  # the operator's results have its shape
            call = call._replace(h0=call.x.new_zeros(call.state_shape))
        y, h, c, *_ = forward_operator(*call, differentiable)
        return y, h, c if call.cell == "lstm" else None
    if not differentiable:
        return _tensors(*call.run(_core.inference))
    results: tuple[Tensor, Tensor, Tensor | None] = _Layer.apply(call, *tensors)
    return results


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    """A layer in eager mode, given a call and, to follow them, its tensors: the weights, x, h0 and c0."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        y, h, c, tape = call.run(_core.forward)
        gates, cells, _ = tape.memory
        y, h, c, gates, cells = _tensors(y, h, c, gates, cells)
        # Saved tensors own the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        ctx.save_for_backward(*tensors, call.batch_sizes, y, gates, cells)
        ctx.cell, ctx.bias, ctx.tape = call.cell, call.bias, weakref.ref(tape)
        ctx.set_materialize_grads(False)
        return y, h, c

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        *weights, x, h0, c0, batch_sizes, y, gates, cells = ctx.saved_tensors
        call = Call(ctx.cell, ctx.bias, x, h0, c0, batch_sizes, weights)
        if all(d is None for d in dlast):
            return (None,) * (4 + len(weights))
        if torch.is_grad_enabled():
            dx, dh0, dc0, dweights = differentiable_backward(call, dlast)
        else:
            tape = ctx.tape() or _filled_tape(call, y, gates, cells)
            dx, dh0, dc0, dweights = _backward(tape, dlast, ctx.needs_input_grad[-3])
        return None, *dweights, dx, None if h0 is None else dh0, None if c0 is None else dc0


Gradients = tuple[Tensor | None, Tensor, Tensor | None, Sequence[Tensor]]  # dx, dh0, dc0 and those of the weights


def _backward(tape: _core.Tape, dlast: Iterable[Tensor | None], need_dx: bool) -> Gradients:
    gradients = _core.backward(tape, *map(_array, dlast), need_dx=need_dx, threads=torch.get_num_threads())
    dweights = [torch.from_numpy(array) for direction in gradients[3] for array in direction if array is not None]
    return *_tensors(*gradients[:3]), dweights


def _filled_tape(call: Call, y: Tensor, gates: Tensor, cells: Tensor) -> _core.Tape:
    """Return the tape of a forward from the tensors that it has saved."""
    memory = _array(gates), _array(cells), _array(gates[:0])
    tape: _core.Tape = call.run(_core.forward, out=(_array(y.contiguous()), None, None), memory=memory)[3]
    return tape


def differentiable_backward(call: Call, dlast: Sequence[Tensor | None]) -> Gradients:
    """Return the gradients computed by torch's operators, so that they have gradients themselves."""
    D, B, H = call.state_shape
    zeros = call.x.new_zeros(D, B, H)
    states = [zeros if state is None else state for state in call[3:5]][: 2 if call.cell == "lstm" else 1]
    sizes = [B] * len(call.x) if call.batch_sizes is None else call.batch_sizes.tolist()

    def run(x: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """Return y and the last state of a forward."""
        of_directions, step = [], len(weights) // D
        for d in range(D):
            order = -1 if d else 1
            own = weights[d * step : (d + 1) * step]
            h, state = [], [part[d] for part in states]
            for x_t in x.flatten(0, -2).split(sizes)[::order]:
                n = len(x_t)  # of the longest sequences; the others' states wait, or are the last ones
                before = [part[:n] for part in state]
                after = STEPS[call.cell](x_t, before if len(before) == 2 else before[0], *own)
                after = after if isinstance(after, tuple) else (after,)
                state = [torch.cat((new, part[n:])) for new, part in zip(after, state, strict=True)]
                h.append(after[0])
            of_directions.append([torch.cat(h[::order]), *state])
        y, *last = zip(*of_directions, strict=True)
        return [torch.cat(y, -1).reshape(*x.shape[:-1], D * H), *map(torch.stack, last)]

    with torch.autocast("cpu", enabled=False):
        # Of weights that x was computed from, the part of the gradient that goes through x is not ours: torch.func
        # keeps to the arguments as they are here.
        last, pullback = torch.func.vjp(run, call.x, states, list(call.weights))
        dx, dstates, dweights = pullback(
            [torch.zeros_like(a) if d is None else d for a, d in zip(last, dlast, strict=False)]
        )
    return dx, *(*dstates, None)[:2], dweights


@contextmanager
def by_torch() -> Iterator[None]:
    """Keep torch from oneDNN, whose LSTM has first derivatives backwards alone."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy(force=True)  # of a CPU's tensor, its memory


def _tensors(*arrays: Any) -> Any:
    return [None if array is None else torch.from_numpy(array) for array in arrays]


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
    return tuple(call[2].new_empty(0) if t is None else t for t in _tensors(*results, *memory))


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


def prepared(weight: Tensor, x: Tensor, hx: Any, parts: int, shape: tuple[int, ...] | None) -> list[Tensor]:
    """Return x and the parts of its state as autocast hands them on; nothing where x, whose state has `shape`, or hx
    does not fit.
    """
    if weight.dtype not in DTYPES or weight.device.type not in ("cpu", "meta"):
        msg = (
            f"weight_ih: expected dtype float32 or float64 on the CPU, got {weight.dtype} on {weight.device}; "
            "rnnfast.torch.restore(model) leaves its modules to torch"
        )
        raise TypeError(msg)
    given = [x] if hx is None else [x, *hx] if parts == 2 else [x, hx]
    if torch.is_autocast_enabled("cpu"):
        given = [t.to(weight.dtype) if t.dtype in (torch.bfloat16, torch.float16) else t for t in given]
    kind = weight.dtype, weight.device
    fits = shape is not None and len(given) in (1, 1 + parts) and all(state.shape == shape for state in given[1:])
    return given if fits and all((t.dtype, t.device) == kind for t in given) else []


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
        parts, L, D = 1 + (self.mode == "LSTM"), self.num_layers, 1 + self.bidirectional
        given = prepared(weights[0], x, hx, parts, self._state_shape(x.shape, batch_sizes))
        if not given:
            return super().forward(input, hx)  # which says what is wrong

        unbatched = not packed and x.dim() == 2
        batch_first = self.batch_first and not packed and not unbatched
        x, *states = (t.unsqueeze(1) for t in given) if unbatched else given
        if batch_first:
            x = x.transpose(0, 1)
        if order is not None:
            states = [state.index_select(1, order) for state in states]
        last: list[Any] = []
        n = len(weights) // L
        for k in range(L):
            if k and self.training and self.dropout:
                x = torch.nn.functional.dropout(x, self.dropout)
            h0, c0 = (*(state if L == 1 else state[k * D : (k + 1) * D] for state in states), None, None)[:2]
            own = weights[k * n : (k + 1) * n]
            x, *state = layer(Call(MODES[self.mode], self.bias, x, h0, c0, batch_sizes, own))
            last.append(state[:parts])
        states = last[0] if L == 1 else [torch.cat(part) for part in zip(*last, strict=True)]

        if places is not None:
            states = [state.index_select(1, places) for state in states]
        if batch_first:
            x = x.transpose(0, 1)
        x, *states = (t.squeeze(1) for t in (x, *states)) if unbatched else (x, *states)
        return PackedSequence(x, *input[1:]) if packed else x, tuple(states) if parts == 2 else states[0]

    def _state_shape(self: Any, shape: tuple[int, ...], batch_sizes: Tensor | None) -> tuple[int, ...] | None:
        """Return the shape of a state that goes with x, None if there is none."""
        size, H = self.num_layers * (1 + self.bidirectional), self.hidden_size
        if shape[-1:] != (self.input_size,):
            return None
        if batch_sizes is not None:
            return (size, int(batch_sizes[0]), H) if len(shape) == 2 else None
        if len(shape) != 3:
            return (size, H) if len(shape) == 2 and shape[0] else None
        T, B = shape[1::-1] if self.batch_first else shape[:2]
        return (size, B, H) if T else None


class _Cell(_Scriptable):
    """The forward of LSTMCell, GRUCell and RNNCell."""

    cell: str

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        if left_to_torch():
            return super().forward(input, hx)
        weights = [w for w in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh) if w is not None]
        parts, I, H = 1 + (self.cell == "lstm"), self.input_size, self.hidden_size
        batch, features = input.shape[:-1], input.shape[-1:]
        shape = (*batch, H) if features == (I,) and len(batch) < 2 and self.cell in STEPS else None
        given = prepared(weights[0], input, hx, parts, shape)
        if not given:
            return super().forward(input, hx)  # which says what is wrong
        x, *states = given
        rows = 1, *(batch or (1,))
        h0, c0 = (*(state.reshape(*rows, H) for state in states), None, None)[:2]
        _, *states = layer(Call(self.cell, self.bias, x.reshape(*rows, I), h0, c0, None, weights))
        states = [state.reshape(shape) for state in states[:parts]]
        return tuple(states) if parts == 2 else states[0]


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
        parameters = module.parameters(recurse=False)
        computable = not getattr(module, "proj_size", 0) and getattr(module, "nonlinearity", "tanh") in ("tanh", "relu")
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
