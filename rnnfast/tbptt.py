"""Truncated backpropagation through time: training on long sequences by windows that reach back k2 steps.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.

The module has the name of its main function, and is called as that is: ``rnnfast.tbptt(layer, x, k1, k2)``.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple

import numpy as np

from . import _core
from ._arraylike import ArrayLike
from ._layout import layout_of
from ._module import PARAMETERS
from ._recurrent import INITIAL, Recurrent, part_of
from ._ring import Parts, Ring, Steps, Turns
from ._scalars import Flag, Integer, choice, flag, size
from .cells import _RecurrentCell
from .functional import (
    Array,
    StateLike,
    StateT,
    checked,
    checked_target,
    each_part,
    parts_of,
    quiet,
    split_out,
    split_state,
    whole_state,
)

__all__ = ["Window", "tbptt", "tbptt_gradient"]

MANY_STEPS = 1024  # more than a chunk of the kernels has


@dataclass(frozen=True, eq=False)
class Window(Generic[StateT]):
    """A window of `tbptt`: the steps from tau to stop, of which those from start to stop have losses.

    Attributes
    ----------
    tau : int
        The first step that `backward` reaches.
    start, stop : int
        The steps that y and dy are of.
    y : ndarray [stop - start,B,H], laid out as x is
        h of the top layer, as it was computed.
    state : ndarray [L,B,H] or pair of such
        The state after the last step; [B,H] of a cell, without B for one sequence.
    """

    tau: int
    start: int
    stop: int
    y: Array = field(repr=False)
    state: StateT = field(repr=False)
    _run: "_Run" = field(repr=False)

    def backward(
        self, dy: ArrayLike, *, grads: dict[str, Array] | None = None, out: tuple[Any, Any] | None = None
    ) -> dict[str, Array]:
        """Return the gradients of ``sum(dy * y)``, where the state at tau is a constant.

        Parameters
        ----------
        dy : array like y
            The gradient of y. With k2 < k1, y starts before tau; what dy holds there contributes nothing.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" where there is one: the gradients are
            added into these arrays.
        out : pair (dx, dstate0), optional
            Arrays for the gradients of x, [stop - tau,B,I] laid out as x is, and of the initial state, which is zero
            where the window reaches neither the start of the sequence nor that of an episode; what is None is not
            wanted.

        Returns
        -------
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`, and of the embedding; `grads` itself if it
            was given.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        RuntimeError
            If later windows have taken the place of the window's steps, which the next one never does, or another
            thread asks for the next window right now. Backwards of several threads wait for each other.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time; `grads` is then part-way.
        """
        return self._run.backward(self, dy, grads, out)


def tbptt(
    layer: Recurrent[StateT] | _RecurrentCell[StateT],
    x: ArrayLike | Iterator[ArrayLike],
    k1: Integer,
    k2: Integer,
    *,
    state: StateLike | None = None,
    losses: Literal["new", "window"] = "new",
    activations: Literal["stored", "replay"] = "stored",
    embedding: ArrayLike | None = None,
    resets: ArrayLike | Iterator[ArrayLike] | None = None,
) -> Iterator[Window[StateT]]:
    """Run over a long sequence by windows, each with a truncated gradient: BPTT(k2; k1) of Williams and Peng [1]_.

    Windows end at k1, 2·k1, ... and at T. The one that ends at `stop` reaches back to tau = max(0, stop - k2); the
    state at tau is a constant. Each step is computed once, when its first window is asked for, with the parameters of
    that time. Memory is that of about 1.5 (k1 + k2) steps, or of T if that is less.

    Parameters
    ----------
    layer : layer or cell
        Of one direction. Dropout between layers is active.
    x : array [T,B,I], [B,T,I] if `batch_first`, [T,I] for one sequence, or iterator of such
        The input, or its tokens, as a layer takes them. Chunks may differ in T; the first is asked for at once. Steps
        are copied when their window is asked for.
    k1 : int
        Steps from the end of one window to that of the next.
    k2 : int
        Steps that a window reaches back; less than, equal to or more than k1.
    state : array [L,B,H] or pair of such, optional
        The initial state, as the layer takes it; [B,H] of a cell. It is copied.
    losses : {"new", "window"}
        Whether the y and dy of a window are of its new steps, those since the end of the one before, or of all its
        steps.
    activations : {"stored", "replay"}
        What backward goes over where the parameters have changed since the steps were computed: their activations as
        they were, or those of the window run once more, with the parameters of now from the state at tau as it was.
        Either way it multiplies by the weights of now.
    embedding : array [V,I], optional
        What the tokens x select rows of: those that it has when the window runs, forward or backward.
    resets : array of bools [T,B], laid out as x is, or iterator of such, optional
        Where an episode begins: before the step the state is the initial one, and no gradient crosses.

    Returns
    -------
    iterator of `Window`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit. The message names it, what was expected and what came. Of a chunk that does not,
        when it is reached.

    References
    ----------
    .. [1] Williams, Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
       Trajectories", Neural Computation 2(4), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> gru = rnnfast.GRU(3, 4, seed=0)
    >>> x = np.zeros((10, 2, 3), np.float32)
    >>> for window in rnnfast.tbptt(gru, x, k1=4, k2=6):
    ...     grads = window.backward(np.ones_like(window.y))
    ...     window
    Window(tau=0, start=0, stop=4)
    Window(tau=2, start=4, stop=8)
    Window(tau=4, start=8, stop=10)
    """
    n1, n2 = check_truncation(layer, k1, k2, losses)
    choice(activations, "activations", ("stored", "replay"))
    first = [*islice(_chunks(x), 1)]
    if not first:
        return iter(())
    given = _Input(first[0], chain(first, _chunks(x) if isinstance(x, Iterator) else ()), isinstance(x, Iterator))
    options = _Options(n1, n2, losses == "window", activations == "replay")
    return _Run(layer, options, given, state, embedding, resets).windows()


def check_truncation(layer: object, k1: Integer, k2: Integer, losses: str) -> tuple[int, int]:
    """Return k1 and k2 if windows of the layer can be made with them."""
    if not isinstance(layer, Recurrent | _RecurrentCell):
        msg = f"layer: expected a recurrent layer or cell, got {type(layer).__name__}"
        raise TypeError(msg)
    if getattr(layer, "bidirectional", False):
        msg = (
            "layer: expected one direction, since the backward direction starts from the end of the sequence, which "
            f"comes after the windows, got {layer!r}"
        )
        raise ValueError(msg)
    choice(losses, "losses", ("new", "window"))
    return size(k1, "k1"), size(k2, "k2")


def as_layer(module: Any) -> Any:
    """Return a cell as a layer that shares its parameters, which end in _l0 there; a layer as it is."""
    if isinstance(module, Recurrent):
        return module
    layer = Recurrent.__new__(Recurrent)
    as_if = {"num_layers": 1, "directions": 1, "batch_first": False, "dropout": 0.0, "learn_initial_state": False}
    parameters = {f"{name}_l0": p for name, p in module.parameters.items()}
    vars(layer).update(vars(module), cell=module.cell, parameters=parameters, **as_if)
    return layer


class _Options(NamedTuple):
    """How windows follow each other, and what their backward goes over."""

    k1: int
    k2: int
    whole: bool  # y and dy are of all of the window
    replay: bool


class _Input(NamedTuple):
    """What x is."""

    first: object
    chunks: Iterator[object]  # the first and all others
    goes_on: bool  # there may be others


def _chunks(given: object) -> Iterator[object]:
    return given if isinstance(given, Iterator) else iter([given])


class _Run:
    """A sequence on its way through a layer, window by window."""

    def __init__(
        self, module: Any, options: _Options, x: _Input, state: object, embedding: object, resets: object
    ) -> None:
        layer = as_layer(module)
        rows = None if embedding is None else _core.asarray(embedding, "embedding", layer.dtype)
        embedded = rows is not None
        chunk, layout = layout_of(
            x.first, None, layer.input_size, layer.batch_first, embedded, layer.dtype, least_steps=0
        )
        if layout.packed is not None:
            msg = "x: expected an array, or an iterator of arrays, got a PackedSequence"
            raise TypeError(msg)
        self.module, self.layer, self.layout, self.options = module, layer, layout, options
        self.suffix = "" if layer is module else "_l0"  # that the layer's names have more than the module's

        features = chunk.shape[len(layout.axes) :]
        axes = tuple(None if axis == self._time_axis else n for axis, n in enumerate(layout.axes))
        self.x = Steps("x", x.chunks, (*axes, *features), layer.dtype if features else None)
        self.x.checked(chunk)
        self.T = None if x.goes_on else layout.T
        if self.T == 0:
            msg = f"x: expected at least one step, got shape {chunk.shape}"
            raise ValueError(msg)
        if rows is not None:
            checked(rows, "embedding", (*rows.shape[:1], layer.input_size), layer.dtype)
        self.resets = None
        if resets is not None:
            self.resets = Steps("resets", _chunks(resets), axes, np.dtype(np.bool_))
            if self.T is not None and not isinstance(resets, Iterator):
                checked(resets, "resets", layout.axes, np.dtype(np.bool_))

        room = self._room(), layout.B
        self.turns = Turns()
        self.ring = Ring(
            layer,
            np.empty((*room, *features), layer.dtype if features else np.intp),
            None if resets is None else np.zeros(room, np.bool_),
            None if state is None and layer.learn_initial_state else self._first(state),
            rows,
        )

    @property
    def _time_axis(self) -> int:
        return int(self.layout.batch_first and not self.layout.unbatched)

    def _room(self) -> int:
        """Return for how many steps the ring has room.

        A window fits with the one before it and its first state, and half as many steps more, so that a step is moved
        about twice at most before it is forgotten.
        """
        k1, k2, *_ = self.options
        chunk = int(_core.chunks(None, MANY_STEPS, self.layout.B, self.layer.hidden_size)[1])
        steps = k1 + k2 + (k1 + k2) // 2 + chunk
        steps += -steps % chunk
        steps = steps if self.T is None else min(steps, self.T)
        widest = max(self.layer.input_size, self.layer.num_layers * self.layer.hidden_size)
        if steps * max(self.layout.B, 1) * widest > np.iinfo(np.intp).max // 64:
            msg = f"k1, k2: expected windows whose steps can be addressed, got {k1} and {k2}"
            raise ValueError(msg)
        return steps

    def _first(self, state: object) -> Parts:
        """Return a copy of the given initial state as [L,B,H], zero where there is none."""
        layer, layout = self.layer, self.layout
        if layer is self.module:
            given = layer._checked_state(state, "state", layout)
        else:
            given = self.module._checked_state(state, "state", self._state_shape)
        shape, names = (layer.num_layers, layout.B, layer.hidden_size), INITIAL[: 1 + (layer.cell == "lstm")]
        first = tuple(np.zeros(shape, layer.dtype) for _ in names)
        for part, a in zip(first, parts_of(given), strict=False):
            if a is not None:
                part[...] = a
        return first

    @property
    def _state_shape(self) -> tuple[int, ...]:
        """Of the parts of a state, as the caller has them."""
        layers = (self.layer.num_layers,) if self.layer is self.module else ()
        return (*layers, *(() if self.layout.unbatched else (self.layout.B,)), self.layer.hidden_size)

    def windows(self) -> Iterator[Window[Any]]:
        """Run and yield one window after the other."""
        while window := self._next():
            yield window

    def _next(self) -> Window[Any] | None:
        """Run the steps of the next window, if there are any."""
        ring, options = self.ring, self.options
        with self.turns.move():
            n = self._read()
            if not n:
                return None
            new, state = ring.stop, ring.advance(n)
            tau = max(0, ring.stop - options.k2)
            start = tau if options.whole else new
            y = self.layout.give(ring.ys[-1][start - ring.first : ring.stop - ring.first].copy())
        h, *c = (part.reshape(self._state_shape) for part in state)
        return Window(tau, start, ring.stop, y, (h, c[0]) if c else h, self)

    def _read(self) -> int:
        """Read the new steps of the next window into the ring; return their number."""
        ring, (k1, k2, *_) = self.ring, self.options
        n = k1 if self.T is None else min(k1, self.T - ring.stop)
        if ring.stop + n - ring.first > len(ring.x):
            ring.forget(max(0, ring.stop - k2 - 1))
        new = slice(ring.stop - ring.first, ring.stop - ring.first + n)
        sequences = 0 if self.layout.unbatched else slice(None)
        n = self.x.read(ring.x[new, sequences])
        if self.resets is not None and ring.resets is not None:
            m = self.resets.read(ring.resets[new, sequences])
            if m != n:
                msg = f"resets: expected as many steps as x, {ring.stop + n}, got {ring.stop + m}"
                raise ValueError(msg)
        return n

    @quiet
    def backward(
        self, window: Window[Any], dy: object, grads: dict[str, Array] | None, out: tuple[Any, Any] | None
    ) -> dict[str, Array]:
        """Check the arguments of a window's backward and run it."""
        ring, layer, layout, tau = self.ring, self.layer, self.layout, window.tau
        given = layout.take(checked(dy, "dy", window.y.shape, layer.dtype))
        dx_out, *dstate_out = self._checked_out(out, window.stop - tau)
        others = {} if ring.embedding is None else {"embedding": ring.embedding}
        into = self.module._check_grads(grads, given, dx_out, *dstate_out, *others.values(), **others)

        d = given[max(tau - window.start, 0) :]
        if window.start > tau:
            d = np.zeros((window.stop - tau, *given.shape[1:]), layer.dtype)
            d[window.start - tau :] = given
        new: list[Any] = [None] * layer.num_layers
        if into is not None:
            of_layer = {name + self.suffix: a for name, a in into.items()}
            new = [layer._tuples(of_layer, k) for k in range(layer.num_layers)]
        need_dx = dx_out is not None or ring.embedding is not None
        with self.turns.use():
            if max(tau - 1, 0) < ring.first:
                msg = f"window: expected steps from {tau} on to be kept, but later windows have taken their place"
                raise RuntimeError(msg)
            dx, dinitial = ring.backward(tau, d, new, replay=self.options.replay, need_dx=need_dx)

        if grads is None or into is None:
            grads = into = self._named(new) | dict.fromkeys(others, dx)
        else:
            for name in others:
                into[name] += dx
        if ring.learns:
            for name, part in zip(INITIAL, dinitial, strict=False):
                into[name] += part.sum(axis=1)
        if dx_out is not None:
            np.copyto(layout.take(dx_out), dx)
        for target, part in zip(dstate_out, dinitial, strict=False):
            if target is not None:
                np.copyto(target, part.reshape(target.shape))
        return grads

    def _checked_out(self, out: tuple[Any, Any] | None, steps: int) -> tuple[Any, Any, Any]:
        """Return dx and the parts of dstate0 that a backward through these steps is to fill."""
        dx, h, c = split_out(self.layer.cell, out, "(dx, dstate0)") or (None, None, None)
        if dx is not None and self.x.dtype is None:
            msg = "out[0]: expected None, since x is tokens"
            raise ValueError(msg)
        if dx is not None:
            shape = tuple(steps if n is None else n for n in self.x.form)
            dx = checked_target(dx, "out[0]", shape, self.layer.dtype)
        h, c = each_part(lambda part: checked_target(part, "out[1]", self._state_shape, self.layer.dtype), (h, c))
        return dx, h, c

    def _named(self, new: list[Any]) -> dict[str, Array]:
        """Return the layers' gradients by the module's names."""
        made = {f"{name}_l{k}": a for k, [arrays] in enumerate(new) for name, a in zip(PARAMETERS, arrays, strict=True)}
        made |= {name: np.zeros_like(p) for name, p in self.module.parameters.items() if name in INITIAL}
        return {name: made[name + self.suffix] for name in self.module.parameters}


@quiet
def tbptt_gradient(
    layer: Recurrent[StateT] | _RecurrentCell[StateT],
    x: ArrayLike,
    dy: ArrayLike,
    k1: Integer,
    k2: Integer,
    *,
    state: StateLike | None = None,
    losses: Literal["new", "window"] = "new",
    need_dx: Flag = True,
) -> tuple[Array | None, StateT, dict[str, Array]]:
    r"""Return the sum over all windows of `tbptt` of the truncated gradients, for weights that stay as they are.

    With the windows' ends :math:`e \in E = \{k_1, 2 k_1, \dots, T\}` and their first steps
    :math:`\tau_e = \max(0, e - k_2)`, it is the sum over e of the gradients of

    .. math:: \sum_{t \in S_e} \langle dy_t, y_t \rangle, \quad \text{the state before } \tau_e \text{ a constant,}

    where :math:`S_e` are the steps from :math:`\tau_e` to e that lie behind the end before e ("new"), or all of them
    ("window").

    All windows are one backward pass. Those that go through a step have the same Jacobians there, so the deltas of all
    r = ceil(k2 / k1) of them (at times one more near the end) are the rows of one recurrent product; the gradients of
    the weights and of x follow from their sum. For one layer with I = H that is (r + 3) / 4 of the work of a plain
    backward, where separate windows take r times it. In a stack, what a layer hands to the one below differs from
    window to window too: such an array, [T,r,B,H], is in memory between two layers at a time. Beside it, memory grows
    by r rows for each sequence, not with T.

    Parameters
    ----------
    layer : layer or cell
        Of one direction. Dropout between layers is active, as in `forward`.
    x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence
        The input. An array of integers, without the last axis, holds tokens.
    dy : array like y, [T,B,H]
        The gradient of the top layer's y.
    k1, k2 : int
        Steps from one window's end to that of the next, and steps that a window reaches back.
    state : array [L,B,H] or pair of such, optional
        The initial state, as the layer takes it; [B,H] of a cell, without B for one sequence.
    losses : {"new", "window"}
        Whether dy_t counts in the first window that ends behind t, if it reaches back to t, or in each that goes
        through t.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.

    Returns
    -------
    dx : ndarray like x, or None
        None for tokens.
    dstate0 : ndarray or pair of ndarrays like state
        The gradient of the initial state, of the windows that reach back to it.
    grads : dict of ndarrays
        The gradients of the parameters, by the keys of `state_dict()`. That of a learned initial state is the sum of
        dstate0 over B, and zero if another state was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the layer is bidirectional. The message names it, what was expected and what
        came.
    KeyboardInterrupt
        On Ctrl-C, between chunks of time.

    Notes
    -----
    The sum is that of separate windows to rounding; with k1 = k2 = T it is the plain gradient bit for bit. A bound like
    `clip_dh` does not pass through a sum, so there is none here.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float64")
    >>> rnn.weight_ih_l0 = rnn.weight_hh_l0 = np.ones((1, 1))
    >>> x = dy = np.ones((5, 1))
    >>> dx, _, _ = rnnfast.tbptt_gradient(rnn, x, dy, k1=2, k2=3)  # steps 0 1, (1) 2 3, (2 3) 4
    >>> dx.ravel()
    array([2., 3., 3., 2., 1.])
    """
    n1, n2 = check_truncation(layer, k1, k2, losses)
    need_dx = flag(need_dx, "need_dx")
    stack = as_layer(layer)
    array, layout = layout_of(x, None, stack.input_size, stack.batch_first, False, stack.dtype)
    if layout.packed is not None:
        msg = "x: expected an array, since all windows end at the same steps, got a PackedSequence"
        raise TypeError(msg)
    d: Any = layout.checked(dy, "dy", (stack.hidden_size,), stack.dtype)
    if stack is not layer:
        rows = () if layout.unbatched else (layout.B,)
        whole = whole_state(layer.cell, state, "state")
        state = each_part(lambda part: checked(part, "state", (*rows, layer.hidden_size), layer.dtype)[None], whole)

    tape = stack.forward(array, state)[2]
    dfirst = stack._new_state(layout)
    made: dict[str, Any] = {}
    for k in reversed(range(stack.num_layers)):
        d, *_, [new] = _core.backward(
            tape.kept[k],
            d,
            need_dx=need_dx or k > 0,
            out=(None, *split_state(stack.cell, stack._of_layer(dfirst, k), "dstate0")),
            windows=(min(n1, layout.T), min(n2, layout.T), losses == "window", k > 0),
        )
        if d is not None and k and tape.masks:  # d is [T,B,H], or [T,r,B,H] with what does not exist left as it is
            d *= tape.masks[k - 1].reshape(layout.T, *(1,) * (d.ndim - 3), layout.B, -1)
        made |= zip(stack._names[k][0], new, strict=True)
    if tape.call.learned:
        made |= {name: part_of(dfirst, name).sum(axis=1) for name in INITIAL if name in stack.parameters}
    grads = {name: made[name] if name in made else np.zeros_like(p) for name, p in stack.parameters.items()}
    dstate0 = each_part(layout.give_state, dfirst)
    dx = None if d is None else layout.give(d)
    if stack is layer:
        return dx, dstate0, grads
    return dx, each_part(lambda part: part[0], dstate0), {name.removesuffix("_l0"): g for name, g in grads.items()}


class _CallableModule(ModuleType):
    """A module that is called as its function of the same name."""

    __call__ = staticmethod(tbptt)
    __signature__ = inspect.signature(tbptt)

    def __reduce__(self) -> tuple[Any, ...]:  # copied and pickled as a function would be: by name
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule
