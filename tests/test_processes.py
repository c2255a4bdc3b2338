"""Processes: how they end, fork and are signalled while a call runs, what they take from their environment."""

import sys
from itertools import product

import pytest
from scripts import ENDS, run_script

needs_timer = pytest.mark.skipif(sys.platform == "win32", reason="the system has no timer that signals")

# Calls of some milliseconds, of several times as many for forks. Those that change no array of the caller's can begin
# anew in a forked child.
PURE = {
    "inference": "layer(x)",
    "forward": "layer.forward(x)[:2]",
    "backward": "layer.backward(tape, y)",
    "stack": "stack(thin)",
    "backward of a stack": "stack.backward(stack_tape, stack_tape.h(2))",
    "tokens": "functional.backward(functional.forward('gru', tokens, of_tokens)[2], y)",
    "linear": "functional.linear(y, weight)",
    "linear_backward": "functional.linear_backward(y, weight, None, y)",
    "cross_entropy": "training.softmax_cross_entropy(y, tokens)",
    "ctc": "training.ctc_loss(y, np.ones((16, 1), int))",
}
OTHERS = {
    "tanh": "functional.tanh(y)",
    "adam": "adam.step({'w': weight})",
    "sgd": "sgd.step({'w': weight})",
    "clip": "training.clip_grad_norm({'w': y}, 1.0)",
    "tbptt": "[window.backward(y[:100]) for window in rnnfast.tbptt(layer, x, 100, 100)]",
    "stream": "stream.run(x)",
    "step": "stream.step(x[0])",
}
# Calls that have NumPy copy or convert what they are given.
COPYING = {
    "strided x": "layer(wide)",
    "list x": "layer(many)",
    "strided tokens": "functional.forward('gru', turned, of_tokens)",
    "strided weight": "functional.linear(y[:1], large)",
    "strided out": "functional.linear(wide, weight[:64, :64], out=filled)",
    "strided gradient": "big_adam.step({'w': large})",
    "targets": "training.softmax_cross_entropy(y, tokens.astype(np.int32))",
    "resets": "layer(wide[:, :1], resets=np.zeros((STEPS, 1)))",
}
SETTING = """
import os, signal, sys
import numpy as np
import rnnfast
from rnnfast import functional, training

random = np.random.default_rng(0)
layer = rnnfast.LSTM(64, 128, rng=0)
x = random.standard_normal((STEPS, 16, 64), dtype=np.float32)
y, _, tape = layer.forward(x)
stack = rnnfast.LSTM(64, 128, 3, rng=0)
thin = x[:, :2]
stack_tape = stack.forward(thin)[2]
tokens = random.integers(0, 128, (STEPS, 16))
of_tokens = [tuple(rnnfast.GRU(128, 128, rng=0).parameters.values())]
weight = random.standard_normal((128, 128), dtype=np.float32)
adam, sgd = training.Adam({"w": weight.copy()}, lr=0.1), training.SGD({"w": weight.copy()}, lr=0.1, momentum=0.9)
stream = layer.stream(16)
wide = random.standard_normal((STEPS, 64, 16), dtype=np.float32).transpose(0, 2, 1)
many, turned, filled = wide.tolist(), np.ascontiguousarray(tokens.T).T, np.empty_like(wide)
large = np.ones((128, 1024), np.float32).T
big_adam = training.Adam({"w": np.ones_like(large)})
rnnfast.set_num_threads(int(sys.argv[1]))

def call():
    return CALL
"""


@pytest.mark.parametrize(
    ("call", "threads"), [*product(PURE, "12"), *product((*OTHERS, *COPYING), "2")], ids=lambda value: value
)
def test_a_program_ends_with_its_own_status_while_daemon_threads_compute(call: str, threads: str) -> None:
    setting = SETTING.replace("CALL", {**PURE, **OTHERS, **COPYING}[call]).replace("STEPS", "400")
    assert run_script(setting + ENDS, threads, status=3) == "done\n"


# A signal that comes with a call is handled inside it: calls ask for signals every 20 ms.
FORKS = """
def arrays_in(result):
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in arrays_in(part)]
    return [] if result is None else [np.array(result)]

expected = arrays_in(call())
pids = []

def fork(*_):
    pids.append(os.fork())

signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.005)
message = "the same"
while not pids:
    try:
        same = all(map(np.array_equal, arrays_in(call()), expected))
        message = "the same" if same else "others"
    except RuntimeError as error:
        message = str(error)
if pids[0] == 0:
    print("child:", message, flush=True)
    os._exit(0)
os.waitpid(pids[0], 0)
print("parent:", message)
"""


