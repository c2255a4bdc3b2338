"""rnnfast.keras against the layers of Keras themselves, on the torch backend; keras_on_jax is the same for JAX."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import DTYPES, Array
from tolerances import relative_error

AGREEMENT = {"float32": 1e-5, "float64": 1e-10}  # two libraries round differently
B, T, I, H = 4, 7, 5, 6
MASKS = {
    "none": None,
    "lengths": np.arange(T) < np.array([[7], [3], [1], [6]]),
    "left": np.arange(T) >= np.array([[0], [3], [1], [6]]),
    "holes": np.arange(T) % 2 == np.zeros((B, 1)),
    "an empty sequence": np.arange(T) < np.array([[7], [0], [1], [6]]),
}
COMPUTED = "none", "lengths"

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "rnn_tanh": ("SimpleRNN", {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}),
}
by_layer = pytest.mark.parametrize("layer", LAYERS)
by_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        keras = pytest.importorskip("keras", reason='keras is not installed (pip install ".[keras]")')
        # On all backends but TensorFlow's, Keras lets the float64 of products and sums become float32.
        patch.setitem(import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE, "float64", "float64")
        yield keras


@pytest.fixture
def ours(keras: Any) -> Any:
    del keras
    return import_module("rnnfast.keras")


@pytest.fixture
def loops(keras: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the layers whose loop Keras has computed."""
    ran: list[str] = []
    loop = keras.layers.RNN.inner_loop

    def noted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(type(layer).__name__)
        return loop(layer, *args, **kwargs)

    for kind in ("RNN", "LSTM", "GRU", "SimpleRNN"):
        monkeypatch.setattr(getattr(keras.layers, kind), "inner_loop", noted)
    monkeypatch.setattr(import_module("rnnfast.keras._models"), "LOOPS", {noted})
    return ran


def made(module: Any, layer: str, dtype: str = "float32", width: int = I, **options: Any) -> Any:
    """Return a built layer with random weights, biases too."""
    kind, own = LAYERS[layer]
    built = getattr(module, kind)(H, dtype=dtype, **own, **options)
    filled(built, width)
    return built


def filled(layer: Any, width: int = I) -> None:
    layer.build((B, T, width))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.standard_normal(w.shape) / 2 for w in layer.get_weights()])


def normal(*shape: int, dtype: str = "float32") -> Array:
    array: Array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    return array


def results(keras: Any, layer: Any, mask: Array | None = None, dtype: str = "float32", **call: Any) -> list[Array]:
    """Return all that a layer returns and the gradients of its input and weights."""
    torch: Any = import_module("torch")
    x = torch.tensor(normal(B, T, I, dtype=dtype), requires_grad=True)
    outputs = keras.tree.flatten(layer(x, mask=mask, **call))
    for w in layer.trainable_weights:
        w.value.grad = None
    sum((out * torch.arange(1, out.numel() + 1).reshape(out.shape).sin()).sum() for out in outputs).backward()
    tensors = [*outputs, x.grad, *(w.value.grad for w in layer.trainable_weights)]
    return [tensor.detach().numpy() for tensor in tensors]


