"""Backward by torch's own operators, where its results need derivatives of their own."""

import threading
from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor

from ._kernels import Call, Gradients, each

STEPS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def projected_lstm_step(x: Tensor, state: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *more: Tensor) -> list[Tensor]:
    """Return h and c of one step of an LSTM whose h is a projection, which torch has of whole sequences only."""
    h, c = state
    *biases, w_hr = more
    b_ih, b_hh = biases or (None, None)
    gates = torch.nn.functional.linear(x, w_ih, b_ih) + torch.nn.functional.linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [torch.nn.functional.linear(o.sigmoid() * c.tanh(), w_hr), c]


def differentiable_backward(call: Call, dlast: Sequence[Tensor | None]) -> Gradients:
    """Return the gradients computed by torch's operators, so that they have gradients themselves."""
    if call.is_step:
        dx, dstates, dweights = differentiable_backward(call.as_layer(), each(itemgetter(None), dlast))
        return None if dx is None else dx[0], each(itemgetter(0), dstates), dweights
    shapes, take_step = call.state_shapes, projected_lstm_step if call.projected else STEPS[call.cell]
    D, B, P = shapes[0]
    first = call.states or [call.x.new_zeros(shape) for shape in shapes]
    sizes = [B] * len(call.x) if call.batch_sizes is None else call.batch_sizes.tolist()

    def run(x: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """Return y and the last state of a forward."""
        of_directions, step = [], len(weights) // D
        for d in range(D):
            order = -1 if d else 1
            own = weights[d * step : (d + 1) * step]
            h, state = [], [part[d] for part in states]
            for x_t in x.flatten(0, -2).split(sizes)[::order]:
                n = len(x_t)  # of the longest sequences; the others' states wait, or are the last ones
                before = [part[:n] for part in state]
                after = take_step(x_t, before if len(before) > 1 else before[0], *own)
                after = after if isinstance(after, tuple | list) else (after,)
                state = [torch.cat((new, part[n:])) for new, part in zip(after, state, strict=True)]
                h.append(after[0])
            of_directions.append([torch.cat(h[::order]), *state])
        y, *last = zip(*of_directions, strict=True)
        return [torch.cat(y, -1).reshape(*x.shape[:-1], D * P), *map(torch.stack, last)]

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Views: where a weight is what x was computed from, the part of its gradient that goes through x is not ours.
        given = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (call.x, *first, *call.weights)
        ]
        x, states, weights = given[0], given[1 : 1 + len(first)], given[1 + len(first) :]
        wanted = [(out, d) for out, d in zip(run(x, states, weights), dlast, strict=True) if d is not None]
        outputs, douts = zip(*wanted, strict=True)
        dx, *rest = torch.autograd.grad(outputs, given, douts, create_graph=True, materialize_grads=True)
    return dx, rest[: len(first)], rest[len(first) :]


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
