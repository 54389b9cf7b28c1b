"""Login sessions of users, and the refresh tokens that keep them alive.

A refresh token is exchanged for its successor. It has exactly one: two browser tabs receive the same one, and
a client that lost the answer receives it again. The successor is derived from the token and a stored salt, so
only a holder of the token can compute it. A token stays valid until its successor was used, and during a
grace period after its own exchange. A later use shows that the token was copied, and the session ends for
both holders. An expired token is treated as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, literal, select, tuple_, update

from brewos_relay.errors import TokenRejected
from brewos_relay.registry.access import lock_account
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import publish_ended_sessions
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.records import Activity, LoginSession
from brewos_relay.registry.schema import device_users, redeemed_invites, refresh_tokens, sessions, users

SESSIONS_AT_MOST: Final = 500
"""How many sessions one user may have, so that ending all of them stays a short transaction."""

RECORDED_DEVICES: Final = 100
"""The end of a copied session is added to the activity of at most this many devices of its user."""

_USER_AGENT_CHARS: Final = 300
_ADDRESS_CHARS: Final = 64

_COLUMNS: Final = [column for column in sessions.c if column is not sessions.c.last_device_id]
_SESSIONS: Final = (
    select(*_COLUMNS, users.c.email, users.c.name, users.c.picture_url, users.c.is_admin)
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.expires_at_ms > bindparam("now_ms"))
)
_BY_ID: Final = _SESSIONS.where(sessions.c.id.in_(bindparam("ids", expanding=True)))
_OF_USER: Final = _SESSIONS.where(sessions.c.user_id == bindparam("of_user")).order_by(
    sessions.c.used_at_ms.desc(), sessions.c.id.desc()
)
_TOO_MANY: Final = (
    select(sessions.c.id)
    .where(sessions.c.user_id == bindparam("of_user"))
    .order_by(sessions.c.used_at_ms.desc(), sessions.c.id.desc())
    .offset(bindparam("kept"))
)
# A shared lock: a change of the password waits for it, and then ends this session as well.
_PASSWORD: Final = (
    select(users.c.password_hash).where(users.c.id == bindparam("of_user")).with_for_update(read=True)
)
_TOKEN: Final = (
    select(refresh_tokens)
    .where(refresh_tokens.c.token_hash == bindparam("token"))
    .where(refresh_tokens.c.expires_at_ms > bindparam("now_ms"))
)
_LOCKED: Final = (
    select(sessions.c.id)
    .join(refresh_tokens, refresh_tokens.c.session_id == sessions.c.id)
    .where(refresh_tokens.c.token_hash == bindparam("token"))
    .with_for_update(of=sessions)
)
_DEVICES: Final = (
    select(device_users.c.device_id)
    .where(device_users.c.user_id == bindparam("of_user"))
    .order_by(device_users.c.device_id)
    .limit(RECORDED_DEVICES)
)
_RECORD_ATTACHED: Final = (
    update(sessions)
    .where(sessions.c.id == bindparam("of_session"))
    .where(sessions.c.last_device_id.is_distinct_from(bindparam("to_device")))
    .values(last_device_id=bindparam("to_device"))
)
_LAST_DEVICE: Final = select(sessions.c.last_device_id).where(sessions.c.id == bindparam("of_session"))


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A renewed session, and the salt for deriving the token's successor."""

    session: LoginSession
    salt: bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """A session that was ended because a token was used after its successor."""

    session_id: str
    user_id: str


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
    password_hash: str | None = None,
) -> LoginSession:
    """Sign a user in. The first 300 characters of the user agent are kept.

    The session and its token end at `expires_at_ms` unless the token is used before. A user has at most
    `SESSIONS_AT_MOST`: a new one ends the session that was used longest ago. `password_hash` is the hash of
    the password that was used. Raises TokenRejected if the account was removed or its password changed
    meanwhile.
    """
    if not lock_account(db, user_id):
        raise TokenRejected("the account was removed")
    if password_hash is not None and db.scalar(_PASSWORD, {"of_user": user_id}) != password_hash:
        raise TokenRejected("the password was changed")
    too_many = db.scalars(_TOO_MANY, {"of_user": user_id, "kept": SESSIONS_AT_MOST - 1}).all()
    if too_many:
        _end(db, delete(sessions).where(sessions.c.id.in_(too_many)), now_ms=now_ms)
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
    successor_hash: bytes,
    successor_salt: bytes,
    now_ms: int,
    grace_ms: int,
    expires_at_ms: int,
) -> Refreshed | Copied | None:
    """Exchange a refresh token for its successor and prolong the session. None if the token is unknown.

    The first exchange stores `successor_hash` and `successor_salt`; later ones return the stored salt. If the
    successor was used, the session ends, unless the token was exchanged at most `grace_ms` ago.
    `expires_at_ms` is the new end of the session and its successor, and of the token while it leads to the
    successor.
    """
    # Lock the session's row first, like `_end`: two tokens of one session take turns.
    db.execute(_LOCKED, {"token": refresh_hash})
    token = _find_token(db, refresh_hash, now_ms=now_ms)
    session = None if token is None else _find_session(db, token.session_id, now_ms=now_ms)
    if token is None or session is None:
        return None
    salt = successor_salt
    successor = None
    if token.successor_hash is not None:  # tokens of earlier versions have none
        successor = _find_token(db, token.successor_hash, now_ms=now_ms)
    is_current = successor is not None and successor.replaced_at_ms is None
    in_grace = token.replaced_at_ms is None or now_ms - token.replaced_at_ms <= grace_ms
    if not (is_current or in_grace):
        _end_copied(db, session, now_ms=now_ms)
        return Copied(session.id, session.user_id)
    if successor is None:
        _add_token(db, session.id, successor_hash, expires_at_ms=expires_at_ms)
    else:
        successor_hash, salt = token.successor_hash, token.successor_salt
    if successor is None or is_current:
        _change_token(
            db,
            refresh_hash,
            replaced_at_ms=now_ms,
            successor_hash=successor_hash,
            successor_salt=salt,
            expires_at_ms=expires_at_ms,
        )
        _change_token(db, successor_hash, expires_at_ms=expires_at_ms)
    used = update(sessions).where(sessions.c.id == session.id)
    db.execute(used.values(used_at_ms=now_ms, expires_at_ms=expires_at_ms))
    return Refreshed(replace(session, used_at_ms=now_ms, expires_at_ms=expires_at_ms), salt)


