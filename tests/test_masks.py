"""Masks that forward draws, of every kind: where they come from, what they depend on, when they act, what is refused.

What is particular to a kind is in the file of that kind; the values of those that act on rows are here.
"""

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from modules import (
    B,
    H,
    I,
    T,
    candidates_of,
    central_differences,
    make_layer,
    make_state,
    normal,
    oracle,
    results,
    solve_layer,
    zoneout_of,
)
from problems import CELLS, DTYPES, Results, Shape, assert_same_bits, num_states
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core

GATED = ("lstm", "cifg_peephole", "gru")


class Kind(NamedTuple):
    """What gives a layer masks of one kind, how they are called, and what each of them is of."""

    options: Callable[[float], dict[str, Any]]  # of a layer, by the rate
    attribute: str  # of a tape
    names: tuple[str, ...]  # of the masks of an LSTM, before their layer and direction
    axes: tuple[str, ...]
    has_mean: bool = False  # without forward the layer is the mean of what it may be, not the plain one
    cells: tuple[str, ...] = (*GATED, "rnn_relu")  # some that have them
    oracle: Callable[[Any, Results], dict[str, Any]] | None = None  # the oracle's option, by a layer and its masks

    def shape(self, T: int, B: int, H: int, G: int) -> tuple[int, ...]:
        """Return the shape of a mask."""
        sizes = {"T": T, "B": B, "G": G, "H": H, "G·H": G * H}
        return tuple(sizes[axis] for axis in self.axes)

    def of(self, tape: Any) -> Results:
        """Return the masks of a tape."""
        masks: Results = getattr(tape, self.attribute)
        return masks

    def part(self, masks: Results, steps: Any, sequences: Any) -> Results:
        """Return the masks of some steps and sequences."""
        where = {"T": steps, "B": sequences}
        part = tuple(where.get(axis, slice(None)) for axis in self.axes)
        return {name: mask[part] for name, mask in masks.items()}

    def of_steps(self, masks: Results, f: Callable[[Any], Any]) -> Results:
        """Return the masks with f applied if they are of steps."""
        return {name: f(mask) if "T" in self.axes else mask for name, mask in masks.items()}


def of_candidates(layer: Any, masks: Results) -> dict[str, Any]:
    return {"candidates": candidates_of(layer, masks)}


KINDS = {
    "weights": Kind(lambda p: {"weight_dropout": p}, "weight_masks", ("weight_hh",), ("G·H", "H")),
    "rows of weights": Kind(lambda p: {"weight_dropout": ("rows", p)}, "weight_masks", ("weight_hh",), ("G·H",)),
    "recurrent": Kind(lambda p: {"recurrent_dropout": p}, "recurrent_masks", ("recurrent",), ("B", "H")),
    "recurrent per gate": Kind(
        lambda p: {"recurrent_dropout": p, "recurrent_dropout_per_gate": True},
        "recurrent_masks",
        ("recurrent",),
        ("B", "G", "H"),
    ),
    "candidate": Kind(
        lambda p: {"candidate_dropout": p},
        "candidate_masks",
        ("candidate",),
        ("T", "B", "H"),
        cells=GATED,
        oracle=of_candidates,
    ),
    "candidate per sequence": Kind(
        lambda p: {"candidate_dropout": p, "candidate_dropout_per_sequence": True},
        "candidate_masks",
        ("candidate",),
        ("B", "H"),
        cells=GATED,
        oracle=of_candidates,
    ),
    "zoneout": Kind(
        lambda p: {"zoneout": p},
        "zoneout_masks",
        ("zoneout_h", "zoneout_c"),
        ("T", "B", "H"),
        has_mean=True,
        oracle=lambda layer, masks: {"zoneout": zoneout_of(layer, masks)},
    ),
}
RATE = 0.3
ENDS = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
X = normal((T, B, I), "float32", 1)

by_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def layer_of(kind: Kind, rate: float = RATE, **options: Any) -> Any:
    return make_layer("lstm", **{"num_layers": 2, "bidirectional": True, **kind.options(rate), **options})


def masks_of(kind: Kind, layer: Any, x: Any, **options: Any) -> Results:
    return kind.of(layer.forward(x, **options)[2])


# Values

