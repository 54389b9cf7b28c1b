"""Rules that let a program always be ended: deadlines of shields, and no swallowed cancellation."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "brewos_relay"
UNTIL = {"move_on_after", "move_on_at", "fail_after", "fail_at"}
ENDINGS = {"BaseException", "BaseExceptionGroup", "Cancelled", "GeneratorExit"}


def shields_without_deadline(tree: ast.AST) -> Iterator[int]:
    """List the lines of shields without a deadline, or with an infinite one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "shield" and isinstance(node.ctx, ast.Store):
            yield node.lineno
        if not isinstance(node, ast.Call) or not any(each.arg == "shield" for each in node.keywords):
            continue
        named = ast.unparse(node.func).rpartition(".")[2] in UNTIL and node.args
        given = any(each.arg == "deadline" for each in node.keywords)
        if not (named or given) or re.search(r"\binf\b", ast.unparse(node)) or node.lineno != node.end_lineno:
            yield node.lineno


def endings_kept(tree: ast.AST) -> Iterator[int]:
    """List the lines that catch a cancellation, or every exception, and do not raise it again."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        caught = {"BaseException" if kind is None else ast.unparse(kind).rpartition(".")[2] for kind in kinds}
        if caught & ENDINGS and not any(isinstance(each, ast.Raise) for each in ast.walk(node)):
            yield node.lineno


@pytest.mark.parametrize(
    "text",
    [
        "trio.CancelScope(shield=True)",
        "trio.move_on_after(math.inf, shield=True)",
        "trio.move_on_after(\n5, shield=True)",
        "scope.shield = True",
    ],
)
def test_a_shield_without_a_deadline_is_found(text: str) -> None:
    assert list(shields_without_deadline(ast.parse(text))) == [1]


def test_a_shield_with_a_deadline_is_let_pass() -> None:
    for text in ("trio.move_on_after(5, shield=True)", "trio.CancelScope(deadline=at, shield=True)"):
        assert not list(shields_without_deadline(ast.parse(text)))


@pytest.mark.parametrize("caught", ["", " BaseException", " (ValueError, trio.Cancelled)"])
def test_an_ending_that_is_kept_is_found(caught: str) -> None:
    assert list(endings_kept(ast.parse(f"try: ...\nexcept{caught}:\n  pass"))) == [2]
    assert not list(endings_kept(ast.parse(f"try: ...\nexcept{caught}:\n  raise")))


@pytest.mark.parametrize("look", [shields_without_deadline, endings_kept], ids=["shields", "endings"])
def test_no_module_has_any(look: Callable[[ast.AST], Iterator[int]]) -> None:
    modules = list(SOURCE.rglob("*.py"))
    assert len(modules) > 150
    found = {
        f"{path.relative_to(SOURCE)}:{line}" for path in modules for line in look(ast.parse(path.read_text()))
    }
    assert not found
