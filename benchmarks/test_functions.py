"""Single functions by pytest-benchmark: `pytest benchmarks/`, one thread."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest

import rnnfast
from benchmarks.problems import FEW, Problem
from benchmarks.systems import layer_of
from rnnfast import functional
from rnnfast.lm import LAYERS
from rnnfast.training import Adam, clip_grad_norm, ctc_loss, softmax_cross_entropy

Benchmark: TypeAlias = Callable[..., Any]

ROWS, H, V = 64 * 64, 256, 100  # of the readout of a character language model

by_cell = pytest.mark.parametrize("cell", LAYERS)
by_shape = pytest.mark.parametrize("shape", FEW, ids=lambda shape: ",".join(map(str, shape)))
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with rnnfast.threads(1):
        yield


def normal(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)


@by_dtype
@pytest.mark.parametrize("function", [functional.sigmoid, functional.tanh])
def test_activation(benchmark: Benchmark, function: Callable[..., Any], dtype: str) -> None:
    x = normal(1 << 14, dtype=dtype)
    benchmark(function, x, out=np.empty_like(x))


@by_cell
def test_step(benchmark: Benchmark, cell: str) -> None:
    step, x = getattr(rnnfast, f"{LAYERS[cell].__name__}Cell")(128, 128, rng=0), normal(1, 128)
    benchmark(step, x, step(x))


@by_cell
@by_shape
@by_dtype
def test_inference(benchmark: Benchmark, cell: str, shape: tuple[int, int, int, int], dtype: str) -> None:
    problem = Problem(cell, *shape, dtype)
    benchmark(layer_of(problem), problem.x)


@by_cell
@by_shape
@by_dtype
def test_forward(benchmark: Benchmark, cell: str, shape: tuple[int, int, int, int], dtype: str) -> None:
    problem = Problem(cell, *shape, dtype)
    benchmark(layer_of(problem).forward, problem.x)


@by_cell
@by_shape
@by_dtype
@pytest.mark.parametrize("need_dx", [True, False], ids=["dx", "no dx"])
def test_backward(benchmark: Benchmark, cell: str, shape: tuple[int, int, int, int], dtype: str, need_dx: bool) -> None:
    problem = Problem(cell, *shape, dtype)
    layer = layer_of(problem)
    _, _, tape = layer.forward(problem.x)
    benchmark(layer.backward, tape, problem.dy, need_dx=need_dx)


def test_linear_forward(benchmark: Benchmark) -> None:
    benchmark(rnnfast.Linear(H, V, rng=0), normal(ROWS, H))


def test_linear_backward(benchmark: Benchmark) -> None:
    linear = rnnfast.Linear(H, V, rng=0)
    y, tape = linear.forward(normal(ROWS, H))
    benchmark(linear.backward, tape, y)


def test_softmax_cross_entropy(benchmark: Benchmark) -> None:
    targets = np.random.default_rng(1).integers(0, V, ROWS)
    benchmark(softmax_cross_entropy, normal(ROWS, V), targets)


@by_dtype
@pytest.mark.parametrize("system", ["rnnfast", "torch"])
@pytest.mark.parametrize("shape", [(100, 32, 64, 20), (400, 16, 64, 50), (1000, 16, 32, 100)], ids=str)
def test_ctc_loss(benchmark: Benchmark, shape: tuple[int, int, int, int], system: str, dtype: str) -> None:
    """Take logits [T,B,V] that are to spell U labels each."""
    T, B, V, U = shape
    logits, labels = normal(T, B, V, dtype=dtype), np.random.default_rng(1).integers(1, V, (B, U))
    if system == "rnnfast":
        benchmark(ctc_loss, logits, labels)
        return
    torch = pytest.importorskip("torch")
    leaf, targets = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)
    lengths = torch.full((B,), T), torch.full((B,), U)

    def theirs() -> None:
        torch.nn.functional.ctc_loss(leaf.log_softmax(-1), targets, *lengths).backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark(theirs)
    torch.set_num_threads(threads)


def test_clip_grad_norm(benchmark: Benchmark) -> None:
    benchmark(clip_grad_norm, rnnfast.LSTM(H, H, rng=0).state_dict(), 1.0)


def test_adam(benchmark: Benchmark) -> None:
    parameters = rnnfast.LSTM(H, H, rng=0).state_dict()
    grads = {name: np.ones_like(a) for name, a in parameters.items()}
    benchmark(Adam(parameters).step, grads)
