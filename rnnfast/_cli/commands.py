"""The other commands."""

from pathlib import Path
from typing import Any

from .. import show_config
from ..lm import Checkpoint


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
