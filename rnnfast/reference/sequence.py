"""Whole sequences, for any cell of the oracle: the loop over time, forward and backward.

Sizes are T time steps, B sequences, I inputs, H hidden units, G gates and D directions (1 or 2; the second runs
backwards in time). With a projection W_hr [P,H], h is ``W_hr u``, where u is what the cell makes, and so h' has P
elements; else P = H. Of the arrays of states below, those of h have P in place of H.

With zoneout, a part m of a state is what the cell makes, the rest what it was: ``s = m s~ + (1 - m) s'``. In training m
is 0 or 1, drawn for each unit, step and sequence; elsewhere it is the probability of 1. What a cell makes of the other
states, h of the LSTM, is made of its own c.

Sak, Senior, Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic
Modeling", Interspeech 2014. Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations",
2016 (arXiv:1606.01305).

With factors of h', the recurrent product meets ``m * h'`` in place of h' (so the GRU that resets before the product has
``r * m * h'``), where m are the same in all steps. Each sequence then has weights of its own, w_hh times its m, and
that is how it is written here.

Gal, Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks", arXiv:1512.05287, 2016.

With dropout of the candidate, g of an LSTM or n of a GRU, its factors are 0 or 1 / (1 - p), in each step others.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bfloat16 import rounding
from .cells import CELLS, Array, Backward, Cell, Kept, State, hold, linear, linear_backward, product, product_backward

StateLike: TypeAlias = tuple[ArrayLike | None, ...]
Parameters: TypeAlias = tuple[Any, ...]  # w_ih, w_hh, b_ih or None, b_hh or None, what else the cell has, maybe w_hr


class Tape(NamedTuple):
    """What `forward` keeps for `backward`; ``kept[d][t]`` is what direction d kept at time t."""

    cell: Cell
    x: Array
    parameters: list[Parameters]
    kept: list[list[Kept]]
    u: list[list[Any]]  # likewise what h is a projection of, [B,H]
    steps: State  # the states of every step, [T,B,D·H] each, 0 in the padding
    real: NDArray[np.bool_]  # [T,B,1], False in the padding
    anew: list[NDArray[np.bool_]]  # [T,B,1], by direction: the step starts from the initial state
    held: Mapping[str, ArrayLike]
    one_hot: Array | None  # [T,B,V], of tokens
    embedding: Array | None
    factors: list[Any]  # by direction, what each sequence multiplies w_hh by, [B,G·H,H], or None
    candidate: list[Any]  # by direction and step, what the candidate is multiplied by, [B,H] or None
    normed: list[list[Kept]]  # like kept, what normalised input products keep
    new: tuple[Any, ...]  # of each state, the part that the cell makes, [T,B,D·H]; None: it has no zoneout
    rounded: bool


@np.errstate(all="ignore")  # infinity and NaN pass
def forward(
    cell: str,
    x: ArrayLike,
    parameters: Sequence[Sequence[Any]],
    state0: StateLike | None = None,
    *,
    embedding: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, ArrayLike] | None = None,
    recurrent_factors: ArrayLike | None = None,
    candidate_dropout: tuple[ArrayLike, float] | None = None,
    zoneout: StateLike | None = None,
    layer_norm_eps: float = 1e-5,
    rounded: bool = False,
) -> tuple[Array, State, Tape]:
    """Run one layer over whole sequences.

    Parameters
    ----------
    cell : str
        A key of `CELLS`.
    x : array_like [T,B,I], or of integers [T,B]
        The input, or its tokens.
    parameters : sequence of D tuples
        w_ih [G·H,I], w_hh [G·H,P], b_ih [G·H] or None, b_hh [G·H] or None of each direction, the other parameters
        that the cell has (of them b_c may be None, too), and with a projection w_hr [P,H].
    state0 : tuple of array_like [D,B,H] or None, optional
        The initial state, an entry for each of the cell's states; zero where not given.
    embedding : array_like [V,I], optional
        What the tokens select rows of. By default, those of the identity: they are one-hot.
    lengths : array_like of integers [B], optional
        How many steps of each sequence are real, 0 to T. What follows is padding, whatever it holds: y is 0 there, the
        state waits, and the second direction starts at each sequence's own end.
    resets : array_like of bools [T,B], optional
        Where an episode starts: before the step the state is the initial one again. The second direction comes from
        the other side: for it the steps before these start anew.
    gate_override : mapping, optional
        The value that a gate is held at, by the gate's name: i, f, g, o of the LSTM (without f where gates are
        coupled), r, z, n of the GRU.
    recurrent_factors : array_like [D,B,H] or [D,B,G,H], optional
        What h' of each sequence is multiplied by before it meets w_hh, for all gates or for each.
    candidate_dropout : pair (kept, p), optional
        Which candidates of an LSTM or a GRU are kept, array_like of bools [T,B,D·H], or [1,B,D·H] for all steps, and
        the rate of the others: kept ones are multiplied by 1 / (1 - p).
    zoneout : tuple, optional
        For each of the cell's states an array_like of bools [T,B,D·H], which units have their new value; or the
        probability with which they keep the old one, of which the state is the mean; or None. Not with a projection.
    layer_norm_eps : float, optional
        What is added to the variances of cells that normalise.
    rounded : bool, optional
        The factors of products are rounded to bfloat16, here and in `backward`. Those with w_hh and recurrent_factors
        are h', and w_hh times them: rounded like h' times them and w_hh where the factors are powers of two.

    Returns
    -------
    y : ndarray [T,B,D·P]
        h of every step, the directions side by side.
    state : tuple of ndarray [D,B,H]
        The last state.
    tape : Tape
        For `backward`.

    Raises
    ------
    ValueError
        If state0 is no such tuple, or a gate is held that the cell lacks.
    TypeError
        If there is candidate_dropout, but the cell drops no candidate.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((3, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    >>> y, state, tape = forward("rnn_relu", x, [(w_ih, w_hh, None, None)])
    >>> y.ravel()
    array([1., 2., 3.])
    >>> dx, dstate0, grads = backward(tape, dstate=(np.ones((1, 1, 1)),))
    >>> grads[0][1]  # dw_hh: h' of the three steps, 0 + 1 + 2
    array([[3.]])
    """
    step = CELLS[cell]
    if step.normalized:
        step = step._replace(forward=partial(step.forward, eps=layer_norm_eps))
    held = gate_override or {}
    if not held.keys() <= set(step.gates):
        msg = f"gate_override: expected gates among {list(step.gates)}, got {list(held)}"
        raise ValueError(msg)
    x = np.asarray(x)
    T, B = x.shape[:2]
    real = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.asarray(lengths))
    starts = np.zeros((T, B), np.bool_) if resets is None else np.asarray(resets, np.bool_) & real
    ends = np.zeros_like(starts)
    ends[:-1] = starts[1:]
    x = np.where(real.reshape(T, B, *[1] * (x.ndim - 2)), x, 0)

    weights = [_float64(p) for p in parameters]
    rows = None if embedding is None else np.asarray(embedding, np.float64)
    one_hot = None
    if x.ndim == 2:
        one_hot = np.eye(weights[0][0].shape[1] if rows is None else len(rows))[x]
        x = one_hot if rows is None else one_hot @ rows
    x = np.asarray(x, np.float64)
    D, sizes = len(weights), _sizes(step, weights[0])
    tape = Tape(
        cell=step,
        x=x,
        parameters=weights,
        kept=[[()] * T for _ in weights],
        u=[[None] * T for _ in weights],
        steps=tuple(np.zeros((T, B, D * n)) for n in sizes),
        real=real[..., None],
        anew=[starts[..., None], ends[..., None]],
        held=held,
        one_hot=one_hot,
        embedding=rows,
        factors=_by_weight(recurrent_factors, weights),
        candidate=_by_step(candidate_dropout, T, D),
        normed=[[()] * T for _ in weights],
        new=tuple(_new_part(z, (T, B, D * n)) for z, n in zip(zoneout or [None] * len(sizes), sizes, strict=True)),
        rounded=rounded,
    )
    first, last = _filled("state0", state0, step.states, [(D, B, n) for n in sizes]), []
    for d, (w_ih, w_hh, b_ih, b_hh, *more) in enumerate(weights):
        gain_ih, vectors, w_hr = _own(step, more)
        initial: State = tuple(s[d] for s in first)
        state = initial
        for t in _times(T, d):
            state = _where(tape.anew[d][t], initial, state)
            with rounding(rounded):
                a, *normed = product(x[t], w_ih, b_ih, gain_ih, layer_norm_eps)
            tape.normed[d][t] = tuple(normed)
            own = b_hh, partial(hold, held), *vectors
            factors = tape.factors[d], tape.candidate[d][t]
            with rounding(rounded):
                made, tape.kept[d][t] = _forward_step(step, factors, a, state, w_hh, *own)
                if w_hr is not None:
                    tape.u[d][t] = made[0]
                    made = (linear(made[0], w_hr, None), *made[1:])
            new = _columns(tape.new, t, d, sizes)
            made = tuple(s if m is None else m * s + (1 - m) * old for m, s, old in zip(new, made, state, strict=True))
            for s, part in zip(_columns(tape.steps, t, d, sizes), made, strict=True):
                s[:] = np.where(tape.real[t], part, 0)
            state = _where(tape.real[t], made, state)
        last.append(state)
    return tape.steps[0].copy(), _stacked(last), tape


class Gradients(NamedTuple):
    """What `gradients` returns; the first three are what `backward` returns."""

    dx: Any
    dstate0: State
    grads: list[Parameters]
    dsteps: State


def backward(
    tape: Tape,
    dy: ArrayLike | None = None,
    dstate: StateLike | None = None,
    *,
    dsteps: StateLike | None = None,
    clip_dh: float | None = None,
) -> tuple[Any, State, list[Parameters]]:
    """Run the layer that made the tape backwards: `gradients` without those of every step."""
    return gradients(tape, dy, dstate, dsteps=dsteps, clip_dh=clip_dh)[:3]


@np.errstate(all="ignore")
def gradients(
    tape: Tape,
    dy: ArrayLike | None = None,
    dstate: StateLike | None = None,
    *,
    dsteps: StateLike | None = None,
    clip_dh: float | None = None,
) -> Gradients:
    """Return the gradients of ``sum(dy*y) + sum(dstate*state) + sum(dsteps*steps)``, summed over the states.

    Parameters
    ----------
    tape : Tape
        From `forward`.
    dy : array_like [T,B,D·P], optional
        The gradient of y, zero where not given; what it holds in the padding does not count.
    dstate : tuple of array_like [D,B,H] or None, optional
        The gradient of the last state, an entry for each of the cell's states; zero where not given.
    dsteps : tuple of array_like [T,B,D·H] or None, optional
        As dy, for every step's states beside h, an entry for each.
    clip_dh : float, optional
        The bound of every element, up or down, that a step passes back to the state before it.

    Returns
    -------
    dx : ndarray [T,B,I] or None
        Of tokens, the gradient of their embedding [V,I]; None if they have none.
    dstate0 : tuple of ndarray [D,B,H]
        The gradient of the initial state, summed over the episodes.
    grads : list of D tuples
        dw_ih, dw_hh, db_ih, db_hh of each direction, None where there is no bias, and those of the other parameters.
    dsteps : tuple of ndarray [T,B,D·H]
        All of the gradient with respect to the states of every step, h among them: what is given, what comes through
        time, and what comes through the step's h. Zero in the padding.

    Raises
    ------
    ValueError
        If dstate or dsteps is no such tuple.
    """
    step, x, weights = tape.cell, tape.x, tape.parameters
    T, B, D, sizes = *x.shape[:2], len(weights), _sizes(step, weights[0])
    zero = dict.fromkeys(tape.held, 0.0)
    h, *others = step.states
    shape_h, *shapes = [(T, B, D * n) for n in sizes]
    given = _filled("dy", (dy,), [h], [shape_h]) + _filled("dsteps", dsteps, others, shapes)
    total = tuple(ds.copy() for ds in given)  # to each step is added what comes through time
    dx: Any = np.zeros_like(x)
    dlast = _filled("dstate", dstate, step.states, [(D, B, n) for n in sizes])
    dfirst, grads = [], []
    for d, (w_ih, w_hh, _, _, *more) in enumerate(weights):
        gain_ih, vectors, w_hr = _own(step, more)
        dw_hr = np.zeros(() if w_hr is None else w_hr.shape)
        dnext: State = tuple(ds[d] for ds in dlast)
        none: State = tuple(np.zeros_like(ds) for ds in dnext)
        dinitial = none
        dw_ih, dw_hh = np.zeros_like(w_ih), np.zeros_like(w_hh)
        db_ih, db_hh = np.zeros(len(w_ih)), np.zeros(len(w_hh))
        dvectors = [np.zeros(n * sizes[-1]) for n in step.parameters.values()]
        of_x = len(dvectors) - len(vectors)  # 1 with gain_ih
        for t in reversed(_times(T, d)):
            real, anew = tape.real[t], tape.anew[d][t]
            here = _columns(total, t, d, sizes)
            waits = _where(real, none, dnext)
            dmade = _where(real, _add(dnext, here), none)
            new, dall = _columns(tape.new, t, d, sizes), dmade
            dmade = tuple(ds if m is None else m * ds for m, ds in zip(new, dall, strict=True))
            dold = tuple(np.zeros_like(ds) if m is None else (1 - m) * ds for m, ds in zip(new, dall, strict=True))
            dh = dmade[0]
            if w_hr is not None:
                with rounding(tape.rounded):
                    du, dw, _ = linear_backward(dh, tape.u[d][t], w_hr)
                dw_hr += dw
                dmade = (du, *dmade[1:])
            own = partial(hold, zero), *vectors
            factors = tape.factors[d], tape.candidate[d][t]
            with rounding(tape.rounded):
                da, dmade, dbefore, dparameters = _backward_step(step, factors, dmade, tape.kept[d][t], w_hh, *own)
            dmade = (dh, *dmade[1:])
            dbefore = _add(dbefore, dold)
            for ds, m, before_zoneout, made in zip(here, new, dall, dmade, strict=True):
                ds[:] = made if m is None else before_zoneout
            if clip_dh is not None:
                dbefore = tuple(np.clip(ds, -clip_dh, clip_dh) for ds in dbefore)
            dinitial = _add(dinitial, _where(anew, dbefore, none))
            dnext = _add(_where(anew, none, dbefore), waits)
            with rounding(tape.rounded):
                dx_t, *dparameters_x = product_backward(da, x[t], w_ih, gain_ih, tape.normed[d][t])
            dx[t] += dx_t
            totals = dw_hh, db_hh, *dvectors[of_x:], dw_ih, db_ih, *dvectors[:of_x]
            for total_of, d_new in zip(totals, (*dparameters, *dparameters_x), strict=True):
                total_of += d_new
        dfirst.append(_add(dinitial, dnext))
        everything = zip((dw_ih, dw_hh, db_ih, db_hh, *dvectors, dw_hr), weights[d], strict=False)
        grads.append(tuple(None if w is None else dw for dw, w in everything))
    if tape.one_hot is not None:
        dx = None if tape.embedding is None else np.einsum("tbv,tbi->vi", tape.one_hot, dx)
    return Gradients(dx, _stacked(dfirst), grads, total)


def gates(tape: Tape) -> list[dict[str, Array]]:
    """Return the gates of every step by name, [T,B,H] each, 0 in the padding, for each direction."""
    kept = [[step[len(tape.cell.states) :] for step in steps] for steps in tape.kept]
    return [
        {name: np.where(tape.real, np.array([step[k] for step in steps]), 0) for k, name in enumerate(tape.cell.gates)}
        for steps in kept
    ]


def _by_weight(factors: ArrayLike | None, weights: list[Parameters]) -> list[Any]:
    """Return for each direction what the elements of w_hh are multiplied by, for each sequence."""
    if factors is None:
        return [None] * len(weights)
    m = np.asarray(factors, np.float64)
    rows = len(weights[0][1])
    m = m[:, :, None] if m.ndim == 3 else m
    return list(np.repeat(m, rows // m.shape[2], axis=2))


def _by_step(dropout: tuple[ArrayLike, float] | None, T: int, D: int) -> list[Any]:
    """Return for each direction and step what the candidate is multiplied by."""
    if dropout is None:
        return [[None] * T] * D
    kept, rate = dropout
    m = np.asarray(kept, np.float64) / (1 - rate)
    return [np.broadcast_to(part, (T, *part.shape[1:])) for part in np.split(m, D, axis=2)]


def _forward_step(step: Cell, factors: Any, a: Array, state: State, w_hh: Array, *own: Any) -> tuple[State, Kept]:
    """Run a step of the cell, a sequence at a time where each has its own weights."""
    of_weights, candidate = factors
    if of_weights is None or not len(a):
        return step.forward(a, state, w_hh, *own, **_candidate(candidate))
    steps = []
    for b, m in enumerate(of_weights):
        row = slice(b, b + 1)
        of_b = a[row], tuple(s[row] for s in state), w_hh * m
        steps.append(step.forward(*of_b, *own, **_candidate(candidate, row)))
    return _concatenated(made for made, _ in steps), _concatenated(kept for _, kept in steps)


def _backward_step(step: Cell, factors: Any, dstate: State, kept: Kept, w_hh: Array, *own: Any) -> Backward:
    """Run it backwards."""
    of_weights, candidate = factors
    if of_weights is None or not len(dstate[0]):
        return step.backward(dstate, kept, w_hh, *own, **_candidate(candidate))
    steps: list[Backward] = []
    for b, m in enumerate(of_weights):
        row = slice(b, b + 1)
        of_b: Any = [tuple(part[row] for part in parts) for parts in (dstate, kept)]
        steps.append(step.backward(*of_b, w_hh * m, *own, **_candidate(candidate, row)))
    da, dmade, dbefore, new = zip(*steps, strict=True)
    of_all = [(dw * m, *others) for (dw, *others), m in zip(new, of_weights, strict=True)]
    total = tuple(np.sum(parts, axis=0) for parts in zip(*of_all, strict=True))
    return np.concatenate(da), _concatenated(dmade), _concatenated(dbefore), total


def _candidate(m: Array | None, rows: slice = slice(None)) -> dict[str, Array]:
    """Return the factors of a step's candidate as the cell takes them, if there are any."""
    return {} if m is None else {"m": m[rows]}


def _concatenated(states: Iterable[State]) -> State:
    """Return the state of all sequences, from that of each of them."""
    return tuple(np.concatenate(parts) for parts in zip(*states, strict=True))


def _times(T: int, d: int) -> range:
    """Return the time steps in the order in which direction d takes them."""
    return range(T) if d == 0 else range(T - 1, -1, -1)


def _new_part(zoneout: Any, shape: tuple[int, ...]) -> Array | None:
    """Return the part of a state that is new: of bools they themselves, of a rate what it leaves."""
    if zoneout is None:
        return None
    return np.asarray(zoneout, np.float64) if np.ndim(zoneout) else np.full(shape, 1 - zoneout)


def _float64(parameters: Sequence[Any]) -> Parameters:
    return tuple(None if p is None else np.asarray(p, np.float64) for p in parameters)


def _sizes(step: Cell, parameters: Parameters) -> list[int]:
    """Return the sizes of the states: P of h, H of the others."""
    _, w_hh, _, _, *more = parameters
    *_, w_hr = _own(step, more)
    H = len(w_hh) // max(len(step.gates), 1)
    P = H if w_hr is None else len(w_hr)
    return [P, *[H] * (len(step.states) - 1)]


def _own(step: Cell, more: Sequence[Any]) -> tuple[Any, list[Any], Any]:
    """Return gain_ih or None, what else the cell has beside its weights, and w_hr or None."""
    n, of_x = len(step.parameters), int(step.normalized)
    gain_ih, w_hr = (more[0] if of_x else None), (more[n] if len(more) > n else None)
    return gain_ih, list(more[of_x:n]), w_hr


def _columns(steps: tuple[Any, ...], t: int, d: int, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return what belongs to a step and a direction of the states of all steps; None where there are none."""
    return tuple(None if s is None else s[t, :, d * n : (d + 1) * n] for s, n in zip(steps, sizes, strict=True))


def _filled(name: str, given: Any, states: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> State:
    """Return what is given for the states, arrays of their shapes, zeros where there is none."""
    if given is None:
        given = (None,) * len(states)
    if not isinstance(given, tuple) or len(given) != len(states):
        msg = f"{name}: expected a tuple of {len(states)}, for {', '.join(states)}"
        raise ValueError(msg)
    return tuple(
        np.zeros(shape) if s is None else np.asarray(s, np.float64) for s, shape in zip(given, shapes, strict=True)
    )


def _where(mask: NDArray[np.bool_], a: State, b: State) -> State:
    """Return the state a where the mask is True, b elsewhere."""
    return tuple(np.where(mask, p, q) for p, q in zip(a, b, strict=True))


def _add(a: Any, b: Any) -> Any:
    """Return a + b, of arrays or of tuples and lists of them; None where there are None."""
    if a is None or isinstance(a, np.ndarray):
        return a if a is None else a + b
    return type(a)(_add(p, q) for p, q in zip(a, b, strict=True))


def _stacked(states: list[State]) -> State:
    """Return the state of all directions or layers, [D,B,H] or [L,B,H] each, from the state of each of them."""
    return tuple(np.stack(s) for s in zip(*states, strict=True))
