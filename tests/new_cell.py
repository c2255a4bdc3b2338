"""Apply the code of docs/new-cell.md to a copy of the repository: ``python tests/new_cell.py TREE``.

The copy then has one cell more, the minimal gated unit, which is built and tested like the others.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "new-cell.md"
BLOCK = re.compile(r"^`(?P<path>\S+)`:\n\n```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = 80
DOCSTRING = re.compile(r'^\+class .*?\n(\+    """.*?"""\n)', re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """Return the path, the kind and the code of each block of the page."""
    return [(block["path"], block["kind"], block["code"]) for block in BLOCK.finditer(PAGE.read_text("utf-8"))]


def num_lines(kind: str, code: str) -> int:
    """Return how many lines of code a block writes, without the docstring of a class."""
    if kind == "diff":
        for docstring in DOCSTRING.findall(code):
            code = code.replace(docstring, "")
        return sum(line.startswith("+") and line != "+" for line in code.splitlines())
    return sum(map(bool, code.splitlines()))


def apply(tree: Path, path: str, kind: str, code: str) -> None:
    """Write a new file, or change one."""
    if kind == "diff":
        patch = f"--- a/{path}\n+++ b/{path}\n{code}"
        apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}  # from a repository around it
        subprocess.run(["git", "apply", "-"], cwd=tree, input=patch, text=True, check=True, env=apart)
    else:
        (tree / path).write_text(code, "utf-8")


def main() -> None:
    """Apply all blocks."""
    (tree,) = map(Path, sys.argv[1:])
    found = blocks()
    count = sum(num_lines(kind, code) for _, kind, code in found)
    if not 0 < count <= MOST_LINES:
        sys.exit(f"{PAGE.name}: expected at most {MOST_LINES} lines of code, got {count}")
    for block in found:
        apply(tree, *block)
    print(f"{PAGE.name}: {count} lines of code in {len(found)} files")


if __name__ == "__main__":
    main()
