"""Past events: the activity of a device, and the notices of an account."""

from typing import Annotated

import msgspec
from quart import Blueprint, Response, request
from sqlalchemy import Connection

from brewos_relay.api.authentication import SignedIn
from brewos_relay.api.device_access import reach
from brewos_relay.api.openapi import Done, described
from brewos_relay.api.payloads import json_answer, query_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.accounts import find_users
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.notices import dismiss_notices, notices_of
from brewos_relay.registry.records import ActivityKind, NoticeKind, StoredActivity
from brewos_relay.vocabulary import iso_time


class Page(msgspec.Struct):
    """Which entries: at most `limit`, older than the one whose id is `before`."""

    before: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class Entry(msgspec.Struct, rename="camel", kw_only=True):
    """Something that was done; `userId` is null if it was the machine, `email` if that has no account."""

    id: int
    at: str
    kind: ActivityKind
    user_id: str | None
    email: str | None
    detail: dict[str, str]


class ActivityAnswer(msgspec.Struct):
    """Entries, the newest first; `next` is the `before` of the next page, null if there is none."""

    activity: list[Entry]
    next: int | None


def activity_blueprint(*, store: Registry, signed_in: SignedIn) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("activity", __name__)

    @blueprint.get("/api/devices/<device:device_id>/activity")
    @described(
        "Who did what with a device, for an owner of it", answer=ActivityAnswer, query=Page, refusals=[403]
    )
    async def activity(device_id: str) -> Response:
        who = await signed_in(request)
        page = query_of(request, Page)
        device_id = (await reach(who, device_id, store=store, at_least="owner")).device_id
        found, emails = await store.read(_read, device_id, page)
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

    return blueprint


def _read(db: Connection, device_id: str, page: Page) -> tuple[list[StoredActivity], dict[str | None, str]]:
    """Read a page of entries, and the e-mail addresses of those users in it who have an account."""
    found = activity_of(db, device_id, before_id=page.before, limit=page.limit)
    accounts = find_users(db, [user_id for user_id in {entry.user_id for entry in found} if user_id])
    return found, {account.id: account.email for account in accounts.values()}


class NoticeAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A notice about a device."""

    id: int
    at: str
    kind: NoticeKind
    device_id: str


class Notices(msgspec.Struct):
    """The notices, the newest first."""

    notices: list[NoticeAnswer]


class Dismissing(msgspec.Struct, rename="camel"):
    """Up to which notice they have been read."""

    up_to: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def notices_blueprint(*, store: Registry, signed_in: SignedIn) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("notices", __name__)

    @blueprint.get("/api/notices")
    @described("What your account is told about machines", answer=Notices)
    async def notices() -> Response:
        who = await signed_in.with_session(request)
        found = await store.read(notices_of, who.user_id)
        return json_answer(
            Notices(
                notices=[
                    NoticeAnswer(id=one.id, at=iso_time(one.at_ms), kind=one.kind, device_id=one.device_id)
                    for one in found
                ]
            )
        )

    @blueprint.delete("/api/notices")
    @described("Dismiss the notices up to one of them", answer=Done, query=Dismissing)
    async def dismiss() -> Response:
        who = await signed_in.with_session(request)
        up_to_id = query_of(request, Dismissing).up_to
        await store.write_as(Authority(who.principal), dismiss_notices, who.user_id, up_to_id=up_to_id)
        return json_answer(Done())

    return blueprint
