"""Truncated backpropagation by windows: against the oracle's definition, and bit for bit."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pytest
from modules import (
    ONE_STEP,
    H,
    I,
    initial,
    make_cell,
    make_layer,
    make_state,
    named_parameters,
    normal,
    oracle,
    parameters_of,
    state_sizes,
)
from problems import DTYPES, REPRESENTATIVES, Array, Results, assert_close, assert_same_bits, named_state, parts

import rnnfast
from rnnfast import reference
from rnnfast._stack.stack import mask

T, B = 47, 50  # chunks of the kernels have 5 steps: with few steps in a window, the ring moves on several times
V = 11
STEPS = ((1, 1), (4, 4), (3, 7), (2, 9), (7, 3), (5, 1), (13, 40), (50, 60))

Losses: TypeAlias = Literal["new", "window"]
Activations: TypeAlias = Literal["stored", "replay"]

by_cell = pytest.mark.parametrize("cell", REPRESENTATIVES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_losses = pytest.mark.parametrize("losses", ["new", "window"])
by_activations = pytest.mark.parametrize("activations", ["stored", "replay"])


def by_steps(*steps: tuple[int, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("k1", "k2"), steps)


def cut(x: Array, *lengths: int) -> Iterator[Array]:
    """Return chunks of these lengths, again and again."""
    ends = np.cumsum(np.resize(lengths, len(x) + 1))
    return iter(np.split(x, ends[ends < len(x)]))


def random_resets() -> Array:
    """Draw resets, among them such at the first and the last step."""
    resets = np.random.default_rng(7).random((T, B)) < 0.1
    resets[[0, -1], 0] = True
    return resets


def values_after(layer: Any, n: int) -> Results:
    """Return the values that a layer's parameters change to after window n; the initial state stays."""
    rng = np.random.default_rng(n)
    return {
        name: p if name.startswith("initial") else (0.4 * rng.standard_normal(p.shape)).astype(p.dtype)
        for name, p in layer.parameters.items()
    }


def as_oracle(layer: Any, arrays: Results) -> list[Any]:
    return [[parameters_of(layer, arrays, f"_l{k}")] for k in range(layer.num_layers)]


def gradients(window: Any, dy: Array, layer: Any, x: Array) -> Results:
    """Return all that a window's backward gives, by name."""
    dstate0 = make_state(layer, (B,), 0)
    dx = np.full((window.stop - window.tau, *x.shape[1:]), np.nan, layer.dtype) if x.ndim == 3 else None
    grads = window.backward(dy, out=(dx, dstate0))
    return {**grads, **by_part("d{}0", dstate0), **({} if dx is None else {"dx": dx})}


def by_part(name: str, state: Any) -> Results:
    """Return the parts of a state, each by the name with its letter in it."""
    return {name.format(letter): part for letter, part in zip("hcnm", parts(state), strict=False)}


def assert_oracle(
    layer: Any, x: Array, k1: int, k2: int, *, state: Any = None, chunks: tuple[int, ...] = (), **options: Any
) -> None:
    """Compare every window with the oracle's; the weights change after each."""
    losses = options.get("losses", "new")
    windows = reference.windows(T, k1, k2, losses)
    dys = [normal((w.stop - w.start, B, state_sizes(layer)[0]), layer.dtype, 100 + n) for n, w in enumerate(windows)]
    first = None if state is None else parts(state)
    learned = [name for name in initial(layer.cell) if state is None and name in layer.parameters]
    if learned:
        first = tuple(np.repeat(layer.parameters[name][:, None], B, axis=1) for name in learned)
    expected = reference.tbptt(
        layer.cell,
        x,
        as_oracle(layer, {name: p.copy() for name, p in layer.parameters.items()}),
        dys,
        k1,
        k2,
        first,
        update=lambda n, _: as_oracle(layer, values_after(layer, n)),
        layer_norm_eps=getattr(layer, "layer_norm_eps", 1e-5),
        **options,
    )
    given = cut(x, *chunks) if chunks else x
    made = rnnfast.tbptt(layer, given, k1, k2, state=state, **options)
    for n, (window, dy, result) in enumerate(zip(made, dys, expected, strict=True)):
        assert (window.tau, window.start, window.stop) == windows[n]
        assert window.y.shape == dy.shape
        wanted: dict[str, Any] = {
            name: a
            for k, [arrays] in enumerate(result.grads)
            for name, a in named_parameters(layer, arrays, f"_l{k}").items()
        }
        dinitial = named_state(layer.cell, result.dstate0, "d{}0")
        wanted |= {name: d.sum(axis=1) for name, d in zip(learned, result.dstate0, strict=False)}
        if "embedding" in options:
            wanted["embedding"] = result.dx
        elif x.ndim == 3:
            wanted["dx"] = result.dx[window.tau : window.stop]
        actual = gradients(window, dy, layer, x)
        new = slice(-min(len(dy), len(result.y)), None)
        assert_close({"y": window.y[new], **actual}, {"y": result.y[new], **dinitial, **wanted}, layer.num_layers)
        layer.load_state_dict(values_after(layer, n))


