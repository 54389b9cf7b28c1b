"""The users of a device: who has access, and who is connected."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.device_access import require_access, role_too_low
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import PageQuery, Refused, body_of, cursor_of, json_answer, query_of
from brewos_relay.api.sharing import When, to_ms
from brewos_relay.errors import LastOwner
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.access import set_role, take, users_of
from brewos_relay.registry.accounts import find_users
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.records import DeviceUser, User
from brewos_relay.vocabulary import Role, iso_time, now_ms, role_includes

_NO_USER: Final = "This device has no user with this id."
_LAST_OWNER: Final = (
    "This is the last owner of the device. Make another user an owner first, or remove the device."
)


class DeviceUserAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A user of a device. `displayName` is never empty. `until` is null for access without end."""

    user_id: str
    email: str
    display_name: str
    avatar_url: str | None
    claimed_at: str | None
    role: Role
    until: str | None


class DeviceUsers(msgspec.Struct):
    """Users in the order in which they got access. `next` is the `after` of the next page, or null."""

    users: list[DeviceUserAnswer]
    next: str | None


class NewRole(msgspec.Struct):
    """A new role, and the end of the access. A field that is left out stays unchanged."""

    role: Role | msgspec.UnsetType = msgspec.UNSET
    until: When | msgspec.UnsetType = msgspec.UNSET


class Watcher(msgspec.Struct, rename="camel", kw_only=True):
    """A user who is connected. `displayName` is never empty; `email` is empty without an account."""

    user_id: str
    email: str
    display_name: str
    avatar_url: str | None
    connections: int


class Watchers(msgspec.Struct):
    """The connected users."""

    watchers: list[Watcher]


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceUserRoutes:
    """The routes of the users of a device."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "device_users",
            {
                "GET /api/devices/<device:device_id>/users": self.users,
                "PATCH /api/devices/<device:device_id>/users/<user_id>": self.change,
                "DELETE /api/devices/<device:device_id>/users/<user_id>": self.remove,
                "GET /api/devices/<device:device_id>/watchers": self.watchers,
            },
        )

    @described("List the users of a device; viewers see only themselves", answer=DeviceUsers, query=PageQuery)
    async def users(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        page = query_of(request, PageQuery)
        access = await require_access(requester, device_id, store=self.store)
        only = requester.user_id if access.role == "viewer" else None
        found = await self.store.read(
            users_of, access.device_id, after=page.cursor(), only=only, limit=page.limit, now_ms=now_ms()
        )
        last = found[-1] if len(found) == page.limit else None
        since_ms = -1 if last is None or last.claimed_at_ms is None else last.claimed_at_ms
        return json_answer(
            DeviceUsers(
                users=[_user_answer(user) for user in found],
                next=None if last is None else cursor_of(since_ms, last.user_id),
            )
        )

    @described(
        "Change the role of a user of a device, as an owner",
        answer=DeviceUserAnswer,
        body=NewRole,
        refusals=[403, 409, 422],
    )
    async def change(self, device_id: str, user_id: str) -> Response:
        # The change may outlast a token without a session.
        requester = await self.authenticator.with_session(request)
        body = await body_of(request, NewRole)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        user = await _user_of(device_id, user_id, store=self.store)
        role = user.role if body.role is msgspec.UNSET else body.role
        at_ms = now_ms()
        until_ms = user.until_ms if body.until is msgspec.UNSET else to_ms(body.until, now_ms=at_ms)
        if role == "owner" and until_ms is not None:
            if body.until is not msgspec.UNSET:
                raise Refused("The access of an owner has no end: leave 'until' out.", status=422)
            until_ms = None
        try:
            changed = await self.store.write_as(
                Authority(requester.principal, device_id, "owner", about_user_id=user_id),
                set_role,
                device_id,
                user_id,
                role=role,
                until_ms=until_ms,
                by_user_id=requester.user_id,
                now_ms=at_ms,
            )
        except LastOwner:
            raise Refused(_LAST_OWNER, status=409) from None
        if not changed:
            raise Refused(_NO_USER, status=404)
        await self.store.catch_up()
        return json_answer(_user_answer(await _user_of(device_id, user_id, store=self.store)))

    @described(
        "Remove a user from a device, as an owner; any user may remove themselves",
        answer=Done,
        refusals=[403, 409],
    )
    async def remove(self, device_id: str, user_id: str) -> Response:
        requester = await self.authenticator(request)
        own = user_id == requester.user_id
        access = await require_access(
            requester, device_id, store=self.store, at_least="viewer" if own else "owner"
        )
        at_least: Role = "owner"
        if own and access.from_registry is not None:
            # A token with a lower role than its user must not give up the user's access.
            at_least = access.from_registry.role
            if not role_includes(access.role, at_least):
                raise role_too_low(at_least)
        try:
            taken = await self.store.write_as(
                Authority(requester.principal, access.device_id, at_least, about_user_id=user_id),
                take,
                access.device_id,
                user_id,
                by_user_id=requester.user_id,
                now_ms=now_ms(),
            )
        except LastOwner:
            raise Refused(_LAST_OWNER, status=409) from None
        if not taken:
            raise Refused(_NO_USER, status=404)
        await self.store.catch_up()
        return json_answer(Done())

    @described("List the users who are connected to a device, as an owner", answer=Watchers, refusals=[403])
    async def watchers(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        access = await require_access(requester, device_id, store=self.store, at_least="owner")
        live = (await self.relay.find_live([access.device_id]))[access.device_id]
        here = Counter(user_id for user_id in live.user_ids if user_id is not None)
        accounts = await self.store.read(find_users, sorted(here))
        found = [_watcher_answer(user_id, count, accounts) for user_id, count in sorted(here.items())]
        return json_answer(Watchers(watchers=found))


async def _user_of(device_id: str, user_id: str, *, store: Registry) -> DeviceUser:
    found = await store.read(users_of, device_id, only=user_id, now_ms=now_ms())
    if not found:
        raise Refused(_NO_USER, status=404)
    return found[0]


def _user_answer(user: DeviceUser) -> DeviceUserAnswer:
    email = user.email or ""
    return DeviceUserAnswer(
        user_id=user.user_id,
        email=email,
        display_name=user.name or email or user.user_id,
        avatar_url=user.picture_url,
        claimed_at=iso_time(user.claimed_at_ms),
        role=user.role,
        until=iso_time(user.until_ms),
    )


def _watcher_answer(user_id: str, connections: int, accounts: Mapping[str, User]) -> Watcher:
    account = accounts.get(user_id)
    return Watcher(
        user_id=user_id,
        email=account.email if account else "",
        display_name=(account.name or account.email) if account else user_id,
        avatar_url=account.picture_url if account else None,
        connections=connections,
    )
