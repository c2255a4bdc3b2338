"""A character language model, and the runs of ``python -m rnnfast train`` that train it.

The model reads characters and predicts each next one: embedding, a stack of LSTM, GRU or Elman layers, linear
readout, softmax. It is trained by truncated backpropagation through time: the text is cut into B streams that
are read side by side, T characters at a time; the state goes on from window to window, the gradient does not.

Examples
--------
>>> options = Options(hidden=32, embed=8, batch=2, seq_len=10, lr=0.02)
>>> training = Training("to be or not to be, " * 50, options)
>>> losses = [training.step() for _ in range(100)]
>>> "".join(training.model.sample("to be", length=10, temperature=0))
' or not to'
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._module import Tape
from .functional import Array, State, checked
from .layers import GRU, LSTM, RNN, Linear
from .training import Adam, clip_grad_norm, softmax_cross_entropy

LAYERS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
FORMAT = "rnnfast.lm"  # what the header of our files is found by
# Steps at a time where nothing is trained: long enough to hide the cost of a call, short on memory
CHUNK = 1024


class UsageError(Exception):
    """What whoever started the run can put right; the message says how."""


@dataclass(frozen=True)
class Options:
    """What ``python -m rnnfast train`` takes, by the names of its options."""

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
    seed: int = 0


class CharLMTape(NamedTuple):
    """What `CharLM.forward` keeps for `CharLM.backward`."""

    rnn: Tape
    readout: Tape


class CharLM:
    """The model, from tokens [T,B] to the logits [T,B,V] of what follows each.

    Parameters
    ----------
    vocabulary : str
        V different characters; a token is the index of one.
    options : Options
        Of these the cell, the sizes hidden (H), layers (L) and embed (E), the dropout and the seed.

    Attributes
    ----------
    embedding : ndarray [V,E]
    rnn : LSTM, GRU or RNN
    readout : Linear
    rng : numpy.random.Generator
        The only source of chance, which the layers share.
    """

    def __init__(self, vocabulary: str, options: Options) -> None:
        self.vocabulary = vocabulary
        self.rng = np.random.default_rng(options.seed)
        self.embedding = self.rng.standard_normal((len(vocabulary), options.embed), np.float32)
        self.rnn = LAYERS[options.cell](
            options.embed, options.hidden, options.layers, dropout=options.dropout, seed=self.rng
        )
        self.readout = Linear(options.hidden, len(vocabulary), seed=self.rng)

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters: the arrays themselves, by the names that torch gives them."""
        rnn, readout = self.rnn.state_dict(), self.readout.state_dict()
        return _joined(embedding={"weight": self.embedding}, rnn=rnn, readout=readout)

    def __call__(self, tokens: Array, state: State | None = None) -> tuple[Array, State]:
        """Return the logits [T,B,V] after tokens [T,B], and the last state."""
        y, state = self.rnn(tokens, state, embedding=self.embedding)
        return self.readout(y), state

    def forward(self, tokens: Array, state: State | None = None) -> tuple[Array, State, CharLMTape]:
        """Return what a call does, with dropout, and the tape for `backward`."""
        y, state, rnn = self.rnn.forward(tokens, state, embedding=self.embedding)
        logits, readout = self.readout.forward(y)
        return logits, state, CharLMTape(rnn, readout)

    def backward(self, tape: CharLMTape, dlogits: Array) -> dict[str, Array]:
        """Return the gradients by the keys of `state_dict()`, given that of the logits [T,B,V]."""
        dy, readout = self.readout.backward(tape.readout, dlogits)
        _, _, rnn = self.rnn.backward(tape.rnn, dy)
        return _joined(embedding={"weight": rnn.pop("embedding")}, rnn=rnn, readout=readout)

    def sample(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        temperature: float = 0.8,
        stop: str = "",
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a text, character by character.

        Parameters
        ----------
        prompt : str, optional
            In the characters of the vocabulary; by default a line break, or else the vocabulary's first.
        length : int, optional
            How many characters at most.
        temperature : float, optional
            What the logits are divided by; 0 takes the likeliest character each time.
        stop : str, optional
            The last character is the one that completes this.
        seed : int, optional
            Without it, each text is another.

        Yields
        ------
        str
            One character.

        Raises
        ------
        UsageError
            If a character of the prompt is not in the vocabulary.
        """
        rng = np.random.default_rng(seed)
        start = "\n" if "\n" in self.vocabulary else self.vocabulary[0]
        tokens, state, end = encode(prompt or start, self.vocabulary), None, ""
        for _ in range(length):
            logits, state = self(tokens[:, np.newaxis], state)
            # The largest of logits + temperature * Gumbel noise is a draw from softmax(logits / temperature).
            with np.errstate(all="ignore"):
                token = np.argmax(logits[-1, 0] + temperature * rng.gumbel(size=len(self.vocabulary)))
            tokens = np.array([token])
            yield self.vocabulary[token]
            end = (end + self.vocabulary[token])[-max(len(stop), 1) :]
            if end == stop:
                return


class Checkpoint(NamedTuple):
    """What a file holds that `Training.save` wrote; UsageError says that a file is of another kind."""

    path: Path
    options: Options
    vocabulary: str
    text_hash: str
    steps: int
    generator: dict[str, Any]
    tensors: dict[str, Array]

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read a file; OSError if that fails."""
        import safetensors

        with path.open("rb"):
            pass  # its OSError says more than what safetensors raises
        with _kind_checked(path), safetensors.safe_open(path, "numpy") as file:
            description = json.loads((file.metadata() or {})[FORMAT])
            options = Options(**description.pop("options"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(path=path, options=options, tensors=tensors, **description)

    def model(self) -> CharLM:
        """Make the trained model."""
        with _kind_checked(self.path):
            model = CharLM(self.vocabulary, self.options)
        self.copy_to(_joined(model=model.state_dict()))
        return model

    def copy_to(self, arrays: dict[str, Array]) -> None:
        """Copy the tensors of these names to the arrays."""
        with _kind_checked(self.path):
            for name, a in arrays.items():
                np.copyto(a, checked(self.tensors[name], name, a.shape, a.dtype))


@contextmanager
def _kind_checked(path: Path) -> Iterator[None]:
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        msg = f"{path}: not a model that `python -m rnnfast train` has saved"
        raise UsageError(msg) from error


class Training:
    """A run, which can be saved after any step: resumed, it ends with the same weights, bit for bit.

    The last tenth of the text is held out, the rest is cut into B streams. An epoch reads them to their end, but
    for a remainder shorter than T; the next starts again at their beginning, with a zero state.

    Parameters
    ----------
    text : str
    options : Options
        Of these all but the text's file and the number of steps, which are the caller's.

    Attributes
    ----------
    model : CharLM
    steps : int
        How many have been taken.
    steps_per_epoch : int

    Raises
    ------
    UsageError
        If the text is too short.
    """

    def __init__(self, text: str, options: Options) -> None:
        B, T = options.batch, options.seq_len
        # At least 20, so that the held-out tenth has something to predict
        needed = max(20, math.ceil(B * (T + 1) / 0.9))
        if len(text) < needed:
            msg = (
                f"the text has {len(text)} characters, and {B} sequences of {T} steps need {needed}; "
                "take a longer one, or lower --batch or --seq-len"
            )
            raise UsageError(msg)
        vocabulary = "".join(sorted(set(text)))
        tokens = encode(text, vocabulary)
        streams, self.held_out = np.split(tokens, [len(tokens) - len(tokens) // 10])
        length = len(streams) // B
        self.streams = np.ascontiguousarray(streams[: B * length].reshape(B, length).T)
        self.steps_per_epoch = (length - 1) // T
        self.text_hash = hashlib.sha256(text.encode()).hexdigest()
        self.options = options
        self.model = CharLM(vocabulary, options)
        self.adam = Adam(self.model.state_dict(), options.lr)
        h = np.zeros((options.layers, B, options.hidden), np.float32)
        self.state: State = (h, h.copy()) if options.cell == "lstm" else h
        self.steps = 0

    def step(self) -> float:
        """Train on the next window and return its loss, in nats per character."""
        window, T = self.steps % self.steps_per_epoch, self.options.seq_len
        tokens = self.streams[window * T : (window + 1) * T + 1]
        logits, self.state, tape = self.model.forward(tokens[:-1], None if window == 0 else self.state)
        loss, dlogits = softmax_cross_entropy(logits, tokens[1:])
        grads = self.model.backward(tape, dlogits)
        clip_grad_norm(grads, self.options.clip)
        self.adam.step(grads)
        self.steps += 1
        return loss

    def held_out_bits(self) -> float:
        """Return the bits per character of the held-out text, read as one sequence from a zero state."""
        nats, state = 0.0, None
        predicted = len(self.held_out) - 1
        for start in range(0, predicted, CHUNK):
            tokens = self.held_out[start : start + CHUNK + 1, np.newaxis]
            logits, state = self.model(tokens[:-1], state)
            nats += softmax_cross_entropy(logits, tokens[1:], reduction="sum")[0]
        return nats / predicted / math.log(2)

    def save(self, path: Path) -> None:
        """Write what sampling and resuming need to a safetensors file."""
        from safetensors.numpy import save

        description = {
            "options": asdict(self.options),
            "vocabulary": self.model.vocabulary,
            "text_hash": self.text_hash,
            "steps": self.steps,
            "generator": self.model.rng.bit_generator.state,
        }
        write(path, save(self._arrays(), {FORMAT: json.dumps(description)}))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from where a run of the same text, cell and sizes was saved.

        Raises
        ------
        UsageError
            If the text is another one.
        """
        if self.text_hash != checkpoint.text_hash:
            msg = f"the text is not the one that the run of {checkpoint.path} was started with"
            raise UsageError(msg)
        checkpoint.copy_to(self._arrays())
        with _kind_checked(checkpoint.path):
            self.model.rng.bit_generator.state = checkpoint.generator
        self.steps = checkpoint.steps

    def _arrays(self) -> dict[str, Array]:
        """Return all arrays that a step changes, by their names in the file."""
        state = dict(zip("hc", self.state if isinstance(self.state, tuple) else (self.state,), strict=False))
        return _joined(model=self.model.state_dict(), adam=self.adam.state_dict(), state=state)


def encode(text: str, vocabulary: str) -> Array:
    """Return the tokens of the text; UsageError if the vocabulary lacks a character."""
    codes, known = (_code_points(s) for s in (text, vocabulary))
    token_of = np.full(sys.maxunicode + 1, -1, np.int32)
    token_of[known] = np.arange(len(known))
    tokens = token_of[codes]
    if tokens.min() < 0:
        unknown = " ".join(map(repr, sorted(set(text) - set(vocabulary))))
        msg = f"characters that the model's text did not have: {unknown}"
        raise UsageError(msg)
    return tokens


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def default_text() -> str:
    """Return half a million characters that every Python carries: what help() says of its topics."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what was there stays until all of the new one is written."""
    new = temporary(path)
    try:
        new.write_bytes(data)
        new.replace(path.resolve())
    finally:
        new.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    path = path.resolve()  # of a link, what it points to
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _joined(**parts: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of all parts by the names ``<part>.<name>``."""
    return {f"{part}.{name}": a for part, arrays in parts.items() for name, a in arrays.items()}
