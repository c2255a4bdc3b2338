"""The cells of the oracle: one step of each, forward and backward, written to be read beside the equations.

Sizes are B sequences, I inputs, H hidden units and G gates. One step of a cell takes the input product
``a = W_ih x + b_ih`` [B,G·H] and the previous state, and makes the next state; ``'`` marks the previous step, ``*`` is
elementwise, ``s`` is the logistic sigmoid:

lstm
    [i f g o] = a + W_hh h' + b_hh
    c = s(f) * c' + s(i) * tanh(g)
    h = s(o) * tanh(c)
    Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; with the forget gate of
    Gers, Schmidhuber & Cummins, "Learning to Forget", Neural Computation 12(10), 2000.

lstm_peephole
    i, f, o = s(i + p_i * c'), s(f + p_f * c'), s(o + p_o * c) in place of s(i), s(f), s(o); p = [p_i p_f p_o] [3·H]
    Gers, Schraudolph & Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks", JMLR 3, 2002.

cifg, cifg_peephole
    f = 1 - i, of the gates [i g o]; with peepholes p = [p_i p_o] [2·H]
    Greff et al., "LSTM: A Search Space Odyssey", 2015 (arXiv:1503.04069).

gru
    r = s(a_r + W_hr h' + b_hr)
    z = s(a_z + W_hz h' + b_hz)
    n = tanh(a_n + r * (W_hn h' + b_hn))
    h = (1 - z) * n + z * h'
    The reset gate acts after the recurrent product, which makes the three products one: Cho et al.,
    arXiv:1406.1078v1, 2014; the form of cuDNN and torch.

gru_reset_before
    n = tanh(a_n + W_hn (r * h') + b_hn), the rest as above
    The published form: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", EMNLP 2014 (arXiv:1406.1078v3).

rnn_tanh, rnn_relu
    h = tanh(a + W_hh h' + b_hh), or max(0, .) in place of tanh
    Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

rnn_tanh_leaky, rnn_relu_leaky
    h = (1 - leak) * h' + leak * f, where f is the h of rnn_tanh or rnn_relu; leak [H]
    Jaeger, "The Echo State Approach to Analysing and Training Recurrent Neural Networks", GMD Report 148, 2001.

slstm, slstm_exp
    [a_i a_f a_z a_o] = a + W_hh h' + b_hh, where a head's rows of W_hh [G·H,H/heads] meet the h' of its own units
    l = m' + log s(a_f), or m' + a_f
    m = a_i where n' = 0, else max(a_i, l)
    i, f, z, o = exp(a_i - m), min(exp(l - m), F), tanh(a_z), s(a_o)
    c = f * c' + i * z
    n = max(f * n' + i, N)
    h = o * c / n
    N and F, in this order in bounds [2·H], are the least n and the largest f.
    Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024 (arXiv:2405.04517).

With factors m of the candidate, [B,H], an LSTM has ``m * g`` in place of g where c is made, and a GRU ``m * n`` in
place of n where h is; where m is 0, whatever the candidate is counts for nothing.
    Semeniuta, Severyn & Barth, "Recurrent Dropout without Memory Loss", 2016 (arXiv:1603.05118).

lstm_norm, lstm_norm_carried, gru_norm
    v^ = (v - mean(v)) / sqrt(var(v) + eps), over all elements of a row, with var = mean((v - mean(v))^2)
    a = gain_ih * (W_ih x)^ + b_ih, and gain_hh * (W_hh h')^ + b_hh in place of W_hh h' + b_hh; gains [G·H]
    lstm_norm: h = s(o) * tanh(gain_c * c^ + b_c), with gain_c, b_c [H]; the rest as in lstm
    lstm_norm_carried: c = gain_c * (s(f) * c' + s(i) * tanh(g))^ + b_c; the rest as in lstm
    gru_norm: the rest as in gru
    Ba, Kiros, Hinton, "Layer Normalization", 2016 (arXiv:1607.06450), with c within the tanh; carried, c is as in
    TensorFlow Addons' LayerNormLSTMCell and in the LayerNormLSTMCell of torch's benchmark of custom LSTMs.

Each backward step is its forward step read from bottom to top. A gate that is held at a value has that value
forward, and its pre-activation the gradient 0: the same substitution, by name, in both. A new cell is one pair of
functions and one row in `CELLS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bfloat16 import factor

Array: TypeAlias = NDArray[np.float64]
State: TypeAlias = tuple[Array, ...]  # a part for each of the cell's states, h first; each [B,H]
Kept: TypeAlias = tuple[Any, ...]  # arrays: what a step keeps for its backward: its previous state, its gates, and more
Hold: TypeAlias = Callable[[str, Array], Array]  # returns what it is given for a gate, or what that is held at
Forward: TypeAlias = tuple[State, Kept]
Backward: TypeAlias = tuple[Array, State, State, tuple[Array, ...]]  # da, all of dstate, the previous one, (dw, db, ..)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, as it should
        return 1 / (1 + np.exp(-x))


def linear(v: Array, w: Array, b: Array | None) -> Array:
    """Return v w^T + b, [B,N], for v [B,K], w [N,K] and b [N] or None."""
    u: Array = factor(v) @ factor(w).T
    return u if b is None else u + b


def rows_of_gates(w: Array, gates: int) -> list[Array]:
    """Return the rows of each gate of w [G·H,K], [H,K] each."""
    H = len(w) // gates
    return [w[gate * H : (gate + 1) * H] for gate in range(gates)]


def linear_backward(du: Array, v: Array, w: Array) -> tuple[Array, Array, Array]:
    """Return dv [B,K], dw [N,K], db [N] for the gradient du [B,N] of ``linear(v, w, b)``."""
    du = factor(du)
    return du @ factor(w), du.T @ factor(v), du.sum(axis=0)


def norm(v: Array, gain: Array, b: Array | None, eps: float) -> Kept:
    """Return gain * v^ + b, [B,N], for v [B,N], gain [N] and b [N] or None; then v^ and 1 / sqrt(var + eps) [B,1]."""
    centred = v - v.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=1, keepdims=True)  # rounding of the mean, which 1 / sqrt(eps) would enlarge
    scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    v_hat = scale * centred
    return gain * v_hat if b is None else gain * v_hat + b, v_hat, scale


def norm_backward(du: Array, gain: Array, v_hat: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Return dv [B,N], db [N], dgain [N] for the gradient du [B,N] of what `norm` makes."""
    dv_hat = du * gain
    dv = dv_hat - dv_hat.mean(axis=1, keepdims=True) - v_hat * (dv_hat * v_hat).mean(axis=1, keepdims=True)
    return scale * dv, du.sum(axis=0), (du * v_hat).sum(axis=0)


