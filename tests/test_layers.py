"""Layers against stacks of the oracle and against torch; their parameters, files and initial values."""

import copy
import inspect
import json
import os
import pickle
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from modules import (
    IN_TORCH,
    KINDS,
    B,
    H,
    I,
    T,
    central_differences,
    initial,
    make_layer,
    make_state,
    named_states,
    normal,
    oracle,
    results,
    swap,
)
from problems import DTYPES, Array, Results, assert_close, assert_same_bits, parts, state_of
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import _core, training

FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "bidirectional": {"bidirectional": True},
    "batch_first": {"batch_first": True, "num_layers": 2},
    "no_bias": {"bias": False, "num_layers": 2, "bidirectional": True},
    "three_bidirectional": {"num_layers": 3, "bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "dropout_bidirectional": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "batch_first": True},
    "learned": {"num_layers": 2, "learn_initial_state": True, "bidirectional": True},
}

by_cell = pytest.mark.parametrize("cell", KINDS)
by_form = pytest.mark.parametrize("form", FORMS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def run(layer: Any, x: Any, state: Any, dy: Any, dstate: Any, **options: Any) -> Results:
    """Run the layer forwards and backwards."""
    y, last, tape = layer.forward(x, state)
    return results(y, last, *layer.backward(tape, dy, dstate, **options))


def swapped(values: Results, layer: Any) -> Results:
    """Return results with y and dx time-major."""
    return {name: swap(a, layer) if name in ("y", "dx") else a for name, a in values.items()}


@pytest.mark.parametrize("given", ["state", "no_state"])
@pytest.mark.parametrize(
    "form", [{}, {"bidirectional": True}, {"bias": False}], ids=["one", "bidirectional", "no_bias"]
)
@by_dtype
@by_cell
def test_a_call_without_options_gives_what_options_without_effect_give(
    cell: str, dtype: str, form: dict[str, Any], given: str
) -> None:
    layer = make_layer(cell, dtype=dtype, **form)
    x, dy = normal((T, B, I), dtype, 1), normal((T, B, layer.directions * H), dtype, 2)
    state = make_state(layer, (B,), 3) if given == "state" else None
    dstate, no_resets = make_state(layer, (B,), 5), np.zeros((T, B), np.bool_)

    def solve(**options: Any) -> tuple[bool, Results, list[str]]:
        y, last, tape = layer.forward(x, state, **options)
        inferred = layer(x, state, **options)
        np.testing.assert_array_equal(inferred[0], y)
        np.testing.assert_array_equal(np.stack(parts(inferred[1])), np.stack(parts(last)))
        np.testing.assert_array_equal(tape.h(0), y)
        backward = layer.backward(tape, dy, dstate)
        return tape.plain is not None, results(y, last, *backward), list(backward[2])

    plain, actual, names = solve()
    other, expected, their_names = solve(resets=no_resets)
    assert plain != _core.cells[cell].normalises  # which is an option
    assert not other
    assert names == their_names == list(layer.parameters)
    assert_same_bits(actual, expected)


def same_both_ways(layer: Any, x: Array) -> bool:
    """Return whether a call gives what one gives with lengths, which is not computed as a plain one."""
    return np.array_equal(layer(x)[0], layer(x, lengths=[len(x)] * x.shape[1])[0])


def test_a_plain_call_sees_what_changes_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_layer("gru"), normal((T, B, I), "float32", 1)

    def assigning(*facts: Any) -> Any:  # as another thread might while this one looks at the options
        monkeypatch.undo()
        layer.zoneout = 0.5
        return _core.PlainLayer(*facts)

    monkeypatch.setattr(_core, "PlainLayer", assigning)
    layer(x)
    assert layer.zoneout == 0.5
    assert same_both_ways(layer, x)

    del layer.zoneout
    with pytest.raises(AttributeError, match="zoneout"):
        layer(x)

    layer = make_layer("gru")
    before = layer(x)[0]
    layer.of_layer = lambda k, others=None: [tuple(2 * a for a in d) for d in type(layer).of_layer(layer, k, others)]
    assert not np.array_equal(layer(x)[0], before)
    assert same_both_ways(layer, x)

    layer = make_layer("gru")
    layer.parameters = MappingProxyType(layer.parameters)
    assert same_both_ways(layer, x)
    y, _, tape = layer.forward(x)
    assert list(layer.backward(tape, y)[2]) == list(layer.parameters)


def test_a_plain_tape_keeps_the_shape_of_x() -> None:
    layer, x = make_layer("gru"), normal((T, B, I), "float32", 1)
    y, _, tape = layer.forward(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy: shapes are to be assigned no more
        x.shape = B, T, I
    assert tape.x.shape == (T, B, I)
    assert tape.h(0).shape == tape.gates(0)["z"].shape == y.shape
    assert np.array_equal(layer.backward(tape, y, clip_dh=1e9)[0], layer.backward(tape, y)[0])


@pytest.mark.parametrize("given", ["state", "no_state"])
@by_dtype
@by_form
@by_cell
def test_a_stack_is_the_oracles_layers_on_top_of_each_other(cell: str, form: str, dtype: str, given: str) -> None:
    layer = make_layer(cell, dtype=dtype, **FORMS[form])
    for name in layer.parameters.keys() & {*initial(cell)}:
        layer.parameters[name][...] = normal((layer.num_layers * layer.directions, H), dtype, 7)
    x, dy = normal((T, B, I), dtype, 1), normal((T, B, layer.directions * H), dtype, 2)
    state = make_state(layer, (B,), 3) if given == "state" else None
    dstate = make_state(layer, (B,), 5)
    y, last, tape = layer.forward(swap(x, layer), state)
    actual = results(y, last, *layer.backward(tape, swap(dy, layer), dstate))
    assert len(tape.masks) == (layer.num_layers - 1 if layer.dropout else 0)
    assert_close(swapped(actual, layer), oracle(layer, x, state, dy, dstate, tape.masks), layer.num_layers)


@by_form
@by_cell
def test_one_sequence_is_a_batch_of_one(cell: str, form: str) -> None:
    layer, twin = (make_layer(cell, **FORMS[form]) for _ in range(2))
    x, dy = normal((T, I), "float32", 1), normal((T, layer.directions * H), "float32", 2)
    state, dstate = make_state(layer, (), 3), make_state(layer, (), 5)

    def batched(given: Any) -> Any:
        return tuple(s[:, None] for s in given) if isinstance(given, tuple) else given[:, None]

    axis = 0 if layer.batch_first else 1
    single = run(layer, x, state, dy, dstate)
    batch = run(twin, np.expand_dims(x, axis), batched(state), np.expand_dims(dy, axis), batched(dstate))
    for name in {"y", "dx"} & batch.keys():
        batch[name] = batch[name].squeeze(axis)
    for name in named_states(state, state):
        batch[name] = batch[name][:, 0]
    assert_same_bits(single, batch)


@by_form
@by_cell
def test_inference_gives_the_bits_of_forward_without_dropout(cell: str, form: str) -> None:
    layer = make_layer(cell, **FORMS[form])
    layer.dropout = 0.0
    x, state = swap(normal((T, B, I), "float32", 1), layer), make_state(layer, (B,), 3)
    y, last = layer(x, state)
    y_forward, last_forward, _ = layer.forward(x, state)
    assert_same_bits(results(y, last, None, (), {}), results(y_forward, last_forward, None, (), {}))


@by_cell
def test_chunks_with_carried_state_give_the_bits_of_the_whole(cell: str) -> None:
    layer = make_layer(cell, num_layers=3)
    x = normal((17, B, I), "float32", 1)
    y, last = layer(x)
    state, ys = None, []
    for chunk in np.split(x, [1, 4, 11]):
        y_chunk, state = layer(chunk, state)
        ys.append(y_chunk)
    assert_same_bits(results(y, last, None, (), {}), results(np.concatenate(ys), state, None, (), {}))


@by_form
@by_cell
def test_a_tape_serves_any_number_of_backwards(cell: str, form: str) -> None:
    layer = make_layer(cell, **FORMS[form])
    x = swap(normal((T, B, I), "float32", 1), layer)
    y, last, tape = layer.forward(x)
    dy, dstate = np.ones_like(y), make_state(layer, (B,), 5)
    dx, dstate0, grads = layer.backward(tape, dy, dstate)
    again = {name: np.zeros_like(p) for name, p in layer.state_dict().items()}
    none, dstate0_again, same = layer.backward(tape, dy, dstate, need_dx=False, grads=again)
    assert none is None
    assert same is again
    assert list(grads) == list(layer.state_dict())
    assert_same_bits(results(y, last, dx, dstate0_again, again), results(y, last, dx, dstate0, grads))
    layer.backward(tape, dy, dstate, grads=again)
    assert_close(again, {name: 2 * g.astype(np.float64) for name, g in grads.items()})


@by_cell
def test_only_dy_or_only_dstate(cell: str) -> None:
    layer = make_layer(cell, num_layers=2, bidirectional=True, dtype="float64")
    x = normal((T, B, I), "float64", 1)
    y, last, tape = layer.forward(x)
    dy, dstate = np.ones_like(y), make_state(layer, (B,), 5)
    both = results(y, last, *layer.backward(tape, dy, dstate))
    only_dy = results(y, last, *layer.backward(tape, dy))
    only_dstate = results(y, last, *layer.backward(tape, dstate=dstate))
    outputs = {"y", *named_states(last)}
    assert_close(both, {n: a if n in outputs else a + only_dstate[n] for n, a in only_dy.items()})


def test_a_part_of_a_state_may_be_missing() -> None:
    layer = make_layer("lstm", num_layers=2)
    x, (h, c) = normal((T, B, I), "float32", 1), make_state(layer, (B,), 3)
    zeros = np.zeros_like(h)
    for short, full in (((None, c), (zeros, c)), ((h, None), (h, zeros)), (None, (zeros, zeros))):
        y, _, tape = layer.forward(x, short)
        y_full, _, tape_full = layer.forward(x, full)
        assert np.array_equal(y, y_full)
        dstate, dstate_full = ((None, c), (zeros, c)) if short else ((h, None), (h, zeros))
        assert np.array_equal(layer.backward(tape, None, dstate)[0], layer.backward(tape_full, None, dstate_full)[0])


def test_batch_first_changes_the_view_only() -> None:
    layer, twin = make_layer("lstm", batch_first=True), make_layer("lstm")
    x = normal((T, B, I), "float32", 1)
    y, (h, c), tape = layer.forward(x.swapaxes(0, 1))
    y_twin, (h_twin, c_twin), tape_twin = twin.forward(x)
    assert y.swapaxes(0, 1).flags.c_contiguous
    dx, _, _ = layer.backward(tape, y)
    dx_twin, _, _ = twin.backward(tape_twin, y_twin)
    values, values_twin = (
        {"y": y, "dx": dx, "h": h, "c": c},
        {"y": y_twin, "dx": dx_twin, "h": h_twin, "c": c_twin},
    )
    assert_same_bits(swapped(values, layer), values_twin)


@by_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_gives_empty_results(cell: str, batch_first: bool) -> None:
    layer = make_layer(cell, num_layers=2, bidirectional=True, batch_first=batch_first, learn_initial_state=True)
    x = np.zeros((0, T, I) if batch_first else (T, 0, I), np.float32)
    y, last, tape = layer.forward(x)
    dx, dstate0, grads = layer.backward(tape, y)
    assert y.shape == (*x.shape[:2], 2 * H)
    assert dx.shape == x.shape
    assert {s.shape for s in parts(last) + parts(dstate0)} == {(4, 0, H)}
    assert all(not g.any() and g.shape == layer.parameters[name].shape for name, g in grads.items())


# Dropout


def test_dropout_scales_what_it_keeps() -> None:
    layer = make_layer("rnn_tanh", num_layers=3, dropout=0.25)
    _, _, tape = layer.forward(normal((200, 50, I), "float32", 1))
    for mask in tape.masks:
        kept = mask != 0
        assert np.all(mask[kept] == np.float32(1 / 0.75))
        assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / mask.size)
    assert not np.array_equal(*tape.masks)


def test_a_layer_has_the_parameters_that_functional_takes() -> None:
    layer, x = make_layer("lstm", num_layers=2, bidirectional=True), normal((T, B, I), "float32", 1)
    y = x
    for k in range(2):
        y, _ = rnnfast.functional.inference(layer.cell, y, layer.of_layer(k), layer_norm_eps=layer.eps)
    assert np.array_equal(y, layer(x)[0])
    assert layer.names_of(1)[1][0] == "weight_ih_l1_reverse"
    for call in (layer.of_layer, layer.names_of):
        for k in (-1, 2):
            with pytest.raises(ValueError, match=f"^layer: expected 0 to 1, got {k}"):
                call(k)


def test_dropout_is_drawn_from_the_seed() -> None:
    x = normal((T, B, I), "float32", 1)
    one, other = make_layer("gru", num_layers=2, dropout=0.5), make_layer("gru", num_layers=2, dropout=0.5)
    (y1, _, _), (y2, _, _), (y3, _, _) = one.forward(x), one.forward(x), other.forward(x)
    assert np.array_equal(y1, y3)
    assert not np.array_equal(y1, y2)
    double = make_layer("gru", num_layers=2, dropout=0.5, dtype="float64")
    assert np.array_equal(double.forward(x.astype(np.float64))[2].masks[0] != 0, _drop(x).masks[0] != 0)


def _drop(x: Array) -> Any:
    return make_layer("gru", num_layers=2, dropout=0.5).forward(x)[2]


def test_dropout_of_everything_leaves_the_biases() -> None:
    layer, upper = make_layer("lstm", num_layers=2, dropout=1), make_layer("lstm", (H, H))
    upper.load_state_dict({n: layer.parameters[n.replace("l0", "l1")] for n in upper.parameters})
    y, _, tape = layer.forward(normal((T, B, I), "float32", 1))
    assert np.array_equal(y, upper(np.zeros((T, B, H), np.float32))[0])
    _, _, grads = layer.backward(tape, y)
    assert not grads["weight_ih_l0"].any()


def test_dropout_of_one_layer_has_nothing_to_act_between() -> None:
    with pytest.warns(UserWarning, match="dropout"):
        rnnfast.LSTM(I, H, dropout=0.5)


@by_cell
def test_gradients_with_dropout_are_those_of_the_same_mask(cell: str) -> None:
    layer = make_layer(cell, (2, 3), num_layers=2, dropout=0.5, dtype="float64", learn_initial_state=True)
    x, dy = normal((4, 2, 2), "float64", 1), normal((4, 2, 3), "float64", 2)
    for name in layer.parameters.keys() & {*initial(cell)}:
        layer.parameters[name][...] = normal((2, 3), "float64", 7)

    def loss() -> float:
        layer.rng = np.random.default_rng(8)
        return float((dy * layer.forward(x)[0]).sum())

    layer.rng = np.random.default_rng(8)
    dx, _, grads = layer.backward(layer.forward(x)[2], dy)
    for array, gradient in ((x, dx), *((layer.parameters[name], g) for name, g in grads.items())):
        assert relative_error(central_differences(loss, array), gradient) < 1e-7


# Learned initial states


@by_cell
def test_a_learned_state_is_a_state_with_a_summed_gradient(cell: str) -> None:
    layer = make_layer(cell, num_layers=2, bidirectional=True, learn_initial_state=True, dtype="float64")
    names = [n for n in layer.state_dict() if n.startswith("initial")]
    assert names == initial(cell)
    for k, name in enumerate(names):
        assert not layer.parameters[name].any()
        layer.parameters[name][...] = normal((4, H), "float64", k)
    x = normal((T, B, I), "float64", 9)
    state = tuple(np.repeat(layer.parameters[name][:, None], B, axis=1) for name in names)
    y, _, tape = layer.forward(x)
    y_given, _, tape_given = layer.forward(x, state_of(state))
    _, dstate0, grads = layer.backward(tape, y)
    _, dstate0_given, grads_given = layer.backward(tape_given, y)
    assert np.array_equal(y, y_given)
    assert np.array_equal(layer(x)[0], y)
    for name, d, d_given in zip(names, parts(dstate0), parts(dstate0_given), strict=True):
        assert np.array_equal(d, d_given)
        assert np.array_equal(grads[name], d.sum(axis=1))
        assert not grads_given[name].any()


# Parameters


def test_parameters_change_in_place() -> None:
    layer = make_layer("lstm")
    x = normal((T, B, I), "float32", 1)
    array = layer.weight_hh_l0
    assert array is layer.parameters["weight_hh_l0"] is layer.state_dict()["weight_hh_l0"]
    before = layer(x)[0]
    layer.weight_hh_l0 *= 2
    assert layer.weight_hh_l0 is array
    doubled = layer(x)[0]
    assert not np.array_equal(before, doubled)
    layer.weight_hh_l0 = array / 2
    assert layer.weight_hh_l0 is array
    assert np.array_equal(layer(x)[0], before)
    with pytest.raises(AttributeError, match="weight_hh_l1"):
        _ = layer.weight_hh_l1


def test_copies_are_independent() -> None:
    layer = make_layer("gru", num_layers=2, dropout=0.5)
    x = normal((T, B, I), "float32", 1)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert np.array_equal(twin.forward(x)[0], copy.deepcopy(layer).forward(x)[0])
        twin.weight_hh_l0 *= 2
        assert not np.array_equal(twin(x)[0], layer(x)[0])


def test_both_dtypes_start_from_the_same_weights() -> None:
    single, double = make_layer("lstm"), make_layer("lstm", dtype=np.float64)
    other = rnnfast.LSTM(I, H, rng=1)
    for name, p in double.parameters.items():
        assert np.array_equal(p.astype(np.float32), single.parameters[name])
        assert not np.array_equal(other.parameters[name], single.parameters[name])
        assert p.flags.c_contiguous


def test_constructors_have_torchs_order() -> None:
    common = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    orders = {
        rnnfast.LSTM: common,
        rnnfast.GRU: common,
        rnnfast.RNN: [*common[:3], "nonlinearity", *common[3:]],
        rnnfast.LSTMCell: [*common[:2], "bias"],
        rnnfast.GRUCell: [*common[:2], "bias"],
        rnnfast.RNNCell: [*common[:2], "bias", "nonlinearity"],
        rnnfast.Linear: ["in_features", "out_features", "bias"],
    }
    for kind, order in orders.items():
        parameters = inspect.signature(kind).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == order


REPRESENTATIONS = (
    "LSTM(3, 4)",
    "LSTM(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True)",
    "LSTM(3, 4, dtype='float64', weight_dropout=0.5)",
    "GRU(3, 4, learn_initial_state=True, reset_after=False)",
    "GRU(3, 4, recurrent_dropout=0.5, recurrent_dropout_per_gate=True)",
    "LSTM(3, 4, zoneout=(0.1, 0.5))",
    "LSTM(3, 4, candidate_dropout=0.5)",
    "GRU(3, 4, candidate_dropout=0.5, candidate_dropout_per_sequence=True)",
    "GRU(3, 4, learn_initial_state=True, zoneout=0.25, reset_after=False)",
    "RNN(3, 4, nonlinearity='relu', weight_dropout=('rows', 0.25))",
    "SLSTM(3, 4, num_heads=2)",
    "LSTM(3, 4, num_layers=2, learn_initial_state=True, zoneout=(0.1, 0.5)).quantize('int8')",
    "RNN(3, 4, batch_first=True, leak=0.3).quantize('bfloat16')",
    "LSTMCell(3, 4)",
    "GRUCell(3, 4, bias=False, reset_after=False)",
    "RNNCell(3, 4, nonlinearity='relu', dtype='float64')",
    "Linear(3, 4)",
    "Linear(3, 4, bias=False, dtype='float64')",
)


@pytest.mark.parametrize("call", REPRESENTATIONS)
def test_the_representation_is_the_constructors_call(call: str) -> None:
    assert repr(eval(call, vars(rnnfast))) == call


# Files


@pytest.mark.parametrize("call", REPRESENTATIONS)
def test_a_saved_layer_comes_back(call: str, tmp_path: Path) -> None:
    layer = eval(call, vars(rnnfast))
    layer.save(tmp_path / "layer.safetensors")
    loaded = rnnfast.load(tmp_path / "layer.safetensors")
    assert repr(loaded) == call
    assert_same_bits(loaded.state_dict(), layer.state_dict())


OTHER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "rng": {"rng": 1},
    "huge": {"hidden_size": 2**27},
    "beyond": {"hidden_size": 2**60},
    "deep": {"num_layers": 2**40},
    "double": {"dtype": "float64"},
    "overflow": {"num_layers": 2, "dropout": 10**400},
    "nan": {"num_layers": 2, "dropout": float("nan")},
    "columns": {"weight_dropout": ["columns", 0.5]},
    "all": {"recurrent_dropout": 1},
    "unbiased": {"bias": False},  # less than there is
}
TAMPERED = {
    **{
        name: json.dumps({"class": "LSTM", "arguments": {"input_size": 3, "hidden_size": 4, **arguments}})
        for name, arguments in OTHER_ARGUMENTS.items()
    },
    "list": "[]",
    "nested": "[" * 10**5,
    "word": "LSTM",
    "a module": '{"class": "functional", "arguments": {}}',
    "a function": '{"class": "load", "arguments": {"path": "LSTM"}}',
    "lazy": '{"class": "lm", "arguments": {}}',
    "another class": '{"class": "PackedSequence", "arguments": {}}',
    "no name": '{"class": ["LSTM"], "arguments": {}}',
}


