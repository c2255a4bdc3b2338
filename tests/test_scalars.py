"""Flags, sizes and numbers may be Python's or NumPy's; what is none of these is refused by the argument's name."""

import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from problems import Array

import rnnfast
from rnnfast import functional
from rnnfast.training import (
    SGD,
    Adam,
    AdamW,
    CosineSchedule,
    EarlyStopping,
    ExponentialSchedule,
    clip_grad_norm,
    clip_grad_value,
    ctc_loss,
    huber_loss,
    softmax_cross_entropy,
)

rf: Any = rnnfast  # these calls are not what the types allow
F: Any = functional

X = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 2, 3)
DY = np.ones((5, 2, 4), np.float32)
W = np.ones((1, 1))


class Kind(NamedTuple):
    """Where scalars come from."""

    flag: Callable[[bool], Any]
    integer: Callable[[int], Any]
    number: Callable[[float], Any]


PYTHON = Kind(bool, int, float)
KINDS = {
    "numpy": Kind(np.bool, np.int64, np.float32),
    "small": Kind(np.bool, np.uint8, np.float16),
    "without_axes": Kind(np.array, np.array, np.array),
}


def layer(**options: Any) -> Any:
    return rf.GRU(3, 4, 2, rng=0, **options)


def backward(**options: Any) -> Any:
    gru = layer()
    y, _, tape = gru.forward(X)
    return gru.backward(tape, y, **options)


def cell_backward(**options: Any) -> Any:
    cell = rf.LSTMCell(3, 4, rng=0)
    state, tape = cell.forward(X[0])
    return cell.backward(tape, state, **options)


def linear_backward(**options: Any) -> Any:
    readout = rf.Linear(3, 4, rng=0)
    y, tape = readout.forward(X)
    return readout.backward(tape, y, **options)


def bare_backward(**options: Any) -> Any:
    y, _, tape = F.forward("rnn_tanh", np.ones((3, 1, 1)), [(W, W, None, None)])
    return F.backward(tape, y, **options)


def stepped(optimizer: Callable[[dict[str, Array]], Any]) -> Array:
    params = {"w": np.ones(3)}
    optimizer(params).step({"w": np.arange(3.0)})
    return params["w"]


def clipped(clip: Callable[[dict[str, Array]], Any]) -> Array:
    grads = {"w": np.arange(3.0)}
    clip(grads)
    return grads["w"]


def started(**options: Any) -> dict[str, Array]:
    lstm = rf.LSTM(3, 4, rng=0)
    rf.initialize(lstm, "xavier", rng=1, **options)
    return dict(lstm.state_dict())


def threads_set(n: Any) -> int:
    with rnnfast.threads(1):
        rf.set_num_threads(n)
        return rnnfast.get_num_threads()


def onnx_of(state: Any) -> Any:
    pytest.importorskip("onnx", reason='onnx is not installed (pip install ".[onnx]")')
    return rf.onnx.to_onnx(rf.GRU(3, 4, rng=0), state=state).SerializeToString()


def pad(**options: Any) -> Any:
    return rf.pad_packed(rf.pack_padded(X, [4, 2]), **options)


def bucketed(batch_size: Any = 2, **options: Any) -> Any:
    return rf.length_bucketed_batches([3, 1, 2, 5], batch_size, rng=0, **options)


def windows(k1: Any, k2: Any) -> Any:
    return [(w.tau, w.stop, w.backward(w.y)) for w in rf.tbptt(layer(), X, k1, k2)]