def everything(layer: Any, x: Any, k1: int, k2: int, **options: Any) -> Results:
    """Return all that all windows give, weights unchanged."""
    results: Results = {}
    for n, window in enumerate(rnnfast.tbptt(layer, x, k1, k2, **options)):
        grads = window.backward(np.cos(window.y))
        results |= {f"{name}[{n}]": a for name, a in {"y": window.y, **grads}.items()}
        results |= by_part(f"{{}}[{n}]", window.state)
    return results


# Against the oracle, weights changing from window to window


@by_activations
@by_losses
@by_steps(*STEPS)
@by_cell
def test_windows_are_those_of_the_definition(
    cell: str, k1: int, k2: int, losses: Losses, activations: Activations
) -> None:
    layer = make_layer(cell, num_layers=2, dtype="float64")
    x, state = normal((T, B, I), "float64", 1), make_state(layer, (B,), 2)
    assert_oracle(layer, x, k1, k2, state=state, losses=losses, activations=activations)


class Form(NamedTuple):
    """One row of the table of what may be asked for beside."""

    layer: dict[str, Any]
    options: dict[str, Any]
    tokens: bool = False
    chunks: tuple[int, ...] = ()


FORMS = {
    "one layer": Form({}, {}),
    "three layers": Form({"num_layers": 3}, {}),
    "no bias": Form({"bias": False}, {}),
    "chunks": Form({"num_layers": 2}, {}, chunks=(3, 0, 1, 8)),
    "tokens": Form({}, {}, tokens=True),
    "tokens in chunks": Form({"num_layers": 2}, {}, tokens=True, chunks=(6, 1)),
    "embedding": Form({}, {"embedding": normal((V, I), "float64", 5)}, tokens=True),
    "resets": Form({"num_layers": 2}, {"resets": random_resets()}),
    "resets of tokens": Form({}, {"resets": random_resets(), "embedding": normal((V, I), "float64", 5)}, tokens=True),
    "learned": Form({"num_layers": 2, "learn_initial_state": True}, {}),
    "learned with resets": Form({"learn_initial_state": True}, {"resets": random_resets()}),
}


@by_activations
@by_steps((3, 7), (7, 3))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@by_cell
def test_all_forms_are_those_of_the_definition(
    cell: str, form: Form, k1: int, k2: int, activations: Activations
) -> None:
    layer = make_layer(cell, dtype="float64", **form.layer)
    for name in initial(layer.cell):
        if name in layer.parameters:
            values = normal(layer.parameters[name].shape, "float64", 3)
            setattr(layer, name, np.abs(values) if name == "initial_n" else values)
    x = np.random.default_rng(4).integers(0, I, (T, B)) if form.tokens else normal((T, B, I), "float64", 1)
    assert_oracle(layer, x, k1, k2, activations=activations, chunks=form.chunks, **form.options)


@by_activations
@by_losses
@by_steps((3, 7), (7, 3))
def test_windows_of_a_projection_are_those_of_the_definition(
    k1: int, k2: int, losses: Losses, activations: Activations
) -> None:
    layer = make_layer("lstm", num_layers=2, dtype="float64", proj_size=2)
    x, state, resets = normal((T, B, I), "float64", 1), make_state(layer, (B,), 2), random_resets()
    assert_oracle(layer, x, k1, k2, state=state, losses=losses, activations=activations, resets=resets)
    window = next(rnnfast.tbptt(layer, x[:, 0], k1, k2))
    assert [part.shape for part in window.state] == [(2, 2), (2, H)]