def product(v: Array, w: Array, b: Array | None, gain: Array | None, eps: float) -> Kept:
    """Return v w^T + b or, with a gain, gain * (v w^T)^ + b and what `norm` returns beside it."""
    return (linear(v, w, b),) if gain is None else norm(linear(v, w, None), gain, b, eps)


def product_backward(du: Array, v: Array, w: Array, gain: Array | None, kept: Kept) -> tuple[Array, ...]:
    """Return dv, dw, db and, with a gain, dgain for the gradient du of what `product` makes."""
    if gain is None:
        return linear_backward(du, v, w)
    du, *more = norm_backward(du, gain, *kept)
    dv, dw, _ = linear_backward(du, v, w)
    return dv, dw, *more


def hold(held: Mapping[str, ArrayLike], gate: str, value: Array) -> Array:
    """Return the value, or in its place that at which the gate is held."""
    return np.full_like(value, held[gate]) if gate in held else value


def dropped(m: Array | None, candidate: Array) -> Array:
    """Return the candidate times its factors, or as it is without."""
    return candidate if m is None else np.where(m == 0, 0, m * candidate)


# One step of each cell, forward and backward: a and da are [B,G·H], states [B,H]; w and b are w_hh and b_hh, m what the
# candidate is multiplied by, if anything. What else a cell has comes last, and so do its gradients. "All of dstate" has
# in dc also what reaches c by way of h.


def split(peephole: Array | None, n: int) -> tuple[Array | None, ...]:
    """Return the vectors [H] of peepholes, None for each where a cell has none."""
    return (None,) * n if peephole is None else tuple(np.split(peephole, n))


def seen(p: Array | None, c: Array) -> Array | float:
    """Return what a gate sees of c through its peephole, and c of the gate's gradient."""
    return 0.0 if p is None else p * c


