"""``np.seterr(all="raise")``: no call of ours raises where results are tiny, huge, infinite or NaN."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from modules import KINDS, make_layer
from problems import num_states, state_of

import rnnfast
from rnnfast import convert, functional, lm, reference, training

Array = np.ndarray[Any, np.dtype[Any]]
Fill = Callable[[tuple[int, ...], Any], Array]

T, B, I, H = 6, 3, 4, 5
LENGTHS = np.array([6, 2, 4])
RESETS = np.arange(T * B).reshape(T, B) % 4 == 0


def mixed(*values: float) -> Fill:
    """Return what fills arrays with these values in turn."""

    def fill(shape: tuple[int, ...], dtype: Any) -> Array:
        with np.errstate(all="ignore"):
            some = np.array(values, dtype)
        return np.resize(some, shape)

    return fill


def of_dtype(name: str) -> Fill:
    """Return what fills arrays with a number of their dtype."""
    return lambda shape, dtype: np.resize(np.array([1, -1, 1], dtype) * getattr(np.finfo(dtype), name), shape)


FILLS: dict[str, Fill] = {
    "tiny": of_dtype("tiny"),
    "subnormal": of_dtype("smallest_subnormal"),
    "huge": of_dtype("max"),
    "tiny and huge": mixed(1e-38, -3e38, 1e-45, 3e38, -1e-20, 1e20),
    "infinite": mixed(np.inf, -np.inf, 1, 0),
    "nan": mixed(np.nan, 1, -1e-40),
    "zero": mixed(0, -0.0),
}

by_fill = pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
by_cell = pytest.mark.parametrize("cell", KINDS)


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


def filled(module: Any, fill: Fill) -> Any:
    for p in module.parameters.values():
        p[...] = fill(p.shape, p.dtype)
    return module


def filled_state(layer: Any, fill: Fill) -> Any:
    shape = layer.num_layers * layer.directions, B, layer.hidden_size
    return state_of(tuple(fill(shape, layer.dtype) for _ in range(num_states(layer.cell))))


def test_the_values_would_raise_in_numpy() -> None:
    for name in ("tiny", "huge", "tiny and huge", "infinite"):
        a = FILLS[name]((12,), np.float32)
        with pytest.raises(FloatingPointError):
            a * a - a * a[::-1]


@pytest.mark.parametrize(
    ("dtype", "bidirectional"), [("float32", True), ("float64", False)], ids=["float32-bidirectional", "float64"]
)
@by_fill
@by_cell
def test_layers(cell: str, fill: Fill, dtype: str, bidirectional: bool) -> None:
    sizes: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "dtype": dtype, "dropout": 0.5}
    layer = filled(make_layer(cell, (I, H), learn_initial_state=True, **sizes), fill)
    D, x = layer.directions, fill((T, B, I), dtype)
    dy, steps = fill((T, B, D * H), dtype), fill((2, T, B, D * H), dtype)
    state = filled_state(layer, fill)
    grads = {name: fill(p.shape, dtype) for name, p in layer.parameters.items()}
    both = [{"lengths": LENGTHS}, {"resets": RESETS}, {}]
    for options, outputs in itertools.product(both, ("all", "last")):
        layer(x, state, outputs=outputs, **options)
        for checkpoint in (None, 2):
            *_, tape = layer.forward(x, None, outputs=outputs, checkpoint=checkpoint, **options)
            given = dy if outputs == "all" else dy[0]
            layer.backward(tape, given, state, dh_layers=steps, clip_dh=1.0)
            layer.backward(tape, given, grads=grads)
    rnnfast.gradient_flow(layer, x, dy, lengths=LENGTHS)
    embedding, tokens = fill((7, I), dtype), np.arange(T * B).reshape(T, B) % 7
    *_, tape = layer.forward(tokens, embedding=embedding)
    layer.backward(tape, dy, grads=grads | {"embedding": fill(embedding.shape, dtype)})


@by_fill
@by_cell
def test_windows_and_streams(cell: str, fill: Fill) -> None:
    layer = filled(make_layer(cell, (I, H), num_layers=2, dropout=0.5, learn_initial_state=True), fill)
    x, dy = fill((T, B, I), layer.dtype), fill((T, B, H), layer.dtype)
    losses: Any
    activations: Any
    for losses, activations in itertools.product(("new", "window"), ("stored", "replay")):
        grads = {name: fill(p.shape, layer.dtype) for name, p in layer.parameters.items()}
        for window in rnnfast.tbptt(layer, x, 2, 3, losses=losses, activations=activations, resets=RESETS):
            window.backward(dy[window.start : window.stop], grads=grads)
        rnnfast.tbptt_gradient(layer, x, dy, 2, 3, losses=losses)
    stream = layer.stream(B)
    stream.run(x)
    stream.step(x[0])


@by_fill
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_and_readouts(kind: str, fill: Fill) -> None:
    cell, readout = filled(getattr(rnnfast, kind)(I, H), fill), filled(rnnfast.Linear(I, H), fill)
    x, h = fill((B, I), np.float32), fill((B, H), np.float32)
    *_, tape = cell.forward(x)
    cell.backward(tape, (h, h) if kind == "LSTMCell" else h)
    _, tape = readout.forward(x)
    readout.backward(tape, h, grads={name: fill(p.shape, np.float32) for name, p in readout.parameters.items()})
    for f in (functional.sigmoid, functional.tanh):
        f(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@by_fill
def test_training(fill: Fill, dtype: Any) -> None:
    y, target = fill((B, I), dtype), fill((B, I), dtype)[::-1].copy()
    for reduction in ("mean", "sum"):
        training.squared_error(y, target, reduction=reduction)
        training.softmax_cross_entropy(y, np.zeros(B, int), reduction=reduction)
        training.ctc_loss(y[:, np.newaxis], [[1, 2]], reduction=reduction)
        training.binary_cross_entropy(y, np.ones_like(y), reduction=reduction)
        training.huber_loss(y, target, reduction=reduction)
        training.quantile_loss(y[..., np.newaxis], target, [0.5], reduction=reduction)
        training.gaussian_nll(y, target, y, reduction=reduction)
    for limit in (1e-300, 1.0, 1e300):
        grads = {"w": fill((B, I), dtype)}
        training.clip_grad_norm(grads, limit)
        training.clip_grad_value(grads, min(limit, 1e30))
    w = fill((B, I), dtype)
    sgd = training.SGD({"w": w}, lr=1e-3, momentum=0.9)
    for optimizer in (sgd, training.Adam({"w": w.copy()}), training.AdamW({"w": w.copy()})):
        for _ in range(3):
            optimizer.step({"w": fill((B, I), dtype)})


@by_fill
def test_conversions_and_initial_weights(fill: Fill) -> None:
    for layer in (rnnfast.LSTM(I, H), rnnfast.GRU(I, H, reset_after=False), rnnfast.RNN(I, H, bidirectional=True)):
        for scheme in ("torch", "xavier", "orthogonal", "identity"):
            rnnfast.initialize(layer, scheme)
        convert.to_keras_weights(filled(layer, fill))


@by_fill
def test_the_language_model_samples(fill: Fill) -> None:
    model = lm.CharLM("ab\n", lm.Options(hidden=H, embed=I))
    model.embedding[...] = fill(model.embedding.shape, np.float32)
    filled(model.rnn, fill)
    filled(model.readout, fill)
    for temperature in (0.0, 5e-324, 1.0, 1.7e308):
        assert len("".join(model.sample("a", length=3, temperature=temperature, rng=0))) == 3


@by_fill
@by_cell
def test_the_reference(cell: str, fill: Fill) -> None:
    layer = filled(make_layer(cell, (I, H), bidirectional=True, dtype="float64"), fill)
    x = fill((T, B, I), np.float64)
    *_, tape = reference.forward(layer.cell, x, layer.of_layer(0))
    reference.backward(tape, fill((T, B, 2 * H), np.float64), clip_dh=1.0)


def test_nan_passes_through_as_a_result() -> None:
    x = FILLS["nan"]((T, B, I), np.float32)
    y, last = rnnfast.GRU(I, H, rng=0)(x)
    assert np.isnan(y).all()
    assert np.isnan(last).all()
    loss, dy = training.squared_error(x, np.zeros_like(x))
    assert np.isnan(loss)
    assert np.array_equal(np.isnan(dy), np.isnan(x))
