"""The command line: ``python -m rnnfast train | sample | bench | gradflow | info``."""

import argparse
import errno
import io
import math
import os
import shlex
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn, Self

import numpy as np

from .. import __version__, show_config, threads
from .._files import check_readable, check_writable
from ..lm import (
    LAYERS,
    RANGES,
    SEED,
    SIZE,
    TEMPERATURE,
    Checkpoint,
    Options,
    Range,
    Training,
    UsageError,
    allocating,
    default_text,
)

PROGRAM = "python -m rnnfast"
OUT = Path("charlm.safetensors")
STDIN = "-"
KEPT = "cell", "hidden", "layers", "embed", "batch", "seq_len", "seed"  # what a resumed run cannot change
SIGNALED = 128  # what shells add to the number of the signal that ended a program
INTERRUPTED, PIPE_CLOSED = SIGNALED + signal.SIGINT, SIGNALED + 13  # SIGPIPE, which Windows has not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    What the user can put right is one line on stderr, and exit status 2.
    """
    parser: argparse.ArgumentParser = _parser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may have more characters than the terminal
    try:
        with _flushed_stdout(), ExitStack() as stack:
            given, unknown = parser.parse_known_args(arguments)
            options = vars(given)
            parser = options.pop("parser")
            if unknown:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            if n := options.pop("threads", None):
                _enter_threads(stack, n)
            status: int = options.pop("command")(**options) or 0
            return status
    except UsageError as error:
        parser.error(str(error))
    except MemoryError:
        parser.error("not enough memory; lower --hidden, --layers, --embed, --batch, --seq-len, --horizon or --shape")
    except BrokenPipeError:
        _discard_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None:  # as every file has a name, it was a print that failed
            _discard_stdout()
        parser.error(f"{error.filename or 'standard output'}: {_reason(error)}")
    except KeyboardInterrupt:
        return INTERRUPTED


def train(
    *,
    out: Path | None = None,
    resume: Path | None = None,
    force: bool = False,
    epochs: int = 0,
    save_every: int = 0,
    quiet: bool = False,
    **given: Any,
) -> int:
    """Train a character language model, save it and tell how good it is."""
    checkpoint = None if resume is None else Checkpoint.read(resume)
    options = Options(**given) if checkpoint is None else _resumed(checkpoint, given)
    if options.dropout and options.layers == 1:
        msg = "--dropout acts between layers: it needs --layers of at least 2"
        raise UsageError(msg)
    out = out or resume or OUT
    _check_out(out, resume, force)
    training = _training(options)
    if checkpoint is not None:
        training.resume(checkpoint)
    if epochs:
        training.options = replace(training.options, steps=epochs * training.steps_per_epoch)
    total = training.options.steps
    if training.steps >= total:
        msg = f"{resume} has had {training.steps} of {total} steps; ask for more in all by --steps or --epochs"
        raise UsageError(msg)

    with _Signals() as signals:
        try:
            _run(training, signals, quiet, save_every, out)
        except KeyboardInterrupt:
            _say(f"stopped within step {training.steps + 1} without saving")
            return signals.status
        try:
            if training.steps == total:
                signals.patience = 0  # the evaluation can be left at any time
                print(f"held-out: {training.held_out_bits():.3f} bits per character", flush=True)
        except KeyboardInterrupt:
            pass
        finally:  # whether or not standard output took that line
            signals.patience = math.inf
            training.save(out)
        file = shlex.quote(str(out))
        if training.steps < total:
            _say(f"saved after {training.steps} of {total} steps; to go on: {PROGRAM} train --resume {file}")
        elif signals.status:
            _say(f"saved; to sample: {PROGRAM} sample {file}")
    if not signals.status and not quiet:
        print("".join(training.model.sample(seed=options.seed)))
        print(f"saved; for more: {PROGRAM} sample {file}")
    return signals.status


def sample(*, file: Path, prompt: str = "", **options: Any) -> None:
    """Print the prompt and what the model makes of it, character by character."""
    characters = Checkpoint.read(file).model().sample(prompt, **options)
    print(prompt, end="", flush=True)
    for character in characters:
        print(character, end="", flush=True)
    print()


def bench(**options: Any) -> None:
    """Time the layers, and the peers that are installed."""
    from ..bench import run

    run(**options)


def gradflow(**options: Any) -> None:
    """Compare how far back gradients reach in Elman networks, GRU and LSTM before any training."""
    from ..gradflow import run

    run(**options)


def info() -> None:
    """Print the version, the compiler, the instruction sets and the number of threads."""
    show_config()


def _run(training: Training, signals: "_Signals", quiet: bool, save_every: int, out: Path) -> None:
    """Train to the end, or to the first signal."""
    from tqdm import tqdm

    options = training.options
    tokens = options.batch * options.seq_len
    losses = deque[float](maxlen=50)
    bar = tqdm(
        total=options.steps * tokens,
        initial=training.steps * tokens,
        unit=" tokens",
        unit_scale=True,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left, {rate_fmt}{postfix}",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr is not None and sys.stderr.isatty() else 5.0,
        disable=quiet or sys.stderr is None,
        file=_Stderr(),
    )
    with bar, np.errstate(over="ignore", invalid="ignore"):
        while training.steps < options.steps and not signals.status:
            losses.append(training.step())
            if not math.isfinite(losses[-1]):
                msg = f"step {training.steps} had a loss of {losses[-1]}, which is not saved; lower --lr or --clip"
                raise UsageError(msg)
            loss = fmean(losses)
            says = f"loss {loss:.3f}, {loss / math.log(2):.3f} bits/char"
            bar.set_postfix_str(says, refresh=False)
            bar.update(tokens)
            if save_every and training.steps % save_every == 0 and training.steps < options.steps:
                signals.patience = math.inf
                try:
                    training.save(out)
                except OSError as error:  # there may be space again when the next save is due
                    tqdm.write(f"step {training.steps} was not saved: {out}: {_reason(error)}", file=_Stderr())
                signals.patience = 1


class _Stderr:
    """stderr, where a full disk or a lost terminal is no reason to lose the run."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(AttributeError, OSError):  # there may be no stderr at all
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(AttributeError, OSError):
            sys.stderr.flush()


