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
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from .. import _core
from .._module import explain_missing

try:
    import torch
    import torch._dynamo.config
    from torch import Tensor
    from torch._C._functorch import is_legacy_batchedtensor
    from torch.autograd import forward_ad
    from torch.nn.utils.rnn import PackedSequence
except ModuleNotFoundError as error:
    explain_missing("torch", error)
    raise

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "restore"]

Model = TypeVar("Model")

torch._dynamo.config.allow_rnn = True

DTYPES = torch.float32, torch.float64
MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}  # torch's names
CELL_WEIGHTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
STEPS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


# One layer in all its directions


class Call(NamedTuple):
    """The arguments of a forward, of a layer or of a cell's one step."""

    cell: str
    bias: bool
    x: Tensor  # [T,B,I], or [N,I] with batch_sizes; [B,I] of a step
    h0: Tensor | None  # [D,B,H], or [B,H] of a step; None: zero
    c0: Tensor | None
    batch_sizes: Tensor | None  # [T]
    weights: Sequence[Tensor]  # w_ih, w_hh and, with bias, b_ih, b_hh of each direction

    @property
    def is_step(self) -> bool:
        """Whether x is the input of one step."""
        return self.batch_sizes is None and self.x.dim() == 2

    @property
    def state_shape(self) -> tuple[Any, Any, Any]:
        """D, B, H of a layer; B is that of h0 where there is one."""
        if self.h0 is not None:
            B = self.h0.shape[1]
        else:
            B = self.x.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])
        return len(self.weights) // (4 if self.bias else 2), B, self.weights[1].shape[1]

    def as_layer(self) -> "Call":
        """Return a step as a layer's call."""
        x, h0, c0 = each(itemgetter(None), self[2:5])
        return self._replace(x=x, h0=h0, c0=c0)

    def run(self, kernel: Callable[..., Any], **options: Any) -> Any:
        """Return what one of `_core.forward` and `_core.inference` does."""
        step, n = self.is_step, 4 if self.bias else 2
        weights = [w.numpy(force=True) for w in self.weights]
        return kernel(
            self.cell,
            _array(self.x, step),
            [(*weights[k : k + n], None, None)[:4] for k in range(0, len(weights), n)],
            _array(self.h0, step),
            _array(self.c0, step),
            batch_sizes=_array(self.batch_sizes),
            threads=torch.get_num_threads(),
            **options,
        )


