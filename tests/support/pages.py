"""The pages of the documentation, for the tests that compare them with the code."""

import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "changelog.d/README.md")),
    *sorted(DOCS.rglob("*.md")),
]

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`([^`]+)`")


def read(page: Path | str) -> str:
    """Return the text of a page, given by its path or by its path in docs/."""
    return (DOCS / page if isinstance(page, str) else page).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """Return the text of the section with this heading, with its subsections."""
    level = len(heading) - len(heading.lstrip("#"))
    match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)
    assert match, f"no heading {heading!r}"
    return match[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the rows of each table in a text, as cells by the heading of their column."""
    found: list[list[dict[str, str]]] = []
    lines = text.splitlines()
    heads = [number - 1 for number, line in enumerate(lines) if line.startswith("|---")]
    for head in heads:
        names = _cells(lines[head])
        body = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
        found.append([dict(zip(names, _cells(line), strict=True)) for line in body])
    return found


def rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows in a text, without headings."""
    return [list(row.values()) for table in tables(text) for row in table]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in _BETWEEN_CELLS.split(line)[1:-1]]


def code(cell: str) -> list[str]:
    """Return the texts in backticks."""
    return _CODE.findall(cell)
