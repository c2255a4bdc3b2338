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
    ("hidden", "H", "units of a layer"),
    ("layers", "L", "layers on top of each other"),
    ("embed", "E", "size of the embedding"),
    ("batch", "B", "sequences side by side"),
    ("seq_len", "T", "steps of a window"),
    ("lr", "RATE", "learning rate of Adam"),
    ("clip", "NORM", "largest norm of the gradient"),
    ("dropout", "P", "probability of dropout between layers"),
    ("weight_dropout", "P", "probability of dropout of recurrent weights"),
    ("recurrent_dropout", "P", "probability of dropout of the state in recurrent products"),
    ("candidate_dropout", "P", "probability of dropout of the candidate of an LSTM or GRU"),
    ("zoneout", "P[,PC]", "probability with which a unit of a state keeps its value in a step; of h, and of c"),
    ("density", "D", "share of the layers' weights that pruning leaves, from 0.1 to 0.7 of the run on"),
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
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the factors of products; bfloat16 needs a processor with AVX512_BF16 (default: full)",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar and no sample")

    p = add(sample, all_threads)
    p.add_argument("file", type=Path, metavar="FILE", help="what train has saved")
    for name, kind, metavar, says in SAMPLE:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    p = add(quantize)
    p.add_argument("file", type=Path, metavar="FILE", help="what train has saved")
    p.add_argument("--to", choices=FORMATS, required=True, help="the format of the weights of the layers")
    p.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="where to save (default: FILE, with the format before its suffix)",
    )
    p.add_argument("--force", action="store_true", help="overwrite a model")

    p = add(bench, "1")
    p.set_defaults(threads=1)
    p.add_argument("--shape", type=_shape, nargs="+", metavar="T,B,I,H", dest="shapes", help="instead of three others")
    p.add_argument("--cell", choices=LAYERS, nargs="+", dest="cells", help="(default: lstm gru)")

    p = add(gradflow, all_threads)
    for name, kind, metavar, says in GRADFLOW:
        p.add_argument(f"--{name}", type=kind, metavar=metavar, help=says)

    add(info)
    return parser
