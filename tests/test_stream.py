"""Streams: the layer's bits however time is cut, what they hold, what they refuse."""

import copy
import pickle
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from modules import KINDS, initial, make_layer, make_state, named_states, normal, swap
from numpy.lib.stride_tricks import as_strided
from problems import DTYPES, Array, Results, assert_same_bits, named, parts

import rnnfast

rf: Any = rnnfast  # these calls are not what the types allow

by_cell = pytest.mark.parametrize("cell", KINDS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def make_stream(cell: str = "lstm", B: int = 3, **arguments: Any) -> Any:
    """Return a stream of a layer that reads 7 numbers."""
    return make_layer(cell, **arguments).stream(B)


def whole(layer: Any, x: Array, state: Any = None) -> Results:
    y, state = layer(x, state)
    return {**named(y=y), **named_states(state)}


def outcome(stream: Any, ys: list[Array], axis: int = 0) -> Results:
    return {**named(y=np.concatenate(ys, axis)), **named_states(stream.state)}


# Bit for bit


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("L", [1, 2, 3])
@by_dtype
@by_cell
def test_stepped_cut_and_whole_are_the_layer(cell: str, dtype: str, L: int, B: int) -> None:
    layer = make_layer(cell, (7, 37), num_layers=L, dtype=dtype)
    x = normal((600, B, 7), dtype, 1)  # more than a chunk of the kernels
    expected = whole(layer, x)

    stream = layer.stream(B)
    assert_same_bits(outcome(stream, [stream.run(x)]), expected)
    stream = layer.stream(B)
    assert_same_bits(outcome(stream, [stream.step(x_t)[np.newaxis] for x_t in x]), expected)
    stream = layer.stream(B)
    cuts = pairwise([0, 1, 2, 90, 91, 400, 600])
    assert_same_bits(outcome(stream, [stream.run(x[t:u]) for t, u in cuts]), expected)


@by_cell
@pytest.mark.parametrize("sizes", [(1, 1), (1, 64), (300, 16), (130, 130), (16, 260)])
def test_any_sizes_give_the_layers_bits(cell: str, sizes: tuple[int, int]) -> None:
    layer = make_layer(cell, sizes, num_layers=2, bias=False)
    x = normal((5, 2, sizes[0]), "float32", 1)
    stream = layer.stream(2)
    assert_same_bits(outcome(stream, [stream.step(x[0])[np.newaxis], stream.run(x[1:])]), whole(layer, x))


@pytest.mark.parametrize("B", [1, 3])
@by_dtype
def test_a_projection_gives_the_layers_bits(dtype: str, B: int) -> None:
    layer = make_layer("lstm", (7, 37), num_layers=3, dtype=dtype, proj_size=17, learn_initial_state=True)
    for name in initial(layer.cell):
        layer.parameters[name][...] = normal(layer.parameters[name].shape, dtype, 3)
    x = normal((300, B, 7), dtype, 1)
    expected = whole(layer, x)
    stream = layer.stream(B)
    cuts = pairwise([0, 1, 2, 90, 300])
    assert_same_bits(outcome(stream, [stream.run(x[t:u]) for t, u in cuts]), expected)
    twin = copy.copy(stream)
    stream.reset()
    out = np.empty((B, 17), dtype)
    ys = [stream.step(x_t, out).copy()[np.newaxis] for x_t in x]
    assert_same_bits(outcome(stream, ys), expected)
    assert_same_bits(named_states(twin.state), named_states(stream.state))
    assert [part.shape for part in stream.state] == [(3, B, 17), (3, B, 37)]
    stream.state = make_state(layer, (B,), 5)
    assert_same_bits(outcome(stream, [stream.run(x)]), whole(layer, x, make_state(layer, (B,), 5)))


@pytest.mark.parametrize("B", [1, 3])
@by_cell
def test_batch_first_concerns_runs(cell: str, B: int) -> None:
    layer = make_layer(cell, batch_first=True)
    x = normal((B, 5, 7), "float32", 1)
    stream = layer.stream(B)
    ys = [stream.run(x[:, :2]), stream.step(x[:, 2])[:, np.newaxis], stream.run(x[:, 3:])]
    assert_same_bits(outcome(stream, ys, axis=1), whole(layer, x))


@by_cell
def test_one_sequence_needs_no_axis_for_the_batch(cell: str) -> None:
    layer = make_layer(cell)
    x = normal((5, 7), "float32", 1)
    stream = layer.stream()
    y = np.concatenate([stream.run(x[:3]), [stream.step(x[3])], [stream.step(x[4])]])
    assert np.array_equal(y, layer(x)[0])


@pytest.mark.parametrize(
    ("B", "sizes"), [(128, (48, 64)), (128, (4, 64)), (1, (16, 300))], ids=["rows", "folded", "units"]
)
@by_cell
def test_any_number_of_threads_gives_the_same_bits(cell: str, B: int, sizes: tuple[int, int]) -> None:
    layer = make_layer(cell, sizes, num_layers=2)
    T = 40 if B > 1 else 300
    x = normal((T, B, sizes[0]), "float32", 1)
    rnnfast.set_num_threads(1)
    expected = whole(layer, x)
    for threads in (1, 2, 3, 7):
        rnnfast.set_num_threads(threads)
        stream = layer.stream(B)
        ys = [stream.run(x[: T - 5]), *[stream.step(x_t)[np.newaxis] for x_t in x[T - 5 :]]]
        assert_same_bits(outcome(stream, ys), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("B", "shape", "y_shape"),
    [(1, (0, 7), (0, 6)), (1, (0, 1, 7), (0, 1, 6)), (3, (0, 3, 7), (0, 3, 6))],
    ids=["alone", "one", "three"],
)
@by_cell
def test_a_run_of_no_steps_gives_none(
    cell: str, B: int, shape: tuple[int, ...], y_shape: tuple[int, ...], batch_first: bool
) -> None:
    layer = make_layer(cell, batch_first=batch_first, num_layers=2)
    if batch_first and len(shape) == 3:
        shape, y_shape = (B, 0, 7), (B, 0, 6)
    stream = layer.stream(B)
    stream.step(normal((B, 7), "float32", 1))
    before = stream.state
    for x in (zeros(*shape), np.asfortranarray(zeros(*shape)), as_strided(zeros(1), shape, (-12,) * len(shape))):
        out = zeros(*y_shape)
        for y in (stream.run(x), stream.run(x, out)):
            assert (y.shape, y.dtype) == (y_shape, np.float32)
        assert y is out
    assert_same_bits(named_states(stream.state), named_states(before))
    with pytest.raises(ValueError, match="out: expected shape"):
        stream.run(zeros(*shape), zeros(*(n + 1 for n in y_shape)))


# States


@pytest.mark.parametrize("learned", [False, True])
@by_cell
def test_reset_rows_start_anew_and_the_others_go_on(cell: str, learned: bool) -> None:
    layer = make_layer(cell, num_layers=2, learn_initial_state=learned)
    for name in initial(layer.cell):
        if name in layer.parameters:
            layer.parameters[name][...] = normal(layer.parameters[name].shape, "float32", 2)
    x, more = normal((5, 4, 7), "float32", 1), normal((5, 4, 7), "float32", 3)
    gone_on, anew = layer(np.concatenate([x, more]))[0][5:], layer(more)[0]
    forms: list[tuple[Any, list[int]]] = [
        (None, [0, 1, 2, 3]),
        (2, [2]),
        (np.int64(0), [0]),
        ([3, 1], [1, 3]),
        ((), []),
        (np.array([], np.uint8), []),
        (np.array([0, 0]), [0]),
        (np.array([True, False, False, True]), [0, 3]),
        ([False, True, True, False], [1, 2]),
    ]
    for rows, reset in forms:
        stream = layer.stream(4)
        stream.run(x)
        stream.reset(rows)
        y = stream.run(more)
        for b in range(4):
            assert np.array_equal(y[:, b], (anew if b in reset else gone_on)[:, b]), (rows, b)


@by_dtype
@by_cell
def test_a_state_goes_from_stream_to_stream(cell: str, dtype: str) -> None:
    layer = make_layer(cell, num_layers=2, dtype=dtype)
    x, more = normal((5, 3, 7), dtype, 1), normal((5, 3, 7), dtype, 2)
    first, second = layer.stream(3), layer.stream(3)
    first.run(x)
    second.state = first.state
    assert np.array_equal(first.run(more), second.run(more))

    state = make_state(layer, (3,), 3)
    second.state = tuple(map(np.asfortranarray, state)) if isinstance(state, tuple) else np.asfortranarray(state)
    assert_same_bits(named_states(second.state), named_states(state))
    assert np.array_equal(second.run(x), layer(x, state)[0])


@by_cell
def test_a_state_is_a_copy(cell: str) -> None:
    stream = make_stream(cell)
    stream.run(normal((5, 3, 7), "float32", 1))
    before = stream.state
    for part in parts(stream.state):
        part.fill(np.nan)
    assert_same_bits(named_states(stream.state), named_states(before))


def test_a_part_of_a_state_that_is_none_is_zero() -> None:
    stream = make_stream("lstm")
    h = normal((1, 3, 6), "float32", 1)
    stream.state = h, None
    assert_same_bits(named_states(stream.state), named_states((h, np.zeros_like(h))))
    stream.state = None
    assert_same_bits(named_states(stream.state), named_states((np.zeros_like(h), np.zeros_like(h))))


@by_cell
def test_later_changes_of_the_parameters_are_not_seen(cell: str) -> None:
    layer = make_layer(cell, num_layers=2, learn_initial_state=True)
    x = normal((5, 3, 7), "float32", 1)
    expected, stream = layer(x)[0], layer.stream(3)
    for parameter in layer.parameters.values():
        parameter.fill(np.nan)
    assert np.array_equal(stream.run(x), expected)
    stream.reset()
    assert np.array_equal(stream.run(x), expected)


# Results in the caller's memory


def as_it_is(a: Array) -> Array:
    return a


def stepped(a: Array) -> Array:
    return np.empty([2 * n for n in a.shape], a.dtype)[tuple(slice(None, None, 2) for _ in a.shape)]


def unaligned(a: Array) -> Array:
    return np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("layout", [as_it_is, np.asfortranarray, stepped, unaligned])
@pytest.mark.parametrize("batch_first", [False, True])
def test_out_takes_y_in_any_layout(batch_first: bool, layout: Callable[[Array], Array]) -> None:
    layer = make_layer("gru", batch_first=batch_first)
    x = normal((5, 3, 7), "float32", 1)
    expected = layer(swap(x, layer))[0]
    stream = layer.stream(3)
    out = layout(np.empty_like(expected))
    assert stream.run(swap(x, layer), out=out) is out
    assert np.array_equal(out, expected)
    stream.reset()
    step = layout(np.empty((3, 6), np.float32))
    assert stream.step(x[0], out=step) is step
    assert np.array_equal(step, swap(expected, layer)[0])


def test_out_may_be_the_input() -> None:
    layer = make_layer("lstm", (6, 6), num_layers=2)
    x = normal((5, 3, 6), "float32", 1)
    expected = layer(x)[0]
    stream, both = layer.stream(3), x.copy()
    stream.run(both, out=both)
    assert np.array_equal(both, expected)
    stream.reset()
    memory = np.concatenate([x, np.empty((1, 3, 6), np.float32)])
    stream.run(memory[:5], out=memory[1:])
    assert np.array_equal(memory[1:], expected)


def test_calls_with_out_allocate_no_array() -> None:
    stream = make_layer("lstm", (64, 64), num_layers=2).stream(64)
    x = np.zeros((8, 64, 64), np.float32)
    y, y_t = np.empty_like(x), np.empty_like(x[0])
    tracemalloc.start()
    try:
        stream.run(x, out=y)
        stream.step(x[0], out=y_t)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(10):
            stream.run(x, out=y)
            stream.step(x[0], out=y_t)
        assert tracemalloc.get_traced_memory()[1] - before < y_t.nbytes / 4
    finally:
        tracemalloc.stop()


# What is refused


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def read_only(*shape: int) -> Array:
    a = zeros(*shape)
    a.flags.writeable = False
    return a


def assign(state: Any) -> Callable[[Any], None]:
    return lambda stream: setattr(stream, "state", state)


B_WORDS = "expected numbers from 0 to 2"
REFUSED: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("step: size", lambda s: s.step(zeros(3, 8)), ValueError, "x: expected shape (3, 7), got (3, 8)"),
    ("step: batch", lambda s: s.step(zeros(2, 7)), ValueError, "x: expected shape (3, 7), got (2, 7)"),
    ("step: rank", lambda s: s.step(zeros(7)), ValueError, "x: expected shape (3, 7), got (7,)"),
    ("step: number", lambda s: s.step(zeros()), ValueError, "x: expected shape (3, 7), got ()"),
    ("step: dtype", lambda s: s.step(zeros(3, 7, dtype=float)), TypeError, "x: expected dtype float32, got float64"),
    ("step: bytes", lambda s: s.step(zeros(3, 7, dtype=">f4")), TypeError, "x: expected dtype float32, got >f4"),
    ("step: list", lambda s: s.step([[0.0] * 6] * 3), ValueError, "x: expected shape (3, 7), got (3, 6)"),
    (
        "run: size",
        lambda s: s.run(zeros(2, 3, 8)),
        ValueError,
        "x: expected shape (T, 3, 7), got (2, 3, 8)",
    ),
    ("run: no steps", lambda s: s.run(zeros(0, 3, 8)), ValueError, "x: expected shape (T, 3, 7), got (0, 3, 8)"),
    ("step: no sequences", lambda s: s.step(zeros(0, 7)), ValueError, "x: expected shape (3, 7), got (0, 7)"),
    ("run: rank", lambda s: s.run(zeros(2, 7)), ValueError, "got (2, 7)"),
    ("out: shape", lambda s: s.step(zeros(3, 7), zeros(3, 7)), ValueError, "out: expected shape (3, 6), got (3, 7)"),
    ("out: dtype", lambda s: s.step(zeros(3, 7), zeros(3, 6, dtype=int)), TypeError, "out: expected dtype float32"),
    ("out: list", lambda s: s.step(zeros(3, 7), []), TypeError, "out: expected an ndarray, got list"),
    ("out: read-only", lambda s: s.step(zeros(3, 7), read_only(3, 6)), ValueError, "out: expected a writable array"),
    (
        "out: itself",
        lambda s: s.step(zeros(3, 7), as_strided(zeros(6), (3, 6), (0, 4))),
        ValueError,
        "distinct elements",
    ),
    ("out: run", lambda s: s.run(zeros(2, 3, 7), zeros(1, 3, 6)), ValueError, "out: expected shape (2, 3, 6)"),
    ("state: parts", assign(zeros(2, 3, 6)), TypeError, "state: expected a tuple (h, c), got ndarray"),
    ("state: shape", assign((zeros(2, 3, 6), zeros(1, 3, 6))), ValueError, "state: expected shape (2, 3, 6)"),
    ("state: dtype", assign((zeros(2, 3, 6, dtype=float), None)), TypeError, "state: expected dtype float32"),
    ("reset: too large", lambda s: s.reset(3), ValueError, f"rows: {B_WORDS}, got 3"),
    ("reset: negative", lambda s: s.reset([0, -1]), ValueError, f"rows: {B_WORDS}, got [ 0 -1]"),
    ("reset: mask", lambda s: s.reset(np.zeros(4, bool)), ValueError, "rows: expected shape (3,), got (4,)"),
    ("reset: floats", lambda s: s.reset(zeros(3)), TypeError, "rows: expected ints or bools, got float32"),
    ("reset: words", lambda s: s.reset("all"), TypeError, "rows: expected an array, got str"),
    ("reset: huge", lambda s: s.reset(2**70), TypeError, "rows: expected ints or bools, got object"),
]


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_refused_call_changes_nothing(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    stream = make_stream("lstm", num_layers=2)
    stream.run(normal((4, 3, 7), "float32", 1))
    before = stream.state
    with pytest.raises(error, match=re.escape(message)):
        call(stream)
    assert_same_bits(named_states(stream.state), named_states(before))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_layer("lstm", bidirectional=True).stream(), ValueError, "layer: expected one direction"),
        (lambda: make_layer("lstm").stream(0), ValueError, "batch_size: expected at least 1, got 0"),
        (lambda: make_layer("lstm").stream(2**60), ValueError, "batch_size: expected sizes that fit"),
        (lambda: make_layer("lstm").stream("2"), TypeError, "batch_size: expected an int, got str"),
        (
            lambda: rf.stream.Stream(rnnfast.Linear(2, 3)),
            TypeError,
            "layer: expected LSTM, GRU, RNN or SLSTM, got Linear",
        ),
    ],
)
def test_what_cannot_stream_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


