"""Pairing: a machine registers the token on its screen, and a user with that token gets the machine.

On the wire, pairing is called "claim".
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import trio
from quart import Blueprint, Response, request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import Authenticator, Requester, current_caller
from brewos_relay.api.fair_queue import FairQueue
from brewos_relay.api.hashing import hash_in_thread
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, ShortText, body_of, checked_name, json_answer
from brewos_relay.api.request_limits import FairRate, RequestLimits
from brewos_relay.auth.secrets import hash_code, hash_secret, normalise_code, secret_matches
from brewos_relay.errors import PairingClosed, RegistryBusy, RegistryError, TooManyNewDevices
from brewos_relay.networks import network_of, networks_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.pairing import HeldPairing, pair_device, register_pairing
from brewos_relay.registry.records import PairingResult
from brewos_relay.registry.sharing import accept_share, accept_share_code
from brewos_relay.texts import NAME_CHARS
from brewos_relay.vocabulary import DEVICE_ID, Role, now_ms, parse_device_id

PAIRING_TOKEN_MS: Final = 10 * 60_000
"""How long a machine shows a token before it makes another."""

_REGISTERING_PLACES: Final = 1024
"""Waiting registrations. A whole street registers at once; a refused machine retries after 30 s."""
_REGISTERED_PER_S: Final = 10.0
_REGISTERED_AT_ONCE: Final = 1000.0
_REGISTERED_RESERVE_S: Final = 20.0
"""Limits of written registrations, for all networks. A machine with a working key does not depend on them."""
_FULL_S: Final = 60.0
"""How long new ids of a network over its quota are refused without a write."""
_FULL_KEPT: Final = 4096
_PAIRING_PLACES: Final = 128
_WAIT_S: Final = 6.0
"""How long a request waits in a queue. A machine gives up after 10 s."""

HASHING_AT_ONCE: Final = 2
"""How many codes are hashed at a time. Each takes 16 MiB of memory and 30 ms of a processor."""

_KNOWN_S: Final = 3.0
"""How long a machine with a working key waits for its token to be stored. Then memory holds the token."""
_BUSY: Final = "the registry is busy"

_CLOSED: Final = "This server accepts no new machines at the moment."
_TOO_MANY: Final = "Too many new machines were registered from this network. Try again tomorrow."
# One answer for wrong, unknown, expired and used codes, and for those of other users.
_INVALID_CODE: Final = "This code is not valid, or it has expired. Get a new one and try again."

_END: Final = r"$(?!\n)"  # in Python, `$` also matches before a final line end
_Id = Annotated[str, msgspec.Meta(pattern=f"^{DEVICE_ID.pattern}{_END}")]
_Token = Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{16,128}}{_END}")]
_Key = Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{32,128}}{_END}")]


class Registration(msgspec.Struct, rename="camel"):
    """The registration of a device: its id, the token on its screen, and its key."""

    device_id: _Id
    token: _Token
    device_key: _Key


class Claim(msgspec.Struct, rename="camel"):
    """The id and token from a screen or link. A typed short code is sent as `deviceId`, without a token."""

    device_id: ShortText
    token: ShortText
    name: ShortText | None = None


class ClaimedAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """The paired device, and the role of the user."""

    success: bool = True
    device_id: str
    name: str
    role: Role


@dataclass(kw_only=True, eq=False)
class PairingRoutes:
    """The routes of pairing: devices register a token, users pair a device or accept a share."""

    store: Registry
    authenticator: Authenticator
    request_limits: RequestLimits
    accounts: AccountRules

    def __post_init__(self) -> None:
        self._hashing = FairQueue("codes", at_once=HASHING_AT_ONCE, places=_PAIRING_PLACES, wait_s=_WAIT_S)
        # One write of each kind at a time, so that a flood of them cannot delay other writes.
        self._registering = FairQueue("registrations", at_once=1, places=_REGISTERING_PLACES, wait_s=_WAIT_S)
        self._pairing_queue = FairQueue("claims", at_once=1, places=_PAIRING_PLACES, wait_s=_WAIT_S)
        self._capacity = FairRate(
            "registrations",
            rate_per_s=_REGISTERED_PER_S,
            burst=_REGISTERED_AT_ONCE,
            reserve_s=_REGISTERED_RESERVE_S,
        )
        self._full = FullNetworks()

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "pairing",
            {
                "POST /api/devices/register-claim": self.register,
                "POST /api/devices/claim": self.claim_device,
                "POST /api/devices/claim-share": self.claim_shared_device,
            },
        )

    @described(
        "Register the token on the screen of a device; devices call this",
        answer=Done,
        body=Registration,
        needs_token=False,
        refusals=[403],
    )
    async def register(self) -> Response:
        body = await body_of(request, Registration)
        device_id = parse_device_id(body.device_id)
        await _admit_machine(device_id, body.device_key, store=self.store, request_limits=self.request_limits)
        at_ms = now_ms()
        network = network_of(current_caller().address)
        shown = HeldPairing(
            device_id=device_id,
            key_hash=hash_secret(body.device_key),
            token_hash=hash_secret(body.token),
            expires_at_ms=at_ms + PAIRING_TOKEN_MS,
            networks=networks_of(network),
        )
        # A machine with a working key gets 200 even if the registry cannot store its token.
        known = await _key_works(device_id, body.device_key, store=self.store)
        try:
            with trio.move_on_after(_KNOWN_S if known else math.inf) as writing:
                await self._full.check(network, device_id, store=self.store)
                self._capacity.admit(network)
                async with self._registering.turn(networks_of(network)):
                    await self.store.write_anonymous(
                        register_pairing,
                        device_id=device_id,
                        key_hash=shown.key_hash,
                        token_hash=shown.token_hash,
                        now_ms=at_ms,
                        expires_at_ms=shown.expires_at_ms,
                        networks=shown.networks,
                        rules=self.accounts.new_devices,
                    )
            if writing.cancelled_caught:
                raise RegistryBusy(_BUSY)
        except PairingClosed:
            # The text gives strangers no reason, and avoids "200 ": machines take that for success.
            raise Refused(_CLOSED, status=403, reason="pairing_closed") from None
        except TooManyNewDevices as problem:
            self._full.add(network, problem.retry_s)
            raise _too_many_new(problem.retry_s) from None
        except (RegistryError, Refused):
            # A machine that gets no 200 does not connect. Check the key again: it may have been revoked.
            if not await _key_works(device_id, body.device_key, store=self.store):
                raise
            self.store.hold_pairing(shown)
        # Always the same answer: any client can send this, with any id.
        return json_answer(Done())

    @described(
        "Pair a device with the token on its screen, or with a short code",
        answer=ClaimedAnswer,
        body=Claim,
        refusals=[404, 409],
    )
    async def claim_device(self) -> Response:
        requester = await self.authenticator.with_session(request)
        body = await body_of(request, Claim)
        return await self._pair(requester, body, shared=False)

    @described(
        "Accept a share, by its link or its short code",
        answer=ClaimedAnswer,
        body=Claim,
        refusals=[404, 409],
    )
    async def claim_shared_device(self) -> Response:
        requester = await self.authenticator.with_session(request)
        body = await body_of(request, Claim)
        return await self._pair(requester, body, shared=True)

    async def _pair(self, requester: Requester, body: Claim, *, shared: bool) -> Response:
        given = (body.name or "").strip()
        wanted = checked_name(given, what="A name", longest_chars=NAME_CHARS) if given else None
        network = network_of(current_caller().address)
        async with (
            self.request_limits.pairings_by_user.attempt(requester.user_id) as by_user,
            self.request_limits.pairings_by_address.attempt(network) as by_address,
        ):
            code_hash = (
                None if body.token else await _hash_code(body.device_id, network, hashing=self._hashing)
            )
            async with self._pairing_queue.turn(networks_of(network)):
                if body.token:
                    paired = await _pair_by_token(
                        body, requester, name=wanted, shared=shared, store=self.store, accounts=self.accounts
                    )
                else:
                    paired = await _accept_code(
                        code_hash, requester, store=self.store, accounts=self.accounts
                    )
        if paired is None:
            raise Refused(_INVALID_CODE, status=404)
        # Only failed attempts use up the limits.
        await by_user.give_back()
        await by_address.give_back()
        await self.store.catch_up()
        name = paired.device_name or paired.device_id
        return json_answer(ClaimedAnswer(device_id=paired.device_id, name=name, role=paired.role))


class FullNetworks:
    """Networks that have used up their quota of new ids. They are refused without a write."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, network: str, retry_s: float) -> None:
        """Remember for at most a minute that a network may register no new id."""
        self._until[network] = trio.current_time() + min(retry_s, _FULL_S)
        self._until.move_to_end(network)
        if len(self._until) > _FULL_KEPT:
            self._until.popitem(last=False)

    async def check(self, network: str, device_id: str, *, store: Registry) -> None:
        """Raise Refused (429) for a new id from a network that has used up its quota."""
        left_s = self._until.get(network, 0.0) - trio.current_time()
        if left_s > 0 and await store.find_device(device_id) is None:
            raise _too_many_new(math.ceil(left_s))


