"""An app's end of the connection, and what goes over it in readable form."""

import math
import ssl
import struct
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlencode

import msgspec

from brewos_relay.client.connection import WebSocket, open_websocket
from brewos_relay.messages import Message


def open_app(
    url: str,
    *,
    token: str,
    device_id: str,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> AbstractAsyncContextManager[WebSocket]:
    """Attach an app to the device `device_id`.

    Raises what `open_websocket` raises. A token that is no good is told afterwards, by a close with 4002.
    """
    return open_websocket(
        url,
        "/ws/client?" + urlencode({"token": token, "device": device_id}),
        ssl_context=ssl_context,
        timeout_s=timeout_s,
    )


def decode(message: Message) -> dict[str, Any] | None:
    """Decode a message, JSON or MessagePack; None if it is no object (or map) with text keys."""
    codec = msgspec.json if message.is_text else msgspec.msgpack
    try:
        content = codec.decode(message.payload, type=dict[str, Any])
        return {key: _shortened(value) for key, value in content.items()}
    except (msgspec.MsgspecError, RecursionError):
        return None


def _shortened(value: Any) -> Any:
    """Give back numbers as the machine meant them: 93.2, not the 93.19999694824219 of its float32."""
    if isinstance(value, float) and abs(value) < 1e7 and math.isfinite(value):
        (single,) = struct.unpack("f", struct.pack("f", value))
        return float(f"{value:.7g}") if single == value else value
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return value