ON_ROWS = {name: kind for name, kind in KINDS.items() if kind.oracle}
HAVING = {name: [c for c in CELLS if _core.cells[c].has_candidate] for name in ON_ROWS} | {
    "zoneout": [c for c in CELLS if not c.startswith("slstm")]
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", [1, 3, 17, 31, 64])
@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name in ON_ROWS for cell in HAVING[name]])
def test_all_that_a_layer_returns_is_the_oracles(name: str, cell: str, units: int, dtype: str) -> None:
    kind: Any = KINDS[name]
    layer = make_layer(cell, (I, units), dtype=dtype, bidirectional=True, **kind.options(0.4))
    x, state = normal((T, 4, I), dtype, 1), make_state(layer, (4,), 2)
    dy, dstate = normal((T, 4, 2 * units), dtype, 5), make_state(layer, (4,), 6)
    dc = normal((1, T, 4, 2 * units), dtype, 7) if num_states(cell) > 1 else None
    masks = masks_of(kind, layer, x)
    y, last, tape = layer.forward(x, state, masks=masks)
    got = results(y, last, *layer.backward(tape, dy, dstate, dc=dc, clip_dh=0.7))
    expected = oracle(layer, x, state, dy, dstate, dc=dc, clip_dh=0.7, **kind.oracle(layer, masks))
    assert got.keys() == expected.keys()
    # With one unit, a sum of few terms that cancel. What normalises divides rounding by deviations below 1.
    rounding = 10 if units == 1 else 4 if _core.cells[cell].normalises else 1
    for name_of, value in expected.items():
        assert relative_error(got[name_of], value) < rounding * TOLERANCE[np.dtype(dtype)], name_of
    assert_same_bits(kind.of(tape), masks)


SHORT, CUT = (T, B), (90, 24)  # steps and sequences; of the second, checkpoints make two segments
WITH_OPTIONS: dict[str, tuple[tuple[int, int], dict[str, Any], dict[str, Any]]] = {  # options of the layer, of forward
    "whole": (SHORT, {}, {}),
    "two layers": (SHORT, {"num_layers": 2, "bidirectional": True}, {}),
    "checkpoint": (CUT, {"num_layers": 2}, {"checkpoint": 1}),
    "checkpoint, two directions": (
        CUT,
        {"bidirectional": True, "num_layers": 2},
        {"checkpoint": 1, "outputs": "last"},
    ),
    "lengths": (SHORT, {"bidirectional": True, "batch_first": True}, {"lengths": [2, 5, 4]}),
    "lengths, checkpoint": (
        CUT,
        {"bidirectional": True},
        {"lengths": np.random.default_rng(1).permutation(24) + 67, "checkpoint": 1},
    ),
    "resets": (SHORT, {"bidirectional": True}, {"resets": np.random.default_rng(2).random((T, B)) < 0.3}),
}


@pytest.mark.parametrize("call", WITH_OPTIONS)
@pytest.mark.parametrize(
    ("name", "cell"), [(name, cell) for name in ON_ROWS for cell in ("lstm", "gru", "gru_reset_before")]
)
def test_they_go_with_other_options(name: str, cell: str, call: str) -> None:
    kind: Any = KINDS[name]
    sizes, own, options = WITH_OPTIONS[call]
    layer = make_layer(cell, dtype="float64", **kind.options(RATE), **own)
    x = normal((*sizes, I), "float64", 3)
    given = x.swapaxes(0, 1) if layer.batch_first else x
    y, state, tape = layer.forward(given, **options)
    if "checkpoint" in options:
        assert len(tape.kept.segments) == 2
    dy = normal(y.shape, "float64", 5)
    got = results(y, state, *layer.backward(tape, dy))
    masks = kind.of(tape)
    if layer.batch_first:
        masks, dy = kind.of_steps(masks, lambda mask: mask.swapaxes(0, 1)), dy.swapaxes(0, 1)
        got |= {name: got[name].swapaxes(0, 1) for name in ("y", "dx")}
    if options.get("outputs") == "last":
        of_steps = np.zeros((*sizes, 2 * H))
        of_steps[-1, :, :H], of_steps[0, :, H:] = dy[:, :H], dy[:, H:]
        dy = of_steps
        del got["y"]
    rows = {name: options[name] for name in ("lengths", "resets") if name in options}
    expected = oracle(layer, x, None, dy, None, **kind.oracle(layer, masks), **rows)
    for name_of, value in got.items():
        assert relative_error(value, expected[name_of]) < TOLERANCE[np.dtype("float64")], name_of


