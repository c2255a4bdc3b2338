"""What type checkers and introspection see. mypy reads this file: what it expects is in `assert_type` and in ignores.

An ignore that hides no error is itself an error, so a wrong call that mypy lets pass does not go unnoticed.
"""

import copy
import importlib
import inspect
import pickle
import typing
from array import array
from pathlib import Path
from types import FunctionType
from typing import Any, assert_type

import numpy as np
import pytest
from public import MODULES, public_callables

import rnnfast
from rnnfast import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    Linear,
    LSTMCell,
    Module,
    PackedSequence,
    Quantized,
    RNNCell,
    _core,
    functional,
    training,
)
from rnnfast._base import names
from rnnfast._base.arrays import ArrayLike
from rnnfast.functional import Array, State
from rnnfast.hopfield import Hopfield, ModernHopfield
from rnnfast.reservoir import ESN
from rnnfast.reservoir import State as ReservoirState
from rnnfast.stream import Stream

Pair = tuple[Array, Array]

X = np.zeros((5, 2, 3), np.float32)
DY = np.ones((5, 2, 4), np.float32)


# Types


def test_a_layer_has_the_state_of_its_class() -> None:
    y, h = GRU(3, 4)(X)
    assert_type(y, Array)
    assert_type(h, Array)
    assert h.shape == (1, 2, 4)
    assert_type(RNN(3, 4)(X), tuple[Array, Array])
    lstm = LSTM(3, 4)
    y, (h, c), tape = lstm.forward(X, (h, None))
    assert_type(c, Array)
    dx, (dh0, dc0), grads = lstm.backward(tape, DY)
    assert_type(dc0, Array)
    assert_type(grads, dict[str, Array])
    assert_type(lstm.stream().state, Pair)
    assert_type(GRU(3, 4).stream().state, Array)
    assert_type(rnnfast.tbptt_gradient(lstm, X, DY, 2, 3)[1], Pair)
    for window in rnnfast.tbptt(lstm, X, 2, 3):
        assert_type(window.state, Pair)
    assert y.shape == DY.shape
    assert dx.shape == X.shape
    assert dh0.shape == dc0.shape == c.shape


def test_a_quantised_layer_has_the_state_of_its_layer() -> None:
    q = LSTM(3, 4).quantize("int8")
    assert_type(q, Quantized[Pair])
    y, (h, c) = q(X)
    assert_type(c, Array)
    assert_type(q.stream().state, Pair)
    assert_type(GRU(3, 4).quantize("bfloat16")(X), tuple[Array, Array])
    layer = q.dequantize()
    assert isinstance(layer, LSTM)
    assert_type(layer.forward(X)[1], Pair)
    assert y.shape == DY.shape
    assert h.shape == (1, 2, 4)
    with pytest.raises(ValueError, match="format"):
        LSTM(3, 4).quantize("int4")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer"):
        rnnfast.gradient_flow(q, X, DY)  # type: ignore[arg-type]


def test_a_cell_has_the_state_of_its_class() -> None:
    assert_type(GRUCell(3, 4)(X[0]), Array)
    assert_type(RNNCell(3, 4)(X[0]), Array)
    cell = LSTMCell(3, 4)
    (h, c), tape = cell.forward(X[0])
    assert_type(c, Array)
    assert_type(cell.backward(tape, (h, None))[1], Pair)
    assert_type(rnnfast.tbptt_gradient(GRUCell(3, 4), X, DY, 2, 3)[1], Array)


def test_y_is_what_x_is() -> None:
    packed = rnnfast.pack_padded(X, [5, 2])
    y, _ = GRU(3, 4)(packed)
    assert_type(y, PackedSequence)
    assert_type(GRU(3, 4).forward(packed)[0], PackedSequence)
    last, _ = GRU(3, 4)(packed, outputs="last")
    assert_type(last, Array)
    assert last.shape == (2, 4)
    assert y.data.shape == (7, 4)


