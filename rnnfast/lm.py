"""A character language model, and the training behind ``python -m rnnfast train``.

The model reads characters and predicts each next one: embedding, a stack of LSTM, GRU or Elman layers, linear
readout, softmax. It is trained by truncated backpropagation through time: the text is divided into B streams that are
read in parallel, T characters at a time. The state is carried from window to window; gradients are not.

`Training` is a run that can be saved, `Checkpoint` is the contents of its file, and `CharLM` is the model in it.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._base.arrays import Array, checked
from ._base.files import UNREADABLE, check_readable
from ._base.formats import Format
from ._base.module import Kept, Tape
from ._base.scalars import RNG, generator, integer
from ._base.state import STATES, State, parts_of, state_of
from ._base.tensors import read_tensors, write_tensors
from ._stack.quantized import Quantized
from .container import joined
from .linear import Linear
from .lm_options import DROPOUTS, SIZE, TEMPERATURE, UsageError, default_text
from .lm_options import LAYERS as LAYERS
from .lm_options import Options as Options
from .training import Adam, Pruner, clip_grad_norm, softmax_cross_entropy

__all__ = ["CharLM", "CharLMTape", "Checkpoint", "Options", "Training", "UsageError", "default_text", "encode"]

FORMAT = "rnnfast.lm"  # what the header of our files is found by
PARTS = "embedding", "rnn", "readout"  # of the model
FLOAT = np.dtype(np.float32)  # of all that is trained
SHORTEST = 20  # characters of a text, so that its held-out tenth has something to predict
# Steps at a time where nothing is trained: long enough to hide the cost of a call, short on memory
CHUNK = 1024


class CharLMTape(NamedTuple):
    """What `CharLM.forward` keeps for `CharLM.backward`.

    Examples
    --------
    >>> _, _, tape = CharLM("ab", Options(hidden=4, embed=2)).forward([[0], [1]])
    >>> isinstance(tape, CharLMTape)
    True
    """

    rnn: Tape
    readout: Tape


class CharLM:
    """The language model, from tokens [T,B] to the logits [T,B,V] of the next token.

    Parameters
    ----------
    vocabulary : str
        V different characters; a token is the index of a character.
    options : Options
        It uses the cell, the sizes hidden (H), layers (L) and embed (E), the dropouts, zoneout and the seed.
    parameters : mapping of ndarrays, optional
        The parameters by the names of `state_dict`, used without a copy. By default new ones are drawn.
    format : {"bfloat16", "int8"}, optional
        The format of the matrices of `rnn` among the parameters. Such a model cannot be trained.

    Attributes
    ----------
    vocabulary, options
    embedding : ndarray [V,E]
    rnn : LSTM, GRU, RNN, or Quantized of one of them
    readout : Linear
    rng : numpy.random.Generator
        The source of all random numbers, shared by the layers.

    Raises
    ------
    ValueError
        If a character occurs twice, or the vocabulary is empty.
    TypeError, ValueError
        If a parameter is missing, unknown, or of another dtype or shape.

    Examples
    --------
    >>> model = CharLM("abc", Options(hidden=8, embed=4))
    >>> logits, state = model(encode("abba", "abc")[:, np.newaxis])
    >>> logits.shape
    (4, 1, 3)
    """

    def __init__(
        self,
        vocabulary: str,
        options: Options,
        parameters: Mapping[str, Array] | None = None,
        *,
        format: Format | None = None,  # noqa: A002
    ) -> None:
        if not isinstance(vocabulary, str):
            msg = f"vocabulary: expected a str, got {type(vocabulary).__name__}"
            raise TypeError(msg)
        V, E, H, L = len(vocabulary), options.embed, options.hidden, options.layers
        if not V or len(set(vocabulary)) < V:
            msg = f"vocabulary: expected different characters, got {vocabulary!r}"
            raise ValueError(msg)
        self.vocabulary, self.options = vocabulary, options
        if format is not None and parameters is None:
            msg = f"parameters: expected those of a model that was quantised to {format}, got None"
            raise TypeError(msg)
        self.rng = np.random.default_rng(options.seed)
        rnn: Any = self.rng
        readout: Any = self.rng
        if parameters is None:
            self.embedding = self.rng.standard_normal((V, E), FLOAT)
        else:
            embedding, rnn, readout = (Kept(_part(parameters, part), self.rng) for part in PARTS)
            self.embedding = embedding.take([("weight", (V, E))], FLOAT)["weight"]
        rates = {name: rate for name in DROPOUTS if (rate := getattr(options, name))}
        kind, arguments = LAYERS[options.cell], {"input_size": E, "hidden_size": H, "num_layers": L, **rates}
        self.rnn: Any
        if format is None:
            self.rnn = kind(**arguments, rng=rnn)
        else:
            self.rnn = Quantized({"class": kind.__name__, "arguments": arguments}, format, kept=rnn)
        self.readout = Linear(H, V, rng=readout)
        if parameters is not None:
            _check_keys(parameters, self.state_dict())

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states of `rnn`: h, and c for an LSTM."""
        return STATES[self.rnn.cell]

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by torch's names, without copies."""
        rnn, readout = self.rnn.state_dict(), self.readout.state_dict()
        return joined({"embedding": {"weight": self.embedding}, "rnn": rnn, "readout": readout})

    def quantize(self, format: Format) -> "CharLM":  # noqa: A002
        """Return the model with a low-precision `rnn` for inference; the other arrays are shared.

        Parameters
        ----------
        format : {"bfloat16", "int8"}

        Raises
        ------
        TypeError, ValueError
            If the format is not "bfloat16" or "int8", or is not available for the layer.
        """
        rnn = self.rnn.quantize(format)
        others = {name: a for name, a in self.state_dict().items() if not name.startswith("rnn.")}
        return CharLM(self.vocabulary, self.options, {**others, **joined({"rnn": rnn.state_dict()})}, format=format)

    def __call__(self, tokens: Array, state: State | None = None) -> tuple[Array, State]:
        """Return the logits of what follows each token.

        Parameters
        ----------
        tokens : array [T,B] of integers
        state : optional
            What an earlier call returned; zeros by default.

        Returns
        -------
        logits : ndarray [T,B,V]
        state : tuple of ndarrays (h, c) of an LSTM, ndarray h of the others
            The last one.
        """
        y, state = self.rnn(tokens, state, embedding=self.embedding)
        return self.readout(y), state

    def forward(self, tokens: Array, state: State | None = None) -> tuple[Array, State, CharLMTape]:
        """Return the same as a call, but with dropout, and the tape; takes and raises what a call does."""
        y, state, rnn = self.rnn.forward(tokens, state, embedding=self.embedding)
        logits, readout = self.readout.forward(y)
        return logits, state, CharLMTape(rnn, readout)

    def backward(self, tape: CharLMTape, dlogits: Array) -> dict[str, Array]:
        """Return the gradients by the keys of `state_dict()`, given the gradient of the logits [T,B,V]."""
        dy, readout = self.readout.backward(tape.readout, dlogits)
        _, _, rnn = self.rnn.backward(tape.rnn, dy)
        return joined({"embedding": {"weight": rnn.pop("embedding")}, "rnn": rnn, "readout": readout})

    def sample(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        temperature: float = 0.8,
        stop: str = "",
        rng: RNG | None = None,
        seed: RNG | None = None,
    ) -> Iterator[str]:
        """Continue a text, character by character.

        Parameters
        ----------
        prompt : str, optional
            Consists of characters of the vocabulary. The default is a line break, or the first character if the
            vocabulary has none.
        length : int, optional
            The maximum number of characters, at least 1.
        temperature : float, optional
            The logits are divided by this number; 0 takes the most likely character each time.
        stop : str, optional
            Sampling ends when the text ends with this.
        rng, seed : int, Generator or what `numpy.random.default_rng` takes, optional
            By default, each text is different. `seed` is the older name.

        Returns
        -------
        iterator of str
            The characters, one at a time.

        Raises
        ------
        UsageError
            If a character of the prompt is not in the vocabulary.
        TypeError, ValueError
            If another argument does not fit.
        """
        length, temperature = SIZE.checked(length, "length"), TEMPERATURE.checked(temperature, "temperature")
        source = generator(rng, seed)
        start = "\n" if "\n" in self.vocabulary else self.vocabulary[0]
        tokens = encode(prompt or start, self.vocabulary)

        def characters() -> Iterator[str]:
            stream, last, end = self.rnn.stream(), tokens, ""
            for _ in range(length):
                logits = self.readout(stream.run(self.embedding[last])[-1])
                # The largest of logits + temperature * Gumbel noise is a draw from softmax(logits / temperature).
                with np.errstate(all="ignore"):  # of an extreme temperature
                    token = np.argmax(logits + temperature * source.gumbel(size=len(self.vocabulary)))
                last = np.array([token])
                yield self.vocabulary[token]
                end = (end + self.vocabulary[token])[-max(len(stop), 1) :]
                if end == stop:
                    return

        return characters()