def layer(call: Call) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return y, None of a step, and the last h and c, None where the cell has none."""
    tensors = *call.weights, call.x, call.h0, call.c0
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if is_watched() or type(call.x) not in (Tensor, torch.nn.Parameter) or not call.x.is_cpu:
        if call.is_step:
            _, h, c = layer(call.as_layer())
            return None, h[0], None if c is None else c[0]
        if call.batch_sizes is not None and call.h0 is None:  # the operator's results have its shape
            call = call._replace(h0=call.x.new_zeros(call.state_shape))
        y, h, c, *_ = forward_operator(*call, differentiable)
        return y, h, c if call.cell == "lstm" else None
    if differentiable:
        y, h, c = _apply(call, *tensors)
        return y, h, c
    y, *last = call.run(_core.inference)
    h, c = _tensors(last, call.is_step)
    return None if call.is_step else torch.from_numpy(y), h, c


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    """A call in eager mode, given with its tensors, which autograd follows: the weights, x, h0 and c0."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor | None]:
        array, *last, tape = call.run(_core.forward)
        y, token = torch.from_numpy(array), torch.from_numpy(tape.memory[0])
        # A saved tensor owns the tape: it goes with the graph, or where hooks on saved tensors let go of it.
        ctx.save_for_backward(*tensors, call.batch_sizes, token)
        ctx.cell, ctx.bias, ctx.tape = call.cell, call.bias, weakref.ref(tape)
        ctx.addresses, ctx.y = _addresses(tensors), y.detach()  # which is told of changes of y in place
        ctx.set_materialize_grads(False)
        step = call.is_step
        return None if step else y, *_tensors(last, step)

    @staticmethod
    def backward(ctx: Any, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        *weights, x, h0, c0, batch_sizes, _ = ctx.saved_tensors
        if all(d is None for d in dlast):
            return (None,) * (4 + len(weights))
        call = Call(ctx.cell, ctx.bias, x, h0, c0, batch_sizes, weights)
        if torch.is_grad_enabled() or any(d is not None and is_legacy_batchedtensor(d) for d in dlast):
            dx, dh0, dc0, dweights = differentiable_backward(call, dlast)
        else:
            tape = ctx.tape()
            if tape is None or ctx.y._version or ctx.addresses != _addresses((*weights, x, h0, c0)):
                *_, tape = call.run(_core.forward)
            dx, dh0, dc0, dweights = _backward(tape, dlast, ctx.needs_input_grad[-3], call.is_step)
        return None, *dweights, dx, None if h0 is None else dh0, None if c0 is None else dc0


def _addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Return where tensors are: hooks may give others back, which are not those that a tape refers to."""
    return [0 if t is None else t.data_ptr() for t in tensors]


# What Function.apply comes to where no transform of torch.func is at work, and none gets here: 4 µs of 90 for a call.
_apply = super(torch.autograd.Function, _Layer).apply

Gradients = tuple[Tensor | None, Tensor, Tensor | None, Sequence[Tensor]]  # dx, dh0, dc0 and those of the weights


def _backward(tape: _core.Tape, dlast: Iterable[Tensor | None], need_dx: bool, step: bool = False) -> Gradients:
    dy, dh, dc = (*(_array(d, step) for d in dlast), None)[:3]
    *gradients, grads = _core.backward(tape, dy, dh, dc, need_dx, threads=torch.get_num_threads())
    dx, dh0, dc0 = _tensors(gradients, step)
    return dx, dh0, dc0, [torch.from_numpy(g) for direction in grads for g in direction if g is not None]


def _filled_tape(call: Call, y: Tensor, gates: Tensor, cells: Tensor) -> _core.Tape:
    """Return the tape of a forward from the tensors that it has saved."""
    memory = _array(gates), _array(cells), _array(gates[:0])
    tape: _core.Tape = call.run(_core.forward, out=(_array(y.contiguous()), None, None), memory=memory)[3]
    return tape


def differentiable_backward(call: Call, dlast: Sequence[Tensor | None]) -> Gradients:
    """Return the gradients computed by torch's operators, so that they have gradients themselves."""
    if call.is_step:
        *gradients, dweights = differentiable_backward(call.as_layer(), each(itemgetter(None), dlast))
        dx, dh0, dc0 = each(itemgetter(0), gradients)
        return dx, dh0, dc0, dweights
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

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Views: where a weight is what x was computed from, the part of its gradient that goes through x is not ours.
        given = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (call.x, *states, *call.weights)
        ]
        x, of_states, weights = given[0], given[1 : 1 + len(states)], given[1 + len(states) :]
        wanted = [(out, d) for out, d in zip(run(x, of_states, weights), dlast, strict=False) if d is not None]
        outputs, dlast = zip(*wanted, strict=True)
        dx, *rest = torch.autograd.grad(outputs, given, dlast, create_graph=True, materialize_grads=True)
    dstates, dweights = rest[: len(states)], rest[len(states) :]
    return dx, *(*dstates, None)[:2], dweights


class _WithoutOneDNN:
    """Keeps torch from oneDNN, whose LSTM has first derivatives backwards alone, while any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enabled = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.enabled, which can be locked
                torch._C._set_mkldnn_enabled(False)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch._C._set_mkldnn_enabled(self._enabled)


without_onednn = _WithoutOneDNN()


def _array(tensor: Tensor | None, step: bool = False) -> Any:
    """Return the memory of a CPU tensor as an array; what belongs to a step gets an axis, of time or of directions."""
    if tensor is None:
        return None
    array = tensor.numpy(force=True)
    return array[None] if step else array


def _tensors(arrays: Iterable[Any], step: bool = False) -> list[Any]:
    """Return the reverse."""
    return [None if a is None else torch.from_numpy(a[0] if step else a) for a in arrays]


# The same as operators, for torch.compile and whatever else looks at operators alone

CALL = "str cell, bool bias, Tensor x, Tensor? h0, Tensor? c0, Tensor? batch_sizes, Tensor[] weights"


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of a function."""
    decorator: Callable[[Callable[..., Any]], Any] = torch.library.custom_op(
        f"rnnfast::{name}", mutates_args=(), device_types="cpu", schema=schema
    )
    return decorator