def described(description: str) -> bytes:
    """Return a file of an LSTM(3, 4) with another description."""
    from safetensors.numpy import save

    return save(rnnfast.LSTM(3, 4).parameters, {"rnnfast": description})


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    ours = tmp_path / "ours"
    rnnfast.LSTM(3, 4).save(ours)
    whole = ours.read_bytes()
    files = {
        "empty": b"",
        "text": b"no tensors here",
        "short": whole[: len(whole) // 2],
        "kind": whole.replace(b"LSTM", b"load"),
        "unknown": whole.replace(b"LSTM", b"LSTN"),
        "argument": whole.replace(b"batch_first", b"batch_fifth"),
        "size": whole.replace(b'hidden_size\\": 4', b'hidden_size\\": 5'),
        **{name: described(change) for name, change in TAMPERED.items()},
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"path: expected .* got .*{name}"):
            rnnfast.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()
    save_file({"a": np.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="path: expected"):
        rnnfast.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        rnnfast.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        rnnfast.load(tmp_path)


def test_a_users_class_is_not_saved(tmp_path: Path) -> None:
    class Own(rnnfast.LSTM):
        pass

    with pytest.raises(TypeError, match="self: expected a class of rnnfast's own, got Own"):
        Own(3, 4).save(tmp_path / "own")
    assert not (tmp_path / "own").exists()


def pipe(folder: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this system")
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


PLACES: dict[str, tuple[Callable[[Path], Path], type[OSError]]] = {
    "a folder": (lambda folder: folder, IsADirectoryError),
    "in no folder": (lambda folder: folder / "missing" / "layer", FileNotFoundError),
    "a pipe": (pipe, OSError),
}


@pytest.mark.parametrize("layer", [rnnfast.LSTM(3, 4), rnnfast.Modules(a=rnnfast.Linear(3, 4))], ids=repr)
@pytest.mark.parametrize("place", PLACES)
def test_where_no_file_can_be_the_error_names_it(place: str, layer: Any, tmp_path: Path) -> None:
    make, error = PLACES[place]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error) as caught:
        layer.save(path)
    assert caught.value.filename == str(path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_layer_is_saved_through_a_link_with_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()  # with the mode that the umask leaves
    (tmp_path / "link").symlink_to(tmp_path / "layer")
    for seed in (0, 1):
        layer = rnnfast.LSTM(3, 4, rng=seed)
        layer.save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "layer").stat().st_mode == (tmp_path / "new").stat().st_mode
        assert_same_bits(rnnfast.load(tmp_path / "layer").state_dict(), layer.state_dict())
    assert len(list(tmp_path.iterdir())) == 3


# Keys


def test_keys_that_do_not_fit_are_listed_in_order() -> None:
    layer = rnnfast.LSTM(3, 4)
    state = layer.state_dict()
    del state["weight_ih_l0"], state["bias_hh_l0"]
    message = r"state_dict: missing keys: \['bias_hh_l0', 'weight_ih_l0'\]; unexpected keys: \['a', 'b', 'c'\]$"
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict({**state, **dict.fromkeys("cab", np.ones(1))})


# Counting


def test_an_elman_network_with_merged_biases_has_20362_parameters() -> None:
    network = rnnfast.RNN(20, 128), rnnfast.Linear(128, 10)
    assert rnnfast.num_parameters(network, merged_bias=True) == 20_362
    assert rnnfast.num_parameters(network) == 20_362 + 128


@by_form
@by_cell
def test_num_parameters_counts_every_array(cell: str, form: str) -> None:
    layer = make_layer(cell, **FORMS[form])
    count = sum(p.size for p in layer.state_dict().values())
    b_hh = sum(p.size for name, p in layer.state_dict().items() if "bias_hh" in name)
    assert rnnfast.num_parameters(layer) == count
    assert rnnfast.num_parameters(layer, merged_bias=True) == count - b_hh
    cells = [rnnfast.LSTMCell(2, 3), rnnfast.GRUCell(2, 3)]
    assert rnnfast.num_parameters([cells, layer]) == (4 + 3) * 3 * (2 + 3 + 2) + count


# Initial values


def blocks(layer: Any, prefix: str | tuple[str, ...]) -> list[Array]:
    """Return the blocks of the gates, and of their heads, of all parameters with the prefix, or one of them."""
    count = layer.gates * (layer.num_heads if prefix == "weight_hh" else 1)
    return [b for n, p in layer.parameters.items() if n.startswith(prefix) for b in np.split(p, count)]


def is_uniform(a: Array, bound: float) -> bool:
    """Whether many values look like U(-bound, bound): its range, mean and variance."""
    spread = bound / np.sqrt(3 * a.size)
    return bool(np.abs(a).max() <= bound and abs(a.mean()) < 5 * spread and abs(3 * a.var() / bound**2 - 1) < 0.1)


@by_cell
def test_torchs_initialisation_is_the_default(cell: str) -> None:
    layer = make_layer(cell, (30, 64), num_layers=2, bidirectional=True, learn_initial_state=True)
    for name, p in layer.parameters.items():
        if name.startswith(("gain", "bias_c", "initial")):
            assert (p == name.startswith("gain")).all()
            continue
        assert is_uniform(p, 1 / 8) or p.size < 1000
        assert np.abs(p).max() <= 1 / 8
    again = make_layer(cell, (30, 64), num_layers=2, bidirectional=True, learn_initial_state=True)
    rnnfast.initialize(again, "xavier")
    rnnfast.initialize(again, "torch", rng=0)
    assert_same_bits(again.parameters, layer.parameters)
    assert is_uniform(rnnfast.Linear(100, 50, rng=0).weight, 1 / 10)


@by_cell
def test_xavier_draws_each_gate_by_its_own_size(cell: str) -> None:
    layer = make_layer(cell, (30, 64))
    rnnfast.initialize(layer, "xavier", rng=1)
    assert all(is_uniform(b, np.sqrt(6 / (30 + 64))) for b in blocks(layer, "weight_ih"))
    assert all(is_uniform(b, np.sqrt(6 / sum(b.shape))) for b in blocks(layer, "weight_hh"))
    assert not any(b.any() for b in blocks(layer, ("bias_ih", "bias_hh")))


@by_cell
@by_dtype
def test_orthogonal_blocks_are_orthogonal(cell: str, dtype: str) -> None:
    layer = make_layer(cell, num_layers=2, bidirectional=True, dtype=dtype)
    rnnfast.initialize(layer, "orthogonal", rng=1)
    recurrent = blocks(layer, "weight_hh")
    assert len(recurrent) == 4 * layer.gates * layer.num_heads
    for block in recurrent:
        assert relative_error(block @ block.T, np.eye(H // layer.num_heads)) < 10 * TOLERANCE[np.dtype(dtype)]
        assert not np.allclose(block, recurrent[0]) or block is recurrent[0]
    assert np.abs(layer.weight_ih_l0).max() <= np.sqrt(6 / (I + H))
    assert np.abs(layer.weight_ih_l1).max() <= np.sqrt(6 / (2 * H + H))
    assert not any(b.any() for b in blocks(layer, ("bias_ih", "bias_hh")))


def test_identity_with_relu_is_the_irnn() -> None:
    layer = make_layer("rnn_relu", (40, 64), num_layers=2)
    rnnfast.initialize(layer, "identity", rng=1)
    assert all(np.array_equal(b, np.eye(64)) for b in blocks(layer, "weight_hh"))
    assert all(abs(b.std() / 0.001 - 1) < 0.1 for b in blocks(layer, "weight_ih"))
    assert not any(b.any() for b in blocks(layer, ("bias_ih", "bias_hh")))
    h = np.abs(normal((2, B, 64), "float32", 1))
    _, last = layer(np.zeros((9, B, 40), np.float32), h)
    assert np.array_equal(last[0], h[0])  # the first layer keeps its state
    lstm = rnnfast.LSTMCell(3, 4)
    rnnfast.initialize(lstm, "identity")
    assert all(np.array_equal(b, np.eye(4)) for b in blocks(lstm, "weight_hh"))


@pytest.mark.parametrize("scheme", ["torch", "xavier", "orthogonal", "identity"])
@pytest.mark.parametrize("layer", [rnnfast.LSTM(I, H, 2, bidirectional=True), rnnfast.LSTMCell(I, H)], ids=repr)
def test_the_forget_bias_is_in_one_place(layer: Any, scheme: str) -> None:
    rnnfast.initialize(layer, scheme, forget_bias=1.5)
    b_ih, b_hh = blocks(layer, "bias_ih"), blocks(layer, "bias_hh")
    for gate, value in enumerate(b_ih):
        if gate % 4 == 1:
            assert np.all(value == 1.5)
            assert not b_hh[gate].any()
        else:
            assert value.any() == b_hh[gate].any() == (scheme == "torch")


def test_initialize_goes_on_with_the_layers_generator() -> None:
    one, other = make_layer("gru"), make_layer("gru")
    first = {name: p.copy() for name, p in one.parameters.items()}
    for layer in (one, other):
        rnnfast.initialize(layer, "torch")
    assert_same_bits(one.parameters, other.parameters)
    assert not np.array_equal(first["weight_hh_l0"], one.weight_hh_l0)


# The readout


@pytest.mark.parametrize("shape", [(), (T,), (T, B), (0, B)])
@pytest.mark.parametrize("bias", [True, False])
@by_dtype
def test_linear_is_an_affine_map_with_its_gradients(shape: tuple[int, ...], bias: bool, dtype: str) -> None:
    readout = rnnfast.Linear(I, H, bias, dtype=dtype, rng=0)
    x, dy = normal((*shape, I), dtype, 1), normal((*shape, H), dtype, 2)
    y, tape = readout.forward(x)
    dx, grads = readout.backward(tape, dy)
    x2, dy2 = x.reshape(-1, I).astype(np.float64), dy.reshape(-1, H).astype(np.float64)
    expected = {"y": x @ readout.weight.T.astype(np.float64), "dx": dy @ readout.weight.astype(np.float64)}
    expected["weight"] = dy2.T @ x2
    if bias:
        expected["y"] = expected["y"] + readout.parameters["bias"]
        expected["bias"] = dy2.sum(axis=0)
    assert_close(results(y, (), dx, (), grads), expected)
    assert np.array_equal(readout(x), y)
    none, same = readout.backward(tape, dy, need_dx=False, grads=grads)
    assert none is None
    assert same is grads
    assert_close({"weight": grads["weight"]}, {"weight": 2 * expected["weight"]})


# Other libraries' arrays


class Interface:
    """An array by `__array_interface__` only."""

    def __init__(self, a: Array) -> None:
        self.kept = a
        self.__array_interface__ = a.__array_interface__


class Exchange:
    """An array by DLPack only."""

    def __init__(self, a: Array) -> None:
        self.__dlpack__ = a.__dlpack__
        self.__dlpack_device__ = a.__dlpack_device__


@pytest.mark.parametrize("wrap", [Interface, Exchange, memoryview])
def test_any_array_is_an_array(wrap: Callable[[Any], Any]) -> None:
    layer = make_layer("lstm")
    x, state = normal((T, B, I), "float32", 1), make_state(layer, (B,), 3)
    y, last, tape = layer.forward(x, state)
    wrapped = run(layer, wrap(x), tuple(map(wrap, state)), wrap(y), tuple(map(wrap, state)))
    assert_same_bits(wrapped, results(y, last, *layer.backward(tape, y, state)))


def test_read_only_and_strided_arrays_are_read() -> None:
    layer = make_layer("lstm")
    wide, state = normal((2 * T, B, 2 * I), "float32", 1), make_state(layer, (B,), 3)
    for x in (wide[::2, :, ::2], wide[::-2, :, I:], np.broadcast_to(wide[:1, :, :I], (T, B, I))):
        x.flags.writeable = False
        plain = run(layer, np.ascontiguousarray(x), state, None, state)
        assert_same_bits(run(layer, x, state, None, state), plain)


# torch


@pytest.mark.parametrize("unbatched", [False, True], ids=["batch", "one"])
@pytest.mark.parametrize("form", [form for form in FORMS if "dropout" not in form and form != "learned"])
@pytest.mark.parametrize("cell", IN_TORCH)
def test_a_torch_state_dict_gives_torchs_results(cell: str, form: str, unbatched: bool) -> None:
    torch = pytest.importorskip("torch")
    kind, own = KINDS[cell]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(I, H, **own, **FORMS[form], dtype=torch.float64)
    layer = make_layer(cell, dtype="float64", **FORMS[form])
    assert list(layer.state_dict()) == list(theirs.state_dict())
    layer.load_state_dict(theirs.state_dict())
    batch = () if unbatched else (B,)
    shape = (T, *batch, I)
    x = torch.from_numpy(normal(shape, "float64", 1) if unbatched else swap(normal(shape, "float64", 1), layer))
    state, dstate = make_state(layer, batch, 3), make_state(layer, batch, 5)
    x.requires_grad_()
    h0 = [torch.from_numpy(s).requires_grad_() for s in parts(state)]
    y, last = theirs(x, state_of(tuple(h0)))
    dy = torch.ones_like(y)
    loss = y.sum()
    for s, ds in zip(parts(last), parts(dstate), strict=True):
        loss = loss + (torch.from_numpy(ds) * s).sum()
    loss.backward()
    expected = results(
        y.detach().numpy(),
        tuple(s.detach().numpy() for s in parts(last)),
        x.grad.numpy(),
        tuple(s.grad.numpy() for s in h0),
        {name: p.grad.numpy() for name, p in theirs.named_parameters()},
    )
    assert_close(run(layer, x.detach(), state, dy, dstate), expected)


# Options of single classes


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_lstm_with_peepholes_of_zero_has_the_bits_of_one_without(dtype: str) -> None:
    plain, seeing = (
        make_layer(cell, dtype=dtype, num_layers=2, bidirectional=True) for cell in ("lstm", "lstm_peephole")
    )
    zeros = {name: np.zeros_like(p) for name, p in seeing.parameters.items() if name.startswith("peephole")}
    seeing.load_state_dict({**plain.parameters, **zeros})
    x = normal((T, B, I), dtype, 1)
    found: list[Results] = []
    for layer in (plain, seeing):
        y, state, tape = layer.forward(x)
        dx, dstate0, grads = layer.backward(tape, y, state)
        found.append(results(y, state, dx, dstate0, {name: g for name, g in grads.items() if name not in zeros}))
        assert all(grads[name].any() for name in zeros if name in grads)
    assert_same_bits(*found)


def test_coupled_gates_are_an_lstm_whose_forget_gate_mirrors_the_input_gate() -> None:
    coupled, plain = make_layer("cifg", dtype="float64"), make_layer("lstm", dtype="float64")
    for name, p in coupled.parameters.items():
        i, g, o = np.split(p, 3)
        plain.parameters[name][...] = np.concatenate([i, -i, g, o])
    x = normal((T, B, I), "float64", 1)
    assert_close({"y": coupled(x)[0]}, {"y": plain(x)[0]})


def test_a_leak_is_one_number_or_one_for_each_unit() -> None:
    x = normal((T, B, I), "float32", 1)
    plain, same, each = (rnnfast.RNN(I, H, rng=0, leak=leak) for leak in (1, np.float32(0.3), [0.3] * H))
    assert plain.leak == 1
    assert np.array_equal(plain(x)[0], rnnfast.RNN(I, H, rng=0)(x)[0])
    assert np.array_equal(same(x)[0], each(x)[0])
    assert not np.array_equal(same(x)[0], plain(x)[0])


@pytest.mark.parametrize("leak", [0.3, np.linspace(0.1, 1, H)], ids=["number", "array"])
def test_a_leak_is_kept_with_its_layer_and_not_learned(leak: Any, tmp_path: Path) -> None:
    layer: Any = rnnfast.RNN(I, H, num_layers=2, rng=0, leak=leak)
    x = normal((T, B, I), "float32", 1)
    y, _, tape = layer.forward(x)
    _, _, grads = layer.backward(tape, y)
    assert grads.keys() == layer.parameters.keys()
    assert not any("leak" in name for name in grads)
    layer.save(tmp_path / "rnn")
    copies: list[Any] = [rnnfast.load(tmp_path / "rnn"), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for copied in copies:
        assert repr(copied) == repr(layer)
        assert np.array_equal(copied(x)[0], y)
    before = np.copy(layer.leak)
    training.SGD(layer, 0.1).step(grads)
    assert np.array_equal(layer.leak, before)
    if np.ndim(leak):
        with pytest.raises(ValueError, match="read-only"):
            layer.leak[0] = 1


def test_peepholes_start_like_biases() -> None:
    layer = rnnfast.LSTM(I, H, peephole=True, rng=0)
    assert layer.peephole_l0.shape == (3 * H,)
    assert 0 < np.abs(layer.peephole_l0).max() <= H**-0.5
    rnnfast.initialize(layer, "orthogonal", forget_bias=1)
    assert not layer.peephole_l0.any()
    assert (layer.bias_ih_l0[H : 2 * H] == 1).all()
