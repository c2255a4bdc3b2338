"""The installed package: what it holds, what importing it loads, what the extension links to."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType

import pytest

import rnnfast
from rnnfast import _core, stream

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
SYSTEM_LIBRARIES = {"libc", "libm", "libstdc++", "libgcc_s", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}
OURS = r"rnnfast/(\w+/)?\w+\.py|rnnfast-[^/]*\.dist-info/.*|(\.\./)*(bin|Scripts)/rnnfast(\.exe)?"

ADDED_BY_IMPORT = """
import sys, numpy
before = set(sys.modules)
import rnnfast
print(*sorted(set(sys.modules) - before))
"""


WITHOUT_A_FRAMEWORK = """
import sys
sys.modules[{name!r}] = None
import rnnfast
try:
    {statement}
except {kind} as error:
    print(error)
"""
IMPORTS = (
    ("rnnfast.{name}", "AttributeError"),
    ("import rnnfast.{name}", "ModuleNotFoundError"),
    ("from rnnfast import {name}", "ModuleNotFoundError"),
    ("from rnnfast.{name} import {function}", "ModuleNotFoundError"),
)


@pytest.mark.parametrize(("statement", "kind"), IMPORTS)
@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("onnx", "prepare", 'rnnfast.onnx needs onnx, which is not installed: pip install "rnnfast[onnx]"'),
        ("torch", "accelerate", 'rnnfast.torch needs torch, which is not installed: pip install "rnnfast[torch]"'),
    ],
)
def test_what_is_missing_is_named(name: str, function: str, message: str, statement: str, kind: str) -> None:
    statement = statement.format(name=name, function=function)
    program = WITHOUT_A_FRAMEWORK.format(name=name, statement=statement, kind=kind)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == message


def test_there_is_one_version() -> None:
    version = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
    assert rnnfast.__version__ == version
    assert _core.config()["version"] == version
    assert metadata.version("rnnfast") == version


def test_import_loads_numpy_and_the_extension_only() -> None:
    command = [sys.executable, "-c", ADDED_BY_IMPORT]
    added = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "rnnfast._core" in added
    assert not {"numpy.random", "rnnfast.hopfield", "rnnfast.lm", "rnnfast.reservoir", "rnnfast.stream"} & set(added)
    assert {name.partition(".")[0] for name in added} - sys.stdlib_module_names <= {"rnnfast", "numpy"}


def test_the_package_is_typed() -> None:
    package = resources.files("rnnfast")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("_core.pyi").is_file()
    assert package.joinpath("stream.pyi").is_file()


def test_the_c_interface_is_installed() -> None:
    assert Path(rnnfast.get_include(), "rnnfast", "capi.h").is_file()
    assert resources.files("rnnfast").joinpath("capi.pxd").is_file()


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    files = [str(path) for path in metadata.files("rnnfast") or [] if "__pycache__" not in path.parts]
    if "rnnfast/__init__.py" not in files:
        pytest.skip("installed for editing")
    others = [path for path in files if not re.fullmatch(OURS, path)]
    assert sorted(re.sub(r"(_core|stream)\..*\.(so|pyd)", r"\1.so", path) for path in others) == [
        "rnnfast/_core.pyi",
        "rnnfast/_core.so",
        "rnnfast/capi.pxd",
        "rnnfast/include/rnnfast/capi.h",
        "rnnfast/py.typed",
        "rnnfast/stream.pyi",
        "rnnfast/stream.so",
    ]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("readelf") is None, reason="reads ELF with readelf")
@pytest.mark.parametrize("extension", [_core, stream])
def test_the_extensions_link_to_the_systems_runtime_only(extension: ModuleType) -> None:
    command = ["readelf", "--dynamic", "--wide", str(extension.__file__)]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = {name.partition(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    assert needed <= SYSTEM_LIBRARIES
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