CALLS: dict[str, Callable[[Kind], Any]] = {
    "sizes": lambda k: layer_of(rf.GRU(k.integer(3), k.integer(4), k.integer(2), rng=0)),
    "options": lambda k: layer_of(
        rf.LSTM(3, 4, 2, k.flag(False), k.flag(True), k.number(0.5), k.flag(True), rng=k.integer(3))
    ),
    "gru": lambda k: layer_of(rf.GRU(3, 4, learn_initial_state=k.flag(True), reset_after=k.flag(False), rng=0)),
    "cell": lambda k: layer_of(rf.GRUCell(k.integer(3), k.integer(4), k.flag(False), reset_after=k.flag(False), rng=0)),
    "linear": lambda k: layer_of(rf.Linear(k.integer(3), k.integer(4), k.flag(False), rng=0)),
    "need_dx": lambda k: backward(need_dx=k.flag(False)),
    "need_dx_cell": lambda k: cell_backward(need_dx=k.flag(False)),
    "need_dx_linear": lambda k: linear_backward(need_dx=k.flag(False)),
    "need_dx_bare": lambda k: bare_backward(need_dx=k.flag(False)),
    "need_dx_linear_bare": lambda k: F.linear_backward(W, W, None, W, need_dx=k.flag(False)),
    "need_dx_tbptt": lambda k: rf.tbptt_gradient(layer(), X, DY, k.integer(2), k.integer(3), need_dx=k.flag(False)),
    "clip_dh": lambda k: backward(clip_dh=k.number(0.5)),
    "clip_dh_bare": lambda k: bare_backward(clip_dh=k.number(0.5)),
    "checkpoint": lambda k: layer().forward(X, checkpoint=k.integer(5))[:2],
    "gate_override": lambda k: layer()(X, gate_override={"z": k.number(0.5)}),
    "tape": lambda k: layer().forward(X)[2].h(k.integer(1)),
    "windows": lambda k: windows(k.integer(2), k.integer(3)),
    "stream": lambda k: layer().stream(k.integer(2)).run(X),
    "threads": lambda k: threads_set(k.integer(2)),
    "pack": lambda k: rf.pack_padded(X, [1, 2, 2, 0, 1], batch_first=k.flag(True)),
    "pad": lambda k: pad(batch_first=k.flag(True), total_length=k.integer(5), fill=k.number(0.5)),
    "bucketed": lambda k: bucketed(k.integer(2), shuffle=k.flag(True), bucket=k.integer(2)),
    "num_parameters": lambda k: rf.num_parameters(layer(), merged_bias=k.flag(True)),
    "forget_bias": lambda k: started(forget_bias=k.number(0.5)),
    "sgd": lambda k: stepped(lambda params: SGD(params, k.number(0.5), momentum=k.number(0.25))),
    "adam": lambda k: stepped(
        lambda params: Adam(params, k.number(0.5), betas=(k.number(0.5), k.number(0.75)), eps=k.number(0.25))
    ),
    "clip_norm": lambda k: clipped(lambda grads: clip_grad_norm(grads, k.number(0.5))),
    "clip_value": lambda k: clipped(lambda grads: clip_grad_value(grads, k.number(0.5))),
    "ignore_index": lambda k: softmax_cross_entropy(np.eye(3), np.arange(3), ignore_index=k.integer(2)),
    "onnx": lambda k: onnx_of(k.flag(False)),
}


def layer_of(made: Any) -> Any:
    return repr(made), made.state_dict()


