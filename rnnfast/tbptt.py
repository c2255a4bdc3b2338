"""Truncated backpropagation through time: training on long sequences by windows that reach back k2 steps.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _core
from ._module import PARAMETERS, Module, size
from .cells import _RecurrentCell
from .functional import Array, State, checked, checked_target, split_out, split_state
from .layers import INITIAL, _Recurrent

__all__ = ["Window", "tbptt"]

MANY_STEPS = 1024  # more than a chunk of the kernels has

Parts: TypeAlias = tuple[Array, ...]  # (h, c) of the LSTM, (h,) of the others; [L,B,H] each


@dataclass(frozen=True, eq=False)
class Window:
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
    state: State = field(repr=False)
    _run: "_Run" = field(repr=False)

    def backward(
        self, dy: object, *, grads: dict[str, Array] | None = None, out: tuple[Any, Any] | None = None
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
            If later windows have taken the place of the window's steps. The next one never does.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time; `grads` is then part-way.
        """
        return self._run.backward(self, dy, grads, out)


def tbptt(
    layer: Any,
    x: object,
    k1: int,
    k2: int,
    *,
    state: object = None,
    losses: str = "new",
    activations: str = "stored",
    embedding: object = None,
    resets: object = None,
) -> Iterator[Window]:
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
    k1, k2 = check_truncation(layer, k1, k2, losses)
    if activations not in ("stored", "replay"):
        msg = f"activations: expected 'stored' or 'replay', got {activations!r}"
        raise ValueError(msg)
    first = [*islice(_chunks(x), 1)]
    if not first:
        return iter(())
    given = _Input(first[0], chain(first, _chunks(x) if isinstance(x, Iterator) else ()), isinstance(x, Iterator))
    options = _Options(k1, k2, losses == "window", activations == "replay")
    return _Run(layer, options, given, state, embedding, resets).windows()


def check_truncation(layer: object, k1: int, k2: int, losses: str) -> tuple[int, int]:
    """Return k1 and k2 if windows of the layer can be made with them."""
    if not isinstance(layer, _Recurrent | _RecurrentCell):
        msg = f"layer: expected a recurrent layer or cell, got {type(layer).__name__}"
        raise TypeError(msg)
    if getattr(layer, "bidirectional", False):
        msg = (
            "layer: expected one direction, since the backward direction starts from the end of the sequence, which "
            f"comes after the windows, got {layer!r}"
        )
        raise ValueError(msg)
    if losses not in ("new", "window"):
        msg = f"losses: expected 'new' or 'window', got {losses!r}"
        raise ValueError(msg)
    return size(k1, "k1"), size(k2, "k2")


def as_layer(module: Any) -> Any:
    """Return a cell as a layer that shares its parameters, which end in _l0 there; a layer as it is."""
    if isinstance(module, _Recurrent):
        return module
    layer = _Recurrent.__new__(_Recurrent)
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


class _Steps:
    """Steps that come in chunks, to be read in any numbers."""

    def __init__(self, name: str, chunks: Iterator[object], form: tuple[int | None, ...], dtype: Any) -> None:
        self.name, self.chunks = name, chunks
        self.form = form  # of a chunk, as the caller has it: T, where it may be any, is None
        self.dtype = dtype  # None: any integers, as tokens
        self.rest: Any = ()

    def read(self, into: Array) -> int:
        """Fill `into`, [T,*] as the form has it with T first, as far as there are steps; return their number."""
        done = 0
        while done < len(into):
            while not len(self.rest):
                chunk = [*islice(self.chunks, 1)]
                if not chunk:
                    return done
                self.rest = self.checked(chunk[0]).swapaxes(0, self.form.index(None))
            n = min(len(into) - done, len(self.rest))
            into[done : done + n], self.rest = self.rest[:n], self.rest[n:]
            done += n
        return done

    def checked(self, chunk: object) -> Array:
        """Return the chunk as an array, if it fits."""
        a = _core.asarray(chunk, self.name)
        if a.dtype != self.dtype if self.dtype else a.dtype.kind not in "iu":
            msg = f"{self.name}: expected {f'dtype {self.dtype}' if self.dtype else 'integers as tokens'}, got {a.dtype}"
            raise TypeError(msg)
        if a.ndim != len(self.form) or any(n not in (None, m) for n, m in zip(self.form, a.shape, strict=True)):
            sizes = ", ".join("T" if n is None else str(n) for n in self.form)
            msg = f"{self.name}: expected shape ({sizes}{',' * (a.ndim == 1)}), got {a.shape}"
            raise ValueError(msg)
        return a


