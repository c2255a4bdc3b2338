"""Calls of layers, cells and streams, and what makes them."""

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import modules
import numpy as np
from modules import (
    KINDS,
    ONE_STEP,
    candidates_of,
    factors_of,
    make_layer,
    normal,
    oracle,
    results,
    swap,
    with_gradients_of,
    without,
    zoneout_of,
)
from problems import (
    CELLS,
    DTYPES,
    Array,
    Results,
    Shape,
    make_problem,
    named,
    named_state,
    num_states,
    parts,
    state_names,
    state_of,
)

import rnnfast
from fuzz.attempts import Attempt, Rng, choose
from fuzz.drawn import INTEGER_KINDS, layer_projection, sequence_options, state_in, time_major
from fuzz.forms import disguised
from rnnfast import _core, functional, reference
from rnnfast._base.formats import FORMATS
from rnnfast.hopfield import Hopfield
from rnnfast.reference import quantized
from rnnfast.reference.quantized import Rows
from rnnfast.reservoir import ESN


def whole_layer(rng: Rng) -> Attempt:
    """Run a layer forwards and backwards."""
    L, (T, B, I, H) = int(rng.integers(1, 4)), (int(n) for n in rng.integers(1, 8, 4))
    options: dict[str, Any] = {
        name: bool(rng.random() < 0.5) for name in ("bias", "batch_first", "bidirectional", "learn_initial_state")
    }
    options |= {"num_layers": L, "dtype": choose(rng, DTYPES), "rng": int(rng.integers(2**31))}
    kind = choose(rng, list(KINDS))
    unbatched = rng.random() < 0.2
    batch = () if unbatched else (0 if rng.random() < 0.05 else B,)
    given_rows, steps, bad = sequence_options(rng, kind, T, batch)
    plain = given_rows["lengths"] is None and given_rows["checkpoint"] is None  # only then are the masks [T,B,D·H]
    options["dropout"] = 0.5 if L > 1 and plain and rng.random() < 0.3 else 0.0
    options["weight_dropout"] = choose(rng, (0.4, ("rows", 0.4))) if rng.random() < 0.3 else 0.0
    projection = layer_projection(rng, kind, H)
    if not projection and not kind.startswith("slstm") and rng.random() < 0.3:
        options |= {"recurrent_dropout": 0.4, "recurrent_dropout_per_gate": bool(rng.random() < 0.5)}
    if not projection.get("proj_size") and not kind.startswith("slstm") and rng.random() < 0.3:
        options["zoneout"] = 0.3
    if _core.cells[kind].has_candidate and rng.random() < 0.3:
        options |= {"candidate_dropout": 0.4, "candidate_dropout_per_sequence": bool(rng.random() < 0.5)}
    if _core.cells[kind].normalises:
        options["layer_norm_eps"] = choose(rng, (0.1, 0.5, 1.0))
    layer = make_layer(kind, (I, H), **options, **projection)
    sizes, D = modules.state_sizes(layer), layer.directions
    last = given_rows["outputs"] == "last"
    slots = {
        name: normal(shape, layer.dtype, int(rng.integers(2**31)))
        for name, shape in {
            "x": (T, *batch, I),
            "dy": (*(() if last else (T,)), *batch, D * sizes[0]),
            "dc_steps": (L, T, *batch, D * H),
            "dh_layers": (L, T, *batch, D * sizes[0]),
            **{
                name: (L * D, *batch, n)
                for form in ("{}", "d{}")
                for name, n in zip(state_names(kind, form), sizes, strict=True)
            },
        }.items()
    }
    if "n" in slots:
        slots["n"] = np.abs(slots["n"]) + slots["n"].dtype.type(0.5)
    slots["resets"] = rng.random((T, *batch)) < 0.2
    for name, unwanted in (("dc_steps", "c" not in _core.cells[kind].states), ("dh_layers", False), ("resets", False)):
        if unwanted or rng.random() < 0.7:
            del slots[name]
    originals = dict(slots)
    if not unbatched:
        slots |= {
            name: swap(slots[name], layer) for name in ("x", "resets", *(() if last else ("dy",))) if name in slots
        }
        if layer.batch_first:
            slots |= {name: slots[name].swapaxes(1, 2) for name in ("dc_steps", "dh_layers") if name in slots}
    given, need_dx, stateful = rng.random() < 0.5, rng.random() < 0.8, rng.random() < 0.7
    if given:
        slots |= {f"g {name}": np.zeros_like(p) for name, p in layer.parameters.items()}
    masks: list[Array] = []
    of_weights: Results = {}
    of_h: Results = {}
    of_units: Results = {}
    of_candidates: Results = {}

    for name in () if stateful else state_names(kind):
        del slots[name]

    def call() -> Results:
        state = state_of(state_in(slots, kind, "{}")) if stateful else None
        y, after, tape = layer.forward(slots["x"], state, resets=slots.get("resets"), **given_rows)
        masks[:] = tape.masks
        of_weights.update(tape.weight_masks)
        of_h.update(tape.recurrent_masks)
        of_units.update(tape.zoneout_masks)
        of_candidates.update(tape.candidate_masks)
        grads = {name: slots[f"g {name}"] for name in layer.parameters} if given else None
        dstate = state_of(state_in(slots, kind, "d{}"))
        every = {"dc": slots.get("dc_steps"), "dh_layers": slots.get("dh_layers"), **steps}
        with disguised(rng, [slots["x"], *parts(state), *parts(after)]):
            back = layer.backward(tape, slots["dy"], dstate, need_dx=need_dx, grads=grads, **every)
        return results(y, after, *back)

    def expected() -> Results:
        def batched(a: Array) -> Array:
            return np.expand_dims(a, a.ndim - 1) if unbatched else a

        values = {name: batched(a) for name, a in originals.items() if name != "resets"}
        state = state_in(values, kind, "{}") if stateful else None
        dstate, dy = state_in(values, kind, "d{}"), None if last else values["dy"]
        if last:
            dh, *others = dstate
            dh = dh.copy()
            dh[-D:] += values["dy"].reshape(-1, D, sizes[0]).swapaxes(0, 1)
            dstate = (dh, *others)
        every = {"dc": values.get("dc_steps"), "dh_layers": values.get("dh_layers"), **steps}
        rows = {"lengths": given_rows["lengths"]}
        if "resets" in originals:
            rows["resets"] = originals["resets"].reshape(T, -1) if originals["resets"].size else np.zeros((T, 0), bool)
        held = [given_rows["gate_override"]] * L
        twin, factors = without(layer, of_weights)
        every["factors"] = factors_of(layer, {name: mask[None] if unbatched else mask for name, mask in of_h.items()})
        every["zoneout"] = zoneout_of(layer, time_major(layer, of_units, T))
        steps_of = 1 if options.get("candidate_dropout_per_sequence") else T
        every["candidates"] = candidates_of(layer, time_major(layer, of_candidates, steps_of))
        wanted = oracle(twin, values["x"], state, dy, dstate, tuple(masks), held=held, **every, **rows)
        wanted = with_gradients_of(factors, wanted)
        if last:
            wanted["y"] = wanted["h0"][-D:].swapaxes(0, 1).reshape(-1, D * sizes[0])
        if not need_dx:
            del wanted["dx"]
        sequences = {name: a for name, a in wanted.items() if name in ("y", "dx")}
        part_names = {f"{d}h{k}" for d in ("", "d") for k in range(num_states(kind))}
        states = {name: a[:, 0] if unbatched else a for name, a in wanted.items() if name in part_names}
        laid_out = {name: a[:, 0] if unbatched else swap(a, layer) for name, a in sequences.items()}
        if last:
            laid_out["y"] = wanted["y"][0] if unbatched else wanted["y"]
        return {**wanted, **states, **laid_out}

    written = frozenset(name for name in slots if name.startswith("g "))
    watched = [*layer.parameters.values()]
    return Attempt(type(layer).__name__, call, slots, written, bad=bad, expected=expected, watched=watched)