@by_activations
@by_cell
def test_float32(cell: str, activations: Activations) -> None:
    layer = make_layer(cell, num_layers=2)
    assert_oracle(layer, normal((T, B, I), "float32", 1), 3, 7, activations=activations)


# Where the initial state is learned, an episode starts with that of its time


@pytest.mark.parametrize("embedded", [False, True], ids=["dense", "embedded"])
@by_steps((4, 12), (4, 7))
@by_cell
def test_a_learned_initial_state_is_stored_too(cell: str, k1: int, k2: int, embedded: bool) -> None:
    layer = make_layer(cell, dtype="float64", learn_initial_state=True)
    names = [name for name in layer.parameters if name.startswith("initial")]
    values = [{name: normal((1, H), "float64", 10 * n + len(name)) for name in names} for n in range(3)]
    x, resets = normal((12, B, I), "float64", 1), np.zeros((12, B), np.bool_)
    options: dict[str, Any] = {"embedding": normal((V, I), "float64", 5)} if embedded else {}
    if embedded:
        x = np.random.default_rng(4).integers(0, V, (12, B))
    resets[[6, 9]] = True
    dy = normal((12 - max(0, 12 - k2), B, H), "float64", 2)
    windows = rnnfast.tbptt(layer, x, k1, k2, resets=resets, losses="window", **options)
    for value in values:  # those of steps 0, 4 and 8
        layer.load_state_dict({**layer.parameters, **value})
        window = next(windows)
    grads = window.backward(dy)

    expected = {name: np.zeros_like(g) for name, g in grads.items()}
    tau = window.tau
    for value, first, last in zip(values, (0, 6, 9), (6, 9, 12), strict=True):
        layer.load_state_dict({**layer.parameters, **value})
        _, _, tape = layer.forward(x[first:last], **options)
        if tau <= first:
            layer.backward(tape, dy[first - tau : last - tau], grads=expected)
        else:  # the state at tau is a constant
            _, state = layer(x[first:tau], **options)
            _, _, tape = layer.forward(x[tau:last], state, **options)
            layer.backward(tape, dy[: last - tau], grads=expected)
    assert_close(grads, expected)


# Dropout


@by_activations
@by_steps((3, 7), (7, 3))
def test_masks_are_drawn_once_a_step(k1: int, k2: int, activations: Activations) -> None:
    layer, twin = (make_layer("lstm", num_layers=3, dropout=0.4, dtype="float64") for _ in range(2))
    x, zeros = normal((T, B, I), "float64", 1), np.zeros((3, B, H))
    drawn = [[mask(twin, (w.stop - before, B, H)) for _ in range(2)] for before, w in _new_steps(k1, k2)]
    masks = tuple(np.concatenate(of_layer) for of_layer in zip(*drawn, strict=True))

    def some(steps: slice) -> tuple[Array, ...]:
        return tuple(mask[steps] for mask in masks)

    for window in rnnfast.tbptt(layer, x, k1, k2, activations=activations):
        tau, n = window.tau, window.stop - window.tau
        dy = normal(window.y.shape, "float64", tau)
        state = None
        if tau:
            before = oracle(twin, x[:tau], None, np.zeros((tau, B, H)), (zeros, zeros), some(slice(tau)))
            state = before["h0"], before["h1"]
        dy_all = np.zeros((n, B, H))
        dy_all[-len(dy) :] = dy[-n:]
        within = slice(tau, window.stop)
        expected = oracle(twin, x[within], state, dy_all, (zeros, zeros), some(within))
        assert_close(window.backward(dy), {name: expected[name] for name in layer.parameters}, 3)


def _new_steps(k1: int, k2: int) -> list[tuple[int, reference.Window]]:
    windows = reference.windows(T, k1, k2)
    return list(zip([0, *(w.stop for w in windows)], windows, strict=False))


# Bit for bit