@needs_timer
@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("call", PURE)
def test_a_child_that_a_signal_handler_forks_inside_a_call_computes_the_same(call: str, threads: str) -> None:
    steps = "4000" if call == "cross_entropy" else "1500"
    setting = SETTING.replace("CALL", PURE[call]).replace("STEPS", steps)
    output = run_script(setting + FORKS, threads)
    assert output == "child: the same\nparent: the same\n"


ADDS = """
grads = [tuple(np.zeros_like(p) for p in layer.parameters.values())]
y, _, tape = functional.forward("lstm", x, [tuple(layer.parameters.values())])

def call():
    functional.backward(tape, y, grads=grads)
"""


@needs_timer
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_child_that_is_forked_inside_a_call_that_adds_to_arrays_raises(threads: str) -> None:
    setting = SETTING.replace("CALL", "None").replace("STEPS", "1500")
    child, parent = run_script(setting + ADDS + FORKS, threads).splitlines()
    alone = threads == "1"  # the one thread is in the child too, and goes on
    assert child == "child: the same" if alone else child.endswith("it adds to arrays that were given")
    assert parent == "parent: the same"


# A signal within one step; what has not been computed by then is still NaN.
STEPS = {
    "forward": "functional.inference('lstm', x, parameters, out=(y, None))",
    "state": "functional.inference('lstm', x, parameters, out=(y, (h, c)))",
    "backward": "functional.backward(tape, y, out=(dx, None))",
    "linear": "functional.linear(y[0], w_hh, out=linear)",
}
STEP = """
import signal, sys
import numpy as np
import rnnfast
from rnnfast import functional

def interrupt(*_):
    raise KeyboardInterrupt

rnnfast.set_num_threads(int(sys.argv[1]))
x, w_ih, w_hh = (np.zeros(shape, np.float32) for shape in [(1, 4096, 512), (4096, 512), (4096, 1024)])
parameters = [(w_ih, w_hh, None, None)]
y, _, tape = functional.forward("lstm", x, parameters)
dx, linear = np.empty_like(x), np.empty((4096, 4096), np.float32)
h, c = np.empty_like(y), np.empty_like(y)
for out in (RESULT,):
    out.fill(np.nan)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    CALL
except KeyboardInterrupt:
    pass
print("interrupted" if np.isnan(RESULT).any() else "went through")
"""


@needs_timer
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("call", STEPS)
def test_ctrl_c_ends_a_call_within_a_step(call: str, threads: str) -> None:
    result = {"forward": "y", "state": "h", "backward": "dx", "linear": "linear"}[call]
    script = STEP.replace("CALL", STEPS[call]).replace("RESULT", result)
    assert run_script(script, threads) == "interrupted\n"


SUBINTERPRETER = """
import sys
from itertools import product
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

before, module = sys.argv[1:]
if before == "imported":
    import rnnfast.stream
code = f'''
import os, sys
sys.path[:] = {sys.path!r}
try:
    import {module}
except ImportError as error:
    os.write(1, str(error).encode())
'''
interpreters.run_string(interpreters.create(), code)
"""


@pytest.mark.parametrize("module", ["rnnfast", "rnnfast.stream", "rnnfast._core"])
@pytest.mark.parametrize("before", ["imported", "not imported"])
def test_a_sub_interpreter_cannot_import_it(before: str, module: str) -> None:
    assert "interpreter" in run_script(SUBINTERPRETER, before, module)


THREADS = "import rnnfast; print(rnnfast.get_num_threads())"


@pytest.mark.parametrize("value", ["3", "3,2,1", "3 ", " 3", "3 , 2", "3, 2"])
def test_the_first_number_of_omp_num_threads_counts(value: str) -> None:
    assert run_script(THREADS, OMP_NUM_THREADS=value, RNNFAST_NUM_THREADS="") == "3\n"


@pytest.mark.parametrize("value", [" ", "0", "-3", "many", "3x", "3 2", ",3", "2.5", "9" * 30])
def test_omp_num_threads_that_begins_with_no_number_is_ignored(value: str) -> None:
    expected = run_script(THREADS, OMP_NUM_THREADS="", RNNFAST_NUM_THREADS="")
    assert run_script(THREADS, OMP_NUM_THREADS=value, RNNFAST_NUM_THREADS="") == expected
