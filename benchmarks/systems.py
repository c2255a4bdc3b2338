"""The systems that are compared: each makes the same layer its own way, and says how to put it to work.

A system gives a `Task` for each work that it can do: what is timed, and how its result becomes NumPy arrays by our
names and in our order of the gates. What can be made before the work is made before: inputs are where the system wants
them, graphs are traced, and models for packed weights are compiled.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

from benchmarks.problems import FORWARD, PACKED, TRAINING, TRAINING_NO_DX, Array, Problem
from rnnfast.bench import onnx_model
from rnnfast.lm import LAYERS

Numbers: TypeAlias = dict[str, Array]
GRADIENTS = ("dw_ih", "dw_hh", "db_ih", "db_hh", "dx")


@dataclass(frozen=True)
class Task:
    run: Callable[[], Any]
    numbers: Callable[[Any], Numbers]  # of what run() has returned


Tasks: TypeAlias = dict[str, Task]


@dataclass(frozen=True)
class System:
    """One system. `start(threads)` imports it and returns the versions, `tasks(problem)` makes the layer."""

    modules: tuple[str, ...]  # that have to be installed
    start: Callable[[int], dict[str, str]]
    tasks: Callable[[Problem], Tasks]
    works: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32", "float64")
    environment: tuple[tuple[str, str], ...] = ()
    fresh: bool = False  # wants a new process for each problem

    @property
    def missing(self) -> list[str]:
        return [module for module in self.modules if find_spec(module) is None]


def layer_of(problem: Problem) -> Any:
    """Return rnnfast's layer."""
    layer = LAYERS[problem.cell](problem.I, problem.H, dtype=problem.dtype)
    layer.load_state_dict(state_dict(problem))
    return layer


def state_dict(problem: Problem) -> Numbers:
    long = {"w": "weight", "b": "bias"}
    return {f"{long[name[0]]}{name[1:]}_l0": array for name, array in problem.parameters.items()}


def named(gradients: Any) -> Numbers:
    """Return gradients in the order of GRADIENTS by their names."""
    return {name: np.asarray(d) for name, d in zip(GRADIENTS, gradients, strict=False) if d is not None}


def _start_rnnfast(threads: int) -> dict[str, str]:
    import rnnfast

    rnnfast.set_num_threads(threads)
    return {"rnnfast": rnnfast.__version__}


def _rnnfast(problem: Problem) -> Tasks:
    layer, x, dy = layer_of(problem), problem.x, problem.dy

    def training(need_dx: bool) -> Task:
        def run() -> Any:
            _, _, tape = layer.forward(x)
            dx, _, grads = layer.backward(tape, dy, need_dx=need_dx)
            return [*grads.values(), dx]

        return Task(run, named)

    def y_of(result: Any) -> Numbers:
        return {"y": result[0] if isinstance(result, tuple) else result}

    tasks = {FORWARD: Task(lambda: layer(x), y_of), TRAINING: training(True), TRAINING_NO_DX: training(False)}
    if hasattr(layer, "stream"):
        stream = layer.stream(problem.B)

        def packed() -> Any:
            stream.reset()
            return stream.run(x)

        tasks[PACKED] = Task(packed, y_of)
    return tasks


def _rnnfast_float64(problem: Problem) -> Tasks:
    return _rnnfast(replace(problem, dtype="float64"))


def _start_torch(threads: int) -> dict[str, str]:
    import torch

    torch.set_num_threads(threads)
    return {"torch": torch.__version__}


def _torch(problem: Problem) -> Tasks:
    import torch

    layer = getattr(torch.nn, LAYERS[problem.cell].__name__)(problem.I, problem.H)
    layer = layer.to(getattr(torch, problem.dtype))
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict(problem).items()})
    x, dy = torch.from_numpy(problem.x), torch.from_numpy(problem.dy)

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    def training(need_dx: bool) -> Task:
        given = x.clone().requires_grad_(need_dx)
        sources = [*layer.parameters(), *([given] if need_dx else [])]
        return Task(lambda: torch.autograd.grad(layer(given)[0], sources, dy), named)

    return {
        FORWARD: Task(forward, lambda result: {"y": result[0].numpy()}),
        TRAINING: training(True),
        TRAINING_NO_DX: training(False),
    }