def find_sessions(db: Connection, ids: Sequence[str], *, now_ms: int) -> dict[str, LoginSession]:
    """Find sessions by their ids. Ended, expired and missing ones are left out."""
    return {
        session.id: session
        for chunk in chunks(ids, IDS_AT_ONCE)
        for session in map(_session, db.execute(_BY_ID, {"ids": chunk, "now_ms": now_ms}))
    }


def record_attached(db: Connection, attached: Mapping[str, str]) -> None:
    """Record the device that an app with a session attached to last (session id → device id)."""
    if attached:
        rows = [
            {"of_session": session_id, "to_device": device} for session_id, device in sorted(attached.items())
        ]
        db.execute(_RECORD_ATTACHED, rows)


def last_device_of(db: Connection, session_id: str) -> str | None:
    """Return the device that an app with this session attached to last. None if none ever did."""
    found: str | None = db.scalar(_LAST_DEVICE, {"of_session": session_id})
    return found


def sessions_of(
    db: Connection,
    user_id: str,
    *,
    after: tuple[int, str] | None = None,
    limit: int | None = None,
    now_ms: int,
) -> list[LoginSession]:
    """List the sessions of a user, the last used first: at most `limit`.

    `after` is the `used_at_ms` and the id of the last session of the previous page.
    """
    query = _OF_USER.limit(limit)
    if after is not None:
        query = query.where(tuple_(sessions.c.used_at_ms, sessions.c.id) < tuple_(*map(literal, after)))
    return [_session(row) for row in db.execute(query, {"of_user": user_id, "now_ms": now_ms})]


def end_session(db: Connection, session_id: str, *, user_id: str | None = None, now_ms: int) -> bool:
    """End a session, if it belongs to `user_id` where given. False if there is none."""
    ended = delete(sessions).where(sessions.c.id == session_id)
    if user_id is not None:
        ended = ended.where(sessions.c.user_id == user_id)
    return _end(db, ended, now_ms=now_ms) > 0


def end_sessions(db: Connection, user_id: str, *, now_ms: int) -> int:
    """End all sessions of a user. Returns how many there were."""
    return _end(db, delete(sessions).where(sessions.c.user_id == user_id), now_ms=now_ms)


def _end(db: Connection, ended: Any, *, now_ms: int) -> int:
    # Refresh tokens are deleted by cascade. Redeeming an invite again would start another session.
    rows = db.execute(ended.returning(sessions.c.id, sessions.c.user_id)).all()
    for user_id in {user_id for _, user_id in rows}:
        db.execute(delete(redeemed_invites).where(redeemed_invites.c.user_id == user_id))
    publish_ended_sessions(db, [(session_id, user_id) for session_id, user_id in rows], now_ms=now_ms)
    return len(rows)


def _add_token(db: Connection, session_id: str, refresh_hash: bytes, *, expires_at_ms: int) -> None:
    row = {"token_hash": refresh_hash, "session_id": session_id, "expires_at_ms": expires_at_ms}
    db.execute(insert(refresh_tokens), row)


def _change_token(db: Connection, token_hash: bytes, **values: Any) -> None:
    db.execute(update(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash).values(**values))


def _find_token(db: Connection, token_hash: bytes, *, now_ms: int) -> Any:
    return db.execute(_TOKEN, {"token": token_hash, "now_ms": now_ms}).one_or_none()


def _find_session(db: Connection, session_id: str, *, now_ms: int) -> LoginSession | None:
    return find_sessions(db, [session_id], now_ms=now_ms).get(session_id)


def _end_copied(db: Connection, session: LoginSession, *, now_ms: int) -> None:
    """End a session whose token was copied, and add that to the activity of its user's devices."""
    end_session(db, session.id, now_ms=now_ms)
    devices = db.scalars(_DEVICES, {"of_user": session.user_id}).all()
    add_activity(
        db,
        [
            Activity(device_id=device_id, at_ms=now_ms, kind="token_copied", user_id=session.user_id)
            for device_id in devices
        ],
    )


def _cut(text: str | None, chars: int) -> str | None:
    # Databases accept no NUL and no lone surrogate in text that clients send.
    return None if text is None else text[:chars].replace("\0", "?").encode(errors="replace").decode()


def _session(row: Sequence[Any]) -> LoginSession:
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
    return LoginSession(
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
