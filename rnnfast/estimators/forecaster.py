"""`Forecaster`: quantiles of the next steps of a series, all at once, from a recurrent network that reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from .._base.arrays import Array
from .._base.scalars import generator, size
from ..training import quantile_loss
from .base import FLOAT, Estimator, levels_of, network, numbers_of, output, scale_of, wrong

SHORTEST = 8  # steps of a window where there is no season
CLEAR = 0.3  # autocorrelation from which on a season is taken for one


@dataclass(kw_only=True, eq=False, repr=False)
class Forecaster(Estimator):
    """Forecast the next steps of a series and their quantiles.

    After each step t the network predicts Q quantiles of the next K steps at once, and the losses of all t are added
    (Wen et al., 2017, arXiv:1711.11053). Its inputs and outputs are differences, each divided by its standard
    deviation, so the scale and the trend of the series do not matter. With the season s, w = max(s, 8), and the mean m
    of the last 4 w steps::

        inputs at t                 y[t] - y[t-1],  y[t] - y[t-s],  y[t-j] - m[t],  j = 0 .. w - 1
        outputs at t, k = 1 .. K    y[t+k] - y[t+k - s ceil(k/s)]: the last step of the same season

    Quantiles are shifted to correct their error on the validation steps (Romano et al., 2019, arXiv:1905.03222).

    Parameters
    ----------
    cell, hidden_size, num_layers, dropout, lr, weight_decay, warmup, clip, epochs, patience, verbose, rng : optional
        As in `SequenceClassifier`; an epoch is a pass over the series.
    validation_fraction : float, optional
        The fraction at the end of the series that is used to find the best epoch.
    horizon : int, optional
        K. Longer forecasts continue from the medians of the steps before.
    season : int or None, optional
        The number of steps after which the series repeats, such as 12 for months; 1 if it does not. By default, it is
        found from the highest peak of the autocorrelation of the differences, if that is above 0.3.
    quantiles : sequence of floats, optional
        Increasing numbers above 0 and below 1, including 0.5.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.estimators import Forecaster
    >>> t = np.arange(200)
    >>> series = 10 * np.sin(2 * np.pi * t / 12) + t / 10 + np.random.default_rng(0).standard_normal(200)
    >>> forecaster = Forecaster(horizon=12, epochs=60, rng=0).fit(series[:180])
    >>> forecaster.season_, forecaster.predict(12).shape, forecaster.predict_quantiles(12).shape
    (12, (12,), (12, 3))
    """

    cell: str = field(default="gru", kw_only=False)
    hidden_size: int = 32
    lr: float = 1e-2
    epochs: int = 300
    patience: int | None = 60
    validation_fraction: float = 0.15
    horizon: int = 12
    season: int | None = None
    quantiles: Sequence[float] = (0.1, 0.5, 0.9)
    outputs = "all"

    def fit(self, series: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Train a new network on a series [T]; y is ignored.

        Raises TypeError or ValueError if the series is too short or not finite, or if a parameter is invalid.
        """
        K, share, rng = size(self.horizon, "horizon"), self._held_out_share(), generator(self.rng)
        self._K, levels = K, levels_of(self.quantiles)
        if 0.5 not in levels:
            wrong("quantiles", "rising numbers, 0.5 among them", self.quantiles)
        known = self._series(series, 2 * (K + SHORTEST))
        self._levels, self._middle = levels, int(np.argmax(levels == 0.5))
        self.season_ = _season_of(known) if self.season is None else size(self.season, "season")
        self._series(known, 2 * (K + self.season_))
        raw, target = self._features(known), self._targets(known)
        ends = len(target)
        held = max(ends - round(share * ends), K + 1)  # the first that is held out; those before share no step with it
        learned = held - K if held < ends else ends
        self._mean, self._deviation = scale_of(raw[:learned])
        self._spread = scale_of(target[:learned])[1]
        x, target = self._scaled(raw)[:ends], (target / self._spread).astype(FLOAT)[:, np.newaxis]
        self.model_ = network(self, x.shape[2], K * len(levels), rng)
        unseen = target.copy()
        unseen[:held] = np.nan  # no number: neither learned nor compared
        held_out = [(x, None, unseen)] if held < ends else []
        self._train(self.model_, lambda: [(x[:learned], None, target[:learned])], 1, held_out)
        self._history, self._shift = known, np.zeros(len(levels))
        if held_out:
            misses = target[held:, 0, :, np.newaxis] - self._quantiles(x)[held:]
            shift = [np.quantile(misses[..., k], q) for k, q in enumerate(levels)]
            self._shift = np.where(levels == 0.5, 0, shift)
        return self

    def predict(self, horizon: Any = None, series: Any = None) -> Array:
        """Return the medians of the next steps, [horizon]; by default, `horizon` is that of the constructor.

        They continue the series [T] of `fit`, or another one. Raises TypeError or ValueError if an argument is invalid.
        """
        return np.asarray(self.predict_quantiles(horizon, series)[:, self._middle])

    def predict_quantiles(self, horizon: Any = None, series: Any = None) -> Array:
        """Return the quantiles of the next steps, [horizon,Q]; takes and raises what `predict` does."""
        self._check_fitted()
        steps = self._K if horizon is None else size(horizon, "horizon")
        known = self._history if series is None else self._series(series, self.season_ + 1)
        found = np.empty((0, len(self._levels)))
        while len(found) < steps:
            base = known[len(known) + np.arange(self._K) - self._back()]
            quantiles = self._quantiles(self._scaled(self._features(known)))[-1] + self._shift
            ahead = np.sort(base[:, np.newaxis] + quantiles * self._spread[:, np.newaxis], axis=1)
            found, known = np.concatenate([found, ahead]), np.concatenate([known, ahead[:, self._middle]])
        return found[:steps]

    def score(self, series: Any, y: Any = None) -> float:  # noqa: ARG002
        """Return 1 less the squared error of all medians, divided by that of the last values of the same season."""
        self._check_fitted()
        known = self._series(series, self._K + self.season_ + 1)
        target = self._targets(known) / self._spread
        medians = self._quantiles(self._scaled(self._features(known)))[: len(target), :, self._middle]
        errors, naive = ((target - medians) ** 2).mean(), (target**2).mean()
        return float(1 - errors / naive) if naive else 0.0

    def _series(self, series: Any, least: int) -> Array:
        known = np.asarray(series)
        if known.ndim != 1 or len(known) < least:
            wrong("series", f"shape (T,), with at least {least} steps", known.shape)
        return numbers_of(known, "series")

    def _features(self, y: Array) -> Array:
        """Return what the network reads at each step, [T,w+2]; before the series lies its first value."""
        window = max(self.season_, SHORTEST)
        t, length = np.arange(len(y)), 4 * window
        sums = np.cumsum(np.concatenate([[0], y - y[0]]))
        first = np.maximum(t - length + 1, 0)
        mean = y[0] + (sums[1:] - sums[first]) / (t + 1 - first)
        past = [y[np.maximum(t - lag, 0)] for lag in range(max(window, self.season_ + 1))]
        return np.stack([y - past[1], y - past[self.season_], *(p - mean for p in past[:window])], axis=1)

    def _scaled(self, features: Array) -> Array:
        """Return features as a batch of one sequence, [T,1,w+2]."""
        return np.asarray(((features - self._mean) / self._deviation).astype(FLOAT)[:, np.newaxis])

    def _back(self) -> Array:
        """Return how far behind t + k the last step of the same season lies that is at most t, k = 1 .. K."""
        return np.asarray(self.season_ * -(-np.arange(1, self._K + 1) // self.season_))

    def _targets(self, y: Array) -> Array:
        """Return the outputs at each step that has K steps behind it, [T-K,K]."""
        t = np.arange(len(y) - self._K)[:, np.newaxis] + np.arange(1, self._K + 1)
        return np.asarray(y[t] - y[np.maximum(t - self._back(), 0)])

    def _quantiles(self, x: Array) -> Array:
        """Return the outputs at each step, [T,K,Q], in float64."""
        out = output(self.model_, x, None, "all").astype(np.float64)
        return out.reshape(len(x), self._K, -1)

    def _loss(self, out: Array, target: Array) -> tuple[float, Array]:
        here, d = np.isfinite(target[:, 0, 0]), np.zeros_like(out)
        told = out[here].reshape(*target[here].shape, len(self._levels))
        loss, of_here = quantile_loss(told, target[here], self._levels)
        d[here] = of_here.reshape(out[here].shape)
        return loss, d


def _season_of(y: Array) -> int:
    """Return the lag of the highest peak of the autocorrelation of the differences, 1 where there is no clear one."""
    d = np.diff(y) - np.diff(y).mean()
    of_lags = np.correlate(d, d, "full")[len(d) - 1 :][: len(d) // 3]
    inner = of_lags[1:-1]
    peaks = 1 + np.flatnonzero((inner > of_lags[:-2]) & (inner >= of_lags[2:]) & (inner > CLEAR * of_lags[0]))
    return int(peaks[np.argmax(of_lags[peaks])]) if len(peaks) else 1
