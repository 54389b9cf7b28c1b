"""Tokens without a session: those issued here, and which of them are revoked.

Only tokens in this list can be revoked. A token without an id, or from another service that signs with the
same key, stays valid until it expires.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, literal, select, tuple_, update

from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.records import StoredToken
from brewos_relay.registry.schema import tokens

_TOKENS: Final = (
    select(tokens)
    .where(tokens.c.expires_at_ms > bindparam("now_ms"))
    .order_by(tokens.c.created_at_ms.desc(), tokens.c.id.desc())
)
_ALL_REVOKED: Final = select(tokens.c.id).where(tokens.c.revoked_at_ms.is_not(None))
_REVOKED: Final = _ALL_REVOKED.where(tokens.c.id.in_(bindparam("ids", expanding=True)))
_LOCKED: Final = (
    select(tokens.c.revoked_at_ms).where(tokens.c.id == bindparam("of_token")).with_for_update(read=True)
)


def add_token(db: Connection, token: StoredToken) -> None:
    """Store an issued token."""
    row = {
        "id": token.id,
        "name": token.name,
        "user_id": token.user_id,
        "role": token.role,
        "devices": token.devices if token.devices == "*" else " ".join(sorted(token.devices)),
        "created_at_ms": token.created_at_ms,
        "expires_at_ms": token.expires_at_ms,
        "revoked_at_ms": token.revoked_at_ms,
    }
    db.execute(insert(tokens), row)


def all_tokens(
    db: Connection, *, after: tuple[int, str] | None = None, limit: int | None = None, now_ms: int
) -> list[StoredToken]:
    """List the tokens that have not expired, including revoked ones, newest first: at most `limit`.

    `after` is the `created_at_ms` and the id of the last token of the previous page.
    """
    query = _TOKENS.limit(limit)
    if after is not None:
        query = query.where(tuple_(tokens.c.created_at_ms, tokens.c.id) < tuple_(*map(literal, after)))
    return [_token(row) for row in db.execute(query, {"now_ms": now_ms})]


def revoke_token(db: Connection, token_id: str, *, now_ms: int) -> bool:
    """Revoke a token and notify running servers. False if there is no valid token with this id."""
    revoked = (
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at_ms.is_(None), tokens.c.expires_at_ms > now_ms)
        .values(revoked_at_ms=now_ms)
    )
    if db.execute(revoked).rowcount == 0:
        return False
    publish_change(db, "token_revoked", token_id=token_id, now_ms=now_ms)
    return True


def revoked_tokens(db: Connection, ids: Sequence[str] | None = None) -> set[str]:
    """Return which of these tokens are revoked; None means all tokens."""
    if ids is None:
        return set(db.scalars(_ALL_REVOKED))
    return {id_ for chunk in chunks(ids, IDS_AT_ONCE) for id_ in db.scalars(_REVOKED, {"ids": chunk})}


def lock_token(db: Connection, token_id: str) -> bool:
    """Keep a token from being revoked until the transaction ends. False if it was revoked."""
    return db.scalar(_LOCKED, {"of_token": token_id}) is None


def _token(row: Sequence[Any]) -> StoredToken:
    id_, name, user_id, role, devices, created_at_ms, expires_at_ms, revoked_at_ms = row
    return StoredToken(
        id=id_,
        name=name,
        user_id=user_id,
        role=role,
        devices="*" if devices == "*" else frozenset(devices.split()),
        created_at_ms=created_at_ms,
        expires_at_ms=expires_at_ms,
        revoked_at_ms=revoked_at_ms,
    )
