"""The architecture page agrees with the code: its tree has every task, its table every module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import ANONYMOUS_WRITES
from support.pages import FENCE, code, read, rows, section
from support.process import SOURCES


def test_every_task_in_the_tree_exists() -> None:
    tree = section(read("explanation/architecture.md"), "## Tasks and nurseries")
    fence = next(FENCE.finditer(tree))["code"]
    named = re.findall(r"─ (?:(\w+)\.)?(\w+)(?=  |\n)", fence)
    assert len(named) == fence.count("─ ") - 1, "two spaces after each name"  # less the listening nursery
    source = "".join(read(path) for path in (SOURCES / "brewos_relay").rglob("*.py"))
    for owner, task in named:
        assert not owner or f"class {owner}" in source, owner
        assert re.search(rf"def {task}\b", source), task


def test_every_task_of_a_server_is_in_the_tree() -> None:
    tree = section(read("explanation/architecture.md"), "## Tasks and nurseries")
    source = "".join(
        read(path)
        for package in ("core", "cluster", "registry", "server", "wire")
        for path in (SOURCES / "brewos_relay" / package).rglob("*.py")
    )
    # It runs the function that is its next argument.
    kept = r'(?:keep_running,\s*"[^"]*",\s*(?:partial\()?)?'
    started = re.findall(rf"\.start(?:_soon)?\(\s*{kept}([\w.]+)", source)
    named = {name.rpartition(".")[2] for name in started if not name.endswith(".run")}
    handed_on = {"async_fn", "run_beside"}  # parameters; the tasks that are passed are in the tree
    there = set(re.findall(r"\w+", tree)) | {"handle"}  # a parameter; _handle is passed
    assert named - handed_on <= there
    runners = {name for name in started if name.endswith(".run")}
    assert len(set(re.findall(r"\b[A-Z]\w+\.run\b", tree))) == len(runners)


def docstrings_around(node: ast.AST, wanted: str, around: str = "") -> Iterator[str]:
    """Yield the docstrings around each call of a method with this name."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        around += ast.get_docstring(node) or ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == wanted:
        yield around
    for inner in ast.iter_child_nodes(node):
        yield from docstrings_around(inner, wanted, around)


def test_docstring_around_each_nursery_lists_its_tasks() -> None:
    found = 0
    for path in (SOURCES / "brewos_relay").rglob("*.py"):
        for around in docstrings_around(ast.parse(path.read_text("utf-8")), "open_nursery"):
            assert "**Owns:**" in around, path
            found += 1
    assert found > 20


def test_page_lists_every_module_of_the_core() -> None:
    table = rows(section(read("explanation/architecture.md"), "## Layers"))
    modules = (SOURCES / "brewos_relay/core").glob("[!_]*.py")
    assert sorted(name for row in table for name in code(row[0])) == sorted(path.stem for path in modules)


def calls(path: Path, wanted: str) -> Iterator[str]:
    """Yield the first argument of each call of a method with this name, as source text."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == wanted:
            receiver = ast.unparse(node.func.value)
            if receiver.endswith("store"):
                yield ast.unparse(node.args[0])


def test_api_makes_no_write_without_an_authority_or_a_reason() -> None:
    package = SOURCES / "brewos_relay"
    anonymous = {function.__name__ for function in ANONYMOUS_WRITES}
    seen = set()
    for path in (*(package / "api").rglob("*.py"), package / "key_rotation.py"):
        assert list(calls(path, "write")) == [], path
        seen |= {argument.rpartition(".")[2] for argument in calls(path, "write_anonymous")}
    assert seen == anonymous
    # A machine has no account: the transaction checks the key that it connects with. The others are records
    # of the server itself: its key for push services, what it has sent, and which subscriptions failed.
    in_server = {name for path in (package / "server").rglob("*.py") for name in calls(path, "write")}
    records = {
        "keep_server_key",
        "claim_notification",
        "record_failure",
        "record_success",
        "remove_subscription",
    }
    keys = {"confirm_key", "connected_with_other_key", "use_next_key"}
    assert in_server == keys | {f"push.{name}" for name in records}


def test_api_gets_no_store_that_writes_without_an_authority() -> None:
    package = SOURCES / "brewos_relay"
    for path in (*(package / "api").rglob("*.py"), package / "key_rotation.py"):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert not imported & {"Store", "open_store", "Database"}, path
    assert not hasattr(Registry, "write")
