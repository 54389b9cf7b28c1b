"""GET /api/devices/ID/watchers: who is connected to a device now."""

from collections import Counter
from collections.abc import Mapping

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.answers import json_answer
from brewos_relay.api.bearer import SignedIn
from brewos_relay.api.openapi import described
from brewos_relay.api.reach import reach
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.accounts import find_users
from brewos_relay.registry.records import User


class Watcher(msgspec.Struct, rename="camel", kw_only=True):
    """Somebody who is connected; `displayName` is never empty, `email` is without an account."""

    user_id: str
    email: str
    display_name: str
    avatar_url: str | None
    connections: int


class Watchers(msgspec.Struct):
    """The answer about all of them."""

    watchers: list[Watcher]


def watchers_blueprint(*, relay: RelayView, store: Registry, signed_in: SignedIn) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("watchers", __name__)

    @blueprint.get("/api/devices/<device:device_id>/watchers")
    @described("Who is connected to a device now, for an owner of it", answer=Watchers, refusals=[403])
    async def watchers(device_id: str) -> Response:
        who = await signed_in(request)
        reached = await reach(who, device_id, store=store, at_least="owner")
        here = Counter(
            grant.user_id for grant in relay.grants_of(reached.device_id) if grant.user_id is not None
        )
        accounts = await store.read(find_users, sorted(here))
        found = [_describe(user_id, count, accounts) for user_id, count in sorted(here.items())]
        return json_answer(Watchers(watchers=found))

    return blueprint


def _describe(user_id: str, connections: int, accounts: Mapping[str, User]) -> Watcher:
    account = accounts.get(user_id)
    return Watcher(
        user_id=user_id,
        email=account.email if account else "",
        display_name=(account.name or account.email) if account else user_id,
        avatar_url=account.picture_url if account else None,
        connections=connections,
    )
