"""How `make docs` makes a site, by Sphinx, of the same pages that are read in the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "Forecache"
html_title = "Forecache"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "*/*.md", "deploy/*/*.md"]
exclude_patterns = [".*", "build", "client", "dist", "tests"]
html_theme = "furo"
html_use_index = False
html_copy_source = False
# -- and quotes stay as they are typed
smartquotes = False
# links lead to headings by the names that GitHub gives them
myst_heading_anchors = 4
# examples of answers are shortened by …, which is no JSON
suppress_warnings = ["misc.highlighting_failure"]

_MENU = {
    "Begin": ["getting-started", "cli", "settings", "existing", "examples/README", "protocols"],
    "Use": [
        "client",
        "models",
        "mlflow",
        "features",
        "streams",
        "batch",
        "tables",
        "spark",
        "ray",
        "realtime",
        "dashboard",
        "cost",
    ],
    "Run": [
        "Containers <docker/README>",
        "Kubernetes <deploy/kubernetes/README>",
        "hosts",
        "scale",
        "operations",
        "tracing",
        "security",
        "SECURITY",
    ],
    "Carry on": ["CONTRIBUTING", "architecture", "testing", "benchmarks/README", "CHANGELOG"],
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:#]+)\)")


def setup(app: Sphinx) -> None:
    """Have each page changed where the site needs other words than the repository."""
    app.connect("source-read", _for_the_site)
    app.connect("build-finished", _begin_at_index)


def _for_the_site(_: Sphinx, page: str, source: list[str]) -> None:
    """Take out links to folders, which a site does not have, and give the first page its menu."""
    folder = (ROOT / page).parent
    source[0] = _LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0])
    if page == root_doc:
        source[0] += "".join(_menu(caption, pages) for caption, pages in _MENU.items())


def _menu(caption: str, pages: list[str]) -> str:
    lines = "\n".join(page if "/" in page or page.isupper() else f"docs/{page}" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{lines}\n```\n"


def _begin_at_index(app: Sphinx, error: Exception | None) -> None:
    """Show the first page also where a server or a reader looks for one."""
    if error is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
