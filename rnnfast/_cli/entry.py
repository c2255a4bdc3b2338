"""A run of the program: its exit status, and its errors as one line each."""

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NoReturn

from .. import threads
from ..lm import UsageError
from .options import make_parser
from .signals import INTERRUPTED, PIPE_CLOSED
from .streams import discard_stdout, flushed_stdout, reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    What the user can put right is one line on stderr, and exit status 2.
    """
    parser: argparse.ArgumentParser = make_parser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may have more characters than the terminal
    try:
        with flushed_stdout(), ExitStack() as stack:
            given, unknown = parser.parse_known_args(arguments)
            options = vars(given)
            parser = options.pop("parser")
            if unknown:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            if n := options.pop("threads", None):
                _enter_threads(stack, n)
            status: int = options.pop("command")(**options) or 0
            return status
    except UsageError as error:
        parser.error(str(error))
    except MemoryError:
        parser.error("not enough memory; lower --hidden, --layers, --embed, --batch, --seq-len, --horizon or --shape")
    except BrokenPipeError:
        discard_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None:  # as every file has a name, it was a print that failed
            discard_stdout()
        parser.error(f"{error.filename or 'standard output'}: {reason(error)}")
    except KeyboardInterrupt:
        return INTERRUPTED


def _enter_threads(stack: ExitStack, n: int) -> None:
    try:
        stack.enter_context(threads(n))
    except ValueError as error:
        msg = f"--threads: {str(error).removeprefix('n: ')}"
        raise UsageError(msg) from error


def program() -> NoReturn:
    """Run a command and end the process with its exit status."""
    status = main()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, Ctrl-C has nothing to interrupt
    sys.exit(status)
