"""The reference of the Python packages, made from the source of their public names.

It reads the source and imports nothing, so that signatures are shown as they are written.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parents[2] / "src"
_LINE: Final = 100
_LONGEST: Final = 20  # lines of an assignment that is shown completely

#: The public members of classes that have further methods for the modules around them.
_MEMBERS: Final = {
    "Attachment": ("close", "wait_closed"),
    "ClientAttachment": ("set_grant", "set_token_end"),
    "DeviceAttachment": (),
    "Relay": (
        *("attach_device", "attach_client", "drain", "is_online", "state_of", "admits", "is_contested"),
        *("device_count", "client_count", "set_grant", "end_clients", "end_device", "send_to_device"),
        "tell_clients",
    ),
}

#: Classes that the library creates for its users: their constructors are not documented.
_CREATED_BY_US: Final = frozenset(
    {
        *("App", "Attachment", "ClientAttachment", "Command", "Device", "DeviceAttachment", "LinkStatus"),
        *("MemoryEnd", "MemoryPeer", "Relay"),
    }
)

#: Classes whose base class is not public: the members of the base are listed with their own.
_WITH_INHERITED: Final = frozenset({"App", "Device"})

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module."""

    text: str
    tree: ast.Module

    def source_of(self, node: ast.expr) -> str:
        """Return the source of an expression."""
        segment = ast.get_source_segment(self.text, node)
        assert segment is not None
        return segment

    def comment_above(self, node: ast.stmt) -> str:
        """Return the `#:` comment that stands right above a statement."""
        lines = self.text.splitlines()[: node.lineno - 1]
        found: list[str] = []
        while lines and (line := lines.pop().strip()).startswith("#:"):
            found.insert(0, line.removeprefix("#:").strip())
        return " ".join(found)

    def definition_of(self, name: str) -> ast.stmt:
        """Return the top-level statement that defines a name; KeyError if there is none."""
        for node in self.tree.body:
            if name in _names_of(node):
                return node
        raise KeyError(name)

    def home_of(self, name: str) -> "Module":
        """Return the module that this one imports a name from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                assert node.module is not None
                return parse(node.module)
        raise KeyError(name)


@cache
def parse(name: str) -> Module:
    """Parse the module with this dotted name."""
    path = SOURCES / name.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
    return Module(text, ast.parse(text))


def public_names(package: str) -> list[str]:
    """List the names in a package's `__all__`."""
    definition = parse(package).definition_of("__all__")
    assert isinstance(definition, ast.Assign)
    names: list[str] = ast.literal_eval(definition.value)
    return names


def reference_of(package: str) -> str:
    """Make a section for each public name of a package, in the order of `__all__`."""
    return "\n".join(line for name in public_names(package) for line in _section(package, name)).rstrip()


def _section(package: str, name: str) -> Iterator[str]:
    home = parse(package).home_of(name)
    node = home.definition_of(name)
    yield from (f"### {name}", "")
    if isinstance(node, ast.ClassDef):
        yield from _class(home, node)
    elif isinstance(node, _Function):
        yield from _function(home, node)
    else:
        yield from _python(_statement(home, node))
        yield from _text(_text_below(home.tree.body, node) or home.comment_above(node))


def _statement(home: Module, node: ast.stmt) -> str:
    """Return the source of an assignment, without the arguments of a long call."""
    statement = ast.get_source_segment(home.text, node)
    assert statement is not None
    value = getattr(node, "value", None)
    if statement.count("\n") > _LONGEST and isinstance(value, ast.Call):
        return statement.partition(home.source_of(value))[0] + f"{home.source_of(value.func)}(...)"
    return statement


def _class(home: Module, node: ast.ClassDef) -> Iterator[str]:
    bases = [home.source_of(base) for base in node.bases]
    if parameters := _parameters_of_class(home, node):
        yield from _python(_call(node.name, parameters))
    else:
        yield from _python(f"class {node.name}({', '.join(bases)})" if bases else f"class {node.name}")
    yield from _text(ast.get_docstring(node) or "")
    if _is_enum(node):
        yield from _table(("Member", "Value", "Meaning"), _enum_rows(home, node))
        attributes = list(_property_rows(home, _members(home, node)))
    else:
        members = list(_members(home, node))
        attributes = [*_attribute_rows(home, node), *_property_rows(home, members)]
    yield from _table(("Attribute", "Type", "Default", "Meaning"), attributes)
    for owner, member in _members(home, node):
        if not _is_property(member):
            yield from (f"#### {node.name}.{member.name}", "")
            yield from _function(owner, member)


