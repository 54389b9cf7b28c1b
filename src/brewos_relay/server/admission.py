"""Admission: checks the credentials and rates of WebSocket requests by devices and clients."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from brewos_relay.auth.grants import grant_to, principal_of
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import hash_matches, hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.attachment import Renew
from brewos_relay.core.grant import Grant, rights_of
from brewos_relay.core.relay import Relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.errors import RegistryError, TokenRejected
from brewos_relay.networks import network_of
from brewos_relay.registry.device_keys import use_next_key
from brewos_relay.registry.pairing_proof import (
    confirm_key,
    connected_with_other_key,
    is_of_interest,
    is_recorded,
)
from brewos_relay.registry.records import Device
from brewos_relay.registry.store import Store
from brewos_relay.server.connection_rates import ConnectionRates
from brewos_relay.server.incoming import Denied
from brewos_relay.server.persistence import known_state
from brewos_relay.vocabulary import is_key, now_ms, parse_device_id, role_includes
from brewos_relay.wire.handshake import Refusal, Request

DEVICE_PATH = "/ws/device"
CLIENT_PATHS = frozenset({"/ws/client", "/ws"})

_NO_ACCESS: Final = "no_access"


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """An authenticated device; `key_hash` is the hash of the key that it presented.

    An `anonymous` device registered itself and has no user. `known_state` is its last state, if the relay
    does not have it in memory.
    """

    device_id: str
    key_hash: bytes
    network: str = ""
    anonymous: bool = False
    known_state: KnownState | None = None


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """An authenticated client with access to its device until its token expires or is renewed.

    `last_seen_ms` is the time when the device was last seen, from the registry.
    """

    device_id: str
    last_seen_ms: int | None
    expires_at_s: int
    renew: Renew
    grant: Grant
    network: str = ""


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """A client that is upgraded and then closed with 4002, which stops an app from retrying.

    Its token was rejected, or it is a page without access. `cause` is the reason code for metrics and logs.
    """

    reason: str
    cause: str = "token"


@dataclass(frozen=True, slots=True)
class TokenRenewal:
    """Accepts a new token of a client: one of the same login, with at least the same access.

    `grant` is the client's first grant. The new token does not change it, so that a token with less access
    must not extend it. The login session needs no check: its end would have closed this client.
    """

    keys: KeyRing
    store: Store
    device_id: str
    grant: Grant

    def __call__(self, token: str) -> int:
        """Return when the token expires, in s since the epoch. Raises TokenRejected."""
        claims, grant = self.keys.verify(token), self.grant
        if claims.user_id != grant.user_id:
            raise TokenRejected("the token belongs to another user")
        if claims.session_id != grant.session_id:
            raise TokenRejected("the token belongs to another session")
        principal = principal_of(claims)
        if grant.by_token and not principal.names(self.device_id):
            raise TokenRejected("the token no longer names this device")
        if not role_includes(principal.role, grant.highest_role):
            raise TokenRejected("the token has a lower role than the earlier one")
        if claims.token_id is not None and self.store.has_heard_of_revocation(claims.token_id):
            raise TokenRejected("the token has been revoked")
        if grant.credential is not None:
            grant.credential.token_id = claims.token_id
        return claims.expires_at_s


class OtherInstances(Protocol):
    """Devices on other instances, as admission needs them."""

    async def is_contested(self, device_id: str) -> bool:
        """Whether two devices on different instances use this id."""
        ...

    async def find(self, device_id: str) -> None:
        """Find a device for a client that is about to be attached, within a bounded time."""
        ...


class Admission:
    """Admits or refuses WebSocket requests. It refuses before the upgrade, except for TokenRefused.

    A device that is accepted and then dropped discards its key, so all checks come before the upgrade.

    `revision` returns how many changes of access this process has applied. A decision during which it changed
    is repeated. `others` are the other instances of a cluster.
    """

    def __init__(
        self,
        *,
        relay: Relay,
        store: Store,
        keys: KeyRing,
        proxy_trust: ProxyTrust,
        allowed_origins: Collection[str],
        revision: Callable[[], int],
        others: OtherInstances | None = None,
    ) -> None:
        self._relay = relay
        self._store = store
        self._keys = keys
        self._proxy_trust = proxy_trust
        self._allowed_origins = allowed_origins
        self._revision = revision
        self._others = others
        self._rates = ConnectionRates(relay)

    async def check(
        self, request: Request, network: str | None = None
    ) -> DeviceEntry | ClientEntry | TokenRefused:
        """Admit a request. The caller may know its `network` already. Raises Refusal."""
        if self._relay.closing:
            raise Denied("leaving", 503, "the relay is restarting", headers={"Retry-After": "5"})
        if network is None:
            network = self.network(request)
        self._rates.refuse_failing(network)
        if request.path == DEVICE_PATH:
            # A machine reconnects after 30 s, whatever the response says.
            self._rates.refuse_repeating_device(request.parameters().get("id", "").upper())
        self._rates.admit(network)
        try:
            entry = await self._check_in_time(request, network)
        except Refusal as refusal:
            # 5xx and 429 say nothing about the credentials.
            if refusal.status < 500 and refusal.status != 429:
                self._rates.count_failure(network)
            raise
        if isinstance(entry, TokenRefused):
            self._rates.count_failure(network)
        elif isinstance(entry, DeviceEntry):
            self._rates.count_device(entry.device_id)
        else:
            self._rates.count_client(entry.device_id, entry.grant)
        return entry

    def network(self, request: Request) -> str:
        """Return the network that a request comes from."""
        forwarded_for = request.headers.get("x-forwarded-for", "")
        return network_of(self._proxy_trust.address(request.peer_address, forwarded_for))

    async def _check_in_time(
        self, request: Request, network: str
    ) -> DeviceEntry | ClientEntry | TokenRefused:
        # Each wait ends by itself: a cancel scope around them takes a twentieth of an admission.
        deadline = trio.current_time() + self._relay.limits.admission_s
        with suppress(RegistryError):
            while True:
                revision = self._revision()
                entry = await self._check(request, network, deadline)
                if revision == self._revision():
                    return entry
        raise Denied("registry", 503, "the registry does not answer", headers={"Retry-After": "5"})

    async def _check(
        self, request: Request, network: str, deadline: float
    ) -> DeviceEntry | ClientEntry | TokenRefused:
        if request.path == DEVICE_PATH:
            return await self._check_device(request.parameters(), network, deadline)
        if request.path in CLIENT_PATHS:
            self._check_origin(request)
            try:
                return await self._check_client(request.parameters(), network, deadline)
            except Denied as refusal:
                # A browser does not tell a page the status of a refusal, so the page would retry forever.
                if refusal.reason != _NO_ACCESS or "origin" not in request.headers:
                    raise
                return TokenRefused(refusal.message, cause=refusal.reason)
        raise Denied("no_websocket_here", 404, "no WebSocket is served at this path")

    async def _check_device(self, parameters: dict[str, str], network: str, deadline: float) -> DeviceEntry:
        key = parameters.get("key", "")
        device_id = _device_id(parameters.get("id"), name="id")
        if not is_key(key):
            raise Denied("parameters", 400, "the parameter 'key' is missing or malformed")
        asked = self._store.ask_device(device_id)
        wants_state = not self._relay.knows_state(device_id, for_s=self._relay.limits.admission_s)
        asked_state = self._store.ask_state(device_id) if wants_state else None
        device = await asked.wait(until=deadline)
        presented_hash = hash_secret(key)
        is_current_key = hash_matches(presented_hash, device.key_hash if device is not None else None)
        next_hashes = device.next_key_hashes if device is not None else ()
        is_next_key = any(hash_matches(presented_hash, key_hash) for key_hash in next_hashes)
        if not is_current_key and not is_next_key:
            if device is None or not await self._restores_former_pairing(device, presented_hash, deadline):
                raise Denied("wrong_key", 401, "unknown device or wrong key")
            return DeviceEntry(device_id, presented_hash, network)
        if self._relay.is_contested(device_id):
            raise Denied("two_machines", 409, "another machine with this id is connected")
        if self._others is not None and await self._others.is_contested(device_id):
            raise Denied("two_machines", 409, "another machine with this id is connected")
        is_unproven = device is not None and device.unproven_since_ms is not None
        if is_next_key or is_unproven:
            await self._record_use(
                device_id, presented_hash, deadline, is_next_key=is_next_key, is_unproven=is_unproven
            )
        anonymous = device is not None and device.anonymous
        state = None
        if asked_state is not None and not anonymous:
            # With a slow registry, admit the machine without its state.
            left_s = max(0.0, deadline - trio.current_time())
            within_s = min(self._relay.limits.admission_s / 8, left_s)
            state = await known_state(asked_state, device_id, within_s=within_s)
        return DeviceEntry(device_id, presented_hash, network, anonymous, state)

    async def _record_use(
        self, device_id: str, key_hash: bytes, deadline: float, *, is_next_key: bool, is_unproven: bool
    ) -> None:
        """Record that a machine used its next key, or an unproven one. Raises Refusal if the key has ended.

        If the registry cannot be written, a machine with a valid key is admitted and the write is held. Until
        it is written, the keys before the next key remain valid.
        """
        ends_at = min(trio.current_time() + self._relay.limits.admission_s / 2, deadline)
        with suppress(RegistryError), trio.move_on_at(ends_at):
            if is_next_key and not await self._store.write(
                use_next_key, device_id, key_hash, now_ms=now_ms()
            ):
                raise Denied("wrong_key", 401, "unknown device or wrong key")
            if is_unproven:
                await self._store.write(confirm_key, device_id, key_hash)
            return
        self._store.hold_use(device_id, key_hash, "next" if is_next_key else "confirmed")

    async def _restores_former_pairing(self, device: Device, presented_hash: bytes, deadline: float) -> bool:
        """Record that a machine presented another key, if that decides who owns the device.

        Return True if the device returned to its former pairing, so that this key works now.
        """
        if not is_of_interest(device, presented_hash):
            return False
        with trio.move_on_at(deadline):
            if await self._store.read(is_recorded, device, presented_hash):
                return False
            return await self._store.write(
                connected_with_other_key, device.id, presented_hash, now_ms=now_ms()
            )
        raise RegistryError("the registry did not answer in time")

    def _check_origin(self, request: Request) -> None:
        """Refuse pages of foreign origins. Programs other than browsers send no origin."""
        origin = request.headers.get("origin")
        if origin is None:
            return
        caller = self._proxy_trust.caller(request.peer_address, request.secure, request.headers.items())
        if not self._proxy_trust.origin_allowed(origin, caller, self._allowed_origins):
            raise Denied("origin", 403, "pages of this origin may not connect")

    async def _check_client(
        self, parameters: dict[str, str], network: str, deadline: float
    ) -> ClientEntry | TokenRefused:
        token = parameters.get("token")
        if not token:
            raise Denied("parameters", 400, "the parameter 'token' is missing")
        device_id = _device_id(parameters.get("device"), name="device")
        try:
            claims = self._keys.verify(token)
        except TokenRejected as error:
            return TokenRefused(str(error))
        principal = principal_of(claims)
        by_token = principal.names(device_id)
        self._rates.refuse_repeating_client(claims.user_id, device_id, by_token=by_token)
        store, session_id, token_id = self._store, claims.session_id, claims.token_id
        asked_session = store.ask_session(session_id) if session_id is not None else None
        asked_revoked = store.ask_revoked(token_id) if token_id is not None else None
        asked_access = store.ask_access(claims.user_id, device_id) if not by_token else None
        asked_device = store.ask_device(device_id)
        if asked_session is not None:
            session = await asked_session.wait(until=deadline)
            if session is None or session.user_id != claims.user_id:
                return TokenRefused("the session has ended")
        if asked_revoked is not None and await asked_revoked.wait(until=deadline) is not None:
            return TokenRefused("the token has been revoked")
        access = await asked_access.wait(until=deadline) if asked_access is not None else None
        rights = rights_of(principal, device_id, access)
        if rights is None:
            raise Denied(_NO_ACCESS, 403, "no access to this device")
        grant = grant_to(principal, rights)
        device = await asked_device.wait(until=deadline)
        if self._others is not None:
            await self._others.find(device_id)
        # The last check, so that no other client attaches in between.
        if limit := self._relay.reached_client_limit(device_id, grant):
            message = f"too many clients of {limit} are connected"
            raise Denied("too_many_clients", 429, message, headers={"Retry-After": "5"})
        return ClientEntry(
            device_id,
            device.last_seen_ms if device is not None else None,
            claims.expires_at_s,
            TokenRenewal(self._keys, self._store, device_id, grant),
            grant,
            network,
        )


def _device_id(text: str | None, *, name: str) -> str:
    try:
        return parse_device_id(text or "")
    except ValueError:
        raise Denied(
            "parameters", 400, f"the parameter '{name}' must be BRW- and 8 hexadecimal digits"
        ) from None