# Arrays of derived classes


def forbidden(*_: Any, **__: Any) -> Any:
    msg = "a method of a derived class was called"
    raise AssertionError(msg)


class Loud(np.ndarray):
    """An array whose own methods and attributes fail."""

    __array_function__ = __array_ufunc__ = __array_wrap__ = __getitem__ = __setitem__ = __len__ = __iter__ = forbidden
    __eq__ = astype = copy = view = min = max = reshape = transpose = swapaxes = any = all = tolist = forbidden
    shape = dtype = strides = size = ndim = flags = nbytes = base = data = property(forbidden)


def test_methods_of_derived_classes_are_never_called() -> None:
    stream, expected = make_stream(num_layers=2), make_stream(num_layers=2)
    x = normal((5, 3, 7), "float32", 1)

    def loud(a: Array) -> Array:
        return np.ndarray.view(a, Loud)

    for f in (as_it_is, np.asfortranarray):
        state, y, out = expected.state, expected.run(x), f(np.empty((5, 3, 6), np.float32))
        stream.state = tuple(loud(f(part)) for part in state)
        stream.run(loud(f(x)), out=loud(out))
        assert np.array_equal(out, y)
        assert type(stream.step(loud(f(x[0])))) is np.ndarray
        expected.step(x[0])
        for rows in (np.array([1, 2]), np.array([True, False, False])):
            stream.reset(loud(rows))
            expected.reset(rows)
        assert_same_bits(named_states(stream.state), named_states(expected.state))


