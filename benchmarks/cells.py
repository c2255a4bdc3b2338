"""The time of one call of a cell, forward and forward + backward, at I = H, float32, beside torch's cell.

python -m benchmarks.cells [--cells lstm gru rnn] [--sizes H ...] [--batches B ...]

Both run on the calling thread and take turns. Backward gives all gradients: of the input, the state and the parameters.
"""

import argparse
from typing import Any

import numpy as np
import torch

import rnnfast
from benchmarks.problems import BATCHES, CELLS, SIZES
from benchmarks.streaming import twin_of
from benchmarks.timing import Call, in_turns
from rnnfast import _core
from rnnfast.lm import LAYERS

OURS = {name: getattr(rnnfast, f"{layer.__name__}Cell") for name, layer in LAYERS.items()}


def whole(parts: list[Any]) -> Any:
    """Return what a cell takes as its state."""
    return tuple(parts) if len(parts) > 1 else parts[0]


def num_states(cell: str) -> int:
    return len(_core.cells[CELLS[cell]].states)


def ours(cell: str, layer: Any, state: Any) -> list[Call]:
    """Return our forward, and forward + backward; all parts of a state are the same."""
    x, before = state.copy(), whole([state] * num_states(cell))

    def training() -> None:
        _, tape = layer.forward(x, before)
        layer.backward(tape, before)

    return [lambda: layer(x, before), training]


def theirs(cell: str, layer: Any, state: Any) -> list[Call]:
    """Return torch's."""
    twin = twin_of(cell, layer)
    x, *parts = (torch.from_numpy(state.copy()).requires_grad_() for _ in range(1 + num_states(cell)))
    before = whole(parts)
    inputs = [*twin.parameters(), x, *parts]
    dstate = whole([torch.from_numpy(state)] * len(parts))

    def forward() -> None:
        with torch.inference_mode():
            twin(x, before)

    return [forward, lambda: torch.autograd.grad(twin(x, before), inputs, dstate)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="H")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="B")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    print("| cell | B | H | forward, µs | torch, times ours | forward + backward, µs | torch, times ours |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for cell in options.cells:
        for B in options.batches:
            for H in options.sizes:
                layer = OURS[cell](H, H, rng=0)
                state = np.random.default_rng(0).standard_normal((B, H), np.float32)
                times = in_turns([*ours(cell, layer, state), *theirs(cell, layer, state)])
                forward, training, torch_forward, torch_training = (1e6 * t for t in times)
                print(
                    f"| {cell} | {B} | {H} | {forward:.1f} | {torch_forward / forward:.2f} "
                    f"| {training:.1f} | {torch_training / training:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