def lstm(
    a: Array, state: State, w: Array, b: Array | None, hold: Hold, peephole: Array | None = None, *, m: Any = None
) -> Forward:
    """Make h, c from h', c'."""
    h, c = state
    p_i, p_f, p_o = split(peephole, 3)
    i, f, g, o = np.split(a + linear(h, w, b), 4, axis=1)
    i, f, g = hold("i", sigmoid(i + seen(p_i, c))), hold("f", sigmoid(f + seen(p_f, c))), hold("g", np.tanh(g))
    c_next = f * c + i * dropped(m, g)
    o = hold("o", sigmoid(o + seen(p_o, c_next)))
    tanh_c = np.tanh(c_next)
    return (o * tanh_c, c_next), (h, c, i, f, g, o, c_next, tanh_c)


def lstm_backward(
    dstate: State, kept: Kept, w: Array, hold: Hold, peephole: Array | None = None, *, m: Any = None
) -> Backward:
    """Make dh', dc' from dh, dc."""
    dh, dc = dstate
    h, c, i, f, g, o, c_next, tanh_c = kept
    p_i, p_f, p_o = split(peephole, 3)
    da_o = hold("o", dh * tanh_c * o * (1 - o))
    dc = dc + dh * o * (1 - tanh_c**2) + seen(p_o, da_o)
    di, df, dg = dc * dropped(m, g), dc * c, dropped(m, dc * i)
    da_i, da_f, da_g = hold("i", di * i * (1 - i)), hold("f", df * f * (1 - f)), hold("g", dg * (1 - g**2))
    da = np.hstack([da_i, da_f, da_g, da_o])
    dh_u, dw, db = linear_backward(da, h, w)
    dp = () if peephole is None else (np.hstack([da_i * c, da_f * c, da_o * c_next]).sum(axis=0),)
    return da, (dh, dc), (dh_u, dc * f + seen(p_i, da_i) + seen(p_f, da_f)), (dw, db, *dp)


def cifg(
    a: Array, state: State, w: Array, b: Array | None, hold: Hold, peephole: Array | None = None, *, m: Any = None
) -> Forward:
    """Make h, c from h', c', with coupled gates."""
    h, c = state
    p_i, p_o = split(peephole, 2)
    i, g, o = np.split(a + linear(h, w, b), 3, axis=1)
    i, g = hold("i", sigmoid(i + seen(p_i, c))), hold("g", np.tanh(g))
    c_next = (1 - i) * c + i * dropped(m, g)
    o = hold("o", sigmoid(o + seen(p_o, c_next)))
    tanh_c = np.tanh(c_next)
    return (o * tanh_c, c_next), (h, c, i, g, o, c_next, tanh_c)


def cifg_backward(
    dstate: State, kept: Kept, w: Array, hold: Hold, peephole: Array | None = None, *, m: Any = None
) -> Backward:
    """Make dh', dc' from dh, dc."""
    dh, dc = dstate
    h, c, i, g, o, c_next, tanh_c = kept
    p_i, p_o = split(peephole, 2)
    da_o = hold("o", dh * tanh_c * o * (1 - o))
    dc = dc + dh * o * (1 - tanh_c**2) + seen(p_o, da_o)
    da_i, da_g = hold("i", dc * (dropped(m, g) - c) * i * (1 - i)), hold("g", dropped(m, dc * i) * (1 - g**2))
    da = np.hstack([da_i, da_g, da_o])
    dh_u, dw, db = linear_backward(da, h, w)
    dp = () if peephole is None else (np.hstack([da_i * c, da_o * c_next]).sum(axis=0),)
    return da, (dh, dc), (dh_u, dc * (1 - i) + seen(p_i, da_i)), (dw, db, *dp)


def lstm_norm(
    carried: bool,
    a: Array,
    state: State,
    w: Array,
    b: Array | None,
    hold: Hold,
    gain_hh: Array,
    gain_c: Array,
    b_c: Array | None,
    *,
    eps: float,
) -> Forward:
    """Make h, c from h', c', with normalised products and with c normalised for h alone, or carried so."""
    h, c = state
    u, *kept_u = product(h, w, b, gain_hh, eps)
    i, f, g, o = np.split(a + u, 4, axis=1)
    i, f, g, o = hold("i", sigmoid(i)), hold("f", sigmoid(f)), hold("g", np.tanh(g)), hold("o", sigmoid(o))
    sum_c = f * c + i * g
    norm_c, *kept_c = norm(sum_c, gain_c, b_c, eps)
    tanh_c = np.tanh(norm_c)
    return (o * tanh_c, norm_c if carried else sum_c), (h, c, i, f, g, o, tanh_c, *kept_u, *kept_c)


