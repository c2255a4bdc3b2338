"""The picture of the README: a training step and a streaming step at shapes that people run, beside others.

python -m benchmarks.headline --json FILE      measures: needs torch, ONNX Runtime, Keras and TensorFlow
python -m benchmarks.headline --json FILE --plot docs/headline.svg    draws what has been measured

float32, one thread. A training step is forward + backward of a layer, without the gradient of x, by
`benchmarks.systems`. A streaming step is one of a stream, of a cell of torch, of a session of ONNX Runtime, which
starts from a zero state each time, and of a cell of Keras in a compiled function. All that stands in a row takes turns.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the peers are loaded

import numpy as np

import rnnfast
from benchmarks.machine import describe
from benchmarks.problems import TRAINING_NO_DX, Problem
from benchmarks.timing import Call, rounds_of

NAMES = {"rnnfast": "rnnfast", "torch": "torch", "onnxruntime": "ONNX Runtime", "keras": "Keras (TensorFlow)"}
TURNS, SAMPLE = 9, 0.02  # how often each is measured, and for how many seconds at least
COLOURS = {"rnnfast": "#e4572e", "torch": "#8899a6", "onnxruntime": "#5b8e7d", "keras": "#b9a44c"}
GREY = "#7d8590"  # to be read on white and on black


class Row(NamedTuple):
    what: str
    cell: str
    shape: tuple[int, int, int, int]  # T, B, I, H


TRAINING = (
    Row("audio effect", "gru", (2000, 32, 1, 40)),
    Row("reinforcement learning", "lstm", (128, 8, 64, 256)),
    Row("text recognition", "lstm", (32, 64, 512, 128)),
    Row("forecasting", "gru", (100, 32, 8, 40)),
)
STREAMING = (
    Row("audio effect", "gru", (1, 1, 1, 40)),
    Row("voice activity", "lstm", (1, 1, 128, 128)),
    Row("noise suppression", "gru", (1, 1, 256, 256)),
    Row("speech recognition", "lstm", (1, 1, 640, 640)),
)


def training_calls(row: Row) -> dict[str, Call]:
    """Return a training step of each system."""
    from benchmarks.systems import SYSTEMS

    problem = Problem(row.cell, *row.shape)
    return {name: SYSTEMS[name].tasks(problem)[TRAINING_NO_DX].run for name in ("rnnfast", "torch", "keras")}


def keras_step_of(cell: str, layer: Any, x: Any) -> Call:
    """Return one step of Keras's cell in a compiled function, its state carried on; with weights of its own."""
    import keras
    import tensorflow as tf

    theirs = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}[cell](layer.hidden_size)
    theirs.build((1, layer.input_size))
    x, zeros = tf.constant(x), tf.zeros((1, layer.hidden_size))
    state: Any = [zeros, zeros] if cell == "lstm" else [zeros]
    call = tf.function(lambda x, state: theirs(x, state)[1], autograph=False)

    def step() -> Any:
        nonlocal state
        state = call(x, state)
        return state

    return step


def streaming_calls(row: Row) -> dict[str, Call]:
    """Return a streaming step of each system."""
    from benchmarks.streaming import session_step_of, step_of, torch_step_of
    from rnnfast.lm import LAYERS

    _, B, I, H = row.shape
    layer = LAYERS[row.cell](I, H, rng=0)
    x = np.random.default_rng(0).standard_normal((B, I), np.float32)
    return {
        "rnnfast": step_of(layer, x),
        "torch": torch_step_of(row.cell, layer, x),
        "onnxruntime": session_step_of(layer, x),
        "keras": keras_step_of(row.cell, layer, x),
    }


def measure() -> dict[str, Any]:
    """Return the seconds of every row, and what they were measured with."""
    from benchmarks.systems import SYSTEMS

    rnnfast.set_num_threads(1)
    versions: dict[str, str] = {}
    for name in NAMES:
        versions |= SYSTEMS[name].start(1)
    rows = []
    for work, of_work, make in (("training", TRAINING, training_calls), ("streaming", STREAMING, streaming_calls)):
        for row in of_work:
            calls = make(row)
            times = [float(np.median(r)) for r in rounds_of(list(calls.values()), TURNS, SAMPLE)]
            seconds = dict(zip(calls, times, strict=True))
            print(work, row, {name: f"{s / seconds['rnnfast']:.2f}" for name, s in seconds.items()}, flush=True)
            rows.append({"work": work, **row._asdict(), "seconds": seconds})
    return {"machine": describe(), "versions": versions, "rows": rows}


def shown(seconds: float) -> str:
    """Return a time with its unit."""
    unit, factor = ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * factor:.3g} {unit}"


def plot(data: dict[str, Any], path: Path) -> None:
    """Draw the times as bars, those of a row beside each other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "0", "svg.fonttype": "none", "font.size": 9, "text.color": GREY, "xtick.color": GREY}
    style |= {"ytick.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        figure.patch.set_alpha(0)
        for panel, work in zip(figure.subplots(1, 2), ("training", "streaming"), strict=True):
            panel.patch.set_alpha(0)
            rows = [row for row in data["rows"] if row["work"] == work]
            systems = [name for name in NAMES if name in rows[0]["seconds"]]
            longest = max(max(row["seconds"].values()) / row["seconds"]["rnnfast"] for row in rows)
            limit = min(longest * 1.25, 16)
            height = 0.8 / len(systems)
            for k, row in enumerate(rows):
                for n, name in enumerate(systems):
                    ratio = row["seconds"][name] / row["seconds"]["rnnfast"]
                    at = k + (n - (len(systems) - 1) / 2) * height
                    label = NAMES[name] if k == 0 else None
                    panel.barh(at, min(ratio, limit), height * 0.9, color=COLOURS[name], label=label)
                    words = shown(row["seconds"][name]) + (f" ({ratio:.0f} x)" if ratio > limit else "")
                    inside = ratio > 0.7 * limit
                    panel.annotate(
                        words,
                        (min(ratio, limit), at),
                        xytext=(-4 if inside else 4, 0),
                        textcoords="offset points",
                        ha="right" if inside else "left",
                        va="center",
                        fontsize=7.5,
                        color="white" if inside else GREY,
                    )
            names = [f"{row['what']}\n{row['cell'].upper()}, {row['shape'][3]} units" for row in rows]
            panel.set_yticks(range(len(rows)), names)
            panel.invert_yaxis()
            panel.set_xlim(0, limit)
            panel.set_title("a training step" if work == "training" else "a streaming step", color=GREY)
            panel.set_xlabel("time, as a multiple of rnnfast's")
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
        handles, labels = figure.axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, transparent=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the times are")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times instead of measuring them")
    options = parser.parse_args(argv)
    if options.plot:
        plot(json.loads(options.json.read_text()), options.plot)
    else:
        options.json.write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