def _members(home: Module, node: ast.ClassDef) -> Iterator[tuple[Module, _Function]]:
    """List the public methods and properties of a class, each with the module that it is in."""
    wanted = _MEMBERS.get(node.name)
    for statement in node.body:
        if not isinstance(statement, _Function) or statement.name.startswith("_"):
            continue
        is_setter = any(isinstance(each, ast.Attribute) for each in statement.decorator_list)
        if not is_setter and (wanted is None or statement.name in wanted):
            yield home, statement
    if node.name in _WITH_INHERITED:
        for base in node.bases:
            assert isinstance(base, ast.Name)
            above = home.home_of(base.id)
            definition = above.definition_of(base.id)
            assert isinstance(definition, ast.ClassDef)
            yield from _members(above, definition)


def _parameters_of_class(home: Module, node: ast.ClassDef) -> list[str]:
    """List how a class is called; empty if users do not call it, or if its attributes say it all."""
    if node.name in _CREATED_BY_US or _is_enum(node):
        return []
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _parameters(home, statement.args)
    return []


def _function(home: Module, node: _Function) -> Iterator[str]:
    decorators = [f"@{home.source_of(each)}\n" for each in node.decorator_list]
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {home.source_of(node.returns)}" if node.returns is not None else ""
    signature = _call(f"{keyword} {node.name}", _parameters(home, node.args), result)
    yield from _python("".join(decorators) + signature)
    yield from _text(ast.get_docstring(node) or "")


def _call(name: str, parameters: list[str], result: str = "") -> str:
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f"){result}"])


def _parameters(home: Module, args: ast.arguments) -> list[str]:
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(args.defaults)), *args.defaults]
    made = [_parameter(home, arg, default) for arg, default in zip(positional, defaults, strict=True)]
    if args.posonlyargs:
        made.insert(len(args.posonlyargs), "/")
    if args.vararg is not None:
        made.append(f"*{_parameter(home, args.vararg, None)}")
    elif args.kwonlyargs:
        made.append("*")
    made += [
        _parameter(home, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg is not None:
        made.append(f"**{_parameter(home, args.kwarg, None)}")
    return [each for each in made if each not in ("self", "cls")]


def _parameter(home: Module, arg: ast.arg, default: ast.expr | None) -> str:
    made = arg.arg
    if arg.annotation is not None:
        made += f": {home.source_of(arg.annotation)}"
    if default is not None:
        made += (
            f" = {home.source_of(default)}" if arg.annotation is not None else f"={home.source_of(default)}"
        )
    return made


def _enum_rows(home: Module, node: ast.ClassDef) -> Iterator[tuple[str, ...]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            meaning = _text_below(node.body, statement) or home.comment_above(statement)
            yield f"`{next(_names_of(statement))}`", f"`{home.source_of(statement.value)}`", meaning


def _attribute_rows(home: Module, node: ast.ClassDef) -> Iterator[tuple[str, ...]]:
    """List the fields of a dataclass, and the documented attributes of another class."""
    if node.name in _MEMBERS:
        return
    made_of_fields = [*node.decorator_list, *node.bases]
    has_fields = any(re.search("dataclass|Struct", home.source_of(each)) for each in made_of_fields)
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign):
            continue
        name = next(_names_of(statement))
        meaning = _text_below(node.body, statement) or home.comment_above(statement)
        if not name.startswith("_") and (has_fields or meaning):
            default = f"`{home.source_of(statement.value)}`" if statement.value is not None else ""
            yield f"`{name}`", f"`{home.source_of(statement.annotation)}`", default, meaning


def _property_rows(home: Module, members: Iterable[tuple[Module, _Function]]) -> Iterator[tuple[str, ...]]:
    for owner, member in members:
        if _is_property(member):
            assert member.returns is not None
            meaning = " ".join((ast.get_docstring(member) or "").split())
            yield f"`{member.name}`", f"`{owner.source_of(member.returns)}`", "", meaning


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    found = list(rows)
    if found:
        yield f"| {' | '.join(head)} |"
        yield "|---" * len(head) + "|"
        for row in found:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        yield ""


def _is_enum(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases)


def _is_property(node: _Function) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)


def _names_of(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _text_below(body: list[ast.stmt], node: ast.stmt) -> str:
    """Return the string that stands right below a statement, in one line."""
    below = body[body.index(node) + 1 :]
    if below and isinstance(below[0], ast.Expr) and isinstance(below[0].value, ast.Constant):
        return " ".join(str(below[0].value.value).split())
    return ""


def _python(code: str) -> Iterator[str]:
    yield from ("```python", textwrap.dedent(code), "```", "")


def _text(text: str) -> Iterator[str]:
    if text:
        yield from (inspect.cleandoc(text), "")