@pytest.mark.parametrize(
    "use",
    [
        lambda s, a: s.step(a(3, 7)),
        lambda s, a: s.run(a(2, 3, 7)),
        lambda s, a: s.step(zeros(3, 7), a(3, 6)),
        lambda s, a: setattr(s, "state", (a(1, 3, 6), None)),
        lambda s, a: s.reset(a(3) == 0),
    ],
    ids=["step", "run", "out", "state", "rows"],
)
def test_masked_elements_are_refused(use: Callable[[Any, Callable[..., Any]], Any]) -> None:
    stream = make_stream()
    use(stream, lambda *shape: np.ma.array(zeros(*shape), mask=False))
    with pytest.raises(ValueError, match="without masked elements"):
        use(stream, lambda *shape: np.ma.array(zeros(*shape), mask=True))


# One call at a time


USES: dict[str, Callable[[Any], Any]] = {
    "step": lambda s: s.step(zeros(2, 16)),
    "run": lambda s: s.run(zeros(3, 2, 16)),
    "run of no steps": lambda s: s.run(zeros(0, 2, 16)),
    "reset": lambda s: s.reset(),
    "reset of some": lambda s: s.reset(1),
    "state": lambda s: s.state,
    "state assigned": assign(None),
    "copy": copy.copy,
    "pickle": pickle.dumps,
}


