"""What is made from the code stands in the pages as a comment; this puts the Markdown in its place.

`<!-- generated: options brewos-relay serve -->`, alone on a line, becomes the table of that command's
options. The tests expand the pages in the same way, so that what they compare is what readers see.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import contents
import from_cli
import from_dialect
import from_http
import from_messages
import from_metrics
import from_python
import from_settings

MAKERS: Final[Mapping[str, Callable[[str], str]]] = {
    "options": from_cli.options_of,
    "settings": from_settings.table_of,
    "limits": lambda _: from_settings.table_of_limits(),
    "routes": lambda _: from_http.routes(),
    "refusals": lambda _: from_http.refusals(),
    "messages": from_messages.table_of,
    "download": lambda name: f'Download it: <a href="../{name}" download>{name}</a>.',
    "commands": from_dialect.table_of,
    "metrics": lambda _: from_metrics.table(),
    "python": from_python.reference_of,
}

_PLACE: Final = re.compile(r"^<!-- generated: (?P<name>\w+) ?(?P<about>.*?) -->$", re.M)
_OUTWARD: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def expand(text: str) -> str:
    """Put what is generated into a page; ValueError names a comment that asks for something unknown."""

    def make(place: re.Match[str]) -> str:
        maker = MAKERS.get(place["name"])
        if maker is None:
            raise ValueError(f"{place[0]}: there is no such generator; choose from {', '.join(MAKERS)}")
        return maker(place["about"])

    return _PLACE.sub(make, text)


def asked_for(text: str, name: str) -> list[str]:
    """List what a page asks of one generator."""
    return [place["about"] for place in _PLACE.finditer(text) if place["name"] == name]


def setup(app: Any) -> dict[str, bool]:
    """Join Sphinx: expand every page as it is read, and write the documents for programs beside the pages."""
    app.connect("source-read", _expand_page)
    app.connect("autodoc-process-docstring", _write_tables)
    app.connect("build-finished", _write_documents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _expand_page(app: Any, page: str, source: list[str]) -> None:
    if page == app.config.root_doc:
        source[0] += f"\n{contents.trees(source[0])}"
    text = name_files(expand(source[0]), (Path(app.srcdir) / page).parent, Path(app.srcdir))
    source[0] = contents.narrowed(text)


def name_files(text: str, folder: Path, site: Path) -> str:
    """Name the files that links lead to outside of the site, which has no place for them.

    `folder` is where the page lies. The Markdown itself keeps its links: they work where the project is.
    """

    def name(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        if target.is_relative_to(site.resolve()):
            return link[0]
        return f"{link['text']} (`{target.relative_to(site.resolve().parent)}` in the project)"

    return _OUTWARD.sub(name, text)


def _write_tables(_app: Any, _kind: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Write the tables of a docstring, which are as in Markdown, as Sphinx reads them there."""
    written: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            written.append(line)
        elif not line.startswith("|---"):
            if not (written and written[-1].startswith("     - ")):
                written += [".. list-table::", "   :header-rows: 1", ""]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            written += [f"   {'  ' if number else '* '}- {cell}" for number, cell in enumerate(cells)]
    lines[:] = written


def _write_documents(app: Any, failure: Exception | None) -> None:
    if failure is not None or app.builder.format != "html":
        return
    for name, document in (
        ("openapi.json", from_http.document()),
        ("asyncapi.json", from_messages.document()),
    ):
        (Path(app.outdir) / name).write_text(json.dumps(document, indent=2), "utf-8")
