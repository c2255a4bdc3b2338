"""The recurrent modules of `torch.nn` with a forward of their own."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from .. import _core
from .._base.state import STATES
from ._autograd import followed
from ._derivatives import STEPS, by_steps, without_onednn
from ._dynamo import Traceable
from ._kernels import TENSORS, Call, Kind, forward
from ._operators import forward_operator
from ._sequences import Packing, bools, checked, turned

DTYPES = torch.float32, torch.float64
MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}  # torch's names
ROUNDED = "lstm", "gru", "rnn_tanh", "rnn_relu"
HAS_PAIRS = _core.config()["bfloat16"] is not None
CELL_WEIGHTS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def is_watched() -> bool:
    """Return whether something follows a call that sees operators alone: a compiler, or a dispatch mode."""
    return torch.compiler.is_compiling() or bool(torch._C._len_torch_dispatch_stack())


def left_to_torch() -> bool:
    """Return whether something follows a call that sees torch's own operators alone."""
    if torch.compiler.is_compiling():
        return bool(torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export())
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return bool(transformed or torch.jit.is_tracing())


def rounds(cell: str, weight: Tensor) -> bool:
    """Return whether autocast wants products of bfloat16, and the machine and the kernels have them."""
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return HAS_PAIRS and cell in ROUNDED and weight.dtype == torch.float32


def is_batched() -> bool:
    """Return whether one of the transforms that follow a call is `torch.func.vmap`."""
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def is_plain() -> bool:
    """Return whether nothing follows or changes a call but autograd."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
    )


def computed(
    kind: Kind,
    n: int,
    batch_sizes: Tensor | None,
    tensors: tuple[Tensor, ...],
    differentiable: bool,
    resets: Tensor | None = None,
) -> Sequence[Any]:
    """Return y, None of a step, and the last states, given n weights, x and the states."""
    if differentiable:
        results: tuple[Tensor | None, ...] = followed(kind, n, batch_sizes, resets, *tensors)
        return results
    return forward(kind, n, tensors, batch_sizes, False, resets)


def plainly(module: Any, kind: Kind, names: list[str], x: Tensor, hx: Any, step: bool = False) -> Sequence[Any] | None:
    """Return y, None of a step, and the last states; None if a call is no plain one, or something follows it."""
    if TENSORS is None or not is_plain():
        return None
    I, H = module.input_size, module.hidden_size
    P = module.proj_size if kind[2] else H
    plain = TENSORS.gather(kind, I, H, P, module._parameters, names, x, hx, step)
    if plain is None:
        return None
    tensors, requires_grad = plain
    return computed(kind, len(names), None, tensors, requires_grad and torch.is_grad_enabled())


def is_operators(x: Tensor) -> bool:
    """Return whether a call with this x is one of operators."""
    return is_watched() or type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu


def starts_twice(states: Sequence[Tensor], D: int) -> bool:
    """Return whether there are sequences that start backwards from other states than resets: a kernel has one place."""
    return D == 2 and len(states) > 0


def in_each_direction(call: Call, turn: Callable[[Tensor], Tensor], resets: Tensor) -> Sequence[Any]:
    """Return the results of a layer whose second direction is run as a first one, on sequences turned round."""
    n = len(call.weights) // 2
    forwards, backwards = (
        call._replace(states=[part[d : d + 1] for part in call.states], weights=call.weights[d * n : (d + 1) * n])
        for d in range(2)
    )
    y, *last = layer(forwards)
    y_turned, *first = layer(backwards._replace(x=turn(call.x), resets=resets))
    return torch.cat((y, turn(y_turned)), -1), *map(torch.cat, zip(last, first, strict=True))


def layer(call: Call) -> Sequence[Any]:
    """Return y, None of a step, and the last states."""
    if left_to_torch() or not is_computable(call.weights[0]):  # of what torch's module lacks
        return tuple(by_steps(call))
    lengths, resets = call.lengths, call.resets
    if lengths is not None and resets is not None and starts_twice(call.states, call.state_shapes[0][0]):
        return in_each_direction(call, *turned(lengths, resets))
    tensors = *call.weights, call.x, *call.states
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if is_operators(call.x) or call.lengths is not None:
        if call.is_step:
            _, *last = layer(call.as_layer())
            return None, *(state[0] for state in last)
        if call.batch_sizes is not None and not call.states:  # the operator's results have its shape
            call = call._replace(states=[call.x.new_zeros(shape) for shape in call.state_shapes])
        *results, _, _ = forward_operator(*call, differentiable)
        return tuple(results)
    return computed(call[:4], len(call.weights), call.batch_sizes, tensors, differentiable, call.resets)


def is_computable(weight: Tensor) -> bool:
    """Return whether the kernels compute with such weights."""
    return weight.dtype in DTYPES and (weight.is_cpu or weight.is_meta)


def prepared(weight: Tensor, x: Tensor, hx: Any, shapes: list[tuple[int, ...]]) -> list[Any] | None:
    """Return x and the states, if there are any, as autocast hands them on, or None if they do not fit.

    `shapes` are those of the states that go with x; none if x is at fault.
    """
    S = len(shapes)
    given = [x] if hx is None else [x, *hx] if S > 1 else [x, hx]
    if torch.is_autocast_enabled("cpu"):
        given = [t.to(weight.dtype) if t.dtype in (torch.bfloat16, torch.float16) else t for t in given]
    if S == 0 or len(given) not in (1, 1 + S) or (S > 1 and isinstance(hx, Tensor)):
        return None
    for t, shape in zip(given, (x.shape, *shapes), strict=False):
        if t.dtype != weight.dtype or t.device != weight.device or t.shape != shape:
            return None
    return given


def weights_of(module: Any, names: Iterable[str]) -> list[Tensor]:
    """Return parameters, or what stands in their place: of parametrised or pruned modules a tensor."""
    stored = module._parameters  # where an attribute is looked for last
    return [stored[name] if name in stored else getattr(module, name) for name in names]


class _Scriptable(Traceable):
    def __prepare_scriptable__(self) -> Any:
        """Return what torch.jit.script is to compile: torch's own module, with the same parameters."""
        module: Any = copy.copy(self)
        module.__class__ = THEIRS.get(type(self), type(self))
        return module


