"""Files are written whole or not at all, with the mode that they should have, and only where a regular file may be."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rnnfast
from rnnfast._base import files
from rnnfast.lm import Checkpoint

posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["model", Path("model"), "x" * 255])
def test_what_is_written_is_there_and_nothing_else(name: str | Path) -> None:
    for data in (b"first", b"second", b""):
        files.check_writable(name)
        files.write(name, data)
        files.check_readable(name)
        assert Path(name).read_bytes() == data
        assert list(Path().iterdir()) == [Path(name)]


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_that_the_umask_leaves(umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write("model", b"")
    finally:
        os.umask(before)
    assert mode(Path("model")) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("older", [0o600, 0o640, 0o664, 0o777])
def test_a_file_that_takes_the_place_of_another_has_its_mode(older: int) -> None:
    path = Path("model")
    path.touch()
    path.chmod(older)
    files.write(path, b"new")
    assert mode(path) == older


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(exists: bool) -> None:
    Path("folder").mkdir()
    target, link, other = Path("folder/model"), Path("link"), Path("folder/other")
    if exists:
        target.write_bytes(b"old")
    other.symlink_to("model")
    link.symlink_to(other)
    files.check_writable(link)
    files.write(link, b"new")
    assert link.is_symlink()
    assert other.is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert {*Path("folder").iterdir()} == {target, other}


def folder() -> str:
    Path("file").mkdir()
    return "file"


def below_a_file() -> str:
    Path("file").touch()
    return "file/model"


def fifo() -> str:
    os.mkfifo("file")
    return "file"


def link_to_a_device() -> str:
    Path("file").symlink_to(os.devnull)
    return "file"


def loop() -> str:
    Path("file").symlink_to("file")
    return "file"


REFUSED: dict[str, tuple[Callable[[], str], int]] = {
    "a folder": (folder, errno.EISDIR),
    "a name in no folder": (lambda: "none/model", errno.ENOENT),
    "a name below a file": (below_a_file, errno.ENOTDIR),
    "a name too long": (lambda: "x" * 300, errno.ENAMETOOLONG),
    "a FIFO": (fifo, errno.EINVAL),
    "a device": (lambda: os.devnull, errno.EINVAL),
    "a link to a device": (link_to_a_device, errno.EINVAL),
    "a link to itself": (loop, errno.ELOOP),
}


def write(path: str) -> None:
    files.write(path, b"new")


CALLS = files.check_readable, files.check_writable, write, rnnfast.load, Checkpoint.read


@posix
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_regular_file_is_neither_read_nor_written(what: str) -> None:
    make, number = REFUSED[what]
    name = make()
    before = list(Path().rglob("*"))
    for call in CALLS:
        with pytest.raises(OSError) as error:  # noqa: PT011
            call(name)
        assert error.value.errno == number
        assert error.value.filename == name
        assert error.value.filename2 is None
        assert list(Path().rglob("*")) == before


@posix
def test_a_file_that_may_not_be_written_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # who may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    path = Path("model")
    path.write_bytes(b"old")
    path.chmod(0o444)
    for call in (files.check_writable, write):
        with pytest.raises(PermissionError, match="'model'"):
            call("model")
    assert path.read_bytes() == b"old"


LIMITED = """
import resource
from rnnfast._base import files

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write("model", bytes(100_000))
except OSError as error:
    print(error.errno, error.filename)
"""


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_disk_that_is_full_leaves_the_older_file(exists: bool) -> None:
    path = Path("model")
    if exists:
        path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} model\n"
    assert [(p.name, p.read_bytes()) for p in Path().iterdir()] == [("model", b"old")] * exists


@posix
def test_a_write_that_is_interrupted_leaves_the_older_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model").write_bytes(b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write("model", b"new")
    assert [(p.name, p.read_bytes()) for p in Path().iterdir()] == [("model", b"old")]
