"""/api/admin: the people, the machines and the work of a server, for its administrators."""

from typing import Annotated, Final

import msgspec
from quart import Blueprint, Request, Response, request
from sqlalchemy import Connection

from brewos_relay.api.authentication import SignedIn, Who, current_caller
from brewos_relay.api.openapi import Done, described
from brewos_relay.api.payloads import Refused, ShortText, body_of, json_answer, query_of
from brewos_relay.auth.caller import ProxyTrust
from brewos_relay.auth.secrets import generate_secret_token, hash_token
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.accounts import (
    add_invite,
    find_user,
    lock_admins,
    set_admin,
    some_users,
)
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.overview import DeviceOverview, some_devices, totals
from brewos_relay.registry.records import User
from brewos_relay.registry.removal import close_account
from brewos_relay.vocabulary import iso_time, now_ms

INVITE_S: Final = 7 * 24 * 3600
"""How long an invite can be taken up."""

REMOVAL_S: Final = 5.0
"""How long a request waits for what an account had to be given up. The rest is done without it."""

_NOT_ADMIN: Final = "Only an administrator of this server may do this."
_NO_USER: Final = "There is no such account."
_LAST_ADMIN: Final = "This is the last administrator: make somebody else one first."


class Listing(msgspec.Struct):
    """Which entries: at most `limit`, behind the one that `after` names, with `find` in their texts."""

    find: Annotated[str, msgspec.Meta(max_length=320)] = ""
    after: Annotated[str, msgspec.Meta(max_length=320)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class Account(msgspec.Struct, rename="camel", kw_only=True):
    """An account."""

    id: str
    email: str
    name: str | None
    is_admin: bool
    has_password: bool
    created_at: str


class Accounts(msgspec.Struct):
    """Accounts in the order of their addresses; `next` is the `after` of the next page, or null."""

    users: list[Account]
    next: str | None


class AdminDevice(msgspec.Struct, rename="camel", kw_only=True):
    """A device; `owners` are e-mail addresses, or ids of those who have no account."""

    id: str
    name: str | None
    is_online: bool
    clients: int
    last_seen: str | None
    firmware_version: str | None
    machine_type: str | None
    key_pending: bool
    owners: list[str]


class AdminDevices(msgspec.Struct):
    """Devices in the order of their ids; `next` is the `after` of the next page, or null."""

    devices: list[AdminDevice]
    next: str | None


class Registered(msgspec.Struct):
    """How many there are in the registry."""

    devices: int
    users: int


class RelayTotals(msgspec.Struct, rename="camel", kw_only=True):
    """What the relay has done since it was started, in messages, and in connections for the last two."""

    received_from_devices: int
    received_from_clients: int
    sent_to_devices: int
    sent_to_clients: int
    invalid: int
    left_out: int
    undeliverable: int
    zombies: int
    conflicts: int


class Stats(msgspec.Struct, rename="camel", kw_only=True):
    """How many are connected, how many there are, and the relay's running totals."""

    timestamp: int
    devices: int
    clients: int
    registered: Registered
    totals: RelayTotals


class NewInvite(msgspec.Struct, rename="camel"):
    """Whom to invite, and whether as an administrator."""

    email: ShortText
    is_admin: bool = False


class InviteAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A link that signs somebody in, once; it is never shown again."""

    email: str
    url: str
    expires_at: str


class AccountChange(msgspec.Struct, rename="camel"):
    """What an account is to be."""

    is_admin: bool


def admin_blueprint(
    *, relay: RelayView, store: Registry, signed_in: SignedIn, proxy_trust: ProxyTrust
) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("admin", __name__)

    @blueprint.get("/api/admin/users")
    @described(
        "The accounts of this server, for an administrator", answer=Accounts, query=Listing, refusals=[403]
    )
    async def all_accounts() -> Response:
        await administrator(signed_in, request)
        page = query_of(request, Listing)
        found = await store.read(some_users, find=page.find, after=page.after, limit=page.limit)
        return json_answer(
            Accounts(
                users=[_account(user) for user in found],
                next=found[-1].email if len(found) == page.limit else None,
            )
        )

    @blueprint.post("/api/admin/invites")
    @described(
        "Make a link that signs somebody in, once; their account is made if there is none",
        answer=InviteAnswer,
        body=NewInvite,
        refusals=[403],
    )
    async def invite_somebody() -> Response:
        who = await administrator(signed_in, request)
        body = await body_of(request, NewInvite)
        token = generate_secret_token()
        at_ms = now_ms()
        expires_at_ms = at_ms + INVITE_S * 1000
        try:
            await store.write_as(
                Authority(who.principal, is_admin=True),
                add_invite,
                email=body.email,
                token_hash=hash_token(token),
                is_admin=body.is_admin,
                expires_at_ms=expires_at_ms,
                now_ms=at_ms,
                created_by=who.user_id,
            )
        except ValueError as problem:
            text = str(problem)
            raise Refused(f"{text[:1].upper()}{text[1:]}.", status=400) from None
        return json_answer(
            InviteAnswer(
                email=body.email.strip(),
                url=f"{proxy_trust.base_url(current_caller())}/login#invite={token}",
                expires_at=iso_time(expires_at_ms),
            )
        )

    @blueprint.patch("/api/admin/users/<user_id>")
    @described(
        "Make an account an administrator's or an ordinary one",
        answer=Account,
        body=AccountChange,
        refusals=[403, 409],
    )
    async def change_account(user_id: str) -> Response:
        who = await administrator(signed_in, request)
        body = await body_of(request, AccountChange)
        authority = Authority(who.principal, is_admin=True)
        user = await store.write_as(authority, _set_admin, user_id, body.is_admin)
        return json_answer(_account(user))

    @blueprint.delete("/api/admin/users/<user_id>")
    @described("Remove an account, its sessions, and what it has", answer=Done, refusals=[403, 409])
    async def remove_account(user_id: str) -> Response:
        who = await administrator(signed_in, request)
        # First, and by itself: from here on the user is signed out, whatever becomes of the rest.
        await store.write_as(Authority(who.principal, is_admin=True), _close, user_id, now_ms=now_ms())
        await store.catch_up(ends_only=True)
        await store.finish_removals(within_s=REMOVAL_S)
        await store.catch_up()
        return json_answer(Done())

    @blueprint.get("/api/admin/devices")
    @described(
        "All devices of this server, for an administrator", answer=AdminDevices, query=Listing, refusals=[403]
    )
    async def all_devices() -> Response:
        await administrator(signed_in, request)
        page = query_of(request, Listing)
        found = await store.read(some_devices, find=page.find, after=page.after, limit=page.limit)
        return json_answer(
            AdminDevices(
                devices=[_device(one, relay) for one in found],
                next=found[-1].device.id if len(found) == page.limit else None,
            )
        )

    @blueprint.get("/api/admin/stats")
    @described("How much is going on in this server, for an administrator", answer=Stats, refusals=[403])
    async def server_stats() -> Response:
        await administrator(signed_in, request)
        registered = await store.read(totals)
        return json_answer(
            Stats(
                timestamp=now_ms(),
                devices=relay.device_count,
                clients=relay.client_count,
                registered=Registered(devices=registered.devices, users=registered.users),
                totals=msgspec.convert(relay.counters, RelayTotals, from_attributes=True),
            )
        )

    return blueprint


async def administrator(signed_in: SignedIn, request: Request) -> Who:
    """Read the request's token. Raises Refused (403) unless it is the session of an administrator.

    The account is read each time: it may be an ordinary one by now.
    """
    who = await signed_in.with_session(request)
    if not who.is_admin:
        raise not_an_administrator()
    return who


def not_an_administrator() -> Refused:
    """Refuse (403) what only an administrator may do."""
    return Refused(_NOT_ADMIN, status=403)


def _set_admin(db: Connection, user_id: str, is_admin: bool) -> User:
    """Make an account an administrator's or not; Refused if there is none, or if none would be left."""
    admins = lock_admins(db)
    if not is_admin and admins == [user_id]:
        raise Refused(_LAST_ADMIN, status=409)
    set_admin(db, user_id, is_admin)
    user = find_user(db, user_id)
    if user is None:
        raise Refused(_NO_USER, status=404)
    return user


def _close(db: Connection, user_id: str, *, now_ms: int) -> None:
    """Close an account; Refused if there is none, or if no administrator would be left."""
    if lock_admins(db) == [user_id]:
        raise Refused(_LAST_ADMIN, status=409)
    if not close_account(db, user_id, now_ms=now_ms):
        raise Refused(_NO_USER, status=404)


def _account(user: User) -> Account:
    return Account(
        id=user.id,
        email=user.email,
        name=user.name,
        is_admin=user.is_admin,
        has_password=user.has_password,
        created_at=iso_time(user.created_at_ms),
    )


def _device(one: DeviceOverview, relay: RelayView) -> AdminDevice:
    device = one.device
    return AdminDevice(
        id=device.id,
        name=device.name,
        is_online=relay.is_online(device.id),
        clients=len(relay.grants_of(device.id)),
        last_seen=iso_time(device.last_seen_ms),
        firmware_version=device.firmware_version,
        machine_type=device.machine_type,
        key_pending=device.key_pending_since_ms is not None,
        owners=list(one.owners),
    )
