"""Layers with weights of fewer bits: a step's time at small batches, and what they cost a language model in bits.

python -m benchmarks.quantized [--cells lstm gru] [--sizes H ...] [--batches B ...] [--steps N] [--plot FILE]

First one step of a stream, I = H, by format, beside torch's quantize_dynamic (int8, float32's own cell beside it) and
ONNX Runtime's DynamicQuantizeLSTM as its own tool writes it. All run on the calling thread and take turns; ratios are
times by ours of int8. Sessions start from a zero state each time.

Then a character language model for each cell, trained in float32 and quantised: the bits per character of the held-out
text, of the characters that it generates one by one how many a second, and the bytes of its arrays and of the layer's.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import rnnfast
from benchmarks.streaming import session_of, step_of, torch_step_of
from benchmarks.timing import Call, in_turns
from rnnfast._base.formats import FORMATS
from rnnfast.bench import onnx_model
from rnnfast.lm import LAYERS, CharLM, Options, Training, default_text

SIZES = 64, 128, 256, 512, 1024
FLOAT = "float32"
GENERATED = 2000  # characters of a rate
COLOURS = {FLOAT: "C7", "bfloat16": "C0", "int8": "C3", "torch int8": "C1", "onnxruntime int8": "C2"}


def forms_of(layer: Any) -> dict[str, Any]:
    """Return a layer and those made of it, by format."""
    return {FLOAT: layer, **{form: layer.quantize(form) for form in FORMATS}}


def torch_int8_step_of(layer: Any, x: Any) -> Call:
    """Return one step of torch's dynamically quantised layer, its state carried on."""
    model = torch.nn.Sequential(getattr(torch.nn, type(layer).__name__)(layer.input_size, layer.hidden_size))
    model[0].load_state_dict({name: torch.from_numpy(a.copy()) for name, a in layer.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its place is to move
        theirs = torch.ao.quantization.quantize_dynamic(model, {type(model[0])}, dtype=torch.qint8)[0]
    x, state = torch.from_numpy(x[np.newaxis]), None

    def step() -> Any:
        nonlocal state
        with torch.inference_mode():
            _, state = theirs(x, state)
        return state

    return step


def session_int8_step_of(layer: Any, x: Any) -> Call:
    """Return one step of a session of the model that ONNX Runtime's tool has quantised."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder, "plain.onnx"), Path(folder, "quantized.onnx")
        plain.write_bytes(onnx_model(layer, (1, *x.shape)))
        quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8, per_channel=True)
        model = quantized.read_bytes()
    if b"DynamicQuantizeLSTM" not in model:
        msg = "expected a DynamicQuantizeLSTM in the quantised model, got none"
        raise RuntimeError(msg)
    session, inputs = session_of(model), {"x": x[np.newaxis]}
    return lambda: session.run(None, inputs)


def step_times(cell: str, H: int, B: int) -> dict[str, float]:
    """Return the seconds of a step by what makes it."""
    layer = LAYERS[cell](H, H, rng=0)
    x = np.random.default_rng(0).standard_normal((B, H), np.float32)
    calls = {form: step_of(made, x) for form, made in forms_of(layer).items()}
    calls["torch"] = torch_step_of(cell, layer, x)
    if cell != "rnn":
        calls["torch int8"] = torch_int8_step_of(layer, x)
    if cell == "lstm":
        calls["onnxruntime int8"] = session_int8_step_of(layer, x)
    return dict(zip(calls, in_turns(list(calls.values())), strict=True))


def steps(options: argparse.Namespace) -> dict[tuple[str, int, int], dict[str, float]]:
    """Print and return the times of steps."""
    names = [FLOAT, *FORMATS, "torch", "torch int8", "onnxruntime int8"]
    print("times by ours of int8:")
    print(f"cell     B     H  int8, µs {' '.join(f'{name:>16}' for name in names if name != 'int8')}")
    found = {}
    for cell in options.cells:
        for B in options.batches:
            for H in options.sizes:
                times = found[cell, B, H] = step_times(cell, H, B)
                ratios = [f"{times[n] / times['int8']:16.2f}" if n in times else " " * 16 for n in names if n != "int8"]
                print(f"{cell:5} {B:4} {H:5} {times['int8'] * 1e6:9.2f} {' '.join(ratios)}", flush=True)
    return found


def rate(model: CharLM) -> float:
    """Return how many characters the model generates a second."""
    rates = []
    for seed in range(3):
        start = time.perf_counter()
        for _ in model.sample(length=GENERATED, rng=seed):
            pass
        rates.append(GENERATED / (time.perf_counter() - start))
    return statistics.median(rates)


def language_models(options: argparse.Namespace) -> None:
    """Train, quantise and print."""
    print(f"\nlanguage models of {options.hidden} units, {options.steps} steps:")
    print("cell  format    bits/char  more than float32  characters/s  arrays, KiB  layer's, KiB")
    for cell in options.cells:
        training = Training(default_text(), Options(cell=cell, hidden=options.hidden, steps=options.steps))
        for _ in range(options.steps):
            training.step()
        model = training.model
        first = training.held_out_bits()
        models: dict[str, CharLM] = {FLOAT: model, **{form: model.quantize(form) for form in FORMATS}}
        for form, made in models.items():
            training.model = made
            bits = training.held_out_bits()
            sizes = [sum(a.nbytes for a in part.state_dict().values()) / 1024 for part in (made, made.rnn)]
            print(
                f"{cell:5} {form:9} {bits:9.4f} {bits / first - 1:18.3%} {rate(made):13.0f} {sizes[0]:12.0f} "
                f"{sizes[1]:13.0f}",
                flush=True,
            )


def plot(found: dict[tuple[str, int, int], dict[str, float]], path: Path) -> None:
    """Draw the times of steps by H at the smallest batch, a panel for each cell."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells, B = list(dict.fromkeys(cell for cell, _, _ in found)), min(B for _, B, _ in found)
    with mpl.rc_context({"svg.hashsalt": "0", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4 * len(cells), 3.4), layout="constrained")
        for panel, cell in zip(figure.subplots(1, len(cells), sharey=True, squeeze=False)[0], cells, strict=True):
            rows = {H: times for (own, batch, H), times in found.items() if (own, batch) == (cell, B)}
            for name, colour in COLOURS.items():
                points = [(H, times[name] * 1e6) for H, times in rows.items() if name in times]
                if points:
                    style = "-" if name in (FLOAT, *FORMATS) else ":"
                    panel.plot(*zip(*points, strict=True), style, marker="o", ms=3, color=colour, label=name)
            panel.set(title=f"{cell.upper()}, one step, B = {B}", xscale="log", yscale="log", xlabel="H = I")
            panel.set_xticks(list(rows), map(str, rows), minor=False)
            panel.minorticks_off()
            panel.legend(fontsize=7)
        figure.axes[0].set_ylabel("µs")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru"), default=["lstm", "gru"])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="H")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8], metavar="B", help="none: no steps")
    parser.add_argument("--hidden", type=int, default=256, metavar="H", help="of the language models")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of their training; 0: no models")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the steps")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    onnxruntime.set_default_logger_severity(3)
    logging.disable()  # advice of ONNX Runtime's tool
    if options.batches:
        found = steps(options)
        if options.plot:
            plot(found, options.plot)
    if options.steps:
        language_models(options)


if __name__ == "__main__":
    main()