def _too_many_new(retry_s: int) -> Refused:
    return Refused(
        _TOO_MANY, status=429, headers={"Retry-After": str(retry_s)}, reason="too_many_new_devices"
    )


async def _admit_machine(device_id: str, key: str, *, store: Registry, request_limits: RequestLimits) -> None:
    """Admit a registration, or raise Refused (429). The limit of the device is checked first.

    A working key always passes the limit of the device, so a stranger who registers the same id cannot keep
    the machine out. Limits of a device are per address. This protects new machines, and machines that
    lost their key.
    """
    network = network_of(current_caller().address)
    try:
        await request_limits.register_by_device.take(f"{device_id} {network}")
    except Refused:
        if not await _key_works(device_id, key, store=store):
            raise
    await request_limits.register_by_address.take(network)


async def _key_works(device_id: str, key: str, *, store: Registry) -> bool:
    """Tell whether a key works for a device."""
    device = await store.find_device(device_id)
    hashes = () if device is None else (device.key_hash, *device.next_key_hashes)
    return any(secret_matches(key, key_hash) for key_hash in hashes)


async def _hash_code(text: str, network: str, *, hashing: FairQueue) -> bytes | None:
    """Hash a short code. Return None for a text that is not a short code."""
    code = normalise_code(text)
    if code is None:
        return None
    async with hashing.turn(networks_of(network)):
        return await hash_in_thread(hash_code, code, known=False)