class Recurrent(_Scriptable):
    """The forward of LSTM, GRU and RNN."""

    def forward(
        self: Any,
        input: Any,  # noqa: A002 (the name in torch)
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
    ) -> Any:
        uneven = lengths is not None or resets is not None
        if type(input) is Tensor and self.num_layers == 1 and not uneven:
            x = input.transpose(0, 1) if self.batch_first and input.dim() == 3 else input
            kind = MODES[self.mode], bool(self.bias), self.proj_size > 0, False
            results = plainly(self, kind, self._flat_weights_names, x, hx)
            if results is not None:
                y = results[0]
                return y if x is input else y.transpose(0, 1), results[1] if len(results) == 2 else tuple(results[1:])
        packed = isinstance(input, PackedSequence)
        if uneven and packed:
            msg = f"{'resets' if lengths is None else 'lengths'}: expected None, since input is a PackedSequence"
            raise ValueError(msg)
        is_theirs = isinstance(self, torch.nn.RNNBase)
        if (is_theirs and left_to_torch() and not uneven) or not isinstance(input, Tensor | PackedSequence):
            with without_onednn if self.mode == "LSTM" and not is_batched() else nullcontext():
                return super().forward(input, hx)  # type: ignore[misc]
        x, batch_sizes, order, places = input if packed else (input, None, None, None)
        weights = weights_of(self, self._flat_weights_names)
        if is_theirs and not uneven and not is_computable(weights[0]):
            return super().forward(input, hx)  # type: ignore[misc]
        cell, L, D = MODES[self.mode], self.num_layers, 1 + self.bidirectional
        S = len(STATES[cell])
        given = prepared(weights[0], x, hx, self._state_shapes(x.shape, batch_sizes, S))
        if given is None:
            return super().forward(input, hx)  # type: ignore[misc] # which says what is wrong

        unbatched = not packed and x.dim() == 2
        batch_first = self.batch_first and not packed and not unbatched
        x, *first = (t.unsqueeze(1) for t in given) if unbatched else given
        if batch_first:
            x = x.transpose(0, 1)
        packing, initial = None, first
        if uneven:
            B = None if unbatched else x.shape[1]
            lengths, resets = checked(lengths, resets, x.shape[0], B, batch_first)
            if not (left_to_torch() or is_operators(x)):
                resets = None if resets is None else bools(resets)
                # Where no sequence has a step operators know what there is; of turned sequences padding has a place.
                apart = resets is not None and starts_twice(first, D)
                if lengths is not None and lengths.any() and not apart:
                    packing = Packing.of(lengths, *x.shape[:2])
                    x, batch_sizes, lengths = packing.take(x), packing.batch_sizes, None
                    first = [packing.take_state(part) for part in initial]
                    resets = None if resets is None else packing.take(resets)
        if order is not None:
            first = [state.index_select(1, order) for state in first]
        last: list[Any] = []
        n = len(weights) // L
        for k in range(L):
            if k and self.training and self.dropout:
                x = torch.nn.functional.dropout(x, self.dropout)
            before = first if L == 1 else [state[k * D : (k + 1) * D] for state in first]
            own, projected = weights[k * n : (k + 1) * n], self.proj_size > 0
            kind = cell, self.bias, projected, rounds(cell, own[0])
            x, *after = layer(Call(*kind, x, before, batch_sizes, own, lengths, resets))
            last.append(after)
        states = last[0] if L == 1 else [torch.cat(part) for part in zip(*last, strict=True)]

        if places is not None:
            states = [state.index_select(1, places) for state in states]
        if packing is not None:
            x = packing.give(x)
            states = [packing.give_state(*parts) for parts in zip(states, initial or [None] * S, strict=True)]
        if batch_first:
            x = x.transpose(0, 1)
        if unbatched:
            x, *states = (t.squeeze(1) for t in (x, *states))
        return PackedSequence(x, *input[1:]) if packed else x, tuple(states) if S > 1 else states[0]

    def _state_shapes(self: Any, shape: tuple[int, ...], batch_sizes: Tensor | None, S: int) -> list[tuple[int, ...]]:
        """Return the shapes of the S states that go with x, none if there are none."""
        size, H = self.num_layers * (1 + self.bidirectional), self.hidden_size
        axes = len(shape)
        if axes not in (2, 3) or shape[-1] != self.input_size or (axes == 3 and batch_sizes is not None):
            return []
        T, B = (shape[1], shape[0]) if self.batch_first and axes == 3 else (shape[0], shape[1])
        if batch_sizes is not None:
            B = int(batch_sizes[0])
        elif T == 0:
            return []
        rows = (size,) if axes == 2 and batch_sizes is None else (size, B)
        return [(*rows, n) for n in (self.proj_size or H, *[H] * (S - 1))]


