"""/api/notices: what an account is told about machines that it lost, or has in the place of another user."""

from typing import Annotated

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.answers import iso_utc, json_answer
from brewos_relay.api.bearer import SignedIn
from brewos_relay.api.bodies import query_of
from brewos_relay.api.openapi import Done, described
from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.notices import dismiss_notices, notices_of
from brewos_relay.registry.records import NoticeKind


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
                    NoticeAnswer(id=one.id, at=iso_utc(one.at_ms), kind=one.kind, device_id=one.device_id)
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
