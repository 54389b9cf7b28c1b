"""Changelog fragments are well formed."""

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
def test_fragment_is_well_formed(fragment: Path) -> None:
    assert re.fullmatch(rf"\d{{2,3}}-[a-z0-9-]+\.({'|'.join(KINDS)})\.md", fragment.name), (
        f"call it NN-NAME.KIND.md, where KIND is one of {', '.join(KINDS)}"
    )
    text = fragment.read_text("utf-8")
    assert text.strip().endswith("."), "write sentences"
    assert text.endswith("\n")
    assert not re.search(r"^([-*#]|\s)", text, re.M), "no heading, no bullet, nothing indented"


def test_numbers_are_unique_within_a_kind() -> None:
    numbers = [(path.name.partition("-")[0], path.name.split(".")[1]) for path in FRAGMENTS]
    assert sorted(numbers) == sorted(set(numbers))


def test_readme_of_fragments_has_every_kind() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(KINDS)


def test_changelog_has_no_unreleased_section() -> None:
    text = (ROOT / SETTINGS["filename"]).read_text("utf-8")
    assert text.count(SETTINGS["start_string"]) == 1
    assert "unreleased" not in text, "write a fragment instead; changelog.d/README.md says how"
