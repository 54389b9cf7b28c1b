"""The Sphinx extension of the site: its tree of pages, and links to files outside of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_SECTION: Final = re.compile(r"^## (?P<caption>.+)\n(?P<text>(?:(?!## ).*\n?)*)", re.M)
_PAGE: Final = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<path>[\w/-]+)\.md\)", re.M)
_OUTWARD: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("source-read", _prepare_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _prepare_page(app: Any, page: str, source: list[str]) -> None:
    if page == app.config.root_doc:
        source[0] += f"\n{toctrees(source[0])}"
    source[0] = name_files(source[0], (Path(app.srcdir) / page).parent, Path(app.srcdir))


def toctrees(text: str) -> str:
    """Make a hidden toctree from each list of pages in the first page."""
    return "\n".join(_toctrees(text))


def _toctrees(text: str) -> Iterator[str]:
    for section in _SECTION.finditer(text):
        if pages := [f"{page['title']} <{page['path']}>" for page in _PAGE.finditer(section["text"])]:
            yield "\n".join(
                ["```{toctree}", ":hidden:", f":caption: {section['caption']}", "", *pages, "```", ""]
            )


def name_files(text: str, folder: Path, site: Path) -> str:
    """Replace links to files outside of the site with the paths of the files.

    `folder` is the folder of the page. In the repository, the links work as they are.
    """

    def name(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        if target.is_relative_to(site.resolve()):
            return link[0]
        name = str(target.relative_to(site.resolve().parent))
        return f"`{name}`" if link["text"].strip("`") == name else f"{link['text']} (`{name}` in the project)"

    return _OUTWARD.sub(name, text)
