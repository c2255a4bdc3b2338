"""Layers from Keras and torch, and back, against the frameworks themselves."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from modules import IN_TORCH, KINDS, make_cell, make_layer, normal
from problems import DTYPES, Array, assert_same_bits, parts
from tolerances import relative_error

import rnnfast
from rnnfast.convert import from_keras, from_torch, to_keras_weights, to_torch

# What two libraries' rounding comes to: they sum in different orders, and their tanh differ.
AGREEMENT = {"float32": 1e-5, "float64": 1e-10}
T, B, I, H = 6, 3, 5, 4

KERAS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "rnn_tanh": ("SimpleRNN", {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}),
}

by_cell = pytest.mark.parametrize("cell", KERAS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_direction = pytest.mark.parametrize("bidirectional", [False, True])
by_bias = pytest.mark.parametrize("bias", [True, False])


def agree(actual: Any, expected: Any, dtype: str) -> None:
    """Assert that arrays are close and of the same dtype; a part of a state may be nested."""
    for a, e in zip(parts(actual), parts(expected), strict=True):
        assert a.dtype == np.asarray(e).dtype == dtype
        assert relative_error(a, np.asarray(e)) < AGREEMENT[dtype]


# Keras


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        keras = pytest.importorskip("keras")
        # On all backends but TensorFlow's, Keras lets the float64 of products and sums become float32.
        patch.setitem(import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE, "float64", "float64")
        yield keras


def make_keras(keras: Any, cell: str, bidirectional: bool = False, width: int = I, **arguments: Any) -> Any:
    """Return a built Keras layer whose weights, biases too, are random."""
    kind, own = KERAS[cell]
    layer = getattr(keras.layers, kind)(H, **{"return_sequences": True, **own, **arguments})
    if bidirectional:
        layer = keras.layers.Bidirectional(layer, dtype=arguments.get("dtype"))
    layer.build((B, T, width))
    layer.set_weights([normal(w.shape, w.dtype, k) / 2 for k, w in enumerate(layer.get_weights())])
    return layer


@by_bias
@by_direction
@by_dtype
@by_cell
def test_a_keras_layer_keeps_its_outputs(keras: Any, cell: str, dtype: str, bidirectional: bool, bias: bool) -> None:
    theirs = make_keras(keras, cell, bidirectional, dtype=dtype, use_bias=bias, return_state=True)
    ours = from_keras(theirs)
    assert (ours.cell, ours.batch_first, ours.bias) == (cell, True, bias)
    x = normal((B, T, I), dtype, 9)
    y, state = ours(x)
    y_keras, *states = (a.detach().numpy() for a in theirs(x))  # h or h, c of each direction
    agree(
        (y, *parts(state)),
        (y_keras, *(np.stack(states[k :: len(parts(state))]) for k in range(len(parts(state))))),
        dtype,
    )


@by_bias
@by_direction
@by_dtype
@by_cell
def test_keras_weights_come_back_bit_for_bit(
    keras: Any, cell: str, dtype: str, bidirectional: bool, bias: bool
) -> None:
    theirs = make_keras(keras, cell, bidirectional, dtype=dtype, use_bias=bias)
    before = theirs.get_weights()
    after = to_keras_weights(from_keras(theirs))
    assert [a.dtype for a in after] == [a.dtype for a in before]
    assert all(map(np.array_equal, after, before))
    theirs.set_weights(after)


@by_direction
@by_dtype
@by_cell
def test_keras_computes_what_our_layer_does(keras: Any, cell: str, dtype: str, bidirectional: bool) -> None:
    ours = make_layer(cell, (I, H), bidirectional=bidirectional, dtype=dtype, batch_first=True)
    theirs = make_keras(keras, cell, bidirectional, dtype=dtype)
    theirs.set_weights(to_keras_weights(ours))
    x = normal((B, T, I), dtype, 9)
    agree(ours(x)[0], theirs(x).detach().numpy(), dtype)


@by_direction
@by_cell
def test_a_list_of_keras_layers_is_a_stack(keras: Any, cell: str, bidirectional: bool) -> None:
    widths = (I, *[H * (1 + bidirectional)] * 2)
    layers = [
        make_keras(keras, cell, bidirectional, width, return_sequences=k < 2, dtype="float64")
        for k, width in enumerate(widths)
    ]
    stack = from_keras(layers)
    assert stack.num_layers == 3
    x = normal((B, T, I), "float64", 9)
    y: Any = x
    for layer in layers:
        y = layer(y)
    last = stack(x, outputs="last")[0] if not bidirectional else _last(stack(x)[1], stack)
    agree(last, y.detach().numpy(), "float64")


def _last(state: Any, stack: Any) -> Array:
    """Return h of the last layer at the end of each direction, which is what Keras returns last."""
    return np.concatenate(parts(state)[0][-stack.directions :], axis=-1)


def test_what_acts_in_training_only_is_not_carried(keras: Any) -> None:
    theirs = make_keras(
        keras, "lstm", dropout=0.5, recurrent_dropout=0.5, kernel_regularizer="l2", stateful=True, dtype="float64"
    )
    ours = from_keras(theirs)
    assert repr(ours) == f"LSTM({I}, {H}, batch_first=True, dtype='float64')"
    x = normal((B, T, I), "float64", 9)
    agree(ours(x)[0], theirs(x).detach().numpy(), "float64")


REFUSED: dict[str, tuple[str, type[Exception], str]] = {
    "not keras": ("rnnfast.LSTM(3, 4)", TypeError, "layer: expected LSTM, GRU, .* got LSTM"),
    "nothing": ("[]", ValueError, "layer: expected at least one"),
    "another class": ("L.Dense(4)", TypeError, "layer: expected LSTM, .* got Dense"),
    "a cell": ("L.LSTMCell(4)", TypeError, "layer: expected LSTM, .* got LSTMCell"),
    "derived": ("type('Own', (L.LSTM,), {})(4)", TypeError, "layer: expected LSTM, .* got Own"),
    "not built": ("L.GRU(4)", ValueError, "layer: expected a built GRU"),
    "activation": ("L.LSTM(4, activation='relu')", ValueError, "layer: expected activation 'tanh', got 'relu'"),
    "own activation": ("L.GRU(4, activation=abs)", ValueError, "layer: expected activation 'tanh', got"),
    "recurrent": (
        "L.GRU(4, recurrent_activation='hard_sigmoid')",
        ValueError,
        "layer: expected recurrent_activation 'sigmoid', got 'hard_sigmoid'",
    ),
    "linear": ("L.SimpleRNN(4, activation=None)", ValueError, "layer: expected activation 'tanh' or 'relu', got"),
    "backwards": ("L.LSTM(4, go_backwards=True)", ValueError, "layer: expected go_backwards False, got True"),
    "sum": ("L.Bidirectional(L.LSTM(4), merge_mode='sum')", ValueError, "layer: expected merge_mode 'concat', got"),
    "nested": ("L.Bidirectional(L.RNN(L.LSTMCell(4)))", TypeError, "layer: expected LSTM, .* got RNN"),
    "half": (
        "built(L.LSTM(4, dtype='float16', recurrent_initializer='zeros'))",
        TypeError,
        "dtype: expected float32 or float64, got",
    ),
    "directions": (
        "built(L.Bidirectional(L.GRU(4), backward_layer=L.GRU(4, use_bias=False, go_backwards=True)))",
        ValueError,
        "layer: expected directions that are alike",
    ),
    "last only": ("[built(L.GRU(4)), built(L.GRU(4))]", ValueError, "layer: expected return_sequences True, got False"),
    "unlike": ("[built(L.GRU(4, **S)), built(L.LSTM(4))]", ValueError, "layer: expected layers that are alike"),
    "options": (
        "[built(L.GRU(4, **S)), built(L.GRU(4, reset_after=False))]",
        ValueError,
        "layer: expected layers that are alike",
    ),
    "widths": ("[built(L.GRU(4, **S)), built(L.GRU(4), 5)]", ValueError, "weight_ih_l1: expected shape"),
    "dtypes": ("[built(L.GRU(4, **S)), built(L.GRU(4, dtype='float64'))]", TypeError, "weight_ih_l1: expected dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_keras_computes_otherwise_is_refused(keras: Any, case: str) -> None:
    def built(layer: Any, width: int = 4) -> Any:
        layer.build((B, T, width))
        return layer

    call, error, message = REFUSED[case]
    layer = eval(
        call,
        {"__name__": "users", "L": keras.layers, "S": {"return_sequences": True}, "built": built, "rnnfast": rnnfast},
    )
    with pytest.raises(error, match=message):
        from_keras(layer)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("LSTM(3, 4, num_layers=2)", ValueError),
        ("GRU(3, 4, learn_initial_state=True)", ValueError),
        ("LSTM(3, 4, zoneout=(0.1, 0.0))", ValueError),
        ("GRU(3, 4, zoneout=0.1)", ValueError),
        ("LSTMCell(3, 4)", TypeError),
        ("Linear(3, 4)", TypeError),
    ],
)
def test_what_keras_has_not_is_refused(call: str, error: type[Exception]) -> None:
    name = next((name for name in ("zoneout", "learn_initial_state") if name in call), "")
    with pytest.raises(error, match=f"layer: expected {name}"):
        to_keras_weights(eval(call, vars(rnnfast)))


# torch

FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "options": {"num_layers": 3, "dropout": 0.25, "batch_first": True, "bias": False},
}

by_form = pytest.mark.parametrize("form", FORMS)
by_torch_cell = pytest.mark.parametrize("cell", IN_TORCH)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def detached(given: Any) -> Any:
    return tuple(map(detached, given)) if isinstance(given, tuple) else given.detach().numpy()


@by_form
@by_dtype
@by_torch_cell
def test_a_torch_module_and_its_layer_give_the_same(torch: Any, cell: str, dtype: str, form: str) -> None:
    kind, own = KINDS[cell]
    theirs = getattr(torch.nn, kind)(I, H, **own, **FORMS[form], dtype=getattr(torch, dtype)).eval()
    ours = from_torch(theirs)
    assert repr(ours) == repr(getattr(rnnfast, kind)(I, H, **own, **FORMS[form], dtype=dtype))
    assert_same_bits(ours.state_dict(), detached_dict(theirs))
    x = normal((B, T, I), dtype, 9)
    (y, state), (y_torch, state_torch) = ours(x), detached(theirs(torch.from_numpy(x)))
    agree((y, *parts(state)), (y_torch, *parts(state_torch)), dtype)
    agree(y, detached(to_torch(ours).eval()(torch.from_numpy(x))[0]), dtype)


@by_bias
@by_dtype
@by_torch_cell
def test_a_torch_cell_and_its_cell_give_the_same(torch: Any, cell: str, dtype: str, bias: bool) -> None:
    kind, own = KINDS[cell]
    theirs = getattr(torch.nn, f"{kind}Cell")(I, H, bias, **own, dtype=getattr(torch, dtype))
    ours = from_torch(theirs)
    assert repr(ours) == repr(getattr(rnnfast, f"{kind}Cell")(I, H, bias, **own, dtype=dtype))
    x = normal((B, I), dtype, 9)
    agree(ours(x), detached(theirs(torch.from_numpy(x))), dtype)


@by_form
@by_dtype
@by_torch_cell
def test_layers_come_back_from_torch_bit_for_bit(torch: Any, cell: str, dtype: str, form: str) -> None:
    before = torch.get_rng_state()
    arguments = FORMS[form]
    ours = [make_layer(cell, dtype=dtype, **arguments), make_cell(cell, bias=arguments.get("bias", True), dtype=dtype)]
    for module in ours:
        theirs = to_torch(module)
        assert type(theirs) is getattr(torch.nn, type(module).__name__)
        back = from_torch(theirs)
        assert repr(back) == repr(module)
        assert_same_bits(back.state_dict(), module.state_dict())
        for p in theirs.parameters():
            p.data.zero_()
        assert all(p.any() for own in (back, module) for p in own.parameters.values())
    assert torch.equal(torch.get_rng_state(), before)


DROPPING: dict[str, Any] = {
    "weight_dropout": 0.5,
    "recurrent_dropout": 0.5,
    "recurrent_dropout_per_gate": True,
    "candidate_dropout": 0.5,
    "candidate_dropout_per_sequence": True,
}


def test_dropout_that_acts_in_training_only_is_not_carried_to_keras() -> None:
    ours, plain = make_layer("gru", **DROPPING), make_layer("gru")
    for a, b in zip(to_keras_weights(ours), to_keras_weights(plain), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("torch")
def test_dropout_that_acts_in_training_only_is_not_carried_to_torch() -> None:
    layer = make_layer("lstm", **DROPPING)
    back: Any = from_torch(to_torch(layer))
    assert back.weight_dropout == back.recurrent_dropout == back.candidate_dropout == 0
    assert_same_bits(back.state_dict(), layer.state_dict())


def detached_dict(module: Any) -> dict[str, Array]:
    return {name: p.detach().numpy() for name, p in module.state_dict().items()}


@pytest.mark.parametrize("bias", [True, False])
@by_dtype
def test_projections_go_to_torch_and_back(torch: Any, dtype: str, bias: bool) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": bias}
    theirs = torch.nn.LSTM(I, H, **options, dtype=getattr(torch, dtype))
    ours, loaded = from_torch(theirs), rnnfast.LSTM(I, H, **options, dtype=dtype)
    loaded.load_state_dict(detached_dict(theirs))
    assert [*loaded.state_dict()] == [*theirs.state_dict()]
    x = normal((T, B, I), dtype, 9)
    (y, state), (y_torch, state_torch) = ours(x), detached(theirs(torch.from_numpy(x)))
    agree((y, *state), (y_torch, *state_torch), dtype)
    assert_same_bits(ours.state_dict(), loaded.state_dict())
    back = to_torch(loaded)
    assert repr(back) == repr(theirs)
    assert_same_bits(detached_dict(back), loaded.state_dict())


def test_parametrized_weights_are_those_in_effect(torch: Any) -> None:
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(I, H), "weight_hh_l0")
    with torch.no_grad():
        theirs.parametrizations.weight_hh_l0.original0 *= 2
    x = normal((T, B, I), "float32", 9)
    agree(from_torch(theirs)(x)[0], detached(theirs(torch.from_numpy(x))[0]), "float32")


@by_torch_cell
@pytest.mark.usefixtures("torch")
def test_our_own_torch_modules_are_torchs(cell: str) -> None:
    ours = import_module("rnnfast.torch")
    kind, own = KINDS[cell]
    for module in (getattr(ours, kind)(I, H, **own), getattr(ours, f"{kind}Cell")(I, H, **own)):
        assert_same_bits(from_torch(module).state_dict(), detached_dict(module))


NO_MODULES: dict[str, tuple[str, type[Exception], str]] = {
    "not torch": ("rnnfast.LSTM(3, 4)", TypeError, "module: expected LSTM, GRU, .* got LSTM"),
    "another class": ("nn.Linear(3, 4)", TypeError, "module: expected LSTM, .* got Linear"),
    "own forward": ("type('Own', (nn.GRU,), {'forward': abs_})(3, 4)", TypeError, "module: expected .* got Own"),
    "half": ("nn.LSTM(3, 4).half()", TypeError, "dtype: expected float32 or float64, got 'float16'"),
    "bfloat16": ("nn.GRUCell(3, 4).bfloat16()", TypeError, "dtype: expected float32 or float64, got 'bfloat16'"),
    "elsewhere": ("nn.RNN(3, 4, device='meta')", ValueError, r"on the CPU, where module.cpu\(\) .* got meta"),
}


@pytest.mark.parametrize("case", NO_MODULES)
def test_what_torch_computes_otherwise_is_refused(torch: Any, case: str) -> None:
    call, error, message = NO_MODULES[case]
    with pytest.raises(error, match=message):
        from_torch(eval(call, {"__name__": "users", "nn": torch.nn, "rnnfast": rnnfast, "abs_": lambda _, x: abs(x)}))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("GRU(3, 4, reset_after=False)", ValueError),
        ("GRUCell(3, 4, reset_after=False)", ValueError),
        ("RNN(3, 4, learn_initial_state=True)", ValueError),
        ("LSTM(3, 4, peephole=True)", ValueError),
        ("LSTMCell(3, 4, peephole=True)", ValueError),
        ("LSTM(3, 4, coupled_gates=True)", ValueError),
        ("RNN(3, 4, leak=0.5)", ValueError),
        ("RNNCell(3, 4, leak=[0.5] * 4)", ValueError),
        ("LSTM(3, 4, zoneout=(0.0, 0.1))", ValueError),
        ("RNN(3, 4, zoneout=0.1)", ValueError),
        ("SLSTM(3, 4)", TypeError),
        ("Linear(3, 4)", TypeError),
    ],
)
@pytest.mark.usefixtures("torch")
def test_what_torch_has_not_is_refused(call: str, error: type[Exception]) -> None:
    name = "zoneout" if "zoneout" in call else ""
    with pytest.raises(error, match=f"layer: expected {name}"):
        to_torch(eval(call, vars(rnnfast)))


def test_a_state_dict_that_torch_has_saved_is_loaded(torch: Any, tmp_path: Any) -> None:
    from safetensors.numpy import load_file
    from safetensors.torch import save_file

    model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(I, H), "head": torch.nn.Linear(H, 2)})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    layer = rnnfast.LSTM(I, H)
    layer.load_state_dict({k.removeprefix("encoder."): v for k, v in loaded.items() if k.startswith("encoder.")})
    assert_same_bits(layer.state_dict(), detached_dict(model["encoder"]))
