"""The tables of settings, made from the fields of Settings and Limits and their docstrings."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

import click

from brewos_relay.cli import cli
from brewos_relay.core.limits import Limits
from brewos_relay.settings import FIRST_LIMITS, Settings, variable_names
from brewos_relay.settings.server_limits import ServerLimits

_GROUP: Final = re.compile(r"^    # (?P<name>\S.*)$")
_UNITS: Final = {"_s": "seconds", "_bytes": "bytes"}
_HEAD: Final = ["| Variable | Option | Default | Unit | Meaning |", "|---|---|---|---|---|"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of Settings or ServerLimits. `group` is the comment above it, `meaning` its docstring."""

    name: str
    group: str
    default: object
    meaning: str


def settings_of(kind: type[Any]) -> Iterator[Setting]:
    """List the settings of a dataclass in the order of its fields."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    groups = {number: match["name"] for number, line in enumerate(lines, 1) if (match := _GROUP.match(line))}
    defaults = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(kind)
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        above = [name for number, name in groups.items() if number < statement.lineno]
        name = statement.target.id
        yield Setting(name, above[-1] if above else "", defaults[name], _text(below))


def _text(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def groups() -> list[str]:
    """List the groups of settings; each is a heading of the page."""
    return list(dict.fromkeys(setting.group for setting in settings_of(Settings) if setting.name != "limits"))


def table_of(group: str) -> str:
    """Make the table of one group of settings; KeyError if there is no such group."""
    found = [each for each in settings_of(Settings) if each.group == group and each.name != "limits"]
    if not found:
        raise KeyError(f"no group of settings is called {group!r}")
    return "\n".join([*_HEAD, *map(_row, found)])


def table_of_limits(which: str) -> str:
    """Make the table of the `first` limits, or of the `advanced` ones."""
    if which not in ("first", "advanced"):
        raise KeyError(f"no limits are {which!r}; choose first or advanced")
    limits = {each.name: each for each in (*settings_of(Limits), *settings_of(ServerLimits))}
    first = [limits.pop(name) for name in FIRST_LIMITS]
    return "\n".join([*_HEAD, *map(_row, first if which == "first" else limits.values())])


def written(value: object) -> str:
    """Write a value as in an environment variable."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _row(setting: Setting) -> str:
    if setting.default is None:
        default = "not set"
    else:
        default = f"`{written(setting.default)}`" if setting.default not in ("", ()) else "empty"
    cells = (
        ", ".join(f"`{variable}`" for variable in variable_names(setting.name)),
        _options().get(setting.name, ""),
        default,
        next((unit for end, unit in _UNITS.items() if setting.name.endswith(end)), ""),
        setting.meaning.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def _options() -> dict[str, str]:
    serve = cli.commands["serve"]
    return {
        str(param.name): f"`{param.opts[0]}`" for param in serve.params if isinstance(param, click.Option)
    }
