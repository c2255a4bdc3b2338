"""Variants of the cells beside their references: projection, layer normalisation, sLSTM, peepholes, regularisers.

python -m benchmarks.variants [--only projection norm slstm block options] [--rounds N]

float32, one thread. What stands in a row takes turns, each measured once a round; a ratio is the median over the
rounds. Before that the results are compared. `least` is the time that the matrix products of a row take at the
measured peak of the core (or that reading the recurrent weights takes, where that is longer), by our time; `most` is
the ratio to the fastest of the others that a program would reach which took no other time. References are

- torch's own LSTM, for projections;
- loops in Python over torch's operators, with torch's derivatives, for cells that torch lacks: with the products of x
  for all steps at once (`ahead`), or all in the step (`in the step`), and the latter compiled by `torch.jit.script`;
  of the sLSTM in the block of published forecasters, whose projections go by heads, ours as docs/cells.md has it;
- the plain layer, for options.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import rnnfast
from benchmarks import limits
from benchmarks.peers import QUICK_SAMPLE, TOLERANCE, difference
from benchmarks.problems import FORWARD, TRAINING, Shape
from benchmarks.timing import Call, rounds_of

ROUNDS = 7
NORMS: list[Shape] = [(50, 32, 256, 256), (50, 32, 128, 128), (100, 1, 256, 256), (100, 1, 64, 64)]
PROJECTIONS = [((50, 32, 256, 512), 256), ((9, 32, 512, 1024), 512), ((100, 1, 128, 256), 128)]
SLSTMS: list[Shape] = [(74, 32, 512, 512), (74, 1, 512, 512), (74, 32, 128, 128), (74, 1, 64, 64)]
BLOCKS = [(74, 32, 512), (74, 1, 512)]  # T, B, H
OPTIONS: dict[str, dict[str, Any]] = {
    "peephole": {"peephole": True},
    "coupled gates": {"coupled_gates": True},
    "weight dropout": {"weight_dropout": 0.5},
    "recurrent dropout": {"recurrent_dropout": 0.25},
    "recurrent dropout, for each gate": {"recurrent_dropout": 0.25, "recurrent_dropout_per_gate": True},
    "candidate dropout": {"candidate_dropout": 0.25},
    "zoneout": {"zoneout": (0.05, 0.5)},
}
OPTION_SHAPES: list[Shape] = [(50, 32, 256, 256), (100, 1, 128, 128)]


@dataclass
class Row:
    """A work, ours and the others', and what its products ask for."""

    what: str
    shape: Shape
    work: str
    calls: dict[str, Call]  # ours first
    least: float | None = None  # seconds


# The limit


def least(machine: limits.Limits, shape: Shape, gates: int, reads: int, work: str, more: int = 0) -> float:
    """Return the time of the products of a layer whose units read `reads` elements of h', and of `more` operations."""
    T, B, I, H = shape
    size = 4 * gates * H * reads
    at_peak = 2 * B * gates * H * reads / machine.peak
    recurrent = max(at_peak, size / machine.level_of(size).bandwidth)
    others = (2 * T * B * gates * H * I + more) / machine.peak
    return others + T * recurrent if work == FORWARD else 3 * others + T * (2 * recurrent + at_peak)


# Loops over torch's operators, as people write them