def served(stream: Any) -> list[str]:
    """Return which uses of a stream are not refused as a second call."""
    uses = []
    for name, use in USES.items():
        try:
            use(stream)
            uses.append(name)
        except RuntimeError as error:
            if "expected one call at a time" not in str(error):
                uses.append(f"{name}: {error}")
    return uses


ATTEMPTS = 20  # at what has to come during a run, and mostly does at the first


class Long:
    """A run that takes far longer than Python needs to come to other threads and signals, and what it gives."""

    def __init__(self) -> None:
        self.layer = make_layer("lstm", (16, 256))
        self.stream, self.x = self.layer.stream(2), normal((4000, 2, 16), "float32", 1)
        self.expected = self.layer(self.x)[0]
        self.out = np.empty_like(self.expected)

    def run(self) -> Array:
        """Run from the start, where `out` is NaN."""
        self.stream.reset()
        self.out.fill(np.nan)
        y: Array = self.stream.run(self.x, out=self.out)
        return y

    def is_busy(self) -> bool:
        try:
            self.stream.state  # noqa: B018
        except RuntimeError:
            return True
        return False


def test_a_run_refuses_other_threads_from_its_first_step_to_its_last() -> None:
    long = Long()
    during: list[list[str]] = []

    def use() -> None:
        while running and not long.is_busy():
            pass
        uses = served(long.stream)
        if running:  # else it has come too late
            during.append(uses)

    for _ in range(ATTEMPTS):
        if during:
            break
        long.stream.reset()
        running, thread = True, threading.Thread(target=use)
        thread.start()
        y = long.stream.run(long.x)
        running = False
        thread.join()
    assert during == [[]]
    assert np.array_equal(y, long.expected)


