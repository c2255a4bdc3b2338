"""LSTM, GRU and Elman networks as functions of dictionaries of parameters: layers, directions, what is checked."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from .. import _core
from ._kernels import Array, run

Parameters: TypeAlias = Mapping[str, Array]

_PREFIXES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NAME = re.compile(rf"({'|'.join(_PREFIXES)})_l(0|[1-9]\d*)(_reverse)?")


def lstm(
    parameters: Parameters,
    x: Array,
    state: tuple[Array, Array] | None = None,
    *,
    reverse: bool = False,
    lengths: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run an LSTM, of one layer or several, over whole sequences.

    The equations are those of ``"lstm"`` in `rnnfast.functional`, the parameters those of `torch.nn.LSTM`.

    Parameters
    ----------
    parameters : mapping of str to array
        ``weight_ih_l0`` [4·H,I], ``weight_hh_l0`` [4·H,H] and optionally ``bias_ih_l0`` and ``bias_hh_l0`` [4·H], with
        gates in the order i, f, g, o. The names for further layers end in ``_l1`` and so on. If there are also names
        with the suffix ``_reverse``, a second direction runs backwards in time, and the next layer reads both, D·H.
    x : array [T,B,I]
        float32 or float64, the same for all arrays of a call.
    state : (h, c), arrays [L·D,B,H], optional
        The initial state, zero by default.
    reverse : bool, optional
        Run the single direction of each layer backwards in time.
    lengths : array [B] of ints, optional
        The length of each sequence. Later steps do not change the state, their y is zero, and their x is ignored. The
        backward direction of each sequence starts at its end. Lengths are clipped to 0 to T.
    resets : bool array [T,B], optional
        Where an episode begins: the state before such a step is the initial state, and no gradient flows back across
        it. The backward direction of an episode starts before the next reset. Numbers 0 and 1 are also accepted.

    Returns
    -------
    y : array [T,B,D·H]
    state : (h, c), arrays [L·D,B,H]

    Raises
    ------
    TypeError, ValueError
        If names, dtypes or shapes are invalid. The message names the argument.
    NotImplementedError
        If arrays are not on the CPU, or a second derivative is requested.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> parameters = {"weight_ih_l0": jnp.ones((8, 3)), "weight_hh_l0": jnp.ones((8, 2))}
    >>> y, (h, c) = lstm(parameters, jnp.ones((5, 4, 3)))
    >>> y.shape, h.shape
    ((5, 4, 2), (1, 4, 2))
    >>> gradients = jax.grad(lambda p: lstm(p, jnp.ones((5, 4, 3)))[0].sum())(parameters)
    >>> gradients["weight_hh_l0"].shape
    (8, 2)
    """
    y, (h, c) = _run("lstm", parameters, x, state, reverse, lengths, resets)
    return y, (h, c)


def gru(
    parameters: Parameters,
    x: Array,
    state: Array | None = None,
    *,
    reverse: bool = False,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_after: bool = True,
) -> tuple[Array, Array]:
    """Run a GRU, of one layer or several, over whole sequences.

    The equations are those of ``"gru"`` in `rnnfast.functional`, or of ``"gru_reset_before"``.

    Parameters
    ----------
    parameters : mapping of str to array
        As of `lstm`, with 3·H rows in the order r, z, n.
    x : array [T,B,I]
    state : array [L·D,B,H], optional
    reverse : bool, optional
    lengths : array [B] of ints, optional
    resets : bool array [T,B], optional
        As of `lstm`.
    reset_after : bool, optional
        Whether the reset gate acts after the recurrent product, as in torch, or before it.

    Returns
    -------
    y : array [T,B,D·H]
    h : array [L·D,B,H]

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `lstm` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> parameters = {"weight_ih_l0": jnp.ones((6, 3)), "weight_hh_l0": jnp.ones((6, 2))}
    >>> y, h = gru(parameters, jnp.ones((5, 4, 3)))
    >>> y.shape, h.shape
    ((5, 4, 2), (1, 4, 2))
    """
    y, (h,) = _run("gru" if reset_after else "gru_reset_before", parameters, x, state, reverse, lengths, resets)
    return y, h


def rnn(
    parameters: Parameters,
    x: Array,
    state: Array | None = None,
    *,
    reverse: bool = False,
    lengths: Array | None = None,
    resets: Array | None = None,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
) -> tuple[Array, Array]:
    """Run an Elman network, of one layer or several, over whole sequences.

    The equations are those of ``"rnn_tanh"`` or ``"rnn_relu"`` in `rnnfast.functional`.

    Parameters
    ----------
    parameters : mapping of str to array
        As of `lstm`, with H rows.
    x : array [T,B,I]
    state : array [L·D,B,H], optional
    reverse : bool, optional
    lengths : array [B] of ints, optional
    resets : bool array [T,B], optional
        As of `lstm`.
    nonlinearity : {"tanh", "relu"}, optional

    Returns
    -------
    y : array [T,B,D·H]
    h : array [L·D,B,H]

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `lstm` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> parameters = {"weight_ih_l0": jnp.ones((2, 3)), "weight_hh_l0": jnp.ones((2, 2))}
    >>> y, h = rnn(parameters, jnp.ones((5, 4, 3)))
    >>> y.shape, h.shape
    ((5, 4, 2), (1, 4, 2))
    """
    if nonlinearity not in ("tanh", "relu"):
        msg = f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}"
        raise ValueError(msg)
    y, (h,) = _run(f"rnn_{nonlinearity}", parameters, x, state, reverse, lengths, resets)
    return y, h