class _Signals:
    """What ends a run early: Ctrl-C, SIGTERM and SIGHUP, those of them that are not ignored.

    Attributes
    ----------
    patience : float
        How many of them are noted before one raises KeyboardInterrupt; all that follow are noted again, so that
        nothing is left by halves.
    status : int
        The exit status of a program that the first of them has ended, 0 while there was none.
    """

    NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.patience = 1.0
        self.status = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may have handlers
            for number in self.NUMBERS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: one that is not Python's
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.status = self.status or SIGNALED + number
        self.patience -= 1
        if self.patience < 0:
            self.patience = math.inf
            raise KeyboardInterrupt


def _resumed(checkpoint: Checkpoint, given: dict[str, Any]) -> Options:
    """Return the options of the saved run, changed by what is given now."""
    for name in KEPT:
        saved = getattr(checkpoint.options, name)
        if given.get(name, saved) != saved:
            option = name.replace("_", "-")
            msg = f"{checkpoint.path} has --{option} {saved}; a resumed run cannot change it to {given[name]}"
            raise UsageError(msg)
    if "text" not in given:
        _check_text(checkpoint)
    return replace(checkpoint.options, **given)


def _check_text(checkpoint: Checkpoint) -> None:
    """Refuse to read anything but a regular file because a checkpoint names it."""
    text = checkpoint.options.text
    if text == STDIN:
        msg = f"the run of {checkpoint.path} read its text from standard input; give the text by --text"
        raise UsageError(msg)
    try:
        if text is not None:
            check_readable(text)
    except (OSError, ValueError) as error:
        msg = f"the run of {checkpoint.path} had its text in {text}: {_reason(error)}; give the text by --text"
        raise UsageError(msg) from error


def _training(options: Options) -> Training:
    """Read the text and make the run."""
    try:
        text = default_text() if options.text is None else _read(options.text)
    except OSError as error:
        msg = f"--text {options.text}: {_reason(error)}; it has to be a text file in UTF-8"
        raise UsageError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"--text {options.text}: not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        raise UsageError(msg) from error
    if options.text not in (None, STDIN):
        options = replace(options, text=str(Path(options.text).absolute()))  # to be resumed in any folder
    with allocating():
        return Training(text, options)


def _read(text: str) -> str:
    """Return what a file or standard input holds, without a byte order mark, its lines ended as in Python."""
    if text != STDIN:
        data = Path(text).read_bytes()
    elif sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    else:
        data = sys.stdin.buffer.read()
    return data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _check_out(out: Path, resumed: Path | None, force: bool) -> None:
    """Refuse to train what cannot be saved, and to overwrite what is not meant to be."""
    try:
        check_writable(out)
        if not out.exists() or (resumed is not None and out.samefile(resumed)):
            return
        Checkpoint.read(out)
    except UsageError as error:
        msg = f"--out {out}: there is such a file, and it is no model of ours to overwrite; take another name"
        raise UsageError(msg) from error
    except OSError as error:
        msg = f"--out {out}: {_reason(error)}; take a place where a file can be written"
        raise UsageError(msg) from error
    if not force:
        msg = f"--out {out}: there is a model of an earlier run; --force overwrites it, --resume {out} goes on with it"
        raise UsageError(msg)


def _say(line: str) -> None:
    print(line, file=_Stderr(), flush=True)


def _reason(error: Exception) -> str:
    """Return what happened, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextmanager
def _flushed_stdout() -> Iterator[None]:
    """Find out at the end, while it can be said, what standard output does not take."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def _discard_stdout() -> None:
    """Let what Python flushes when it ends go nowhere."""
    with suppress(OSError):  # of a stream that is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _enter_threads(stack: ExitStack, n: int) -> None:
    try:
        stack.enter_context(threads(n))
    except ValueError as error:
        msg = f"--threads: {str(error).removeprefix('n: ')}"
        raise UsageError(msg) from error


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # names of files may have any
        self.exit(2, f"{self.prog}: {line} (help: {self.prog} --help)\n")


