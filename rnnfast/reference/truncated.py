"""Truncated backpropagation through time by windows, as the oracle does it: a stack, step by step.

Sizes are T time steps, B sequences, I inputs, H hidden units and L layers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .cells import CELLS, Array, State
from .sequence import Parameters, StateLike, Tape, _add, _filled, _float64, _sizes, _stacked, _where, backward, forward

Layers: TypeAlias = Sequence[Sequence[Sequence[Any]]]  # of a stack: of each layer, of each direction, the parameters


class Window(NamedTuple):
    """A window of TBPTT: the steps from tau to stop; those from start to stop have losses."""

    tau: int
    start: int
    stop: int


def windows(T: int, k1: int, k2: int, losses: Literal["new", "window"] = "new") -> list[Window]:
    """Return the windows of T steps: they end at k1, 2·k1, ... and at T, and reach back k2 steps.

    The losses are the new ones, of the steps since the previous window's end, or those of the whole window. Where k2 is
    less than k1 there are new steps before tau; their losses contribute nothing.

    Examples
    --------
    >>> [tuple(window) for window in windows(5, 2, 3)]
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    ends = pairwise([0, *range(k1, T, k1), T])
    taus = [(max(0, stop - k2), start, stop) for start, stop in ends]
    return [Window(tau, tau if losses == "window" else start, stop) for tau, start, stop in taus]


class Truncated(NamedTuple):
    """What one window of `tbptt` gives, for a stack of L layers."""

    y: Array  # [n,B,H], of the n steps since the previous window's end, as they were computed
    dx: Any  # [T,B,I], 0 outside the window; of tokens, of their embedding or None
    dstate0: State  # [L,B,H] each
    grads: list[list[Parameters]]  # as the layers


class StackStep(NamedTuple):
    """One step of a stack as it was computed."""

    before: list[State]  # of each layer, [1,B,H]
    tapes: list[Tape]  # of each layer
    y: Array  # [1,B,H]


