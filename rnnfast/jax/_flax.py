"""Parameters of Flax's cells as those of the functions here, and back.

Flax has one bias where two would be added, and matrices [I,H] of each gate or [I,G·H] of all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ._kernels import Array

_SIDES = ("i", "h")  # what meets x, and what meets h
# The letters behind those, in our order: of an LSTM, a GRU and a simple cell.
_GATES: tuple[tuple[str, ...], ...] = (("i", "f", "g", "o"), ("r", "z", "n"), ("",))
_WHOLE = tuple(f"dense_{side}" for side in _SIDES)  # of all gates together


def from_flax(params: Mapping[str, Any]) -> dict[str, Array]:
    """Convert the parameters of a Flax cell for `lstm`, `gru` and `rnn`.

    It can be called in a function that is compiled and differentiated; gradients are then those of Flax's parameters.

    Parameters
    ----------
    params : mapping
        Of `flax.linen`, LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell: what ``init`` returns, or its "params". Of
        a cell of these names in `flax.nnx`: ``nnx.to_pure_dict(nnx.state(cell, nnx.Param))``. Options that change what
        a cell computes, such as `gate_fn`, `activation_fn` and `residual`, are not among the parameters; the cell must
        have their defaults.

    Returns
    -------
    dict of str to array
        ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0`` and ``bias_hh_l0``. With these, `lstm`, `gru` or `rnn`
        computes the same as the LSTM, GRU or simple cell.

    Raises
    ------
    TypeError, ValueError
        If these are not the parameters of such a cell.

    See Also
    --------
    to_flax : The inverse.

    Examples
    --------
    >>> import flax.linen
    >>> import jax
    >>> import rnnfast.jax
    >>> cell, x = flax.linen.GRUCell(4), jax.numpy.ones((5, 2, 3))
    >>> params = cell.init(jax.random.key(0), jax.numpy.zeros((2, 4)), x[0])
    >>> y, h = rnnfast.jax.gru(rnnfast.jax.from_flax(params), x)
    >>> y.shape
    (5, 2, 4)
    """
    cell = _cell_of(params)
    gates = _gates_of(cell)
    if gates is None:
        kernels = [cell[name]["kernel"] for name in _WHOLE]
        w_ih, w_hh = (jnp.asarray(k).T for k in kernels)
        b_ih, b_hh = (_bias(cell[name]) for name in _WHOLE)
    else:
        w_ih, w_hh = (
            jnp.concatenate([jnp.asarray(cell[_name(side + g, cell)]["kernel"]).T for g in gates]) for side in _SIDES
        )
        b_ih, b_hh = (jnp.concatenate([_bias(cell[_name(side + g, cell)]) for g in gates]) for side in _SIDES)
    return {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}


def to_flax(parameters: Mapping[str, Array], params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the parameters of one layer and direction to those of a Flax cell.

    Parameters
    ----------
    parameters : mapping of str to array
        ``weight_ih_l0``, ``weight_hh_l0`` and optionally ``bias_ih_l0`` and ``bias_hh_l0``.
    params : mapping
        The cell's parameters, as for `from_flax`; only their names and shapes matter.

    Returns
    -------
    dict
        Like `params`.

    Raises
    ------
    TypeError, ValueError
        If shapes do not match, or if the cell lacks a bias that is not zero, such as that for h in the new gate of the
        GRUCell of `flax.nnx`. This can only be checked for concrete arrays: for such cells, do not call it in a
        compiled function.

    See Also
    --------
    from_flax : The inverse.

    Examples
    --------
    >>> import flax.linen
    >>> import jax
    >>> import rnnfast.jax
    >>> cell = flax.linen.SimpleCell(4)
    >>> params = cell.init(jax.random.key(0), jax.numpy.zeros((2, 4)), jax.numpy.ones((2, 3)))
    >>> again = rnnfast.jax.to_flax(rnnfast.jax.from_flax(params), params)
    >>> sorted(again["params"]) == sorted(params["params"])
    True
    """
    cell = _cell_of(params)
    gates = _gates_of(cell)
    matrices = [jnp.asarray(parameters[name]) for name in ("weight_ih_l0", "weight_hh_l0")]
    rows = matrices[0].shape[0]
    biases = [jnp.asarray(parameters.get(name, jnp.zeros(rows, matrices[0].dtype))) for name in _BIASES]
    shapes = [jnp.shape(a) for a in from_flax(cell).values()]
    if [a.shape for a in (*matrices, *biases)] != shapes:
        msg = f"parameters: expected shapes {shapes}, got {[a.shape for a in (*matrices, *biases)]}"
        raise ValueError(msg)
    if gates is None:
        made = {
            name: _like(cell[name], matrix.T, bias)
            for name, matrix, bias in zip(_WHOLE, matrices, _shared(biases, cell, _WHOLE), strict=True)
        }
    else:
        made = {}
        for k, g in enumerate(gates):
            H = rows // len(gates)
            part = slice(k * H, (k + 1) * H)
            names = [_name(side + g, cell) for side in _SIDES]
            shared = _shared([b[part] for b in biases], cell, names)
            for name, matrix, bias in zip(names, matrices, shared, strict=True):
                made[name] = _like(cell[name], matrix[part].T, bias)
    return {"params": made} if "params" in params else made


_BIASES = ("bias_ih_l0", "bias_hh_l0")


def _cell_of(params: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(params, Mapping):
        msg = f"params: expected a mapping, got {type(params).__name__}"
        raise TypeError(msg)
    inner: Mapping[str, Any] = params["params"] if set(params) == {"params"} else params
    return inner


def _gates_of(cell: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the letters of the gates, or None where their matrices are one."""
    names = set(cell)
    if names == set(_WHOLE):
        return None
    for gates in _GATES:
        if names == {_name(side + g, cell) for side in _SIDES for g in gates}:
            return gates
    expected = "LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell"
    msg = f"params: expected those of an {expected}, got {sorted(map(str, cell))}"
    raise ValueError(msg)


def _name(name: str, cell: Mapping[str, Any]) -> str:
    """Return a name as it is, or with what `flax.nnx` has behind those that are words of Python."""
    return f"{name}_" if f"{name}_" in cell else name


def _bias(dense: Mapping[str, Any]) -> Array:
    kernel = jnp.asarray(dense["kernel"])
    return jnp.asarray(dense["bias"]) if "bias" in dense else jnp.zeros(kernel.shape[1], kernel.dtype)


def _shared(biases: Sequence[Array], cell: Mapping[str, Any], names: Sequence[str]) -> list[Array | None]:
    """Return the biases for x and h as a cell has them, which may have only one of the two."""
    has = ["bias" in cell[name] for name in names]
    if all(has):
        return list(biases)
    if not any(has):
        msg = f"params: expected a bias of {' or '.join(names)}, got none"
        raise ValueError(msg)
    other = biases[has.index(False)]
    H = jnp.asarray(cell[names[1]]["kernel"]).shape[0]
    # A GRU's new gate has its part of h apart.
    apart = other[2 * H :] if other.shape[0] == 3 * H else other[:0]
    if apart.size and bool(jnp.any(apart != 0)):
        msg = "bias_hh_l0: expected zeros in the new gate, since the cell has no such bias"
        raise ValueError(msg)
    total = biases[0] + biases[1]
    if apart.size:
        total = total.at[2 * H :].set(biases[0][2 * H :])
    return [total if there else None for there in has]


def _like(dense: Mapping[str, Any], kernel: Array, bias: Array | None) -> dict[str, Array]:
    made = {"kernel": kernel, "bias": bias}
    return {name: made[name] for name in dense}
