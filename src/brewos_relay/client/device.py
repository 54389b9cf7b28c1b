"""A machine's end of the connection."""

import ssl
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import urlencode

from brewos_relay.client.connection import WebSocket, open_websocket

#: The largest message that a machine reads; a larger one makes it close the connection (1009).
MAX_MESSAGE_BYTES: Final = 15 * 1024


def open_device(
    url: str,
    *,
    device_id: str,
    key: str,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 20.0,
) -> AbstractAsyncContextManager[WebSocket]:
    """Connect to a relay as the device `device_id`, with the request headers that machines send.

    Raises what `open_websocket` raises; a relay refuses a device with 400, 401 or 503.
    """
    return open_websocket(
        url,
        "/ws/device?" + urlencode({"id": device_id, "key": key}),
        subprotocols=("arduino",),
        headers=((b"Origin", b"file://"), (b"User-Agent", b"arduino-WebSocket-Client")),
        ssl_context=ssl_context,
        timeout_s=timeout_s,
        max_message_bytes=MAX_MESSAGE_BYTES,
    )
