"""Past events: the activity of a device, and the notices of an account."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from quart import Blueprint, Response, request
from sqlalchemy import Connection

from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.device_access import require_access
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import json_answer, query_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.accounts import find_users
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.notices import dismiss_notices, notices_of
from brewos_relay.registry.records import ActivityKind, NoticeKind, StoredActivity
from brewos_relay.vocabulary import iso_time


class ActivityQuery(msgspec.Struct):
    """A page of entries: at most `limit`, older than the entry with the id `before`."""

    before: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class Entry(msgspec.Struct, rename="camel", kw_only=True):
    """An event. `userId` is null for events of the device itself, `email` for users without an account."""

    id: int
    at: str
    kind: ActivityKind
    user_id: str | None
    email: str | None
    detail: dict[str, str | int | float]


class ActivityAnswer(msgspec.Struct):
    """Entries, newest first. `next` is the `before` of the next page, null on the last page."""

    activity: list[Entry]
    next: int | None


class NoticeAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A notice about a device."""

    id: int
    at: str
    kind: NoticeKind
    device_id: str


class Notices(msgspec.Struct):
    """Notices, newest first."""

    notices: list[NoticeAnswer]


class Dismissing(msgspec.Struct, rename="camel"):
    """The id of the last notice to dismiss."""

    up_to: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivityRoutes:
    """The route of the activity of a device."""

    store: Registry
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "activity",
            {
                "GET /api/devices/<device:device_id>/activity": self.activity,
            },
        )

    @described(
        "List the activity of a device, as an owner",
        answer=ActivityAnswer,
        query=ActivityQuery,
        refusals=[403],
    )
    async def activity(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        page = query_of(request, ActivityQuery)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        found, emails = await self.store.read(_read, device_id, page)
        return json_answer(
            ActivityAnswer(
                activity=[
                    Entry(
                        id=entry.id,
                        at=iso_time(entry.at_ms),
                        kind=entry.kind,
                        user_id=entry.user_id,
                        email=emails.get(entry.user_id),
                        detail=dict(entry.detail),
                    )
                    for entry in found
                ],
                next=found[-1].id if len(found) == page.limit else None,
            )
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class NoticeRoutes:
    """The routes of the notices to an account."""

    store: Registry
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "notices",
            {
                "GET /api/notices": self.notices,
                "DELETE /api/notices": self.dismiss,
            },
        )

    @described("List the notices of your account about devices", answer=Notices, refusals=[403])
    async def notices(self) -> Response:
        requester = await self.authenticator.with_session(request)
        found = await self.store.read(notices_of, requester.user_id)
        return json_answer(
            Notices(
                notices=[
                    NoticeAnswer(id=one.id, at=iso_time(one.at_ms), kind=one.kind, device_id=one.device_id)
                    for one in found
                ]
            )
        )

    @described("Dismiss the notices up to a given id", answer=Done, query=Dismissing)
    async def dismiss(self) -> Response:
        requester = await self.authenticator.with_session(request)
        up_to_id = query_of(request, Dismissing).up_to
        await self.store.write_as(
            Authority(requester.principal), dismiss_notices, requester.user_id, up_to_id=up_to_id
        )
        return json_answer(Done())


def _read(
    db: Connection, device_id: str, page: ActivityQuery
) -> tuple[list[StoredActivity], dict[str | None, str]]:
    """Read a page of entries, and the e-mail addresses of the users in it."""
    found = activity_of(db, device_id, before_id=page.before, limit=page.limit)
    accounts = find_users(db, [user_id for user_id in {entry.user_id for entry in found} if user_id])
    return found, {account.id: account.email for account in accounts.values()}
