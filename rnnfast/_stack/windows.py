"""Truncated backpropagation by windows: a sequence on its way through a layer or cell, and the windows that it leaves.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, checked, checked_target, quiet
from .._base.module import Kept, RecurrentModule
from .._base.named import checked_grads
from .._base.names import by_direction
from .._base.scalars import Integer, choice, size
from .._base.state import Parts, StateT, add_to_initial, fill, initial_names, out_parts, parts_of, state_of
from .layout import Layout, layout_of
from .options import MASKED
from .ring import Ring, Steps, Turns
from .stack import Stack, checked_parts, state_shapes

MANY_STEPS = 1024  # more than a chunk of the kernels has


@dataclass(frozen=True, eq=False)
class Window(Generic[StateT]):
    """A window of `tbptt`: the steps from tau to stop. Those from start to stop have losses.

    Attributes
    ----------
    tau : int
        The first step that `backward` reaches.
    start, stop : int
        The range of steps that y and dy cover.
    y : ndarray [stop - start,B,H], laid out as x is
        The h of the top layer, as it was computed.
    state : ndarray [L,B,H] or tuple of such
        The state after the last step; [B,H] for a cell, without B for one sequence.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> gru = rnnfast.GRU(3, 4, rng=0)
    >>> first, second = rnnfast.tbptt(gru, np.ones((6, 2, 3), np.float32), k1=3, k2=5)
    >>> second
    Window(tau=1, start=3, stop=6)
    >>> second.y.shape, sorted(second.backward(np.ones_like(second.y)))
    ((3, 2, 4), ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0'])
    """

    tau: int
    start: int
    stop: int
    y: Array = field(repr=False)
    state: StateT = field(repr=False)
    _run: "Run" = field(repr=False)

    def backward(
        self, dy: ArrayLike, *, grads: dict[str, Array] | None = None, out: tuple[Any, Any] | None = None
    ) -> dict[str, Array]:
        """Return the gradients of ``sum(dy * y)``, where the state at tau is a constant.

        Parameters
        ----------
        dy : array like y
            The gradient of y. With k2 < k1, y starts before tau; the part of dy there has no effect.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" if there is one. The gradients are added
            to these arrays.
        out : pair (dx, dstate0), optional
            Arrays for the gradients of x, [stop - tau,B,I] in the layout of x, and of the initial state, which is zero
            if the window reaches neither the start of the sequence nor that of an episode. A gradient that is None is
            not computed.

        Returns
        -------
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`, and of the embedding; `grads` itself if it
            was given.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        RuntimeError
            If later windows have overwritten the window's steps (the next window never does), or if another thread is
            requesting the next window. Backward calls from several threads wait for each other.
        KeyboardInterrupt
            On Ctrl-C. `grads` then holds incomplete results.
        """
        return self._run.backward(self, dy, grads, out)


def check_truncation(layer: object, k1: Integer, k2: Integer, losses: str) -> tuple[int, int]:
    """Return k1 and k2 if windows of the layer can be made with them."""
    if not isinstance(layer, RecurrentModule) or layer.format is not None:
        msg = f"layer: expected a recurrent layer or cell, got {type(layer).__name__}"
        raise TypeError(msg)
    if getattr(layer, "bidirectional", False):
        msg = (
            "layer: expected one direction, since the backward direction starts from the end of the sequence, which "
            f"comes after the windows, got {layer!r}"
        )
        raise ValueError(msg)
    for name in MASKED:
        if getattr(layer, name, 0):
            msg = f"layer: expected no {name}, since windows go over steps that ran with other masks, got {layer!r}"
            raise ValueError(msg)
    choice(losses, "losses", ("new", "window"))
    return size(k1, "k1"), size(k2, "k2")


class CellAsStack(Stack[StateT]):
    """A cell as a stack of one layer that shares its parameters, which end in _l0 here; of full precision, as it is."""

    def __init__(self, module: RecurrentModule) -> None:
        self.cell = module.cell
        self.fixed = module.fixed
        kept = Kept({f"{name}_l0": p for name, p in module.parameters.items()}, module.rng)
        options: Any = {"bias": module.bias, "dtype": module.dtype, "rng": kept, "precision": "full"}
        super().__init__(module.input_size, module.hidden_size, **options)


def as_stack(module: Any) -> Stack[Any]:
    """Return a cell as a stack, a layer as it is."""
    return module if isinstance(module, Stack) else CellAsStack(module)


def given_shapes(stack: Stack[Any], layout: Layout) -> list[tuple[int, ...]]:
    """Return the shapes that the parts of a state have where the caller has them, as the layer or cell takes them."""
    layers = () if isinstance(stack, CellAsStack) else (stack.num_layers,)
    return [(*layers, *(() if layout.unbatched else (layout.B,)), n) for n in stack.state_sizes]


def given_state(stack: Stack[Any], parts: Parts, layout: Layout) -> Any:
    """Return a state [L,B,H] as the caller gets it."""
    return state_of(tuple(map(np.reshape, parts, given_shapes(stack, layout))))


def given_parts(stack: Stack[Any], state: object, layout: Layout) -> Parts:
    """Return the parts [L,B,H] of an initial state that the caller gives."""
    parts = parts_of(stack.cell, state, "state")
    return checked_parts(stack, parts, "state", given_shapes(stack, layout), state_shapes(stack, layout.B))


class Options(NamedTuple):
    """How windows follow each other, and what their backward goes over."""

    k1: int
    k2: int
    whole: bool  # y and dy are of all of the window
    replay: bool


class Input(NamedTuple):
    """What x is."""

    first: object
    chunks: Iterator[object]  # the first and all others
    goes_on: bool  # there may be others


def chunks_of(given: object) -> Iterator[object]:
    """Return the chunks of an iterator, or an array as the only one."""
    return given if isinstance(given, Iterator) else iter([given])


class Run:
    """A sequence on its way through a layer, window by window."""

    def __init__(
        self, module: Any, options: Options, x: Input, state: object, embedding: object, resets: object
    ) -> None:
        stack = as_stack(module)
        rows = None if embedding is None else _core.asarray(embedding, "embedding", stack.dtype)
        embedded = rows is not None
        chunk, layout = layout_of(
            x.first, None, stack.input_size, stack.batch_first, embedded, stack.dtype, least_steps=0
        )
        if layout.packed is not None:
            msg = "x: expected an array, or an iterator of arrays, got a PackedSequence"
            raise TypeError(msg)
        self.module, self.stack, self.layout, self.options = module, stack, layout, options
        self.suffix = "" if stack is module else "_l0"  # that the layer's names have more than the module's

        features = chunk.shape[len(layout.axes) :]
        axes = tuple(None if axis == self._time_axis else n for axis, n in enumerate(layout.axes))
        self.x = Steps("x", x.chunks, (*axes, *features), stack.dtype if features else None)
        self.x.checked(chunk)
        self.T = None if x.goes_on else layout.T
        if self.T == 0:
            msg = f"x: expected at least one step, got shape {chunk.shape}"
            raise ValueError(msg)
        if rows is not None:
            checked(rows, "embedding", (*rows.shape[:1], stack.input_size), stack.dtype)
        self.resets = None
        if resets is not None:
            self.resets = Steps("resets", chunks_of(resets), axes, np.dtype(np.bool_))
            if self.T is not None and not isinstance(resets, Iterator):
                checked(resets, "resets", layout.axes, np.dtype(np.bool_))

        room = self._room(), layout.B
        self.turns = Turns()
        self.ring = Ring(
            stack,
            np.empty((*room, *features), stack.dtype if features else np.intp),
            None if resets is None else np.zeros(room, np.bool_),
            None if state is None and stack.learn_initial_state else self._first(state),
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
        chunk = int(_core.chunks(None, MANY_STEPS, self.layout.B, self.stack.hidden_size)[1])
        steps = k1 + k2 + (k1 + k2) // 2 + chunk
        steps += -steps % chunk
        steps = steps if self.T is None else min(steps, self.T)
        widest = max(self.stack.input_size, self.stack.num_layers * self.stack.hidden_size)
        if steps * max(self.layout.B, 1) * widest > np.iinfo(np.intp).max // 64:
            msg = f"k1, k2: expected windows whose steps can be addressed, got {k1} and {k2}"
            raise ValueError(msg)
        return steps

    def _first(self, state: object) -> Parts:
        """Return a copy of the given initial state as [L,B,H], zero where there is none."""
        given = given_parts(self.stack, state, self.layout)
        first = tuple(np.empty(shape, self.stack.dtype) for shape in state_shapes(self.stack, self.layout.B))
        fill(first, given)
        return first

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
        return Window(tau, start, ring.stop, y, given_state(self.stack, state, self.layout), self)

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
        ring, stack, layout, tau = self.ring, self.stack, self.layout, window.tau
        given = layout.take(checked(dy, "dy", window.y.shape, stack.dtype))
        dx_out, dstate_out = self._checked_out(out, window.stop - tau)
        others = {} if ring.embedding is None else {"embedding": ring.embedding}
        into = checked_grads(grads, self.module.parameters, given, dx_out, dstate_out, *others.values(), **others)

        d = given[max(tau - window.start, 0) :]
        if window.start > tau:
            d = np.zeros((window.stop - tau, *given.shape[1:]), stack.dtype)
            d[window.start - tau :] = given
        new: list[Any] = [None] * stack.num_layers
        if into is not None:
            named = {name + self.suffix: a for name, a in into.items()}
            new = [by_direction(named, stack.names_of(k)) for k in range(stack.num_layers)]
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
            add_to_initial(stack.cell, into, dinitial)
        if dx_out is not None:
            np.copyto(layout.take(dx_out), dx)
        for target, part in zip(dstate_out, dinitial, strict=True):
            if target is not None:
                np.copyto(target, part.reshape(target.shape))
        return grads

    def _checked_out(self, out: object, steps: int) -> tuple[Array | None, Parts]:
        """Return dx and the parts of dstate0 that a backward through these steps is to fill."""
        dx, dstate = out_parts(self.stack.cell, out, "(dx, dstate0)")
        if dx is not None and self.x.dtype is None:
            msg = "out[0]: expected None, since x is tokens"
            raise ValueError(msg)
        if dx is not None:
            shape = tuple(steps if n is None else n for n in self.x.form)
            dx = checked_target(dx, "out[0]", shape, self.stack.dtype)
        given = zip(dstate, given_shapes(self.stack, self.layout), strict=True)
        return dx, tuple(
            None if part is None else checked_target(part, "out[1]", shape, self.stack.dtype) for part, shape in given
        )

    def _named(self, new: list[Any]) -> dict[str, Array]:
        """Return the layers' gradients by the module's names."""
        made: dict[str, Array] = {}
        for k, [arrays] in enumerate(new):
            made |= zip(self.stack.names_of(k)[0], arrays, strict=True)
        initial = initial_names(self.stack.cell)
        made |= {name: np.zeros_like(p) for name, p in self.module.parameters.items() if name in initial}
        return {name: made[name + self.suffix] for name in self.module.parameters}
