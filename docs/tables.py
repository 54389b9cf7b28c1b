"""Write the parts of the documentation that are generated from the code: `python docs/tables.py`.

In a page, a generated part stands between two comments:

    <!-- generated: options brewos-relay serve -->
    …
    <!-- end of generated part -->

The first comment names a generator and its argument. The pages are committed with their generated parts, and
a test fails if one of them is out of date. `--check` only lists the pages that are out of date.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

import from_cli
import from_dialect
import from_http
import from_messages
import from_metrics
import from_python
import from_settings

GENERATORS: Final[Mapping[str, Callable[[str], str]]] = {
    "options": from_cli.options_of,
    "settings": from_settings.table_of,
    "limits": from_settings.table_of_limits,
    "routes": lambda _: from_http.routes(),
    "refusals": lambda _: from_http.refusals(),
    "messages": from_messages.table_of,
    "commands": from_dialect.table_of,
    "metrics": lambda _: from_metrics.table(),
    "python": from_python.reference_of,
}
#: Files that are generated as a whole, by their path in docs/.
DOCUMENTS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "reference/openapi.json": from_http.document,
    "reference/asyncapi.json": from_messages.document,
}
COMMAND: Final = "python docs/tables.py"

_END: Final = "<!-- end of generated part -->"
_PART: Final = re.compile(
    rf"^(?P<start><!-- generated: (?P<name>\w+)(?: (?P<about>[^\n]+?))? -->)$\n(?P<text>.*?)^{_END}$",
    re.M | re.S,
)
_START: Final = re.compile(r"^<!-- generated: .*-->$", re.M)
_TABLE: Final = re.compile(r"^\|.*\n\|[-|: ]+\n(?:\|.*(?:\n|\Z))+", re.M)
_BETWEEN_CELLS: Final = re.compile(r"(?<!\\)\|")
_LONG_VALUE: Final = re.compile(r"`(?P<values>[^`\s]{40,})`")


def generate(page: str) -> str:
    """Return a page with its generated parts renewed; ValueError names a comment that is wrong."""

    def renew(part: re.Match[str]) -> str:
        generator = GENERATORS.get(part["name"])
        if generator is None:
            raise ValueError(f"{part['start']}: unknown generator; choose from {', '.join(GENERATORS)}")
        text = without_empty_columns(generator(part["about"] or "").strip("\n"))
        return f"{part['start']}\n\n{text}\n\n{_END}"

    renewed, count = _PART.subn(renew, page)
    if count != len(_START.findall(page)):
        raise ValueError(f"each `<!-- generated: … -->` needs a `{_END}` below it")
    return renewed


def without_generated(page: str) -> str:
    """Return a page without its generated parts."""
    return _PART.sub("", page)


def arguments_of(page: str, generator: str) -> list[str]:
    """List the arguments that a page passes to a generator."""
    return [part["about"] or "" for part in _PART.finditer(page) if part["name"] == generator]


def outdated() -> Iterator[tuple[Path, str]]:
    """Yield each page and document that is out of date, with the text that it must have."""
    for path in sorted(DOCS.glob("*/*.md")):
        page = path.read_text("utf-8")
        if (renewed := generate(page)) != page:
            yield path, renewed
    for name, document in DOCUMENTS.items():
        path = DOCS / name
        text = json.dumps(document(), indent=1) + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            yield path, text


def without_empty_columns(text: str) -> str:
    """Remove columns that have only a heading from the tables of a text, and split long lists of values."""
    return _TABLE.sub(lambda table: _narrow(table[0]), text)


def _narrow(table: str) -> str:
    rows = [[cell.strip() for cell in _BETWEEN_CELLS.split(line)[1:-1]] for line in table.splitlines()]
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows[2:])]
    lines = [f"| {' | '.join(_splittable(row[number]) for number in kept)} |" for row in rows]
    lines[1] = "|---" * len(kept) + "|"
    return "\n".join(lines) + ("\n" if table.endswith("\n") else "")


def _splittable(cell: str) -> str:
    return _LONG_VALUE.sub(lambda code: ", ".join(f"`{value}`" for value in code["values"].split(",")), cell)


def main() -> int:
    """Write the pages that are out of date. With `--check`, only list them, and return 1 if there are any."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only list what is out of date")
    only_check = parser.parse_args().check
    found = list(outdated())
    for path, text in found:
        print(f"{'out of date' if only_check else 'written'}: {path.relative_to(DOCS.parent)}")
        if not only_check:
            path.write_text(text, "utf-8")
    return 1 if only_check and found else 0


if __name__ == "__main__":
    sys.exit(main())
