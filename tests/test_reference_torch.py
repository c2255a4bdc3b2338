"""The oracle against torch, where torch has the same: ragged batches, episodes, every step's gradient, TBPTT."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from modules import IN_TORCH, KINDS
from problems import (
    Array,
    Problem,
    Results,
    Shape,
    assert_close,
    make_problem,
    mapped,
    named_gradients,
    named_grads,
    named_state,
    parts,
    ragged,
    solve,
    state_of,
    with_dsteps,
)

from rnnfast import reference

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')

by_cell = pytest.mark.parametrize("cell", IN_TORCH)


def tensor(a: Any) -> Any:
    """Return a tensor of the array that collects its gradient."""
    return torch.from_numpy(np.array(a)).requires_grad_()


def make(cell: str, suffix: str, parameters: Any, **options: Any) -> Any:
    """Return torch's layer or cell with the D tuples of parameters."""
    name, own = KINDS[cell]
    w_ih, w_hh, *more = parameters[0]
    H, I = (more[-1] if "proj_size" in options else w_hh).shape[1], w_ih.shape[1]
    module = getattr(torch.nn, name + suffix)(I, H, **own, **options, dtype=torch.float64)
    for p, w in zip(module.parameters(), (w for ws in parameters for w in ws), strict=True):
        p.data = torch.from_numpy(w.copy())
    return module


def grad(a: Any) -> Array:
    """Return the gradient that came to a tensor."""
    return np.zeros(a.shape) if a.grad is None else a.grad.numpy().copy()


def collected(cell: str, module: Any, x: Any, first: tuple[Any, ...]) -> Results:
    """Return the gradients that came to x, the initial state and the parameters, by name."""
    grads = [grad(w) for w in module.parameters()]
    n = 5 if getattr(module, "proj_size", 0) else 4
    directions = [grads[k : k + n] for k in range(0, len(grads), n)]
    return named_gradients(cell, grad(x), mapped(grad, first), directions)


def outputs(cell: str, y: Any, last: Any) -> Results:
    """Return y and the last state by name."""
    return {"y": y.detach().numpy(), **named_state(cell, tuple(s.detach().numpy() for s in parts(last)))}


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("cell", "P"), [*((cell, 0) for cell in IN_TORCH), ("lstm", 2)])
def test_a_ragged_batch_is_a_packed_sequence(cell: str, P: int, D: int) -> None:
    p: Any = ragged(make_problem(cell, np.float64, Shape(T=6, B=4, I=3, H=5, D=D, P=P)), 4, 6, 1, 4)
    module = make(cell, "", p.parameters, bidirectional=D == 2, **({"proj_size": P} if P else {}))
    x, first = tensor(np.where(p.real, p.x, 0)), mapped(tensor, p.state0)
    rows = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(p.lengths), enforce_sorted=False)
    y, last = module(rows, state_of(first))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    douts = [np.where(p.real, p.dy, 0), *p.dstate]
    torch.autograd.backward((y, *parts(last)), [torch.from_numpy(d) for d in douts])
    assert_close(solve(reference, p), {**outputs(cell, y, last), **collected(cell, module, x, first)})


@by_cell
def test_episodes_are_calls_from_the_same_initial_state(cell: str) -> None:
    p: Any = make_problem(cell, np.float64, Shape(T=7, B=1, I=3, H=5))
    resets = np.array([False, False, True, False, True, True, False])[:, None]
    module = make(cell, "", p.parameters)
    x, first = tensor(p.x), mapped(tensor, p.state0)
    runs = [module(x[episode], state_of(first)) for episode in (slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 7))]
    y, last = torch.cat([y for y, _ in runs]), runs[-1][1]
    douts = [p.dy, *p.dstate]
    torch.autograd.backward((y, *parts(last)), [torch.from_numpy(d) for d in douts])
    actual = solve(reference, replace(p, resets=resets))
    assert_close(actual, {**outputs(cell, y, last), **collected(cell, module, x, first)})


@by_cell
def test_the_gradients_of_every_step_are_those_that_torch_retains(cell: str) -> None:
    p: Any = with_dsteps(make_problem(cell, np.float64, Shape(T=5, B=2, I=3, H=4)))
    module = make(cell, "Cell", p.parameters)
    state, steps = tuple(tensor(s[0]) for s in p.state0), []
    for x in torch.from_numpy(p.x):
        state = parts(module(x, state_of(state)))
        for s in state:
            s.retain_grad()
        steps.append(state)
    dsteps = [torch.from_numpy(d) for d in (p.dy, *p.dsteps)]
    dlast = [torch.from_numpy(d[0]) for d in p.dstate]
    each = [(s, d[t]) for t, step in enumerate(steps) for s, d in zip(step, dsteps, strict=True)]
    ends = list(zip(state, dlast, strict=True))
    loss = torch.stack([(s * d).sum() for s, d in [*each, *ends]]).sum()
    loss.backward()
    *_, tape = reference.forward(cell, p.x, p.parameters, p.state0)
    found = reference.gradients(tape, p.dy, p.dstate, dsteps=p.dsteps)
    expected = tuple(np.stack([grad(s) for s in each_step]) for each_step in zip(*steps, strict=True))
    assert_close(named_state(cell, found.dsteps), named_state(cell, expected))


