"""Signals that end a run early."""

import math
import signal
import threading
from typing import Any, Self

SIGNALED = 128  # what shells add to the number of the signal that ended a program
INTERRUPTED, PIPE_CLOSED = SIGNALED + signal.SIGINT, SIGNALED + 13  # SIGPIPE, which Windows has not


class Signals:
    """What ends a run early: Ctrl-C, SIGTERM and SIGHUP, those of them that are not ignored.

    Attributes
    ----------
    patience : float
        How many of them are noted before one raises KeyboardInterrupt; all that follow are noted again, so that
        nothing is left by halves.
    status : int
        The exit status of a program that the first of them has ended, 0 while there was none.
    """

    NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.patience = 1.0
        self.status = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may have handlers
            for number in self.NUMBERS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: one that is not Python's
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.status = self.status or SIGNALED + number
        self.patience -= 1
        if self.patience < 0:
            self.patience = math.inf
            raise KeyboardInterrupt
