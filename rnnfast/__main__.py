"""The command line: ``python -m rnnfast train | sample | bench | gradflow | info``."""

import argparse
import io
import math
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

import numpy as np

from . import show_config
from .lm import LAYERS, Checkpoint, Options, Training, UsageError, default_text, temporary

PROGRAM = "python -m rnnfast"
OUT = Path("charlm.safetensors")
KEPT = "cell", "hidden", "layers", "embed", "batch", "seq_len", "seed"  # what a resumed run cannot change
INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells make of SIGINT and SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    What the user can put right is one line on stderr, and exit status 2.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may have more characters than the terminal
    try:
        options.pop("command")(**options)
    except UsageError as error:
        parser.error(str(error))
    except MemoryError:
        parser.error("not enough memory; lower --hidden, --layers, --embed, --batch, --seq-len or --horizon")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return PIPE_CLOSED
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def train(
    *, out: Path | None = None, resume: Path | None = None, epochs: int = 0, quiet: bool = False, **given: Any
) -> None:
    """Train a character language model, save it and tell how good it is."""
    checkpoint = None if resume is None else Checkpoint.read(resume)
    options = Options(**given) if checkpoint is None else _resumed(checkpoint, given)
    if options.dropout and options.layers == 1:
        msg = "--dropout acts between layers: it needs --layers of at least 2"
        raise UsageError(msg)
    out = out or resume or OUT
    _check_writable(out)
    training = _training(options)
    if checkpoint is not None:
        training.resume(checkpoint)
    if epochs:
        training.options = replace(options, steps=epochs * training.steps_per_epoch)
    total = training.options.steps
    if training.steps >= total:
        msg = f"{resume} has had {training.steps} of {total} steps; ask for more in all by --steps or --epochs"
        raise UsageError(msg)

    _run(training, quiet)
    training.save(out)
    if training.steps < total:
        again = f"{PROGRAM} train --resume {shlex.quote(str(out))}"
        says = f"saved after {training.steps} of {total} steps; to go on: {again}"
        print(says, file=sys.stderr)
        raise KeyboardInterrupt
    print(f"held-out: {training.held_out_bits():.3f} bits per character")
    if not quiet:
        print("".join(training.model.sample(seed=options.seed)))
        print(f"saved; for more: {PROGRAM} sample {shlex.quote(str(out))}")


def sample(*, file: Path, prompt: str = "", **options: Any) -> None:
    """Print the prompt and what the model makes of it, character by character."""
    characters = Checkpoint.read(file).model().sample(prompt, **options)
    print(prompt + next(characters), end="", flush=True)
    for character in characters:
        print(character, end="", flush=True)
    print()


def bench(**options: Any) -> None:
    """Time the layers, and the peers that are installed."""
    from .bench import run

    run(**options)


def gradflow(**options: Any) -> None:
    """Compare how far back gradients reach in Elman networks, GRU and LSTM before any training."""
    from .gradflow import run

    run(**options)


def info() -> None:
    """Print the version, the compiler, the instruction sets and the number of threads."""
    show_config()


def _run(training: Training, quiet: bool) -> None:
    """Train to the end, or to Ctrl-C."""
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
        mininterval=0.1 if sys.stderr.isatty() else 5.0,
        disable=quiet,
    )
    with bar, _first_ctrl_c() as pressed, np.errstate(over="ignore", invalid="ignore"):
        while training.steps < options.steps and not pressed:
            losses.append(training.step())
            if not math.isfinite(losses[-1]):
                msg = f"step {training.steps} had a loss of {losses[-1]}; nothing was saved, lower --lr or --clip"
                raise UsageError(msg)
            loss = fmean(losses)
            says = f"loss {loss:.3f}, {loss / math.log(2):.3f} bits/char"
            bar.set_postfix_str(says, refresh=False)
            bar.update(tokens)


@contextmanager
def _first_ctrl_c() -> Iterator[list[int]]:
    """Note the first Ctrl-C in the list, so that a step is not cut in two; the second interrupts as ever."""
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _resumed(checkpoint: Checkpoint, given: dict[str, Any]) -> Options:
    """Return the options of the saved run, changed by what is given now."""
    for name in KEPT:
        saved = getattr(checkpoint.options, name)
        if given.get(name, saved) != saved:
            option = name.replace("_", "-")
            msg = f"{checkpoint.path} has --{option} {saved}; a resumed run cannot change it to {given[name]}"
            raise UsageError(msg)
    return replace(checkpoint.options, **given)


def _training(options: Options) -> Training:
    """Read the text and make the run."""
    try:
        text = default_text() if options.text is None else Path(options.text).read_text(encoding="utf-8-sig")
    except OSError as error:
        msg = f"--text {options.text}: {error.strerror}; it has to be a text file in UTF-8"
        raise UsageError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"--text {options.text}: not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        raise UsageError(msg) from error
    try:
        return Training(text, options)
    except ValueError as error:  # of sizes beyond all memory
        raise MemoryError from error


