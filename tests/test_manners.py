"""Copies and pickles of layers, cells, `Linear` and streams, and their representations."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modules import KINDS, initial, make_layer, named_states, normal
from problems import DTYPES, Array, assert_same_bits, parts
from test_layers import REPRESENTATIONS
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core
from rnnfast._base import module
from rnnfast.stream import Stream

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
STREAMS = (
    "Stream(LSTM(3, 4), batch_size=1)",
    "Stream(LSTM(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5), batch_size=2)",
    "Stream(GRU(3, 4, dtype='float64', learn_initial_state=True, reset_after=False), batch_size=3)",
    "Stream(RNN(3, 4, nonlinearity='relu'), batch_size=2)",
)

by_call = pytest.mark.parametrize("call", REPRESENTATIONS)
by_cell = pytest.mark.parametrize("cell", KINDS)


class Echo(rnnfast.GRU):
    """What a user may make of a layer: another constructor, another attribute, another parameter."""

    gain: Array

    def __init__(self, size: int) -> None:
        super().__init__(size, size, num_layers=2, dropout=0.5, rng=1)
        self.times = [3]
        self.parameters["gain"] = np.full(size, 2, np.float32)


def make(call: str) -> Any:
    return eval(call, {**vars(rnnfast), "Stream": Stream, "Echo": Echo})


def pickled(original: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(original, protocol))


DEEP: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": pickled}

# Layers, cells and Linear


@pytest.mark.parametrize("protocol", PROTOCOLS)
@by_call
def test_an_unpickled_layer_is_the_same(call: str, protocol: int) -> None:
    layer = make(call)
    layer.rng.random()
    twin = pickled(layer, protocol)
    assert repr(twin) == call
    assert list(twin.state_dict()) == list(layer.state_dict())
    assert_same_bits(twin.state_dict(), layer.state_dict())
    assert twin.rng.random() == layer.rng.random()
    assert vars(twin).keys() == vars(layer).keys()


@pytest.mark.parametrize("copied", DEEP.values(), ids=DEEP)
@by_call
def test_deep_copies_share_nothing_and_shallow_ones_the_parameters(call: str, copied: Callable[[Any], Any]) -> None:
    layer = make(call)
    deep, shallow = copied(layer), copy.copy(layer)
    for name, p in layer.parameters.items():
        assert not np.may_share_memory(deep.parameters[name], p)
        assert shallow.parameters[name] is p
    assert shallow.rng is layer.rng is not deep.rng
    assert repr(shallow) == call


@by_call
def test_a_pickle_holds_arguments_parameters_and_the_generator(call: str) -> None:
    layer = make(call)
    layer(np.zeros((2, 3), layer.dtype))  # what a call leaves on the layer is made anew
    state = layer.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[2]
    assert {name: type(value) for name, value in state.items()} == {
        "arguments": dict,
        "state_dict": dict,
        "rng": np.random.Generator,
        "attributes": dict,
    }
    assert state["attributes"] == {}


def test_two_processes_write_the_same_pickle() -> None:
    code = """
import pickle, sys, rnnfast
layer = rnnfast.LSTM(3, 4, num_layers=2, dropout=0.5, rng=0)
for protocol in range(2, 6):
    sys.stdout.buffer.write(pickle.dumps((layer, layer.stream(), rnnfast.Linear(4, 2, rng=1)), protocol))
