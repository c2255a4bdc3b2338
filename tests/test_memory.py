"""Memory is given back, whether calls go well, are refused, or find none."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripts import run_script

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
    layer = cell(5, 40, bidirectional=True, rng=0)
    x = np.ones((20, 4, 5), np.float32)  # a tape of about 100 KB

    def step() -> None:
        y, state, tape = layer.forward(x)
        layer.backward(tape, y, state)

    assert growth(step, 1000) < ALLOWED


def test_tapes_that_nobody_uses_leave_nothing_behind() -> None:
    layer = rnnfast.LSTM(5, 40, rng=0)
    x = np.ones((100, 4, 5), np.float32)

    def forward() -> None:
        layer.forward(x)

    assert growth(forward, 500) < ALLOWED


def test_streams_leave_nothing_behind() -> None:
    layer = rnnfast.GRU(5, 40, num_layers=2, rng=0)
    x = np.ones((100, 4, 5), np.float32)

    def stream() -> None:
        one = layer.stream(4)
        one.run(x)
        one.step(x[0])
        one.state = one.state
        one.reset([0, 1])

    assert growth(stream, 500) < ALLOWED


def test_refused_calls_leave_nothing_behind() -> None:
    layer = rnnfast.LSTM(5, 40, rng=0)
    _, _, tape = layer.forward(np.ones((100, 4, 5), np.float32))
    wrong = np.ones((100, 4, 41), np.float32)

    def refused() -> None:
        with pytest.raises(ValueError, match="x: expected shape"):
            layer.forward(wrong)
        with pytest.raises(ValueError, match="dy: expected shape"):
            layer.backward(tape, wrong)

    assert growth(refused, 1000) < ALLOWED


# Stands in for C++'s allocation: the n-th from now on fails.
ALLOCATION = """
#include <cstdlib>
#include <new>

static long countdown = -1;

extern "C" void fail_at(long n) { countdown = n; }
extern "C" int has_failed() { return countdown < 0; }

void* operator new(std::size_t bytes) {
  if (countdown >= 0 && countdown-- == 0) throw std::bad_alloc();
  if (void* const data = std::malloc(bytes ? bytes : 1)) return data;
  throw std::bad_alloc();
}

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  if (countdown >= 0 && countdown-- == 0) throw std::bad_alloc();
  void* data = nullptr;
  if (posix_memalign(&data, std::size_t(alignment), bytes ? bytes : 1) == 0) return data;
  throw std::bad_alloc();
}

void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { std::free(data); }
"""

# Lets each allocation of a call fail in turn: those of C++ and, where Python has the means, the first ones of Python.
# The call in which nothing fails and a last one give what they gave before.
FAILURES = """
import ctypes, sys
import numpy as np
import rnnfast
from rnnfast import _core, functional, stream

try:
    import _testcapi
except ImportError:
    _testcapi = None

process = ctypes.CDLL(None)
rnnfast.set_num_threads(1)
layer = rnnfast.LSTM(3, 20, num_layers=2, bidirectional=True, rng=0)
plain = rnnfast.LSTM(3, 20, rng=0)
parameters = [tuple(plain.parameters.values())]
x = np.ones((40, 16, 3), np.float32)
y, _, tape = layer.forward(x)
core_y, _, core_tape = _core.forward("lstm", x, parameters)
tokens = np.array([[0, 1, 2]] * 4)

calls = {
    "inference": lambda: layer(x)[0],
    "forward": lambda: layer.forward(x)[0],
    "core forward": lambda: _core.forward("lstm", x, parameters)[0],
    "core backward": lambda: _core.backward(core_tape, core_y)[0],
    "backward": lambda: layer.backward(tape, y)[0],
    "tokens": lambda: functional.forward("lstm", tokens, parameters)[0],
    "pack": lambda: layer(rnnfast.pack_padded(x, [40] * 8 + [30] * 8))[0].data,
    "stream": lambda: plain.stream(16).run(x),
}
call = calls[sys.argv[1]]
expected = call()

failures, n, failed = 0, 0, True
while failed:
    process.fail_at(n)
    try:
        result = call()
        failed = process.has_failed()  # where the call does without
    except MemoryError:
        failures += 1
    process.fail_at(-1)
    n += 1
assert np.array_equal(result, expected)
for n in range(200 if _testcapi and sys.argv[1].startswith("core") else 0):  # NumPy's Python code does not bear it
    _testcapi.set_nomemory(n, n + 1)
    try:
        call()
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
assert np.array_equal(call(), expected)
print("ok" if failures else "nothing failed")
"""


@pytest.fixture(scope="session")
def failing_allocation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a library that takes the place of C++'s allocation."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not compiler:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("allocation")
    (folder / "allocation.cpp").write_text(ALLOCATION)
    library = folder / "allocation.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "allocation.cpp"], check=True)
    return str(library)


@pytest.mark.parametrize(
    "call", ["inference", "forward", "core forward", "backward", "core backward", "tokens", "pack", "stream"]
)
def test_no_failed_allocation_does_harm(call: str, failing_allocation: str) -> None:
    assert run_script(FAILURES, call, LD_PRELOAD=failing_allocation, MALLOC_PERTURB_="165") == "ok\n"
