"""The last steps of a sequence, for windows that reach back over them.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from .. import _core
from .._base.arrays import Array, quiet
from .._base.packed import integers
from .._base.precision import is_rounded
from .._base.state import Parts, each, initial_names
from .stack import Stack, mask, state_of_layer, state_shapes


class Steps:
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
        tokens = self.dtype is None
        a = integers(chunk, self.name, "integers as tokens") if tokens else _core.asarray(chunk, self.name, self.dtype)
        if a.ndim != len(self.form) or any(n not in (None, m) for n, m in zip(self.form, a.shape, strict=True)):
            sizes = ", ".join("T" if n is None else str(n) for n in self.form)
            msg = f"{self.name}: expected shape ({sizes}{',' * (a.ndim == 1)}), got {a.shape}"
            raise ValueError(msg)
        return a


class Turns:
    """Whose turn it is to use a ring: its steps move, or backwards go over them, one at a time.

    A move waits for the backward that is under way; a backward that finds steps moving raises RuntimeError. A thread
    that has a turn cannot take another one: a signal handler could, and would wait for itself.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}  # by process: in a forked child nobody has a turn
        self._owner = 0
        self._moves = False

    def move(self) -> AbstractContextManager[None]:
        """Take a turn to move the steps."""
        return self._turn(moves=True)

    def use(self) -> AbstractContextManager[None]:
        """Take a turn to read the steps."""
        return self._turn(moves=False)

    @contextmanager
    def _turn(self, *, moves: bool) -> Iterator[None]:
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        if not lock.acquire(blocking=False):
            if self._owner == threading.get_ident() or (self._moves and not moves):
                msg = "window: expected one use of the windows at a time, got one while the next window is computed"
                raise RuntimeError(msg)
            lock.acquire()
        self._owner, self._moves = threading.get_ident(), moves
        try:
            yield
        finally:
            self._owner = 0
            lock.release()


