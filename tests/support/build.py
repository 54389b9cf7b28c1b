"""The build under test: compiled or interpreted."""

import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def compiled_modules() -> dict[str, str]:
    """Return the modules of a compiled build, and why each is compiled."""
    wheel: dict[str, Any] = tomllib.loads(_PROJECT.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    modules: dict[str, str] = wheel["hooks"]["custom"]["modules"]
    return modules


def builds() -> dict[str, str]:
    """Return for each of these modules whether Python loads it compiled or interpreted."""
    found = {}
    for name in compiled_modules():
        spec = find_spec(name)
        assert spec is not None
        is_compiled = (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
        found[name] = "compiled" if is_compiled else "interpreted"
    return found


def check_build(wanted: str | None) -> str | None:
    """Return why the tests cannot run on the wanted build, or None. With None, every build will do."""
    if wanted is None:
        return None
    other = [name for name, build in builds().items() if build != wanted]
    if not other:
        return None
    return f"BREWOS_RELAY_BUILD_TESTS is {wanted}, but these modules are not: {', '.join(other)}"
