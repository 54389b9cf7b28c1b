"""Each promise of the security page names existing tests, and each section with promises is in the table."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
HEADING = "Promises and their tests"
#: Sections that only describe: threats, limits of this version, and advice.
WITHOUT_PROMISES = {
    "Threats",
    HEADING,
    "Known limitations",
    "Recommendations for operators",
}

TABLE = PAGE.partition(f"\n## {HEADING}\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (`.+`) \|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize(("section", "promise", "tests"), ROWS)
def test_promise_names_tests_that_exist(section: str, promise: str, tests: str) -> None:
    assert promise
    for test in re.findall(r"`([^`]+)`", tests):
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, test


def test_every_section_that_makes_promises_is_in_the_table() -> None:
    sections = set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) - WITHOUT_PROMISES
    assert sections == {section for section, _, _ in ROWS}
    assert len(ROWS) == TABLE.count("\n|") - 2