# Where they come from


@by_kind
def test_as_many_are_kept_as_the_rate_says(kind: Kind) -> None:
    masks = masks_of(kind, layer_of(kind, sizes=(1, 50)), np.zeros((60, 90, 1), np.float32))
    assert list(masks) == [name + end for end in ENDS for name in kind.names]
    assert len({mask.tobytes() for mask in masks.values()}) == len(masks)
    for mask in masks.values():
        assert mask.shape == kind.shape(60, 90, 50, 4)
        assert mask.dtype == bool
        for axis in (None, *range(mask.ndim)):  # all of them, and for each of the others
            kept = mask.mean(axis=axis)
            n = mask.size / kept.size
            assert (np.abs(kept - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / n)).mean() > 0.999


@by_kind
def test_masks_are_those_of_the_seed_and_of_the_call(kind: Kind) -> None:
    layer, again = layer_of(kind), layer_of(kind)
    first, second = masks_of(kind, layer, X), masks_of(kind, layer, X)
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    assert_same_bits(masks_of(kind, again, X), first)
    twin = copy.deepcopy(again)
    assert_same_bits(masks_of(kind, again, X), second)
    assert_same_bits(masks_of(kind, twin, X), second)


CALLS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {  # options of the layer, x, those of forward
    "float64": ({"dtype": "float64"}, X.astype(np.float64), {}),
    "tokens": ({"learn_initial_state": True}, np.zeros((T, B), int), {}),
    "checkpoint": ({"dropout": 0.5}, X, {"checkpoint": 1}),
    "last": ({}, X, {"outputs": "last"}),
    "options": ({}, X, {"gate_override": {"f": 0.5}, "resets": np.ones((T, B), bool)}),
}


@pytest.mark.parametrize("call", CALLS)
@by_kind
def test_masks_depend_on_nothing_but_key_and_place(kind: Kind, call: str) -> None:
    own, x, options = CALLS[call]
    assert_same_bits(masks_of(kind, layer_of(kind, **own), x, **options), masks_of(kind, layer_of(kind), X))


@by_kind
def test_a_place_has_its_mask_beside_any_others(kind: Kind) -> None:
    whole = masks_of(kind, layer_of(kind), X)
    for part in ((slice(2), slice(2)), (slice(None), 0), (slice(None), slice(0))):
        assert_same_bits(masks_of(kind, layer_of(kind), X[part]), kind.part(whole, *part))
    layer, deeper = layer_of(kind), layer_of(kind, num_layers=3)
    layer.rng, deeper.rng = (np.random.default_rng(3) for _ in range(2))
    below = {name: mask for name, mask in masks_of(kind, deeper, X).items() if "_l2" not in name}
    assert_same_bits(masks_of(kind, layer, X), below)


@by_kind
def test_masks_of_steps_lie_as_x_does(kind: Kind) -> None:
    whole = masks_of(kind, layer_of(kind), X)
    batch_first = masks_of(kind, layer_of(kind, batch_first=True), X.swapaxes(0, 1))
    assert_same_bits(kind.of_steps(batch_first, lambda mask: mask.swapaxes(0, 1)), whole)
    for lengths in (np.array([2, 5, 0]), np.zeros(B, int)):
        real = np.arange(T)[:, None, None] < lengths[:, None]
        padded = kind.of_steps(whole, real.__and__)
        assert_same_bits(masks_of(kind, layer_of(kind), X, lengths=lengths), padded)
    packed = rnnfast.pack_padded(X, [2, 5, 4])
    order = packed.sorted_indices
    steps, sequences = (np.arange(T)[:, None] < np.array([2, 5, 4])[order]).nonzero()
    rows = kind.of_steps(whole, lambda mask: mask[steps, order[sequences]])
    assert_same_bits(kind.of_steps(masks_of(kind, layer_of(kind), packed), lambda mask: mask.data), rows)


# What they do


