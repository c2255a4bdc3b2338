"""Shapes that people run: rnnfast beside torch and ONNX Runtime on the layers of programs that are in use.

python -m benchmarks.field [--who NAME ...] [--rounds N] [--quick] [--json FILE] [--markdown FILE]

float32, one thread. What stands in a row takes turns, each measured once a round; a ratio is the median over the
rounds. Before that, the results are compared with ours: a peer that is off is named and left out.

Rows of T = 1 are one step with its state carried on: ours is a step of a stream. In the others forward is a call of the
layer with plain weights, beside torch's layer in inference mode and a session of ONNX Runtime, which packs the weights
when it is made; forward + backward is without dx where x is data.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

import rnnfast
from benchmarks import limits, report
from benchmarks.machine import describe
from benchmarks.peers import QUICK_ROUNDS, QUICK_SAMPLE, ROUNDS, SAMPLE, TOLERANCE, difference, positive
from benchmarks.problems import FORWARD, TRAINING, TRAINING_NO_DX, WORKS, Array, Problem, Shape
from benchmarks.report import Point, Table
from benchmarks.streaming import session_of, step_of, torch_step_of
from benchmarks.systems import OURS, Numbers, Task, Tasks
from benchmarks.timing import rounds_of
from rnnfast.lm import LAYERS
from rnnfast.onnx import to_onnx

STEP = "step"
TITLES = {work: WORKS[work] for work in (FORWARD, TRAINING, TRAINING_NO_DX)} | {STEP: "one step"}

LAST = "last output only"
LENGTHS = "ragged; torch packs and pads"
RESETS = "resets; torch by pieces"  # between the steps before which an episode of any sequence begins
CELL = "torch's cell"  # in place of its layer at T = 1
NORM = "layer norm; torch by operations"  # layer_norm="inside"
EPISODE = 100  # steps of an episode with resets, in the mean


@dataclass(frozen=True)
class Row:
    """One layer or stack, of the same H and number of directions throughout, and who runs it."""

    who: str
    cell: str
    shape: Shape
    layers: int = 1
    directions: int = 1
    special: str = ""
    dx: bool = True  # False: x is data, which nobody needs the gradient of

    @property
    def works(self) -> tuple[str, ...]:
        if self.shape[0] == 1:
            return (STEP,)
        return FORWARD, TRAINING if self.dx else TRAINING_NO_DX

    def parts(self, work: str) -> Iterator[tuple[Problem, str]]:
        """Yield each layer in each direction, and what it is put to: layers above the first always need dx."""
        T, B, I, H = self.shape
        first = FORWARD if work == STEP else work
        above = TRAINING if work == TRAINING_NO_DX else first
        for k in range(self.layers):
            inputs = self.directions * H if k else I
            yield from [(Problem(self.cell, T, B, inputs, H), above if k else first)] * self.directions

    def limit(self, work: str, machine: limits.Limits) -> float | None:
        """Return the least time; None where it says little: of one step, and of ragged sequences."""
        if work == STEP or self.special == LENGTHS:
            return None
        return sum(machine.seconds(problem, part) for problem, part in self.parts(work))

    def small(self) -> "Row":
        """Return a row like it that takes no time."""
        T, B, I, H = self.shape
        return replace(self, shape=(min(T, 12), min(B, 4), min(I, 8), min(H, 16)))


ROWS = [
    Row("NeuralHydrology", "lstm", (365, 256, 32, 256), special=LAST, dx=False),
    Row("docTR", "lstm", (32, 64, 512, 128), layers=2, directions=2),
    Row("pyannote", "lstm", (293, 32, 60, 128), layers=2, directions=2),
    Row("pyannote", "lstm", (589, 32, 60, 128), layers=4, directions=2),
    Row("sb3 RecurrentPPO", "lstm", (128, 8, 64, 256), special=RESETS, dx=False),
    Row("guitar amplifier", "lstm", (2000, 64, 1, 40), dx=False),
    Row("guitar amplifier", "lstm", (20000, 16, 3, 12), dx=False),
    Row("darts", "lstm", (24, 32, 1, 25), dx=False),
    Row("darts", "gru", (24, 32, 1, 25), dx=False),
    Row("darts", "rnn", (24, 32, 1, 25), dx=False),
    Row("darts", "lstm", (300, 32, 1, 25), dx=False),
    Row("DeepAR", "lstm", (300, 32, 60, 40), layers=2),
    Row("DeepAR", "lstm", (300, 32, 60, 40), layers=2, special=LENGTHS),
    Row("AWD-LSTM, first", "lstm", (70, 20, 400, 1150)),
    Row("AWD-LSTM, second", "lstm", (70, 20, 1150, 1150)),
    Row("AWD-LSTM, third", "lstm", (70, 20, 1150, 400)),
    Row("AWD-LSTM, second", "lstm", (70, 80, 1150, 1150)),
    Row("haste", "lstm", (50, 32, 256, 256)),
    Row("haste", "lstm", (50, 32, 256, 256), special=NORM),
    Row("sb3 RecurrentPPO", "lstm", (1, 1, 64, 256)),
    Row("sb3 RecurrentPPO", "lstm", (1, 8, 64, 256)),
    Row("sb3 RecurrentPPO", "lstm", (1, 64, 64, 256)),
    Row("guitar amplifier", "lstm", (1, 1, 1, 12)),
    Row("guitar amplifier", "lstm", (1, 1, 1, 40)),
    Row("silero-vad", "lstm", (1, 1, 128, 128), special=CELL),
    Row("RNNoise", "gru", (1, 1, 256, 256), layers=3),
    Row("DeepFilterNet", "gru", (1, 1, 256, 256), layers=5),
    Row("NeMo RNN-T predictor", "lstm", (1, 1, 640, 640), layers=2),
]


class Case:
    """The layer of a row, and its arrays."""

    def __init__(self, row: Row) -> None:
        T, B, I, H = row.shape
        rng, bidirectional = np.random.default_rng(0), row.directions == 2
        self.row = row
        own: dict[str, Any] = {"layer_norm": "inside"} if row.special == NORM else {}
        self.layer = LAYERS[row.cell](I, H, num_layers=row.layers, bidirectional=bidirectional, rng=0, **own)
        self.x = rng.standard_normal((T, B, I), np.float32)
        steps = () if row.special == LAST else (T,)
        self.dy = rng.standard_normal((*steps, B, row.directions * H), np.float32)
        self.lengths = rng.integers(1, T + 1, B) if row.special == LENGTHS else None
        self.resets = rng.random((T, B)) < 1 / EPISODE if row.special == RESETS else None

    @property
    def options(self) -> dict[str, Any]:
        """Return the keywords that our layer is called with."""
        given = {"lengths": self.lengths, "resets": self.resets}
        outputs = {"outputs": "last"} if self.row.special == LAST else {}
        return outputs | {name: value for name, value in given.items() if value is not None}

    def flops(self, work: str) -> int:
        """Return how many operations the matrix products have, those with padding left out."""
        T, B, *_ = self.row.shape
        real = 1 if self.lengths is None else self.lengths.sum() / (T * B)
        return round(real * sum(problem.flops(part) for problem, part in self.row.parts(work)))


def y_of(y: Any) -> Numbers:
    return {"y": np.asarray(y)}


def ours(case: Case) -> Tasks:
    layer, x, row = case.layer, case.x, case.row
    if STEP in row.works:
        return {STEP: Task(step_of(layer, x[0]), y_of)}

    def training() -> Any:
        _, _, tape = layer.forward(x, **case.options)
        dx, _, grads = layer.backward(tape, case.dy, need_dx=row.dx)
        return grads | ({"dx": dx} if row.dx else {})

    return {FORWARD: Task(lambda: layer(x, **case.options)[0], y_of), row.works[1]: Task(training, dict)}


def torch_tasks(case: Case) -> Tasks:
    row, layer = case.row, case.layer
    if row.special == CELL:
        return {STEP: Task(torch_step_of(row.cell, layer, case.x[0]), lambda state: y_of(state[0]))}
    kind = NormLSTM if row.special == NORM else getattr(nn, type(layer).__name__)
    module = kind(*row.shape[2:], row.layers, bidirectional=row.directions == 2)
    module.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in layer.state_dict().items()})
    x, dy = torch.from_numpy(case.x), torch.from_numpy(case.dy)
    if STEP in row.works:
        return {STEP: Task(torch_module_step(module, x), lambda y: y_of(y[0]))}
    run = torch_run(case, module)
    given = x.clone().requires_grad_(row.dx)
    inputs = dict(module.named_parameters()) | ({"dx": given} if row.dx else {})

    def named(gradients: Any) -> Numbers:
        return dict(zip(inputs, map(np.asarray, gradients), strict=True))

    def forward() -> Any:
        with torch.inference_mode():
            return run(x)

    def training() -> Any:
        return torch.autograd.grad(run(given), list(inputs.values()), dy)

    return {FORWARD: Task(forward, y_of), row.works[1]: Task(training, named)}


class NormLSTM(nn.Module):  # type: ignore[misc]
    """One layer of an LSTM with layer normalisation, in operations of torch: those of x for all steps at once."""

    def __init__(self, I: int, H: int, layers: int, *, bidirectional: bool) -> None:
        super().__init__()
        assert (layers, bidirectional) == (1, False)
        shapes = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "gain_c": (H,), "bias_c": (H,)}
        shapes |= dict.fromkeys(("bias_ih", "bias_hh", "gain_ih", "gain_hh"), (4 * H,))
        for name, size in shapes.items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.zeros(size)))

    def forward(self, x: Any) -> Any:
        norm, H = nn.functional.layer_norm, len(self.gain_c_l0)
        a_x = norm(x @ self.weight_ih_l0.T, [4 * H], self.gain_ih_l0, self.bias_ih_l0)
        h = c = x.new_zeros(x.shape[1], H)
        steps = []
        for a in a_x:
            a_h = norm(h @ self.weight_hh_l0.T, [4 * H], self.gain_hh_l0, self.bias_hh_l0)
            i, f, g, o = (a + a_h).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * norm(c, [H], self.gain_c_l0, self.bias_c_l0).tanh()
            steps.append(h)
        return torch.stack(steps), (h, c)


def torch_module_step(module: Any, x: Any) -> Callable[[], Any]:
    """Return one step of a layer of torch, its state carried on."""
    state = None

    def step() -> Any:
        nonlocal state
        with torch.inference_mode():
            y, state = module(x, state)
        return y

    return step


def torch_run(case: Case, module: Any) -> Callable[[Any], Any]:
    """Return y of x by a layer of torch, with lengths, resets and the last output as its users write them."""
    if case.lengths is not None:
        lengths = torch.from_numpy(case.lengths)

        def ragged(x: Any) -> Any:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(module(packed)[0], total_length=len(x))[0]

        return ragged
    if case.resets is not None:
        begins = [0, *(np.flatnonzero(case.resets[1:].any(axis=1)) + 1).tolist(), len(case.resets)]
        keep = torch.from_numpy(1 - case.resets[:, :, np.newaxis].astype(np.float32))

        def pieces(x: Any) -> Any:
            ys, state = [], None
            for start, end in pairwise(begins):
                y, state = module(x[start:end], state and tuple(keep[start] * part for part in state))
                ys.append(y)
            return torch.cat(ys)

        return pieces
    if case.row.special == LAST:
        return lambda x: module(x)[0][-1]
    return lambda x: module(x)[0]


def onnx_of(case: Case) -> bytes:
    """Return the ONNX model of the layer: for a step with the state as an input, for ragged sequences with lengths."""
    model = to_onnx(case.layer, state=STEP in case.row.works)
    if case.lengths is not None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["B"]))
        for node in model.graph.node:
            if node.op_type == type(case.layer).__name__:
                node.input.extend([""] * (5 - len(node.input)))
                node.input[4] = "lengths"  # the operator's sequence_lens
    if only_last(case.row):
        del model.graph.output[0]  # y, and with it what only y needs
    return bytes(model.SerializeToString())


def only_last(row: Row) -> bool:
    """Say whether the output is that of the last step, which a model gives as h_n of the last layer."""
    return STEP in row.works or row.special == LAST


def onnxruntime_tasks(case: Case) -> Tasks:
    if case.row.special in (RESETS, NORM):  # which no operator has
        return {}
    row, session, inputs = case.row, session_of(onnx_of(case)), {"x": case.x}
    if case.lengths is not None:
        inputs["lengths"] = case.lengths.astype(np.int32)
    last = only_last(row)
    if STEP not in row.works:
        name = "h_n" if last else "y"
        return {FORWARD: Task(lambda: session.run([name], inputs)[0], lambda a: y_of(a[-1] if last else a))}
    states = [given.name for given in session.get_inputs() if given.name != "x"]
    _, B, _, H = row.shape
    inputs |= {name: np.zeros((row.layers, B, H), np.float32) for name in states}

    def step() -> Any:
        after = session.run(None, inputs)
        inputs.update(zip(states, after, strict=True))
        return after[0]

    return {STEP: Task(step, lambda h: y_of(h[-1]))}


SYSTEMS: dict[str, Callable[[Case], Tasks]] = {OURS: ours, "torch": torch_tasks, "onnxruntime": onnxruntime_tasks}
PEERS = [name for name in SYSTEMS if name != OURS]


def measure(row: Row, rounds: int, sample: float, refused: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a result for each work of a row; peers that had to be left out are added to `refused`."""
    case = Case(row)
    tasks = {name: make(case) for name, make in SYSTEMS.items()}
    for work in row.works:
        able = {name: task[work] for name, task in tasks.items() if work in task}
        numbers: dict[str, dict[str, Array]] = {name: task.numbers(task.run()) for name, task in able.items()}
        for name in list(able):
            error = difference(numbers[name], numbers[OURS])
            if not error <= TOLERANCE["float32"]:
                why = f"its numbers are off by {error:.1e} of the largest"
                refused.append({"system": name, "cell": row.cell, "shape": row.shape, "work": work, "why": why})
                del able[name]
        times = rounds_of([task.run for task in able.values()], rounds, sample)
        systems = {name: {"seconds": seconds, "memory": None} for name, seconds in zip(able, times, strict=True)}
        yield asdict(row) | {"work": work, "flops": case.flops(work), "systems": systems}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; return what the JSON holds."""
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    rows = [row.small() if options.quick else row for row in ROWS if row.who in options.who]
    sample = QUICK_SAMPLE if options.quick else SAMPLE
    machine = limits.measure("float32")
    data = describe() | {"threads": 1, "dtype": "float32", "rounds": options.rounds, "limits": asdict(machine)}
    data["versions"] = {OURS: rnnfast.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    data |= {"absent": {}, "refused": [], "results": []}
    try:
        for row in tqdm(rows, unit="row"):
            for result in measure(row, options.rounds, sample, data["refused"]):
                data["results"].append(result | {"limit": row.limit(result["work"], machine)})
    except KeyboardInterrupt:
        print("stopped; this is what was measured until then", file=sys.stderr)
    return data


def markdown(data: dict[str, Any]) -> str:
    """Return the machine, a table for each work, and the geometric means."""
    results, points = data["results"], report.points(data)
    paragraphs = ["# Shapes that people run", *report.machine(data)]
    works = [work for work in TITLES if any(point.work == work for point in points)]
    for work in works:
        group = [(row, point) for row, point in zip(results, points, strict=True) if point.work == work]
        paragraphs += [f"## {TITLES[work]}", *report.lines(details(group))]
    means = [summary(TITLES[work], [point for point in points if point.work == work]) for work in works]
    header = ["geometric means", "of limit", *PEERS, "best peer", "least ratio to a peer"]
    paragraphs += ["## Geometric means", *report.lines((header, means))]
    if data["refused"]:
        paragraphs += ["## Left out", *report.refused(data)]
    return "\n".join(paragraphs)


def details(group: Sequence[tuple[dict[str, Any], Point]]) -> Table:
    unit, scale = ("µs", 1e6) if group[0][1].work == STEP else ("ms", 1e3)
    header = [
        "who",
        "cell",
        "T,B,I,H",
        "layers",
        "directions",
        "special",
        unit,
        "GFLOP/s",
        "of limit",
        *PEERS,
        "best peer",
    ]
    rows = [
        [
            row["who"],
            point.cell,
            point.shape,
            str(row["layers"]),
            str(row["directions"]),
            row["special"],
            f"{point.seconds * scale:.2f}",
            f"{point.gflops:.1f}",
            report.ratio(point.fraction),
            *(report.ratio(point.ratios.get(name)) for name in PEERS),
            report.ratio(point.to_best),
        ]
        for row, point in group
    ]
    return header, rows


def summary(title: str, group: Sequence[Point]) -> list[str]:
    """Return the means of a work, and the row where a peer comes closest."""
    closest = min(group, key=lambda point: point.to_best or math.inf)
    least = f"{report.ratio(closest.to_best)} {closest.best} at {closest.cell} {closest.shape}"
    return [title, *report.means(group, PEERS), least]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__.partition("\n")[0])
    names = list(dict.fromkeys(row.who for row in ROWS))
    parser.add_argument("--who", nargs="+", choices=names, default=names, metavar="NAME", help="some of the rows")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--quick", action="store_true", help="all rows with small sizes, a few short rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    data = run(options)
    text = markdown(data)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