@by_activations
@by_losses
@by_dtype
@by_cell
def test_one_window_is_backpropagation_through_time(
    cell: str, dtype: str, losses: Losses, activations: Activations
) -> None:
    arguments: dict[str, Any] = {"num_layers": 3, "dropout": 0.4, "learn_initial_state": True, "dtype": dtype}
    layer, twin = (make_layer(cell, **arguments) for _ in range(2))
    x, dy = normal((T, B, I), dtype, 1), normal((T, B, H), dtype, 2)
    [window] = rnnfast.tbptt(layer, x, T, T, losses=losses, activations=activations)
    y, state, tape = twin.forward(x)
    dx, dstate0, grads = twin.backward(tape, dy)
    expected = {"dx": dx, **by_part("d{}0", dstate0), **grads}
    assert_same_bits(gradients(window, dy, layer, x), expected)
    assert list(window.backward(dy)) == list(grads)
    assert_same_bits({"y": window.y, **by_part("{}", window.state)}, {"y": y, **by_part("{}", state)})


@by_steps((5, 5), (3, 8))
@by_cell
def test_outputs_and_states_are_the_layers(cell: str, k1: int, k2: int) -> None:
    layer = make_layer(cell, num_layers=2)
    x, state = normal((T, B, I), "float32", 1), make_state(layer, (B,), 2)
    windows = list(rnnfast.tbptt(layer, x, k1, k2, state=state))
    assert np.array_equal(np.concatenate([window.y for window in windows]), layer(x, state)[0])
    for window in windows:
        assert_same_bits(by_part("{}", window.state), by_part("{}", layer(x[: window.stop], state)[1]))


@pytest.mark.parametrize("lengths", [(1,), (2, 0, 9), (T,), (40, 1)])
@pytest.mark.parametrize("form", ["dense", "tokens", "resets"])
@by_steps((4, 4), (3, 8), (6, 2), (T, T))
def test_chunks_are_the_array(k1: int, k2: int, form: str, lengths: tuple[int, ...]) -> None:
    layer = make_layer("gru", num_layers=2)
    tokens, dense = np.random.default_rng(4).integers(0, I, (T, B)), normal((T, B, I), "float32", 1)
    x = tokens if form == "tokens" else dense
    resets = random_resets() if form == "resets" else None
    whole = everything(layer, x, k1, k2, resets=resets)
    chunked = None if resets is None else cut(resets, *lengths[::-1])
    assert_same_bits(everything(layer, cut(x, *lengths), k1, k2, resets=chunked), whole)
    assert_same_bits(everything(layer, cut(x, *lengths), k1, k2, resets=resets), whole)


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize("cell", ONE_STEP)
def test_a_cell_is_a_layer(cell: str, losses: Losses) -> None:
    module, layer = make_cell(cell), make_layer(cell)
    layer.load_state_dict({f"{name}_l0": p for name, p in module.parameters.items()})
    x, state = normal((T, B, I), "float32", 1), make_state(module, (B,), 2)
    of_cell = everything(module, x, 3, 7, state=state, losses=losses)
    rows = tuple(part[None] for part in state) if isinstance(state, tuple) else state[None]
    of_layer = everything(layer, x, 3, 7, state=rows, losses=losses)
    renamed = {name.replace("_l0", ""): a[0] if name[:2] in ("h[", "c[") else a for name, a in of_layer.items()}
    assert_same_bits(of_cell, renamed)

    window = next(rnnfast.tbptt(module, x[:, 0], 3, 7))
    assert {part.shape for part in parts(window.state)} == {(H,)}
    grads = {name: np.ones_like(p) for name, p in module.parameters.items()}
    assert window.backward(window.y, grads=grads) is grads
    assert_close(grads, {name: g.astype(np.float64) + 1 for name, g in window.backward(window.y).items()})


@by_cell
def test_layouts_change_the_view_only(cell: str) -> None:
    layer, turned = make_layer(cell, num_layers=2), make_layer(cell, num_layers=2, batch_first=True)
    x = normal((T, B, I), "float32", 1)
    whole = everything(layer, x, 3, 7)
    swapped = everything(turned, x.swapaxes(0, 1), 3, 7)
    assert_same_bits({name: a.swapaxes(0, 1) if name[0] == "y" else a for name, a in swapped.items()}, whole)
    batch, single = everything(layer, x[:, :1], 3, 7), everything(layer, x[:, 0], 3, 7)
    axis = dict.fromkeys("yhcnm", 1)
    assert_same_bits(single, {name: a.squeeze(axis[name[0]]) if name[1] == "[" else a for name, a in batch.items()})
    for module, sequence in ((turned, x.swapaxes(0, 1)), (layer, x[:, 0])):
        for window in rnnfast.tbptt(module, sequence, 4, 7):
            dx = np.full_like(sequence[:, : window.stop - window.tau], np.nan) if module is turned else None
            dx = np.full_like(sequence[: window.stop - window.tau], np.nan) if dx is None else dx
            window.backward(window.y, out=(dx, None))
            assert not np.isnan(dx).any()