@operator("forward", f"({CALL}, bool training) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def forward_operator(*arguments: Any) -> tuple[Tensor, ...]:
    """Return y, h, c and what backward needs, gates and c of every step; empty where there is nothing."""
    *call, training = arguments
    *results, tape = (*Call(*call).run(_core.forward if training else _core.inference), None)[:4]
    memory = (None, None) if tape is None else tape.memory[:2]
    return tuple(call[2].new_empty(0) if t is None else t for t in _tensors((*results, *memory)))


def _forward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
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


def _backward_shapes(*arguments: Any) -> list[Tensor]:
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
    x, h0, c0, batch_sizes, y, gates, cells, *weights = ctx.saved_tensors
    call = Call(ctx.cell, ctx.bias, x, h0, c0, batch_sizes, weights)
    last = dlast[: 3 if call.cell == "lstm" else 2]
    if torch.is_grad_enabled():
        dx, dh0, dc0, dweights = differentiable_backward(call, last)
    else:
        need_dx = ctx.needs_input_grad[2]
        dx, dh0, dc0, *dweights = backward_operator(*call, y, gates, cells, last, need_dx)
        dx = dx if need_dx else None
    return None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, None, dweights, None


forward_operator.register_fake(_forward_shapes)
backward_operator.register_fake(_backward_shapes)
forward_operator.register_autograd(_operator_backward, setup_context=_save)


# The modules


def is_watched() -> bool:
    """Return whether something follows a call that sees operators alone: a compiler, or a dispatch mode."""
    return torch.compiler.is_compiling() or bool(torch._C._len_torch_dispatch_stack())


def left_to_torch() -> bool:
    """Return whether something follows a call that sees torch's own operators alone."""
    if torch.compiler.is_compiling():
        return False
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return bool(transformed or torch.jit.is_tracing())


def prepared(weight: Tensor, x: Tensor, hx: Any, parts: int, shape: tuple[int, ...] | None) -> list[Any] | None:
    """Return x, h0 and c0 as autocast hands them on, or None if they do not fit; a state that is not there is None.

    `shape` is that of the state that goes with x, None if x is at fault.
    """
    if weight.dtype not in DTYPES or not (weight.is_cpu or weight.is_meta):
        msg = (
            f"weight_ih: expected dtype float32 or float64 on the CPU, got {weight.dtype} on {weight.device}; "
            "rnnfast.torch.restore(model) leaves its modules to torch"
        )
        raise TypeError(msg)
    given = [x] if hx is None else [x, *hx] if parts == 2 else [x, hx]
    if torch.is_autocast_enabled("cpu"):
        given = [t.to(weight.dtype) if t.dtype in (torch.bfloat16, torch.float16) else t for t in given]
    if shape is None or len(given) not in (1, 1 + parts) or (parts == 2 and isinstance(hx, Tensor)):
        return None
    for k, t in enumerate(given):
        if t.dtype != weight.dtype or t.device != weight.device or (k and t.shape != shape):
            return None
    return [*given, None, None][:3]


def each(change: Callable[[Tensor], Tensor], tensors: Iterable[Any]) -> list[Any]:
    """Return the tensors that are there changed."""
    return [t if t is None else change(t) for t in tensors]


def weights_of(module: Any, names: Iterable[str]) -> list[Tensor]:
    """Return parameters, or what stands in their place: of parametrised or pruned modules a tensor."""
    stored = module._parameters  # where an attribute is looked for last
    return [stored[name] if name in stored else getattr(module, name) for name in names]


class _Scriptable:
    def __prepare_scriptable__(self) -> Any:
        """Return what torch.jit.script is to compile: torch's own module, with the same parameters."""
        return restore(copy.copy(self))


class _Recurrent(_Scriptable):
    """The forward of LSTM, GRU and RNN."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        if left_to_torch() or not isinstance(input, Tensor | PackedSequence):
            with without_onednn if self.mode == "LSTM" else nullcontext():
                return super().forward(input, hx)  # type: ignore[misc]
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, places = input if packed else (input, None, None, None)
        weights = weights_of(self, self._flat_weights_names)
        parts, L, D = 1 + (self.mode == "LSTM"), self.num_layers, 1 + self.bidirectional
        given = prepared(weights[0], x, hx, parts, self._state_shape(x.shape, batch_sizes))
        if given is None:
            return super().forward(input, hx)  # type: ignore[misc] # which says what is wrong

        unbatched = not packed and x.dim() == 2
        batch_first = self.batch_first and not packed and not unbatched
        x, *first = each(lambda t: t.unsqueeze(1), given) if unbatched else given
        if batch_first:
            x = x.transpose(0, 1)
        if order is not None:
            first = each(lambda state: state.index_select(1, order), first)
        last: list[Any] = []
        n = len(weights) // L
        for k in range(L):
            if k and self.training and self.dropout:
                x = torch.nn.functional.dropout(x, self.dropout)
            h0, c0 = first if L == 1 else each(itemgetter(slice(k * D, (k + 1) * D)), first)
            own = weights[k * n : (k + 1) * n]
            x, *state = layer(Call(MODES[self.mode], self.bias, x, h0, c0, batch_sizes, own))
            last.append(state[:parts])
        states = last[0] if L == 1 else [torch.cat(part) for part in zip(*last, strict=True)]

        if places is not None:
            states = [state.index_select(1, places) for state in states]
        if batch_first:
            x = x.transpose(0, 1)
        if unbatched:
            x, *states = (t.squeeze(1) for t in (x, *states))
        return PackedSequence(x, *input[1:]) if packed else x, tuple(states) if parts == 2 else states[0]

    def _state_shape(self: Any, shape: tuple[int, ...], batch_sizes: Tensor | None) -> tuple[int, ...] | None:
        """Return the shape of a state that goes with x, None if there is none."""
        size, H = self.num_layers * (1 + self.bidirectional), self.hidden_size
        axes = len(shape)
        if axes not in (2, 3) or shape[-1] != self.input_size or (axes == 3 and batch_sizes is not None):
            return None
        if batch_sizes is not None:
            return size, int(batch_sizes[0]), H
        T, B = (shape[1], shape[0]) if self.batch_first and axes == 3 else (shape[0], shape[1])
        return None if T == 0 else (size, B, H) if axes == 3 else (size, H)


class _Cell(_Scriptable):
    """The forward of LSTMCell, GRUCell and RNNCell."""

    @property
    def cell(self: Any) -> str:
        """The kernels' name of it."""
        if isinstance(self, torch.nn.RNNCell):
            return f"rnn_{self.nonlinearity}"
        return "lstm" if isinstance(self, torch.nn.LSTMCell) else "gru"

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        if left_to_torch():
            return super().forward(input, hx)  # type: ignore[misc]
        weights = weights_of(self, CELL_WEIGHTS if self.bias else CELL_WEIGHTS[:2])
        parts, shape = 1 + (self.cell == "lstm"), (*input.shape[:-1], self.hidden_size)
        fits = len(shape) in (1, 2) and input.shape[-1:] == (self.input_size,) and self.cell in STEPS
        given = prepared(weights[0], input, hx, parts, shape if fits else None)
        if given is None:
            return super().forward(input, hx)  # type: ignore[misc] # which says what is wrong
        x, h0, c0 = given if len(shape) == 2 else each(lambda t: t.unsqueeze(0), given)
        _, *states = layer(Call(self.cell, self.bias, x, h0, c0, None, weights))
        if len(shape) == 1:
            states = each(lambda state: state.squeeze(0), states)
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


class GRUCell(_Cell, torch.nn.GRUCell):  # type: ignore[misc]
    """`torch.nn.GRUCell` on rnnfast's kernels. Raises what `LSTMCell` does."""


class RNNCell(_Cell, torch.nn.RNNCell):  # type: ignore[misc]
    """`torch.nn.RNNCell` on rnnfast's kernels. Raises what `LSTMCell` does."""


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
