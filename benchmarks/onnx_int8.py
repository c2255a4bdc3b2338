"""int8 LSTMs as ONNX Runtime's own tool writes them, here and there: who is nearer to float32, and who is faster.

    python -m benchmarks.onnx_int8

The tool makes DynamicQuantizeLSTM of a float32 layer. ONNX Runtime runs it; `from_onnx` reads it, with its integers and
scales. Errors are those of y against float32, root mean square and largest, over that of y. `gain` multiplies all
weights: a layer as it starts has small h, one of gain 4 has h near -1 and 1, as trained layers have.

Then the times of one step, as `benchmarks.quantized` has them.
"""

import argparse
import itertools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import rnnfast
from benchmarks import quantized
from benchmarks.streaming import session_of
from rnnfast.onnx import from_onnx, to_onnx

T = 100
FORMS = (1, 1), (1, 4), (2, 1), (2, 4)  # layers and gain


def quantized_by_onnxruntime(layer: Any, *, per_channel: bool) -> Any:
    """Return the model of a layer after ONNX Runtime's own tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, result = Path(folder, "plain.onnx"), Path(folder, "quantized.onnx")
        onnx.save(to_onnx(layer), plain)
        quantize_dynamic(plain, result, weight_type=QuantType.QInt8, per_channel=per_channel)
        return onnx.load(result)


def errors(H: int, B: int, form: tuple[int, int], *, per_channel: bool) -> dict[str, tuple[float, float]]:
    """Return the errors of an LSTM of so many layers and such a gain, by who computes it."""
    num_layers, gain = form
    layer = rnnfast.LSTM(H, H, num_layers=num_layers, rng=0)
    for parameter in layer.parameters.values():
        parameter *= gain
    x = np.random.default_rng(0).standard_normal((T, B, H), np.float32)
    y, _ = layer(x)
    model = quantized_by_onnxruntime(layer, per_channel=per_channel)
    results = {
        "here": from_onnx(model)(x)[0],
        "there": session_of(model.SerializeToString()).run(None, {"x": x})[0],
        "own": layer.quantize("int8")(x)[0],
    }
    size = np.sqrt((y**2).mean())
    return {
        name: (float(np.sqrt(((a - y) ** 2).mean()) / size), float(np.abs(a - y).max() / size))
        for name, a in results.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=quantized.SIZES, metavar="H")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], metavar="B")
    parser.add_argument("--part", choices=("errors", "steps", "both"), default="both")
    options = parser.parse_args(argv)
    options.cells = ["lstm", "gru"]
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    onnxruntime.set_default_logger_severity(3)
    logging.disable()  # advice of ONNX Runtime's tool
    if options.part != "steps":
        print("errors, root mean square and largest, in percent of y's root mean square; T = 100")
        print(f"scales     layers  gain     B     H {'rnnfast':>15} {'onnxruntime':>15} {'quantize(int8)':>15}")
        for per_channel, form, B, H in itertools.product((False, True), FORMS, options.batches, options.sizes):
            found = errors(H, B, form, per_channel=per_channel)
            kind = "of rows" if per_channel else "of tensors"
            cells = [f"{mean:7.2%} {largest:7.1%}" for mean, largest in found.values()]
            print(f"{kind:10} {form[0]:6} {form[1]:5} {B:5} {H:5} {' '.join(cells)}", flush=True)
    if options.part != "errors":
        print()
        quantized.steps(options)


if __name__ == "__main__":
    main()
