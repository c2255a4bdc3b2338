"""The commands with their options, as the command line has them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from .._base.formats import FORMATS
from .._base.precision import PRECISIONS
from ..lm_options import LAYERS, RANGES, SEED, SIZE, TEMPERATURE, Numbers, Options
from .commands import bench, gradflow, info, quantize, sample
from .runs import OUT, PROGRAM, train


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # names of files may have any
        self.exit(2, f"{self.prog}: {line} (help: {self.prog} --help)\n")


def _parsed(numbers: Numbers) -> Callable[[str], Any]:
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
    ("hidden", "H", "units of each layer"),
    ("layers", "L", "number of layers"),
    ("embed", "E", "size of the embedding"),
    ("batch", "B", "sequences in a batch"),
    ("seq_len", "T", "steps of each window"),
    ("lr", "RATE", "learning rate of Adam"),
    ("clip", "NORM", "largest norm of the gradient"),
    ("dropout", "P", "probability of dropout between layers"),
    ("weight_dropout", "P", "probability of dropout of recurrent weights"),
    ("recurrent_dropout", "P", "probability of dropout of the state in recurrent products"),
    ("candidate_dropout", "P", "probability of dropout of the candidate of an LSTM or GRU"),
    ("zoneout", "P[,PC]", "probability that a unit of the state keeps its value at a step; of h, and of c"),
    ("density", "D", "fraction of the layers' weights that remain after pruning between 10%% and 70%% of the run"),
    ("seed", "N", "seed of the weights and the dropout"),
)
SAMPLE = (
    # option, of what type, called, what it says
    ("prompt", str, "TEXT", "text to continue"),
    ("length", _parsed(SIZE), "N", "maximum number of characters (default: 500)"),
    (
        "temperature",
        _parsed(TEMPERATURE),
        "X",
        "0 takes the most likely character, 1 draws from the model's distribution (default: 0.8)",
    ),
    ("stop", str, "TEXT", "stop after this text"),
    ("seed", _parsed(SEED), "N", "seed, to get the same text each time"),
)
GRADFLOW = (
    ("horizon", _parsed(SIZE), "T", "number of steps back from the loss (default: 100)"),
    ("hidden", _parsed(SIZE), "H", "units of each layer (default: 128)"),
    ("seed", _parsed(SEED), "N", "seed of the weights and the input (default: 0)"),
    ("plot", Path, "FILE", "draw a plot to this file, in any format that matplotlib supports"),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has the command as `command` and its own parser as `parser`."""
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
            says = f"number of threads (default: {threads})"
            added.add_argument("--threads", type=_parsed(SIZE), metavar="N", help=says)
        return added

    all_threads = "RNNFAST_NUM_THREADS, or the number of processors"
    p = add(train, all_threads)
    p.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 text, or - for standard input; the last tenth is held out (default: the topics of Python's help)",
    )
    p.add_argument("--cell", choices=LAYERS, help=f"kind of layer (default: {Options.cell})")
    for name, metavar, says in TRAIN:
        option, default = f"--{name.replace('_', '-')}", getattr(Options, name)
        p.add_argument(option, type=_parsed(RANGES[name]), metavar=metavar, help=f"{says} (default: {default})")
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=_parsed(SIZE), metavar="N", help=f"number of training steps (default: {Options.steps})"
    )
    length.add_argument(
        "--epochs", type=_parsed(SIZE), metavar="N", help="number of passes over the text, instead of steps"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help=f"where to save (default: {OUT}, or FILE of --resume)")
    p.add_argument("--force", action="store_true", help="overwrite an existing model")
    p.add_argument("--resume", type=Path, metavar="FILE", help="continue a saved run with its options")
    p.add_argument("--save-every", type=_parsed(SIZE), metavar="STEPS", help="also save every STEPS steps")
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of products; bfloat16 needs a processor with AVX512_BF16 (default: full)",
    )
    p.add_argument("--quiet", action="store_true", help="show no progress bar and no sample")

    p = add(sample, all_threads)
    p.add_argument("file", type=Path, metavar="FILE", help="model saved by train")
    for name, kind, metavar, says in SAMPLE:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    p = add(quantize)
    p.add_argument("file", type=Path, metavar="FILE", help="model saved by train")
    p.add_argument("--to", choices=FORMATS, required=True, help="format of the layers' weights")
    p.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="where to save (default: FILE with the format before its suffix)",
    )
    p.add_argument("--force", action="store_true", help="overwrite an existing model")

    p = add(bench, "1")
    p.set_defaults(threads=1)
    p.add_argument(
        "--shape",
        type=_shape,
        nargs="+",
        metavar="T,B,I,H",
        dest="shapes",
        help="shapes to time (default: three shapes)",
    )
    p.add_argument("--cell", choices=LAYERS, nargs="+", dest="cells", help="cells to time (default: lstm gru)")

    p = add(gradflow, all_threads)
    for name, kind, metavar, says in GRADFLOW:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    add(info)
    return parser
