"""Pairing: a machine registers what its screen shows, and whoever reads that there claims the machine."""

from typing import Annotated, Final

import msgspec
import trio
from quart import Blueprint, Response, request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.answers import Refused, json_answer
from brewos_relay.api.bearer import SignedIn, Who
from brewos_relay.api.bodies import ShortText, body_of, printable
from brewos_relay.api.callers import current_caller
from brewos_relay.api.needs import Registry
from brewos_relay.api.openapi import Done, described
from brewos_relay.api.throttle import Throttles, network_of, networks_of
from brewos_relay.auth.keys import hash_key, key_matches, parse_device_id
from brewos_relay.auth.secrets import hash_code, hash_token, normalise_code
from brewos_relay.core.clock import now_ms
from brewos_relay.errors import PairingClosed, RegistryError, TooManyNewDevices
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.pairing import claim, claim_code, claim_share, register_claim
from brewos_relay.registry.records import Claimed, Role

CLAIM_MS: Final = 10 * 60_000
"""For how long a machine shows a token before it makes another one."""

HASHING_AT_ONCE: Final = 2
"""How many codes are hashed at a time: each takes 16 MiB, and a processor for 30 ms."""

_NAME_CHARS: Final = 100
# One answer for what is wrong, unknown, expired, used up or somebody else's.
_CLOSED: Final = "This server takes no new machines at the moment."
_TOO_MANY: Final = "Too many new machines were registered from this network; try again tomorrow."
_NO_GOOD: Final = "This code is not valid, or it has expired. Get a new one and try again."

_END: Final = r"$(?!\n)"  # for Python, `$` is before a line end too
_Id = Annotated[str, msgspec.Meta(pattern=f"^[Bb][Rr][Ww]-[0-9A-Fa-f]{{8}}{_END}")]
_Token = Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{16,128}}{_END}")]
_Key = Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{32,128}}{_END}")]


class Registration(msgspec.Struct, rename="camel"):
    """What a machine sends: its id, the token that it shows, and its key."""

    device_id: _Id
    token: _Token
    device_key: _Key


class Claim(msgspec.Struct, rename="camel"):
    """What was read on a screen or in a link; a typed short code stands in `deviceId`, without a token."""

    device_id: ShortText
    token: ShortText
    name: ShortText | None = None


class ClaimedAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """The device that is theirs now, and as what."""

    success: bool = True
    device_id: str
    name: str
    role: Role


