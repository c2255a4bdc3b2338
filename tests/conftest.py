"""Shared fixtures and the profiles of hypothesis."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Set before NumPy is loaded: its products, the oracle's above all, on one thread. The workers of `pytest -n auto` use
# all processors, and threads that wait for each other would take most of their time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of torch's, which stay several

# Set before the kernels are loaded: products of bfloat16 are the same numbers where the machine lacks them.
os.environ.setdefault("RNNFAST_BF16", "emulate")

from rnnfast import _core

# `default` draws the same examples in every run, so that a failure is never a matter of luck.
# HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("default", derandomize=True, deadline=None, max_examples=100, database=None)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Teams of three threads and more, on a machine of two processors too.
os.environ["RNNFAST_OVERSUBSCRIBE"] = "1"

# Of Keras's backends a process has one, from the first import on.
os.environ["KERAS_BACKEND"] = "torch"


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every garbage collection to come."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    """Leave the number of threads as the test found it."""
    n = _core.get_num_threads()
    yield
    _core.set_num_threads(n)
