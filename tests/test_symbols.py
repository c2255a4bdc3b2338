"""The one-definition rule: nothing that was compiled for one instruction set can be linked into another's place.

A weak symbol (a template, an inline function) may exist in the objects of several instruction sets, and the linker
keeps any one of them, for everyone. So the objects of the kernels must have none, and one export each: their table.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = Path(os.environ.get("RNNFAST_BUILD_DIR", ROOT / "build"))

# What compilers call on their own account: no code of ours, and the same for every instruction set.
RUNTIME = {"memcpy", "memmove", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


def kernel_objects() -> dict[str, list[Path]]:
    """Return the kernels' objects under the build folder by instruction set, one for each dtype."""
    objects: dict[str, list[Path]] = {}
    for path in sorted(BUILD.glob("**/kernels_*.dir/**/*.o")):
        folder = next(part for part in path.parts if part.startswith("kernels_"))
        objects.setdefault(folder.removesuffix(".dir").split("_")[1], []).append(path)
    return objects


def symbols(path: Path) -> list[tuple[str, str]]:
    """Return (kind, name) of the object's symbols, kinds as nm(1) describes them."""
    lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
    return [(kind, name) for kind, name in (line.split()[-2:] for line in lines)]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="reads ELF objects with nm")
def test_the_objects_of_an_instruction_set_share_nothing_and_export_their_table() -> None:
    objects = kernel_objects()
    if not objects and "CI" not in os.environ:
        pytest.skip(f"no objects of kernels under {BUILD}: built elsewhere, or installed from a wheel")
    assert "baseline" in objects, f"no objects of kernels under {BUILD}"
    for isa, paths in objects.items():
        for path in paths:
            found = symbols(path)
            assert [name for kind, name in found if kind in "VvWwu"] == [], f"weak in {path}"
            assert {name for kind, name in found if kind == "U"} <= RUNTIME, f"needed by {path}"
            exported = [name for kind, name in found if kind.isupper() and kind != "U"]
            assert len(exported) == 1, f"exported by {path}: {exported}"
            assert isa in exported[0], f"exported by {path}: {exported}"
