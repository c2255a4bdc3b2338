"""One build of rnnfast in a process of its own, which does what `benchmarks.builds` asks for, one request at a time.

A request and its answer are a line of JSON each. The build may be older than this file: here stands nothing but its
public API, and nothing else of `benchmarks` is imported, which would import rnnfast as it is now.
"""

import gc
import hashlib
import inspect
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import rnnfast.stream
from rnnfast import _core, functional
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy

FORMS: list[dict[str, Any]] = [  # options that choose the cell
    {},
    {"peephole": True},
    {"coupled_gates": True},
    {"peephole": True, "coupled_gates": True},
    {"reset_after": False},
    {"nonlinearity": "relu"},
    {"leak": 0.3},
    {"nonlinearity": "relu", "leak": 0.3},
    {"forget_gate": "exp"},
    {"layer_norm": "inside"},
    {"layer_norm": "carried"},
]
V = 50  # tokens
Given: TypeAlias = Callable[["Case", "Numbers"], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A task for one layer; the numbers of equal cases are equal in any build."""

    task: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    dtype: str = "float32"
    threads: int = 1

    @property
    def shape(self) -> str:
        return f"{self.T},{self.B},{self.I},{self.H}"


class Task(NamedTuple):
    run: Callable[[], object]  # what is timed
    results: Callable[[], dict[str, Any]]  # what is compared: arrays, tuples and dicts of them, or None


def made(run: Callable[[], tuple[Any, ...]], *names: str) -> Task:
    """Return the task whose results are those of a run, by these names."""
    return Task(run, lambda: dict(zip(names, run(), strict=True)))


class Numbers:
    """Numbers for a case, always the same."""

    def __init__(self, case: Case) -> None:
        self.rng, self.case = np.random.default_rng(0), case

    def normal(self, *shape: int) -> NDArray[Any]:
        return self.rng.standard_normal(shape, np.dtype(self.case.dtype).type)

    def like(self, state: Any) -> Any:
        """Return a state with the parts of another one."""
        return tuple(map(self.like, state)) if isinstance(state, tuple) else self.normal(*state.shape)

    def module(self, kind: Callable[..., Any], *sizes: int, **options: Any) -> Any:
        """Return a module with parameters like those of a new one."""
        module = kind(*sizes, dtype=self.case.dtype, **options)
        scale = np.asarray(self.case.H**-0.5, self.case.dtype)
        parameters = sorted(module.state_dict().items())
        module.load_state_dict({name: scale * self.normal(*a.shape) for name, a in parameters})
        return module

    def layer(self, **options: Any) -> Any:
        kind, form = layers()[self.case.cell]
        return self.module(getattr(rnnfast, kind), self.case.I, self.case.H, **form, **options)


@cache
def layers() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by cell the name of the class that has layers of it, and the options that they take."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in rnnfast.__all__:
        kind = getattr(rnnfast, name)
        if hasattr(kind, "stream") and name != "Quantized":
            for form in FORMS:
                has_c = name != "GRU" or form != {"layer_norm": "carried"}
                if has_c and form.keys() <= inspect.signature(kind).parameters.keys():
                    found.setdefault(kind(1, 1, **form).cell, (name, form))
    if missing := getattr(_core, "cells", {}).keys() - found.keys():  # an older build may have no such list
        msg = f"no class of layers has {', '.join(sorted(missing))} under any of FORMS"
        raise NotImplementedError(msg)
    return found


# The tasks of a layer


def forward(case: Case) -> Task:
    numbers = Numbers(case)
    layer, x = numbers.layer(), numbers.normal(case.T, case.B, case.I)
    state = numbers.like(layer(x)[1])
    return made(lambda: layer(x, state), "y", "state")


def training(
    case: Case, *, given: Sequence[Given] = (), backward: dict[str, Any] | None = None, **options: Any
) -> Task:
    """Return forward + backward of a layer with such options; `given` make what the forward takes by name, or x."""
    numbers = Numbers(case)
    layer = numbers.layer(**options)
    call = {"x": numbers.normal(case.T, case.B, case.I)}
    for make in given:
        call |= make(case, numbers)
    y, after, _ = layer.forward(**call)
    state, dy, dstate = numbers.like(after), numbers.like(y), numbers.like(after)

    def run() -> tuple[Any, ...]:
        y, after, tape = layer.forward(state=state, **call)
        return (y, after, *layer.backward(tape, dy, dstate, **(backward or {})))

    return made(run, "y", "state", "dx", "dstate0", "grads")


def without_state(case: Case) -> Task:
    """Return forward + backward from zero, with a loss of the last state alone."""
    numbers = Numbers(case)
    layer, x = numbers.layer(), numbers.normal(case.T, case.B, case.I)
    dstate = numbers.like(layer(x)[1])

    def run() -> tuple[Any, ...]:
        y, after, tape = layer.forward(x)
        return (y, after, *layer.backward(tape, None, dstate))

    return made(run, "y", "state", "dx", "dstate0", "grads")


def lengths(case: Case, numbers: Numbers) -> dict[str, Any]:
    drawn = numbers.rng.integers(0, case.T + 1, case.B)
    drawn[case.B // 2] = case.T
    return {"lengths": drawn}


def resets(case: Case, numbers: Numbers) -> dict[str, Any]:
    return {"resets": numbers.rng.random((case.T, case.B)) < 0.1}


def tokens(case: Case, numbers: Numbers) -> dict[str, Any]:
    drawn = numbers.rng.integers(0, V, (case.T, case.B))
    return {"x": drawn, "embedding": numbers.normal(V, case.I)}


def one_hot(case: Case, numbers: Numbers) -> dict[str, Any]:
    return {"x": numbers.rng.integers(0, case.I, (case.T, case.B))}


def checkpoint(case: Case, numbers: Numbers) -> dict[str, Any]:  # noqa: ARG001
    return {"checkpoint": -(-case.T // 3)}


def held(case: Case, numbers: Numbers) -> dict[str, Any]:
    """Hold the first gate that the cell's equations name and every second after it."""
    gates = [*numbers.layer().forward(numbers.normal(1, 1, case.I))[2].gates(0)]
    if not gates:
        msg = f"{case.cell} has no gates to hold"
        raise NotImplementedError(msg)
    return {"gate_override": dict.fromkeys(gates[::2], 0.25)}


def cell_gradients(case: Case) -> Task:
    """Return forward + backward with a gradient of c of every step."""
    numbers = Numbers(case)
    layer, x = numbers.layer(), numbers.normal(case.T, case.B, case.I)
    if not isinstance(layer(x)[1], tuple):
        msg = f"{case.cell} has no c"
        raise NotImplementedError(msg)
    dy, dc = numbers.normal(case.T, case.B, case.H), numbers.normal(1, case.T, case.B, case.H)

    def run() -> tuple[Any, ...]:
        _, _, tape = layer.forward(x)
        return tuple(layer.backward(tape, dy, dc=dc))

    return made(run, "dx", "dstate0", "grads")


def flow(case: Case) -> Task:
    numbers = Numbers(case)
    layer, x = numbers.layer(), numbers.normal(case.T, case.B, case.I)
    dy = numbers.normal(case.T, case.B, case.H)
    return made(lambda: (tuple(rnnfast.gradient_flow(layer, x, dy)),), "norms")


# Truncated gradients, cells, streams, a model


def truncated(case: Case) -> tuple[Any, NDArray[Any], NDArray[Any], int, int]:
    numbers = Numbers(case)
    layer, x = numbers.layer(), numbers.normal(case.T, case.B, case.I)
    return layer, x, numbers.normal(case.T, case.B, case.H), -(-case.T // 6), -(-2 * case.T // 3)


def tbptt(case: Case) -> Task:
    layer, x, dy, k1, k2 = truncated(case)
    return made(lambda: tuple(rnnfast.tbptt_gradient(layer, x, dy, k1, k2)), "dx", "dstate0", "grads")


def windows(case: Case) -> Task:
    layer, x, dy, k1, k2 = truncated(case)

    def run() -> tuple[Any, ...]:
        each = rnnfast.tbptt(layer, x, k1, k2)
        return (tuple((w.y.copy(), w.state, w.backward(dy[w.start : w.stop])) for w in each),)

    return made(run, "windows")


def cell(case: Case, *, backward: bool) -> Task:
    numbers = Numbers(case)
    kind, form = layers()[case.cell]
    if not hasattr(rnnfast, f"{kind}Cell"):
        msg = f"there is no {kind}Cell"
        raise NotImplementedError(msg)
    module = numbers.module(getattr(rnnfast, f"{kind}Cell"), case.I, case.H, **form)
    x = numbers.normal(case.B, case.I)
    state, dstate = (numbers.like(module(x)) for _ in range(2))

    def training() -> tuple[Any, ...]:
        after, tape = module.forward(x, state)
        return (after, *module.backward(tape, dstate))

    if backward:
        return made(training, "state", "dx", "dstate0", "grads")
    return Task(lambda: module(x, state), lambda: {"state": module(x, state)})


def step(case: Case) -> Task:
    numbers = Numbers(case)
    stream, x = numbers.layer().stream(case.B), numbers.normal(case.B, case.I)
    out = np.empty((case.B, case.H), case.dtype)

    def results() -> dict[str, Any]:
        stream.reset()
        return {"y": tuple(stream.step(x) for _ in range(3)), "state": stream.state}

    return Task(lambda: stream.step(x, out=out), results)


def run(case: Case, **options: Any) -> Task:
    numbers = Numbers(case)
    stream, x = numbers.layer(**options).stream(case.B), numbers.normal(case.T, case.B, case.I)
    out = np.empty((case.T, case.B, case.H), case.dtype)

    def results() -> dict[str, Any]:
        stream.reset()
        return {"y": stream.run(x), "state": stream.state}

    return Task(lambda: stream.run(x, out=out), results)


def model(case: Case) -> Task:
    """Return a step of training with a readout, cross entropy, clipping and Adam."""
    numbers = Numbers(case)
    layer, readout = numbers.layer(), numbers.module(rnnfast.Linear, case.H, V)
    x, targets = numbers.normal(case.T, case.B, case.I), numbers.rng.integers(0, V, (case.T, case.B))
    parameters = {name: a for module in (layer, readout) for name, a in module.state_dict().items()}
    adam = Adam(parameters)

    def run() -> tuple[Any, ...]:
        y, _, tape = layer.forward(x)
        logits, linear_tape = readout.forward(y)
        loss, dlogits = softmax_cross_entropy(logits, targets)
        dy, linear_grads = readout.backward(linear_tape, dlogits)
        grads = layer.backward(tape, dy)[2] | linear_grads
        norm = clip_grad_norm(grads, 1.0)
        adam.step(grads)
        return np.array(loss), np.array(norm), functional.sigmoid(logits), functional.tanh(logits), grads, parameters

    return made(run, "loss", "norm", "sigmoid", "tanh", "grads", "parameters")


TASKS: dict[str, Callable[[Case], Task]] = {
    "forward": forward,
    "training": training,
    "bidirectional": partial(training, bidirectional=True),
    "layers": partial(training, num_layers=2),
    "lengths": partial(training, given=(lengths,)),
    "resets": partial(training, given=(resets,)),
    "tokens": partial(training, given=(tokens,)),
    "one-hot": partial(training, given=(one_hot,)),
    "checkpoint": partial(training, given=(checkpoint,)),
    "held": partial(training, given=(held,)),
    "all": partial(training, given=(lengths, resets, tokens), bidirectional=True, num_layers=2),
    "no-bias": partial(training, bias=False),
    "no-dx": partial(training, backward={"need_dx": False}),
    "clip": partial(training, backward={"clip_dh": 0.01}),
    "no-state": without_state,
    "dc": cell_gradients,
    "flow": flow,
    "tbptt": tbptt,
    "windows": windows,
    "cell": partial(cell, backward=False),
    "cell-training": partial(cell, backward=True),
    "step": step,
    "run": run,
    "run-layers": partial(run, num_layers=2),
    "model": model,
}


# The child's end


class Served:
    def __init__(self) -> None:
        self.task = Task(lambda: None, dict)

    def facts(self) -> dict[str, Any]:
        """Return which build this is, and what it has."""
        config = _core.config()
        facts = {name: config[name] for name in ("version", "compiler", "available")}
        files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "rnnfast"]
        return facts | {"files": files, "cells": [*layers()]}

    def digests(self, **case: Any) -> dict[str, str]:
        """Return the digest of every result of a case by its name."""
        return {name: digest(a) for name, a in flat(self._start(Case(**case)).results())}

    def prepare(self, **case: Any) -> float:
        """Make ready what is to be timed; return about how many seconds it takes."""
        self.task = self._start(Case(**case))
        self.task.run()
        return self.seconds(1)

    def seconds(self, runs: int) -> float:
        """Return the mean time of some runs in a row.

        It is time of the processor, so that what else runs on it costs only what it drives out of the caches.
        """
        run = self.task.run
        if runs > 1:
            run()  # finds what the other build has left in the caches
        started = time.process_time()
        for _ in range(runs):
            run()
        return (time.process_time() - started) / runs

    def _start(self, case: Case) -> Task:
        self.task = Task(lambda: None, dict)  # gives back what the case before held
        gc.collect()
        rnnfast.set_num_threads(case.threads)
        return TASKS[case.task](case)


def flat(results: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield all arrays with names such as state[0] and grads.weight_ih_l0."""
    match results:
        case None:
            return
        case dict():
            for key, value in results.items():
                yield from flat(value, f"{name}.{key}".lstrip("."))
        case tuple():
            for k, value in enumerate(results):
                yield from flat(value, f"{name}[{k}]")
        case _:
            yield name, results


def digest(a: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    return hashlib.sha256(f"{a.dtype.str} {a.shape} ".encode() + a.tobytes()).hexdigest()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is the one to stop
    gc.disable()
    gc.freeze()  # what the imports have left is not looked through again
    served = Served()
    for line in sys.stdin:
        command, options = json.loads(line)
        try:
            answer = {"answer": getattr(served, command)(**options)}
        except Exception as error:  # noqa: BLE001 - whatever a build raises, the other cases go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