def steps_to_come(rng: Rng) -> Attempt:
    """Run a tape's steps as they come, in any order and out of range."""
    T, B = int(rng.integers(1, 9)), choose(rng, (0, 1, 3, 200))
    p: Any = make_problem(choose(rng, CELLS), choose(rng, DTYPES), Shape(T, B, 3, 5), seed=0)
    resets = np.zeros((T, B), bool) if rng.random() < 0.5 else None
    *_, tape = _core.forward(p.cell, p.x, p.parameters, resets=resets, steps=(0, 0))

    def some() -> int:
        return int(choose(rng, (-(2**63), -1, T + 1, 2**62, *range(T + 1))))

    def call() -> Results:
        for _ in range(8):
            steps = some(), some()
            n = max(min(steps[1], T) - max(steps[0], 0), 0)
            calls: tuple[Callable[[], Any], ...] = (
                partial(_core.advance, tape, steps),
                partial(_core.advance, tape, steps, np.zeros((n, B), bool)),
                partial(_core.shift, tape, steps[0]),
                partial(_core.backward, tape, p.dy[:n], steps=steps),
                partial(_core.chunks, None, min(steps[0], 99), min(steps[1], 99), 5),
            )
            with contextlib.suppress(ValueError):
                choose(rng, calls)()
        return {}

    return Attempt("steps to come", call, free=True, watched=[p.x, p.dy])


