"""The README's Python runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
LAYER, STREAMING, TRAINING = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(code: str) -> dict[str, Any]:
    """Run the code and return the names that it leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_layer_gives_the_shapes_that_its_comment_says() -> None:
    names = run(LAYER)
    assert [names[name].shape for name in ("y", "h", "c")] == [(50, 32, 128), (2, 32, 128), (2, 32, 128)]


def test_the_stream_gives_the_layers_last_output() -> None:
    names = run(LAYER + STREAMING)
    y, _ = rnnfast.LSTM(28, 64, seed=0)(np.zeros((50, 1, 28), np.float32))
    assert np.array_equal(names["y_t"], y[-1])


def test_the_training_loop_learns() -> None:
    assert run(TRAINING)["loss"] < 0.01
