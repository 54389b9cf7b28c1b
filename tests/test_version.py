import importlib.metadata

import pytest

from brewos_relay import version as module


@pytest.mark.parametrize("found", [True, False])
def test_installed_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    def version(name: str) -> str:
        if not found:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(module, "version", version)
    assert module.installed_version() == ("1.2.3" if found else "0+unknown")