def test_embeddings_of_any_strides_are_seen_as_they_change() -> None:
    layer = make_layer("lstm", dtype="float64")
    tokens = np.random.default_rng(4).integers(0, V, (T, B))
    results = []
    for order in ("C", "F"):
        embedding = np.array(normal((V, I), "float64", 5), order=order)
        windows = rnnfast.tbptt(layer, tokens, 4, 4, embedding=embedding)
        next(windows)
        embedding[...] = normal((V, I), "float64", 6)
        window = next(windows)
        embedding *= 2
        results.append({"y": window.y, **window.backward(window.y)})
    assert_same_bits(*results)
    _, state = layer(tokens[:4], embedding=normal((V, I), "float64", 5))
    assert np.array_equal(results[0]["y"], layer(tokens[4:8], state, embedding=normal((V, I), "float64", 6))[0])


def test_gradients_are_added_into_those_given() -> None:
    layer = make_layer("lstm", num_layers=2, learn_initial_state=True, dtype="float64")
    embedding = normal((V, I), "float64", 5)
    tokens = np.random.default_rng(4).integers(0, V, (T, B))
    for window in rnnfast.tbptt(layer, tokens, 3, 7, embedding=embedding):
        grads = window.backward(window.y)
        assert list(grads) == [*layer.parameters, "embedding"]
        given = {name: np.ones_like(g) for name, g in grads.items()}
        assert window.backward(window.y, grads=given) is given
        assert_close(given, {name: g + 1 for name, g in grads.items()})


def test_an_empty_batch_gives_empty_results() -> None:
    layer = make_layer("lstm", num_layers=2, learn_initial_state=True)
    for activations in ("stored", "replay"):
        for window in rnnfast.tbptt(layer, np.zeros((9, 0, I), np.float32), 2, 3, activations=activations):
            grads = window.backward(window.y)
            assert window.y.shape == (window.stop - window.start, 0, H)
            assert not any(g.any() for g in grads.values())


# The ring


@by_steps((3, 7), (5, 5), (9, 2))
def test_memory_does_not_grow(k1: int, k2: int) -> None:
    layer = make_layer("lstm", num_layers=2, dropout=0.5, learn_initial_state=True)

    def sizes(window: Any) -> list[int]:
        ring = window._run.ring
        return [a.nbytes for a in (ring.x, ring.resets, *ring.inputs, *ring.masks, *ring.ys, *ring.tapes)]

    x = (normal((n % 4, B, I), "float32", n) for n in range(1000))
    resets = (np.zeros((n % 4, B), np.bool_) for n in range(1000))
    windows = rnnfast.tbptt(layer, x, k1, k2, resets=resets)
    window = next(windows)
    first = sizes(window)
    for window in windows:  # noqa: B007, the last one is looked at
        layer.initial_h = layer.initial_h + 1
    assert window.stop == 1500
    assert sizes(window) == first
    ring = window._run.ring
    assert len(ring.x) < 2 * (k1 + k2) + 10
    assert len(ring.history) <= len(ring.x) // k1 + 1


@by_activations
@by_losses
@by_steps((1, 1), (3, 7), (5, 5), (9, 2), (1, 12))
def test_a_window_outlives_the_next(k1: int, k2: int, losses: Losses, activations: Activations) -> None:
    layer = make_layer("gru", num_layers=2)
    x = normal((4 * T, B, I), "float32", 1)
    options: dict[str, Any] = {"losses": losses, "activations": activations}
    at_once = [window.backward(np.cos(window.y)) for window in rnnfast.tbptt(layer, iter([x]), k1, k2, **options)]
    windows = list(pairwise_in_time(rnnfast.tbptt(layer, iter([x]), k1, k2, **options)))
    for late, expected in zip(windows, at_once, strict=False):
        assert_same_bits(late, expected)


def pairwise_in_time(windows: Iterator[Any]) -> Iterator[Results]:
    """Run each window's backward when the next one has come."""
    for window, _ in pairwise(windows):
        yield window.backward(np.cos(window.y))


