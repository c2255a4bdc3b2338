"""The Python of the README and of docs/ runs as it stands there."""

import importlib
import inspect
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import new_cell
import numpy as np
import pytest

import rnnfast

ROOT = Path(__file__).parent.parent


def blocks_of(page: Path) -> list[str]:
    """Return the blocks of Python, each behind as many empty lines as make its numbers of lines those of the page."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in blocks]


OPTIONAL = {"jax", "keras", "onnx", "onnxruntime", "torch"}
README = ROOT / "README.md"
LAYER, TORCH, STREAMING = blocks_of(README)
PAGES = {page: blocks for page in sorted(ROOT.glob("docs/**/*.md")) if (blocks := blocks_of(page))}


def run(page: Path, blocks: list[str]) -> dict[str, Any]:
    """Run the blocks one after the other and return the names that they leave; skip where a framework is missing."""
    imported = re.findall(r"^(?:import|from) (?:rnnfast\.)?(\w+)", "\n".join(blocks), re.MULTILINE)
    missing = {name for name in OPTIONAL.intersection(imported) if find_spec(name) is None}
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_a_page_runs_from_its_top_to_its_end(page: Path) -> None:
    run(page, PAGES[page])


def test_the_layer_gives_the_shapes_that_its_comment_says() -> None:
    names = run(README, [LAYER])
    assert [names[name].shape for name in ("y", "h", "c")] == [(50, 32, 128), (2, 32, 128), (2, 32, 128)]


def test_the_torch_model_is_accelerated() -> None:
    embedding, gru = run(README, [TORCH])["model"]
    assert type(gru) is rnnfast.torch.GRU
    assert type(embedding).__module__.startswith("torch.nn.")


def test_the_stream_gives_the_layers_last_output() -> None:
    names = run(README, [STREAMING])
    y, _ = rnnfast.GRU(28, 64, rng=0)(np.zeros((50, 28), np.float32))
    assert np.array_equal(names["y_t"], y[-1])


# The modules of the reference, each with the page that lists its names
REFERENCE = {
    match[1]: page
    for page in sorted((ROOT / "docs" / "reference").glob("*.rst"))
    if (match := re.search(r"^\.\. automodule:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
}


@pytest.mark.parametrize("name", REFERENCE)
def test_each_public_name_is_in_the_reference_with_an_example(name: str) -> None:
    framework = name.rpartition(".")[2]
    if framework in OPTIONAL:
        pytest.importorskip(framework, reason=f"{framework} is not installed")
    module = importlib.import_module(name)
    # Modules have pages of their own, and so have the names that `rnnfast` takes from one of them.
    members = {each: getattr(module, each) for each in module.__all__ if not inspect.ismodule(getattr(module, each))}
    members = {
        each: member
        for each, member in members.items()
        if not (name == "rnnfast" and getattr(REFERENCE.get(member.__module__), "name", "layers.rst") != "layers.rst")
    }
    listed = set(re.findall(r"^   (\w+)$", REFERENCE[name].read_text(encoding="utf-8"), re.MULTILINE))
    assert members.keys() <= listed
    for each, member in members.items():
        made_here = getattr(member, "__func__", member).__module__.startswith("rnnfast")
        _, _, examples = (inspect.getdoc(member) or "").partition("\nExamples\n--------\n")
        assert not made_here or ">>>" in examples, f"{name}.{each} has no example"


def test_each_module_of_the_reference_is_in_its_list() -> None:
    listed = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in listed for page in REFERENCE.values())


@pytest.mark.skipif(shutil.which("git") is None, reason="blocks that change a file are applied by git")
def test_the_page_about_a_new_cell_applies_to_the_files_that_it_changes(tmp_path: Path) -> None:
    for path, kind, code in new_cell.blocks():
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if kind == "diff" and not copy.exists():
            shutil.copy(ROOT / path, copy)
        new_cell.apply(tmp_path, path, kind, code)