class _Cell(_Scriptable):
    """The forward of LSTMCell, GRUCell and RNNCell, whose names among the kernels are their `cell`."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        cell = self.cell
        if cell in STEPS:
            bias = bool(self.bias)
            names = CELL_WEIGHTS if bias else CELL_WEIGHTS[:2]
            results = plainly(self, (cell, bias, False, False), names, input, hx, True)
            if results is not None:
                return results[1] if len(results) == 2 else tuple(results[1:])
        if left_to_torch() or cell not in STEPS:
            return super().forward(input, hx)  # type: ignore[misc] # which says what is wrong with a nonlinearity
        weights = weights_of(self, CELL_WEIGHTS if self.bias else CELL_WEIGHTS[:2])
        if not is_computable(weights[0]):
            return super().forward(input, hx)  # type: ignore[misc]
        shape, S = (*input.shape[:-1], self.hidden_size), len(STATES[cell])
        fits = len(shape) in (1, 2) and input.shape[-1:] == (self.input_size,)
        given = prepared(weights[0], input, hx, [shape] * S if fits else [])
        if given is None:
            return super().forward(input, hx)  # type: ignore[misc] # which says what is wrong
        x, *first = given if len(shape) == 2 else (t.unsqueeze(0) for t in given)
        _, *states = layer(Call(cell, self.bias, False, rounds(cell, weights[0]), x, first, None, weights))
        if len(shape) == 1:
            states = [state.squeeze(0) for state in states]
        return tuple(states) if S > 1 else states[0]


class LSTM(Recurrent, torch.nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` on rnnfast's kernels.

    A call takes torch's ``input`` and ``hx``. If ``input`` is not a `PackedSequence`, it also takes two keyword
    arguments:

    ``lengths`` : tensor [B] or sequence of integers, optional
        The length of each sequence, from 0 to T. After the end of a sequence y is zero, the last states are those of
        its last step, and the padding is not read.
    ``resets`` : tensor [T,B], [B,T] with `batch_first`, or [T], optional
        Bools, or 0 and 1. Where one is true, the state before the step is set to zero, and no gradient flows back
        across it. The backward direction of an episode starts from zero at its last step.

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.nn.LSTM`.

    Raises
    ------
    TypeError, ValueError
        In forward, if `lengths` or `resets` are invalid. All other errors are torch's. If the parameters are not
        float32 or float64 on the CPU, torch's forward runs.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> lstm = rnnfast.torch.LSTM(28, 64, num_layers=2)
    >>> y, (h, c) = lstm(torch.zeros(50, 32, 28))
    >>> y.shape, h.shape
    (torch.Size([50, 32, 64]), torch.Size([2, 32, 64]))
    >>> episode_starts = torch.zeros(50, 32, dtype=torch.bool)
    >>> episode_starts[20, :] = True
    >>> y, (h, c) = lstm(torch.zeros(50, 32, 28), (h, c), resets=episode_starts)
    >>> lstm
    LSTM(28, 64, num_layers=2)
    """


