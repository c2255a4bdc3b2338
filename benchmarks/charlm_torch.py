"""A torch twin of ``python -m rnnfast train``: the same weights, batches, clipping, Adam and number of steps.

python benchmarks/charlm_torch.py [--cell lstm|gru|rnn] [--steps N] [--threads N]
"""

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

from rnnfast.lm import LAYERS, Options, Training, default_text

LAYER = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class CharLM(nn.Module):  # type: ignore[misc]
    def __init__(self, vocabulary: int, options: Options) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, options.embed)
        self.rnn = LAYER[options.cell](options.embed, options.hidden, options.layers)
        self.readout = nn.Linear(options.hidden, vocabulary)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.rnn(self.embedding(tokens), state)
        return self.readout(y), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=LAYERS, default=Options.cell)
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    # Ours makes the weights and cuts the text; it is not trained.
    options = Options(cell=arguments.cell, steps=arguments.steps)
    ours = Training(default_text(), options)
    model = CharLM(len(ours.model.vocabulary), options)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in ours.model.state_dict().items()})
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    streams, held_out = (torch.from_numpy(a).long() for a in (ours.streams, ours.held_out))

    T = options.seq_len
    state: Any = None
    started = time.perf_counter()
    for step in trange(options.steps, desc="torch"):
        window = step % ours.steps_per_epoch
        tokens = streams[window * T : (window + 1) * T + 1]
        logits, state = model(tokens[:-1], None if window == 0 else state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
    seconds = time.perf_counter() - started

    with torch.no_grad():
        logits, _ = model(held_out[:-1, None], None)
        bits = cross_entropy(logits[:, 0], held_out[1:]).item() / math.log(2)
    print(f"held-out: {bits:.3f} bits per character")
    print(f"{options.steps * options.batch * T / seconds:,.0f} tokens per second")


if __name__ == "__main__":
    main()
