"""Training tokens per second of the character language model, beside a torch twin.

python -m benchmarks.charlm [--cell lstm|gru|rnn] [--batch B] [--seq-len T] [--hidden H] [--embed E] [--steps N]
                            [--threads N]

Both start from the same weights and take the same batches, clipping and Adam. They take turns of a few steps each, so
that whatever else the machine does meets both; a rate is that of the median step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rnnfast
from rnnfast.lm import LAYERS, Options, Training, default_text

TURN = 5  # steps


class CharLM(nn.Module):  # type: ignore[misc]
    def __init__(self, vocabulary: int, options: Options) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, options.embed)
        self.rnn = getattr(nn, LAYERS[options.cell].__name__)(options.embed, options.hidden, options.layers)
        self.readout = nn.Linear(options.hidden, vocabulary)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.rnn(self.embedding(tokens), state)
        return self.readout(y), state


def torch_step(ours: Training) -> Callable[[], float]:
    """Return what `Training.step` is, of a twin that starts where it does."""
    options = ours.options
    model = CharLM(len(ours.model.vocabulary), options)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in ours.model.state_dict().items()})
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    streams = torch.from_numpy(ours.streams).long()
    steps, T, state = 0, options.seq_len, None

    def step() -> float:
        nonlocal steps, state
        window = steps % ours.steps_per_epoch
        tokens = streams[window * T : (window + 1) * T + 1]
        logits, last = model(tokens[:-1], None if window == 0 else state)
        state = tuple(s.detach() for s in last) if isinstance(last, tuple) else last.detach()
        loss = cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        steps += 1
        return float(loss.item())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=LAYERS, default=Options.cell)
    for name, default in {"batch": 64, "seq-len": 64, "hidden": 256, "embed": 64, "steps": 100, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rnnfast.set_num_threads(arguments.threads)
    if hasattr(os, "sched_setaffinity") and arguments.threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    names = "cell", "batch", "seq_len", "hidden", "embed"
    ours = Training(default_text(), Options(**{name: getattr(arguments, name) for name in names}))
    steps = {"rnnfast": ours.step, "torch": torch_step(ours)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    while len(seconds["torch"]) < arguments.steps:
        for name, step in steps.items():
            for _ in range(TURN):
                started = time.perf_counter()
                losses[name].append(step())
                seconds[name].append(time.perf_counter() - started)

    rates = {name: arguments.batch * arguments.seq_len / statistics.median(s) for name, s in seconds.items()}
    for name, rate in rates.items():
        first, last = losses[name][0], statistics.mean(losses[name][-TURN:])
        print(f"{name:8}{rate:10,.0f} tokens per second   loss {first:.4f} at first, {last:.4f} at the end")
    print(f"rnnfast is {rates['rnnfast'] / rates['torch']:.2f} times as fast")


if __name__ == "__main__":
    main()