def lstm_norm_backward(
    carried: bool, dstate: State, kept: Kept, w: Array, hold: Hold, gain_hh: Array, gain_c: Array, _b_c: Array | None
) -> Backward:
    """Make dh', dc' from dh, dc."""
    dh, dc = dstate
    h, c, i, f, g, o, tanh_c, u_hat, u_scale, c_hat, c_scale = kept
    da_o = hold("o", dh * tanh_c * o * (1 - o))
    dnorm_c = dh * o * (1 - tanh_c**2) + (dc if carried else 0)
    dsum_c, db_c, dgain_c = norm_backward(dnorm_c, gain_c, c_hat, c_scale)
    if not carried:
        dsum_c = dsum_c + dc
    di, df, dg = dsum_c * g, dsum_c * c, dsum_c * i
    da_i, da_f, da_g = hold("i", di * i * (1 - i)), hold("f", df * f * (1 - f)), hold("g", dg * (1 - g**2))
    da = np.hstack([da_i, da_f, da_g, da_o])
    dh_u, *dparameters = product_backward(da, h, w, gain_hh, (u_hat, u_scale))
    return da, (dh, dnorm_c if carried else dsum_c), (dh_u, dsum_c * f), (*dparameters, dgain_c, db_c)


def gru(
    a: Array,
    state: State,
    w: Array,
    b: Array | None,
    hold: Hold,
    gain_hh: Array | None = None,
    *,
    eps: float = 0,
    m: Any = None,
) -> Forward:
    """Make h from h', resetting the recurrent product, which is normalised if it has a gain."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    u, *kept = product(h, w, b, gain_hh, eps)
    u_r, u_z, u_n = np.split(u, 3, axis=1)
    r, z = hold("r", sigmoid(a_r + u_r)), hold("z", sigmoid(a_z + u_z))
    n = hold("n", np.tanh(a_n + r * u_n))
    return ((1 - z) * dropped(m, n) + z * h,), (h, r, z, n, u_n, *kept)


def gru_backward(
    dstate: State, kept: Kept, w: Array, hold: Hold, gain_hh: Array | None = None, *, m: Any = None
) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n, u_n, *kept_u = kept
    da_n = hold("n", dropped(m, dh * (1 - z)) * (1 - n**2))
    da_z = hold("z", dh * (h - dropped(m, n)) * z * (1 - z))
    da_r = hold("r", da_n * u_n * r * (1 - r))
    dh_u, *dparameters = product_backward(np.hstack([da_r, da_z, da_n * r]), h, w, gain_hh, tuple(kept_u))
    return np.hstack([da_r, da_z, da_n]), dstate, (dh * z + dh_u,), tuple(dparameters)


def gru_reset_before(a: Array, state: State, w: Array, b: Array | None, hold: Hold, *, m: Any = None) -> Forward:
    """Make h from h', resetting h' before the recurrent product."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    w_r, w_z, w_n = rows_of_gates(w, 3)
    b_r, b_z, b_n = (None, None, None) if b is None else np.split(b, 3)
    r, z = hold("r", sigmoid(a_r + linear(h, w_r, b_r))), hold("z", sigmoid(a_z + linear(h, w_z, b_z)))
    n = hold("n", np.tanh(a_n + linear(r * h, w_n, b_n)))
    return ((1 - z) * dropped(m, n) + z * h,), (h, r, z, n)


def gru_reset_before_backward(dstate: State, kept: Kept, w: Array, hold: Hold, *, m: Any = None) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n = kept
    w_r, w_z, w_n = rows_of_gates(w, 3)
    da_n = hold("n", dropped(m, dh * (1 - z)) * (1 - n**2))
    drh, dw_n, db_n = linear_backward(da_n, r * h, w_n)
    da_z = hold("z", dh * (h - dropped(m, n)) * z * (1 - z))
    dh_z, dw_z, db_z = linear_backward(da_z, h, w_z)
    da_r = hold("r", drh * h * r * (1 - r))
    dh_r, dw_r, db_r = linear_backward(da_r, h, w_r)
    dh = dh * z + drh * r + dh_z + dh_r
    dw, db = np.vstack([dw_r, dw_z, dw_n]), np.hstack([db_r, db_z, db_n])
    return np.hstack([da_r, da_z, da_n]), dstate, (dh,), (dw, db)


