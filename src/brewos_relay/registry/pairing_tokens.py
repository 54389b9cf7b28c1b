"""Pairing tokens: which of the tokens registered for a device are kept.

Anyone can register tokens for any id. So each network has its own slots, and no network can use those of
another. The wider networks around each one share a limited number of slots: a provider may give one customer
thousands of IPv6 /64 networks.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final

from sqlalchemy import Connection, Row, Update, bindparam, delete, insert, select, update

from brewos_relay.registry.access import current_users
from brewos_relay.registry.device_keys import ENDED_TOKEN, works
from brewos_relay.registry.pairing_proof import seen_at
from brewos_relay.registry.records import Device
from brewos_relay.registry.schema import claims

TOKENS_PER_NETWORK: Final = 8
"""How many valid tokens of one device are kept for each network."""

NETWORKS_AT_MOST: Final = 32
"""How many networks may have valid tokens of one device."""

WIDEST_AT_MOST: Final = NETWORKS_AT_MOST // 4
"""How many of these networks may be inside one network of the widest kind. Each narrower kind has half."""

_CLAIM: Final = (
    select(claims)
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.token_hash == bindparam("token"))
)
_CLAIMS: Final = (
    select(claims)
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.expires_at_ms > bindparam("now_ms"))
    .order_by(claims.c.expires_at_ms, claims.c.token_hash)
)


def find_token(db: Connection, device_id: str, token_hash: bytes) -> Row[Any] | None:
    """Find a token of a device, even if it has expired or was used."""
    return db.execute(_CLAIM, {"of_device": device_id, "token": token_hash}).one_or_none()


def tokens_of(db: Connection, device_id: str, *, now_ms: int) -> Sequence[Row[Any]]:
    """List the tokens of a device that have not expired, ordered by expiry."""
    return db.execute(_CLAIMS, {"of_device": device_id, "now_ms": now_ms}).all()


def change_token(device_id: str, token_hash: bytes) -> Update:
    """Return an UPDATE statement for a token of a device."""
    return update(claims).where(claims.c.device_id == device_id, claims.c.token_hash == token_hash)


def keep_token(
    db: Connection,
    device: Device,
    key_hash: bytes,
    token_hash: bytes,
    *,
    networks: Sequence[str],
    now_ms: int,
    expires_at_ms: int,
) -> None:
    """Store a token for a device if there is a slot, or prolong it.

    `networks` are the caller's network and those around it, the widest first.
    """
    there = find_token(db, device.id, token_hash)
    if there is None:
        if _make_room(db, device, good=works(device, key_hash), networks=networks, now_ms=now_ms):
            # If a machine has connected with this key, the new token belongs to the same machine.
            seen_at_ms = seen_at(db, device.id, key_hash)
            add_token(db, device.id, key_hash, token_hash, expires_at_ms, networks[-1], seen_at_ms=seen_at_ms)
        return
    same = change_token(device.id, token_hash)
    if there.key_hash == key_hash or (works(device, key_hash) and works(device, there.key_hash)):
        db.execute(same.values(key_hash=key_hash, expires_at_ms=max(there.expires_at_ms, expires_at_ms)))
    elif there.used_by is None:
        # A stranger saw the token, or the machine generated another key meanwhile. The token becomes invalid,
        # so that a user pairs neither key with it. The machine's next token works again.
        db.execute(same.values(used_by=ENDED_TOKEN))


def add_token(
    db: Connection,
    device_id: str,
    key_hash: bytes,
    token_hash: bytes,
    expires_at_ms: int,
    network: str,
    *,
    seen_at_ms: int | None,
) -> None:
    """Store a new token."""
    row = {
        "device_id": device_id,
        "token_hash": token_hash,
        "key_hash": key_hash,
        "expires_at_ms": expires_at_ms,
        "network": network,
        "seen_at_ms": seen_at_ms,
    }
    db.execute(insert(claims), row)


def _make_room(db: Connection, device: Device, *, good: bool, networks: Sequence[str], now_ms: int) -> bool:
    """Drop the oldest tokens of a network for its new one. False if the network cannot have a slot.

    A token with a working key is never dropped for one without, nor is a token of another network. If too
    many networks have tokens, only the key of a device with users takes the slots of a network that has no
    token with it.
    """
    there = tokens_of(db, device.id, now_ms=now_ms)
    network = networks[-1]
    if crowd := _crowd(networks, dict.fromkeys(row.network or "" for row in there)):
        if not good or not current_users(db, device.id, now_ms=now_ms):
            return False
        with_it = {row.network or "" for row in there if works(device, row.key_hash)}
        dropped = next((name for name in crowd if name not in with_it), None)
        if dropped is None:
            return False
        _drop(db, device.id, [row.token_hash for row in there if (row.network or "") == dropped])
    mine = [row for row in there if (row.network or "") == network]
    ours = [row.token_hash for row in mine if works(device, row.key_hash)]
    others = [row.token_hash for row in mine if not works(device, row.key_hash)]
    drop: list[bytes] = []
    if good:
        # Always leave one place for a machine that has lost its key.
        excess = max(len(ours) + 2 - TOKENS_PER_NETWORK, 0)
        ours, drop = ours[excess:], ours[:excess]
    drop += others[: max(len(ours) + len(others) + 1 - TOKENS_PER_NETWORK, 0)]
    _drop(db, device.id, drop)
    return True


def _crowd(networks: Sequence[str], there: Iterable[str]) -> list[str]:
    """Return the networks that occupy all slots which this network could use. Empty if it has a slot.

    `there` are the networks that have slots, the oldest first.
    """
    *around, network = networks
    names = list(there)
    if network in names:
        return []
    for number, wider in reversed(list(enumerate(around))):
        inside = [name for name in names if _is_within(name, wider)]
        if len(inside) >= WIDEST_AT_MOST >> number:
            return inside
    return names if len(names) >= NETWORKS_AT_MOST else []


@lru_cache(maxsize=4096)
def _is_within(network: str, wider: str) -> bool:
    """Tell whether a network, named by its address, is inside a wider one."""
    try:
        return ip_address(network) in ip_network(wider)
    except ValueError:
        return False


def _drop(db: Connection, device_id: str, token_hashes: Sequence[bytes]) -> None:
    db.execute(delete(claims).where(claims.c.device_id == device_id, claims.c.token_hash.in_(token_hashes)))
