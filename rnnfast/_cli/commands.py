"""The other commands."""

import shlex
from pathlib import Path
from typing import Any

from .. import show_config
from .._base.formats import Format
from ..lm import Checkpoint, UsageError
from .runs import PROGRAM, check_out


def sample(*, file: Path, prompt: str = "", **options: Any) -> None:
    """Print a prompt and the model's continuation, character by character."""
    characters = Checkpoint.read(file).model().sample(prompt, **options)
    print(prompt, end="", flush=True)
    for character in characters:
        print(character, end="", flush=True)
    print()


def quantize(*, file: Path, to: Format, out: Path | None = None, force: bool = False) -> None:
    """Save a model with int8 or bfloat16 weights, which can be sampled but not trained."""
    checkpoint = Checkpoint.read(file)
    out = out or file.with_suffix(f".{to}{file.suffix}")
    if checkpoint.format is not None:
        msg = f"{file} already has {checkpoint.format} weights; quantize the original model instead"
        raise UsageError(msg)
    if out.exists() and out.samefile(file):
        msg = f"--out {out}: this is the original model, which could then not be trained any more; choose another name"
        raise UsageError(msg)
    check_out(out, None, force)
    try:
        quantized = checkpoint.quantize(to)
    except ValueError as error:  # weights that are not finite
        msg = f"{file}: {error}"
        raise UsageError(msg) from error
    quantized.write(out)
    print(f"saved {out}; to sample: {PROGRAM} sample {shlex.quote(str(out))}")


def bench(**options: Any) -> None:
    """Time layers, and the same layers in torch and ONNX Runtime if they are installed."""
    from ..bench import run

    run(**options)


def gradflow(**options: Any) -> None:
    """Compare how far back gradients reach in untrained Elman networks, GRUs and LSTMs."""
    from ..gradflow import run

    run(**options)


def info() -> None:
    """Print the version, the compiler, the instruction sets and the number of threads."""
    show_config()
