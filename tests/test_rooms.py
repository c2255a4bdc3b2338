"""How the package is divided: what imports what, what reaches into what, and how long a file is."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rnnfast"
PYTHON = sorted(path for path in PACKAGE.rglob("*.py*") if path.suffix in {".py", ".pyi", ".pyx"})
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PYTHON}
MOST_LINES = 600

FILES = {path.relative_to(ROOT).as_posix(): path for path in PYTHON if path.suffix == ".py"}
by_file = pytest.mark.parametrize("path", FILES.values(), ids=FILES)


@cache
def statements(path: Path) -> ast.Module:
    """Return the statements of a file; of a Cython file, the imports alone."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".pyx":
        text = "\n".join(re.findall(r"^(?:from \S+ )?import \([^)]*\)|^(?:from \S+ )?import .*", text, re.MULTILINE))
    return ast.parse(text)


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a file imports of the package, anywhere in it: modules, with the name that is taken of each."""
    parts = path.relative_to(ROOT).parts
    for node in ast.walk(statements(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            home = ".".join([*parts[: len(parts) - node.level], node.module or ""]) if node.level else node.module or ""
            for alias in node.names:
                inner = f"{home.rstrip('.')}.{alias.name}"
                module, name = (inner, "") if inner in MODULES else (home.rstrip("."), alias.name)
                if module in MODULES:
                    yield module, name


def own(path: Path) -> list[Path]:
    """Return the files whose underscore names a file may use: those of its folder; at the top, itself alone."""
    return [path] if path.parent == PACKAGE else [other for other in PYTHON if other.parent == path.parent]


@cache
def private_names(path: Path) -> frozenset[str]:
    """Return the names with one underscore that a file gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(statements(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(name for name in names if name.startswith("_") and not name.endswith("__"))


def test_there_is_no_circle_of_imports() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for path in PYTHON:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] |= {module for module, _ in imported(path)} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@by_file
def test_underscore_names_stay_at_home(path: Path) -> None:
    at_home = frozenset[str]().union(*map(private_names, own(path)))
    elsewhere = frozenset[str]().union(*map(private_names, PYTHON)) - at_home
    used = {node.attr for node in ast.walk(statements(path)) if isinstance(node, ast.Attribute)}
    used |= {name for _, name in imported(path)}
    assert not used & elsewhere


@by_file
def test_objects_are_made_by_their_constructors(path: Path) -> None:
    assert "__new__" not in {node.attr for node in ast.walk(statements(path)) if isinstance(node, ast.Attribute)}


def test_files_fit_on_a_few_screens() -> None:
    files = [*PYTHON, *(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp"})]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines()) for path in files}
    assert [name for name, count in lines.items() if count > MOST_LINES] == []