by_signal = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")


def signalled(long: Long, handler: Callable[[], None]) -> None:
    """Run, with a handler of signals called meanwhile, until the handler was called."""
    called = ended = False
    main = threading.get_ident()

    def handle(*_: object) -> None:
        nonlocal called
        if long.is_busy():
            called = True
            handler()

    def send() -> None:
        while not (called or ended):
            if long.is_busy():
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(ATTEMPTS):
            if not called:
                assert np.array_equal(long.run(), long.expected)
    finally:
        ended = True
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert called


@by_signal
def test_a_run_refuses_handlers_of_signals_and_goes_on() -> None:
    long = Long()
    during: list[str] = []
    signalled(long, lambda: during.extend(served(long.stream)))
    assert not during


@by_signal
def test_a_handler_that_raises_ends_a_run_after_a_part_of_its_steps() -> None:
    long = Long()

    def fail() -> None:
        msg = "from the handler"
        raise LookupError(msg)

    with pytest.raises(LookupError, match="from the handler"):
        signalled(long, fail)
    steps = int(np.isfinite(long.out).all((1, 2)).sum())
    assert 0 < steps < len(long.x)
    assert np.array_equal(long.out[:steps], long.expected[:steps])
    assert np.isnan(long.out[steps:]).all()
    h, _ = long.stream.state
    assert np.array_equal(h[0], long.expected[steps - 1])
    assert np.array_equal(long.stream.run(long.x[steps:]), long.expected[steps:])


