"""The layers of a model: `accelerate` and `restore`."""

from types import MethodType
from typing import Any, TypeVar

import keras

from ._layers import GRU, LSTM, SimpleRNN
from ._loop import CELLS, backend, computed, misfit

Model = TypeVar("Model")

THEIRS = {LSTM: keras.layers.LSTM, GRU: keras.layers.GRU, SimpleRNN: keras.layers.SimpleRNN}
LOOPS = {kind.inner_loop for kind in (keras.layers.RNN, *THEIRS.values())}


def _inner_loop(layer: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
    """Stand in the place of a layer's own method, which computes what is not computed here."""
    results = None
    if not (misfit(layer) or backend().misfit(sequences)):
        results = computed(layer, sequences, initial_state, mask, training)
    return type(layer).inner_loop(layer, sequences, initial_state, mask, training) if results is None else results


def accelerate(model: Model) -> Model:
    """Let rnnfast compute the recurrent layers of a model, in place.

    Each layer remains the same object of the same class; only its method `inner_loop` is replaced. Saved models, clones
    and copies are therefore plain Keras models, and can be accelerated again. Keras's own loop runs what the kernels do
    not compute: activations other than the defaults, `recurrent_dropout`, half precision, and masks that are not given
    by lengths.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Its layers LSTM, GRU, SimpleRNN and RNN with one of their cells are accelerated, also inside Bidirectional and
        TimeDistributed. Subclasses with their own `inner_loop` or cell are not.

    Returns
    -------
    keras.Model or keras.layers.Layer
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a layer.
    RuntimeError
        If Keras has another backend than torch.

    Examples
    --------
    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import keras
    >>> import rnnfast.keras
    >>> model = keras.Sequential([keras.layers.LSTM(8), keras.layers.Dense(1)])
    >>> rnnfast.keras.accelerate(model) is model
    True
    """
    layers = _layers_of(model)
    backend()
    for layer in layers:
        if isinstance(layer, keras.layers.RNN) and type(layer).inner_loop in LOOPS and type(layer.cell) in CELLS:
            vars(layer)["inner_loop"] = MethodType(_inner_loop, layer)
    _forget_compiled(model)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: let Keras compute the recurrent layers of a model again, in place.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer

    Returns
    -------
    keras.Model or keras.layers.Layer
        `model`. Layers that were created as rnnfast's become Keras's, too.

    Raises
    ------
    TypeError
        If `model` is not a layer.

    Examples
    --------
    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import keras
    >>> import rnnfast.keras
    >>> type(rnnfast.keras.restore(rnnfast.keras.GRU(4))) is keras.layers.GRU
    True
    """
    for layer in _layers_of(model):
        if getattr(vars(layer).get("inner_loop"), "__func__", None) is _inner_loop:
            del vars(layer)["inner_loop"]
        if type(layer) in THEIRS:
            object.__setattr__(layer, "__class__", THEIRS[type(layer)])
    _forget_compiled(model)
    return model


def _forget_compiled(model: Any) -> None:
    """Have a model compile its steps anew, which hold what its layers computed before."""
    if isinstance(model, keras.Model):
        model.train_function = model.test_function = model.predict_function = None


def _layers_of(model: Any) -> list[Any]:
    """Return a model's layers, itself the first."""
    if not isinstance(model, keras.layers.Layer):
        msg = f"model: expected a keras.Model or keras.layers.Layer, got {type(model).__name__}"
        raise TypeError(msg)
    return list(model._flatten_layers())
