"""Sessions: where people are signed in, and the refresh tokens that keep them so.

A refresh token is good once, and then for a moment more, so that two tabs that refresh at the same time both
go on. One that comes back later than that is a copy, or its owner's after a copy was used: nobody can tell,
so the session ends for both. Each token runs out by itself, whether or not its session goes on with others,
and is as good as unknown then.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from brewos_relay.registry.changes import note_change
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.records import Session
from brewos_relay.registry.schema import refresh_tokens, sessions, users

_USER_AGENT_CHARS: Final = 300
_ADDRESS_CHARS: Final = 64

_SESSIONS: Final = (
    select(sessions, users.c.email, users.c.name, users.c.picture_url, users.c.is_admin)
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.expires_at_ms > bindparam("now_ms"))
)
_BY_ID: Final = _SESSIONS.where(sessions.c.id.in_(bindparam("ids", expanding=True)))
_OF_USER: Final = _SESSIONS.where(sessions.c.user_id == bindparam("of_user")).order_by(
    sessions.c.used_at_ms.desc(), sessions.c.id
)
_TOKEN: Final = (
    select(refresh_tokens)
    .where(refresh_tokens.c.token_hash == bindparam("token"))
    .where(refresh_tokens.c.expires_at_ms > bindparam("now_ms"))
    .with_for_update()
)


def open_session(
    db: Connection,
    *,
    session_id: str,
    user_id: str,
    refresh_hash: bytes,
    user_agent: str | None,
    address: str | None,
    now_ms: int,
    expires_at_ms: int,
) -> Session:
    """Sign a user in; of the user agent, the first 300 characters are kept.

    `expires_at_ms` is when the session ends, and the token, if that is not used until then.
    """
    db.execute(
        insert(sessions),
        {
            "id": session_id,
            "user_id": user_id,
            "created_at_ms": now_ms,
            "used_at_ms": now_ms,
            "expires_at_ms": expires_at_ms,
            "user_agent": _cut(user_agent, _USER_AGENT_CHARS),
            "address": _cut(address, _ADDRESS_CHARS),
        },
    )
    _add_token(db, session_id, refresh_hash, expires_at_ms=expires_at_ms)
    return find_sessions(db, [session_id], now_ms=now_ms)[session_id]


def refresh(
    db: Connection,
    refresh_hash: bytes,
    *,
    new_refresh_hash: bytes,
    now_ms: int,
    grace_ms: int,
    expires_at_ms: int,
) -> Session | None:
    """Take a refresh token in exchange for a new one, and let its session go on; None if it is not good.

    One that was taken at most `grace_ms` ago is taken again; one that was taken before that ends its session.
    `expires_at_ms` is when the new one runs out, and the session, if nothing of it is used until then.
    """
    token = db.execute(_TOKEN, {"token": refresh_hash, "now_ms": now_ms}).one_or_none()
    if token is None or not find_sessions(db, [token.session_id], now_ms=now_ms):
        return None
    if token.replaced_at_ms is None:
        taken = update(refresh_tokens).where(refresh_tokens.c.token_hash == refresh_hash)
        db.execute(taken.values(replaced_at_ms=now_ms))
    elif now_ms - token.replaced_at_ms > grace_ms:
        end_session(db, token.session_id, now_ms=now_ms)
        return None
    _add_token(db, token.session_id, new_refresh_hash, expires_at_ms=expires_at_ms)
    used = update(sessions).where(sessions.c.id == token.session_id)
    db.execute(used.values(used_at_ms=now_ms, expires_at_ms=expires_at_ms))
    return find_sessions(db, [token.session_id], now_ms=now_ms).get(token.session_id)


def find_sessions(db: Connection, ids: Sequence[str], *, now_ms: int) -> dict[str, Session]:
    """Read those of these sessions that have neither ended nor expired, by their ids."""
    return {
        session.id: session
        for chunk in chunks(ids, IDS_AT_ONCE)
        for session in map(_session, db.execute(_BY_ID, {"ids": chunk, "now_ms": now_ms}))
    }


def sessions_of(db: Connection, user_id: str, *, now_ms: int) -> list[Session]:
    """List where a user is signed in, the last used first."""
    return [_session(row) for row in db.execute(_OF_USER, {"of_user": user_id, "now_ms": now_ms})]


def end_session(db: Connection, session_id: str, *, user_id: str | None = None, now_ms: int) -> bool:
    """End a session, if it is this user's where one is given; False if there is none such."""
    ended = delete(sessions).where(sessions.c.id == session_id)
    if user_id is not None:
        ended = ended.where(sessions.c.user_id == user_id)
    return _end(db, ended, now_ms=now_ms) > 0


def end_sessions(db: Connection, user_id: str, *, now_ms: int) -> int:
    """End every session of a user; give how many there were."""
    return _end(db, delete(sessions).where(sessions.c.user_id == user_id), now_ms=now_ms)


def _end(db: Connection, ended: Any, *, now_ms: int) -> int:
    # Their refresh tokens go with them.
    rows = db.execute(ended.returning(sessions.c.id, sessions.c.user_id)).all()
    for session_id, user_id in rows:
        note_change(db, "session_ended", session_id=session_id, user_id=user_id, now_ms=now_ms)
    return len(rows)


def _add_token(db: Connection, session_id: str, refresh_hash: bytes, *, expires_at_ms: int) -> None:
    row = {"token_hash": refresh_hash, "session_id": session_id, "expires_at_ms": expires_at_ms}
    db.execute(insert(refresh_tokens), row)


def _cut(text: str | None, chars: int) -> str | None:
    # What a client says of itself is stored by databases that take no NUL and no half of a surrogate pair.
    return None if text is None else text[:chars].replace("\0", "?").encode(errors="replace").decode()


def _session(row: Sequence[Any]) -> Session:
    (
        id_,
        user_id,
        created_at_ms,
        used_at_ms,
        expires_at_ms,
        user_agent,
        address,
        email,
        name,
        picture_url,
        is_admin,
    ) = row
    return Session(
        id=id_,
        user_id=user_id,
        created_at_ms=created_at_ms,
        used_at_ms=used_at_ms,
        expires_at_ms=expires_at_ms,
        user_agent=user_agent,
        address=address,
        email=email,
        name=name,
        picture_url=picture_url,
        is_admin=is_admin,
    )