FORK = """
import os, signal, sys, threading
import numpy as np
import rnnfast

rnnfast.set_num_threads(2)
layer = rnnfast.LSTM(16, 256, rng=0)
x = np.random.default_rng(1).standard_normal((4000, 2, 16)).astype(np.float32)
stream, expected = layer.stream(2), layer(x)[0]
children = []

def is_busy():
    try:
        stream.state
        return False
    except RuntimeError:
        return True

def run():
    while True:
        try:
            return stream.run(x)
        except RuntimeError:  # the other thread was just looking
            pass

def is_new():
    return not any(part.any() for part in stream.state)

def cut_off():
    # Another thread runs the stream while this one forks.
    other = threading.Thread(target=run)
    other.start()
    while other.is_alive():
        if is_busy():
            children.append(os.fork())
            break
    if children[-1:] == [0]:
        if not is_busy():
            os._exit(3)  # the run has ended before the fork
        for use in (lambda: stream.run(x[:0]), lambda: stream.step(x[0]), lambda: stream.reset(0), is_new):
            try:
                use()
            except RuntimeError as error:
                assert "a reset of all sequences or a new state first, since a fork has cut off" in str(error), error
            else:
                raise AssertionError("a use of a stream that was cut off was served")
        stream.state = None
        assert np.array_equal(stream.run(x[:5]), expected[:5])
        os._exit(0)
    other.join()
    stream.reset()

def handled():
    # The handler of a signal forks: both processes have the run.
    def fork(*_):
        if is_busy() and not children:
            children.append(os.fork())

    signal.signal(signal.SIGUSR1, fork)
    main, ended = threading.get_ident(), False

    def send():
        while not (children or ended):
            if is_busy():
                signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    assert np.array_equal(run(), expected)
    ended = True
    if children == [0]:
        stream.reset()
        assert np.array_equal(stream.run(x), expected)
        os._exit(0)
    sender.join()
    stream.reset()

status = 3
while status == 3:
    {"cut off": cut_off, "handled": handled}[sys.argv[1]]()
    while children:
        status = os.waitstatus_to_exitcode(os.waitpid(children.pop(), 0)[1])
assert status == 0, status
assert np.array_equal(stream.run(x), expected)
"""