def test_a_window_that_has_left_is_refused_and_nothing_is_corrupted() -> None:
    layer = make_layer("lstm", num_layers=2)
    x = normal((4 * T, B, I), "float32", 1)
    expected = everything(layer, x, 3, 7)
    made = list(rnnfast.tbptt(layer, x, 3, 7))
    grads = {name: np.ones_like(p) for name, p in layer.parameters.items()}
    dx = np.ones((3, B, I), np.float32)
    with pytest.raises(RuntimeError, match="window: expected steps from 0 on to be kept, but later windows have"):
        made[0].backward(made[0].y, grads=grads, out=(dx, None))
    assert all((a == 1).all() for a in (dx, *grads.values()))
    for n, window in enumerate(made):
        assert np.array_equal(window.y, expected[f"y[{n}]"])
        try:
            grads = window.backward(np.cos(window.y))
        except RuntimeError:
            assert n < len(made) - 2
            continue
        assert_same_bits(grads, {name: expected[f"{name}[{n}]"] for name in grads})


def test_a_chunk_that_does_not_fit_leaves_the_windows_before() -> None:
    layer = make_layer("lstm", num_layers=2)
    x = normal((T, B, I), "float32", 1)
    expected = everything(layer, x, 4, 6)
    windows = rnnfast.tbptt(layer, iter([x[:9], x[9:, 1:]]), 4, 6)
    made = [next(windows), next(windows)]
    with pytest.raises(ValueError, match=rf"x: expected shape \(T, {B}, {I}\), got \({T - 9}, {B - 1}, {I}\)"):
        next(windows)
    for n, window in enumerate(made):
        grads = window.backward(np.cos(window.y))
        assert_same_bits(grads, {name: expected[f"{name}[{n}]"] for name in grads})


def test_no_chunks_are_no_windows() -> None:
    assert list(rnnfast.tbptt(make_layer("lstm"), iter(()), 1, 1)) == []


# Bad input

tb: Any = rnnfast.tbptt
X = normal((9, 2, I), "float32", 1)
TOKENS = np.zeros((9, 2), int)
ROWS = normal((V, I), "float32", 5)


def layer() -> Any:
    return make_layer("lstm", num_layers=2)


def window(**options: Any) -> Any:
    return next(tb(layer(), X, 3, 4, **options))


