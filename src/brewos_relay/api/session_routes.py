"""/api/auth/refresh, logout, logout-all, sessions and me: sessions that there are."""

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.answers import Refused, iso_utc, json_answer
from brewos_relay.api.bearer import SignedIn
from brewos_relay.api.bodies import LongText, Marked, Unshown, body_of, mark_of, query_of
from brewos_relay.api.callers import current_caller
from brewos_relay.api.openapi import described
from brewos_relay.api.sessions import Person, SessionStarter, SessionTokens
from brewos_relay.api.throttle import Throttles
from brewos_relay.core.clock import now_ms
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry
from brewos_relay.registry import accounts as registered
from brewos_relay.registry import sessions
from brewos_relay.registry.authority import Authority


class RefreshBody(Unshown, rename="camel"):
    """What `POST /api/auth/refresh` takes."""

    refresh_token: LongText


class ListedSession(msgspec.Struct, rename="camel"):
    """A session as it is listed; `current` for the one that asks. Times are in ISO 8601."""

    id: str
    current: bool
    created_at: str
    last_used_at: str
    expires_at: str
    user_agent: str | None
    address: str | None


class SessionList(msgspec.Struct):
    """The sessions of the caller, the last used first; `next` is the `after` of the next page, or null."""

    sessions: list[ListedSession]
    next: str | None


class Ended(msgspec.Struct):
    """How many sessions were ended."""

    ended: int


class Me(msgspec.Struct, rename="camel"):
    """Who asks; `session_id` is None with a token that belongs to no session."""

    user: Person
    is_admin: bool
    has_password: bool
    session_id: str | None


def sessions_blueprint(
    *, store: Registry, starter: SessionStarter, signed_in: SignedIn, throttles: Throttles
) -> Blueprint:
    """Make the blueprint; errors.TokenRejected and errors.RegistryError are left to the app to answer.

    Whoever ends a session is answered when its connections have been closed.
    """
    blueprint = Blueprint("sessions", __name__)

    @blueprint.post("/api/auth/refresh")
    @described(
        "Exchange a refresh token for new tokens",
        body=RefreshBody,
        answer=SessionTokens,
        refusals=[401],
        needs_token=False,
    )
    async def refresh() -> Response:
        with throttles.refreshes.attempt(network_of(current_caller().address)):
            body = await body_of(request, RefreshBody)
            tokens = await starter.go_on(body.refresh_token)
        if tokens is None:
            raise Refused("The session has ended: sign in again.", status=401)
        return json_answer(tokens)

    @blueprint.post("/api/auth/logout")
    @described("End the session that asks; one that is over already is no failure", answer=Ended)
    async def logout() -> Response:
        session_id, user_id = signed_in.session_of(request)
        ended = session_id is not None and await store.write_anonymous(
            sessions.end_session, session_id, user_id=user_id, now_ms=now_ms()
        )
        await store.catch_up(ends_only=True)
        return json_answer(Ended(int(ended)))

    @blueprint.post("/api/auth/logout-all")
    @described("End all sessions of whoever asks", answer=Ended)
    async def logout_all() -> Response:
        who = await signed_in.with_session(request)
        ended = await store.write_as(
            Authority(who.principal), sessions.end_sessions, who.user_id, now_ms=now_ms()
        )
        await store.catch_up(ends_only=True)
        return json_answer(Ended(ended))

    @blueprint.get("/api/auth/sessions")
    @described("List the sessions of whoever asks", answer=SessionList, query=Marked)
    async def list_sessions() -> Response:
        who = await signed_in.with_session(request)
        page = query_of(request, Marked)
        found = await store.read(
            sessions.sessions_of, who.user_id, after=page.mark(), limit=page.limit, now_ms=now_ms()
        )
        return json_answer(
            SessionList(
                [
                    ListedSession(
                        id=session.id,
                        current=session.id == who.session_id,
                        created_at=iso_utc(session.created_at_ms),
                        last_used_at=iso_utc(session.used_at_ms),
                        expires_at=iso_utc(session.expires_at_ms),
                        user_agent=session.user_agent,
                        address=session.address,
                    )
                    for session in found
                ],
                mark_of(found[-1].used_at_ms, found[-1].id) if len(found) == page.limit else None,
            )
        )

    @blueprint.delete("/api/auth/sessions/<session_id>")
    @described("End one session of whoever asks", answer=Ended)
    async def end_session(session_id: str) -> Response:
        who = await signed_in.with_session(request)
        if not await store.write_as(
            Authority(who.principal),
            sessions.end_session,
            session_id,
            user_id=who.user_id,
            now_ms=now_ms(),
        ):
            raise Refused("No such session: it may have ended already.", status=404)
        await store.catch_up(ends_only=True)
        return json_answer(Ended(1))

    @blueprint.get("/api/auth/me")
    @described("Tell who asks", answer=Me)
    async def me() -> Response:
        who = await signed_in(request)
        # A token without a session may name any user: it is told what it says itself.
        user = await store.read(registered.find_user, who.user_id) if who.session_id is not None else None
        if user is None:
            person, has_password = Person(who.user_id, who.email, "", None), False
        else:
            person = Person(user.id, user.email, user.name or "", user.picture_url)
            has_password = user.has_password
        return json_answer(
            Me(user=person, is_admin=who.is_admin, has_password=has_password, session_id=who.session_id)
        )

    return blueprint
