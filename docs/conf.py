"""Configuration of the documentation site: `nox -s docs`, or `sphinx-build -n docs docs/_build/html`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "brewos-relay"
author = "The brewos-relay developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = version_of("brewos-relay")

extensions = ["myst_parser", "sphinx_site"]
exclude_patterns = ["_build", "_ext"]

# Links to headings use the same anchors as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]

smartquotes_action = "q"  # only quotes: two dashes begin an option

html_theme = "furo"
html_title = f"brewos-relay {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False