def pairing_blueprint(
    *, store: Registry, signed_in: SignedIn, throttles: Throttles, accounts: AccountRules
) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("pairing", __name__)
    hashing = trio.CapacityLimiter(HASHING_AT_ONCE)

    @blueprint.post("/api/devices/register-claim")
    @described(
        "A machine registers the token that it shows",
        answer=Done,
        body=Registration,
        needs_token=False,
        refusals=[403],
    )
    async def register() -> Response:
        body = await body_of(request, Registration)
        device_id = parse_device_id(body.device_id)
        await _admit_machine(device_id, body.device_key, store=store, throttles=throttles)
        at_ms = now_ms()
        try:
            await store.write_anonymous(
                register_claim,
                device_id=device_id,
                key_hash=hash_key(body.device_key),
                token_hash=hash_token(body.token),
                now_ms=at_ms,
                expires_at_ms=at_ms + CLAIM_MS,
                networks=networks_of(network_of(current_caller().address)),
                rules=accounts.new_devices,
            )
        except PairingClosed:
            # No reason for strangers, and no "200 ": a machine takes that for success anywhere in an answer.
            raise Refused(_CLOSED, status=403, reason="pairing_closed") from None
        except TooManyNewDevices as problem:
            raise Refused(
                _TOO_MANY,
                status=429,
                headers={"Retry-After": str(problem.retry_s)},
                reason="too_many_new_devices",
            ) from None
        except RegistryError:
            # A machine that does not get 200 does not connect, and that needs nothing to be written.
            if not await _is_its_key(device_id, body.device_key, store=store):
                raise
        # The same whatever came of it: anybody can send this, with anybody's id.
        return json_answer(Done())

    @blueprint.post("/api/devices/claim")
    @described(
        "Claim a device with what its screen shows, or with a short code",
        answer=ClaimedAnswer,
        body=Claim,
        refusals=[404, 409],
    )
    async def claim_device() -> Response:
        who = await signed_in.with_session(request)
        body = await body_of(request, Claim)
        return await _answer_claim(who, body, shared=False)

    @blueprint.post("/api/devices/claim-share")
    @described(
        "Take up a share, by its link or by its short code", answer=ClaimedAnswer, body=Claim, refusals=[404]
    )
    async def claim_shared_device() -> Response:
        who = await signed_in.with_session(request)
        body = await body_of(request, Claim)
        return await _answer_claim(who, body, shared=True)

    async def _answer_claim(who: Who, body: Claim, *, shared: bool) -> Response:
        given = (body.name or "").strip()
        wanted = printable(given, what="A name", longest_chars=_NAME_CHARS) if given else None
        network = network_of(current_caller().address)
        throttles.claims_by_user.admit(who.user_id)
        throttles.claims_by_address.admit(network)
        if not body.token:
            claimed = await _claim_by_code(body.device_id, who, store=store, hashing=hashing)
        else:
            claimed = await _claim_by_token(
                body, who, name=wanted, shared=shared, store=store, accounts=accounts
            )
        if claimed is None:
            raise Refused(_NO_GOOD, status=404)
        # Only those that came to nothing are counted.
        throttles.claims_by_user.give_back(who.user_id)
        throttles.claims_by_address.give_back(network)
        await store.catch_up()
        name = claimed.device_name or claimed.device_id
        return json_answer(ClaimedAnswer(device_id=claimed.device_id, name=name, role=claimed.role))

    return blueprint


async def _admit_machine(device_id: str, key: str, *, store: Registry, throttles: Throttles) -> None:
    """Let a registration pass, or raise Refused (429); by device first, since a whole street has one address.

    One with the working key always passes the first: somebody who sends others must not keep it out. Nor can
    they from another address if the machine has lost its key, or is new.
    """
    network = network_of(current_caller().address)
    try:
        throttles.register_by_device.admit(f"{device_id} {network}")
    except Refused:
        if not await _is_its_key(device_id, key, store=store):
            raise
    throttles.register_by_address.admit(network)


async def _is_its_key(device_id: str, key: str, *, store: Registry) -> bool:
    """Tell whether a key is one that works for a device."""
    device = await store.find_device(device_id)
    hashes = () if device is None else (device.key_hash, *device.next_key_hashes)
    return any(key_matches(key, key_hash) for key_hash in hashes)


async def _claim_by_code(
    text: str, who: Who, *, store: Registry, hashing: trio.CapacityLimiter
) -> Claimed | None:
    code = normalise_code(text)
    if code is None:
        return None
    code_hash = await trio.to_thread.run_sync(hash_code, code, limiter=hashing)
    return await store.write_as(
        Authority(who.principal), claim_code, code_hash=code_hash, user_id=who.user_id, now_ms=now_ms()
    )


async def _claim_by_token(
    body: Claim, who: Who, *, name: str | None, shared: bool, store: Registry, accounts: AccountRules
) -> Claimed | None:
    try:
        device_id = parse_device_id(body.device_id)
    except ValueError:
        return None
    token_hash = hash_token(body.token)
    if shared:
        return await store.write_as(
            Authority(who.principal),
            claim_share,
            device_id=device_id,
            token_hash=token_hash,
            user_id=who.user_id,
            now_ms=now_ms(),
        )
    return await store.write_as(
        Authority(who.principal),
        claim,
        device_id=device_id,
        token_hash=token_hash,
        user_id=who.user_id,
        name=name,
        machines_at_most=accounts.machines_per_account,
        now_ms=now_ms(),
    )