def test_a_function_has_the_state_of_its_cell() -> None:
    w = np.ones((1, 1))
    parameters, x = [(w, w, None, None)], np.ones((3, 1, 1))
    y, h, tape = functional.forward("rnn_relu", x, parameters)
    assert_type(h, Array)
    assert_type(functional.backward(tape, y)[1], Array)
    w4 = np.ones((4, 1))
    _, (_, c) = functional.inference("lstm", x, [(w4, w4, None, None)])
    assert_type(c, Array)
    cell: str = "gru"
    w3 = np.ones((3, 1))
    _, either = functional.inference(cell, x, [(w3, w3, None, None)])
    assert_type(either, State)
    assert h.shape == c.shape == (1, 1, 1)


def test_the_cells_that_type_checkers_know_have_as_many_states() -> None:
    for cells, states in ((names.OneStateCell, 1), (names.TwoStateCell, 2), (names.FourStateCell, 4)):
        assert {len(_core.cells[cell].states) for cell in typing.get_args(cells)} == {states}


def test_parameters_are_attributes() -> None:
    lstm = LSTM(3, 4, 4, bidirectional=True, learn_initial_state=True, peephole=True)
    assert_type(lstm.weight_hh_l3_reverse, Array)
    assert_type(lstm.initial_c, Array)
    assert_type(lstm.peephole_l0, Array)
    assert_type(LSTMCell(3, 4, peephole=True).peephole, Array | None)
    assert_type(Linear(3, 4).weight, Array)
    assert_type(LSTMCell(3, 4).bias_hh, Array)
    assert_type(Hopfield(3).threshold, Array)
    assert_type(ModernHopfield(X[0]).patterns, Array)
    hints = {name for kind in type(lstm).__mro__ for name in inspect.get_annotations(kind)}
    assert hints >= lstm.parameters.keys()


def test_a_recall_is_a_named_tuple() -> None:
    states, steps, period = Hopfield(3).recall([[1, -1, 1]], "synchronous", np.int64(3), rng=0)
    assert_type(states, Array)
    assert_type(ModernHopfield(X[0], beta=np.float32(2)).recall(X[1]).states, Array)
    assert_type(Hopfield(3).energy([1, 1, 1]), Array)
    assert states.shape == (1, 3)
    assert steps.shape == period.shape == (1,)


def test_an_echo_state_network_hands_states_on() -> None:
    esn = ESN(3, [4, np.int64(5)], leak=np.float32(0.5), density=1, rng=0)
    state = esn.fit(X, X, lengths=[5, 4])
    assert_type(state, ReservoirState)
    y, state = esn.predict(X, state)
    assert_type(y, Array)
    assert_type(esn.generate(3, state)[0], Array)
    assert_type(esn.readout, Linear | None)
    assert_type(esn.reservoirs, tuple[RNN, ...])
    assert y.shape == X.shape


def test_a_loaded_layer_is_a_module(tmp_path: Path) -> None:
    LSTM(3, 4).save(tmp_path / "lstm")
    module = rnnfast.load(tmp_path / "lstm")
    assert_type(module, Module | rnnfast.Modules)
    assert isinstance(module, LSTM)
    y, (h, _) = module(X)
    assert_type(h, Array)
    assert y.shape == DY.shape


def test_numpys_scalars_have_the_types_of_arguments() -> None:
    layer = GRU(np.int64(3), 4, np.int8(2), bias=np.True_, dropout=np.float32(0.5))
    assert_type(layer.num_layers, int)
    assert_type(layer.bias, bool)
    assert_type(layer.dropout, float)
    dropped = LSTM(3, 4, weight_dropout=("rows", np.float32(0.5)))
    _, _, tape = dropped.forward(X, masks={"weight_hh_l0": np.ones(16, bool)})
    assert_type(tape.weight_masks, dict[str, Array])
    assert_type(GRU(3, 4, recurrent_dropout=0.5).forward(X)[2].recurrent_masks, dict[str, Array])
    assert_type(GRU(3, 4, candidate_dropout=0.5).forward(X)[2].candidate_masks, dict[str, Any])