class TorchStack:
    """A stack of torch's cells, run over windows from states that are detached."""

    def __init__(self, p: Problem, layers: Any) -> None:
        self.cells = [make(p.cell, "Cell", layer) for layer in layers]
        self.x, self.first, self.p = tensor(p.x), mapped(tensor, p.state0), p

    def run(self, state: list[Any], start: int, stop: int) -> tuple[list[Any], list[list[Any]]]:
        """Return y of the steps, and the states before each of them and after the last."""
        ys, trace = [], [state]
        for t in range(start, stop):
            below, after = self.x[t], []
            for k, cell in enumerate(self.cells):
                first = [s[k] for s in self.first]
                anew = torch.from_numpy(self.p.resets[t, :, None])  # type: ignore[index]
                before = [torch.where(anew, f, s) for f, s in zip(first, trace[-1][k], strict=True)]
                real = torch.from_numpy(self.p.real[t])
                made = parts(cell(below, state_of(tuple(before))))
                after.append([torch.where(real, m, s) for m, s in zip(made, trace[-1][k], strict=True)])
                below = torch.where(real, made[0], torch.zeros_like(made[0]))
            ys.append(below)
            trace.append(after)
        return ys, trace

    def collect(self) -> Results:
        """Return the gradients by name, and forget them."""
        grads = [[[grad(w) for w in cell.parameters()]] for cell in self.cells]
        results = by_layer(self.p.cell, grad(self.x), mapped(grad, self.first), grads)
        for leaf in (self.x, *self.first, *(w for cell in self.cells for w in cell.parameters())):
            leaf.grad = None
        return results


def by_layer(cell: str, dx: Array, dstate0: tuple[Array, ...], grads: Any) -> Results:
    """Return the gradients of a stack by name; the second index is the layer."""
    own = {f"{name}[{k}]": a for k, layer in enumerate(grads) for name, a in named_grads(layer).items()}
    return {"dx": dx, **named_state(cell, dstate0, "d{}0"), **own}


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize("weights", ["fixed", "changing"])
@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (2, 5), (3, 2), (3, 4), (1, 8), (8, 8)])
@by_cell
def test_tbptt_is_autograd_from_a_detached_state(cell: str, k1: int, k2: int, weights: str, losses: Any) -> None:
    T, B, H, rate = 8, 3, 4, 0.3 if weights == "changing" else 0.0
    each: list[Any] = [make_problem(cell, np.float64, Shape(T, B, 2 if k == 0 else H, H), seed=k) for k in range(2)]
    layers: Any = [p.parameters for p in each]
    state0: Any = tuple(map(np.concatenate, zip(*(p.state0 for p in each), strict=True)))
    resets = np.random.default_rng(0).random((T, B)) < 0.2
    p: Any = ragged(replace(each[0], state0=state0, resets=resets), T, 5, 0, pad=0)
    windows = reference.windows(T, k1, k2, losses)
    dys: list[Array] = [np.where(p.real[w.start : w.stop], p.dy[w.start : w.stop], np.nan) for w in windows]
    now = layers

    def update(_: int, result: reference.Truncated) -> Any:
        nonlocal now
        now = [[tuple(w - rate * dw for w, dw in zip(*both, strict=True))] for both in pairs(now, result.grads)]
        return now

    activations: Any = "replay" if rate else "stored"
    options = p.options("lengths", "resets")
    results = reference.tbptt(
        cell, p.x, layers, dys, k1, k2, p.state0, losses=losses, activations=activations, update=update, **options
    )
    theirs = TorchStack(p, layers)
    trace = [[[s[k] for s in theirs.first] for k in range(2)]]  # of the states before each step, as they were computed
    for window, dy, result in zip(windows, dys, results, strict=True):
        ys, more = theirs.run(trace[-1], len(trace) - 1, window.stop)
        trace += [[[s.detach() for s in layer] for layer in state] for state in more[1:]]
        np.testing.assert_allclose(result.y, torch.stack(ys).detach().numpy(), rtol=1e-12, atol=1e-12)
        ys, _ = theirs.run(trace[window.tau], window.tau, window.stop)
        counted = np.where(p.real[window.start : window.stop], dy, 0)[max(0, window.tau - window.start) :]
        (torch.stack(ys[-len(counted) :]) * torch.from_numpy(counted)).sum().backward()
        expected = theirs.collect()
        assert_close(by_layer(cell, result.dx, result.dstate0, result.grads), expected)
        for k, cell_k in enumerate(theirs.cells):
            for w, dw in zip(cell_k.parameters(), result.grads[k][0], strict=True):
                w.data -= rate * torch.from_numpy(dw)


def pairs(layers: Any, grads: Any) -> list[Any]:
    """Return the parameters and their gradients, of each layer of one direction."""
    return [(layer[0], dlayer[0]) for layer, dlayer in zip(layers, grads, strict=True)]
