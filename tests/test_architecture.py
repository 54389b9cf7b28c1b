"""The page on the architecture is that of the code: the tree has every task, each module its subject."""

import ast
import re
from collections.abc import Iterator

from support.pages import FENCE, code, read, rows, section
from support.process import SOURCES


def test_what_the_tree_of_tasks_names_is_in_the_code() -> None:
    tree = section(read("explanation/architecture.md"), "## Who owns what")
    fence = next(FENCE.finditer(tree))["code"]
    named = re.findall(r"─ (?:(\w+)\.)?(\w+)(?=  |\n)", fence)
    assert len(named) > 15
    source = "".join(read(path) for path in (SOURCES / "brewos_relay").rglob("*.py"))
    for owner, task in named:
        assert not owner or f"class {owner}" in source, owner
        assert re.search(rf"def {task}\b", source), task


def test_every_task_of_a_server_is_in_the_tree() -> None:
    tree = section(read("explanation/architecture.md"), "## Who owns what")
    source = "".join(
        read(path)
        for package in ("core", "registry", "server", "wire")
        for path in (SOURCES / "brewos_relay" / package).rglob("*.py")
    )
    started = re.findall(r"\.start(?:_soon)?\(\s*([\w.]+)", source)
    named = {name.rpartition(".")[2] for name in started if not name.endswith(".run")}
    handed_on = {"async_fn", "_run_beside"}  # what a peer wants to have run, which is in the tree itself
    there = set(re.findall(r"\w+", tree)) | {"welcome"}  # which _welcome is given as
    assert named - handed_on - {"serve"} <= there  # serve is around _Connection.run
    runners = {name for name in started if name.endswith(".run")}
    assert len(set(re.findall(r"\b[A-Z]\w+\.run\b", tree))) == len(runners)


def docstrings_around(node: ast.AST, wanted: str, around: str = "") -> Iterator[str]:
    """Give the docstrings around each call of a method of this name."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        around += ast.get_docstring(node) or ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == wanted:
        yield around
    for inner in ast.iter_child_nodes(node):
        yield from docstrings_around(inner, wanted, around)


def test_whoever_opens_a_nursery_says_what_is_in_it() -> None:
    found = 0
    for path in (SOURCES / "brewos_relay").rglob("*.py"):
        for around in docstrings_around(ast.parse(path.read_text("utf-8")), "open_nursery"):
            assert "**Owns:**" in around, path
            found += 1
    assert found > 20


def test_every_module_of_the_core_has_its_subject() -> None:
    table = rows(section(read("explanation/architecture.md"), "## Layers"))
    modules = (SOURCES / "brewos_relay/core").glob("[!_]*.py")
    assert sorted(name for row in table for name in code(row[0])) == sorted(path.stem for path in modules)
