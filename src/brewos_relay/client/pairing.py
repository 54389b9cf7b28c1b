"""Pairing: a device registers its key, and shows a token to its future owner."""

import io
import secrets
import ssl
from typing import Final
from urllib.parse import urlencode

import segno
import trio

from brewos_relay.client.endpoint import check_device_id, parse_url
from brewos_relay.client.http_call import post_json
from brewos_relay.client.key_store import KeyStore

_TOKEN_BYTES: Final = 24


class Pairing:
    """The pairing of a device: its id, its key, a token to show, and its registration.

    Show `pairing_url`, or its QR code, to the user at the device; it is valid for 10 minutes after a
    registration. `await register()` can be repeated; pass it to `open_device` as `register` to call it before
    the first connection.
    """

    def __init__(
        self,
        url: str,
        device_id: str,
        key_store: KeyStore,
        *,
        ssl_context: ssl.SSLContext | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        parse_url(url)
        self.device_id = check_device_id(device_id)
        self.token = generate_pairing_token()
        self._url = url.strip().rstrip("/")
        self._key_store = key_store
        self._ssl_context = ssl_context
        self._timeout_s = timeout_s

    @property
    def pairing_url(self) -> str:
        """The URL that a user opens to become the owner; it contains the token."""
        scheme, _, rest = self._url.partition("://")
        scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
        return f"{scheme}://{rest}/pair?" + urlencode({"id": self.device_id, "token": self.token})

    def qr_for_terminal(self) -> str:
        """Return the QR code of `pairing_url` as text, for the camera of a phone."""
        drawing = io.StringIO()
        segno.make_qr(self.pairing_url, error="m").terminal(drawing, compact=True)
        return drawing.getvalue()

    def renew_token(self) -> str:
        """Make a new token, for example after 10 minutes; `register` sends it to the relay."""
        self.token = generate_pairing_token()
        return self.token

    async def register(self) -> None:
        """Send the key and the token to the relay.

        Raises RelayUnreachable or RelayRefused, SettingsError for a URL without TLS that leads to another
        computer, and KeyStoreError. The answer does not reveal whether a user has the device.
        """
        keys = await trio.to_thread.run_sync(self._key_store.load)
        await post_json(
            self._url,
            "/api/devices/register-claim",
            {"deviceId": self.device_id, "token": self.token, "deviceKey": keys.newest},
            ssl_context=self._ssl_context,
            timeout_s=self._timeout_s,
        )


def generate_pairing_token() -> str:
    """Make a token to show: 192 random bits in 32 characters that need no escaping."""
    return secrets.token_urlsafe(_TOKEN_BYTES)