BAD: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: tb(layer(), X, 0, 4), ValueError, "k1: expected at least 1, got 0"),
    (lambda: tb(layer(), X, 3, -1), ValueError, "k2: expected at least 1, got -1"),
    (lambda: tb(layer(), X, 3.0, 4), TypeError, "k1: expected an int, got float"),
    (lambda: tb(layer(), X, 3, None), TypeError, "k2: expected an int, got NoneType"),
    (lambda: tb(make_layer("gru", bidirectional=True), X, 3, 4), ValueError, "layer: expected one direction, since"),
    (lambda: tb(make_layer("gru", zoneout=0.5), X, 3, 4), ValueError, "layer: expected no zoneout, since"),
    (
        lambda: tb(make_layer("gru", candidate_dropout=0.5), X, 3, 4),
        ValueError,
        "layer: expected no candidate_dropout, since",
    ),
    (
        lambda: tb(make_layer("gru", weight_dropout=0.5), X, 3, 4),
        ValueError,
        "layer: expected no weight_dropout, since",
    ),
    (
        lambda: tb(make_layer("gru", recurrent_dropout=0.5), X, 3, 4),
        ValueError,
        "layer: expected no recurrent_dropout, since",
    ),
    (lambda: tb(rnnfast.Linear(I, H), X, 3, 4), TypeError, "layer: expected a recurrent layer or cell, got Linear"),
    (lambda: tb(layer(), X, 3, 4, losses="all"), ValueError, "losses: expected 'new' or 'window', got 'all'"),
    (lambda: tb(layer(), X, 3, 4, activations=0), ValueError, "activations: expected 'stored' or 'replay', got 0"),
    (lambda: tb(layer(), {1.0}, 3, 4), TypeError, "x: "),
    (lambda: tb(layer(), [1.0], 3, 4), ValueError, r"x: expected shape .*, got \(1,\)"),
    (lambda: tb(layer(), X[0, 0], 3, 4), ValueError, rf"x: expected shape \(T, B, {I}\) or \(T, {I}\), got \({I},\)"),
    (lambda: tb(layer(), X[..., 1:], 3, 4), ValueError, "x: expected shape"),
    (lambda: tb(layer(), X[:0], 3, 4), ValueError, "x: expected at least one step, got shape"),
    (lambda: tb(layer(), X.astype(float), 3, 4), TypeError, "x: expected dtype float32, got float64"),
    (lambda: tb(layer(), iter([X.astype(float)]), 3, 4), TypeError, "x: expected dtype float32, got float64"),
    (lambda: [*tb(layer(), iter([X, None]), 3, 4)], TypeError, "x: "),
    (lambda: [*tb(layer(), iter([X, X[:, 0]]), 3, 4)], ValueError, rf"x: expected shape \(T, 2, {I}\), got \(9, {I}\)"),
    (lambda: [*tb(layer(), iter([TOKENS, X]), 3, 4)], TypeError, "x: expected integers as tokens, got float32"),
    (lambda: [*tb(layer(), TOKENS + I, 3, 4)], ValueError, f"x: expected tokens from 0 to {I - 1}, got {I}"),
    (lambda: [*tb(layer(), TOKENS - 1, 3, 4)], ValueError, f"x: expected tokens from 0 to {I - 1}, got -1"),
    (lambda: tb(layer(), X, 3, 4, embedding=ROWS), ValueError, r"x: expected shape \(T, B\)"),
    (lambda: tb(layer(), X[..., 0], 3, 4, embedding=ROWS), TypeError, "x: expected integers as tokens, got float32"),
    (lambda: tb(layer(), rnnfast.PackedSequence(X[0], np.array([2])), 3, 4), TypeError, "x: expected an array"),
    (lambda: tb(layer(), TOKENS, 3, 4, embedding=ROWS[:, 1:]), ValueError, "embedding: expected shape"),
    (lambda: tb(layer(), TOKENS, 3, 4, embedding=ROWS.astype(float)), TypeError, "embedding: expected dtype float32"),
    (lambda: tb(layer(), X, 3, 4, state=ROWS), TypeError, "state: expected a tuple"),
    (lambda: tb(layer(), X, 3, 4, state=(ROWS, None)), ValueError, rf"state: expected shape \(2, 2, {H}\)"),
    (lambda: tb(make_cell("gru"), X, 3, 4, state=ROWS), ValueError, rf"state: expected shape \(2, {H}\)"),
    (lambda: tb(layer(), X, 3, 4, resets=TOKENS + 2), ValueError, "resets: expected bools, or 0 and 1, got"),
    (lambda: tb(layer(), X, 3, 4, resets=TOKENS[1:] > 0), ValueError, r"resets: expected shape \(9, 2\), got \(8, 2\)"),
    (lambda: [*_short()], ValueError, "resets: expected as many steps as x, 6, got 4"),
    (lambda: [*_long()], ValueError, "resets: expected as many steps as x, 9, got 10"),
    (lambda: window().backward(X), ValueError, rf"dy: expected shape \(3, 2, {H}\), got \(9, 2, {I}\)"),
    (lambda: window().backward(None), TypeError, "dy: "),
    (lambda: window().backward(np.zeros((3, 2, H))), TypeError, "dy: expected dtype float32, got float64"),
    (lambda: (w := window()).backward(w.y, grads={}), ValueError, "grads: missing keys: "),
    (lambda: (w := window()).backward(w.y, out=X), TypeError, r"out: expected a tuple \(dx, dstate0\), got ndarray"),
    (lambda: (w := window()).backward(w.y, out=(X, None)), ValueError, rf"out\[0\]: expected shape \(3, 2, {I}\)"),
    (lambda: (w := window()).backward(w.y, out=(None, (X, None))), ValueError, r"out\[1\]: expected shape"),
    (
        lambda: (w := next(tb(layer(), TOKENS, 3, 4))).backward(w.y, out=(X, None)),
        ValueError,
        r"out\[0\]: expected None, since x is tokens",
    ),
)


def _short() -> Any:
    return tb(layer(), X, 3, 4, resets=iter([TOKENS[:4] > 0]))


def _long() -> Any:
    return tb(layer(), iter([X]), 4, 4, resets=iter([TOKENS > 0, TOKENS[:1] > 0]))


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_what_does_not_fit_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