def _start_onnxruntime(threads: int) -> dict[str, str]:  # noqa: ARG001
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def _onnxruntime(problem: Problem) -> Tasks:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    model = onnx_model(layer_of(problem), problem.x.shape)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": problem.x}
    return {PACKED: Task(lambda: session.run(["y"], inputs), lambda result: {"y": result[0][:, 0]})}


def _start_openvino(threads: int) -> dict[str, str]:  # noqa: ARG001
    import openvino

    return {"openvino": openvino.__version__.split("-")[0]}


def _openvino(problem: Problem) -> Tasks:
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_model(layer_of(problem), problem.x.shape))
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": _threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run() -> Any:
        return request.infer({"x": problem.x}, share_inputs=True, share_outputs=True)

    return {PACKED: Task(run, lambda result: {"y": np.array(result["y"])[:, 0]})}


def _start_jax(threads: int) -> dict[str, str]:
    if threads == 1:  # otherwise as many as the process may use cores
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax

    return {"jax": jax.__version__}


def _jax(problem: Problem) -> Tasks:
    """Scan over time, after the products with x of all steps at once. Weights are transposed, as is usual in JAX."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    p = problem.parameters
    weights = [jnp.asarray(a) for a in (p["w_ih"].T.copy(), p["w_hh"].T.copy(), p["b_ih"], p["b_hh"])]
    x, dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)
    zeros = jnp.zeros((problem.B, problem.H), problem.dtype)

    def lstm(state: Any, from_x: Any, from_h: Any) -> Any:
        i, f, g, o = jnp.split(from_x + from_h, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(state: Any, from_x: Any, from_h: Any) -> Any:
        (xr, xz, xn), (hr, hz, hn) = jnp.split(from_x, 3, axis=-1), jnp.split(from_h, 3, axis=-1)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        return ((1 - z) * jnp.tanh(xn + r * hn) + z * state[0],)

    def rnn(state: Any, from_x: Any, from_h: Any) -> Any:  # noqa: ARG001
        return (jnp.tanh(from_x + from_h),)

    cell = {"lstm": lstm, "gru": gru, "rnn": rnn}[problem.cell]
    state = (zeros,) * problem.num_states

    def forward(weights: Any, x: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = weights

        def step(state: Any, from_x: Any) -> Any:
            state = cell(state, from_x, state[0] @ w_hh + b_hh)
            return state, state[0]

        return jax.lax.scan(step, state, x @ w_ih + b_ih)[1]

    def gradients(weights: Any, x: Any, dy: Any) -> Any:
        return jax.vjp(forward, weights, x)[1](dy)

    def gradients_no_dx(weights: Any, x: Any, dy: Any) -> Any:
        return (*jax.vjp(lambda weights: forward(weights, x), weights)[1](dy), None)

    def numbers(result: Any) -> Numbers:
        (dw_ih, dw_hh, db_ih, db_hh), dx = result
        return named([dw_ih.T, dw_hh.T, db_ih, db_hh, dx])

    inference, training, training_no_dx = (jax.jit(f) for f in (forward, gradients, gradients_no_dx))
    wait = jax.block_until_ready
    return {
        FORWARD: Task(lambda: wait(inference(weights, x)), lambda y: {"y": np.asarray(y)}),
        TRAINING: Task(lambda: wait(training(weights, x, dy)), numbers),
        TRAINING_NO_DX: Task(lambda: wait(training_no_dx(weights, x, dy)), numbers),
    }


def _start_rnnfast_jax(threads: int) -> dict[str, str]:
    return {**_start_jax(threads), **_start_rnnfast(threads)}


def _rnnfast_jax(problem: Problem) -> Tasks:
    """The functions of rnnfast.jax."""
    import jax
    import jax.numpy as jnp

    import rnnfast.jax

    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    function = getattr(rnnfast.jax, problem.cell)
    parameters = {name: jnp.asarray(a) for name, a in state_dict(problem).items()}
    x, dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)

    def forward(parameters: Any, x: Any) -> Any:
        return function(parameters, x)[0]

    def gradients(parameters: Any, x: Any, dy: Any) -> Any:
        return jax.vjp(forward, parameters, x)[1](dy)

    def gradients_no_dx(parameters: Any, x: Any, dy: Any) -> Any:
        return (*jax.vjp(lambda parameters: forward(parameters, x), parameters)[1](dy), None)

    def numbers(result: Any) -> Numbers:
        d, dx = result
        return named([*(d[name] for name in parameters), dx])

    inference, training, training_no_dx = (jax.jit(f) for f in (forward, gradients, gradients_no_dx))
    wait = jax.block_until_ready
    return {
        FORWARD: Task(lambda: wait(inference(parameters, x)), lambda y: {"y": np.asarray(y)}),
        TRAINING: Task(lambda: wait(training(parameters, x, dy)), numbers),
        TRAINING_NO_DX: Task(lambda: wait(training_no_dx(parameters, x, dy)), numbers),
    }


def _start_keras(threads: int) -> dict[str, str]:
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def _keras(problem: Problem) -> Tasks:
    """Arrays are [B,T,*], Keras's own order; one bias stands for the two of ours where it can."""
    import keras
    import tensorflow as tf

    order = {"gru": [1, 0, 2]}.get(problem.cell, range(problem.gates))  # z, r, h of Keras in ours

    def gates(a: Array) -> Array:
        """Return an array [G·H,..] in the other order of the gates; the GRU's is its own inverse."""
        parts = np.split(a, problem.gates)
        return np.concatenate([parts[k] for k in order])

    kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}
    layer = kinds[problem.cell](problem.H, return_sequences=True, dtype=problem.dtype)
    layer.build((problem.B, problem.T, problem.I))
    p = {name: gates(a) for name, a in problem.parameters.items()}
    both = layer.get_weights()[2].ndim == 2  # biases
    layer.set_weights([p["w_ih"].T, p["w_hh"].T, np.stack([p["b_ih"], p["b_hh"]]) if both else p["b_ih"] + p["b_hh"]])
    x, dy = (tf.constant(a.swapaxes(0, 1).copy()) for a in (problem.x, problem.dy))
    inference = tf.function(layer, autograph=False)

    def training(need_dx: bool) -> Task:
        def gradients(x: Any, dy: Any) -> Any:
            with tf.GradientTape() as tape:
                if need_dx:
                    tape.watch(x)
                y = layer(x)
            sources = [*(variable.value for variable in layer.trainable_variables), *([x] if need_dx else [])]
            return tape.gradient(y, sources, output_gradients=dy)

        run = tf.function(gradients, autograph=False)
        return Task(lambda: run(x, dy), numbers)

    def numbers(result: Any) -> Numbers:
        dw_ih, dw_hh, db, *dx = (d.numpy() for d in result)
        biases = db if both else [db, db]
        gradients = [gates(d) for d in (dw_ih.T, dw_hh.T, *biases)]
        return named([*gradients, *(d.swapaxes(0, 1) for d in dx)])

    return {
        FORWARD: Task(lambda: inference(x), lambda y: {"y": y.numpy().swapaxes(0, 1)}),
        TRAINING: training(True),
        TRAINING_NO_DX: training(False),
    }


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


