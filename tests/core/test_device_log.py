from typing import Any

import msgspec
import pytest

from brewos_relay.core import device_log
from brewos_relay.core.device_log import MOST_BYTES, MOST_LINES, DeviceLog, LogConfig
from brewos_relay.messages import Message, encode


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_log, "now_ms", lambda: 1_700_000_000_000)


def log_message(text: Any = "Pump on", **changed: Any) -> Message:
    content = {"type": "log", "level": "info", "source": "esp32", "timestamp": 5, "message": text}
    return encode({**content, **changed})


def config(*, enabled: Any) -> Message:
    return encode({"type": "log_config", "enabled": enabled, "picoEnabled": True, "size": 3})


def switched_on() -> DeviceLog:
    log = DeviceLog()
    log.take_config(config(enabled=True), now=7.0)
    return log


def test_lines_have_time_level_source_and_message() -> None:
    log = switched_on()
    log.append(log_message("Pump\r\non"))
    log.append(Message(msgspec.msgpack.encode({"type": "log", "message": "Binary ☕"}), is_text=False))
    log.append(encode({"type": "log", "level": 3}))
    log.append(Message(b"[]", is_text=True))
    log.append(Message(b"{", is_text=True))
    assert log.lines() == [
        "2023-11-14T22:13:20.000Z info esp32: Pump on",
        "2023-11-14T22:13:20.000Z ? ?: Binary ☕",
        "2023-11-14T22:13:20.000Z 3 ?: ?",
    ]


def test_lines_are_kept_only_while_logging_is_on() -> None:
    log = DeviceLog()
    log.append(log_message("before"))
    log.take_config(config(enabled=True), now=1.0)
    assert (log.config, log.config_at) == (LogConfig(enabled=True, pico=True, debug=False), 1.0)
    log.append(log_message("during"))
    for off in (config(enabled="true"), Message(b"[]", is_text=True)):
        log.take_config(off, now=2.0)
        log.append(log_message("after"))
    assert [line.rpartition(": ")[2] for line in log.lines()] == ["during"]
    log.clear()
    assert (log.lines(), log.size_bytes) == ([], 0)


def test_ring_is_bounded_in_bytes_and_lines() -> None:
    log = switched_on()
    for number in range(MOST_LINES + 5):
        log.append(encode({"n": number}))
    assert len(log.lines()) == MOST_LINES
    for number in range(100):
        log.append(log_message(f"{number}" + "x" * 2000))
        assert log.size_bytes <= MOST_BYTES
    assert log.size_bytes > MOST_BYTES - 2200
    assert log.lines()[-1].startswith("2023-11-14T22:13:20.000Z info esp32: 99x")
    log.append(log_message("x" * MOST_BYTES))
    assert len(log.lines()[-1]) < 3000