def assert_equal(a: Any, b: Any) -> None:
    """Assert that two results have the same parts, with the same bits."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = [*a.values()], [*b.values()]
    if isinstance(a, tuple | list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_numpys_scalars_do_what_pythons_do(call: Callable[[Kind], Any], kind: Kind) -> None:
    assert_equal(call(kind), call(PYTHON))


def test_a_layer_of_numpys_scalars_is_saved_and_loaded(tmp_path: Any) -> None:
    flag, integer, number = KINDS["numpy"]
    made = rf.RNN(integer(3), 4, 2, np.str_("relu"), flag(True), dropout=number(0.5))
    made.save(tmp_path / "rnn")
    assert (
        repr(rnnfast.load(tmp_path / "rnn"))
        == repr(made)
        == "RNN(3, 4, num_layers=2, nonlinearity='relu', dropout=0.5)"
    )


def made_with(kind: Any, name: str, value: Any) -> Any:
    return kind(3, 4, **{name: value})


class Slot(NamedTuple):
    """An argument, and a call with a value for it."""

    name: str
    call: Callable[[Any], Any]


FLAGS = [
    *(
        Slot(name, partial(made_with, kind, name))
        for kind, names in {
            rf.LSTM: ("bias", "batch_first", "bidirectional", "learn_initial_state"),
            rf.GRU: ("reset_after",),
            rf.LSTMCell: ("bias",),
            rf.GRUCell: ("reset_after",),
            rf.Linear: ("bias",),
        }.items()
        for name in names
    ),
    Slot("need_dx", lambda v: backward(need_dx=v)),
    Slot("need_dx", lambda v: cell_backward(need_dx=v)),
    Slot("need_dx", lambda v: linear_backward(need_dx=v)),
    Slot("need_dx", lambda v: bare_backward(need_dx=v)),
    Slot("need_dx", lambda v: F.linear_backward(W, W, None, W, need_dx=v)),
    Slot("need_dx", lambda v: rf.tbptt_gradient(layer(), X, DY, 2, 3, need_dx=v)),
    Slot("batch_first", lambda v: rf.pack_padded(X, [4, 2], batch_first=v)),
    Slot("batch_first", lambda v: pad(batch_first=v)),
    Slot("shuffle", lambda v: bucketed(shuffle=v)),
    Slot("merged_bias", lambda v: rf.num_parameters(layer(), merged_bias=v)),
]
SIZES = [
    Slot("input_size", lambda v: rf.LSTM(v, 4)),
    Slot("hidden_size", lambda v: rf.GRUCell(3, v)),
    Slot("num_layers", lambda v: rf.RNN(3, 4, v)),
    Slot("in_features", lambda v: rf.Linear(v, 4)),
    Slot("batch_size", lambda v: layer().stream(v)),
    Slot("batch_size", lambda v: bucketed(v)),
    Slot("bucket", lambda v: bucketed(bucket=v)),
    Slot("total_length", lambda v: pad(total_length=v)),
    Slot("k1", lambda v: rf.tbptt(layer(), X, v, 2)),
    Slot("k2", lambda v: rf.tbptt_gradient(layer(), X, DY, 2, v)),
    Slot("checkpoint", lambda v: layer().forward(X, checkpoint=v)),
    Slot("layer", lambda v: layer().forward(X)[2].h(v)),
    Slot("n", threads_set),
]
NUMBERS = [
    Slot("dropout", lambda v: layer(dropout=v)),
    Slot("weight_dropout", lambda v: layer(weight_dropout=("rows", v))),
    Slot("recurrent_dropout", lambda v: layer(recurrent_dropout=v)),
    Slot("candidate_dropout", lambda v: layer(candidate_dropout=v)),
    Slot("clip_dh", lambda v: backward(clip_dh=v)),
    Slot("clip_dh", lambda v: bare_backward(clip_dh=v)),
    Slot("forget_bias", lambda v: started(forget_bias=v)),
    Slot("gate_override['z']", lambda v: layer()(X, gate_override={"z": v})),
    Slot("fill", lambda v: pad(fill=v)),
    Slot("lr", lambda v: SGD({"w": W}, v)),
    Slot("lr", lambda v: Adam({"w": W}, v)),
    Slot("lr", lambda v: stepped(lambda params: with_lr(SGD(params, 1.0), v))),
    Slot("lr", lambda v: stepped(lambda params: with_lr(Adam(params), v))),
    Slot("momentum", lambda v: SGD({"w": W}, 1.0, momentum=v)),
    Slot("eps", lambda v: Adam({"w": W}, eps=v)),
    Slot("betas", lambda v: Adam({"w": W}, betas=(0.5, v))),
    Slot("weight_decay", lambda v: AdamW({"w": W}, weight_decay=v)),
    Slot("delta", lambda v: huber_loss(np.ones(2), np.ones(2), delta=v)),
    Slot("gamma", lambda v: ExponentialSchedule(1.0, v)),
    Slot("final", lambda v: CosineSchedule(1.0, 5, final=v)),
    Slot("min_delta", lambda v: EarlyStopping({"w": W}, 1, min_delta=v)),
    Slot("loss", lambda v: EarlyStopping({"w": W}, 1).step(v)),
    Slot("max_norm", lambda v: clip_grad_norm({"w": W.copy()}, v)),
    Slot("max_value", lambda v: clip_grad_value({"w": W.copy()}, v)),
]
WORDS = [
    Slot("nonlinearity", lambda v: rf.RNN(3, 4, nonlinearity=v)),
    Slot("nonlinearity", lambda v: rf.RNNCell(3, 4, nonlinearity=v)),
    Slot("scheme", lambda v: rf.initialize(layer(), v)),
    Slot("reduction", lambda v: softmax_cross_entropy(np.eye(3), np.arange(3), reduction=v)),
    Slot("reduction", lambda v: ctc_loss(np.ones((2, 1, 3)), [[1]], reduction=v)),
    Slot("reduction", lambda v: huber_loss(np.ones(2), np.ones(2), reduction=v)),
    Slot("outputs", lambda v: layer()(X, outputs=v)),
    Slot("losses", lambda v: rf.tbptt(layer(), X, 2, 3, losses=v)),
    Slot("activations", lambda v: rf.tbptt(layer(), X, 2, 3, activations=v)),
]


def with_lr(optimizer: Any, lr: Any) -> Any:
    optimizer.lr = lr
    return optimizer


def starts(name: str, words: str) -> str:
    """Return the regular expression of messages that start so."""
    return "^" + f"{name}: {words}".replace("[", r"\[").replace("]", r"\]")


def by(slots: list[Slot]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("slot", slots, ids=[f"{slot.name}_{k}" for k, slot in enumerate(slots)])


@by(FLAGS)
@pytest.mark.parametrize("value", [1, 0.0, "yes", None, np.int64(1), np.array([True]), [True]], ids=repr)
def test_a_flag_is_a_bool(slot: Slot, value: Any) -> None:
    with pytest.raises(TypeError, match=starts(slot.name, f"expected a bool, got {type(value).__name__}$")):
        slot.call(value)


@by(SIZES)
@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), b"2", np.array([2]), [2]], ids=repr)
def test_a_size_is_an_integer(slot: Slot, value: Any) -> None:
    with pytest.raises(TypeError, match=starts(slot.name, f"expected an int, got {type(value).__name__}$")):
        slot.call(value)


@by(NUMBERS)
@pytest.mark.parametrize("value", [True, np.True_, "0.5", 1j, np.array([0.5]), [0.5]], ids=repr)
def test_a_number_is_real(slot: Slot, value: Any) -> None:
    with pytest.raises(TypeError, match=starts(slot.name, f"expected a number, got {type(value).__name__}$")):
        slot.call(value)


@by(NUMBERS)
@pytest.mark.parametrize("value", [10**400, -(10**5000), Fraction(10**400)], ids=["400", "5000", "fraction"])
def test_a_number_is_within_the_range_of_floats(slot: Slot, value: Any) -> None:
    with pytest.raises(ValueError, match=starts(slot.name, r"expected a number within the range of float\d\d, got ")):
        slot.call(value)


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(float).max, reason="long double is double here")
def test_a_long_double_is_within_the_range_of_floats() -> None:
    with pytest.raises(ValueError, match="lr: expected a number within the range of float64, got "):
        SGD({"w": W}, np.longdouble("1e4000"))


@pytest.mark.parametrize(
    "slot", [slot for slot in NUMBERS if slot.name in ("forget_bias", "gate_override['z']")], ids=lambda slot: slot.name
)
def test_what_float32_is_to_hold_is_within_its_range(slot: Slot) -> None:
    with pytest.raises(
        ValueError, match=starts(slot.name, r"expected a number within the range of float32, got 1e\+300")
    ):
        slot.call(1e300)


def test_what_pads_is_within_the_range_of_the_dtype() -> None:
    for dtype in (np.float16, np.float32):
        packed = rf.pack_padded(X.astype(dtype), [4, 2])
        with pytest.raises(ValueError, match=r"^fill: expected a number of dtype float\d\d, got 1e\+300$"):
            rf.pad_packed(packed, fill=1e300)
        assert np.isinf(rf.pad_packed(packed, fill=np.inf)[0]).any()


def test_a_bound_beyond_the_dtype_bounds_nothing() -> None:
    grads = {"w": np.array([1, -np.inf, np.nan], np.float32)}
    with np.errstate(all="raise"):
        clip_grad_value(grads, 1e300)
    assert np.array_equal(grads["w"], [1, -np.inf, np.nan], equal_nan=True)


def test_infinity_is_a_number() -> None:
    assert np.isinf(started(forget_bias=np.inf)["bias_ih_l0"][4:8]).all()
    assert clip_grad_norm({"w": W}, np.inf) == 1


@by([slot for slot in SIZES if slot.name != "layer"])  # which are counted from 0, or from the end
@pytest.mark.parametrize("value", [0, -1, -(2**80), -(10**5000)], ids=["0", "-1", "-2**80", "-10**5000"])
def test_a_size_is_at_least_one(slot: Slot, value: int) -> None:
    with pytest.raises(ValueError, match=starts(slot.name, "expected ")):
        slot.call(value)


@pytest.mark.parametrize("value", [2**62, 2**80, 10**5000], ids=["2**62", "2**80", "10**5000"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("input_size, hidden_size, num_layers", lambda v: rf.LSTM(v, 4)),
        ("in_features, out_features", lambda v: rf.Linear(3, v)),
        ("input_size, hidden_size", lambda v: rf.RNNCell(3, v)),
        ("batch_size", lambda v: layer().stream(v)),
        ("total_length", lambda v: pad(total_length=v)),
        ("n", threads_set),
        ("layer", lambda v: layer().forward(X)[2].h(v)),
    ],
)
def test_a_size_fits_the_address_space(name: str, call: Callable[[Any], Any], value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        call(value)


def test_what_is_ignored_fits_64_bits() -> None:
    with pytest.raises(ValueError, match=r"^ignore_index: expected an int of 64 bits, got "):
        softmax_cross_entropy(np.eye(3), np.arange(3), ignore_index=2**63)


def test_any_number_of_steps_may_be_more_than_there_are() -> None:
    huge = 10**5000
    assert_equal(windows(huge, huge), windows(5, 5))
    assert_equal(layer().forward(X, checkpoint=huge)[:2], layer()(X))


@pytest.mark.parametrize(
    ("betas", "error"),
    [(0.9, TypeError), ((0.9,), ValueError), ((0.9, 0.9, 0.9), ValueError), ((0.9, 1), ValueError), ("ab", TypeError)],
)
def test_betas_are_two_numbers(betas: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^betas: expected "):
        Adam({"w": W}, betas=betas)


@pytest.mark.parametrize("gate", ["\ud800", "\0", "é", "zz", "", 0, None, b"z"], ids=ascii)
def test_a_gate_is_one_of_the_cells_letters(gate: Any) -> None:
    with pytest.raises(ValueError, match=r"^gate_override: expected gates of gru, r, z, n, got "):
        layer()(X, gate_override={gate: 1.0})


@by(WORDS)
@pytest.mark.parametrize("value", ["\ud800", 3, None, np.arange(3), ["tanh"]], ids=ascii)
def test_a_word_is_one_of_the_options(slot: Slot, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{slot.name}: expected '"):
        slot.call(value)


def test_python_prints_no_integers_of_so_many_digits() -> None:
    assert 0 < sys.get_int_max_str_digits() < 5000, "or the cases above say nothing"