class Checkpoint(NamedTuple):
    """The contents of a file written by `Training.save` or `Checkpoint.write`.

    Attributes
    ----------
    path : Path
    options : Options
        Of the run.
    vocabulary : str
        The characters of the text, in the order of their tokens.
    text_hash : str
        SHA-256 of the text in UTF-8.
    steps : int
        The number of steps taken.
    generator : dict
        The state of the run's random generator.
    tensors : dict of ndarrays
        The parameters as ``model.<name>``, the state of Adam as ``adam.<name>``, the state of the streams as
        ``state.h`` and ``state.c``, and if weights are pruned ``pruner.t``, ``pruner.density`` and
        ``pruner.mask.<name>``. For a quantised model, only the parameters.
    format : {"bfloat16", "int8"}, optional
        The format of a quantised model, which can be sampled but not trained.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
    >>> Training("to be or not to be, " * 20, Options(hidden=8, embed=4, batch=2, seq_len=5)).save(path)
    >>> Checkpoint.read(path).vocabulary
    ' ,benort'
    """

    path: Path
    options: Options
    vocabulary: str
    text_hash: str
    steps: int
    generator: dict[str, Any]
    tensors: dict[str, Array]
    format: Format | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Read a file. This allocates no more than the size of its tensors, whatever its metadata say.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        Checkpoint

        Raises
        ------
        OSError
            If the file cannot be read, or is not a regular file.
        UsageError
            If it was not written by `Training.save`, or is damaged.
        """
        import safetensors

        path = Path(path)
        check_readable(path)
        try:
            metadata, tensors = read_tensors(path)
            description = json.loads(metadata[FORMAT])
            options = Options(**description.pop("options"))
            checkpoint = cls(path=path, options=options, tensors=tensors, **description)
            checkpoint._check_tensors()
        except (*UNREADABLE, OSError, safetensors.SafetensorError) as error:
            msg = f"{path}: not a model that `python -m rnnfast train` has saved"
            raise UsageError(msg) from error
        return checkpoint

    def model(self) -> CharLM:
        """Return the trained model, with its own parameters."""
        parameters = {name: a.copy() for name, a in _part(self.tensors, "model").items()}
        return CharLM(self.vocabulary, self.options, parameters, format=self.format)

    def quantize(self, format: Format) -> "Checkpoint":  # noqa: A002
        """Return the checkpoint of the low-precision model; takes and raises what `CharLM.quantize` does."""
        parameters = self.model().quantize(format).state_dict()
        return self._replace(tensors=joined({"model": parameters}), format=format)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, completely or not at all.

        Parameters
        ----------
        path : path-like
            A new file, or a regular file, which is replaced once the new one is complete.

        Raises
        ------
        OSError
            If the file cannot be written. An older file is then unchanged.
        """
        others = {name: value for name, value in self._asdict().items() if name not in ("path", "tensors")}
        if self.format is None:
            del others["format"]
        description = {**others, "options": asdict(self.options)}
        write_tensors(path, self.tensors, {FORMAT: json.dumps(description)})

    def _check_tensors(self) -> None:
        """Check all that is no tensor against the tensors, and these against each other."""
        options = self.options
        model = CharLM(self.vocabulary, options, _part(self.tensors, "model"), format=self.format)
        steps = integer(self.steps, "steps")
        np.random.default_rng(0).bit_generator.state = self.generator
        if self.format is not None:
            _check_keys(self.tensors, joined({"model": model.state_dict()}))
            return
        shapes = {name: p.shape for name, p in model.state_dict().items()}
        state = dict.fromkeys(model.states, (options.layers, options.batch, options.hidden))
        expected = joined({"model": shapes, "adam": {"t": (), "m": shapes, "v": shapes}, "state": state})
        pruner = None if options.density == 1 else _pruner(model, options)
        _check_keys(self.tensors, {**expected, **joined({"pruner": {} if pruner is None else pruner.state_dict()})})
        for name, shape in expected.items():
            checked(self.tensors[name], name, shape, np.dtype(np.int64) if name == "adam.t" else FLOAT)
        if pruner is not None:
            pruner.load_state_dict(_part(self.tensors, "pruner"))
        if steps < 0 or any(steps != self.tensors[name] for name in ("adam.t", "pruner.t") if name in self.tensors):
            msg = f"steps: expected as many as Adam and the pruner have had, got {steps}"
            raise ValueError(msg)


