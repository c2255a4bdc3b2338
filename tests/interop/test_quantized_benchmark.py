"""`benchmarks.quantized` compares steps that make the same, and prints a row for each."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import torch

import rnnfast

benchmark: Any = pytest.importorskip(
    "benchmarks.quantized", reason='onnxruntime is not installed (pip install ".[bench]")'
)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)
    logging.disable(logging.NOTSET)


def test_peers_make_the_step_that_a_stream_makes() -> None:
    x = np.random.default_rng(0).standard_normal((2, 24), np.float32)
    for kind in (rnnfast.LSTM, rnnfast.GRU):
        layer = kind(24, 24, rng=0)
        h = layer.quantize("int8").stream(2).step(x)
        theirs = benchmark.torch_int8_step_of(layer, x)()
        assert np.abs((theirs[0] if isinstance(theirs, tuple) else theirs)[0].numpy() - h).max() < 0.02
    layer = rnnfast.LSTM(24, 24, rng=0)
    y = benchmark.session_int8_step_of(layer, x)()[0]
    assert np.abs(y.reshape(2, 24) - layer.quantize("int8").stream(2).step(x)).max() < 0.02


def test_each_step_and_model_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "steps.svg"
    benchmark.main(["--sizes", "8", "--batches", "1", "--steps", "2", "--hidden", "8", "--plot", str(picture)])
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in words if row[1:3] == ["1", "8"]] == [["lstm", "1", "8"], ["gru", "1", "8"]]
    forms = [row[:2] for row in words if row[1:2] and row[1] in ("float32", "bfloat16", "int8")]
    assert forms == [[cell, form] for cell in ("lstm", "gru") for form in ("float32", "bfloat16", "int8")]
    assert picture.stat().st_size > 10_000


def test_int8_models_are_compared_with_float32(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import onnx_int8

    onnx_int8.main(["--sizes", "8", "--batches", "1", "--part", "errors"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("of ")]
    assert len(rows) == 8
    for row in rows:
        here, there, own = (float(word.rstrip("%")) for word in row[6::2])
        assert 0 < min(here, there, own) <= max(here, there, own) < 10
