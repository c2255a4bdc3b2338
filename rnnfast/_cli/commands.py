"""The other commands."""

import shlex
from pathlib import Path
from typing import Any

from .. import show_config
from .._base.formats import Format
from ..lm import Checkpoint, UsageError
from .runs import PROGRAM, check_out


def sample(*, file: Path, prompt: str = "", **options: Any) -> None:
    """Print the prompt and what the model makes of it, character by character."""
    characters = Checkpoint.read(file).model().sample(prompt, **options)
    print(prompt, end="", flush=True)
    for character in characters:
        print(character, end="", flush=True)
    print()


def quantize(*, file: Path, to: Format, out: Path | None = None, force: bool = False) -> None:
    """Save a model with weights of fewer bits, which can be sampled, but not be trained any more."""
    checkpoint = Checkpoint.read(file)
    out = out or file.with_suffix(f".{to}{file.suffix}")
    if checkpoint.format is not None:
        msg = f"{file} has weights of {checkpoint.format} already; take the model that it was made of"
        raise UsageError(msg)
    if out.exists() and out.samefile(file):
        msg = f"--out {out}: that is the model itself, which could not be trained any more; take another name"
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
