"""Tests of the public names of brewos_relay.client."""

import importlib
import subprocess
import sys
from typing import Any

import pytest

from brewos_relay import client

PUBLIC = [
    "FULL_ONLY",
    "THRESHOLDS",
    "App",
    "Command",
    "ConnectionEnded",
    "Deltas",
    "Device",
    "DeviceState",
    "History",
    "KeyStore",
    "KeyStoreError",
    "LinkState",
    "LinkStatus",
    "LinkStopped",
    "NothingKnown",
    "Outcome",
    "Pairing",
    "RelayRefused",
    "RelayUnreachable",
    "SessionFile",
    "SignInEnded",
    "generate_device_id",
    "generate_key",
    "open_app",
    "open_device",
]

CHILD_S = 20


def loaded_by(code: str) -> set[str]:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=CHILD_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return set(child.stdout.split())


def test_list_of_public_names() -> None:
    assert client.__all__ == PUBLIC
    assert dir(client) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_resolves_to_its_module(name: str) -> None:
    (module,) = (module for module, names in client._HOME.items() if name in names)
    public: Any = getattr(client, name)
    assert public is getattr(importlib.import_module(f".{module}", "brewos_relay.client"), name)
    assert public.__doc__ or name in ("THRESHOLDS", "FULL_ONLY")


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'brewos_relay\.client' has no attribute 'Proxy'"):
        client.Proxy  # noqa: B018


def test_import_alone_loads_no_large_package() -> None:
    assert not {"trio", "msgspec", "segno", "h11", "trio_websocket"} & loaded_by("import brewos_relay.client")


def test_sdk_loads_no_server_package() -> None:
    others = {"sqlalchemy", "quart", "quart_trio", "hypercorn", "click", "jwt", "dotenv"}
    loaded = loaded_by("from brewos_relay.client import *")
    assert "trio_websocket" in loaded
    assert not others & loaded
    assert "segno" not in loaded_by("from brewos_relay.client import open_device")