def _parts(h: Array, c: Array | None) -> Parts:
    return (h,) if c is None else (h, c)


def _pair(parts: Parts) -> tuple[Array | None, Array | None]:
    return parts[0], parts[1] if len(parts) == 2 else None


class _Ring:
    """The last steps of sequences on their way through a stack, with all that a backward through them needs.

    Arrays of steps have room for a number of them: step `first` of the sequences is at their front, step `stop` is to
    come next. The kernels' tapes refer to them. The input of a layer is the y of the one below, if there is no dropout
    between them.
    """

    def __init__(self, layer: Any, x: Array, resets: Array | None, initial: Parts | None, rows: Array | None) -> None:
        """Make room for as many steps as x [*,B,I] or [*,B] and resets [*,B] have, whose values are to come.

        Without an initial state [L,B,H] it is the one that the layer learns.
        """
        self.layer, self.x, self.resets, self.learns = layer, x, resets, initial is None
        B = x.shape[1]
        self.initial = _parts(*split_state(layer.cell, layer._new_state(B), "")) if initial is None else initial
        self.given_rows = rows
        # Of what is not contiguous the tapes make a copy of their own, and would not see it change.
        self.rows = None if rows is None else np.ascontiguousarray(rows)
        self.first = self.stop = 0
        self.learned: list[tuple[int, Parts]] = []  # learned initial states [L,H], by the first step that had them
        self.inputs, self.ys, self.tapes = [x], list[Array](), list[_core.Tape]()
        self.masks: list[Array] = []  # the factors of dropout before each layer but the first
        for k in range(layer.num_layers):
            if k and layer.dropout:
                self.inputs.append(np.empty_like(self.ys[-1]))
                self.masks.append(np.empty_like(self.ys[-1]))
            below = self.inputs[k] if layer.dropout or not k else self.ys[-1]
            y, tape = self._forward(k, below, self._initial(k), resets, steps=(0, 0))
            self.ys.append(y)
            self.tapes.append(tape)
        self.chunk = int(_core.chunks(None, len(x), B, layer.hidden_size)[1])

    def forget(self, steps: int) -> None:
        """Make room: forget steps before this one, as many as are whole chunks of the kernels."""
        gone = (steps - self.first) // self.chunk * self.chunk
        first, self.first = self.first + gone, self.stop  # nothing may be read that an interruption left half moved
        for a in (*self.inputs, *self.masks, *(() if self.resets is None else (self.resets,))):
            a[:-gone] = a[gone:]
        for tape in self.tapes:
            _core.shift(tape, gone)
        self.first = first

    def advance(self, n: int) -> Parts:
        """Run n steps, whose x is in place; return the state after them, [L,B,H]."""
        self._renew()
        steps = slice(self.stop - self.first, self.stop - self.first + n)
        after = []
        for k, tape in enumerate(self.tapes):
            if k and self.masks:
                self.masks[k - 1][steps] = self.layer._mask(self.ys[k - 1][steps].shape)
                np.multiply(self.ys[k - 1][steps], self.masks[k - 1][steps], out=self.inputs[k][steps])
            resets = None if self.resets is None else self.resets[steps]
            after.append(_parts(*_core.advance(tape, (steps.start, steps.stop), resets)))
        if self.learns and not (self.learned and all(map(np.array_equal, self._learned(), self.learned[-1][1]))):
            self.learned.append((self.stop, tuple(a.copy() for a in self._learned())))
        while len(self.learned) > 1 and self.learned[1][0] <= self.first:
            del self.learned[0]
        self.stop += n
        return tuple(np.concatenate(part) for part in zip(*after, strict=True))

    def backward(self, tau: int, dy: Any, grads: list[Any], *, replay: bool, need_dx: bool) -> tuple[Any, Parts]:
        """Backpropagate from as many steps behind tau as dy [*,B,H] has; return dx and the initial state's gradient.

        The gradients of each layer are added into those of `grads`, or put there where that is None.
        """
        stop = tau + len(dy)
        self._renew()
        tapes, origin = (self._replayed(tau, stop), tau) if replay else (self.tapes, self.first)
        pieces: Any = [(tau, stop, None)] if replay or not self.learns else self._pieces(tau, stop)
        dinitial = tuple(np.zeros_like(part) for part in self.initial)
        for k in reversed(range(self.layer.num_layers)):
            dstart = tuple(part[k : k + 1] for part in dinitial)
            dstate: Any = (None, None)
            dxs = []
            for low, high, initial in pieces:
                if initial is not None:
                    self._begin_with(initial)
                dx, *dstate, grads[k] = _core.backward(
                    tapes[k],
                    dy[low - tau : high - tau],
                    *dstate,
                    need_dx or k > 0,
                    grads[k],
                    dstart=_pair(dstart),
                    steps=(low - origin, high - origin),
                )
                dxs.insert(0, dx)
            if tau == 0:
                for part, d in zip(dstart, dstate, strict=False):
                    part += d
            if len(dxs) == 1 or dxs[0] is None:
                dy = dxs[0]
            else:
                dy = sum(dxs) if k == 0 and self.rows is not None else np.concatenate(dxs)
            if k and self.masks:
                dy *= self.masks[k - 1][tau - self.first : stop - self.first]
        return dy, dinitial

    def _forward(self, k: int, x: Array, before: Parts, resets: Array | None, **options: Any) -> tuple[Array, Any]:
        """Run layer k over x, or make room for it; return y and the tape."""
        layer, parameters = self.layer, self.layer._tuples(self.layer.parameters, k)
        start, rows = _pair(self._initial(k)), None if k else self.rows
        y, *_, tape = _core.forward(
            layer.cell, x, parameters, *_pair(before), None, rows, resets=resets, start=start, **options
        )
        return y, tape

    def _replayed(self, tau: int, stop: int) -> list[Any]:
        """Run these steps once more with the parameters of now; return the layers' tapes."""
        steps = slice(tau - self.first, stop - self.first)
        resets = None if self.resets is None else self.resets[steps]
        y, tapes = self.x[steps], []
        for k in range(self.layer.num_layers):
            y = y * self.masks[k - 1][steps] if k and self.masks else y
            y, tape = self._forward(k, y, self._before(k, tau), resets)
            tapes.append(tape)
        return tapes

    def _before(self, k: int, step: int) -> Parts:
        """Return the state of layer k before a step, as it was."""
        if step == 0:
            return self._initial(k)
        at = slice(step - self.first - 1, step - self.first)
        c = self.tapes[k].c
        return _parts(self.ys[k][at], None if c is None else c.reshape(self.ys[k].shape)[at])

    # Initial states: a learned one may change, as the weights do. New episodes begin with that of their time.

    def _initial(self, k: int) -> Parts:
        return tuple(part[k : k + 1] for part in self.initial)

    def _learned(self) -> Parts:
        return tuple(self.layer.parameters[name] for name in INITIAL if name in self.layer.parameters)

    def _begin_with(self, learned: Parts) -> None:
        for part, values in zip(self.initial, learned, strict=True):
            np.copyto(part, values[:, None])

    def _renew(self) -> None:
        """Take initial states and the embedding as they are now."""
        if self.learns:
            self._begin_with(self._learned())
        if self.rows is not self.given_rows:
            np.copyto(self.rows, self.given_rows)

    def _pieces(self, tau: int, stop: int) -> list[tuple[int, int, Parts]]:
        """Cut the steps, from the last to the first, where those begin that had another learned initial state."""
        if self.resets is None:  # it matters at step 0 only
            return [(tau, stop, self.learned[0][1])]
        ends = [*(first for first, _ in self.learned[1:]), stop]
        cut = [(max(first, tau), min(end, stop), a) for (first, a), end in zip(self.learned, ends, strict=True)]
        return [piece for piece in reversed(cut) if piece[0] < piece[1]]


