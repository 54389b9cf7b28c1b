"""Who may come in: from the request of a WebSocket to a device or a client of the relay."""

import functools
from dataclasses import dataclass

import trio

from brewos_relay.auth.access import claims_name_device
from brewos_relay.auth.keys import key_matches, parse_device_id, valid_key
from brewos_relay.auth.tokens import Claims, TokenSigner
from brewos_relay.core.attachment import Renew
from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError, TokenRejected
from brewos_relay.registry.store import Store
from brewos_relay.wire.handshake import Refusal, Request

DEVICE_PATH = "/ws/device"
CLIENT_PATHS = frozenset({"/ws/client", "/ws"})


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A device that has proved itself."""

    device_id: str


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """A client that may reach its device, until its token ends or a fresh one takes its place.

    `last_seen_ms` is what the registry knows of the device.
    """

    device_id: str
    last_seen_ms: int | None
    expires_at_s: int
    renew: Renew


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """A client whose token is no good. It is let in and closed with 4002, which is what makes an app stop."""

    reason: str


class Admission:
    """Decides about requests for a WebSocket; everything it says no to is a Refusal before the upgrade.

    A device that is accepted and then dropped throws its key away, so it is checked completely beforehand.
    """

    def __init__(self, *, relay: Relay, store: Store, tokens: TokenSigner) -> None:
        self._relay = relay
        self._store = store
        self._tokens = tokens

    async def check(self, request: Request) -> DeviceEntry | ClientEntry | TokenRefused:
        """Decide about a request. Raises Refusal."""
        if self._relay.closing:
            raise Refusal(503, "the relay is restarting", headers={"Retry-After": "5"})
        if not self._relay.admits():
            raise Refusal(503, "too many connections at once", headers={"Retry-After": "5"})
        try:
            with trio.fail_after(self._relay.limits.admission_s):
                if request.path == DEVICE_PATH:
                    return await self._check_device(request.parameters())
                if request.path in CLIENT_PATHS:
                    return await self._check_client(request.parameters())
        except (RegistryError, trio.TooSlowError):
            raise Refusal(503, "the registry does not answer", headers={"Retry-After": "5"}) from None
        raise Refusal(404, "no WebSocket is served at this path")

    async def _check_device(self, parameters: dict[str, str]) -> DeviceEntry:
        key = parameters.get("key", "")
        device_id = _device_id(parameters.get("id"), name="id")
        if not valid_key(key):
            raise Refusal(400, "the parameter 'key' is missing or malformed")
        device = await self._store.find_device(device_id)
        if not key_matches(key, device.key_hash if device is not None else None):
            raise Refusal(401, "unknown device or wrong key")
        if self._relay.is_contested(device_id):
            raise Refusal(409, "another machine with this id is connected")
        return DeviceEntry(device_id)

    async def _check_client(self, parameters: dict[str, str]) -> ClientEntry | TokenRefused:
        token = parameters.get("token")
        if not token:
            raise Refusal(400, "the parameter 'token' is missing")
        device_id = _device_id(parameters.get("device"), name="device")
        try:
            claims = self._tokens.verify(token)
        except TokenRejected as error:
            return TokenRefused(str(error))
        if not claims_name_device(claims, device_id) and not await self._store.user_has_device(
            claims.user_id, device_id
        ):
            raise Refusal(403, "no access to this device")
        device = await self._store.find_device(device_id)
        return ClientEntry(
            device_id,
            device.last_seen_ms if device is not None else None,
            claims.expires_at_s,
            functools.partial(self._renew, claims, device_id),
        )

    def _renew(self, earlier: Claims, device_id: str, token: str) -> int:
        """Take a fresh token of the same user that reaches as far; raises TokenRejected."""
        claims = self._tokens.verify(token)
        if claims.user_id != earlier.user_id:
            raise TokenRejected("the token is another user's")
        if claims_name_device(earlier, device_id) and not claims_name_device(claims, device_id):
            raise TokenRejected("the token does not name this device any more")
        return claims.expires_at_s


def _device_id(text: str | None, *, name: str) -> str:
    try:
        return parse_device_id(text or "")
    except ValueError:
        raise Refusal(400, f"the parameter '{name}' must be BRW- and 8 hexadecimal digits") from None
