"""Conversion of layers from and to Keras and torch.

All converters copy the weights. Options that only affect training, such as Keras's dropout and regularizers, are not
converted. Nor are options that rnnfast leaves to each call: whether to return whole sequences or last outputs, and the
state, which a `stateful` Keras layer keeps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._base.arrays import Array, quiet
from ._base.module import arguments_of, kind_of, parameters_of
from ._base.names import reordered
from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN

__all__ = ["from_keras", "from_torch", "to_keras_weights", "to_torch"]

# Where Keras's order of the gates is not ours: it has those of the GRU as z, r, h. To exchange two is its own inverse.
ORDER = {GRU: (1, 0, 2)}

# What a Keras layer is here, and the options without which it would compute something else
KERAS: dict[str, tuple[type[LSTM | GRU | RNN], dict[str, tuple[Any, ...]]]] = {
    "LSTM": (LSTM, {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}),
    "GRU": (GRU, {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}),
    "SimpleRNN": (RNN, {"activation": ("tanh", "relu")}),
}
# What the layer's own options are in Keras's configuration
OWN = {LSTM: {}, GRU: {"reset_after": "reset_after"}, RNN: {"nonlinearity": "activation"}}

# The options that neither Keras nor torch has, where they change nothing
PLAIN: dict[str, Any] = {
    "learn_initial_state": False,
    "peephole": False,
    "coupled_gates": False,
    "leak": 1.0,
    "zoneout": 0.0,
    "layer_norm": None,
}

# Those that do not matter after training
IN_TRAINING = (
    "weight_dropout",
    "recurrent_dropout",
    "recurrent_dropout_per_gate",
    "candidate_dropout",
    "candidate_dropout_per_sequence",
)

TORCH = {kind.__name__: kind for kind in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)}


class _KerasLayer(NamedTuple):
    """What is read of one Keras layer."""

    kind: type[LSTM | GRU | RNN]
    options: dict[str, Any]
    weights: list[tuple[Array, ...]]  # of each direction, w_ih, w_hh, b_ih, b_hh as far as there are


def from_keras(layer: Any) -> LSTM | GRU | RNN:
    """Convert a built Keras layer, or several to a stack.

    Parameters
    ----------
    layer : keras.layers.LSTM, GRU or SimpleRNN, or Bidirectional of one, or sequence of such
        They must have the default activations, or "relu" for SimpleRNN. Bidirectional must concatenate. The layers of a
        sequence must have the same class, size and options, and each reads the output of the one before; the last one
        need not return sequences.

    Returns
    -------
    LSTM, GRU or RNN
        It has `batch_first=True`, like Keras, and the dtype of the weights. Where Keras has a single bias, it becomes
        b_ih, and b_hh is zero.

    Raises
    ------
    TypeError, ValueError
        If a layer is of another class, is not built, or has options that would change the result: other activations,
        `go_backwards`, another `merge_mode`. The message names the layer, what was expected and what was given.

    See Also
    --------
    to_keras_weights : The inverse.

    Examples
    --------
    >>> import keras  # doctest: +SKIP
    >>> layer = keras.layers.GRU(4)  # doctest: +SKIP
    >>> layer.build((None, None, 3))  # doctest: +SKIP
    >>> from_keras(layer)  # doctest: +SKIP
    GRU(3, 4, batch_first=True)
    """
    given = list(layer) if isinstance(layer, list | tuple) else [layer]
    if not given:
        msg = "layer: expected at least one layer, got none"
        raise ValueError(msg)
    stack = [_read_keras(part, inner=k + 1 < len(given)) for k, part in enumerate(given)]
    kind, options, [[w_ih, *_], *_] = stack[0]
    for part in stack[1:]:
        if (part.kind, part.options) != (kind, options):
            expected, got = ({"class": other.kind.__name__, **other.options} for other in (stack[0], part))
            msg = f"layer: expected layers that are alike, {expected}, got {got}"
            raise ValueError(msg)
    made = kind(w_ih.shape[1], num_layers=len(stack), batch_first=True, dtype=w_ih.dtype, **options)
    state_dict: dict[str, Array] = {}
    for k, part in enumerate(stack):
        for names, arrays in zip(made.names_of(k), part.weights, strict=True):
            state_dict |= zip(names, arrays, strict=False)
    made.load_state_dict(state_dict)
    return made


@quiet
def to_keras_weights(layer: LSTM | GRU | RNN) -> list[Array]:
    """Return the weights of the equivalent Keras layer, for its `set_weights`.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        It must have one layer, L = 1, and none of the options that Keras lacks: `learn_initial_state`, `peephole`,
        `coupled_gates`, `leak`, `zoneout`, `layer_norm`, `proj_size`. Dropout of all kinds only affects training and is
        not converted.

    Returns
    -------
    list of ndarrays
        Kernel [I,G·H], recurrent kernel [H,G·H] and bias [G·H], b_ih + b_hh; for the GRU that resets after the product,
        bias [2,3·H]. For a bidirectional layer, those of both directions, as `keras.layers.Bidirectional` expects them.

    Raises
    ------
    TypeError, ValueError
        If Keras has no such layer.

    Examples
    --------
    >>> import rnnfast
    >>> [a.shape for a in to_keras_weights(rnnfast.GRU(3, 4))]
    [(3, 12), (4, 12), (2, 12)]
    """
    if not isinstance(layer, LSTM | GRU | RNN):
        msg = f"layer: expected LSTM, GRU or RNN, got {type(layer).__name__}"
        raise TypeError(msg)
    _check_plain(layer, "Keras", {**PLAIN, "num_layers": 1, "proj_size": 0})
    kind = kind_of(layer)
    two_biases = getattr(layer, "reset_after", False)  # in one array
    weights: list[Array] = []
    for w_ih, w_hh, b_ih, b_hh in layer.of_layer(0):
        weights += [_in_order(w, kind).T for w in (w_ih, w_hh) if w is not None]
        if b_ih is not None and b_hh is not None:
            bias = np.stack((b_ih, b_hh), axis=-1) if two_biases else b_ih + b_hh
            weights.append(_in_order(bias, kind).T)
    return weights


def from_torch(module: Any) -> LSTM | GRU | RNN | LSTMCell | GRUCell | RNNCell:
    """Convert a torch module to a layer or cell.

    Parameters
    ----------
    module : torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        Subclasses that do not override `forward`, such as those in `rnnfast.torch`, are accepted as well. Parameters
        must be float32 or float64, on the CPU.

    Returns
    -------
    LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        It has the options, the dtype and the weights of the module.

    Raises
    ------
    TypeError, ValueError
        If it is another module, or has parameters of another dtype or on another device.

    See Also
    --------
    to_torch : The inverse.

    Examples
    --------
    >>> import torch  # doctest: +SKIP
    >>> from_torch(torch.nn.LSTM(3, 4, num_layers=2))  # doctest: +SKIP
    LSTM(3, 4, num_layers=2)
    """
    bases: list[Any] = [
        base for base in type(module).__mro__ if base.__module__ in ("torch.nn.modules.rnn", "rnnfast.torch")
    ]
    kind = next((TORCH[base.__name__] for base in bases if base.__name__ in TORCH), None)
    if kind is None or "forward" in vars(module) or type(module).forward is not bases[0].forward:
        msg = f"module: expected {', '.join(TORCH)} of torch.nn with its own forward, got {type(module).__name__}"
        raise TypeError(msg)
    first = next(module.parameters())
    if first.device.type != "cpu":
        msg = f"module: expected parameters on the CPU, where module.cpu() moves them, got {first.device}"
        raise ValueError(msg)
    shared = [name for name, p in parameters_of(kind).items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    arguments = {name: getattr(module, name) for name in (*shared, *(["proj_size"] if kind is LSTM else []))}
    made: LSTM | GRU | RNN | LSTMCell | GRUCell | RNNCell
    made = kind(**arguments, dtype=str(first.dtype).removeprefix("torch."))
    made.load_state_dict({name: getattr(module, name).detach() for name in made.parameters})
    return made


def to_torch(layer: LSTM | GRU | RNN | LSTMCell | GRUCell | RNNCell) -> Any:
    """Convert a layer or cell to the equivalent torch module.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        It must have none of the options that torch lacks: `learn_initial_state`, `peephole`, `coupled_gates`, `leak`,
        `zoneout`, `layer_norm`, and `reset_after=False` for a GRU. `weight_dropout`, `recurrent_dropout` and
        `candidate_dropout`, which only affect training, are not converted.

    Returns
    -------
    torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        It has the options, the dtype and the weights of the layer, on the CPU. No numbers are drawn from torch's
        generator.

    Raises
    ------
    ImportError
        If torch is not installed.
    TypeError, ValueError
        If torch has no such module.

    See Also
    --------
    from_torch : The inverse.

    Examples
    --------
    >>> import rnnfast
    >>> to_torch(rnnfast.GRU(3, 4))  # doctest: +SKIP
    GRU(3, 4)
    """
    if not isinstance(layer, tuple(TORCH.values())):
        msg = f"layer: expected {', '.join(TORCH)}, got {type(layer).__name__}"
        raise TypeError(msg)
    arguments = arguments_of(layer)
    _check_plain(layer, "torch", {**PLAIN, "reset_after": True})
    import torch

    own = {*PLAIN, "reset_after", "layer_norm_eps", "precision", *IN_TRAINING}
    arguments = {name: a for name, a in arguments.items() if name not in own}
    dtype = getattr(torch, arguments.pop("dtype"))
    module = getattr(torch.nn, kind_of(layer).__name__)(**arguments, dtype=dtype, device="meta").to_empty(device="cpu")
    module.load_state_dict({name: torch.from_numpy(p) for name, p in layer.parameters.items()})
    return module


def _check_plain(layer: Any, framework: str, options: Mapping[str, Any]) -> None:
    """Refuse a layer that has other values of some options, which the framework lacks."""
    arguments = arguments_of(layer)
    for name, value in options.items():
        given = arguments.get(name, value)
        if np.ndim(given) or given != value:
            msg = f"layer: expected {name}={value!r}, as {framework} has it, got {layer!r}"
            raise ValueError(msg)


def _read_keras(layer: Any, inner: bool) -> _KerasLayer:
    """Read a Keras layer; `inner`: the next one of a stack reads what it returns."""
    directions = [layer]
    if _keras_class(layer) == "Bidirectional":
        _check_options({"merge_mode": layer.merge_mode}, {"merge_mode": ("concat",)})
        directions = [layer.forward_layer, layer.backward_layer]
    read = [_read_direction(part, inner, backwards) for part, backwards in zip(directions, (False, True), strict=False)]
    kind, options, _ = read[0]
    if any((part.kind, part.options) != (kind, options) for part in read):
        msg = f"layer: expected directions that are alike, got {[part.options for part in read]}"
        raise ValueError(msg)
    weights = [arrays for part in read for arrays in part.weights]
    return _KerasLayer(kind, {**options, "bidirectional": len(read) == 2}, weights)


def _read_direction(layer: Any, inner: bool, backwards: bool) -> _KerasLayer:
    name = _keras_class(layer)
    if name not in KERAS:
        msg = f"layer: expected {', '.join(KERAS)} or Bidirectional of Keras, got {type(layer).__name__}"
        raise TypeError(msg)
    kind, allowed = KERAS[name]
    config = layer.get_config()
    _check_options(config, {**allowed, "go_backwards": (backwards,)})
    if inner:
        _check_options(config, {"return_sequences": (True,)})
    options = {"hidden_size": config["units"], "bias": config["use_bias"]}
    options |= {ours: config[theirs] for ours, theirs in OWN[kind].items()}
    count = 2 + config["use_bias"]
    weights = layer.get_weights()[:count]
    if len(weights) != count:
        msg = f"layer: expected a built {name}, got one that has no weights yet"
        raise ValueError(msg)
    w_ih, w_hh, *biases = (_in_order(a.T, kind) for a in weights)
    if biases:
        [b] = biases
        biases = [*b.T] if b.ndim == 2 else [b, np.zeros_like(b)]
    return _KerasLayer(kind, options, [(w_ih, w_hh, *biases)])


def _in_order(a: Array, kind: type) -> Array:
    """Return a copy of weights [G·H,..] of ours in the order of Keras, or the reverse."""
    return reordered(a, ORDER[kind]) if kind in ORDER else a.copy()


def _keras_class(layer: Any) -> str:
    """Return the name of a class of Keras, else nothing."""
    kind = type(layer)
    return kind.__name__ if kind.__module__.partition(".")[0] in ("keras", "tf_keras") else ""


def _check_options(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for option, values in allowed.items():
        if config[option] not in values:
            msg = f"layer: expected {option} {' or '.join(map(repr, values))}, got {config[option]!r}"
            raise ValueError(msg)
