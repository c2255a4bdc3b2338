"""``python -m rnnfast bench``: a layer in float32, beside torch and ONNX Runtime where installed."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

from . import _core, get_num_threads
from ._base.arrays import Array
from .lm import allocating
from .lm_options import LAYERS

Call: TypeAlias = Callable[[], object]
Shape: TypeAlias = tuple[int, ...]  # T,B,I,H

SHAPES: tuple[Shape, ...] = ((50, 32, 256, 256), (100, 1, 128, 128), (784, 64, 1, 128))
FORWARD, BACKWARD = "forward", "forward + backward"
SECONDS = 1.0  # that a row of the table takes at least, for each contender
TURN = 2e-3  # seconds of a turn at least: long against reading the clock, short against changes of its speed


def run(shapes: Sequence[Shape] = SHAPES, cells: Sequence[str] = ("lstm", "gru")) -> None:
    """Print a table: GFLOP/s of rnnfast on its threads, and how many times as long each peer takes on as many."""
    import rnnfast

    peers = {name: peer for name, (packages, peer) in PEERS.items() if all(map(find_spec, packages))}
    absent = ", ".join(name for name in PEERS if name not in peers)
    n = get_num_threads()
    number = "one thread" if n == 1 else f"{n} threads"
    print(f"rnnfast {rnnfast.__version__}, {_core.config()['isa']}, {number}, float32; peers: time / ours")
    if absent:
        print(f"not installed: {absent}; `pip install rnnfast[bench]`")
    print(f"\n{'T,B,I,H':18}{'cell':6}{'pass':20}{'ms':>9}{'GFLOP/s':>9}", *(f"{name:>12}" for name in peers))
    for shape in shapes:
        for cell in cells:
            _print_rows(shape, cell, peers)


def _print_rows(shape: Shape, cell: str, peers: dict[str, "Peer"]) -> None:
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    with allocating():
        layer = LAYERS[cell](I, H, rng=0)
        x, dy = rng.standard_normal((T, B, I), np.float32), rng.standard_normal((T, B, H), np.float32)
    calls = {"rnnfast": _rnnfast(layer, x, dy)} | {name: peer(layer, x, dy) for name, peer in peers.items()}
    for part, products in ((FORWARD, 1), (BACKWARD, 3)):
        times = _in_turns([made[part] for made in calls.values() if part in made])
        ratios = iter(np.median(times / times[0], axis=1)[1:])
        seconds = np.median(times[0])
        flop = products * 2 * T * B * layer.gates * H * (I + H)
        columns = [f"{next(ratios):.2f}" if part in calls[name] else "-" for name in peers]
        print(
            f"{','.join(map(str, shape)):18}{cell:6}{part:20}{seconds * 1e3:9.3f}{flop / seconds * 1e-9:9.1f}",
            *(f"{column:>12}" for column in columns),
            flush=True,
        )


def _in_turns(calls: Sequence[Call]) -> Array:
    """Return the seconds that each call took in each round, [calls, rounds]."""
    repeats = [max(1, round(TURN / min(_seconds(call, 1) for _ in range(3)))) for call in calls]
    rounds: list[list[float]] = []
    until = time.perf_counter() + SECONDS * len(calls)
    while len(rounds) < 5 or time.perf_counter() < until:
        rounds.append([_seconds(call, n) for call, n in zip(calls, repeats, strict=True)])
    return np.array(rounds).T


def _seconds(call: Call, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def _rnnfast(layer: Any, x: Array, dy: Array) -> dict[str, Call]:
    def backward() -> object:
        _, _, tape = layer.forward(x)
        return layer.backward(tape, dy)

    return {FORWARD: lambda: layer(x), BACKWARD: backward}


def _torch(layer: Any, x: Array, dy: Array) -> dict[str, Call]:
    import torch

    torch.set_num_threads(get_num_threads())
    twin = getattr(torch.nn, type(layer).__name__)(layer.input_size, layer.hidden_size)
    twin.load_state_dict({name: torch.from_numpy(a) for name, a in layer.state_dict().items()})
    tx, tdy = torch.from_numpy(x), torch.from_numpy(dy)
    tx_grad = tx.clone().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return twin(tx)

    def backward() -> object:
        return torch.autograd.grad(twin(tx_grad)[0], [tx_grad, *twin.parameters()], tdy)

    return {FORWARD: forward, BACKWARD: backward}


def _onnxruntime(layer: Any, x: Array, dy: Array) -> dict[str, Call]:  # noqa: ARG001
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = get_num_threads(), 1
    model = onnx_model(layer, x.shape)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {FORWARD: lambda: session.run(None, {"x": x})}


def onnx_model(layer: Any, shape: tuple[int, ...]) -> bytes:
    """Return a model of the one layer, for x of this shape: the node of `to_onnx` without what moves its output."""
    from onnx import TensorProto, helper

    from .onnx import to_onnx

    model = to_onnx(layer)
    node = model.graph.node[0]
    node.output[0] = "y"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    weights = [a for a in model.graph.initializer if a.name in node.input]
    model.graph.CopyFrom(helper.make_graph([node], "layer", [x], outputs, weights))
    return bytes(model.SerializeToString())


Peer: TypeAlias = Callable[[Any, Array, Array], dict[str, Call]]
PEERS: dict[str, tuple[tuple[str, ...], Peer]] = {
    "torch": (("torch",), _torch),
    "onnxruntime": (("onnxruntime", "onnx"), _onnxruntime),
}