def elman(f: Callable[[Array], Array], a: Array, state: State, w: Array, b: Array | None, _: Hold) -> Forward:
    """Make h from h', with the activation f."""
    (h,) = state
    h_next = f(a + linear(h, w, b))
    return (h_next,), (h, h_next)


def elman_backward(df: Callable[[Array, Array], Array], dstate: State, kept: Kept, w: Array, _: Hold) -> Backward:
    """Make dh' from dh, where df(dh, h) is dh through the activation."""
    (dh,) = dstate
    h, h_next = kept
    da = df(dh, h_next)
    dh, dw, db = linear_backward(da, h, w)
    return da, dstate, (dh,), (dw, db)


def leaky(
    f_of: Callable[[Array], Array], a: Array, state: State, w: Array, b: Array | None, _: Hold, leak: Array
) -> Forward:
    """Make h from h', with the activation f_of."""
    (h,) = state
    f = f_of(a + linear(h, w, b))
    return ((1 - leak) * h + leak * f,), (h, f)


def leaky_backward(
    df: Callable[[Array, Array], Array], dstate: State, kept: Kept, w: Array, _: Hold, leak: Array
) -> Backward:
    """Make dh' from dh, where df(df, f) is a gradient through the activation."""
    (dh,) = dstate
    h, f = kept
    da = df(dh * leak, f)
    dh_u, dw, db = linear_backward(da, h, w)
    return da, dstate, (dh * (1 - leak) + dh_u,), (dw, db, (dh * (f - h)).sum(axis=0))


