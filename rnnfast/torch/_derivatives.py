"""Backward by torch's own operators, where its results need derivatives of their own."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ._kernels import Call, Gradients, each


def _slstm_step(
    log_f: Callable[[Tensor], Tensor], x: Tensor, state: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *more: Tensor
) -> tuple[Tensor, ...]:
    """Make h, c, n, m by the equations of `rnnfast.SLSTM`."""
    h, c, n, m = state
    *biases, bounds = more
    (B, H), K = h.shape, w_hh.shape[1]
    u = torch.einsum("bhk,ghjk->bghj", h.reshape(B, H // K, K), w_hh.reshape(4, H // K, K, K)).reshape(B, 4 * H)
    a_i, a_f, a_z, a_o = sum(biases, x @ w_ih.T + u).chunk(4, 1)
    least_n, most_f = bounds.chunk(2)
    l = m + log_f(a_f)
    scale = torch.where((n == 0) | (a_i > l), a_i, l)
    i, f = torch.exp(a_i - scale), torch.exp(torch.minimum(l - scale, most_f.log()))
    c = f * c + i * torch.tanh(a_z)
    n = f * n + i
    n = torch.where(n > least_n, n, least_n)
    return torch.sigmoid(a_o) * c / n, c, n, scale


def _reset_before_step(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """Make h by one step of a GRU that resets before its product, which torch lacks."""
    a_r, a_z, a_n = torch.nn.functional.linear(x, w_ih, b_ih).chunk(3, 1)
    (w_r, w_z, w_n), (b_r, b_z, b_n) = w_hh.chunk(3), (None,) * 3 if b_hh is None else b_hh.chunk(3)
    r, z = (torch.sigmoid(a + torch.nn.functional.linear(h, w, b)) for a, w, b in ((a_r, w_r, b_r), (a_z, w_z, b_z)))
    n = torch.tanh(a_n + torch.nn.functional.linear(r * h, w_n, b_n))
    return n + z * (h - n)


STEPS: dict[str, Callable[..., Any]] = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "gru_reset_before": _reset_before_step,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
    "slstm": partial(_slstm_step, torch.nn.functional.logsigmoid),
    "slstm_exp": partial(_slstm_step, lambda a_f: a_f),
}


def _projected_lstm_step(
    x: Tensor, state: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *more: Tensor
) -> tuple[Tensor, ...]:
    """Make h and c by one step of an LSTM whose h is a projection, which torch has of whole sequences only."""
    h, c = state
    *biases, w_hr = more
    b_ih, b_hh = biases or (None, None)
    gates = torch.nn.functional.linear(x, w_ih, b_ih) + torch.nn.functional.linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.nn.functional.linear(o.sigmoid() * c.tanh(), w_hr), c


def by_steps(call: Call) -> list[Tensor]:
    """Return y and the last states of a layer's forward, by torch's operators."""
    shapes, take_step = call.state_shapes, _projected_lstm_step if call.projected else STEPS[call.cell]
    D, B, P = shapes[0]
    states = call.states or [call.x.new_zeros(shape) for shape in shapes]
    sizes = [B] * len(call.x) if call.batch_sizes is None else call.batch_sizes.tolist()
    T, x, lasting, begins = len(sizes), call.x, None, None
    if call.resets is not None:
        begins = call.resets != 0
    if call.lengths is not None:
        lasting = torch.arange(T, device=x.device)[:, None] < call.lengths
        x = x.masked_fill(~lasting[..., None], 0)  # a NaN of the padding would reach gradients
        begins = None if begins is None else begins & lasting
    rows = x.flatten(0, -2).split(sizes)
    begins = None if begins is None else begins.flatten().split(sizes)
    of_directions, step = [], len(call.weights) // D
    for d in range(D):
        own = call.weights[d * step : (d + 1) * step]
        h, state = [], [part[d] for part in states]
        for t in reversed(range(T)) if d else range(T):
            n = sizes[t]  # the longest sequences; the others' states wait, or are the last ones
            before = [part[:n] for part in state]
            if begins is not None and t + d < T:
                anew = begins[t + d]  # backwards where the later step begins, of the sequences that have one
                anew = torch.cat((anew, anew.new_zeros(n - len(anew))))[:, None]
                before = [part.masked_fill(anew, 0) for part in before]
            after = take_step(rows[t], before if len(before) > 1 else before[0], *own)
            after = after if isinstance(after, tuple) else (after,)
            h.append(after[0])
            if lasting is not None:
                lasts = lasting[t][:, None]
                h[-1] = h[-1].masked_fill(~lasts, 0)
                after = [torch.where(lasts, new, old) for new, old in zip(after, state, strict=True)]
            state = [torch.cat((new, part[n:])) for new, part in zip(after, state, strict=True)]
        of_directions.append([torch.cat(h[::-1] if d else h), *state])
    y, *last = zip(*of_directions, strict=True)
    return [torch.cat(y, -1).reshape(*call.x.shape[:-1], D * P), *map(torch.stack, last)]


def differentiable_backward(call: Call, dlast: Sequence[Tensor | None]) -> Gradients:
    """Return the gradients computed by torch's operators, so that they have gradients themselves."""
    if call.is_step:
        dx, dstates, dweights = differentiable_backward(call.as_layer(), each(itemgetter(None), dlast))
        return None if dx is None else dx[0], each(itemgetter(0), dstates), dweights
    first = call.states or [call.x.new_zeros(shape) for shape in call.state_shapes]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Views: where a weight is what x was computed from, the part of its gradient that goes through x is not ours.
        given = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (call.x, *first, *call.weights)
        ]
        S = len(first)
        moved = call._replace(x=given[0], states=given[1 : 1 + S], weights=given[1 + S :])
        wanted = [(out, d) for out, d in zip(by_steps(moved), dlast, strict=True) if d is not None]
        outputs, douts = zip(*wanted, strict=True)
        dx, *rest = torch.autograd.grad(outputs, given, douts, create_graph=True, materialize_grads=True)
    return dx, rest[:S], rest[S:]


class _WithoutOneDNN:
    """Keeps torch from oneDNN, whose LSTM has first derivatives backwards alone, while any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enabled = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.enabled, which can be locked
                torch._C._set_mkldnn_enabled(False)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch._C._set_mkldnn_enabled(self._enabled)


without_onednn = _WithoutOneDNN()
