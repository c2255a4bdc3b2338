"""What is taken as an array, and that it is read once: what becomes of it later changes no result."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from modules import ONE_STEP, B, H, I, T, make_cell, make_layer, make_state, normal
from problems import CELLS, Array, Shape, make_problem, parts

import rnnfast
from rnnfast import _core, functional, training

F: Any = functional


class Trap(np.ndarray[Any, Any]):
    """An array of a class of its own whose every method and attribute fails."""

    def __getattribute__(self, name: str) -> Any:
        if name != "__class__":  # isinstance asks for it
            msg = f"{name} of a derived class was used"
            raise AssertionError(msg)
        return super().__getattribute__(name)

    def __array_finalize__(self, *_: Any) -> None:
        pass

    def __array_function__(self, *_: Any, **__: Any) -> Any:
        msg = "a function of NumPy was handed to a derived class"
        raise AssertionError(msg)

    __array_ufunc__ = __getitem__ = __setitem__ = __len__ = __iter__ = __iadd__ = __array_function__


class ByArray:
    """An array by `__array__` alone."""

    def __init__(self, a: Array, act: Callable[[], Any] = lambda: None) -> None:
        self.a, self.act = a, act

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        self.act()
        return np.array(self.a, dtype, copy=copy)


class ByDLPack:
    """An array by DLPack alone."""

    def __init__(self, a: Array) -> None:
        self.__dlpack__, self.__dlpack_device__ = a.__dlpack__, a.__dlpack_device__


def nested(a: Array) -> Any:
    return a.tolist()


def masked(a: Array) -> Any:
    """Return an array with a mask that hides nothing."""
    return np.ma.masked_array(a, np.zeros(a.shape, bool))


def trap(a: Array) -> Any:
    return a.view(Trap)


FORMS = (nested, masked, trap, ByArray, ByDLPack, memoryview)

X = normal((T, B, I), "float32", 1)
DY = normal((T, B, H), "float32", 2)
LENGTHS, RESETS = np.array([5, 2, 4]), np.arange(T * B).reshape(T, B) % 4 == 3
TOKENS, EMBEDDING = np.arange(T * B).reshape(T, B) % 8, normal((8, I), "float32", 3)


def each(form: Callable[[Array], Any], state: Any) -> Any:
    """Change the form of each part of a state."""
    return tuple(map(form, state)) if isinstance(state, tuple) else form(state)


def of_layer(form: Callable[[Array], Any]) -> Iterator[Any]:
    layer = make_layer("lstm", num_layers=2)
    state, dstate = make_state(layer, (B,), 4), make_state(layer, (B,), 6)
    yield from layer(form(X), each(form, state), lengths=form(LENGTHS), resets=form(RESETS))
    y, last, tape = layer.forward(form(TOKENS), each(form, state), embedding=form(EMBEDDING), checkpoint=2)
    grads = layer.backward(tape, form(DY), each(form, dstate), dh_layers=form(np.stack([DY, DY])))[2]
    yield from (y, *last, *grads.values())
    packed = rnnfast.pack_padded(form(X), form(LENGTHS))
    yield from (packed.data, packed.batch_sizes)
    again = rnnfast.PackedSequence(*map(form, packed))
    yield layer(again)[0].data
    for window in rnnfast.tbptt(layer, form(X), 2, 3, state=each(form, state), resets=form(RESETS)):
        yield from window.backward(form(DY[: len(window.y)])).values()
    yield rnnfast.tbptt_gradient(layer, form(X), form(DY), 2, 3)[0]


def of_cells(form: Callable[[Array], Any]) -> Iterator[Any]:
    for cell in map(make_cell, ONE_STEP):
        state = make_state(cell, (B,), 4)
        last, tape = cell.forward(form(X[0]), each(form, state))
        dx, dstate0, grads = cell.backward(tape, each(form, state))
        yield from (*parts(last), dx, *parts(dstate0), *grads.values())


def of_functions(form: Callable[[Array], Any]) -> Iterator[Any]:
    problem: Any = make_problem("gru", "float32", Shape(T, B, I, H))
    w = [tuple(map(form, problem.parameters[0]))]
    w[0] = (problem.parameters[0][0], *w[0][1:])  # which decides the dtype of lists
    y, h, tape = F.forward("gru", form(problem.x), w, form(problem.state0[0]), resets=form(RESETS))
    dx, dh0, [grads] = F.backward(tape, form(problem.dy), form(problem.dstate[0]))
    yield from (y, h, dx, dh0, *grads)
    weight = normal((4, I), "float32", 7)
    yield F.linear(form(X), weight, form(weight[:, 0].copy()))
    dx, pair = F.linear_backward(form(X), weight, None, form(X[..., :4].copy()))
    yield from (dx, pair[0])
    yield training.softmax_cross_entropy(X, form(np.ones((T, B), int)))[1]
    yield training.squared_error(X, form(X + 1))[1]
    readout = rnnfast.Linear(I, 4, rng=0)
    y, readout_tape = readout.forward(form(X))
    yield readout.backward(readout_tape, form(y.copy()))[0]


@pytest.mark.parametrize("run", [of_layer, of_cells, of_functions])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_array_gives_the_same(run: Callable[[Any], Iterator[Any]], form: Any) -> None:
    """Lists take the dtype of the layer; of derived classes no method is called."""
    for actual, expected in zip(run(form), run(np.copy), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("state", [list, tuple])
def test_an_lstm_takes_its_state_as_a_list_or_tuple(state: Any) -> None:
    """Keras and others hand out lists."""
    layer, cell = make_layer("lstm"), make_cell("lstm")
    h_c = make_state(layer, (B,), 4)
    np.testing.assert_array_equal(layer(X, state(h_c))[0], layer(X, h_c)[0])
    np.testing.assert_array_equal(cell(X[0], state(part[0] for part in h_c))[0], layer(X[:1], h_c)[0][0])
    stream = layer.stream(B)
    stream.state = state(h_c)
    np.testing.assert_array_equal(stream.run(X), layer(X, h_c)[0])


@pytest.mark.parametrize("dtype", [int, np.uint8, float, np.float32, bool])
def test_resets_may_be_0_and_1(dtype: Any) -> None:
    layer = make_layer("gru", bidirectional=True)
    expected = layer(X, resets=RESETS)[0]
    np.testing.assert_array_equal(layer(X, resets=RESETS.astype(dtype))[0], expected)
    packed, flags = rnnfast.pack_padded(X, LENGTHS), rnnfast.pack_padded(RESETS.astype(dtype), LENGTHS)
    np.testing.assert_array_equal(
        layer(packed, resets=flags)[0].data, layer(packed, resets=flags.data.astype(bool))[0].data
    )


def test_results_go_into_arrays_of_derived_classes() -> None:
    """The caller's own object comes back, filled, and no method of it was called."""
    layer = make_layer("lstm")
    y, _, tape = layer.forward(X)
    expected = layer.backward(tape, DY)[2]
    grads = {name: np.zeros_like(p).view(Trap) for name, p in layer.parameters.items()}
    assert layer.backward(tape, DY, grads=grads)[2] is grads
    for name, g in grads.items():
        np.testing.assert_array_equal(np.ndarray.view(g, np.ndarray), expected[name])
    out = np.empty_like(y).view(Trap)
    assert F.tanh(y, out=out) is out
    np.testing.assert_array_equal(np.ndarray.view(out, np.ndarray), F.tanh(y))