"""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert len(first) > 4000


def test_unpickling_draws_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnfast.LSTM(3, 4, num_layers=2, dropout=0.5)
    before = copy.deepcopy(layer.rng.bit_generator.state)

    def initialize(*_: Any) -> None:
        pytest.fail("initialized")

    monkeypatch.setattr(module, "initialize", initialize)
    for copied in (*DEEP.values(), copy.copy):
        assert copied(layer).rng.bit_generator.state == before
    assert layer.rng.bit_generator.state == before


def test_a_pickle_whose_arrays_are_read_only_gives_parameters_that_are_not() -> None:
    layer = rnnfast.LSTM(3, 4)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    assert len(buffers) >= len(layer.parameters)
    twin = pickle.loads(stream, buffers=[bytes(b) for b in buffers])
    assert_same_bits(twin.state_dict(), layer.state_dict())
    twin.weight_hh_l0 *= 2


@pytest.mark.parametrize("copied", DEEP.values(), ids=DEEP)
def test_layers_that_share_a_generator_share_it_after_copying(copied: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    one, two = copied([rnnfast.GRU(3, 4, rng=rng), rnnfast.Linear(4, 2, rng=rng)])
    assert one.rng is two.rng


@pytest.mark.parametrize("copied", DEEP.values(), ids=DEEP)
def test_a_users_class_is_copied_with_what_it_adds(copied: Callable[[Any], Any]) -> None:
    echo = Echo(3)
    echo.gain = 2 * echo.gain
    twin = copied(echo)
    assert type(twin) is Echo
    assert repr(twin) == repr(echo) == "Echo(3, 3, num_layers=2, dropout=0.5)"
    assert twin.times == [3]
    assert twin.times is not echo.times
    assert_same_bits(twin.state_dict(), echo.state_dict())
    x = normal((5, 2, 3), "float32", 1)
    assert np.array_equal(twin.forward(x)[0], echo.forward(x)[0])


def test_a_single_layer_with_dropout_warns_when_made_and_not_when_copied() -> None:
    with pytest.warns(UserWarning, match="dropout: expected 0"):
        layer = rnnfast.LSTM(3, 4, dropout=0.5)
    for copied in (*DEEP.values(), copy.copy):
        assert copied(layer).dropout == 0.5


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "nothing": (dict.clear, KeyError, "state_dict"),
    "no generator": (lambda s: s.pop("rng"), KeyError, "rng"),
    "a generator of another kind": (lambda s: s.update(rng=object()), TypeError, "rng"),
    "no arguments": (lambda s: s.pop("arguments"), KeyError, "arguments"),
    "arguments that are none": (lambda s: s.update(arguments=3), TypeError, "mapping"),
    "an unknown argument": (lambda s: s["arguments"].update(color=3), TypeError, "color"),
    "another size": (lambda s: s["arguments"].update(hidden_size=5), ValueError, "weight_ih_l0: expected shape"),
    "a huge size": (lambda s: s["arguments"].update(hidden_size=2**28), ValueError, "weight_ih_l0: expected shape"),
    "many layers": (lambda s: s["arguments"].update(num_layers=2**40), ValueError, "weight_ih_l1: expected an array"),
    "another dtype": (lambda s: s["arguments"].update(dtype="float64"), TypeError, "weight_ih_l0: expected dtype"),
    "a missing parameter": (lambda s: s["state_dict"].pop("bias_hh_l0"), ValueError, "bias_hh_l0: expected an array"),
    "a parameter that is none": (lambda s: s["state_dict"].update(bias_hh_l0=None), TypeError, "bias_hh_l0: expected"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pickle_is_refused(damage: str) -> None:
    state = copy.deepcopy(rnnfast.LSTM(3, 4).__getstate__())
    change, error, message = DAMAGES[damage]
    change(state)
    with pytest.raises(error, match=message):
        rnnfast.LSTM.__new__(rnnfast.LSTM).__setstate__(state)


# Tapes


def test_the_representation_of_a_tape_says_what_it_is_of() -> None:
    x = np.ones((5, 2, 3), np.float32)
    lstm, cell, readout = rnnfast.LSTM(3, 4), rnnfast.GRUCell(3, 4), rnnfast.Linear(3, 2)
    assert repr(lstm.forward(x)[-1]) == "<LayerTape of LSTM(3, 4), x (5, 2, 3), y (5, 2, 4)>"
    assert repr(cell.forward(x[0])[-1]) == "<CellTape of GRUCell(3, 4), x (2, 3), y (2, 4)>"
    assert repr(readout.forward(x)[-1]) == "<Tape of Linear(3, 2), x (5, 2, 3), y (5, 2, 2)>"
    assert repr(readout.forward(x[0, 0])[-1]) == "<Tape of Linear(3, 2), x (3,), y (2,)>"
    packed = rnnfast.pack_padded(x, np.array([5, 3]))
    assert repr(lstm.forward(packed)[-1]) == "<LayerTape of LSTM(3, 4), x (8, 3), y (8, 4)>"
    w = np.ones((6, 3), np.float32)
    tape = rnnfast.functional.forward("gru", x, [(w, w[:, :2], None, None)])[-1]
    assert repr(tape) == "<Tape of gru, T=5, B=2, I=3, H=2, D=1>"


# Streams


@pytest.mark.parametrize("call", STREAMS)
def test_the_representation_of_a_stream_is_its_call(call: str) -> None:
    assert repr(make(call)) == call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("call", STREAMS)
def test_an_unpickled_stream_is_the_same(call: str, protocol: int) -> None:
    stream = make(call)
    twin = pickled(stream, protocol)
    assert repr(twin) == call
    assert_same_bits(named_states(twin.state), named_states(stream.state))


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copied", [copy.copy, *DEEP.values()], ids=["copy", *DEEP])
@by_cell
def test_a_copied_stream_goes_on_bit_for_bit(cell: str, copied: Callable[[Any], Any], dtype: str, B: int) -> None:
    layer = make_layer(cell, (7, 20), num_layers=2, learn_initial_state=True, dtype=dtype)
    for name in layer.parameters.keys() & {*initial(layer.cell)}:
        layer.parameters[name][...] = normal((2, 20), dtype, 2)
    x = normal((9, B, 7), dtype, 1)
    expected, _ = layer(x)
    stream = layer.stream(B)
    stream.run(x[:4])
    for p in layer.parameters.values():
        p *= 2  # which neither of them sees
    twin = copied(stream)
    assert np.array_equal(twin.run(x[4:]), expected[4:])
    assert np.array_equal(stream.run(x[4:]), expected[4:])  # has not moved with the other one
    twin.reset()
    assert np.array_equal(copied(twin).run(x), expected)


def test_a_stream_of_a_users_class_is_one_of_the_layer() -> None:
    stream = Echo(3).stream()
    assert repr(copy.deepcopy(stream)) == repr(stream) == "Stream(GRU(3, 3, num_layers=2, dropout=0.5), batch_size=1)"


def test_a_stream_is_copied_between_calls_only() -> None:
    stream = make_layer("lstm", (64, 128)).stream(16)
    x = normal((200, 16, 64), "float32", 1)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            with suppress(RuntimeError):  # where it meets the copying
                stream.run(x)

    def copy_often() -> None:
        for _ in range(1000):
            copy.copy(stream)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with pytest.raises(RuntimeError, match="one call at a time"):
            copy_often()
    finally:
        done.set()
        worker.join()
    copy.copy(stream)


@pytest.mark.parametrize("isa", _core.config()["available"])
def test_a_pickle_goes_on_under_any_instruction_set(isa: str, tmp_path: Path) -> None:
    layer = rnnfast.LSTM(3, 20, num_layers=2)
    x = normal((9, 2, 3), "float32", 1)
    expected, _ = layer(x)
    stream = layer.stream(2)
    stream.run(x[:4])
    (tmp_path / "stream").write_bytes(pickle.dumps((stream, x[4:])))
    code = "import pickle, sys; s, x = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(s.run(x)))"
    with (tmp_path / "stream").open("rb") as file:
        command, env = [sys.executable, "-c", code], {**os.environ, "RNNFAST_ISA": isa}
        written = subprocess.run(command, stdin=file, env=env, capture_output=True, check=True).stdout
    assert relative_error(pickle.loads(written), expected[4:]) < TOLERANCE[x.dtype]


def test_a_damaged_pickle_of_a_stream_is_refused() -> None:
    stream = rnnfast.LSTM(3, 4).stream()
    kind, arguments, state = stream.__reduce__()
    h, c = parts(state)
    calls: tuple[Any, ...] = ((), ("a layer", 1), (rnnfast.LSTM.__new__(rnnfast.LSTM), 1), (arguments[0], 0))
    for bad in calls:
        with pytest.raises((AttributeError, TypeError, ValueError)):
            kind(*bad)
    states: tuple[Any, ...] = (h, (h,), (h[:, :, :3], c), (h.astype(np.float64), c), ("h", c))
    for bad in states:
        with pytest.raises((TypeError, ValueError), match="state: expected"):
            stream.__setstate__(bad)
