"""One connection to a relay, as a device or as an app: what each asks for in its upgrade."""

import ssl
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import urlencode

from brewos_relay.client.connection import WebSocket, open_websocket

#: The largest message that a machine reads; a larger one makes it close the connection (1009).
DEVICE_MESSAGE_BYTES: Final = 15 * 1024


def dial_device(
    url: str,
    *,
    device_id: str,
    key: str,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 20.0,
) -> AbstractAsyncContextManager[WebSocket]:
    """Connect to a relay as the device `device_id`, with the request headers that machines send.

    Raises what `open_websocket` raises; a relay refuses a device with 400, 401, 409 or 503.
    """
    return open_websocket(
        url,
        "/ws/device?" + urlencode({"id": device_id, "key": key}),
        subprotocols=("arduino",),
        headers=((b"Origin", b"file://"), (b"User-Agent", b"arduino-WebSocket-Client")),
        ssl_context=ssl_context,
        timeout_s=timeout_s,
        max_message_bytes=DEVICE_MESSAGE_BYTES,
    )


def dial_app(
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
