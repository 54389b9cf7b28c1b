from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from brewos_relay.api import device_logs
from brewos_relay.core.device_log import DeviceLog
from brewos_relay.live_devices import LogAction, LogView
from brewos_relay.messages import Message, encode
from support.household import MACHINE, Answer, Household, PlainRelay

INFO = f"/logs/info?device={MACHINE}"
LOG = f"/logs?device={MACHINE}"
BOUNDARY = "----WebKitFormBoundary7MA4YWxk"


def config(**told: Any) -> Message:
    return encode({"type": "log_config", "enabled": True, "picoEnabled": False, "debugEnabled": True, **told})


def log_of(*lines: str, at: float = 0.0) -> DeviceLog:
    log = DeviceLog()
    log.take_config(config(), now=at)
    for line in lines:
        log.append(encode({"type": "log", "level": "info", "source": "esp32", "message": line}))
    return log


def sent(house: Household) -> list[dict[str, Any]]:
    """Return the commands that were sent to the machine."""
    assert {device_id for device_id, _ in house.relay.sent} <= {MACHINE}
    return [msgspec.json.decode(message.payload) for _, message in house.relay.sent]


def form(*fields: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in fields
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


async def post_form(house: Household, path: str, body: bytes, *, by: str = "ada") -> tuple[int, Any]:
    response = await house.app.test_client().post(
        f"/api{path}",
        data=body,
        headers={
            "Authorization": f"Bearer {await house.signed_in(by)}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        },
    )
    return response.status_code, await response.get_json()


def answering(relay: PlainRelay, answer: Callable[[str], None]) -> None:
    """Let the machine answer each command."""
    send = relay.send_to_device

    async def send_and_answer(device_id: str, message: Message) -> Any:
        outcome = await send(device_id, message)
        answer(msgspec.json.decode(message.payload)["cmd"])
        return outcome

    relay.send_to_device = send_and_answer  # type: ignore[method-assign]


async def test_info_asks_the_machine_and_answers_in_the_apps_format(house: Household) -> None:
    def tell(_cmd: str) -> None:
        house.relay.logs[MACHINE] = log_of("one", at=trio.current_time())

    answering(house.relay, tell)
    answer = await house.ask("GET", INFO)
    assert answer.status == 200, answer.content
    log = house.relay.logs[MACHINE]
    assert answer.content == {
        "enabled": True,
        "size": log.size_bytes,
        "maxSize": 65536,
        "picoForwarding": False,
        "debugLogs": True,
    }
    assert sent(house) == [{"type": "command", "cmd": "get_log_config"}]
    # The app reads this every 10 s on each open page; fresh settings are not asked for again.
    await house.ask("GET", INFO)
    assert len(sent(house)) == 1


async def test_machine_that_does_not_answer_delays_info_by_less_than_the_apps_timeout(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_logs.WAIT_S < 2  # the service worker of the app waits for 3 s
    monkeypatch.setattr(device_logs, "WAIT_S", 0.2)
    assert (await house.ask("GET", INFO)).status == 503
    house.relay.logs[MACHINE] = log_of("old", at=trio.current_time() - 60)
    answer = await house.ask("GET", INFO)
    assert answer.content["enabled"] is True


async def test_offline_machine_is_a_503_or_its_last_settings(house: Household) -> None:
    house.relay.outcome = "device_offline"
    answer = await house.ask("GET", INFO)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
    house.relay.logs[MACHINE] = log_of("old", at=trio.current_time() - 60)
    assert (await house.ask("GET", INFO)).status == 200
    assert (await house.ask("DELETE", LOG)).status == 503


async def test_log_is_downloaded_as_text(house: Household) -> None:
    async def read() -> tuple[str, str]:
        headers = {"Authorization": f"Bearer {await house.signed_in('ada')}"}
        response = await house.app.test_client().get(f"/api{LOG}", headers=headers)
        assert response.status_code == 200
        return response.content_type, await response.get_data(as_text=True)

    assert await read() == ("text/plain; charset=utf-8", "")
    house.relay.logs[MACHINE] = log_of("Pump on", "Pump off")
    lines = (await read())[1].splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["info esp32: Pump on", "info esp32: Pump off"]


async def test_clearing_empties_the_ring_and_the_machines_log(house: Household) -> None:
    house.relay.logs[MACHINE] = log_of("Pump on")
    assert (await house.ask("DELETE", LOG)).content == {"success": True}
    assert house.relay.logs[MACHINE].lines() == []
    assert sent(house) == [{"type": "command", "cmd": "clear_logs"}]


@pytest.mark.parametrize(
    ("path", "field"), [("enable", "enabled"), ("pico", "picoEnabled"), ("debug", "debugEnabled")]
)
async def test_switches_become_the_machines_commands(house: Household, path: str, field: str) -> None:
    url = f"/logs/{path}?device={MACHINE}"
    assert await post_form(house, url, form(("enabled", b"true"))) == (200, {"success": True})
    assert await post_form(house, url, form(("x", b"\xff"), ("enabled", b"false"))) == (
        200,
        {"success": True},
    )
    assert (await house.ask("POST", url, {"enabled": True})).status == 200
    switches = [command for command in sent(house) if command["cmd"] == "set_log_config"]
    assert switches == [{"type": "command", "cmd": "set_log_config", field: on} for on in (True, False, True)]
    assert len(sent(house)) == 6


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"enabled=true",
        form(("enabled", b"yes")),
        form(("enabled", b"\xff")),
        form(("other", b"true")),
        form(("enabled", b"true"), boundary="another"),
        form(*[("x", b"")] * 100, ("enabled", b"true")),
        b"--" + BOUNDARY.encode() + b"\r\n\r\n\xff\r\n",
    ],
)
async def test_malformed_form_is_a_400(house: Household, body: bytes) -> None:
    status, content = await post_form(house, f"/logs/enable?device={MACHINE}", body)
    assert (status, sent(house)) == (400, [])
    assert "enabled" in content["error"]


@pytest.mark.parametrize("role", ["viewer", "member"])
async def test_only_owners_configure_and_clear_the_log(house: Household, role: Any) -> None:
    await house.give("ben", role)
    house.relay.logs[MACHINE] = log_of("Pump on", at=trio.current_time())
    assert (await house.ask("GET", INFO, by="ben")).status == 200
    for path in ("enable", "pico", "debug"):
        url = f"/logs/{path}?device={MACHINE}"
        assert (await post_form(house, url, form(("enabled", b"true")), by="ben"))[0] == 403
    assert (await house.ask("DELETE", LOG, by="ben")).status == 403
    assert (len(house.relay.logs[MACHINE].lines()), sent(house)) == (1, [])


@pytest.mark.parametrize("path", [INFO, LOG, "/logs/info?device=BRW-FFFFFFFF"])
async def test_strangers_learn_nothing(house: Household, path: str) -> None:
    house.relay.logs[MACHINE] = log_of("Pump on")
    answer: Answer = await house.ask("GET", path, by="mallory")
    assert (answer.status, sent(house)) == (404, [])
    assert (await house.ask("GET", path, by=None)).status == 401


async def test_device_is_a_required_parameter(house: Household) -> None:
    assert (await house.ask("GET", "/logs/info")).status == 400


async def test_settings_that_changed_meanwhile_are_used(house: Household) -> None:
    # On another instance, the answer arrives between two looks.
    looks = iter([None, None, LogView(log_of().config, 0.0, 7)])

    async def look(_device_id: str, _action: LogAction) -> LogView | None:
        return next(looks)

    house.relay.log_of = look  # type: ignore[method-assign, assignment]
    assert (await house.ask("GET", INFO)).content["size"] == 7