class _Run:
    """A sequence on its way through a layer, window by window."""

    def __init__(
        self, module: Any, options: _Options, x: _Input, state: object, embedding: object, resets: object
    ) -> None:
        layer = as_layer(module)
        rows = None if embedding is None else _core.asarray(embedding, "embedding")
        chunk, unbatched = layer._checked_x(x.first, rows)
        tokens = rows is not None or (chunk.dtype.kind in "iu" and chunk.ndim < 3)
        self.module, self.layer, self.options, self.unbatched = module, layer, options, unbatched
        self.is_cell = isinstance(module, _RecurrentCell)
        self.suffix = "_l0" if self.is_cell else ""  # that the layer's names have more than the module's

        axis = int(layer.batch_first and not unbatched)
        self.form = (*chunk.shape[:axis], None, *chunk.shape[axis + 1 :])
        self.x = _Steps("x", x.chunks, self.form, None if tokens else layer.dtype)
        self.x.checked(chunk)
        self.T = None if x.goes_on else chunk.shape[axis]
        if self.T == 0:
            msg = f"x: expected at least one step, got shape {chunk.shape}"
            raise ValueError(msg)
        if rows is not None:
            checked(rows, "embedding", (*rows.shape[:1], layer.input_size), layer.dtype)
        self.resets = None
        if resets is not None:
            form = self.form if tokens else self.form[:-1]
            self.resets = _Steps("resets", _chunks(resets), form, np.dtype(np.bool_))
            if self.T is not None and not isinstance(resets, Iterator):
                checked(resets, "resets", chunk.shape[: len(form)], self.resets.dtype)

        _, B, *row = layer._time_major(chunk, unbatched).shape
        steps = self._capacity(B)
        self.ring = _Ring(
            layer,
            np.empty((steps, B, *row), np.intp if tokens else layer.dtype),
            None if resets is None else np.zeros((steps, B), np.bool_),
            None if state is None and layer.learn_initial_state else self._given_state(state, B),
            rows,
        )

    def _capacity(self, B: int) -> int:
        """Return for how many steps the ring has room.

        A window fits with the one before it and its first state, and half as many steps more, so that a step is moved
        about twice at most before it is forgotten.
        """
        k1, k2, *_ = self.options
        chunk = int(_core.chunks(None, MANY_STEPS, B, self.layer.hidden_size)[1])
        chunks = -(-(k1 + k2 + (k1 + k2) // 2) // chunk) + 1
        return chunks * chunk if self.T is None else min(chunks * chunk, self.T)

    def windows(self) -> Iterator[Window]:
        """Run and yield one window after the other."""
        ring, layer = self.ring, self.layer
        while n := self._read():
            start, state = ring.stop, ring.advance(n)
            tau = max(0, ring.stop - self.options.k2)
            if self.options.whole:
                start = tau
            y = layer._laid_out(ring.ys[-1][start - ring.first : ring.stop - ring.first].copy(), self.unbatched)
            yield Window(tau, start, ring.stop, y, self._laid_out(state), self)

    def _read(self) -> int:
        """Read the new steps of the next window into the ring; return their number."""
        ring, (k1, k2, *_) = self.ring, self.options
        n = k1 if self.T is None else min(k1, self.T - ring.stop)
        if ring.stop + n - ring.first > len(ring.x):
            ring.forget(max(0, ring.stop - k2 - 1))
        new = slice(ring.stop - ring.first, ring.stop - ring.first + n)
        n = self.x.read(ring.x[new, 0] if self.unbatched else ring.x[new])
        if self.resets is not None and ring.resets is not None:
            m = self.resets.read(ring.resets[new, 0] if self.unbatched else ring.resets[new])
            if m != n:
                msg = f"resets: expected as many steps as x, {ring.stop + n}, got {ring.stop + m}"
                raise ValueError(msg)
        return n

    def backward(
        self, window: Window, dy: object, grads: dict[str, Array] | None, out: tuple[Any, Any] | None
    ) -> dict[str, Array]:
        """Check the arguments of a window's backward and run it."""
        ring, layer, tau = self.ring, self.layer, window.tau
        if max(tau - 1, 0) < ring.first:
            msg = f"window: expected steps from {tau} on to be kept, but later windows have taken their place"
            raise RuntimeError(msg)
        given = layer._time_major(checked(dy, "dy", window.y.shape, layer.dtype), self.unbatched)
        dx_out, *dstate_out = self._checked_out(out, window.stop - tau)
        others = {} if ring.rows is None else {"embedding": ring.rows}
        self.module._check_grads(grads, given, ring.given_rows, dx_out, *dstate_out, **others)

        d = given[max(tau - window.start, 0) :]
        if window.start > tau:
            d = np.zeros((window.stop - tau, *given.shape[1:]), layer.dtype)
            d[window.start - tau :] = given
        new: list[Any] = [None] * layer.num_layers
        if grads is not None:
            of_layer = {name + self.suffix: a for name, a in grads.items()}
            new = [layer._tuples(of_layer, k) for k in range(layer.num_layers)]
        need_dx = dx_out is not None or ring.rows is not None
        dx, dinitial = ring.backward(tau, d, new, replay=self.options.replay, need_dx=need_dx)

        if grads is None:
            grads = self._named(new) | dict.fromkeys(others, dx)
        else:
            for name in others:
                grads[name] += dx
        if ring.learns:
            for name, part in zip(INITIAL, dinitial, strict=False):
                grads[name] += part.sum(axis=1)
        if dx_out is not None:
            np.copyto(layer._time_major(dx_out, self.unbatched), dx)
        for target, part in zip(dstate_out, dinitial, strict=False):
            if target is not None:
                np.copyto(target, part.reshape(target.shape))
        return grads

    def _given_state(self, state: object, B: int) -> Parts:
        """Return a copy of the given initial state as [L,B,H], zero where there is none."""
        layer = self.layer
        if self.is_cell:
            shape = (layer.hidden_size,) if self.unbatched else (B, layer.hidden_size)
            given = self.module._checked_state(state, "state", shape)
        else:
            given = layer._checked_state(state, "state", B, self.unbatched)
        initial = _parts(*split_state(layer.cell, layer._new_state(B), "state"))
        for part, a in zip(initial, split_state(layer.cell, given, "state"), strict=False):
            part[...] = 0 if a is None else a
        return initial

    def _laid_out(self, state: Parts) -> State:
        """Return the parts [L,B,H] of a state as the caller has it."""
        shaped = tuple(part.reshape(self._state_shape()) for part in state)
        return shaped if len(shaped) == 2 else shaped[0]

    def _state_shape(self) -> tuple[int, ...]:
        L, B, H = self.ring.initial[0].shape
        return (*(() if self.is_cell else (L,)), *(() if self.unbatched else (B,)), H)

    def _checked_out(self, out: tuple[Any, Any] | None, steps: int) -> tuple[Any, Any, Any]:
        """Return dx and the parts of dstate0 that a backward through these steps is to fill."""
        dx, h, c = split_out(self.layer.cell, out, "(dx, dstate0)") or (None, None, None)
        if dx is not None and self.x.dtype is None:
            msg = "out[0]: expected None, since x is tokens"
            raise ValueError(msg)
        if dx is not None:
            shape = tuple(steps if n is None else n for n in self.form)
            checked_target(dx, "out[0]", shape, self.layer.dtype)
        for part in (h, c):
            if part is not None:
                checked_target(part, "out[1]", self._state_shape(), self.layer.dtype)
        return dx, h, c

    def _named(self, new: list[Any]) -> dict[str, Array]:
        """Return the layers' gradients by the module's names."""
        made = {f"{name}_l{k}": a for k, [arrays] in enumerate(new) for name, a in zip(PARAMETERS, arrays, strict=True)}
        made |= {name: np.zeros_like(p) for name, p in self.module.parameters.items() if name in INITIAL}
        return {name: made[name + self.suffix] for name in self.module.parameters}