class Training:
    """A training run that can be saved and resumed; it ends with the same weights, bit for bit.

    The last tenth of the text is held out, and the rest is divided into B streams. An epoch reads these to the end,
    except for a remainder shorter than T. The next epoch starts again at the beginning, with a zero state.

    Parameters
    ----------
    text : str
    options : Options
        All are used except the file of the text and the number of steps, which only affects the schedule of pruning.

    Attributes
    ----------
    model : CharLM
    steps : int
        The number of steps taken.
    steps_per_epoch : int
    pruner : Pruner or None
        If the density is below 1, prunes the layers between 10% and 70% of ``options.steps``, with balanced blocks of
        16 units by one column, and without keeping diagonals.

    Raises
    ------
    UsageError
        If the text is too short.

    Examples
    --------
    >>> training = Training("to be or not to be, " * 20, Options(hidden=8, embed=4, batch=2, seq_len=5, lr=0.02))
    >>> losses = [training.step() for _ in range(100)]
    >>> losses[-1] < losses[0], training.steps
    (True, 100)
    """

    def __init__(self, text: str, options: Options) -> None:
        B, T = options.batch, options.seq_len
        needed = -(-10 * B * (T + 1) // 9)  # rounded up, since a tenth is held out
        if len(text) < max(needed, SHORTEST):
            says = f"the text has {len(text)} characters, and"
            if len(text) < SHORTEST:
                msg = f"{says} at least {SHORTEST} are needed; use a longer text"
            else:
                msg = f"{says} --batch {B} with --seq-len {T} needs {needed}; use a longer text, or lower these"
            raise UsageError(msg)
        vocabulary = "".join(sorted(set(text)))
        tokens = encode(text, vocabulary)
        streams, self.held_out = np.split(tokens, [len(tokens) - len(tokens) // 10])
        length = len(streams) // B
        self.streams = np.ascontiguousarray(streams[: B * length].reshape(B, length).T)
        self.steps_per_epoch = (length - 1) // T
        self.text_hash = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        self.options = options
        self.model = CharLM(vocabulary, options)
        self.adam = Adam(self.model.state_dict(), options.lr)
        self.pruner = None if options.density == 1 else _pruner(self.model, options)
        parts = tuple(np.zeros((options.layers, B, options.hidden), FLOAT) for _ in self.model.states)
        self.state: State = state_of(parts)
        self.steps = 0

    def step(self) -> float:
        """Train on the next window.

        Returns
        -------
        float
            The loss of the window, in nats per character.
        """
        window, T = self.steps % self.steps_per_epoch, self.options.seq_len
        tokens = self.streams[window * T : (window + 1) * T + 1]
        logits, self.state, tape = self.model.forward(tokens[:-1], None if window == 0 else self.state)
        loss, dlogits = softmax_cross_entropy(logits, tokens[1:])
        grads = self.model.backward(tape, dlogits)
        clip_grad_norm(grads, self.options.clip)
        self.adam.step(grads)
        if self.pruner is not None:
            self.pruner.start, self.pruner.stop, self.pruner.every = _schedule(self.options.steps)
            self.pruner.step()
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the run to a safetensors file, for sampling and resuming. The file is written completely or not at all.

        Parameters
        ----------
        path : path-like
            A new file, or a regular file, which is replaced once the new one is complete.

        Raises
        ------
        OSError
            If the file cannot be written. An older file is then unchanged.
        """
        generator: Any = self.model.rng.bit_generator.state
        vocabulary, text_hash = self.model.vocabulary, self.text_hash
        Checkpoint(Path(path), self.options, vocabulary, text_hash, self.steps, generator, self._arrays()).write(path)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue a saved run with the same text, cell and sizes.

        Parameters
        ----------
        checkpoint : Checkpoint

        Raises
        ------
        UsageError
            If the text is different, or the model was quantised.
        TypeError, ValueError
            If the cell or a size is different. In that case nothing has changed.
        """
        if checkpoint.format is not None:
            msg = f"{checkpoint.path} has weights of {checkpoint.format}, which cannot be trained any more"
            raise UsageError(msg)
        if self.text_hash != checkpoint.text_hash:
            msg = f"the text is not the one that the run of {checkpoint.path} was started with"
            raise UsageError(msg)
        arrays = self._arrays()
        _check_keys(checkpoint.tensors, arrays)
        saved = [checked(checkpoint.tensors[name], name, a.shape, a.dtype) for name, a in arrays.items()]
        for a, values in zip(arrays.values(), saved, strict=True):
            np.copyto(a, values)
        self.model.rng.bit_generator.state = checkpoint.generator
        self.steps = checkpoint.steps

    def _arrays(self) -> dict[str, Array]:
        """Return all arrays that a step changes, by their names in the file."""
        state = dict(zip(self.model.states, parts_of(self.model.rnn.cell, self.state, "state"), strict=True))
        adam = {name: a for name, a in self.adam.state_dict().items() if name != "lr"}  # which is an option
        pruner = {} if self.pruner is None else self.pruner.state_dict()
        return joined({"model": self.model.state_dict(), "adam": adam, "state": state, "pruner": pruner})


def _pruner(model: CharLM, options: Options) -> Pruner:
    start, stop, every = _schedule(options.steps)
    # By held-out bits, the others help more than the diagonals, and balanced masks are better than others.
    own: dict[str, Any] = {"keep_diagonal": False, "balanced": True}
    return Pruner(model.rnn, options.density, start=start, stop=stop, every=every, **own)


def _schedule(steps: int) -> tuple[int, int, int]:
    """Return where in a run pruning starts and stops, and after how many steps each there are new masks."""
    start = steps // 10
    return start, max(7 * steps // 10, start + 1), max(steps // 100, 1)


def encode(text: str, vocabulary: str) -> Array:
    """Return the tokens of a text, the index of each of its characters in the vocabulary.

    Parameters
    ----------
    text : str
    vocabulary : str

    Returns
    -------
    ndarray of integers [len(text)]

    Raises
    ------
    UsageError
        If the vocabulary lacks a character.

    Examples
    --------
    >>> encode("abba", "abc")
    array([0, 1, 1, 0], dtype=int32)
    """
    codes, known = (_code_points(s) for s in (text, vocabulary))
    token_of = np.full(sys.maxunicode + 1, -1, np.int32)
    token_of[known] = np.arange(len(known))
    tokens = token_of[codes]
    if (tokens < 0).any():
        unknown = " ".join(map(repr, sorted(set(text) - set(vocabulary))))
        msg = f"characters that do not occur in the model's text: {unknown}"
        raise UsageError(msg)
    return tokens


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _part(arrays: Mapping[str, Array], part: str) -> dict[str, Array]:
    """Return the arrays of one part by their own names."""
    return {name.removeprefix(f"{part}."): a for name, a in arrays.items() if name.startswith(f"{part}.")}


def _check_keys(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if given.keys() != expected.keys():
        missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        msg = f"missing keys: {missing}; unexpected keys: {unexpected}"
        raise ValueError(msg)


@contextmanager
def allocating() -> Iterator[None]:
    """Raise MemoryError for sizes beyond all memory, for which constructors raise ValueError."""
    try:
        yield
    except ValueError as error:
        raise MemoryError from error
