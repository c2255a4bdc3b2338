"""How Sphinx builds the documentation: `sphinx-build -W -n docs docs/_build`, without a network.

The pages are Markdown that reads well on GitHub, too. What GitHub needs in another way than Sphinx is changed in
`source_read`, as pages are read.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

os.environ.setdefault("KERAS_BACKEND", "torch")  # of rnnfast.keras

import rnnfast.stream  # noqa: F401  # else autodoc would run its stub instead

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository", "https://github.com/rnnfast/rnnfast")

project = PROJECT["name"]
author = project_copyright = "the rnnfast authors"
version = release = PROJECT["version"]

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build"]
nitpicky = True

# The docstrings: types stand in their tables, so signatures show names and defaults alone.
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
# What the docstrings of these pages are held to: all of numpydoc's checks but those of their style, of arguments that
# have a line in common, and of examples and links in each.
numpydoc_validation_checks = {
    *("all", "ES01", "EX01", "SA01", "YD01", "GL02"),
    *("PR04", "PR07", "PR08", "RT01", "RT02", "RT03", "RT04"),
}
numpydoc_validation_overrides = {
    "PR01": [r"[Tt]akes and raises what", r"(?s:\A(?!.*Parameters\n).*Attributes\n)"],
    "SS03": [r"^Alias for field number \d+$"],
}
# Arguments as scikit-learn, torch, Keras and the backends of ONNX have them
numpydoc_validation_exclude = {
    r"rnnfast\.(estimators|keras|torch)\.",
    r"rnnfast\.onnx\.(Rnnfast|is_compatible|prepare|run_|supports_device)",
    r"rnnfast\.Quantized(\.(forward|backward|of_layer))?$",
    r"rnnfast\.lm\.CharLM(\.backward|Tape)$",
}
templates_path = ["_templates"]
default_role = "obj"  # `name` in a docstring: a link if the site has it, else code

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

# The examples are shown with their pictures and not run: some take minutes, and tests run them.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "plot_gallery": "False",
    "image_scrapers": (),
    "reset_modules": (),
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "default_thumb_file": str(DOCS / "_static" / "example.png"),
}

html_theme = "pydata_sphinx_theme"
html_title = f"rnnfast {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "icon_links": [{"name": "GitHub", "url": REPOSITORY, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 5,
    "show_toc_level": 2,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}

# The lists of pages: a line `- [Title](page.md): what it says` also puts the page into the navigation.
LISTS = {"index", "guides", "explanation", "tutorials/index", "reference/index"}


def source_read(_app: Sphinx, name: str, content: list[str]) -> None:
    """Send links that leave docs/ to GitHub, name pages by titles, and make the navigation from lists of pages."""
    folder = (DOCS / name).parent

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        path = Path(os.path.normpath(folder / target))
        if not target or ":" in target:
            return match[0]
        if path.is_relative_to(DOCS):  # [kernels.md](kernels.md) on GitHub, the title of the page here
            return f"[]({match[2]})" if match[1] == f"[{target}]" else match[0]
        if not path.exists():
            msg = f"{name}: {target} does not exist"
            raise FileNotFoundError(msg)
        kind = "tree" if path.is_dir() else "blob"
        return f"{match[1]}({REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor and '#' + anchor})"

    if not name.startswith(("auto_examples", "reference/generated")):
        content[0] = re.sub(r"(?<!!)(\[[^\]]+\])\(([^)\s]+)\)", link, content[0])
    if name in LISTS:
        pages = re.findall(r"^- \[[^\]]+\]\(([\w/.-]+)\.(?:md|rst)\)", content[0], re.MULTILINE)
        listed = "\n".join(page for page in pages)
        content[0] += f"\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{listed}\n```\n"


def missing_reference(_app: Sphinx, _env: Any, node: Any, text: Any) -> Any:
    """Leave `name` as code where it is an argument or a private class: only names of the package have to be found."""
    target = node.get("reftarget", "")
    if node.get("reftype") == "obj" and not target.startswith("rnnfast."):
        return text
    return None


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.connect("source-read", source_read)
    app.connect("missing-reference", missing_reference)