def _parsed(numbers: Range) -> Callable[[str], Any]:
    """Return what makes a number of an option's word, where it fits."""

    def parse(word: str) -> Any:
        try:
            return numbers.checked(numbers.kind(word), "")
        except ValueError as error:
            msg = f"expected {numbers.expected}, got {word!r}"
            raise argparse.ArgumentTypeError(msg) from error

    return parse


def _shape(word: str) -> tuple[int, ...]:
    sizes = tuple(map(_parsed(SIZE), word.split(",")))
    if len(sizes) != 4:
        msg = f"expected four sizes T,B,I,H, got {word!r}"
        raise argparse.ArgumentTypeError(msg)
    return sizes


TRAIN = (
    # option, called, what it says; types and defaults are those of Options
    ("hidden", "H", "units of a layer"),
    ("layers", "L", "layers on top of each other"),
    ("embed", "E", "size of the embedding"),
    ("batch", "B", "sequences side by side"),
    ("seq_len", "T", "steps of a window"),
    ("lr", "RATE", "learning rate of Adam"),
    ("clip", "NORM", "largest norm of the gradient"),
    ("dropout", "P", "probability of dropout between layers"),
    ("seed", "N", "seed of the weights and the dropout"),
)
SAMPLE = (
    # option, of what type, called, what it says
    ("prompt", str, "TEXT", "what to continue"),
    ("length", _parsed(SIZE), "N", "characters to add at most (default: 500)"),
    (
        "temperature",
        _parsed(TEMPERATURE),
        "X",
        "0 takes the likeliest character, 1 draws as the model says (default: 0.8)",
    ),
    ("stop", str, "TEXT", "end after this"),
    ("seed", _parsed(SEED), "N", "for the same text each time"),
)
GRADFLOW = (
    ("horizon", _parsed(SIZE), "T", "steps back from the one that the loss sees (default: 100)"),
    ("hidden", _parsed(SIZE), "H", "units of each layer (default: 128)"),
    ("seed", _parsed(SEED), "N", "seed of the weights and the input (default: 0)"),
    ("plot", Path, "FILE", "draw it, as PNG, SVG, PDF or what else matplotlib writes"),
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Exact recurrent networks as fused CPU kernels.")
    parser.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Callable[..., int | None], threads: str = "") -> argparse.ArgumentParser:
        """Add a command; what is not given on the command line is not passed to it."""
        name, doc = command.__name__, command.__doc__
        added = commands.add_parser(name, help=doc, description=doc, argument_default=argparse.SUPPRESS)
        added.set_defaults(command=command, parser=added)
        if threads:
            says = f"threads of rnnfast (default: {threads})"
            added.add_argument("--threads", type=_parsed(SIZE), metavar="N", help=says)
        return added

    all_threads = "RNNFAST_NUM_THREADS, or as many as there are processors"
    p = add(train, all_threads)
    p.add_argument(
        "--text",
        metavar="FILE",
        help="in UTF-8, - for standard input; its last tenth is held out (default: the topics of Python's help)",
    )
    p.add_argument("--cell", choices=LAYERS, help=f"(default: {Options.cell})")
    for name, metavar, says in TRAIN:
        option, default = f"--{name.replace('_', '-')}", getattr(Options, name)
        p.add_argument(option, type=_parsed(RANGES[name]), metavar=metavar, help=f"{says} (default: {default})")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_parsed(SIZE), metavar="N", help=f"in all (default: {Options.steps})")
    length.add_argument("--epochs", type=_parsed(SIZE), metavar="N", help="as many steps as N passes over the text")
    p.add_argument("--out", type=Path, metavar="FILE", help=f"where to save (default: {OUT}, or FILE of --resume)")
    p.add_argument("--force", action="store_true", help="overwrite the model of an earlier run")
    p.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved run and its options")
    p.add_argument("--save-every", type=_parsed(SIZE), metavar="STEPS", help="save every so many steps as well")
    p.add_argument("--quiet", action="store_true", help="no progress bar and no sample")

    p = add(sample, all_threads)
    p.add_argument("file", type=Path, metavar="FILE", help="what train has saved")
    for name, kind, metavar, says in SAMPLE:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    p = add(bench, "1")
    p.set_defaults(threads=1)
    p.add_argument("--shape", type=_shape, nargs="+", metavar="T,B,I,H", dest="shapes", help="instead of three others")
    p.add_argument("--cell", choices=LAYERS, nargs="+", dest="cells", help="(default: lstm gru)")

    p = add(gradflow, all_threads)
    for name, kind, metavar, says in GRADFLOW:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    add(info)
    return parser


def program() -> NoReturn:
    """Run a command and end the process with its exit status."""
    status = main()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, Ctrl-C has nothing to interrupt
    sys.exit(status)
