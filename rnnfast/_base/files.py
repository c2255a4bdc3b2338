"""Regular files: checked before they are read, written whole or not at all."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Name: TypeAlias = str | os.PathLike[str]
UNREADABLE = ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError  # what bad files raise


def write(path: Name, data: bytes) -> None:
    """Write a file whole or not at all: an older one stays until all of the new one is on the disk.

    A link is followed, and what it points to is written. A new file has the mode that the umask leaves; a file that
    takes the place of an older one has the older one's mode.

    Parameters
    ----------
    path : path-like
        Of a regular file, or of one that does not exist.
    data : bytes

    Raises
    ------
    OSError
        If the file cannot be written, with `path` as its `filename`. An older file is then as it was.
    """
    path = Path(path)
    with _named(path):
        older = _mode_to_write(path)
        new = _beside(path)
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if older is not None:
                new.chmod(older)
            new.replace(path.resolve())
        finally:
            new.unlink(missing_ok=True)


def check_writable(path: Name) -> None:
    """Raise the OSError that `write` would raise, except where it depends on the data, as with a full disk."""
    path = Path(path)
    with _named(path):
        _mode_to_write(path)
        new = _beside(path)
        new.touch(exist_ok=False)
        new.unlink()


def check_readable(path: Name) -> None:
    """Raise OSError if this is no regular file or cannot be read. A FIFO or a device is not opened: it could block."""
    path = Path(path)
    with _named(path):
        _check_regular(path.stat())
        with path.open("rb"):
            pass


def _beside(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    # Of a fixed length, since the name of the file may be as long as the system allows
    return path.resolve().with_name(f".rnnfast-{os.urandom(8).hex()}.tmp")


def _mode_to_write(path: Path) -> int | None:
    """Return the mode of a file that may be overwritten, or None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    _check_regular(status)
    if not os.access(path, os.W_OK):  # the folder alone would allow to replace it
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(status.st_mode)


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name in an OSError the file that the caller knows, not the one beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