def streaming(rng: Rng) -> Attempt:
    """Step or run a stream that is on its way."""
    L, (T, B, I, H) = int(rng.integers(1, 4)), (int(n) for n in rng.integers(1, 8, 4))
    options: dict[str, Any] = {name: bool(rng.random() < 0.5) for name in ("bias", "batch_first")}
    options |= {"num_layers": L, "dtype": choose(rng, DTYPES), "rng": int(rng.integers(2**31))}
    kind = choose(rng, list(KINDS))
    layer = make_layer(kind, (I, H), **options, **layer_projection(rng, kind, H))
    stream = layer.stream(B + 1)  # of one sequence, arrays of two ranks are legal
    x = normal((2 + T, B + 1, I), layer.dtype, int(rng.integers(2**31)))
    stream.run(swap(x[:2], layer))
    steps = rng.random() < 0.5
    slots: dict[str, Any] = {"x": swap(x[2:], layer).copy() if steps else x[2].copy()}
    slots["out"] = np.zeros((*slots["x"].shape[:-1], modules.state_sizes(layer)[0]), layer.dtype)
    before = stream.state

    def call() -> Results:
        try:
            y = (stream.run if steps else stream.step)(slots["x"], out=slots["out"])
        except (TypeError, ValueError):
            now = zip(parts(stream.state), parts(before), strict=True)
            assert all(np.array_equal(a, b) for a, b in now), "a refused call has changed the state"
            raise
        return {"y": np.asarray(y)}

    def expected() -> Results:
        y, _ = layer(swap(x if steps else x[:3], layer))
        y = swap(y, layer)[2:]
        return {"y": swap(y, layer) if steps else y[0]}

    return Attempt("Stream", call, slots, frozenset({"out"}), in_place=True, expected=expected)


def quantized_layer(rng: Rng) -> Attempt:
    """Call a quantised layer: bfloat16 beside the layer of rounded weights, int8 of relu beside its oracle."""
    (T, B, I, H), form = (int(n) for n in rng.integers(1, 9, 4)), choose(rng, FORMATS)
    kinds = list(KINDS) if form == "bfloat16" else INTEGER_KINDS
    kind = choose(rng, kinds) if rng.random() < 0.5 else "rnn_relu"
    options: dict[str, Any] = {name: bool(rng.random() < 0.5) for name in ("bias", "bidirectional")}
    options |= {"num_heads": 1} if kind.startswith("slstm") else layer_projection(rng, kind, H)
    layer = make_layer(kind, (I, H), **options, rng=int(rng.integers(2**31)))
    q, sizes = layer.quantize(form), modules.state_sizes(layer)
    slots: dict[str, Any] = {"x": normal((T, B, I), "f4", int(rng.integers(2**31))), "resets": rng.random((T, B)) < 0.2}
    for name, n in zip(state_names(kind), sizes, strict=True):
        slots[name] = 0.5 + np.abs(normal((layer.directions, B, n), "f4", int(rng.integers(2**31))))
    originals, lengths = dict(slots), rng.integers(0, T + 1, B) if rng.random() < 0.3 else None

    def run(layer: Any, given: dict[str, Any]) -> Results:
        state = state_of(state_in(given, kind, "{}"))
        y, after = layer(given["x"], state, lengths=lengths, resets=given["resets"])
        return {"y": y, **named_state(kind, parts(after))}

    def expected() -> Results:
        if form == "bfloat16":
            return run(q.dequantize(), originals)
        rows: Any = {name: Rows(*a) if isinstance(a, tuple) else a for name, a in q.operands.items()}
        own = [modules.parameters_of(q, rows, end) for end in ("_l0", "_l0_reverse")[: layer.directions]]
        state = state_in(originals, kind, "{}")
        y, after = quantized.forward(kind, originals["x"], own, state, lengths=lengths, resets=originals["resets"])
        return {"y": y, **named_state(kind, after)}

    exact = form == "bfloat16" or kind == "rnn_relu"  # elsewhere the last bit of an activation decides about integers
    return Attempt("quantized", lambda: run(q, slots), slots, expected=expected if exact else None)


