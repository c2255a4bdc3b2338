"""What the estimators share: scikit-learn's protocol, a recurrent network, and the loop that trains it."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np

from .._base.arrays import Array
from .._base.scalars import choice, flag, number, positive, size
from ..container import Modules
from ..embedding import Embedding
from ..layers import GRU, LSTM, RNN, SLSTM
from ..linear import Linear
from ..training import AdamW, CosineSchedule, EarlyStopping, clip_grad_norm

LAYERS: Mapping[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "slstm": SLSTM}
FLOAT = np.float32  # of what networks read and tell


def scale_of(rows: Array) -> tuple[Array, Array]:
    """Return the mean and the standard deviation over rows, 1 where they do not vary."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    return mean, np.where(deviation > 1e-12 * abs(mean), deviation, 1)


def wrong(name: str, expected: str, came: object) -> NoReturn:
    """Raise the error of a bad argument."""
    msg = f"{name}: expected {expected}, got {came}"
    raise ValueError(msg)


def numbers_of(a: Array, name: str) -> Array:
    """Return an array of finite numbers in float64."""
    if a.dtype.kind not in "biufO":
        wrong(name, "real numbers", f"{a.dtype}. Complex data not supported" if a.dtype.kind == "c" else a.dtype)
    numbers: Array = a.astype(np.float64)
    if not (np.abs(numbers) < 1e100).all():  # their squares have to be numbers too
        wrong(name, "finite numbers below 1e100", "NaN, infinity (inf) or more")
    return numbers


def levels_of(quantiles: Any) -> Array:
    """Return the levels of quantiles."""
    levels = np.array(quantiles, np.float64)
    if levels.ndim != 1 or not levels.size or not (np.diff([0, *levels, 1]) > 0).all():
        wrong("quantiles", "rising numbers above 0 and below 1", quantiles)
    return levels


Batch: TypeAlias = tuple[Array, Array | None, Array]  # x, lengths, target


def network(options: Any, inputs: int, outputs: int, rng: np.random.Generator, embedding_dim: int = 0) -> Any:
    """Make the modules; with an `embedding_dim` the inputs are tokens, the last of which is read as zeros."""
    kind, H = LAYERS[choice(options.cell, "cell", tuple(LAYERS))], options.hidden_size
    bidirectional = getattr(options, "bidirectional", False)
    own = {"num_layers": options.num_layers, "dropout": options.dropout, "bidirectional": bidirectional}
    try:
        parts: dict[str, Any] = {"embedding": Embedding(inputs, embedding_dim, -1, rng=rng)} if embedding_dim else {}
    except (MemoryError, ValueError):  # beyond the memory, or the address space
        wrong("X", f"tokens whose table, {inputs} x {embedding_dim}, fits the memory", f"{inputs - 2} as the largest")
    parts["rnn"] = kind(embedding_dim or inputs, H, **own, rng=rng)
    return Modules(parts, readout=Linear((1 + bidirectional) * H, outputs, rng=rng))


def table_of(model: Any) -> Array | None:
    """Return the embedding's vectors."""
    return getattr(model.get("embedding"), "weight", None)


def output(model: Any, x: Array, lengths: Array | None, outputs: str) -> Array:
    """Return what the readout makes of all steps or of the last ones."""
    y, _ = model.rnn(x, lengths=lengths, outputs=outputs, embedding=table_of(model))
    return np.asarray(model.readout(y))