def _check_writable(out: Path) -> None:
    """Refuse to train what cannot be saved, and to overwrite what is not ours."""
    try:
        if out.exists():
            Checkpoint.read(out)
        trial = temporary(out)
        trial.touch()
        trial.unlink()
    except UsageError as error:
        msg = f"--out {out}: there is such a file, and it is no model of ours to overwrite; take another name"
        raise UsageError(msg) from error
    except OSError as error:
        msg = f"--out {out}: {error.strerror}; take a place where a file can be written"
        raise UsageError(msg) from error


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (help: {self.prog} --help)\n")


def _checked(kind: type, expected: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Return what makes a number of an option's word, where it fits."""

    def parse(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not fits(value):
            msg = f"expected {expected}, got {word!r}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


SIZE = _checked(int, "an integer of at least 1", lambda n: n >= 1)
SEED = _checked(int, "an integer of at least 0", lambda n: n >= 0)
RATE = _checked(float, "a number above 0", lambda value: 0 < value < math.inf)
NORM = _checked(float, "a number above 0", lambda value: value > 0)
PROBABILITY = _checked(float, "a number of at least 0 and less than 1", lambda value: 0 <= value < 1)
TEMPERATURE = _checked(float, "a number of at least 0", lambda value: 0 <= value < math.inf)


def _shape(word: str) -> tuple[int, ...]:
    sizes = tuple(SIZE(size) for size in word.split(","))
    if len(sizes) != 4:
        msg = f"expected four sizes T,B,I,H, got {word!r}"
        raise argparse.ArgumentTypeError(msg)
    return sizes


TRAIN = (
    # option, of what type, called, what it says; the defaults are those of Options
    ("text", str, "FILE", "in UTF-8, the last tenth of it held out; without it, the topics of Python's help"),
    ("hidden", SIZE, "H", "units of a layer"),
    ("layers", SIZE, "L", "layers on top of each other"),
    ("embed", SIZE, "E", "size of the embedding"),
    ("batch", SIZE, "B", "sequences side by side"),
    ("seq_len", SIZE, "T", "steps of a window"),
    ("lr", RATE, "RATE", "learning rate of Adam"),
    ("clip", NORM, "NORM", "largest norm of the gradient"),
    ("dropout", PROBABILITY, "P", "probability of dropout between layers"),
    ("seed", SEED, "N", "seed of the weights and the dropout"),
)
SAMPLE = (
    ("prompt", str, "TEXT", "what to continue"),
    ("length", SIZE, "N", "characters to add at most (default: 500)"),
    ("temperature", TEMPERATURE, "X", "0 takes the likeliest character, 1 draws as the model says (default: 0.8)"),
    ("stop", str, "TEXT", "end after this"),
    ("seed", SEED, "N", "for the same text each time"),
)
GRADFLOW = (
    ("horizon", SIZE, "T", "steps back from the one that the loss sees (default: 100)"),
    ("hidden", SIZE, "H", "units of each layer (default: 128)"),
    ("seed", SEED, "N", "seed of the weights and the input (default: 0)"),
    ("plot", Path, "FILE", "draw it, as PNG, SVG, PDF or what else matplotlib writes"),
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Exact recurrent networks as fused CPU kernels.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Callable[..., None]) -> argparse.ArgumentParser:
        """Add a command; what is not given on the command line is not passed to it."""
        name, doc = command.__name__, command.__doc__
        added = commands.add_parser(name, help=doc, description=doc, argument_default=argparse.SUPPRESS)
        added.set_defaults(command=command)
        return added

    p = add(train)
    p.add_argument("--cell", choices=LAYERS, help=f"(default: {Options.cell})")
    for name, kind, metavar, says in TRAIN:
        default = getattr(Options, name)
        says += "" if default is None else f" (default: {default})"
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=says)
    length = p.add_mutually_exclusive_group()
    length.add_argument("--steps", type=SIZE, metavar="N", help=f"in all (default: {Options.steps})")
    length.add_argument("--epochs", type=SIZE, metavar="N", help="as many steps as these passes over the text have")
    p.add_argument("--out", type=Path, metavar="FILE", help=f"where to save (default: {OUT}, or FILE of --resume)")
    p.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved run and its options")
    p.add_argument("--quiet", action="store_true", help="no progress bar and no sample")

    p = add(sample)
    p.add_argument("file", type=Path, metavar="FILE", help="what train has saved")
    for name, kind, metavar, says in SAMPLE:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    p = add(bench)
    p.add_argument("--shape", type=_shape, nargs="+", metavar="T,B,I,H", dest="shapes", help="instead of three others")
    p.add_argument("--cell", choices=LAYERS, nargs="+", dest="cells", help="(default: lstm gru)")

    p = add(gradflow)
    for name, kind, metavar, says in GRADFLOW:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    add(info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