def tbptt(
    cell: str,
    x: ArrayLike,
    layers: Layers,
    dys: Sequence[ArrayLike],
    k1: int,
    k2: int,
    state0: StateLike | None = None,
    *,
    losses: Literal["new", "window"] = "new",
    activations: Literal["stored", "replay"] = "stored",
    update: Callable[[int, Truncated], Layers] | None = None,
    embedding: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike] | None] | None = None,
    clip_dh: float | None = None,
    layer_norm_eps: float = 1e-5,
) -> list[Truncated]:
    """Run a stack of layers over the windows, one after the other: forward over its new steps, and backward to tau.

    The states of all layers at tau are constants, and what happens before tau is not seen. At tau = 0 they are the
    initial states, whose gradients are returned; so do the resets within any window add to these.

    Williams & Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories",
    Neural Computation 2(4), 1990: there BPTT(h; h') has h = k2 and h' = k1.

    Parameters
    ----------
    cell : str
        A key of `CELLS`.
    x : array_like [T,B,I], or of integers [T,B]
        The input of the first layer, or its tokens.
    layers : sequence of L parameters
        Those of each layer as `forward` takes them, with D = 1.
    dys : sequence of array_like [stop - start,B,H]
        For each of the `windows`, the gradient of the top layer's y.
    k1, k2 : int
        Steps from one window's end to the next, and steps of a window.
    state0 : tuple of array_like [L,B,H] or None, optional
        The initial state, an entry for each of the cell's states; zero where not given.
    losses : {"new", "window"}
        Whether a window has the losses of its new steps, or of all its steps.
    activations : {"stored", "replay"}
        Which activations the backward recursion, with the weights as they are now, goes over: those of the steps as
        they were computed, with the weights of their time; or those of the window run forward once more with the
        weights as they are now, from the state at tau as it was computed.
    update : callable, optional
        Called with each window's index and result, returns the layers from then on.
    embedding, lengths, resets, clip_dh, layer_norm_eps
        As those of `forward` and `backward`.
    gate_override : mapping, or sequence of L mappings or None, optional
        For all layers, or for each.

    Returns
    -------
    list of Truncated
        One of each window.
    """
    x = np.asarray(x)
    T, B, L = *x.shape[:2], len(layers)
    sizes = _sizes(CELLS[cell], _float64(layers[0][0]))
    held = [gate_override] * L if gate_override is None or isinstance(gate_override, Mapping) else gate_override
    ends = np.full(B, T) if lengths is None else np.asarray(lengths)
    anew = (np.zeros((T, B), np.bool_) if resets is None else np.asarray(resets, np.bool_))[..., None]
    first = _filled("state0", state0, CELLS[cell].states, [(L, B, n) for n in sizes])
    initial: list[State] = [tuple(s[k : k + 1] for s in first) for k in range(L)]
    none: State = tuple(np.zeros((1, B, n)) for n in sizes)

    def run(layers: Layers, state: list[State], times: range) -> tuple[list[StackStep], list[State]]:
        """Run the stack from a state over some time steps; return these and the last state."""
        steps = []
        for t in times:
            y, tapes = x[t : t + 1], []
            after: list[State] = []
            for k in range(L):
                y, last, tape = forward(
                    cell,
                    y,
                    layers[k],
                    _where(anew[t], initial[k], state[k]),
                    embedding=None if k else embedding,
                    lengths=np.clip(ends - t, 0, 1),
                    gate_override=held[k],
                    layer_norm_eps=layer_norm_eps,
                )
                tapes.append(tape)
                after.append(last)
            steps.append(StackStep(state, tapes, y))
            state = after
        return steps, state

    def run_backward(layers: Layers, steps: list[StackStep], window: Window, dy: Array) -> tuple[Any, ...]:
        """Run the steps of the window backwards; return dx, dstate0 and the layers' gradients."""
        weights = [[_float64(p) for p in layer] for layer in layers]
        dx = np.zeros(x.shape if embedding is None else np.shape(embedding))
        grads: list[Any] = [[tuple(None if w is None else np.zeros_like(w) for w in ws)] for [ws] in weights]
        dstate, dinitial = [none] * L, [none] * L
        for t in reversed(range(window.tau, window.stop)):
            d: Any = dy[t - window.start, None] if t >= window.start else None
            for k in reversed(range(L)):
                tape = steps[t - window.tau].tapes[k]._replace(parameters=weights[k])
                d, dbefore, new = backward(tape, d, dstate[k], clip_dh=clip_dh)
                dinitial[k] = _add(dinitial[k], _where(anew[t], dbefore, none))
                dstate[k] = _where(anew[t], none, dbefore)
                grads[k] = _add(grads[k], new)
            if embedding is not None:
                dx += d
            elif d is not None:
                dx[t] = d[0]
        if window.tau == 0:
            dinitial = _add(dinitial, dstate)
        dfirst = [tuple(ds[0] for ds in state) for state in dinitial]
        return dx if x.ndim == 3 or embedding is not None else None, _stacked(dfirst), grads

    steps: list[StackStep] = []
    state, results = initial, []
    for n, (window, dy) in enumerate(zip(windows(T, k1, k2, losses), dys, strict=True)):
        new, state = run(layers, state, range(len(steps), window.stop))
        steps += new
        y = np.concatenate([np.zeros((0, B, sizes[0])), *(step.y for step in new)])
        seen = steps[window.tau :]
        if activations == "replay" and seen:
            seen, _ = run(layers, seen[0].before, range(window.tau, window.stop))
        results.append(Truncated(y, *run_backward(layers, seen, window, np.asarray(dy, np.float64))))
        if update is not None:
            layers = update(n, results[-1])
    return results


@np.errstate(all="ignore")
def tbptt_gradient(
    cell: str,
    x: ArrayLike,
    layers: Layers,
    dy: ArrayLike,
    k1: int,
    k2: int,
    state0: StateLike | None = None,
    *,
    losses: Literal["new", "window"] = "new",
    **options: Any,
) -> tuple[Any, State, list[list[Parameters]]]:
    """Return dx, dstate0 and the layers' gradients summed over the windows of `tbptt`, for dy [T,B,H]."""
    dys = [np.asarray(dy)[w.start : w.stop] for w in windows(len(np.asarray(dy)), k1, k2, losses)]
    results = tbptt(cell, x, layers, dys, k1, k2, state0, losses=losses, **options)
    dx, dstate0, grads = reduce(_add, [tuple(result[1:]) for result in results])
    return dx, dstate0, grads