@dataclass(kw_only=True, eq=False, repr=False)
class Estimator:
    """Parameters as scikit-learn has them, and the training that they describe."""

    cell: str = field(default="lstm", kw_only=False)
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0
    lr: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    clip: float = 1.0
    epochs: int = 100
    patience: int | None = 10
    validation_fraction: float = 0.1
    verbose: bool = False
    rng: Any = None

    outputs = "last"  # which steps of the layer the readout reads
    kind = ""  # for scikit-learn

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the constructor's arguments; none of them is an estimator that `deep` would open."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor; an unknown one is a ValueError, and changes nothing."""
        unknown, known = params.keys() - self.get_params().keys(), [*self.get_params()]
        if unknown:
            msg = f"Invalid parameter {min(unknown)!r} for estimator {self!r}. Valid parameters are: {known!r}."
            raise ValueError(msg)
        vars(self).update(params)
        return self

    def __repr__(self) -> str:
        """Return the constructor's call, without what is at its default."""
        words = [f"{f.name}={v!r}" for f in fields(self) if repr(v := getattr(self, f.name)) != repr(f.default)]
        return f"{type(self).__name__}({', '.join(words)})"

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn, which alone asks for it, is to know."""
        from sklearn import utils

        own = {f"{self.kind}_tags": getattr(utils, f"{self.kind.title()}Tags")()} if self.kind else {}
        inputs, target = utils.InputTags(three_d_array=True), utils.TargetTags(required=bool(self.kind))
        return utils.Tags(estimator_type=self.kind or None, target_tags=target, input_tags=inputs, **own)

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            own = type("NotFittedError", (ValueError, AttributeError), {})
            kind = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", own)
            msg = f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments first."
            raise kind(msg)

    def _held_out_share(self) -> float:
        share = number(self.validation_fraction, "validation_fraction")
        if not 0 <= share < 1:
            wrong("validation_fraction", "a share from 0 to less than 1", share)
        return 0.0 if self.patience is None else share

    def _loss(self, out: Array, target: Array) -> tuple[float, Array]:
        """Return the mean loss of some outputs and its gradient."""
        raise NotImplementedError

    def _step(self, model: Any, optimizer: AdamW, batch: Batch) -> float:
        """Train on a batch and return its loss."""
        x, lengths, target = batch
        y, _, tape = model.rnn.forward(x, lengths=lengths, outputs=self.outputs, embedding=table_of(model))
        out, readout = model.readout.forward(y)
        loss, dout = self._loss(out, target)
        dy, of_readout = model.readout.backward(readout, dout)
        of_rnn = model.rnn.backward(tape, dy, need_dx="embedding" in model)[2]  # which alone would need it
        grads = {"rnn": of_rnn, "readout": of_readout}
        if "embedding" in model:
            grads["embedding"] = {"weight": of_rnn.pop("embedding")}
            grads["embedding"]["weight"][model.embedding.padding_idx] = 0
        joined = model.join(grads)
        clip_grad_norm(joined, self.clip)
        optimizer.step(joined)
        return loss

    def _train(self, model: Any, batches: Callable[[], Iterable[Batch]], steps: int, held: Sequence[Batch]) -> AdamW:
        """Train for all epochs, or until what is held out gets no better, and keep the best parameters."""
        from tqdm import tqdm

        epochs, rise = size(self.epochs, "epochs"), number(self.warmup, "warmup")
        positive(self.clip, "clip")
        if not 0 <= rise < 1:
            wrong("warmup", "a share of the steps from 0 to less than 1", rise)
        optimizer = AdamW(model, self.lr, weight_decay=self.weight_decay)
        schedule = CosineSchedule(self.lr, epochs * steps, int(rise * epochs * steps))
        stopping = EarlyStopping(model, epochs if self.patience is None else self.patience)
        history: dict[str, list[float]] = {"loss": [], "validation_loss": []}
        step, N = 0, sum(len(target) for _, _, target in held)
        with tqdm(total=epochs, disable=not flag(self.verbose, "verbose"), unit="epoch", dynamic_ncols=True) as bar:
            while len(history["loss"]) < epochs:
                losses = []
                for batch in batches():
                    optimizer.lr = schedule(step)
                    losses.append(self._step(model, optimizer, batch))
                    step += 1
                history["loss"].append(float(np.mean(losses)))
                if held:
                    told = ((output(model, x, n, self.outputs), target) for x, n, target in held)
                    total = sum(self._loss(out, target)[0] * len(target) for out, target in told)
                    history["validation_loss"].append(total / N)
                bar.set_postfix({name: losses[-1] for name, losses in history.items() if losses}, refresh=False)
                bar.update()
                if held and stopping.step(history["validation_loss"][-1]):
                    break
        if held:
            stopping.restore()
        self.history_, self.n_iter_ = history, len(history["loss"])
        return optimizer