def _run(
    cell: str,
    parameters: Parameters,
    x: Array,
    state: Any,
    reverse: bool,
    lengths: Array | None,
    resets: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    x = _floating(x, "x")
    if x.ndim != 3:
        msg = f"x: expected shape (T, B, I), got {x.shape}"
        raise ValueError(msg)
    layers = _read(cell, parameters, x)
    D, H = len(layers[0]), layers[0][0][1].shape[1]
    if reverse and D == 2:
        msg = "reverse: expected False, since the parameters have both directions"
        raise ValueError(msg)
    T, B, _ = x.shape
    states = _states(cell, state, (len(layers) * D, B, H), x.dtype)
    mask = None
    if lengths is not None:
        mask = _mask(lengths, T, B)
        x = jnp.where(mask[..., None], x, 0)
    if resets is not None:
        resets = _flags(resets, T, B)
        resets = resets if mask is None else resets & mask  # what follows an end changes nothing
    last: list[tuple[Array, ...]] = []
    for k, directions in enumerate(layers):
        outputs = []
        for d, weights in enumerate(directions):
            start = [s[k * D + d] for s in states]
            y, end = run(cell, x, weights, start, mask=mask, resets=resets, reverse=reverse or d == 1)
            outputs.append(y)
            last.append(end)
        x = outputs[0] if D == 1 else jnp.concatenate(outputs, axis=-1)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)
    return x, tuple(jnp.stack(parts) for parts in zip(*last, strict=True))


def _floating(a: Any, name: str, dtype: Any = None) -> Array:
    """Return an array, of float32 or float64, or of a dtype that others have."""
    try:
        array = jnp.asarray(a)
    except (TypeError, ValueError) as error:
        msg = f"{name}: expected an array, got {type(a).__name__}"
        raise TypeError(msg) from error
    expected = ("float32", "float64") if dtype is None else (str(dtype),)
    if str(array.dtype) not in expected:
        msg = f"{name}: expected {' or '.join(expected)}, got {array.dtype}"
        raise TypeError(msg)
    return array


def _read(cell: str, parameters: Parameters, x: Array) -> list[list[list[Array]]]:
    """Return the checked weights of each direction of each layer."""
    if not isinstance(parameters, Mapping):
        msg = f"parameters: expected a mapping of names to arrays, got {type(parameters).__name__}"
        raise TypeError(msg)
    names = set(parameters)
    L = 0
    while f"weight_ih_l{L}" in names:
        L += 1
    ends = ("", "_reverse") if "weight_ih_l0_reverse" in names else ("",)
    prefixes = _PREFIXES if "bias_ih_l0" in names else _PREFIXES[:2]
    needed = {f"{prefix}_l{k}{end}" for prefix in prefixes for k in range(max(L, 1)) for end in ends}
    if names != needed:
        missing, unexpected = sorted(needed - names), sorted(map(str, names - needed))
        msg = f"parameters: missing keys: {missing}; unexpected keys: {unexpected}"
        raise ValueError(msg)
    G = _core.cells[cell].num_gates
    first = jnp.shape(parameters["weight_hh_l0"])
    H = first[1] if len(first) == 2 else 0
    if H < 1:
        msg = f"weight_hh_l0: expected shape ({G}*H, H), got {first}"
        raise ValueError(msg)

    def weights(k: int, end: str) -> list[Array]:
        shapes = [(G * H, x.shape[2] if k == 0 else len(ends) * H), (G * H, H), (G * H,), (G * H,)]
        arrays = []
        for prefix, shape in zip(prefixes, shapes, strict=False):
            name = f"{prefix}_l{k}{end}"
            array = _floating(parameters[name], name, x.dtype)
            if array.shape != shape:
                msg = f"{name}: expected shape {shape}, got {array.shape}"
                raise ValueError(msg)
            arrays.append(array)
        return arrays

    if x.shape[2] < 1:
        msg = f"x: expected shape (T, B, I) with I at least 1, got {x.shape}"
        raise ValueError(msg)
    return [[weights(k, end) for end in ends] for k in range(L)]


def _states(cell: str, state: Any, shape: tuple[int, ...], dtype: Any) -> list[Array]:
    names = _core.cells[cell].states
    if state is None:
        return [jnp.zeros(shape, dtype)] * len(names)
    parts: Sequence[Any] = [state]
    if len(names) > 1:
        if not isinstance(state, Sequence) or len(state) != len(names):
            msg = f"state: expected a tuple ({', '.join(names)}), got {type(state).__name__}"
            raise TypeError(msg)
        parts = state
    states = []
    for name, part in zip(names, parts, strict=True):
        array = _floating(part, f"state: {name}", dtype)
        if array.shape != shape:
            msg = f"state: expected {name} of shape {shape}, got {array.shape}"
            raise ValueError(msg)
        states.append(array)
    return states


def _mask(lengths: Any, T: int, B: int) -> Array:
    array = jnp.asarray(lengths)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        msg = f"lengths: expected integers, got {array.dtype}"
        raise TypeError(msg)
    if array.shape != (B,):
        msg = f"lengths: expected shape {(B,)}, got {array.shape}"
        raise ValueError(msg)
    return jax.lax.broadcasted_iota(array.dtype, (T, B), 0) < array


def _flags(resets: Any, T: int, B: int) -> Array:
    array = jnp.asarray(resets)
    if array.shape != (T, B):
        msg = f"resets: expected shape {(T, B)}, got {array.shape}"
        raise ValueError(msg)
    return array if array.dtype == bool else array != 0
