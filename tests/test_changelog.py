"""Fragments of the changelog are such that a changelog can be made of them."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["towncrier"]
FOLDER = ROOT / SETTINGS["directory"]
FRAGMENTS = sorted(path for path in FOLDER.iterdir() if path.name not in SETTINGS["ignore"])
KINDS = [kind["directory"] for kind in SETTINGS["type"]]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_well_formed(fragment: Path) -> None:
    assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", fragment.name), (
        f"call it NAME.KIND.md, where KIND is one of {', '.join(KINDS)}"
    )
    text = fragment.read_text("utf-8")
    assert text.strip().endswith("."), "write sentences"
    assert text.endswith("\n")
    assert not re.search(r"^([-*#]|\s)", text, re.M), "no heading, no bullet, nothing indented"


def test_the_page_on_fragments_has_every_kind() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(KINDS)


def test_what_is_not_released_stands_in_fragments_alone() -> None:
    text = (ROOT / SETTINGS["filename"]).read_text("utf-8")
    assert text.count(SETTINGS["start_string"]) == 1
    assert "unreleased" not in text, "write a fragment instead; changelog.d/README.md says how"