def agree(actual: list[Array], expected: list[Array]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert relative_error(a, e) < AGREEMENT[str(e.dtype)]


@by_layer
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_states_and_gradients_are_those_of_keras(
    keras: Any, ours: Any, loops: list[str], layer: str, dtype: str
) -> None:
    for backwards, sequences, zero, mask in itertools.product((False, True), (False, True), (False, True), MASKS):
        options = {"return_sequences": sequences, "go_backwards": backwards, "zero_output_for_mask": zero}
        own, theirs = (made(module, layer, dtype, return_state=True, **options) for module in (ours, keras.layers))
        expected = results(keras, theirs, MASKS[mask], dtype)
        loops.clear()
        agree(results(keras, own, MASKS[mask], dtype), expected)
        assert bool(loops) == (mask not in COMPUTED)
        agree(results(keras, ours.accelerate(theirs), MASKS[mask], dtype), expected)


@by_layer
@pytest.mark.parametrize("options", [{"use_bias": False}, {"unroll": True}], ids=str)
def test_options_that_are_computed(
    keras: Any, ours: Any, loops: list[str], layer: str, options: dict[str, Any]
) -> None:
    own, theirs = (made(module, layer, **options) for module in (ours, keras.layers))
    expected = results(keras, theirs)
    loops.clear()
    agree(results(keras, own), expected)
    assert not loops


@by_layer
@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
def test_bidirectional_layers_are_computed(
    keras: Any, ours: Any, loops: list[str], layer: str, merge_mode: str | None
) -> None:
    both = [
        keras.layers.Bidirectional(made(module, layer, return_sequences=True), merge_mode=merge_mode)
        for module in (ours, keras.layers)
    ]
    for bidirectional in both:
        filled(bidirectional)
    assert type(both[0].forward_layer) is getattr(ours, LAYERS[layer][0])
    for mask in COMPUTED:
        expected = results(keras, both[1], MASKS[mask])
        loops.clear()
        agree(results(keras, both[0], MASKS[mask]), expected)
        agree(results(keras, ours.accelerate(both[1]), MASKS[mask]), expected)
        ours.restore(both[1])
        assert not loops


@by_layer
def test_states_are_given_and_kept(keras: Any, ours: Any, layer: str) -> None:
    own, theirs = (made(module, layer, stateful=True, return_state=True) for module in (ours, keras.layers))
    theirs.use_cudnn = False  # else Keras changes states in place that its own backward needs
    for _ in range(2):  # the second goes on from the states that the first leaves
        agree(results(keras, own), results(keras, theirs))
    for stateful in (own, theirs):
        stateful.reset_state()
    states = [normal(B, H) for _ in own.states]
    agree(results(keras, own, initial_state=states), results(keras, theirs, initial_state=states))


@by_kind
def test_dropout_of_the_input_is_that_of_keras(keras: Any, ours: Any, loops: list[str], kind: str) -> None:
    own, theirs = (
        made(module, {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn_tanh"}[kind], dropout=0.5, seed=3)
        for module in (ours, keras.layers)
    )
    expected = results(keras, theirs, training=True)
    assert relative_error(expected[0], results(keras, theirs, training=False)[0]) > 0.01
    loops.clear()
    agree(results(keras, own, training=True), expected)
    assert not loops


def test_integers_are_converted(keras: Any, ours: Any) -> None:
    own, theirs = (made(module, "lstm") for module in (ours, keras.layers))
    x = np.arange(B * T * I).reshape(B, T, I)
    assert relative_error(own(x).detach().numpy(), theirs(x).detach().numpy()) < AGREEMENT["float32"]


def test_layers_have_second_derivatives(keras: Any, ours: Any) -> None:
    torch: Any = import_module("torch")
    seconds = []
    for module in (ours, keras.layers):
        x = torch.tensor(normal(B, T, I), requires_grad=True)
        (dx,) = torch.autograd.grad(made(module, "gru_reset_before")(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(dx.square().sum(), x)[0].numpy())
    agree(seconds[:1], seconds[1:])


# Models


def model_of(keras: Any, module: Any) -> Any:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((T,)),
            layers.Embedding(11, I, mask_zero=True),
            layers.Bidirectional(module.LSTM(H, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(I)),
            module.GRU(H, return_sequences=True, recurrent_dropout=0.0),
            layers.RNN(layers.SimpleRNNCell(H)),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    return model


@pytest.fixture
def tokens() -> Array:
    rng = np.random.default_rng(2)
    drawn: Array = rng.integers(1, 11, (16, T)) * (np.arange(T) < rng.integers(1, T + 1, (16, 1)))
    return drawn


@pytest.mark.parametrize("by_class", [False, True])
def test_training_goes_on_as_with_keras(keras: Any, ours: Any, loops: list[str], tokens: Array, by_class: bool) -> None:
    y = normal(16, 1)
    model = model_of(keras, keras.layers)
    expected = model.fit(tokens, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
    model = model_of(keras, ours if by_class else keras.layers)
    assert ours.accelerate(model) is model
    loops.clear()
    losses = model.fit(tokens, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert not loops
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    ours.restore(model).predict(tokens, verbose=0)
    assert loops


def test_accelerated_layers_stay_what_they_are(keras: Any, ours: Any, tokens: Array, tmp_path: Path) -> None:
    model = model_of(keras, keras.layers)
    before = [*model.layers], [type(layer) for layer in model.layers], model.get_config()
    expected = model.predict(tokens, verbose=0)
    ours.accelerate(ours.accelerate(model))
    assert ([*model.layers], [type(layer) for layer in model.layers], model.get_config()) == before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert not any("inner_loop" in vars(layer) for layer in [*loaded.layers, *ours.restore(model).layers])
    np.testing.assert_allclose(loaded.predict(tokens, verbose=0), expected, rtol=1e-5)


def test_models_of_the_classes_are_saved_and_loaded(keras: Any, ours: Any, tokens: Array, tmp_path: Path) -> None:
    model, path = model_of(keras, ours), tmp_path / "model.keras"
    expected = model.predict(tokens, verbose=0)
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    assert type(loaded.layers[3]) is ours.GRU
    assert type(keras.models.clone_model(model).layers[3]) is ours.GRU
    assert np.array_equal(loaded.predict(tokens, verbose=0), expected)
    ours.restore(model).save(path)
    assert type(keras.models.load_model(path, compile=False).layers[3]) is keras.layers.GRU


@by_kind
def test_the_configuration_is_that_of_keras(keras: Any, ours: Any, kind: str) -> None:
    own, theirs = (getattr(module, kind)(H, name="layer", seed=1) for module in (ours, keras.layers))
    assert own.get_config() == theirs.get_config()
    assert getattr(ours, kind).from_config(theirs.get_config()).get_config() == theirs.get_config()


# What is not computed here

LEFT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the layer, and of the call
    "activation: expected 'tanh', got 'relu'": ({"activation": "relu"}, {}),
    "recurrent_activation: expected 'sigmoid', got 'hard_sigmoid'": ({"recurrent_activation": "hard_sigmoid"}, {}),
    "recurrent_dropout: expected 0, got 0.5": ({"recurrent_dropout": 0.5, "seed": 1}, {"training": True}),
    "implementation: expected 2, as it has dropout=0.5, got 1": (
        {"dropout": 0.5, "implementation": 1, "seed": 1},
        {"training": False},  # in training Keras's own torch backend fails
    ),
    "dtype: expected float32 or float64, got bfloat16": (
        {"dtype": "bfloat16", "recurrent_initializer": "zeros"},  # Keras's own needs a product of other types
        {},
    ),
    "dtype: expected float32 or float64, got mixed_bfloat16": ({"dtype": "mixed_bfloat16"}, {}),
}


@pytest.mark.parametrize("message", LEFT)
def test_what_is_not_computed_is_refused_by_the_classes_and_left_to_keras(
    keras: Any, ours: Any, loops: list[str], message: str
) -> None:
    options, call = LEFT[message]
    with pytest.raises(ValueError, match=f"^{message}; keras.layers.LSTM computes it$"):
        ours.LSTM(H, **options)
    before, after = (made(keras.layers, "lstm", **{"dtype": "float32", **options}) for _ in range(2))
    x = normal(B, T, I)
    expected = before(x, **call)
    loops.clear()
    assert (ours.accelerate(after)(x, **call) == expected).all()
    assert loops


def test_layers_of_other_cells_are_left_alone(keras: Any, ours: Any) -> None:
    class Cell(keras.layers.LSTMCell):  # type: ignore[misc]
        pass

    class Loop(keras.layers.GRU):  # type: ignore[misc]
        def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
            return super().inner_loop(*args, **kwargs)

    class Named(keras.layers.GRU):  # type: ignore[misc]
        pass

    stacked = keras.layers.RNN([keras.layers.LSTMCell(H), keras.layers.LSTMCell(H)])
    for layer in (keras.layers.RNN(Cell(H)), Loop(H), stacked):
        assert "inner_loop" not in vars(ours.accelerate(layer))
    assert "inner_loop" in vars(ours.accelerate(Named(H)))


@pytest.mark.parametrize(
    ("width", "states", "kind"), [(I + 1, None, RuntimeError), (I, [(B, H + 1)] * 2, RuntimeError)], ids=["x", "states"]
)
def test_errors_are_those_of_keras(keras: Any, ours: Any, width: int, states: Any, kind: type) -> None:
    given = states and [normal(*shape) for shape in states]
    said = []
    for module in (ours, keras.layers):
        layer = made(module, "lstm", name="layer")
        with pytest.raises(kind, match=r"shape|size") as raised:
            layer(normal(B, T, width), initial_state=given)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_other_arguments_and_backends_are_refused(keras: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (ours.accelerate, ours.restore):
        with pytest.raises(TypeError, match=r"^model: expected a keras\.Model or keras\.layers\.Layer, got str$"):
            change("model")
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    for refused, argument in ((ours.LSTM, H), (ours.accelerate, keras.layers.LSTM(H))):
        with pytest.raises(RuntimeError, match=r"^rnnfast\.keras: expected .* got 'tensorflow'"):
            refused(argument)


@pytest.mark.skipif(find_spec("jax") is None, reason='jax is not installed (pip install ".[jax]")')
def test_the_jax_backend_computes_the_same(keras: Any) -> None:
    del keras
    program = Path(__file__).with_name("keras_on_jax.py")
    path = os.pathsep.join([str(program.parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