OURS = "rnnfast"
PLAIN, SESSION = (FORWARD, TRAINING, TRAINING_NO_DX), (PACKED,)
SYSTEMS = {
    OURS: System((), _start_rnnfast, _rnnfast, PLAIN + SESSION, fresh=True),
    "torch": System(("torch",), _start_torch, _torch, PLAIN),
    "onnxruntime": System(("onnxruntime", "onnx"), _start_onnxruntime, _onnxruntime, SESSION, ("float32",)),
    "openvino": System(("openvino", "onnx"), _start_openvino, _openvino, SESSION, ("float32",)),
    "jax": System(("jax",), _start_jax, _jax, PLAIN),
    "keras": System(("keras", "tensorflow"), _start_keras, _keras, PLAIN),
}
# Ourselves otherwise, for comparison where asked for: as --systems rnnfast@avx2
VARIANTS = (
    {f"{OURS}@jax": System(("jax",), _start_rnnfast_jax, _rnnfast_jax, PLAIN)}
    | {
        f"{OURS}@{isa}": replace(SYSTEMS[OURS], environment=(("RNNFAST_ISA", isa),))
        for isa in ("baseline", "avx2", "avx512")
    }
    | {f"{OURS}@float64": replace(SYSTEMS[OURS], tasks=_rnnfast_float64, dtypes=("float32",))}
)
