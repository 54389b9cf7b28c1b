import importlib.metadata

import pytest
from quart_trio import QuartTrio

from brewos_relay.api import info


async def test_info_tells_an_app_all_that_it_needs(app: QuartTrio) -> None:
    response = await app.test_client().get("/api/info")
    assert response.status_code == 200
    answer = await response.get_json()
    assert answer["mode"] == "cloud"
    assert answer["apiVersion"] >= 1
    assert {"temperature_control", "power_monitoring"} <= set(answer["features"])
    assert answer["firmwareVersion"] is None
    assert answer["webVersion"] is None
    assert answer["relayVersion"]


async def test_mode_is_cloud(app: QuartTrio) -> None:
    response = await app.test_client().get("/api/mode")
    assert await response.get_json() == {"mode": "cloud", "apMode": False}


@pytest.mark.parametrize("found", [True, False])
def test_own_version_is_that_of_the_package_if_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    def version(name: str) -> str:
        if not found:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(info, "version", version)
    assert info._own_version() == ("1.2.3" if found else "0+unknown")