def test_what_calls_read_is_an_array_to_type_checkers() -> None:
    lstm, flat = LSTM(3, 4), array("f", [1, 2, 3])
    expected, _ = lstm(X, lengths=np.array([5, 4]))
    for lengths in ([5, 4], (5, 4), range(5, 3, -1), array("i", [5, 4])):
        assert np.array_equal(lstm(X, lengths=lengths, resets=np.zeros((5, 2), bool))[0], expected)
    assert functional.sigmoid(flat).shape == functional.sigmoid(memoryview(flat)).shape == (3,)
    assert functional.tanh(np.float32(1)).shape == ()
    assert training.squared_error(X, np.ma.ones(X.shape, np.float32))[1].shape == X.shape
    lists: list[ArrayLike] = [[1, 2.5], [[1], [2]], [(0.5, 1.5)], [np.zeros(3)], [np.float32(1)]]
    assert all(np.asarray(numbers).dtype.kind in "if" for numbers in lists)


def test_what_no_call_takes_is_an_error_to_type_checkers() -> None:
    lstm, gru, cell, readout = LSTM(3, 4), GRU(3, 4), GRUCell(3, 4), Linear(3, 4)
    with pytest.raises(TypeError):
        lstm("no array")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        lstm.forward({"x": X})  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        lstm(X, lengths="52")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        lstm(X, legnths=[5, 2])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="outputs"):
        gru(X, outputs="lats")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        cell("no array")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        readout("no array")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        gru.stream().step("no array")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        functional.tanh("no array")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Hopfield(3).energy("no array")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule"):
        Hopfield(3).store([1, 1, 1], "hebb")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ESN(3, 4, density=1).states("no array")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="arrangement"):
        ESN(3, 4, arrangement="ring")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        Hopfield(3).recall([1, 1, 1], "both")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        GRU(3.5, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        GRU(3, 4, bidirectional="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        rnnfast.tbptt(readout, X, 2, 3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        lstm.wieght_hh_l0  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        cell.weight_hh_l0  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        rnnfast.LSMT  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        rnnfast.training.Adma  # type: ignore[attr-defined]  # noqa: B018


def test_generic_classes_take_their_state_in_annotations() -> None:
    hints = typing.get_type_hints(functional.backward)
    assert str(hints["tape"]).endswith("Tape[~StateT]")
    assert typing.get_args(Stream[Array]) == (Array,)
    assert typing.get_args(LSTM.__orig_bases__[0]) == (Pair,)  # type: ignore[attr-defined]


# Introspection


@pytest.mark.parametrize(
    "layer",
    [LSTM(3, 4, 2, bidirectional=True, learn_initial_state=True), RNNCell(3, 4), Linear(3, 4), Hopfield(3)],
    ids=repr,
)
def test_a_layer_lists_its_parameters(layer: Module) -> None:
    assert {*dir(layer)} >= {*layer.parameters, "parameters", "dtype", "state_dict"}
    assert len(dir(layer)) == len({*dir(layer)})


def test_a_layer_in_the_making_has_a_dir() -> None:
    assert "state_dict" in dir(LSTM.__new__(LSTM))


@pytest.mark.parametrize("module_name", MODULES)
def test_what_is_public_has_a_signature(module_name: str) -> None:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        pytest.skip(f"not installed: {error.name}")
    for name, value in public_callables(module):
        parameters = inspect.signature(value).parameters
        bare = {key for key, parameter in parameters.items() if parameter.annotation is parameter.empty}
        assert not isinstance(value, FunctionType) or bare <= {"self", "cls"}, name


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        (rnnfast.set_num_threads, "(n"),
        (rnnfast.get_num_threads, "()"),
        (Stream, "(layer, batch_size=1)"),
        (Stream.run, "(self, /, x, out=None)"),
        (rnnfast.tbptt, "(layer"),
    ],
)
def test_signatures_name_the_arguments(value: Any, signature: str) -> None:
    assert str(inspect.signature(value)).startswith(signature)
    assert inspect.getdoc(value)


def test_tbptt_is_a_function_pickled_and_copied_by_name() -> None:
    assert isinstance(rnnfast.tbptt, FunctionType)
    assert [(w.start, w.stop) for w in rnnfast.tbptt(GRU(3, 4), X, k1=2, k2=3)] == [(0, 2), (2, 4), (4, 5)]
    assert pickle.loads(pickle.dumps(rnnfast.tbptt)) is rnnfast.tbptt
    assert copy.copy(rnnfast.tbptt) is copy.deepcopy(rnnfast.tbptt) is rnnfast.tbptt
