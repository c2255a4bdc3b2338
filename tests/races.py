"""Calls of several threads at once, for ThreadSanitizer: a table of properties, each a function that requires what it
says.

The extension is to be built with it, and its library to be loaded before Python, which is not:

    LD_PRELOAD=$(g++ -print-file-name=libtsan.so) python tests/races.py

Python's lock of its interpreter orders what threads do under it. What is seen are races between the kernels, and with
what NumPy copies.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import rnnfast
from rnnfast.training import Adam, softmax_cross_entropy

T, B, I, H = 60, 8, 5, 32
K1, K2 = 4, 7


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def at_once(*jobs: Callable[[], None]) -> None:
    """Run each job in a thread of its own, and raise the first error."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        try:
            start.wait()
            job()
        except BaseException as error:  # noqa: BLE001 -- it is raised in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def gradients(window: Any) -> Any:
    return window.backward(np.ones_like(window.y))


def require_equal(grads: Any, expected: Any) -> None:
    for name, a in expected.items():
        np.testing.assert_array_equal(grads[name], a)


def layers() -> Iterator[Any]:
    yield rnnfast.GRU(I, H, rng=0)
    yield rnnfast.LSTM(I, H, num_layers=2, learn_initial_state=True, rng=0)


def windows_of_several_threads_share_the_weights() -> None:
    for layer in layers():
        x = normal(1, T, B, I)
        expected = [gradients(window) for window in rnnfast.tbptt(layer, x, K1, K2)]

        def train(layer: Any = layer, x: Any = x, expected: Any = expected) -> None:
            for window, grads in zip(rnnfast.tbptt(layer, x, K1, K2), expected, strict=True):
                require_equal(gradients(window), grads)

        at_once(train, train, train)


def a_window_is_right_or_refused_while_the_next_is_made() -> None:
    for layer in layers():
        windows = rnnfast.tbptt(layer, (normal(step, 10, B, I) for step in range(20)), K1, K2)
        window = next(windows)
        expected = gradients(window)

        def use(window: Any = window, expected: Any = expected) -> None:
            refused = 0
            while refused < 50:
                try:
                    require_equal(gradients(window), expected)
                except RuntimeError:
                    refused += 1

        def advance(windows: Any = windows) -> None:
            for _ in windows:
                pass

        at_once(use, use, advance)


def one_tape_serves_several_backwards() -> None:
    for checkpoint in None, 10:
        layer = rnnfast.LSTM(I, H, bidirectional=True, rng=0)
        y, _, tape = layer.forward(normal(2, T, B, I), checkpoint=checkpoint)
        expected = layer.backward(tape, y)[2]

        def use(layer: Any = layer, tape: Any = tape, y: Any = y, expected: Any = expected) -> None:
            for _ in range(5):
                require_equal(layer.backward(tape, y)[2], expected)

        at_once(use, use, use)


def a_stream_is_used_by_one_thread_or_refused() -> None:
    stream, x = rnnfast.GRU(I, H, rng=0).stream(B), normal(3, T, B, I)

    def use() -> None:
        for _ in range(50):
            try:
                stream.run(x)
                stream.step(x[0])
                stream.reset([0])
                stream.state = stream.state
            except RuntimeError:
                pass

    at_once(use, use, use)


def streams_and_training_go_on_beside_each_other() -> None:
    layer, x = rnnfast.GRU(I, H, rng=0), normal(4, T, B, I)
    targets = np.zeros((T, B), np.int64)

    def run() -> None:
        stream = layer.stream(B)
        for _ in range(20):
            stream.run(x)

    def train() -> None:
        own = rnnfast.GRU(I, H, rng=0)
        adam = Adam(own, lr=0.01)
        for _ in range(20):
            y, _, tape = own.forward(x)
            adam.step(own.backward(tape, softmax_cross_entropy(y, targets)[1])[2])

    at_once(run, run, train, train)


def stacks_run_as_a_wave_in_one_thread_and_others_alone() -> None:
    layer, x = rnnfast.LSTM(I, H, 3, dropout=0.5, rng=0), normal(5, 300, 2, I)
    y, _, tape = layer.forward(x)
    expected, inferred = layer.backward(tape, y)[2], layer(x)[0]

    def use() -> None:
        for _ in range(3):
            np.testing.assert_array_equal(layer(x)[0], inferred)
            require_equal(layer.backward(tape, y)[2], expected)

    use()
    at_once(use, use)


PROPERTIES = (
    windows_of_several_threads_share_the_weights,
    a_window_is_right_or_refused_while_the_next_is_made,
    one_tape_serves_several_backwards,
    a_stream_is_used_by_one_thread_or_refused,
    streams_and_training_go_on_beside_each_other,
    stacks_run_as_a_wave_in_one_thread_and_others_alone,
)


if __name__ == "__main__":
    for threads in 1, 2:
        rnnfast.set_num_threads(threads)
        for holds in PROPERTIES:
            holds()
            print(f"{threads} threads: {holds.__name__}", flush=True)
