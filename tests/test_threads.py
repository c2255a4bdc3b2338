"""Threads: ours and the caller's, fork, Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from modules import KINDS, make_layer, named_states, normal
from problems import Results, assert_same_bits, named
from scripts import PATIENCE, run_script

import rnnfast

# Enough work for several threads in one call, and little enough to make many calls
SIZES: dict[str, Any] = {"sizes": (24, 48), "num_layers": 2, "bidirectional": True}
T, B = 20, 16


def solve(layer: Any, seed: int, tape: Any = None) -> Results:
    """Run a layer forwards, unless there is a tape, and backwards."""
    x, dy = normal((T, B, 24), "float32", seed), normal((T, B, 96), "float32", seed + 1)
    y = last = None
    if tape is None:
        y, last, tape = layer.forward(x)
    dx, dstate0, grads = layer.backward(tape, dy)
    states = {} if last is None else named_states(last, dstate0)
    return {**named(y=y, dx=dx), **states, **grads}


def at_once(calls: list[Callable[[], Results]]) -> list[Results]:
    """Make all calls at the same time, a few times each, and return what came of the last time."""
    start = threading.Barrier(len(calls))
    results: list[Results] = [{}] * len(calls)

    def work(k: int) -> None:
        start.wait()
        for _ in range(3):
            results[k] = calls[k]()

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()
    return results


@pytest.mark.parametrize("cell", KINDS)
def test_many_threads_may_share_a_layer(cell: str) -> None:
    layer = make_layer(cell, **SIZES)
    rnnfast.set_num_threads(3)
    expected = [solve(layer, seed) for seed in range(16)]
    actual = at_once([lambda seed=seed: solve(layer, seed) for seed in range(16)])  # type: ignore[misc]
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def test_many_threads_may_have_layers_of_their_own() -> None:
    layers = [make_layer(cell, rng=k, **SIZES) for k in range(4) for cell in KINDS]
    rnnfast.set_num_threads(3)
    expected = [solve(layer, 0) for layer in layers]
    actual = at_once([lambda layer=layer: solve(layer, 0) for layer in layers])  # type: ignore[misc]
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def test_many_threads_may_share_a_tape() -> None:
    layer = make_layer("lstm", dropout=0.5, **SIZES)
    rnnfast.set_num_threads(3)
    _, _, tape = layer.forward(normal((T, B, 24), "float32", 0))
    expected = [solve(layer, seed, tape) for seed in range(16)]
    actual = at_once([lambda seed=seed: solve(layer, seed, tape) for seed in range(16)])  # type: ignore[misc]
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def test_the_number_of_threads_may_change_at_any_time() -> None:
    layer = make_layer("gru", **SIZES)
    expected = solve(layer, 0)

    def change() -> Results:
        for n in (1, 2, 5, 3, 4):
            rnnfast.set_num_threads(n)
            assert 1 <= rnnfast.get_num_threads() <= 5
        return expected

    for actual in at_once([change, change, *[lambda: solve(layer, 0)] * 6]):
        assert_same_bits(actual, expected)


def test_the_number_of_threads_comes_back() -> None:
    rnnfast.set_num_threads(2)
    with rnnfast.threads(3):
        assert rnnfast.get_num_threads() == 3
        with contextlib.suppress(KeyError), rnnfast.threads(1):
            assert rnnfast.get_num_threads() == 1
            raise KeyError
        assert rnnfast.get_num_threads() == 3
    assert rnnfast.get_num_threads() == 2


FORK = """
import os, sys, threading
import numpy as np
import rnnfast

rnnfast.set_num_threads(3)
layer = rnnfast.LSTM(24, 48, num_layers=2, bidirectional=True, rng=0)
x = np.random.default_rng(0).standard_normal((40, 16, 24)).astype(np.float32)

def solve():
    y, (h, c), tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, y)
    return b"".join(a.tobytes() for a in (y, h, c, dx, *grads.values()))

expected = solve()  # the pool is warm

def check_in_child(depth):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = all(solve() == expected for _ in range(3))
            if depth:
                check_in_child(depth - 1)
            status = 0 if same else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert solve() == expected

check_in_child(depth=1)

stop = threading.Event()

def keep_busy():
    while not stop.is_set():
        solve()

worker = threading.Thread(target=keep_busy)
worker.start()
for _ in range(5):
    check_in_child(depth=0)  # the pool is at work
stop.set()
worker.join()
print("done")
"""

PROCESSES = """
import multiprocessing
import numpy as np
import rnnfast

def solve(seed):
    layer = rnnfast.GRU(24, 48, rng=seed)
    return layer(np.ones((40, 16, 24), np.float32))[0]

if __name__ == "__main__":
    rnnfast.set_num_threads(3)
    expected = [solve(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        actual = pool.map_async(solve, range(4)).get(timeout=60)
    assert all(np.array_equal(a, e) for a, e in zip(actual, expected, strict=True))
    print("done")
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@needs_fork
def test_a_forked_child_computes_the_same() -> None:
    assert run_script(FORK) == "done\n"


@needs_fork
def test_a_forked_pool_of_processes_computes_the_same() -> None:
    assert run_script(PROCESSES) == "done\n"


LONG = """
import sys
import numpy as np
import rnnfast

def hours():
    layer = rnnfast.LSTM(1, 1024, rng=0)
    x = np.broadcast_to(np.float32(1), (100_000, 1, 1))
    print("ready", flush=True)
    layer(x)  # a minute or more in one call

def backwards():
    layer = rnnfast.GRU(8, 512, rng=0)
    y, _, tape = layer.forward(np.ones((2_000, 4, 8), np.float32))
    print("ready", flush=True)
    while True:
        layer.backward(tape, y)

def stacks():
    layer = rnnfast.LSTM(1, 256, 3, rng=0)
    x = np.ones((20_000, 1, 1), np.float32)
    y, _, tape = layer.forward(x[:2_000])
    print("ready", flush=True)
    while True:
        layer(x)
        layer.backward(tape, y)

def streaming():
    stream = rnnfast.LSTM(1, 1024, rng=0).stream()
    x = np.ones((100_000, 1), np.float32)
    print("ready", flush=True)
    stream.run(x)

layer = rnnfast.GRU(24, 48, rng=0)
x = np.ones((20, 16, 24), np.float32)
before = layer(x)[0]
rnnfast.set_num_threads(int(sys.argv[2]))
try:
    {"hours": hours, "backwards": backwards, "stacks": stacks, "streaming": streaming}[sys.argv[1]]()
    print("went through")
except KeyboardInterrupt:
    same = np.array_equal(layer(x)[0], before)
    print("interrupted", "and well" if same else "and broken", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["hours", "backwards", "stacks", "streaming"])
def test_ctrl_c_ends_a_long_call(call: str, threads: int) -> None:
    command = [sys.executable, "-c", LONG, call, str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=PATIENCE / 4)  # chunks of time take milliseconds
        finally:
            process.kill()
    assert output == "interrupted and well\n"
