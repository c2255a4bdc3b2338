"""What rnnfast.torch costs and what it gains, forward + backward with all gradients, float32, one thread.

python -m benchmarks.modules [--layers LSTM ...] [--calls T,B,I,H ...] [--shapes T,B,I,H ...] [--compiled T,B,I,H ...]
                             [--model T,B,E,H]

First the calls whose arithmetic is least: the same from NumPy, by our class for torch, by torch's own, by a
torch.autograd.Function of the same tensors that computes nothing, and by the one of NumPy followed by the empty
Function, which finds caches full of other things; and their forward alone, which keeps nothing. Then the layers as they
are and as torch.compile has them, above a module of one product, which shows what compiled calls cost by themselves.
Then layers of torch.nn and the same after `accelerate`. Last a model: an embedding, a GRU and a readout, in a training
step with cross entropy, clipping and Adam, and a forward for one sequence. All that stand in a row take turns.
"""

import argparse
import copy
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import rnnfast.torch
from benchmarks.machine import describe
from benchmarks.peers import shape
from benchmarks.timing import Call, in_turns
from rnnfast import _core, lm

LAYERS = [layer.__name__ for layer in lm.LAYERS.values()]
CALLS = [(1, 1, 4, 4), (1, 1, 16, 16), (1, 1, 64, 64), (20, 4, 16, 16), (20, 4, 64, 64)]
SHAPES = [(50, 32, 256, 256), (100, 1, 128, 128)]
COMPILED = (50, 1, 16, 32)
MODEL = (64, 32, 64, 256)
V = 100  # characters


class Arrays(NamedTuple):
    """What a call is given; a cell takes one step and its gradient is that of h."""

    x: Any  # [T,B,I], [B,I]
    dy: Any  # [T,B,H], [B,H]


def arrays(kind: str, sizes: tuple[int, ...]) -> Arrays:
    T, B, I, H = sizes
    steps = () if kind.endswith("Cell") else (T,)
    rng = np.random.default_rng(0)
    return Arrays(*(rng.standard_normal((*steps, B, n), np.float32) for n in (I, H)))


def numpy_call(layer: Any, given: Arrays) -> Call:
    """Return the call of a layer or cell of NumPy arrays; it gives dx and the parameters' gradients."""
    parts = len(_core.cells[layer.cell].states) if given.x.ndim == 2 else 1  # of what it is the gradient
    gradient = (given.dy, *[None] * (parts - 1)) if parts > 1 else given.dy

    def training() -> Any:
        *_, tape = layer.forward(given.x)
        dx, _, grads = layer.backward(tape, gradient)
        return [dx, *grads.values()]

    return training


def torch_call(module: Any, given: Arrays) -> Call:
    """Return the same of a module."""
    x, dy = map(torch.from_numpy, given)
    inputs = [x.requires_grad_(), *module.parameters()]

    def training() -> Any:
        y = module(x)
        return torch.autograd.grad(y[0] if isinstance(y, tuple) else y, inputs, dy)

    return training


class Empty(torch.autograd.Function):  # type: ignore[misc]
    """Takes the tensors of a call, returns as many as it does, and has gradients for them, without computing."""

    @staticmethod
    def forward(ctx: Any, results: Any, gradients: Any, *tensors: Any) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.gradients = gradients
        return tuple(t.detach() for t in results)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        assert ctx.saved_tensors
        return None, None, *ctx.gradients


def empty_call(module: Any, given: Arrays) -> Call:
    """Return a call of `Empty` with the tensors of a module's."""
    x, dy = map(torch.from_numpy, given)
    found = module(x)
    parts = found if isinstance(found, tuple) else (found,)
    results = [t.detach() for part in parts for t in (part if isinstance(part, tuple) else (part,))]
    inputs = [x.requires_grad_(), *module.parameters()]
    gradients = [torch.empty_like(t) for t in inputs]

    def training() -> Any:
        y, *_ = Empty.apply(results, gradients, *inputs)
        return torch.autograd.grad(y, inputs, dy)

    return training


def both(first: Call, second: Call) -> Call:
    """Return a call of one and then the other."""
    return lambda: (first(), second())


def inference_calls(layer: Any, modules: Sequence[Any], x: Any) -> list[Call]:
    """Return a forward that keeps nothing of a layer or cell and of modules."""

    def of(module: Any) -> Call:
        def forward() -> Any:
            with torch.no_grad():
                return module(tensor)

        return forward

    tensor = torch.from_numpy(x)
    return [lambda: layer(x), *map(of, modules)]


def same_layers(kind: str, sizes: tuple[int, ...]) -> tuple[Any, list[Any]]:
    """Return a layer or cell of NumPy arrays, and our module and torch's with the same parameters."""
    layer = getattr(rnnfast, kind)(*sizes[2:], rng=0)
    modules = [getattr(home, kind)(*sizes[2:]) for home in (rnnfast.torch, nn)]
    for module in modules:
        module.load_state_dict({name: torch.from_numpy(a) for name, a in layer.state_dict().items()})
    return layer, modules