def norm(a: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(a, [a.shape[-1]], gain, bias)


def norm_step(a: Tensor, w: list[Tensor], h: Tensor, c: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Return h and c after a step, of normalised products a [B,4·H] of x."""
    _, w_hh, _, b_hh, _, gain_hh, gain_c, b_c = w
    i, f, g, o = (a + norm(F.linear(h, w_hh), gain_hh, b_hh)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    normal = norm(c, gain_c, b_c)
    return torch.sigmoid(o) * torch.tanh(normal), c if form == "inside" else normal


def norm_ahead(x: Tensor, w: list[Tensor], form: str) -> Tensor:
    h = c = x.new_zeros(x.shape[1], w[1].shape[1])
    steps: list[Tensor] = []
    for a in norm(F.linear(x, w[0]), w[4], w[2]).unbind():
        h, c = norm_step(a, w, h, c, form)
        steps.append(h)
    return torch.stack(steps)


def norm_in_the_step(x: Tensor, w: list[Tensor], form: str) -> Tensor:
    h = torch.zeros([x.shape[1], w[1].shape[1]])
    c = h
    steps: list[Tensor] = []
    for x_t in x.unbind():
        h, c = norm_step(norm(F.linear(x_t, w[0]), w[4], w[2]), w, h, c, form)
        steps.append(h)
    return torch.stack(steps)


def slstm_step(a: Tensor, state: tuple[Tensor, ...], heads: Tensor) -> tuple[Tensor, ...]:
    """Return the states after a step, of products a [B,4·H] of x; heads [heads,H/heads,4·H/heads], its gates last."""
    h, c, n, m = state
    B, H = h.shape
    by_head = torch.bmm(h.view(B, heads.shape[0], -1).transpose(0, 1), heads)  # [heads,B,4·H/heads]
    recurrent = by_head.view(heads.shape[0], B, 4, -1).permute(1, 2, 0, 3).reshape(B, 4 * H)
    a_i, a_f, a_z, a_o = (a + recurrent).chunk(4, 1)
    log = m + F.logsigmoid(a_f)
    m = a_i if bool((n == 0).all()) else torch.maximum(a_i, log)
    i, f = torch.exp(a_i - m), torch.exp(log - m)
    c = f * c + i * torch.tanh(a_z)
    n = f * n + i
    return torch.sigmoid(a_o) * c / n, c, n, m


def by_heads(w_hh: Tensor, heads: int) -> Tensor:
    """Return w_hh [4·H,H/heads] as [heads,H/heads,4·H/heads]."""
    rows = w_hh.view(4, heads, -1, w_hh.shape[1])  # gate, head, unit, column
    return rows.permute(1, 3, 0, 2).reshape(heads, w_hh.shape[1], -1).contiguous()


def slstm_loop(x: Tensor, heads: Tensor, gates: Callable[[Tensor], Tensor]) -> Tensor:
    """Return h of every step, where `gates` makes of a step of x what it brings to the gates."""
    zero = x.new_zeros(x.shape[1], heads.shape[0] * heads.shape[1])
    state: tuple[Tensor, ...] = (zero, zero, zero, zero)
    steps = []
    for x_t in x.unbind():
        state = slstm_step(gates(x_t), state, heads)
        steps.append(state[0])
    return torch.stack(steps)


def slstm_ahead(x: Tensor, w: list[Tensor], heads: int) -> Tensor:
    return slstm_loop(F.linear(x, w[0], w[2] + w[3]), by_heads(w[1], heads), lambda a: a)


def slstm_in_the_step(x: Tensor, w: list[Tensor], heads: int) -> Tensor:
    b = w[2] + w[3]
    return slstm_loop(x, by_heads(w[1], heads), lambda x_t: F.linear(x_t, w[0], b))


# The rows


def works(layer: Any, shape: Shape) -> tuple[Any, dict[str, Call]]:
    """Return the input, and our calls."""
    T, B, I, _ = shape
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    dy = np.ones((T, B, getattr(layer, "proj_size", 0) or layer.hidden_size), np.float32)

    def training() -> Any:
        y, _, tape = layer.forward(x)
        dx, _, grads = layer.backward(tape, dy)
        return [y, dx, *grads.values()]

    return x, {FORWARD: lambda: [layer(x)[0]], TRAINING: training}


def torch_works(layer: Any, x: Any, run: Callable[[Tensor, list[Tensor]], Tensor]) -> dict[str, Call]:
    """Return the same of torch: `run` is y of x and the parameters of the layer."""
    w = [torch.from_numpy(a.copy()).requires_grad_() for a in layer.parameters.values()]
    given = torch.from_numpy(x.copy()).requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return [run(given, w)]

    def training() -> Any:
        y = run(given, w)
        return [y, *torch.autograd.grad(y, [given, *w], torch.ones_like(y))]

    return {FORWARD: forward, TRAINING: training, "with a graph": lambda: [run(given, w)]}


def with_parameters(loop: Callable[..., Tensor], option: Any, x: Tensor, w: list[Tensor]) -> Tensor:
    return loop(x, w, option)


def norms(machine: limits.Limits) -> Iterator[Row]:
    scripted = torch.jit.script(norm_in_the_step)
    loops: dict[str, Any] = {"ahead": norm_ahead, "in the step": norm_in_the_step, "scripted": scripted}
    for form in ("inside", "carried"):
        for shape in NORMS:
            layer = rnnfast.LSTM(*shape[2:], layer_norm=form, seed=0)
            x, mine = works(layer, shape)
            theirs = {name: torch_works(layer, x, partial(with_parameters, loop, form)) for name, loop in loops.items()}
            plain = works(rnnfast.LSTM(*shape[2:], seed=0), shape)[1]
            for work in (FORWARD, TRAINING):
                calls = {"ours": mine[work]} | {name: made[work] for name, made in theirs.items()}
                calls["plain layer"] = plain[work]
                yield Row(f"layer_norm={form}", shape, work, calls, least(machine, shape, 4, shape[3], work))


def slstms(machine: limits.Limits) -> Iterator[Row]:
    heads = 4
    for shape in SLSTMS:
        layer = rnnfast.SLSTM(*shape[2:], heads, seed=0)
        x, mine = works(layer, shape)
        theirs = {
            name: torch_works(layer, x, partial(with_parameters, loop, heads))
            for name, loop in (("ahead", slstm_ahead), ("in the step", slstm_in_the_step))
        }
        for work in (FORWARD, TRAINING):
            calls = {"ours": mine[work]} | {name: made[work] for name, made in theirs.items()}
            if work == FORWARD:
                calls |= {f"{name}, with a graph": made["with a graph"] for name, made in theirs.items()}
            yield Row("sLSTM, 4 heads", shape, work, calls, least(machine, shape, 4, shape[3] // heads, work))


def block_calls(T: int, B: int, H: int, heads: int) -> dict[str, Call]:
    """Return calls of the cell with its projections by heads: of i and f of one input, the others of another."""
    layer, size, rng = rnnfast.SLSTM(2 * H, H, heads, seed=0), H // heads, np.random.default_rng(1)
    w = rng.standard_normal((4, heads, size, size), np.float32) / np.float32(size**0.5)
    inputs = rng.standard_normal((2, T, B, H), np.float32)
    w_hh, b, tokens = layer.weight_hh_l0, layer.bias_hh_l0, np.arange(T * B).reshape(T, B)
    bounds = np.repeat(np.array([-np.inf, 2**64], np.float32), H)
    dense = np.zeros((4, heads, size, 2, heads, size), np.float32)
    for gate, head in np.ndindex(4, heads):
        dense[gate, head, :, gate // 2, head] = w[gate, head]
    layer.weight_ih_l0, layer.bias_ih_l0 = dense.reshape(4 * H, 2 * H), np.zeros_like(b)
    both = np.concatenate(list(inputs), axis=-1)

    def ours() -> Any:
        columns = [a.reshape(-1, heads, size).transpose(1, 2, 0) for a in inputs]
        w_ih = np.concatenate([(w[gate] @ columns[gate // 2]).reshape(H, -1) for gate in range(4)])
        return [rnnfast.functional.inference("slstm", tokens, [(w_ih, w_hh, b, None, bounds)])[0]]

    w_t, x_t, b_t = torch.from_numpy(w), torch.from_numpy(inputs), torch.from_numpy(b)
    of_heads = by_heads(torch.from_numpy(w_hh), heads)

    def theirs() -> Any:
        with torch.no_grad():
            rows = [x.view(T, B, heads, size) for x in x_t]
            gates = [torch.einsum("tbhi,hoi->tbho", rows[gate // 2], w_t[gate]) for gate in range(4)]
            return [slstm_loop(torch.cat([a.reshape(T, B, H) for a in gates], dim=-1) + b_t, of_heads, lambda a: a)]

    return {"ours": ours, "as a layer": lambda: [layer(both)[0]], "torch's operators": theirs}


def blocks(machine: limits.Limits) -> Iterator[Row]:
    heads = 4
    for T, B, H in BLOCKS:
        shape, calls = (T, B, H // heads, H), block_calls(T, B, H, heads)
        yield Row("sLSTM, projections by heads", shape, FORWARD, calls, least(machine, shape, 4, H // heads, FORWARD))


def projections(machine: limits.Limits) -> Iterator[Row]:
    for shape, P in PROJECTIONS:
        T, B, I, H = shape
        layer = rnnfast.LSTM(I, H, proj_size=P, seed=0)
        x, mine = works(layer, shape)
        module = torch.nn.LSTM(I, H, proj_size=P)
        names = list(layer.parameters)

        def run(x: Tensor, w: list[Tensor], module: Any = module, names: list[str] = names) -> Tensor:
            y: Tensor = torch.func.functional_call(module, dict(zip(names, w, strict=True)), (x,))[0]
            return y

        theirs = torch_works(layer, x, run)
        for work in (FORWARD, TRAINING):
            calls = {"ours": mine[work], "torch.nn.LSTM": theirs[work]}
            yield Row(f"proj_size={P}", shape, work, calls, least(machine, shape, 4, P, work, 2 * T * B * P * H))


def options(_: limits.Limits) -> Iterator[Row]:
    for name, given in OPTIONS.items():
        for shape in OPTION_SHAPES:
            mine = works(rnnfast.LSTM(*shape[2:], seed=0, **given), shape)[1]
            plain = works(rnnfast.LSTM(*shape[2:], seed=0), shape)[1]
            yield Row(name, shape, TRAINING, {"ours": mine[TRAINING], "plain layer": plain[TRAINING]})


GROUPS = {"projection": projections, "norm": norms, "slstm": slstms, "block": blocks, "options": options}


def numbers(call: Call) -> dict[str, Any]:
    """Return the arrays that a call returns, by their places."""
    made: Any = call()
    return {str(i): np.asarray(a.detach() if isinstance(a, Tensor) else a) for i, a in enumerate(made)}


def check(row: Row) -> None:
    """Raise RuntimeError if another has other results."""
    mine = numbers(row.calls["ours"])
    for name, call in row.calls.items():
        if name in ("ours", "plain layer"):
            continue
        theirs = numbers(call)
        if not difference(theirs, {i: mine[i] for i in theirs}) <= TOLERANCE["float32"]:
            msg = f"{row.what}, {row.shape}, {row.work}: {name} has other results"
            raise RuntimeError(msg)


def measured(row: Row, rounds: int) -> str:
    """Return the row's line."""
    check(row)
    ours, *others = rounds_of(list(row.calls.values()), rounds, QUICK_SAMPLE)
    seconds = statistics.median(ours)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, ours, strict=True))
        for name, times in zip(list(row.calls)[1:], others, strict=True)
    }
    plain = ratios.pop("plain layer", None)
    cells = [row.what, ",".join(map(str, row.shape)), row.work, f"{seconds * 1e3:.3f}"]
    cells += ["" if plain is None else f"{1 / plain:.2f}"]
    cells += ["; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())]
    fraction = None if row.least is None else row.least / seconds
    cells += ["" if fraction is None else f"{fraction:.2f}"]
    cells += ["" if fraction is None or not ratios else f"{min(ratios.values()) / fraction:.1f}"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    machine = limits.measure("float32")
    print(f"peak of one core: {machine.peak / 1e9:.0f} GFLOP/s\n")
    print("| variant | T,B,I,H | work | ms | by the plain layer | others by ours | least | most |")
    print("|---|---|---|--:|--:|---|--:|--:|")
    for name in given.only:
        for row in GROUPS[name](machine):
            print(measured(row, given.rounds), flush=True)


if __name__ == "__main__":
    main()