@by_kind
def test_one_sequence_is_a_batch_of_one(kind: Kind) -> None:
    one, batch = (solve_layer(layer_of(kind), x) for x in (X[:, 0], X[:, :1]))
    assert_same_bits({name: a.reshape(batch[name].shape) for name, a in one.items()}, batch)
    layer = layer_of(kind)
    y, _, tape = layer.forward(X[:, 0], lengths=[3])
    assert np.array_equal(layer.forward(X[:, 0], lengths=[3], masks=kind.of(tape))[0], y)
    assert not layer.forward(X[:, 0], lengths=[0])[0].any()


@by_kind
def test_there_may_be_no_sequences(kind: Kind) -> None:
    layer = layer_of(kind)
    masks = masks_of(kind, layer, X[:, :0])
    assert {mask.shape for mask in masks.values()} == {kind.shape(T, 0, H, 4)}
    for given in (None, masks):
        y, _, tape = layer.forward(X[:, :0], masks=given)
        dx, _, grads = layer.backward(tape, y)
        assert y.shape == (T, 0, 2 * H)
        assert dx.shape == (T, 0, I)
        assert not any(a.any() for a in grads.values())


LONG = Shape(150, 24, 33, 65)  # several segments between checkpoints, which have at least 1024 rows
DIVIDED = {  # what threads divide: a cell, their number, and a shape
    "rows": ("lstm", 3, LONG),
    "directions": ("gru", 3, LONG._replace(D=2)),
    "units": ("gru", 4, Shape(6, 1, 8, 300)),
}


@pytest.mark.parametrize("divided", DIVIDED)
@by_kind
def test_results_depend_on_neither_threads_nor_checkpoints(kind: Kind, divided: str) -> None:
    cell, threads, shape = DIVIDED[divided]
    own = {"num_layers": 2, "bidirectional": shape.D == 2, "dropout": 0.3, **kind.options(RATE)}
    layers = [make_layer(cell, (shape.I, shape.H), **own) for _ in range(3)]
    x = normal(shape[:3], "float32", 2)
    rows = {"lengths": np.random.default_rng(3).permutation(shape.B) * 3 + 81} if shape.D == 2 else {}
    with rnnfast.threads(1):
        expected = solve_layer(layers[0], x, **rows)
        assert_same_bits(solve_layer(layers[1], x, checkpoint=1, **rows), expected)
    with rnnfast.threads(threads):
        assert_same_bits(solve_layer(layers[2], x, **rows), expected)


@by_kind
def test_a_tape_gives_the_same_masks_and_gradients_any_number_of_times(kind: Kind) -> None:
    layer = layer_of(kind)
    y, _, tape = layer.forward(X)
    masks, expected = copy.deepcopy(kind.of(tape)), layer.backward(tape, y)[2]
    layer.forward(X)
    for mask in kind.of(tape).values():
        if mask.flags.writeable:
            mask[:] = ~mask
    assert_same_bits(kind.of(tape), masks)
    assert_same_bits(layer.backward(tape, y)[2], expected)


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name, kind in KINDS.items() for cell in kind.cells])
def test_gradients_are_central_differences(name: str, cell: str) -> None:
    kind = KINDS[name]
    layer = make_layer(cell, (2, 3), dtype="float64", num_layers=2, bidirectional=True, **kind.options(RATE))
    x, dy = normal((T, B, 2), "float64", 1), normal((T, B, 6), "float64", 2)
    _, _, tape = layer.forward(x)
    grads, masks = layer.backward(tape, dy)[2], kind.of(tape)

    def loss() -> float:
        return float((layer.forward(x, masks=masks)[0] * dy).sum())

    for name, parameter in layer.parameters.items():
        assert relative_error(grads[name], central_differences(loss, parameter)) < 1e-6, name


@by_kind
def test_given_masks_are_copied_and_leave_the_others_and_later_draws_alone(kind: Kind) -> None:
    layer, other = layer_of(kind), layer_of(kind)
    masks, name = masks_of(kind, layer, X), f"{kind.names[-1]}_l1_reverse"
    given = {name: ~masks[name]}
    y, _, tape = other.forward(X, masks=given)
    expected, grads = masks | {name: ~masks[name]}, other.backward(tape, y)[2]
    given[name][:] = ~given[name]
    assert_same_bits(kind.of(tape), expected)
    assert_same_bits(other.backward(tape, y)[2], grads)
    assert_same_bits(solve_layer(other, X), solve_layer(layer, X))
    assert np.array_equal(other.forward(X, masks=expected)[0], y)


