"""Layers run over some steps at a time: of the states, only those between two segments are held, or none.

A group of strands shares its input. In one direction all layers are one strand: a segment passes through the whole
stack before the next one follows. In two directions each layer is a group of two strands, since the layer above has to
wait for both.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .. import _core
from .._base.arrays import Array, quiet
from .._base.names import ends_of
from .._base.scalars import Integer, size
from .._base.state import Parts, each, fill
from . import wave
from .call import Call, Given
from .stack import Stack, factors, new_state
from .tape import Checkpoints, LayerTape, Segment, Strand
from .zoneout import part_of

LEAST_ROWS = 1024  # of a segment to be run again, as weights and their gradients are packed for each


def checked_length(checkpoint: Integer | str, T: int) -> int:
    """Return the steps of a segment."""
    if isinstance(checkpoint, str):
        if checkpoint != "auto":
            msg = f"checkpoint: expected a number of steps or 'auto', got {checkpoint!r}"
            raise ValueError(msg)
        return max(math.isqrt(T), 1)
    return size(checkpoint, "checkpoint")


def infer(stack: Stack[Any], call: Call) -> tuple[tuple[()], Parts]:
    """Return the last state, holding no more of y than the next layer's input."""
    rows_at_once = 4096  # weights are packed again for each segment
    segments = _cut(stack, call, max(rows_at_once // max(call.layout.B, 1), 1))
    last = new_state(stack, call.layout)
    x: Any = call.rows
    for group in _groups(stack):
        y = _room_for_y(stack, call) if group[0].layers.stop < stack.num_layers else None
        for strand in group:
            _forward_strand(stack, call, strand, segments, x, y, last, [])
        x = y
    return (), last


@quiet
def forward(stack: Stack[Any], call: Call, k: int) -> tuple[tuple[Array, ...], Parts, Checkpoints]:
    """Return y of the top layer, or nothing if it is not wanted, the last state, and checkpoints."""
    segments = _cut(stack, call, k, LEAST_ROWS)
    last = new_state(stack, call.layout)
    kept = Checkpoints(segments, {}, [], _draw(stack, call, segments), {})
    x: Any = call.rows
    y: Any = None
    for group in _groups(stack):
        top = group[0].layers.stop == stack.num_layers
        y = None if top and call.outputs == "last" else _room_for_y(stack, call)
        kept.inputs.append(x)
        for strand in group:
            run = _forward_strand(stack, call, strand, segments, x, y, last, kept.bits, keep=True)
            kept.states[strand], kept.tapes[strand] = run
        if not top:
            x = y
            for n, segment in enumerate(segments if kept.bits else ()):
                x[segment.rows] *= _mask(stack, kept.bits[group[0].layers.start][n], x[segment.rows].shape)
    return () if y is None else (y,), last, kept


def backward(
    stack: Stack[Any], tape: LayerTape, given: Given, grads: dict[str, Array] | None, dfirst: Parts
) -> tuple[Array | None, dict[str, Array]]:
    """Run the segments again, from the last to the first, and backwards; fill dfirst, return dx and the gradients."""
    kept = tape.kept
    d: Any = given.dy
    made = {} if grads is None else {name: grads[name] for name in stack.parameters}
    for group, x in zip(reversed(_groups(stack)), reversed(kept.inputs), strict=True):
        bottom, top = group[0].layers.start, group[0].layers.stop - 1
        d = given.with_layer(d, top)
        parts = [_backward_strand(stack, tape, strand, x, d, given, made, dfirst) for strand in group]
        d = parts[0] if len(parts) == 1 or parts[0] is None else _sum(*parts)
        if bottom and kept.bits:
            for n, segment in enumerate(kept.segments):
                d[segment.rows] *= _mask(stack, kept.bits[bottom - 1][n], d[segment.rows].shape)
    return d, made


def _groups(stack: Stack[Any]) -> list[list[Strand]]:
    L = range(stack.num_layers)
    if stack.directions == 1:
        return [[Strand(L, 0)]]
    return [[Strand(range(k, k + 1), direction) for direction in (0, 1)] for k in L]


def _cut(stack: Stack[Any], call: Call, k: int, least_rows: int = 0) -> list[Segment]:
    """Cut time into segments of k steps or a few more: whole blocks of the sums of the weights' gradients."""
    layout = call.layout
    sizes = layout.batch_sizes
    if sizes is None:
        T, B = layout.row_shape
        sizes = np.full(T, B)
    T = len(sizes)
    first_row = np.append(0, np.cumsum(sizes))
    cuts = [0]
    for step in _core.chunks(layout.batch_sizes, T, int(sizes[0]), stack.hidden_size)[1:]:
        if step == T or (step - cuts[-1] >= k and first_row[step] - first_row[cuts[-1]] >= least_rows):
            cuts.append(step)
    segments = []
    for first, last in pairwise(cuts):
        ends = None
        if call.resets is not None and last < T:
            ends = np.zeros(sizes[last - 1], bool)
            ends[: sizes[last]] = call.resets.reshape(-1)[first_row[last] : first_row[last + 1]]
        rows = slice(first, last) if layout.batch_sizes is None else slice(first_row[first], first_row[last])
        segments.append(Segment(slice(first, last), rows, int(sizes[first]), ends))
    return segments


def _room_for_y(stack: Stack[Any], call: Call) -> Array:
    """Return room for y of all steps."""
    return np.empty((*call.layout.row_shape, stack.directions * stack.h_size), stack.dtype)


def _of_strand(stack: Stack[Any], state: Parts, strand: Strand) -> list[Parts]:
    """Return for each layer of the strand its state, each part [1,B,H]."""
    places = [k * stack.directions + strand.direction for k in strand.layers]
    return [tuple(None if part is None else part[place : place + 1] for part in state) for place in places]


def _first(B: int, state: Parts) -> Parts:
    """Return the state of the first B sequences."""
    return each(lambda part: part[:, :B], state)


def _run(
    run: Callable[..., Any],
    stack: Stack[Any],
    call: Call,
    strand: Strand,
    segment: Segment,
    x: Array,
    states: list[Parts],
    bits: list[Array],
    outs: list[tuple[Any, ...]] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Run a segment through the layers of the strand by `run` of the core; yield what that returns for each layer."""
    y = x[segment.rows]
    layout = call.layout
    if wave.pays(stack, call, len(y)):
        shape = (*y.shape[:2], stack.h_size)
        between = [_mask(stack, kept, shape) for kept in bits] if bits else None
        training = run is _core.forward
        yield from wave.run_forward(stack, call, y, states, between, segment.rows, outs, training=training)
        return
    initial = _of_strand(stack, call.state, strand)
    for n, k in enumerate(strand.layers):
        if n and bits:
            y = y * _mask(stack, bits[k - 1], y.shape)
        state, start = (_first(segment.B, parts) for parts in (states[n], initial[n]))
        factors, own = call.factors_of(k), slice(strand.direction, strand.direction + 1)
        result = run(
            stack.cell,
            y,
            [call.of_layer(stack, k)[strand.direction]],
            state,
            None if outs is None else outs[n],
            None if k else call.embedding,
            batch_sizes=None if layout.batch_sizes is None else layout.batch_sizes[segment.steps],
            resets=None if call.resets is None else call.resets[segment.rows],
            ends=segment.ends if strand.direction else None,
            start=start,
            gate_override=call.held[k],
            reverse=strand.direction == 1,
            recurrent_factors=None if factors is None else factors[own, : segment.B],
            zoneout=part_of(call.zoneout_of(k), segment.rows, strand.direction, stack.directions),
            candidate_dropout=call.candidates_of(ends_of(k, stack.directions)[own], segment.rows, segment.B),
            layer_norm_eps=stack.eps,
            rounded=call.rounded,
        )
        y = result[0]
        yield result


def _forward_strand(
    stack: Stack[Any],
    call: Call,
    strand: Strand,
    segments: list[Segment],
    x: Array,
    y: Array | None,
    last: Parts,
    bits: list[list[Array]],
    *,
    keep: bool = False,
) -> tuple[list[list[Parts]], list[_core.Tape]]:
    """Fill y and the last state; return the states before each segment, and the tapes of the last one if wanted."""
    units = _units(strand, stack.h_size)
    states = _of_strand(stack, last, strand)
    for parts, initial in zip(states, _of_strand(stack, call.state, strand), strict=True):
        fill(parts, initial)
    before: list[list[Parts]] = [[] for _ in segments]
    order = range(len(segments))[:: -1 if strand.direction else 1]
    for n in order:
        segment = segments[n]
        before[n] = [each(np.copy, parts) for parts in states]
        drawn = [masks[n] for masks in bits]
        kept = keep and n == order[-1]
        run = _core.forward if kept else _core.inference
        outs: list[tuple[Any, ...]] = [(None, _first(segment.B, parts)) for parts in states]
        if y is not None and not kept:
            outs[-1] = y[segment.rows][..., units], outs[-1][1]
        results = list(_run(run, stack, call, strand, segment, x, before[n], drawn, outs))
        if y is not None and kept:  # a tape has a y of its own: dropout changes this one
            y[segment.rows][..., units] = results[-1][0]
    return before, [tape for _, _, *tapes in results for tape in tapes]


def _backward_strand(
    stack: Stack[Any],
    tape: LayerTape,
    strand: Strand,
    x: Array,
    d: Array | None,
    given: Given,
    made: dict[str, Array],
    dfirst: Parts,
) -> Array | None:
    """Add to the gradients of the parameters in `made`, or put them there; fill dfirst and return dx."""
    kept, call, H = tape.kept, tape.call, stack.hidden_size
    units = _units(strand, stack.h_size)
    dstates, dstarts = _of_strand(stack, dfirst, strand), []
    for parts, values in zip(dstates, _of_strand(stack, given.dlast, strand), strict=True):
        fill(parts, values)
        dstarts.append(each(np.zeros_like, parts))
    bottom = strand.layers.start
    need_dx = given.need_dx or bottom > 0
    tokens = bottom == 0 and call.is_tokens
    dx = np.empty(x.shape, stack.dtype) if need_dx and not tokens else None
    dembedding = None
    order = range(len(kept.segments))[:: 1 if strand.direction else -1]
    for n in order:
        segment = kept.segments[n]
        drawn = [masks[n] for masks in kept.bits]
        tapes = kept.tapes[strand]
        if n != order[0]:
            states = kept.states[strand][n]
            tapes = [tape for *_, tape in _run(_core.forward, stack, call, strand, segment, x, states, drawn)]
        own = partial(_own, segment, units)
        d_n: Any = None if d is None else own(d)
        for k in reversed(strand.layers):
            if k < strand.layers.stop - 1:
                d_n = d_n * _mask(stack, drawn[k], d_n.shape) if drawn else d_n
                d_n = d_n if given.dh is None else d_n + own(given.dh[k])
            names = stack.names_of(k)[strand.direction]
            into = tuple(made.get(name) for name in names)
            dparts, dstart = (_first(segment.B, parts[k - bottom]) for parts in (dstates, dstarts))
            out = (dx[segment.rows], None) if dx is not None and k == bottom else None
            d_n, before, [new] = _core.backward(
                tapes[k - bottom],
                d_n,
                dparts,
                need_dx or k > bottom,
                None if into[0] is None else [into],
                out,
                dsteps=None
                if given.dsteps is None
                else each(partial(_own, segment, _units(strand, H)), given.dsteps[k]),
                clip_dh=given.clip_dh,
                dstart=dstart,
            )
            fill(dparts, before)
            made.update((name, array) for name, array in zip(names, new, strict=True) if array is not None)
        if dx is None:
            dembedding = d_n if dembedding is None else dembedding + d_n
    # Elsewhere the kernels do this, and where nothing starts anew they leave the sign of a zero as it is.
    restarts = call.resets is not None or (stack.directions == 2 and call.layout.batch_sizes is not None)
    for parts, starts in zip(dstates, dstarts, strict=True):
        for part, start in zip(parts, starts, strict=True):
            if restarts:
                part += start
    return dembedding if tokens else dx


def _units(strand: Strand, n: int) -> slice:
    """Return the columns of a direction, which has n of them."""
    return slice(strand.direction * n, (strand.direction + 1) * n)


def _own(segment: Segment, units: slice, rows: Array) -> Array:
    """Return what of [N,D·H] or [T,B,D·H] belongs to a segment and to the units of a direction."""
    part: Array = rows[segment.rows][..., units]
    return part


def _sum(a: Any, b: Any) -> Array:
    """Return a + b as the kernels add: a result below the smallest normal number is a zero of its sign."""
    total: Array = a + b
    return np.multiply(total, 0, out=total, where=np.abs(total) < np.finfo(total.dtype).tiny)


def _draw(stack: Stack[Any], call: Call, segments: list[Segment]) -> list[list[Array]]:
    """Draw the dropout after each layer but the last, a bit for each unit: what the whole sequence would draw."""
    if not stack.dropout:
        return []
    shape = (*call.layout.row_shape, stack.directions * stack.h_size)
    shapes = [(segment.rows.stop - segment.rows.start, *shape[1:]) for segment in segments]
    return [
        [np.packbits(stack.rng.random(shape, np.float32) >= stack.dropout) for shape in shapes]
        for _ in range(stack.num_layers - 1)
    ]


def _mask(stack: Stack[Any], bits: Array, shape: tuple[int, ...]) -> Array:
    kept = np.unpackbits(bits, count=math.prod(shape)).reshape(shape)
    return factors(stack, kept)
