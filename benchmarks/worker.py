"""A process for each system, which waits while the others run, so that their runtimes do not meet."""

import ctypes
import gc
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import limits
from benchmarks.problems import Problem
from benchmarks.systems import SYSTEMS, VARIANTS, Numbers, Task

SHORT = 5e-3  # seconds: the time of a run that takes less is the mean of several
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Failed(Exception):
    """A system could not do what it was asked for; the text is its own."""


@dataclass(frozen=True)
class Trial:
    """The first runs of a work."""

    numbers: Numbers
    seconds: float  # of one run, once warm
    memory: int | None  # bytes, the most that the process holds above what it held before the problem


class Worker:
    """The parent's end."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.system = (SYSTEMS | VARIANTS)[name]
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a forked child would inherit the runtimes' threads by halves
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, self.name, self.threads), daemon=True)
        with _environment(dict(self.system.environment)):
            self.process.start()
        theirs.close()
        self.versions: dict[str, str] = self._receive()

    def close(self) -> None:
        self.connection.close()
        self.process.join()

    def limits(self, dtype: str) -> limits.Limits:
        return self._ask("limits", dtype)  # type: ignore[no-any-return]

    def prepare(self, problem: Problem) -> list[str]:
        """Make the layer; return the works that it can do."""
        if self.system.fresh or not self.process.is_alive():
            self.close()
            self._start()
        return self._ask("prepare", problem)  # type: ignore[no-any-return]

    def try_out(self, work: str) -> Trial:
        return self._ask("try_out", work)  # type: ignore[no-any-return]

    def seconds(self, work: str, runs: int) -> float:
        """Return the mean time of some runs in a row."""
        return self._ask("seconds", work, runs)  # type: ignore[no-any-return]

    def _ask(self, *request: Any) -> Any:
        self.connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            msg = f"its process ended with {self.process.exitcode}"
            raise Failed(msg) from None
        if isinstance(answer, Failed):
            raise answer
        return answer


def environment(threads: int) -> dict[str, str]:
    """Return what keeps every runtime, and NumPy's, to so many threads."""
    names = "OMP", "OPENBLAS", "MKL", "RNNFAST"
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    yield
    os.environ.clear()
    os.environ.update(before)


def serve(connection: Connection, name: str, threads: int) -> None:
    """Answer until the parent hangs up: the child's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is the one to stop
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # where runtimes greet
    served = Served(name)
    request: tuple[Any, ...] = "start", threads
    while True:
        command, *arguments = request
        try:
            answer = getattr(served, command)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a system raises, the others go on without it
            answer = Failed(f"{type(error).__name__}: {error}".partition("\n")[0])
        connection.send(answer)
        try:
            request = connection.recv()
        except EOFError:
            return


class Served:
    """One system in its process."""

    def __init__(self, name: str) -> None:
        self.system = (SYSTEMS | VARIANTS)[name]
        self.tasks: dict[str, Task] = {}
        self.resident = 0

    def start(self, threads: int) -> dict[str, str]:
        return self.system.start(threads)

    def limits(self, dtype: str) -> limits.Limits:
        return limits.measure(dtype)

    def prepare(self, problem: Problem) -> list[str]:
        self.tasks = {}
        _ = problem.x, problem.dy, problem.parameters
        self.resident = status("VmRSS") if trim() else 0
        self.tasks = self.system.tasks(problem)
        return list(self.tasks)

    def try_out(self, work: str) -> Trial:
        task = self.tasks[work]
        task.run()  # which may compile, and fills what is kept between calls
        marked = trim()
        seconds = self.seconds(work, 1)
        if seconds < SHORT:
            seconds = self.seconds(work, math.ceil(SHORT / seconds))
        memory = status("VmHWM") - self.resident if marked else None
        return Trial(task.numbers(task.run()), seconds, memory)

    def seconds(self, work: str, runs: int) -> float:
        run = self.tasks[work].run
        started = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - started) / runs


def trim() -> bool:
    """Give back what is free, and let the mark of the highest memory start anew from here; False where none does."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
    except (AttributeError, OSError):
        return False
    return True


def status(field: str) -> int:
    """Return a figure of this process in bytes."""
    return next(int(line.split()[1]) << 10 for line in STATUS.read_text().splitlines() if line.startswith(field))