class GRU(Recurrent, torch.nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` on rnnfast's kernels. Takes and raises what `LSTM` does.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> y, h = rnnfast.torch.GRU(3, 4)(torch.zeros(5, 2, 3))
    >>> y.shape
    torch.Size([5, 2, 4])
    """


class RNN(Recurrent, torch.nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN` on rnnfast's kernels. Takes and raises what `LSTM` does, and `nonlinearity`.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> y, h = rnnfast.torch.RNN(3, 4, nonlinearity="relu")(torch.zeros(5, 2, 3))
    >>> y.shape
    torch.Size([5, 2, 4])
    """


class LSTMCell(_Cell, torch.nn.LSTMCell):  # type: ignore[misc]
    """`torch.nn.LSTMCell` on rnnfast's kernels.

    Errors are torch's. If the parameters are not float32 or float64 on the CPU, torch's forward runs.

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
    """`torch.nn.GRUCell` on rnnfast's kernels. Raises what `LSTMCell` does.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> rnnfast.torch.GRUCell(3, 4)(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    cell = "gru"


class RNNCell(_Cell, torch.nn.RNNCell):  # type: ignore[misc]
    """`torch.nn.RNNCell` on rnnfast's kernels. Raises what `LSTMCell` does.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> rnnfast.torch.RNNCell(3, 4)(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    @property
    def cell(self) -> str:
        """The kernels' name of it."""
        return f"rnn_{self.nonlinearity}"


OURS: dict[type, type] = {
    getattr(torch.nn, kind.__name__): kind for kind in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
