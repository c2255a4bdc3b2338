"""The time of one streaming step at B = 1, I = H, float32, beside an ONNX Runtime session and torch's cell.

python -m benchmarks.streaming [--cells lstm gru rnn] [--sizes H ...]

All run on the calling thread and take turns. The bound is 1.3 times what it takes to read the weights from the cache
level that holds them, and 1 µs for the call. The session starts from a zero state each time; it reads the same weights.

Then what a call costs: a step of an Elman layer of 1 to 8 units, a compiled class of Cython, beside two calls through
pybind11, tanh of as many numbers with the same checks of x and out, and one without any argument.
"""

import argparse
from typing import Any

import numpy as np
import onnxruntime
import torch

import rnnfast
from benchmarks import limits
from benchmarks.problems import SIZES
from benchmarks.timing import Call, in_turns
from rnnfast import _core
from rnnfast.bench import onnx_model
from rnnfast.lm import LAYERS

LEAST = 1, 2, 4, 8  # sizes at which nearly all of the time is the call


def step_of(layer: Any, x: Any) -> Call:
    """Return one step of our stream for x [B,I]."""
    stream, out = layer.stream(len(x)), np.empty((len(x), layer.hidden_size), np.float32)
    return lambda: stream.step(x, out=out)


def session_of(model: bytes) -> Any:
    """Return a session of ONNX Runtime on the calling thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def session_step_of(layer: Any, x: Any) -> Call:
    """Return one step of an ONNX Runtime session."""
    session, inputs = session_of(onnx_model(layer, (1, *x.shape))), {"x": x[np.newaxis]}
    return lambda: session.run(None, inputs)


def twin_of(cell: str, layer: Any) -> Any:
    """Return torch's cell with the weights of a layer or cell of ours."""
    twin = getattr(torch.nn, f"{LAYERS[cell].__name__}Cell")(layer.input_size, layer.hidden_size)
    twin.load_state_dict(
        {name.removesuffix("_l0"): torch.from_numpy(a.copy()) for name, a in layer.state_dict().items()}
    )
    return twin


def torch_step_of(cell: str, layer: Any, x: Any) -> Call:
    """Return one step of torch's cell, its state carried on."""
    theirs = twin_of(cell, layer)
    x, state = torch.from_numpy(x), None

    def step() -> Any:
        nonlocal state
        with torch.inference_mode():
            state = theirs(x, state)
        return state

    return step


def least_calls(H: int) -> list[Call]:
    """Return a step of so few units, and calls through pybind11 with the same two arrays and with nothing."""
    layer, x = rnnfast.RNN(H, H, rng=0), np.ones((1, H), np.float32)
    out = np.empty_like(x)
    return [step_of(layer, x), lambda: _core.tanh(x, out), lambda: _core.get_num_threads()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="H")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    machine = limits.measure("float32")
    print("cell     H        µs     bound   torch  onnxruntime (times ours)")
    for cell in options.cells:
        for H in options.sizes:
            layer = LAYERS[cell](H, H, rng=0)
            x = np.random.default_rng(0).standard_normal((1, H), np.float32)
            ours, theirs, session = in_turns(
                [step_of(layer, x), torch_step_of(cell, layer, x), session_step_of(layer, x)]
            )
            size = sum(a.nbytes for name, a in layer.state_dict().items() if "weight" in name)
            bound = 1.3 * size / machine.level_of(size).bandwidth + 1e-6
            print(
                f"{cell:4} {H:5} {ours * 1e6:9.2f} {bound * 1e6:9.2f} {theirs / ours:7.1f} {session / ours:7.1f}",
                flush=True,
            )
    print("\n   H  step, µs  tanh by pybind11, µs  no arguments, µs  a step saves, µs")
    for H in LEAST:
        step, tanh, nothing = (time * 1e6 for time in in_turns(least_calls(H)))
        print(f"{H:4} {step:9.3f} {tanh:21.3f} {nothing:17.3f} {tanh - step:17.3f}")


if __name__ == "__main__":
    main()
