"""How Sphinx makes the site: `nox -s docs`, or `sphinx-build -n docs docs/_build/html`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "brewos-relay"
author = "The brewos-relay developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = version_of("brewos-relay")

extensions = ["myst_parser", "sphinx.ext.autodoc", "expanding"]
exclude_patterns = ["_build", "_ext"]

# Pages are Markdown that reads well by itself; links to headings are as on any Markdown site.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]

smartquotes_action = "q"  # quotes alone: two dashes begin an option
# Docstrings write names and code in single backticks.
default_role = "literal"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Types of others have their own documentation, and what is not public has none.
nitpick_ignore_regex = [
    (r"py:.*", r"(trio|msgspec|collections|contextlib|pathlib|types|typing|enum|datetime|os|ssl)\..*"),
    (r"py:.*", r"brewos_relay\.(core|messages|client)\..*"),
]

toc_object_entries = False

html_theme = "furo"
html_title = f"brewos-relay {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False
