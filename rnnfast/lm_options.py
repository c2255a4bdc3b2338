"""The options of a run that trains the language model, and the numbers that they take."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple, TypeAlias

from ._base.scalars import choice, integer, number
from .layers import GRU, LSTM, RNN

__all__ = ["LAYERS", "Options"]

LAYERS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class Range(NamedTuple):
    """The numbers that an option takes."""

    kind: type[int] | type[float]
    expected: str
    fits: Callable[[Any], bool]

    def checked(self, value: Any, name: str) -> Any:
        """Return the value as an int or float of Python; TypeError or ValueError if it does not fit."""
        n = integer(value, name) if self.kind is int else number(value, name)
        if not self.fits(n):
            msg = f"{name}: expected {self.expected}, got {value!r}"
            raise ValueError(msg)
        return n


class Rates(NamedTuple):
    """The probabilities of zoneout: one for each state, or that of h and that of c."""

    expected: str

    def kind(self, word: str) -> Any:
        """Return the number in a word, or those that a comma divides."""
        rates = tuple(map(float, word.split(",")))
        return rates if len(rates) > 1 else rates[0]

    def checked(self, value: Any, name: str) -> Any:
        """Return the value as a float or a pair of them; TypeError or ValueError if it does not fit."""
        if not isinstance(value, tuple | list):  # a list, from a file
            return PROBABILITY.checked(value, name)
        if len(value) != 2:
            msg = f"{name}: expected {self.expected}, got {value!r}"
            raise ValueError(msg)
        return tuple(PROBABILITY.checked(rate, name) for rate in value)


Numbers: TypeAlias = Range | Rates

SIZE = Range(int, "an integer of at least 1", lambda n: 1 <= n <= sys.maxsize)
SEED = Range(int, "an integer of at least 0", lambda n: n >= 0)
RATE = Range(float, "a number above 0", lambda value: 0 < value < math.inf)
NORM = Range(float, "a number above 0", lambda value: value > 0)
PROBABILITY = Range(float, "a number of at least 0 and less than 1", lambda value: 0 <= value < 1)
RATES = Rates("a number of at least 0 and less than 1, or two such")
SHARE = Range(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1)
TEMPERATURE = Range(float, "a number of at least 0", lambda value: 0 <= value < math.inf)

# Of the options that are numbers
RANGES: dict[str, Numbers] = {
    "hidden": SIZE,
    "layers": SIZE,
    "embed": SIZE,
    "batch": SIZE,
    "seq_len": SIZE,
    "steps": SIZE,
    "lr": RATE,
    "clip": NORM,
    "dropout": PROBABILITY,
    "weight_dropout": PROBABILITY,
    "recurrent_dropout": PROBABILITY,
    "candidate_dropout": PROBABILITY,
    "zoneout": RATES,
    "density": SHARE,
    "seed": SEED,
}

# Those that layers take
DROPOUTS = "dropout", "weight_dropout", "recurrent_dropout", "candidate_dropout", "zoneout"


@dataclass(frozen=True)
class Options:
    """The options of a run, by the names that ``python -m rnnfast train`` gives them.

    Parameters
    ----------
    text : str, optional
        The file that the text came from. It is stored but not read.
    cell : {"lstm", "gru", "rnn"}, optional
    hidden : int, optional
        H, the number of units of each layer.
    layers : int, optional
        L, the number of layers.
    embed : int, optional
        E, the size of the embedding.
    batch : int, optional
        B, the number of sequences in a batch.
    seq_len : int, optional
        T, the number of steps of a window.
    steps : int, optional
        The number of windows of the whole run. It is stored; the caller counts.
    lr : float, optional
        The learning rate of Adam.
    clip : float, optional
        The largest norm of the gradient.
    dropout, weight_dropout, recurrent_dropout, candidate_dropout : float, optional
        The probabilities of dropout between layers, of recurrent weights, of h' in the recurrent products, and of the
        candidate.
    zoneout : float or (float, float), optional
        The probability that a unit keeps its value, for all states, or for h and for c.
    density : float, optional
        The fraction of the layers' weights that remain after pruning; 1 means no pruning.
    seed : int, optional
        The seed of the weights and the dropout.

    Raises
    ------
    TypeError, ValueError
        If an option has the wrong type, is out of range, or is not supported by the cell.

    Examples
    --------
    >>> Options(cell="gru", hidden=64).hidden
    64
    """

    text: str | None = None
    cell: str = "lstm"
    hidden: int = 256
    layers: int = 1
    embed: int = 64
    batch: int = 32
    seq_len: int = 64
    steps: int = 1000
    lr: float = 3e-3
    clip: float = 1.0
    dropout: float = 0.0
    weight_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    candidate_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    density: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str | None):
            msg = f"text: expected a str or None, got {type(self.text).__name__}"
            raise TypeError(msg)
        choice(self.cell, "cell", tuple(LAYERS))
        for name, numbers in RANGES.items():
            object.__setattr__(self, name, numbers.checked(getattr(self, name), name))
        self._check_rates()

    def _check_rates(self) -> None:
        """Raise ValueError for probabilities that the cell's layers do not take."""
        layer = LAYERS[self.cell]
        taken = signature(layer).parameters
        rates = {name: rate for name in DROPOUTS if (rate := getattr(self, name)) and name != "dropout"}
        for name in rates.keys() - taken.keys():
            msg = f"{name}: expected 0 for {self.cell}, whose layers have no such option, got {rates[name]}"
            raise ValueError(msg)
        layer(1, 1, **rates)  # which knows how many states it has


class UsageError(Exception):
    """An error that the user can correct; the message says how.

    Examples
    --------
    >>> from rnnfast.lm import Options, Training
    >>> Training("short", Options())
    Traceback (most recent call last):
        ...
    rnnfast.lm.UsageError: ...
    """


UsageError.__module__ = "rnnfast.lm"  # where users find it


def default_text() -> str:
    """Return half a million characters of text that comes with Python: the topics of help().

    Examples
    --------
    >>> len(default_text()) > 100_000
    True
    """
    from pydoc_data.topics import topics

    return "\n".join(topics.values())
