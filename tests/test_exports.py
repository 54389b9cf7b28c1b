import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import brewos_relay

PUBLIC = [
    "BREWOS",
    "NEUTRAL",
    "Attachment",
    "ClientAttachment",
    "CloseCode",
    "CommandClass",
    "Counters",
    "Delivery",
    "DeviceAttachment",
    "Dialect",
    "Grant",
    "Limits",
    "MemoryEnd",
    "MemoryPeer",
    "Message",
    "Peer",
    "PeerGone",
    "Receive",
    "Relay",
    "RelayClosing",
    "RelayError",
    "Rule",
    "Tasks",
    "memory_peer",
    "open_relay",
]

CHILD_S = 20


def _run_python(code: str) -> str:
    """Run code in another Python, where every warning is an error; return its output."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=CHILD_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_public_names_are_these() -> None:
    assert brewos_relay.__all__ == PUBLIC
    assert dir(brewos_relay) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves_to_the_one_of_its_module(name: str) -> None:
    public: Any = getattr(brewos_relay, name)
    home = importlib.import_module(_home(name))
    assert public is getattr(home, name)


def _home(name: str) -> str:
    (module,) = (module for module, names in brewos_relay._HOME.items() if name in names)
    return f"brewos_relay.{module}"


def test_every_public_name_has_a_docstring() -> None:
    for name in set(PUBLIC) - {"Receive"}:  # an alias of a type has none
        assert getattr(brewos_relay, name).__doc__


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'brewos_relay' has no attribute 'Proxy'"):
        brewos_relay.Proxy  # noqa: B018


def test_the_import_alone_loads_nothing_that_is_large() -> None:
    large = {"trio", "sqlalchemy", "quart", "quart_trio", "hypercorn", "click", "msgspec", "jwt", "dotenv"}
    loaded = _run_python("import brewos_relay, sys; print(*sys.modules)").split()
    assert "brewos_relay" in loaded
    assert not large & set(loaded)


def test_the_library_needs_neither_http_nor_sql() -> None:
    others = {"sqlalchemy", "quart", "quart_trio", "hypercorn", "click", "jwt", "dotenv", "trio_websocket"}
    loaded = _run_python("from brewos_relay import *; import sys; print(*sys.modules)").split()
    assert "trio" in loaded
    assert not others & set(loaded)


def test_a_star_import_gives_the_public_names() -> None:
    printed = _run_python("from brewos_relay import *; print(*sorted(n for n in dir() if n[0] != '_'))")
    assert printed.split() == sorted(PUBLIC)


def test_the_package_is_typed() -> None:
    assert (Path(brewos_relay.__path__[0]) / "py.typed").is_file()


def test_every_module_has_a_docstring_and_every_package_is_on_the_map() -> None:
    source = Path(brewos_relay.__path__[0], "__init__.py").read_text()
    package_map = "".join(line for line in source.splitlines(keepends=True) if line.startswith("#"))
    for module in pkgutil.iter_modules(brewos_relay.__path__):
        if not module.name.startswith("_"):
            assert f" {module.name} " in package_map