def one_cell(rng: Rng) -> Attempt:
    """Make one step of a cell, and back."""
    kind, own = KINDS[choose(rng, ONE_STEP)]
    B, I, H = (int(n) for n in rng.integers(1, 8, 3))
    seed, dtype = int(rng.integers(2**31)), choose(rng, DTYPES)
    cell = getattr(rnnfast, f"{kind}Cell")(I, H, rng=seed, dtype=dtype, bias=bool(rng.random() < 0.5), **own)
    batch = () if rng.random() < 0.3 else (0 if rng.random() < 0.1 else B,)
    x = normal((*batch, I), dtype, seed)
    names = *state_names(cell.cell), *state_names(cell.cell, "d{}")
    slots: dict[str, Any] = {"x": x, **{name: normal((*batch, H), dtype, seed + k) for k, name in enumerate(names, 1)}}
    shaped = {name: a.reshape(1, -1 if a.size else 0, a.shape[-1]) for name, a in slots.items()}
    parameters = [modules.parameters_of(cell, cell.parameters)]

    def call() -> Results:
        last, tape = cell.forward(slots["x"], state_of(state_in(slots, cell.cell, "{}")))
        dx, dstate0, grads = cell.backward(tape, state_of(state_in(slots, cell.cell, "d{}")))
        return results(None, last, dx, dstate0, grads)

    def expected() -> Results:
        _, last, tape = reference.forward(cell.cell, shaped["x"], parameters, state_in(shaped, cell.cell, "{}"))
        dx, dstate0, [grads] = reference.backward(tape, None, state_in(shaped, cell.cell, "d{}"))
        lasts, firsts = (tuple(s.reshape(*batch, H) for s in ss) for ss in (last, dstate0))
        return results(None, lasts, dx.reshape(x.shape), firsts, modules.named_parameters(cell, grads))

    return Attempt(type(cell).__name__, call, slots, expected=expected, watched=[*cell.parameters.values()])


def readout(rng: Rng) -> Attempt:
    """Call linear and linear_backward."""
    dtype, seed = choose(rng, DTYPES), int(rng.integers(2**31))
    shape, (I, O) = (
        tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4))),
        (int(n) for n in rng.integers(1, 9, 2)),
    )
    sizes = {"x": (*shape, I), "weight": (O, I), "bias": (O,), "dy": (*shape, O)}
    slots: dict[str, Any] = {name: normal(size, dtype, seed + k) for k, (name, size) in enumerate(sizes.items())}
    originals = dict(slots)

    def call() -> Results:
        x, weight, bias, dy = slots.values()
        y = functional.linear(x, weight, bias)
        dx, (dweight, dbias) = functional.linear_backward(x, weight, bias, dy)
        return named(y=y, dx=dx, dweight=dweight, dbias=dbias)

    def expected() -> Results:
        x, weight, bias, dy = (a.astype(np.float64) for a in originals.values())
        rows, drows = (
            x.reshape(-1, I) if x.size else np.zeros((0, I)),
            dy.reshape(-1, O) if dy.size else np.zeros((0, O)),
        )
        return named(y=x @ weight.T + bias, dx=dy @ weight, dweight=drows.T @ rows, dbias=drows.sum(axis=0))

    return Attempt("functional.linear", call, slots, expected=expected)


def state_dict(rng: Rng) -> Attempt:
    """Load parameters."""
    kind, L = choose(rng, list(KINDS)), int(rng.integers(1, 3))
    layer = make_layer(kind, (3, 4), num_layers=L, dtype=choose(rng, DTYPES), **layer_projection(rng, kind, 4))
    slots: dict[str, Any] = {n: normal(p.shape, p.dtype, k) for k, (n, p) in enumerate(layer.parameters.items())}
    originals = dict(slots)

    def call() -> Results:
        layer.load_state_dict(slots)
        return dict(layer.parameters)

    return Attempt("load_state_dict", call, slots, expected=lambda: originals, watched=[*layer.parameters.values()])


def constructor(rng: Rng) -> Attempt:
    """Construct something of arguments that may be anything."""
    odd = (0, -1, 2**60, 2**62, 2**64, 3.0, None, "3", True, np.int64(3), np.float32(2), [3], np.nan)
    sizes = [choose(rng, odd) if rng.random() < 0.3 else int(rng.integers(1, 9)) for _ in range(2)]
    kind = choose(
        rng, ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "Linear", "Embedding", "ESN", "Hopfield")
    )
    made: Any = {"ESN": ESN, "Hopfield": Hopfield}.get(kind) or getattr(rnnfast, kind)
    sizes = sizes[:1] if made is Hopfield else sizes
    names = list(inspect.signature(made).parameters)[len(sizes) :]
    values = (*odd, "float64", "f2", "relu", -0.5, 0.5, False, ("rows", 0.5), [0.5] * 4, np.array([1, np.nan]))
    options = {name: choose(rng, values) for name in names if rng.random() < 0.15}

    def call() -> Results:
        module = made(*sizes, **options)
        if rng.random() < 0.5:
            scheme = choose(rng, ("torch", "xavier", "orthogonal", "identity", "zeros", 3, None, ["torch"]))
            rnnfast.initialize(
                module, scheme, forget_bias=choose(rng, (None, None, 1.0, "1", True)), rng=choose(rng, (None, 3, -1))
            )
        repr(module)
        rnnfast.num_parameters(module)
        return {}

    return Attempt("constructor", call, free=True)