def training_calls(layer: Any, modules: Sequence[Any], given: Arrays) -> list[Call]:
    """Return that of NumPy, that of our class for torch and that of torch's."""
    return [numpy_call(layer, given), *(torch_call(module, given) for module in modules)]


def twins(module: Any) -> tuple[Any, Any]:
    """Return a module of torch and the same accelerated."""
    return module, rnnfast.torch.accelerate(copy.deepcopy(module))


class Product(nn.Module):  # type: ignore[misc]
    def __init__(self, I: int, H: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, I))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class CharLM(nn.Module):  # type: ignore[misc]
    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, embed)
        self.gru = nn.GRU(embed, hidden)
        self.readout = nn.Linear(hidden, V)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.readout(self.gru(self.embedding(tokens))[0])


def training_step(model: Any, tokens: torch.Tensor) -> Call:
    """Return a step of training on tokens [T+1,B]."""
    adam = torch.optim.Adam(model.parameters())

    def step() -> float:
        loss = nn.functional.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return float(loss.item())

    return step


def inference(model: Any, tokens: torch.Tensor) -> Call:
    """Return a forward of tokens [T,1] that keeps nothing."""

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens)

    return forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--calls", nargs="+", type=shape, default=CALLS, metavar="T,B,I,H")
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,I,H")
    parser.add_argument("--compiled", nargs="*", type=shape, default=[COMPILED], metavar="T,B,I,H")
    parser.add_argument("--model", type=shape, default=MODEL, metavar="T,B,E,H")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, torch {torch.__version__}, {machine['date']}\n")

    rows = [
        (kind, sizes)
        for kind in (name + suffix for suffix in ("", "Cell") for name in options.layers)
        for sizes in options.calls
        if not (kind.endswith("Cell") and sizes[0] > 1)
    ]

    def print_rows(title: str, *others: str) -> None:
        titles = ["T,B,I,H", "NumPy, µs", "rnnfast.torch, µs", "more, µs", "torch.nn, µs", *others]
        print(f"| {title} | {' | '.join(titles)} |")
        print(f"|---|{'--:|' * len(titles)}")
        for kind, sizes in rows:
            (layer, modules), given = same_layers(kind, sizes), arrays(kind, sizes)
            if others:
                calls = training_calls(layer, modules, given)
                calls += [empty_call(modules[0], given), both(calls[0], empty_call(modules[0], given))]
            else:
                calls = inference_calls(layer, modules, given.x)
            ours, module, *rest = (1e6 * t for t in in_turns(calls))
            times = [ours, module, module - ours, *rest]
            print(f"| {kind} | {','.join(map(str, sizes))} | {' | '.join(f'{t:.1f}' for t in times)} |", flush=True)

    print_rows("forward + backward", "an empty Function, µs", "NumPy, then it, µs")
    print()
    print_rows("forward, without gradients")

    print("\n| as it is, and compiled | T,B,I,H | forward, µs | compiled, µs | training, µs | compiled, µs |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, sizes in itertools.product([*options.layers, "a product"], options.compiled):
        module: Any = getattr(rnnfast.torch, name, Product)(*sizes[2:])
        pair, given = (module, torch.compile(module, fullgraph=True)), arrays(name, sizes)
        calls = [*inference_calls(None, pair, given.x)[1:], *(torch_call(each, given) for each in pair)]
        times = " | ".join(f"{1e6 * t:.0f}" for t in in_turns(calls))
        print(f"| {name} | {','.join(map(str, sizes))} | {times} |", flush=True)

    print("\n| before and after `accelerate` | T,B,I,H | before, ms | after, ms | times as fast |")
    print("|---|--:|--:|--:|--:|")

    def compare(name: str, sizes: tuple[int, ...], calls: list[Call]) -> None:
        before, after = (1e3 * t for t in in_turns(calls))
        row = name, ",".join(map(str, sizes)), f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}"
        print("|", " | ".join(row), "|", flush=True)

    for kind in options.layers:
        for sizes in options.shapes:
            pair = twins(getattr(nn, kind)(*sizes[2:]))
            compare(f"nn.{kind}", sizes, [torch_call(module, arrays(kind, sizes)) for module in pair])
    T, B, E, H = options.model
    tokens, models = torch.randint(V, (T + 1, B)), twins(CharLM(E, H))
    compare("GRU model, training step", options.model, [training_step(model, tokens) for model in models])
    compare("GRU model, forward", (T, 1, E, H), [inference(model, tokens[:-1, :1]) for model in models])


if __name__ == "__main__":
    main()
