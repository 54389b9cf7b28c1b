"""What the site has and the Markdown has not: its tree of pages, and tables that fit a page."""

import re
from collections.abc import Iterator
from typing import Final

_SECTION: Final = re.compile(r"^## (?P<caption>.+)\n(?P<text>(?:(?!## ).*\n?)*)", re.M)
_PAGE: Final = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<path>[\w/-]+)\.md\)", re.M)
_TABLE: Final = re.compile(r"^\|.*\n\|[-|: ]+\n(?:\|.*(?:\n|\Z))+", re.M)
_BETWEEN: Final = re.compile(r"(?<!\\)\|")
_LONG: Final = re.compile(r"`(?P<values>[^`\s]{40,})`")


def trees(text: str) -> str:
    """Make the tree of pages of a page that lists them: a hidden part for each section, with its titles."""
    return "\n".join(_trees(text))


def _trees(text: str) -> Iterator[str]:
    for section in _SECTION.finditer(text):
        if pages := [f"{page['title']} <{page['path']}>" for page in _PAGE.finditer(section["text"])]:
            yield "\n".join(
                ["```{toctree}", ":hidden:", f":caption: {section['caption']}", "", *pages, "```", ""]
            )


def narrowed(text: str) -> str:
    """Leave the columns of tables away that have a head and nothing else, and let long lists break."""
    return _TABLE.sub(lambda table: _narrowed(table[0]), text)


def _narrowed(table: str) -> str:
    rows = [[cell.strip() for cell in _BETWEEN.split(line)[1:-1]] for line in table.splitlines()]
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows[2:])]
    return "".join(f"| {' | '.join(_breakable(row[number]) for number in kept)} |\n" for row in rows)


def _breakable(cell: str) -> str:
    return _LONG.sub(lambda code: ", ".join(f"`{value}`" for value in code["values"].split(",")), cell)
