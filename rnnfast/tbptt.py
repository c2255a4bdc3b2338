"""Truncated backpropagation through time: training on long sequences by windows that reach back k2 steps.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.
"""

from typing import Any

import numpy as np

from . import _core
from ._layout import layout_of
from ._module import PARAMETERS, size
from ._recurrent import INITIAL, Recurrent, part_of
from .cells import _RecurrentCell
from .functional import Array, State, checked, each_part, split_state

__all__ = ["tbptt_gradient"]


def check_truncation(layer: object, k1: int, k2: int, losses: str) -> tuple[int, int]:
    """Return k1 and k2 if windows of the layer can be made with them."""
    if not isinstance(layer, Recurrent | _RecurrentCell):
        msg = f"layer: expected a recurrent layer or cell, got {type(layer).__name__}"
        raise TypeError(msg)
    if getattr(layer, "bidirectional", False):
        msg = (
            "layer: expected one direction, since the backward direction starts from the end of the sequence, which "
            f"comes after the windows, got {layer!r}"
        )
        raise ValueError(msg)
    if losses not in ("new", "window"):
        msg = f"losses: expected 'new' or 'window', got {losses!r}"
        raise ValueError(msg)
    return size(k1, "k1"), size(k2, "k2")


def as_layer(module: Any) -> Any:
    """Return a cell as a layer that shares its parameters, which end in _l0 there; a layer as it is."""
    if isinstance(module, Recurrent):
        return module
    layer = Recurrent.__new__(Recurrent)
    as_if = {"num_layers": 1, "directions": 1, "batch_first": False, "dropout": 0.0, "learn_initial_state": False}
    parameters = {f"{name}_l0": p for name, p in module.parameters.items()}
    vars(layer).update(vars(module), cell=module.cell, parameters=parameters, **as_if)
    return layer


def tbptt_gradient(
    layer: Any,
    x: object,
    dy: object,
    k1: int,
    k2: int,
    *,
    state: object = None,
    losses: str = "new",
    need_dx: bool = True,
) -> tuple[Array | None, State, dict[str, Array]]:
    r"""Return the sum over all windows of `tbptt` of the truncated gradients, for weights that stay as they are.

    With the windows' ends :math:`e \in E = \{k_1, 2 k_1, \dots, T\}` and their first steps
    :math:`\tau_e = \max(0, e - k_2)`, it is the sum over e of the gradients of

    .. math:: \sum_{t \in S_e} \langle dy_t, y_t \rangle, \quad \text{the state before } \tau_e \text{ a constant,}

    where :math:`S_e` are the steps from :math:`\tau_e` to e that lie behind the end before e ("new"), or all of them
    ("window").

    All windows are one backward pass. Those that go through a step have the same Jacobians there, so the deltas of all
    r = ceil(k2 / k1) of them (at times one more near the end) are the rows of one recurrent product; the gradients of
    the weights and of x follow from their sum. For one layer with I = H that is (r + 3) / 4 of the work of a plain
    backward, where separate windows take r times it. In a stack, what a layer hands to the one below differs from
    window to window too: such an array, [T,r,B,H], is in memory between two layers at a time. Beside it, memory grows
    by r rows for each sequence, not with T.

    Parameters
    ----------
    layer : layer or cell
        Of one direction. Dropout between layers is active, as in `forward`.
    x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence
        The input. An array of integers, without the last axis, holds tokens.
    dy : array like y, [T,B,H]
        The gradient of the top layer's y.
    k1, k2 : int
        Steps from one window's end to that of the next, and steps that a window reaches back.
    state : array [L,B,H] or pair of such, optional
        The initial state, as the layer takes it; [B,H] of a cell, without B for one sequence.
    losses : {"new", "window"}
        Whether dy_t counts in the first window that ends behind t, if it reaches back to t, or in each that goes
        through t.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.

    Returns
    -------
    dx : ndarray like x, or None
        None for tokens.
    dstate0 : ndarray or pair of ndarrays like state
        The gradient of the initial state, of the windows that reach back to it.
    grads : dict of ndarrays
        The gradients of the parameters, by the keys of `state_dict()`. That of a learned initial state is the sum of
        dstate0 over B, and zero if another state was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the layer is bidirectional. The message names it, what was expected and what
        came.
    KeyboardInterrupt
        On Ctrl-C, between chunks of time.

    Notes
    -----
    The sum is that of separate windows to rounding; with k1 = k2 = T it is the plain gradient bit for bit. A bound like
    `clip_dh` does not pass through a sum, so there is none here.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float64")
    >>> rnn.weight_ih_l0 = rnn.weight_hh_l0 = np.ones((1, 1))
    >>> x = dy = np.ones((5, 1))
    >>> dx, _, _ = rnnfast.tbptt_gradient(rnn, x, dy, k1=2, k2=3)  # steps 0 1, (1) 2 3, (2 3) 4
    >>> dx.ravel()
    array([2., 3., 3., 2., 1.])
    """
    k1, k2 = check_truncation(layer, k1, k2, losses)
    stack = as_layer(layer)
    array, layout = layout_of(x, None, stack.input_size, stack.batch_first, embedded=False)
    if layout.packed is not None:
        msg = "x: expected an array, since all windows end at the same steps, got a PackedSequence"
        raise TypeError(msg)
    d: Any = layout.checked(dy, "dy", (stack.hidden_size,), stack.dtype)
    if stack is not layer:
        split_state(layer.cell, state, "state")
        rows = () if layout.unbatched else (layout.B,)
        state = each_part(lambda part: checked(part, "state", (*rows, layer.hidden_size), layer.dtype)[None], state)

    tape = stack.forward(array, state)[2]
    dfirst = stack._new_state(layout)
    made: dict[str, Any] = {}
    for k in reversed(range(stack.num_layers)):
        d, *_, [new] = _core.backward(
            tape.kept[k],
            d,
            need_dx=need_dx or k > 0,
            out=(None, *split_state(stack.cell, stack._of_layer(dfirst, k), "dstate0")),
            windows=(k1, k2, losses == "window", k > 0),
        )
        if d is not None and k and tape.masks:  # d is [T,B,H], or [T,r,B,H] with what does not exist left as it is
            with np.errstate(all="ignore"):
                d *= tape.masks[k - 1].reshape(layout.T, *(1,) * (d.ndim - 3), layout.B, -1)
        made |= zip((name + stack._suffixes(k)[0] for name in PARAMETERS), new, strict=True)
    if tape.call.learned:
        made |= {name: part_of(dfirst, name).sum(axis=1) for name in INITIAL if name in stack.parameters}
    grads = {name: made[name] if name in made else np.zeros_like(p) for name, p in stack.parameters.items()}
    dstate0 = each_part(layout.give_state, dfirst)
    dx = None if d is None else layout.give(d)
    if stack is layer:
        return dx, dstate0, grads
    return dx, each_part(lambda part: part[0], dstate0), {name.removesuffix("_l0"): g for name, g in grads.items()}