def run_script(script: str, *arguments: str, status: int = 0) -> None:
    """Run Python in a process of its own, where forks and ends do not meet the tests'."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs fork")
@pytest.mark.parametrize("case", ["cut off", "handled"])
def test_a_forked_child_may_use_a_stream_that_was_in_a_run(case: str) -> None:
    run_script(FORK, case)


END = """
import sys, threading, time
import numpy as np
import rnnfast

class Late:
    def __del__(self):
        time.sleep(0.5)  # in the end of the program, when other threads no longer get the GIL

late = Late()
stream = rnnfast.LSTM(16, 256, rng=0).stream(2)
x = np.zeros((4000, 2, 16), np.float32)

def work():
    while True:
        try:
            stream.run(x)
        except RuntimeError:
            pass  # the main thread was looking at the state

threading.Thread(target=work, daemon=True).start()
while True:
    try:
        stream.state
    except RuntimeError:
        sys.exit(7)
"""


def test_a_program_ends_while_a_daemon_thread_is_in_a_run() -> None:
    run_script(END, status=7)


# Threads


def test_one_stream_in_many_threads_is_refused_or_served() -> None:
    stream = make_layer("gru", (64, 128)).stream(8)
    x = normal((50, 8, 64), "float32", 1)
    unexpected: list[BaseException] = []

    def work() -> None:
        for _ in range(20):
            try:
                stream.run(x)
                stream.reset()
                stream.state = stream.state
            except RuntimeError as error:
                if "one call at a time" not in str(error):
                    unexpected.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not unexpected
    stream.reset()
    expected = stream.run(x)
    stream.reset()
    assert np.array_equal(stream.run(x), expected)


def test_a_stream_in_each_of_many_threads_gives_the_same_bits() -> None:
    layer = make_layer("lstm", (64, 128), num_layers=2)
    x = normal((50, 8, 64), "float32", 1)
    expected = layer(x)[0]
    results: list[Array] = []

    def work() -> None:
        stream = layer.stream(8)
        for _ in range(5):
            stream.reset()
            results.append(stream.run(x))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    assert all(np.array_equal(y, expected) for y in results)