class Ring:
    """The last steps of sequences on their way through a stack, with all that a backward through them needs.

    Arrays of steps have room for a number of them: step `first` of the sequences is at their front, step `stop` is to
    come next. The kernels' tapes refer to them. The input of a layer is the y of the one below, if there is no dropout
    between them.
    """

    def __init__(
        self,
        stack: Stack[Any],
        x: Array,
        resets: Array | None = None,
        initial: Parts | None = None,
        embedding: Array | None = None,
    ) -> None:
        """Make room for as many steps as x [*,B,I] or [*,B] and resets [*,B] have, whose values are to come.

        Without an initial state [L,B,H] it is the one that the layer learns.
        """
        self.stack, self.x, self.resets, self.embedding = stack, x, resets, embedding
        # Of what is not contiguous the tapes would make a copy of their own, and not see it change.
        self.rows = None if embedding is None else np.ascontiguousarray(embedding)
        self.learns, self.rounded = initial is None, is_rounded(stack)
        room, B, H = *x.shape[:2], stack.hidden_size
        if initial is None:
            initial = tuple(np.empty(shape, stack.dtype) for shape in state_shapes(stack, B))
        self.initial = initial
        self.history: list[tuple[int, Parts]] = []  # of the learned initial states [L,H], by the first step with them
        self.first = self.stop = 0
        self.chunk = int(_core.chunks(None, room, B, H)[1])
        self.inputs: list[Array] = [x]
        self.masks: list[Array] = []  # the factors of dropout before each layer but the first
        self.ys: list[Array] = []
        self.tapes: list[_core.Tape] = []
        for k in range(stack.num_layers):
            below = self.ys[-1] if k else x
            if k and stack.dropout:
                below = np.empty_like(below)
                self.inputs.append(below)
                self.masks.append(np.empty_like(below))
            y, tape = self._forward(k, below, self._initial(k), resets, steps=(0, 0))
            self.ys.append(y)
            self.tapes.append(tape)

    def forget(self, steps: int) -> None:
        """Make room: forget steps before this one, as many as are whole chunks of the kernels."""
        gone = (steps - self.first) // self.chunk * self.chunk
        first, self.first = self.first + gone, self.stop  # nothing may be read that an interruption left half moved
        for a in (*self.inputs, *self.masks, *(() if self.resets is None else (self.resets,))):
            a[:-gone] = a[gone:]
        for tape in self.tapes:
            _core.shift(tape, gone)
        self.first = first

    @quiet
    def advance(self, n: int) -> Parts:
        """Run n steps, whose x is in place; return the state after them, [L,B,H]."""
        self._renew()
        if self.learns and not (self.history and all(map(np.array_equal, self._learned(), self.history[-1][1]))):
            self.history.append((self.stop, each(np.copy, self._learned())))
        while len(self.history) > 1 and self.history[1][0] <= self.first:
            del self.history[0]
        steps = slice(self.stop - self.first, self.stop - self.first + n)
        after = []
        for k, tape in enumerate(self.tapes):
            if k and self.masks:
                self.masks[k - 1][steps] = mask(self.stack, self.ys[k - 1][steps].shape)
                np.multiply(self.ys[k - 1][steps], self.masks[k - 1][steps], out=self.inputs[k][steps])
            resets = None if self.resets is None else self.resets[steps]
            after.append(_core.advance(tape, (steps.start, steps.stop), resets))
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
        dinitial = each(np.zeros_like, self.initial)
        for k in reversed(range(self.stack.num_layers)):
            dstart = state_of_layer(self.stack, dinitial, k)
            d: Parts | None = None
            dxs: list[Any] = []
            for low, high, initial in pieces:
                if initial is not None:
                    self._begin_with(initial)
                dx, d, grads[k] = _core.backward(
                    tapes[k],
                    dy[low - tau : high - tau],
                    d,
                    need_dx or k > 0,
                    grads[k],
                    dstart=dstart,
                    steps=(low - origin, high - origin),
                )
                dxs.insert(0, dx)
            if tau == 0 and d is not None:
                for start, part in zip(dstart, d, strict=True):
                    start += part
            if len(dxs) == 1 or dxs[0] is None:
                dy = dxs[0]
            else:
                dy = sum(dxs) if k == 0 and self.rows is not None else np.concatenate(dxs)
            if k and self.masks:
                dy *= self.masks[k - 1][tau - self.first : stop - self.first]
        return dy, dinitial

    def _forward(self, k: int, x: Array, before: Parts, resets: Array | None, **options: Any) -> tuple[Array, Any]:
        """Run layer k over x, or make room for it; return y and the tape."""
        cell, parameters = self.stack.cell, self.stack.of_layer(k)
        start, rows = self._initial(k), None if k else self.rows
        options |= {"resets": resets, "start": start, "layer_norm_eps": self.stack.eps, "rounded": self.rounded}
        y, _, tape = _core.forward(cell, x, parameters, before, None, rows, **options)
        return y, tape

    def _replayed(self, tau: int, stop: int) -> list[Any]:
        """Run these steps once more with the parameters of now; return the layers' tapes."""
        steps = slice(tau - self.first, stop - self.first)
        resets = None if self.resets is None else self.resets[steps]
        y, tapes = self.x[steps], []
        for k in range(self.stack.num_layers):
            y = y * self.masks[k - 1][steps] if k and self.masks else y
            y, tape = self._forward(k, y, self._before(k, tau), resets)
            tapes.append(tape)
        return tapes

    def _before(self, k: int, step: int) -> Parts:
        """Return the state of layer k before a step, as it was."""
        if step == 0:
            return self._initial(k)
        at = slice(step - self.first - 1, step - self.first)
        y = self.ys[k]
        return y[at], *(part.reshape(*y.shape[:2], part.shape[-1])[at] for part in self.tapes[k].states)

    # Initial states: a learned one may change, as the weights do. New episodes begin with that of their time.

    def _initial(self, k: int) -> Parts:
        return state_of_layer(self.stack, self.initial, k)

    def _learned(self) -> Parts:
        return tuple(self.stack.parameters[name] for name in initial_names(self.stack.cell))

    def _begin_with(self, learned: Parts) -> None:
        for part, values in zip(self.initial, learned, strict=True):
            np.copyto(part, values[:, None])

    def _renew(self) -> None:
        """Take initial states and the embedding as they are now."""
        if self.learns:
            self._begin_with(self._learned())
        if self.rows is not None and self.embedding is not None and self.rows is not self.embedding:
            np.copyto(self.rows, self.embedding)

    def _pieces(self, tau: int, stop: int) -> list[tuple[int, int, Parts]]:
        """Cut the steps, from the last to the first, where those begin that had another learned initial state."""
        if self.resets is None:  # it matters at step 0 only
            return [(tau, stop, self.history[0][1])]
        ends = [*(first for first, _ in self.history[1:]), stop]
        cut = [(max(first, tau), min(end, stop), a) for (first, a), end in zip(self.history, ends, strict=True)]
        return [piece for piece in reversed(cut) if piece[0] < piece[1]]
