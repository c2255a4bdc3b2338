"""`SequenceClassifier` and `SequenceRegressor`: a recurrent network's last output tells what a sequence is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Self

import numpy as np

from .. import training
from .._base.arrays import Array
from .._base.scalars import choice, flag, generator, size
from ..ragged import pad_sequences
from ..training import AdamW, minibatches
from .base import FLOAT, Batch, Estimator, levels_of, network, numbers_of, output, scale_of, wrong


def read_sequences(X: Any) -> tuple[list[Array], bool]:
    """Return sequences as arrays [T,I] of float64 or as tokens [T], and whether they are tokens."""
    given = X if isinstance(X, Sequence) else np.asarray(X)
    if isinstance(given, np.ndarray) and given.ndim == 0:
        wrong("X", "a list of arrays or an array", f"{type(X).__name__}; sparse data is not supported")
    if len(given) == 0:
        wrong("X", "at least one sequence", "0 sample(s) (a minimum of 1 is required)")
    arrays = [np.asarray(x) for x in given]
    for i, a in enumerate(arrays):
        if a.ndim not in (1, 2) or a.size == 0:
            wrong(f"X[{i}]", "shape (T, I), or (T,) for tokens and single features", f"{a.shape}. Reshape your data")
    if all(a.ndim == 1 and a.dtype.kind in "iu" for a in arrays):
        least, most = min(int(a.min()) for a in arrays), max(int(a.max()) for a in arrays)
        if least < 0 or most >= 2**63:
            wrong("X", "tokens from 0 to 2**63 - 1", least if least < 0 else most)
        return [a.astype(np.int64) for a in arrays], True
    found = [numbers_of(a.reshape(len(a), -1), f"X[{i}]") for i, a in enumerate(arrays)]
    for i, a in enumerate(found):
        if a.shape[1] != found[0].shape[1]:
            wrong(f"X[{i}]", f"{found[0].shape[1]} features, as X[0] has", a.shape[1])
    return found, False


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceEstimator(Estimator):
    """What the classifier and the regressor share: sequences in, one row of outputs for each."""

    bidirectional: bool = False
    embedding_dim: int = 32
    batch_size: int = 32
    scale: bool = True

    def _learn_target(self, y: Array, classes: Any) -> int:
        """Learn what y is like, and return how many outputs it takes."""
        raise NotImplementedError

    def _target(self, y: Array) -> Array:
        """Return the checked y as the loss takes it."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any) -> Self:
        """Train a new network.

        X is a list of N arrays [T_i,I] or [T_i], or an array [N,T,I] or [N,T]: sequences of features, where those of
        integers [T_i] are tokens, and of floats [T_i] single features. y is an array [N], for a regressor also [N,O].
        TypeError or ValueError: one of them, or a parameter of the constructor, does not fit.
        """
        sequences, is_tokens = read_sequences(X)
        given, rng, share = self._paired(sequences, y), generator(self.rng), self._held_out_share()
        batch_size, N = size(self.batch_size, "batch_size"), len(sequences)
        self._start(sequences, is_tokens, given, given if self.kind == "classifier" else None, rng)
        x, target = self._inputs(sequences, is_tokens), self._target(given)
        order, part = rng.permutation(N), min(max(round(share * N), 1), N - 1) if share else 0
        held, learned = order[:part], order[part:]

        def batches(which: Array, shuffle: bool) -> Iterator[Batch]:
            for padded, lengths, indices in minibatches([x[i] for i in which], batch_size, shuffle=shuffle, rng=rng):
                yield padded, lengths, target[which[indices]]

        steps = -(-len(learned) // batch_size)
        self._optimizer = self._train(self.model_, lambda: batches(learned, True), steps, [*batches(held, False)])
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Go once through some sequences, at the learning rate `lr` and without any held out; see `fit`.

        The first call decides how X, and in a regressor y, are scaled. In a classifier it needs all `classes`.
        """
        sequences, is_tokens = read_sequences(X)
        given, batch_size = self._paired(sequences, y), size(self.batch_size, "batch_size")
        if not hasattr(self, "model_"):
            self._start(sequences, is_tokens, given, classes, generator(self.rng))
            self._optimizer = AdamW(self.model_, self.lr, weight_decay=self.weight_decay)
        elif classes is not None and not np.array_equal(np.unique(classes), getattr(self, "classes_", 0)):
            wrong("classes", "None, or those of the first call", classes)
        self._optimizer.lr = self.lr
        x, target = self._inputs(sequences, is_tokens), self._target(given)
        for padded, lengths, indices in minibatches(x, batch_size, rng=self.model_.rnn.rng):
            self._step(self.model_, self._optimizer, (padded, lengths, target[indices]))
        return self

    def _paired(self, sequences: Sequence[Any], y: Any) -> Array:
        given = np.asarray(y)
        if y is None or given.ndim < 1 or len(given) != len(sequences):
            came = "None; it requires y to be passed, but the target y is None" if y is None else f"shape {given.shape}"
            wrong("y", f"a target for each of {len(sequences)} sequences", came)
        return given

    def _start(self, sequences: list[Array], is_tokens: bool, y: Array, classes: Any, rng: np.random.Generator) -> None:
        """Learn how X and y are scaled, and make the network."""
        outputs = self._learn_target(y, classes)
        self._tokens = 2 + max(int(s.max()) for s in sequences) if is_tokens else 0
        self.n_features_in_ = 1 if is_tokens else sequences[0].shape[1]
        rows = np.zeros((1, 1)) if is_tokens or not flag(self.scale, "scale") else np.concatenate(sequences)
        self._mean, self._deviation = scale_of(rows)
        dim = size(self.embedding_dim, "embedding_dim") if is_tokens else 0
        self.model_ = network(self, self._tokens or self.n_features_in_, outputs, rng, dim)

    def _inputs(self, sequences: list[Array], is_tokens: bool) -> list[Array]:
        """Return sequences as the network reads them: scaled, or tokens with unknown ones as the last."""
        if is_tokens != (self._tokens > 0):
            wrong("X", "tokens, as in fit" if self._tokens else "features, as in fit", "the other kind")
        if is_tokens:
            return [np.minimum(tokens, self._tokens - 1) for tokens in sequences]
        if sequences[0].shape[1] != self.n_features_in_:
            wrong("X", f"{self.n_features_in_} features, as in fit", sequences[0].shape[1])
        return [((x - self._mean) / self._deviation).astype(FLOAT) for x in sequences]

    def _outputs(self, X: Any) -> Array:
        """Return the network's outputs [N,K] for sequences, in float64."""
        self._check_fitted()
        x, at_once = self._inputs(*read_sequences(X)), size(self.batch_size, "batch_size")
        out: Array = np.empty((len(x), self.model_.readout.out_features))
        order = sorted(range(len(x)), key=lambda i: -len(x[i]))
        for first in range(0, len(x), at_once):
            indices = order[first : first + at_once]
            out[indices] = output(self.model_, *pad_sequences([x[i] for i in indices]), "last")
        return out


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceClassifier(SequenceEstimator):
    """Classify sequences.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "slstm"}, optional
    hidden_size, num_layers, bidirectional, dropout : optional
        Of the layers.
    embedding_dim : int, optional
        The size of the embedding of tokens.
    loss : {"softmax", "binary"}, optional
        ``"binary"``: one output for two classes.
    lr, weight_decay, warmup, clip : float, optional
        The highest learning rate of `rnnfast.training.AdamW`, which rises during the fraction `warmup` of all steps and
        then falls to 0 along a cosine; `clip` is the largest norm of a gradient.
    batch_size, epochs : int, optional
    validation_fraction : float, optional
        The fraction of the sequences that is held out to find the best epoch, whose weights are kept.
    patience : int or None, optional
        Training stops after this many epochs without improvement. With None, nothing is held out.
    scale : bool, optional
        Whether to scale features to mean 0 and standard deviation 1 over all steps in `fit`.
    verbose : bool, optional
        Whether to show a progress bar with the losses.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        For all that is random. With an int, each `fit` gives the same network.

    Attributes
    ----------
    classes_ : ndarray
    model_ : Modules
        The network: ``rnn``, ``readout``, and for tokens ``embedding``, which is 0 for tokens larger than any in `fit`.
    history_ : dict of lists
        ``loss`` and ``validation_loss`` of each of the `n_iter_` epochs.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.estimators import SequenceClassifier
    >>> X = np.random.default_rng(0).standard_normal((200, 5, 1))
    >>> y = X.sum((1, 2)) > 0
    >>> SequenceClassifier("gru", hidden_size=32, lr=0.01, rng=0).fit(X, y).score(X, y) > 0.8
    True
    """

    loss: str = "softmax"
    kind = "classifier"

    def predict(self, X: Any) -> Array:
        """Return the most likely class of each sequence, [N]."""
        likeliest = self.predict_proba(X).argmax(axis=1)  # before there need be `classes_`
        return np.asarray(self.classes_[likeliest])

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities [N,K] of the classes, in the order of `classes_`."""
        out = self._outputs(X)
        if out.shape[1] == 1:
            out = np.concatenate([np.zeros_like(out), out], axis=1)
        p = np.exp(out - out.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def score(self, X: Any, y: Any) -> float:
        """Return the fraction of sequences that are classified correctly."""
        found = self.predict(X)
        return float(np.mean(found == self._paired([*found], y)))

    def _learn_target(self, y: Array, classes: Any) -> int:
        if y.ndim != 1 and y.shape[1:] != (1,):
            wrong("y", "a class for each sequence, shape (N,)", y.shape)
        if y.dtype.kind == "f" and not (np.isfinite(y) & (y == np.floor(y))).all():
            wrong("y", "classes", "other numbers than integers. Unknown label type: continuous, or NaN or inf")
        if classes is None:
            wrong("classes", "all that there will be, in the first call of partial_fit", classes)
        self.classes_ = np.unique(np.asarray(classes))
        is_binary = choice(self.loss, "loss", ("softmax", "binary")) == "binary"
        if len(self.classes_) < 2 or (is_binary and len(self.classes_) > 2):
            expected = "two classes for the loss 'binary'" if is_binary else "at least two classes"
            wrong("y", expected, f"{len(self.classes_)} class{'es' if len(self.classes_) > 1 else ''}")
        return 1 if is_binary else len(self.classes_)

    def _target(self, y: Array) -> Array:
        labels = y.reshape(-1)
        if (others := labels[~np.isin(labels, self.classes_)]).size:
            wrong("y", f"classes of {self.classes_}", others[0])
        return np.searchsorted(self.classes_, labels)

    def _loss(self, out: Array, target: Array) -> tuple[float, Array]:
        if out.shape[1] == 1:
            return training.binary_cross_entropy(out, target[:, np.newaxis] == 1)
        return training.softmax_cross_entropy(out, target)


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceRegressor(SequenceEstimator):
    """Predict one or several numbers for each sequence.

    Parameters
    ----------
    loss : {"squared", "huber", "quantile", "gaussian"}, optional
        What is learned: the mean; a mean that is less sensitive to outliers; quantiles; the mean and standard deviation
        of a normal distribution. y is scaled to mean 0 and standard deviation 1; ``"huber"`` becomes linear at `delta`
        of these standard deviations.
    delta : float, optional
    quantiles : sequence of floats, optional
    others
        As in `SequenceClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.estimators import SequenceRegressor
    >>> X = np.random.default_rng(0).standard_normal((200, 5, 1))
    >>> y = X.sum(axis=(1, 2))
    >>> SequenceRegressor("gru", hidden_size=32, lr=0.01, rng=0).fit(X, y).score(X, y) > 0.8
    True
    """

    loss: str = "squared"
    delta: float = 1.0
    quantiles: Sequence[float] = (0.1, 0.5, 0.9)
    kind = "regressor"

    def predict(self, X: Any) -> Array:
        """Return a number for each sequence, [N], or [N,O] as y has it: of quantiles, the one closest to the median."""
        middle = int(np.argmin(np.abs(np.asarray(self.quantiles) - 0.5))) if self.loss == "quantile" else 0
        return self._unscaled(self._parts(X)[..., middle])

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] | None = None) -> Array:
        """Return the quantiles of the constructor, or with the loss ``"gaussian"`` any others, [N,Q] or [N,O,Q]."""
        if self.loss == "quantile" and quantiles is None:
            return np.sort(self._unscaled(self._parts(X)), axis=-1)  # quantiles that cross are exchanged
        if self.loss != "gaussian":
            expected = "None, as the network has its own" if self.loss == "quantile" else "the loss 'gaussian'"
            wrong("quantiles", expected, quantiles if self.loss == "quantile" else repr(self.loss))
        out, given = self._parts(X), self.quantiles if quantiles is None else quantiles
        z = np.array([NormalDist().inv_cdf(q) for q in levels_of(given)])
        return self._unscaled(out[..., :1] + z * np.exp(out[..., 1:] / 2))

    def score(self, X: Any, y: Any) -> float:
        """Return the coefficient of determination, R², averaged over the O numbers of y."""
        found = self.predict(X)
        given = numbers_of(self._paired([*found], y).reshape(found.shape), "y")
        rest, spread = ((found - given) ** 2).sum(axis=0), ((given - given.mean(axis=0)) ** 2).sum(axis=0)
        with np.errstate(all="ignore"):
            return float(np.mean(np.where(spread > 0, 1 - rest / spread, rest == 0)))

    def _learn_target(self, y: Array, classes: Any) -> int:
        if classes is not None:
            wrong("classes", "None for a regressor", type(classes).__name__)
        if y.ndim not in (1, 2) or 0 in y.shape:
            wrong("y", "shape (N,) or (N, O)", y.shape)
        choice(self.loss, "loss", ("squared", "huber", "quantile", "gaussian"))
        self._y_mean, self._y_deviation = scale_of(numbers_of(y, "y"))
        self._width = {"quantile": len(levels_of(self.quantiles)), "gaussian": 2}.get(self.loss, 1)
        return self._y_mean.size * self._width

    def _target(self, y: Array) -> Array:
        if y.shape[1:] != self._y_mean.shape:
            wrong("y", f"shape {('N', *self._y_mean.shape)}, as in fit", y.shape)
        return np.asarray((numbers_of(y, "y") - self._y_mean) / self._y_deviation, FLOAT)

    def _parts(self, X: Any) -> Array:
        """Return the outputs as [N,Q] or [N,O,Q], with 2 or 1 in place of Q for other losses."""
        out = self._outputs(X)
        return out.reshape(len(out), *self._y_mean.shape, self._width)

    def _unscaled(self, values: Array) -> Array:
        """Return values [N], [N,O], or with an axis more [N,Q], [N,O,Q], in the units of y."""
        axes = (...,) + (np.newaxis,) * (values.ndim - 1 - self._y_mean.ndim)
        return np.asarray(values * self._y_deviation[axes] + self._y_mean[axes])

    def _loss(self, out: Array, target: Array) -> tuple[float, Array]:
        parts = out.reshape(*target.shape, self._width)
        if self.loss == "quantile":
            loss, d = training.quantile_loss(parts, target, np.array(self.quantiles, np.float64))
        elif self.loss == "gaussian":
            loss, pair = training.gaussian_nll(parts[..., 0], parts[..., 1], target)
            d = np.stack(pair, axis=-1)
        else:
            huber = partial(training.huber_loss, delta=self.delta)
            loss, d = (huber if self.loss == "huber" else training.squared_error)(parts[..., 0], target)
        return loss, d.reshape(out.shape)