@pytest.mark.parametrize("name", ["weights", "rows of weights", "recurrent", "recurrent per gate"])
def test_the_rate_is_not_of_the_masks_that_are_given(name: str) -> None:
    kind = KINDS[name]
    layer, plain = layer_of(kind, 0.25), layer_of(kind, 0)
    kept = {name: np.ones_like(mask) for name, mask in masks_of(kind, layer, X).items()}
    for name, p in plain.parameters.items():
        if name.startswith("weight_hh"):
            p /= np.float32(0.75)
    assert np.abs(layer.forward(X, masks=kept)[0] - plain(X)[0]).max() < 1e-6


# When they act


@by_kind
def test_only_forward_leaves_something_out(kind: Kind) -> None:
    layer, plain = make_layer("gru", **kind.options(0.5)), make_layer("gru")
    before, y = layer.rng.bit_generator.state, layer(X)[0]
    dy = np.ones((T, B, H), np.float32)
    assert np.array_equal(layer(X, outputs="last")[0], y[-1])
    assert np.array_equal(layer.stream(B).run(X), y)
    flow = rnnfast.gradient_flow(layer, X, dy).h
    assert layer.rng.bit_generator.state == before
    assert np.array_equal(y, plain(X)[0]) != kind.has_mean
    assert np.array_equal(flow, rnnfast.gradient_flow(plain, X, dy).h) != kind.has_mean
    assert not np.array_equal(layer.forward(X)[0], y)


@pytest.mark.parametrize("form", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "four"])
@by_kind
def test_a_rate_of_zero_is_the_plain_layer(kind: Kind, form: dict[str, Any]) -> None:
    plain = make_layer("lstm", **form)
    expected = solve_layer(plain, X)
    for rate in (0, 0.0):
        layer = make_layer("lstm", **kind.options(rate), **form)
        shown = repr(layer)
        assert_same_bits(solve_layer(layer, X), expected)
        assert_same_bits(solve_layer(layer, X, masks={}), expected)
        assert kind.of(layer.forward(X)[2]) == {}
        assert layer.rng.bit_generator.state == plain.rng.bit_generator.state
        assert re.sub(r", \w+_per_\w+=True", "", shown) == repr(plain)


# What is refused


@pytest.mark.parametrize("checkpoint", [None, 2])
@by_kind
def test_a_forward_that_fails_draws_nothing(kind: Kind, checkpoint: Any) -> None:
    layer = layer_of(kind, dropout=0.5)
    before = layer.rng.bit_generator.state
    tokens = np.zeros((T, B), int)
    tokens[-1, -1] = I
    for x, masks in ((tokens, None), (X, {f"{kind.names[0]}_l0": np.ones(3, bool)})):
        with pytest.raises(ValueError, match="expected"):
            layer.forward(x, checkpoint=checkpoint, masks=masks)
    assert layer.rng.bit_generator.state == before


@by_kind
def test_masks_that_do_not_fit_are_refused(kind: Kind) -> None:
    layer, own = make_layer("gru", **kind.options(RATE)), f"{kind.names[0]}_l0"
    before, shape = layer.rng.bit_generator.state, kind.shape(T, B, H, 3)
    kept, others = np.ones(shape, bool), {other.shape(T, B, H, 3) for other in KINDS.values()} - {shape}
    names = {f"{name}_l0" for other in KINDS.values() for name in (*other.names, "weight_ih")} - {own}
    names |= {f"{own}_reverse", f"{kind.names[0]}_l1"}
    shapes = *others, (*shape[:-1], H + 1), (1, *shape)
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        (own, kept * 2.0, ValueError, "expected bools, or 0 and 1, got 2"),
        (own, kept.astype("S"), TypeError, "expected dtype bool"),
        (own, None, TypeError, "expected an array"),
        *((own, np.ones(other, bool), ValueError, f"expected shape {shape}, got {other}") for other in shapes),
        *((name, kept, ValueError, f"masks: expected names among {[own]}, got {[name]}") for name in names),
    ]
    for name, given, error, words in wrong:
        message = f"masks[{own!r}]: {words}" if name == own else words
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            layer.forward(X, masks={own: kept, name: given})
    assert layer.rng.bit_generator.state == before
