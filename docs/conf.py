"""Sphinx, with pages in MyST Markdown; every warning is an error (see tox.ini)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pyzmp.version import __version__

project = "pyzmp"
author = "The pyzmp developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"pyzmp {release}"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

# Docstrings name things in single backquotes; where that is no name of ours it is set as code.
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [
    # No inventories of other projects are fetched, and private names have no page.
    (r"py:.*", r"(?!pyzmp\.).*"),
    (r"py:.*", r"pyzmp\.(.*\.)?_\w+.*"),
    # Public names are documented under pyzmp, where users import them, and not under the module that defines them.
    (r"py:.*", r"pyzmp\.\w+\..*"),
]
