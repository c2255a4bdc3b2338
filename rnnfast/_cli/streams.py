"""Standard output and standard error, which may be full, closed or lost."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stderr:
    """stderr, where a full disk or a lost terminal is no reason to lose the run."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(AttributeError, OSError):  # there may be no stderr at all
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(AttributeError, OSError):
            sys.stderr.flush()


def say(line: str) -> None:
    print(line, file=Stderr(), flush=True)


def reason(error: Exception) -> str:
    """Return what happened, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextmanager
def flushed_stdout() -> Iterator[None]:
    """Find out at the end, while it can be said, what standard output does not take."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def discard_stdout() -> None:
    """Let what Python flushes when it ends go nowhere."""
    with suppress(OSError):  # of a stream that is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
