"""The last log lines of one device, kept while its logging is switched on."""

from collections import deque
from typing import Any, Final

import msgspec

from brewos_relay.core.merging import readable_content
from brewos_relay.messages import Message
from brewos_relay.vocabulary import iso_time, now_ms

MOST_BYTES: Final = 64 * 1024
MOST_LINES: Final = 1000


class LogConfig(msgspec.Struct, frozen=True, gc=False):
    """What a device said last about its logging."""

    enabled: bool = False
    pico: bool = False
    debug: bool = False


class DeviceLog:
    """A ring of log lines, bounded in bytes and lines, and the last known log settings of the device.

    Nothing is decoded until the lines are read.
    """

    __slots__ = ("_lines", "config", "config_at", "size_bytes")

    def __init__(self) -> None:
        self._lines: deque[tuple[int, Message]] = deque()
        self.size_bytes = 0
        """The size of the kept messages."""
        self.config = LogConfig()
        self.config_at = 0.0
        """When the device sent its settings (trio time)."""

    def take_config(self, message: Message, now: float) -> None:
        """Take a message with the log settings of the device."""
        content = readable_content(message)
        told: dict[str, Any] = content if isinstance(content, dict) else {}
        self.config = LogConfig(
            told.get("enabled") is True, told.get("picoEnabled") is True, told.get("debugEnabled") is True
        )
        self.config_at = now

    def append(self, message: Message) -> None:
        """Keep a log message, unless logging is switched off. The oldest ones give way."""
        if not self.config.enabled or len(message.payload) > MOST_BYTES:
            return
        self._lines.append((now_ms(), message))
        self.size_bytes += len(message.payload)
        while self.size_bytes > MOST_BYTES or len(self._lines) > MOST_LINES:
            _, oldest = self._lines.popleft()
            self.size_bytes -= len(oldest.payload)

    def clear(self) -> None:
        """Forget the lines."""
        self._lines.clear()
        self.size_bytes = 0

    def lines(self) -> list[str]:
        """Return the kept lines as text, the oldest first: time, level, source and message."""
        return [line for at_ms, message in self._lines if (line := _line(at_ms, message)) is not None]


def _line(at_ms: int, message: Message) -> str | None:
    content = readable_content(message)
    if not isinstance(content, dict):
        return None
    level, source, text = (str(content.get(name, "?")) for name in ("level", "source", "message"))
    return f"{iso_time(at_ms)} {level} {source}: {' '.join(text.splitlines())}"
