"""Connectionist temporal classification, by forward and backward variables (Graves et al., ICML 2006).

The extended target has a blank before, between and behind the labels; alpha[t, s] and beta[t, s] are the logarithms of
the probabilities of the steps up to t, and behind t, on all paths that are in its place s at step t.
"""

from typing import Any

import numpy as np

from .cells import Array

__all__ = ["ctc_loss"]


def ctc_loss(
    logits: Array, targets: Any, lengths: Any = None, blank: int = 0, *, mean: bool = True
) -> tuple[float, Array]:
    """Return the loss and its gradient, given logits [T,B,V], B targets and B lengths."""
    T, B, _ = logits.shape
    total, dlogits = 0.0, np.zeros(logits.shape)
    for b, target in enumerate(targets):
        length = T if lengths is None else lengths[b]
        scale = 1 / (B * max(len(target), 1)) if mean else 1.0
        loss, d = _one(logits[:length, b].astype(np.float64), list(target), blank)
        total += scale * loss
        dlogits[:length, b] = scale * d
    return total, dlogits


def _one(logits: Array, target: list[int], blank: int) -> tuple[float, Array]:
    T = len(logits)
    e = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    places = [blank, *(v for label in target for v in (label, blank))]
    S = len(places)
    skips = [s >= 2 and places[s] not in (blank, places[s - 2]) for s in range(S)]
    alpha, beta = np.full((T + 1, S), -np.inf), np.full((T + 1, S), -np.inf)
    alpha[0, 0] = 0  # before the first step
    for t in range(T):
        for s in range(S):
            before = [alpha[t, s], *alpha[t, max(s - 1, 0) : s], *([alpha[t, s - 2]] if skips[s] else [])]
            alpha[t + 1, s] = np.logaddexp.reduce(before) + e[t, places[s]]
    beta[T, -2:] = 0
    for t in range(T - 1, 0, -1):
        behind = beta[t + 1] + e[t, places]
        for s in range(S):
            after = [behind[s], *behind[s + 1 : s + 2], *([behind[s + 2]] if s + 2 < S and skips[s + 2] else [])]
            beta[t, s] = np.logaddexp.reduce(after)
    log_p = np.logaddexp.reduce(alpha[T, -2:])
    d = np.exp(e)
    for s, place in enumerate(places):
        d[:, place] -= np.exp(alpha[1:, s] + beta[1:, s] - log_p)
    return -float(log_p), d
