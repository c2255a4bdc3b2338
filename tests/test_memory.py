"""Memory is given back: neither training steps nor refused calls make the process grow."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rnnfast

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")

ALLOWED = 8 << 20  # bytes that the allocator may keep, far less than any leak of what the calls below use


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(call: Callable[[], None], repeats: int) -> int:
    for _ in range(50):
        call()
    before = resident()
    for _ in range(repeats):
        call()
    return resident() - before


@pytest.mark.parametrize("cell", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
def test_training_steps_leave_nothing_behind(cell: type) -> None:
    layer = cell(5, 40, bidirectional=True, seed=0)
    x = np.ones((20, 4, 5), np.float32)  # a tape of about 100 KB

    def step() -> None:
        y, state, tape = layer.forward(x)
        layer.backward(tape, y, state)

    assert growth(step, 1000) < ALLOWED


def test_tapes_that_nobody_uses_leave_nothing_behind() -> None:
    layer = rnnfast.LSTM(5, 40, seed=0)
    x = np.ones((100, 4, 5), np.float32)

    def forward() -> None:
        layer.forward(x)

    assert growth(forward, 500) < ALLOWED


def test_streams_leave_nothing_behind() -> None:
    layer = rnnfast.GRU(5, 40, num_layers=2, seed=0)
    x = np.ones((100, 4, 5), np.float32)

    def stream() -> None:
        one = layer.stream(4)
        one.run(x)
        one.step(x[0])
        one.state = one.state
        one.reset([0, 1])

    assert growth(stream, 500) < ALLOWED


def test_refused_calls_leave_nothing_behind() -> None:
    layer = rnnfast.LSTM(5, 40, seed=0)
    _, _, tape = layer.forward(np.ones((100, 4, 5), np.float32))
    wrong = np.ones((100, 4, 41), np.float32)

    def refused() -> None:
        with pytest.raises(ValueError, match="x: expected shape"):
            layer.forward(wrong)
        with pytest.raises(ValueError, match="dy: expected shape"):
            layer.backward(tape, wrong)

    assert growth(refused, 1000) < ALLOWED
