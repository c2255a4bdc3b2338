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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PYTHON}
MOST_LINES = 600

# What the rooms below the public modules import, beside themselves. A layer makes streams, which are compiled and stand
# on the module of the stack that knows no runs.
BELOW = {
    "_core": set(),
    "_base": {"_core"},
    "_stack": {"_core", "_base", "stream"},
    "stream": {"_core", "_base", "_stack"},
    "reference": set(),
}

FILES = {path.relative_to(ROOT).as_posix(): path for path in PYTHON}
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


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@cache
def private_names(path: Path) -> frozenset[str]:
    """Return the names with one underscore that a file gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(statements(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(filter(is_private, names))


def room_of(module: str) -> str:
    """Return the folder or module right in the package that this one is, or lies in."""
    return module.partition(".")[2].partition(".")[0]


@cache
def private_attributes(path: Path) -> frozenset[str]:
    """Return those of the private names that belong to classes and their objects."""
    names = {
        n.attr for n in ast.walk(statements(path)) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    for kind in ast.walk(statements(path)):
        for node in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(filter(is_private, names))


def taken_over(path: Path) -> Iterator[str]:
    """Yield the private names that classes of this file define and that a base class from elsewhere has too."""
    homes = {name: own(MODULES[module]) for module, name in imported(path) if name}
    for kind in ast.walk(statements(path)):
        for base in kind.bases if isinstance(kind, ast.ClassDef) else ():
            name = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(name, ast.Name) and name.id in homes and path not in homes[name.id]:
                yield from private_attributes(path) & frozenset().union(*map(private_attributes, homes[name.id]))


def test_there_is_no_circle_of_imports() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for path in PYTHON:
        name = module_of(path)
        graph[name] |= {module for module, _ in imported(path)} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@by_file
def test_lower_rooms_import_nothing_from_above(path: Path) -> None:
    room = room_of(module_of(path))
    if room in BELOW:
        assert {room_of(module) for module, _ in imported(path)} <= BELOW[room] | {room}


def test_the_extension_asks_one_module_of_python_alone() -> None:
    """Numbers of any type are read in one place, which the gates that are held go through too."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp"}]
    assert {
        name for path in sources for name in re.findall(r'import\("(rnnfast[\w.]*)"\)', path.read_text("utf-8"))
    } == {"rnnfast._base.scalars"}


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_module_shares_its_name_with_nothing_in_its_package(package: str) -> None:
    names = {name for _, name in imported(MODULES[package])}
    for node in ast.walk(statements(MODULES[package])):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    assert not {f"{package}.{name}" for name in names} & set(MODULES)


def test_the_old_name_of_truncation_is_imported_from() -> None:
    import rnnfast.tbptt  # type: ignore[import-not-found]
    from rnnfast.tbptt import Window, tbptt, tbptt_gradient

    assert rnnfast.tbptt is tbptt is rnnfast.truncation.tbptt
    assert tbptt_gradient is rnnfast.tbptt_gradient
    assert Window is rnnfast.truncation.Window


@by_file
def test_underscore_names_stay_at_home(path: Path) -> None:
    others = [other for other in PYTHON if other not in own(path)]
    at_home = frozenset[str]().union(*map(private_names, own(path)))
    elsewhere = frozenset[str]().union(*map(private_names, others))
    attributes = frozenset[str]().union(*map(private_attributes, others))
    used = {name for _, name in imported(path)}
    if path.suffix == ".pyx":
        used |= set(
            re.findall(r"(?<!self)\.(_\w+)", re.sub(r"^from .*", "", path.read_text("utf-8"), flags=re.MULTILINE))
        )
    for node in ast.walk(statements(path)):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
            # What is not the object's own may belong to a class from elsewhere, which has the name as well.
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                assert node.attr not in attributes
    assert not used & (elsewhere - at_home)
    assert not list(taken_over(path))


@by_file
def test_objects_are_made_by_their_constructors(path: Path) -> None:
    assert "__new__" not in {node.attr for node in ast.walk(statements(path)) if isinstance(node, ast.Attribute)}


def test_files_fit_on_a_few_screens() -> None:
    files = [*PYTHON, *(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp"})]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines()) for path in files}
    assert [name for name, count in lines.items() if count > MOST_LINES] == []