def dense(w: Array) -> Array:
    """Return w_hh [4·H,H/heads] of units in heads as [4·H,H], with zeros between the heads."""
    H, size = len(w) // 4, w.shape[1]
    full = np.zeros((4, H // size, size, H // size, size))
    for head, rows in enumerate(np.moveaxis(w.reshape(4, H // size, size, size), 1, 0)):
        full[:, head, :, head] = rows
    return full.reshape(4 * H, H)


def of_heads(w: Array, size: int) -> Array:
    """Return of w [4·H,H] what `dense` has from w_hh."""
    heads = len(w) // 4 // size
    blocks = w.reshape(4, heads, size, heads, size)
    return np.stack([blocks[:, head, :, head] for head in range(heads)], axis=1).reshape(-1, size)


def log_sigmoid(x: Array) -> Array:
    """Return log(1 / (1 + exp(-x))), elementwise."""
    return -np.logaddexp(0, -x)


def slstm(
    log_f: Callable[[Array], Array], a: Array, state: State, w: Array, b: Array | None, hold: Hold, bounds: Array
) -> Forward:
    """Make h, c, n, m from h', c', n', m', where log_f is the logarithm of the forget gate before it is scaled."""
    h, c, n, m = state
    least_n, most_f = np.split(bounds, 2)
    a_i, a_f, a_z, a_o = np.split(a + linear(h, dense(w), b), 4, axis=1)
    l = m + log_f(a_f)
    is_i = (n == 0) | (a_i > l)
    m_next = np.where(is_i, a_i, l)
    i, f = np.exp(a_i - m_next), np.minimum(np.exp(l - m_next), most_f)
    z, o = hold("z", np.tanh(a_z)), hold("o", sigmoid(a_o))
    c_next, sum_n = f * c + i * z, f * n + i
    n_next = np.maximum(sum_n, least_n)
    is_free = np.exp(l - m_next) < most_f, sum_n > least_n
    return (o * c_next / n_next, c_next, n_next, m_next), (h, c, n, m, i, f, z, o, c_next, n_next, a_f, is_i, *is_free)


def slstm_backward(
    dlog_f: Callable[[Array], Array], dstate: State, kept: Kept, w: Array, hold: Hold, _bounds: Array
) -> Backward:
    """Make dh', dc', dn', dm' from dh, dc, dn, dm, where dlog_f is the derivative of log_f."""
    dh, dc, dn, dm = dstate
    h, c, n, _, i, f, z, o, c_next, n_next, a_f, is_i, f_is_free, n_is_free = kept
    da_o = hold("o", dh * c_next / n_next * o * (1 - o))
    dc, dn = dc + dh * o / n_next, dn - dh * o * c_next / n_next**2
    dsum_n = np.where(n_is_free, dn, 0)
    da_z = hold("z", dc * i * (1 - z**2))
    df = dc * c + dsum_n * n
    by_i, by_f = (dc * z + dsum_n) * i, np.where(f_is_free, df * f, 0)  # of a_i - m and of l - m
    da_i, dl = np.where(is_i, dm - by_f, by_i), np.where(is_i, by_f, dm - by_i)  # m is a_i or l, and passes dm on
    da = np.hstack([da_i, dl * dlog_f(a_f), da_z, da_o])
    dh_u, dw, db = linear_backward(da, h, dense(w))
    dbounds = np.hstack([dn - dsum_n, np.where(f_is_free, 0, df)]).sum(axis=0)
    return da, (dh, dc, dn, dm), (dh_u, dc * f, dsum_n * f, dl), (of_heads(dw, w.shape[1]), db, dbounds)


def tanh_backward(dh: Array, h: Array) -> Array:
    """Return the gradient of a where h = tanh(a)."""
    return dh * (1 - h**2)


def relu(a: Array) -> Array:
    """Return max(0, a), elementwise."""
    return np.maximum(a, 0)


def relu_backward(dh: Array, h: Array) -> Array:
    """Return the gradient of a where h = max(0, a): at a = 0 it is 0, as in torch."""
    return np.where(h <= 0, 0, dh)


class Cell(NamedTuple):
    """One row of the table of cells. The oracle knows nothing of the kernels, so it says itself what a cell has."""

    states: tuple[str, ...]  # h first, which the cell puts out
    gates: str  # a letter each, as they are kept; Elman has none
    forward: Callable[..., Forward]
    backward: Callable[..., Backward]
    parameters: Mapping[str, int] = MappingProxyType({})  # what else it has, and how many vectors [H] each consists of
    normalized: bool = False  # its products: gain_ih, the first of its parameters, is for what makes a
    bounded: bool = True  # |h| stays at most 1
    adds_products: bool = True  # a and W_hh h' + b_hh meet as their sum alone


OF_LSTM_NORM = {"gain_ih": 4, "gain_hh": 4, "gain_c": 1, "b_c": 1}

CELLS = {
    "lstm": Cell(("h", "c"), "ifgo", lstm, lstm_backward),
    "lstm_peephole": Cell(("h", "c"), "ifgo", lstm, lstm_backward, {"peephole": 3}),
    "cifg": Cell(("h", "c"), "igo", cifg, cifg_backward),
    "cifg_peephole": Cell(("h", "c"), "igo", cifg, cifg_backward, {"peephole": 2}),
    "lstm_norm": Cell(
        ("h", "c"), "ifgo", partial(lstm_norm, False), partial(lstm_norm_backward, False), OF_LSTM_NORM, normalized=True
    ),
    "lstm_norm_carried": Cell(
        ("h", "c"), "ifgo", partial(lstm_norm, True), partial(lstm_norm_backward, True), OF_LSTM_NORM, normalized=True
    ),
    "gru": Cell(("h",), "rzn", gru, gru_backward, adds_products=False),
    "gru_norm": Cell(
        ("h",), "rzn", gru, gru_backward, {"gain_ih": 3, "gain_hh": 3}, normalized=True, adds_products=False
    ),
    "gru_reset_before": Cell(("h",), "rzn", gru_reset_before, gru_reset_before_backward),
    "rnn_tanh": Cell(("h",), "", partial(elman, np.tanh), partial(elman_backward, tanh_backward)),
    "rnn_relu": Cell(("h",), "", partial(elman, relu), partial(elman_backward, relu_backward), bounded=False),
    "rnn_tanh_leaky": Cell(("h",), "", partial(leaky, np.tanh), partial(leaky_backward, tanh_backward), {"leak": 1}),
    "rnn_relu_leaky": Cell(
        ("h",), "", partial(leaky, relu), partial(leaky_backward, relu_backward), {"leak": 1}, bounded=False
    ),
    "slstm": Cell(
        ("h", "c", "n", "m"),
        "ifzo",
        partial(slstm, log_sigmoid),
        partial(slstm_backward, lambda a_f: sigmoid(-a_f)),
        {"bounds": 2},
        bounded=False,
    ),
    "slstm_exp": Cell(
        ("h", "c", "n", "m"), "ifzo", partial(slstm, np.copy), partial(slstm_backward, np.ones_like), {"bounds": 2}
    ),
}