async def _accept_code(
    code_hash: bytes | None, requester: Requester, *, store: Registry, accounts: AccountRules
) -> PairingResult | None:
    if code_hash is None:
        return None
    return await store.write_as(
        Authority(requester.principal),
        accept_share_code,
        code_hash=code_hash,
        user_id=requester.user_id,
        now_ms=now_ms(),
        machines_at_most=accounts.machines_per_account,
    )


async def _pair_by_token(
    body: Claim,
    requester: Requester,
    *,
    name: str | None,
    shared: bool,
    store: Registry,
    accounts: AccountRules,
) -> PairingResult | None:
    try:
        device_id = parse_device_id(body.device_id)
    except ValueError:
        return None
    token_hash = hash_secret(body.token)
    if shared:
        return await store.write_as(
            Authority(requester.principal),
            accept_share,
            device_id=device_id,
            token_hash=token_hash,
            user_id=requester.user_id,
            now_ms=now_ms(),
            machines_at_most=accounts.machines_per_account,
        )
    return await store.write_as(
        Authority(requester.principal),
        pair_device,
        device_id=device_id,
        token_hash=token_hash,
        user_id=requester.user_id,
        name=name,
        machines_at_most=accounts.machines_per_account,
        held=store.held_pairings(device_id),
        now_ms=now_ms(),
    )