# Arrays that change their form while they are in use


@contextmanager
def disguised(*arrays: Array) -> Iterator[None]:
    """Give arrays another shape for a while: their memory stays as it is."""
    shapes = [a.shape for a in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for a in arrays:
            a.shape = (a.size,)
        try:
            yield
        finally:
            for a, shape in zip(arrays, shapes, strict=True):
                a.shape = shape


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_backward_does_not_see_a_new_shape(cell: str, checkpoint: int | None) -> None:
    layer = make_layer(cell, num_layers=2, bidirectional=True)
    state, embedding, dy = make_state(layer, (B,), 4), EMBEDDING.copy(), normal((T, B, 2 * H), "float32", 5)
    y, _, tape = layer.forward(TOKENS, state, embedding=embedding, checkpoint=checkpoint)
    expected = layer.backward(tape, dy)
    with disguised(embedding, y, *parts(state)):
        actual = layer.backward(tape, dy)
    np.testing.assert_array_equal(actual[2]["embedding"], expected[2]["embedding"])
    for name, g in actual[2].items():
        np.testing.assert_array_equal(g, expected[2][name])


def test_a_bare_tape_does_not_see_a_new_shape() -> None:
    problem: Any = make_problem("lstm", "float64", Shape(T, B, I, H, 2))
    y, (h, c), tape = F.forward("lstm", problem.x, problem.parameters, problem.state0)
    expected = F.backward(tape, problem.dy)
    with disguised(problem.x, *problem.state0, y, h, c, *(w for ws in problem.parameters for w in ws)):
        dx, _, grads = F.backward(tape, problem.dy)
    np.testing.assert_array_equal(dx, expected[0])
    np.testing.assert_array_equal(grads[1][0], expected[2][1][0])


def test_a_cell_and_a_readout_do_not_see_a_new_shape() -> None:
    cell, readout, x = make_cell("lstm"), rnnfast.Linear(I, 4, rng=0), X[0].copy()
    (h, c), tape = cell.forward(x)
    y, readout_tape = readout.forward(x)
    expected, expected_dx = cell.backward(tape, (h, c))[0], readout.backward(readout_tape, y.copy())[0]
    dh, dc, dy = h.copy(), c.copy(), y.copy()
    with disguised(x, h, c, y):
        np.testing.assert_array_equal(cell.backward(tape, (dh, dc))[0], expected)
        np.testing.assert_array_equal(readout.backward(readout_tape, dy)[0], expected_dx)


def test_windows_do_not_see_a_new_shape_of_the_embedding() -> None:
    """A token at or above V stays an error, and gradients have the embedding's shape."""
    layer, embedding = make_layer("gru"), EMBEDDING.copy()
    windows = rnnfast.tbptt(layer, TOKENS, 2, 3, embedding=embedding)
    window = next(windows)
    expected = window.backward(DY[:2])["embedding"]
    with disguised(embedding):
        np.testing.assert_array_equal(window.backward(DY[:2])["embedding"], expected)
        next(windows)
    beyond = iter([TOKENS[:2], TOKENS[2:] + 8])
    windows = rnnfast.tbptt(layer, beyond, 2, 3, embedding=embedding)
    next(windows)
    with disguised(embedding), pytest.raises(ValueError, match="x: expected tokens from 0 to 7"):
        next(windows)


def acting_calls() -> dict[str, Callable[[Any], Any]]:
    """Return calls whose last argument acts on the others while it is read."""
    weight, bias = normal((4, I), "float32", 7), np.zeros(4, np.float32)
    x, dy = X.copy(), X[..., :4].copy()
    p, g, m, v = (normal((3, 4), "float32", k) ** 2 for k in range(4))
    problem: Any = make_problem("gru", "float32", Shape(T, B, I, H))
    w = problem.parameters
    *_, tape = F.forward("gru", problem.x, w)
    dw = [tuple(np.zeros_like(a) for a in w[0])]

    def acting(a: Array, *others: Array) -> Any:
        def act() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                for other in others:
                    other.shape = (other.size,)

        return ByArray(a, act)

    return {
        "linear": lambda _: F.linear(x, weight, acting(bias, x)),
        "linear, weight": lambda _: F.linear(x, weight, acting(bias, weight)),
        "linear_backward": lambda _: F.linear_backward(x, weight, bias, acting(dy, x, weight)),
        "tanh": lambda _: F.tanh(x, out=acting(np.ones_like(x), x)),
        "adam": lambda _: _core.adam_step(p, g, m, acting(v, p, g, m), 0.1, 0.5, 0.5, 0.1),
        "sgd": lambda _: _core.sgd_step(p, g, acting(v, p, g), 0.1, 0.5),
        "cross entropy": lambda _: training.softmax_cross_entropy(x, acting(np.ones((T, B), int), x)),
        "squared error": lambda _: training.squared_error(x, acting(x.copy(), x)),
        "forward": lambda _: F.forward("gru", problem.x, w, acting(problem.state0[0], problem.x, *w[0])),
        "backward": lambda _: F.backward(tape, problem.dy, acting(problem.dstate[0], problem.dy), grads=dw),
        "layer": lambda _: make_layer("gru")(x, acting(problem.state0[0], x)),
    }


@contextmanager
def suppress_named_errors() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        if ": expected " not in str(error):
            raise


@pytest.mark.parametrize("name", acting_calls())
def test_an_argument_that_acts_while_it_is_read_does_no_harm(name: str) -> None:
    """Either the call sees the arrays as they were, or it names the one that no longer fits."""
    with suppress_named_errors():
        acting_calls()[name](None)


# Threads


def test_a_window_that_moves_or_is_gone_says_so() -> None:
    """Gradients are right, or the backward raises RuntimeError, while another thread asks for the next windows."""
    layer, n = make_layer("gru", (4, 32)), 400
    x, dy = normal((n, 8, 4), "float32", 1), normal((5, 8, 32), "float32", 2)
    expected = {w.stop: w.backward(dy) for w in rnnfast.tbptt(layer, x, 5, 15)}
    windows = rnnfast.tbptt(layer, x, 5, 15)
    latest, wrong = [next(windows)], []

    def look() -> None:
        while latest[-1].stop < n:
            window = latest[-1]
            try:
                grads = window.backward(dy)
            except RuntimeError as error:
                if "window" not in str(error):
                    wrong.append(str(error))
                continue
            if any(not np.array_equal(g, expected[window.stop][name]) for name, g in grads.items()):
                wrong.append(f"window {window.stop}")

    looking = threading.Thread(target=look)
    looking.start()
    latest.extend(windows)
    looking.join()
    assert not wrong
    with pytest.raises(RuntimeError, match="later windows have taken their place"):
        latest[0].backward(dy)


def test_a_thread_does_not_wait_for_itself() -> None:
    """As a signal handler would: a backward from within the reading of the next steps."""
    layer = make_layer("gru")
    windows: list[Any] = []
    errors: list[str] = []

    def chunks() -> Iterator[Array]:
        for k in range(T):
            if windows:
                try:
                    windows[-1].backward(DY[:1])
                except RuntimeError as error:
                    errors.append(str(error))
            yield X[k : k + 1]

    for window in rnnfast.tbptt(layer, chunks(), 1, 2):
        windows.append(window)  # noqa: PERF402 chunks() looks at it meanwhile
    assert len(errors) == T - 1
    assert all("one use of the windows at a time" in error for error in errors)


def test_an_empty_list_is_as_good_as_one_of_integers() -> None:
    embedding, layer = rnnfast.Embedding(5, I, rng=0), make_layer("gru")
    assert embedding([]).shape == (0, I)
    assert embedding.forward([[], []])[0].shape == (2, 0, I)
    assert layer([[], []], embedding=embedding.weight)[0].shape == (2, 0, H)
    assert training.softmax_cross_entropy(np.zeros((0, 3)), [], reduction="sum")[0] == 0
    assert next(iter(rnnfast.tbptt(layer, iter([[[], []]]), 1, 1, embedding=embedding.weight))).y.shape == (1, 0, H)
    for call in (embedding, lambda x: training.softmax_cross_entropy(np.zeros((0, 3)), x)):
        with pytest.raises(TypeError, match="expected integers, got float64"):
            call(np.empty(0))
    with pytest.raises(ValueError, match=r"^x: expected shape"):
        layer([[], []])


def test_no_sequences_have_no_resets() -> None:
    """As a layer's call takes them."""
    layer, x, resets = make_layer("lstm"), np.zeros((5, 0, I), np.float32), np.zeros((5, 0), bool)
    assert layer(x, resets=resets)[0].shape == (5, 0, H)
    assert [window.y.shape for window in rnnfast.tbptt(layer, x, 2, 3, resets=resets)] == [(2, 0, H)] * 2 + [(1, 0, H)]
