"""Data-parallel training: a character language model in torch, in several processes
==================================================================================

This command trains the model in two processes on this machine; without torchrun, there is one process:

    torchrun --nproc_per_node=2 examples/distributed.py

To use two machines, run the following on each, where NAME is the name of one of them:

    torchrun --nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=NAME:29500 examples/distributed.py

Each process has the model and an equal share of every batch; DistributedDataParallel averages the gradients with gloo.
The training steps are therefore the same, up to rounding, for any number of processes. The processes on a machine share
its cores: rnnfast uses as many threads as torch is set to.
"""

import argparse
import math
import os
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import rnnfast.torch
from rnnfast.lm import default_text

ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
T, E, H = 64, 64, 256


class CharLM(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, E)
        self.rnn = nn.GRU(E, H, batch_first=True)
        self.readout = nn.Linear(H, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.readout(self.rnn(self.embedding(tokens))[0])


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean loss of predicting each character of windows [B,T+1] from those before it."""
    return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def train(steps: int, batch: int, seed: int) -> None:
    rank, processes = dist.get_rank(), dist.get_world_size()
    text = default_text()
    vocabulary = {character: k for k, character in enumerate(sorted(set(text)))}
    windows = torch.tensor([vocabulary[character] for character in text]).unfold(0, T + 1, T)
    training, test = windows[: -len(windows) // 10], windows[-len(windows) // 10 :]

    torch.manual_seed(seed)  # the same weights and batches in each process
    model = DistributedDataParallel(rnnfast.torch.accelerate(CharLM(len(vocabulary))))
    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1, 0, total_iters=steps)
    started = time.perf_counter()
    for step in range(steps):
        loss = loss_of(model, training[torch.randint(len(training), (batch,))[rank::processes]])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        if rank == 0 and step % 100 == 0:
            print(f"step {step}: loss {loss:.4f}", flush=True)
    rate = steps * batch * T / (time.perf_counter() - started)

    with torch.no_grad():
        parts = test[rank::processes].split(64)
        total = sum(len(part) * loss_of(model.module, part).double() for part in parts)
    dist.all_reduce(total)
    if rank == 0:
        print(f"{processes} x {torch.get_num_threads()} threads: {rate:,.0f} characters per second")
        print(f"{total.item() / len(test) / math.log(2):.3f} bits per character of unseen text")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="total batch size (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    options = parser.parse_args(argv)

    for name, value in ALONE.items():  # what torchrun tells each of its processes
        os.environ.setdefault(name, str(value))
    if options.batch < 1 or options.batch % int(os.environ["WORLD_SIZE"]):
        parser.error(f"--batch: expected a multiple of {os.environ['WORLD_SIZE']} processes, got {options.batch}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("gloo")
    train(**vars(options))
    dist.destroy_process_group()  # with the model gone: one that outlives its group can wait for it forever


if __name__ == "__main__":
    main()
