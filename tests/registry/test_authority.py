"""Authorities are verified inside the transaction of a write."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import trio
from sqlalchemy import Connection

from brewos_relay.core.grant import NamedDevices, Principal
from brewos_relay.errors import (
    DeviceUnknown,
    NotAnAdministrator,
    RegistryError,
    RoleTooLow,
    TokenRejected,
)
from brewos_relay.registry.access import give, take
from brewos_relay.registry.accounts import add_user, set_admin
from brewos_relay.registry.authority import ANONYMOUS_WRITES, Authority, verify
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import all_devices, remove_device, set_name
from brewos_relay.registry.issued_tokens import add_token, revoke_token
from brewos_relay.registry.login_sessions import end_session, end_sessions, open_session
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.records import StoredToken
from brewos_relay.registry.store import open_store
from brewos_relay.vocabulary import Role, now_ms
from support.registry import device_id, new_device, register, remove_user

DEADLINE_S = 30.0
SESSION = "s" * 32
TOKEN = "t" * 32
MACHINE = device_id(1)


@pytest.fixture
def ada(database: Database) -> str:
    """An account with a login session."""
    with database.writing() as db:
        user = add_user(db, email="ada@example.org", name=None, now_ms=1)
        set_admin(db, user.id, False)
        sign_in(db, user.id, SESSION)
    register(database, [new_device(1)])
    return user.id


def sign_in(db: Connection, user_id: str, session_id: str, *, expires_at_ms: int | None = None) -> None:
    open_session(
        db,
        session_id=session_id,
        user_id=user_id,
        refresh_hash=session_id.encode().ljust(32)[:32],
        user_agent=None,
        address=None,
        now_ms=1,
        expires_at_ms=now_ms() + 60_000 if expires_at_ms is None else expires_at_ms,
    )


def stored_token(user_id: str) -> StoredToken:
    at_ms = now_ms()
    return StoredToken(
        id=TOKEN,
        name=None,
        user_id=user_id,
        role="owner",
        devices=frozenset(),
        created_at_ms=at_ms,
        expires_at_ms=at_ms + 60_000,
        revoked_at_ms=None,
    )


def verified(database: Database, authority: Authority) -> None:
    with database.writing() as db:
        verify(db, authority, now_ms=now_ms())


def test_a_session_that_ended_or_expired_has_no_authority(database: Database, ada: str) -> None:
    authority = Authority(Principal(user_id=ada, session_id=SESSION))
    verified(database, authority)
    with database.writing() as db:
        sign_in(db, ada, "old", expires_at_ms=now_ms() - 1)
        end_session(db, SESSION, now_ms=1)
    for session_id in (SESSION, "old", "unknown"):
        with pytest.raises(TokenRejected):
            verified(database, Authority(Principal(user_id=ada, session_id=session_id)))


def test_the_session_of_another_user_has_no_authority(database: Database, ada: str) -> None:
    with database.writing() as db:
        bob = add_user(db, email="bob@example.org", name=None, now_ms=1)
    with pytest.raises(TokenRejected):
        verified(database, Authority(Principal(user_id=bob.id, session_id=SESSION)))


def test_a_removed_user_has_no_authority(database: Database, ada: str) -> None:
    with database.writing() as db:
        remove_user(db, ada, now_ms=1)
    with pytest.raises(TokenRejected):
        verified(database, Authority(Principal(user_id=ada, session_id=SESSION)))


def test_only_an_administrators_session_has_administrator_authority(database: Database, ada: str) -> None:
    principal = Principal(user_id=ada, session_id=SESSION)
    with pytest.raises(NotAnAdministrator):
        verified(database, Authority(principal, is_admin=True))
    with database.writing() as db:
        set_admin(db, ada, True)
    verified(database, Authority(principal, is_admin=True))
    with pytest.raises(NotAnAdministrator):
        verified(database, Authority(Principal(user_id=ada), is_admin=True))


@pytest.mark.parametrize(
    ("held", "token", "named", "refusal"),
    [
        ("owner", "owner", False, None),
        ("member", "owner", False, RoleTooLow),
        ("owner", "member", False, RoleTooLow),
        ("owner", "viewer", True, RoleTooLow),
        ("viewer", "owner", True, None),
        (None, "owner", False, DeviceUnknown),
    ],
)
def test_the_role_for_the_device_is_verified(
    database: Database,
    ada: str,
    held: Role | None,
    token: Role,
    named: bool,
    refusal: type[RegistryError] | None,
) -> None:
    if held is not None:
        with database.writing() as db:
            give(db, MACHINE, ada, role=held, now_ms=1)
    devices: NamedDevices = frozenset({MACHINE}) if named else frozenset()
    principal = Principal(user_id=ada, session_id=SESSION, role=token, devices=devices)
    authority = Authority(principal, MACHINE, "owner", about_user_id=ada)
    if refusal is None:
        verified(database, authority)
    else:
        with pytest.raises(refusal):
            verified(database, authority)


async def test_a_write_without_authority_writes_nothing(database: Database, ada: str, url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            principal = Principal(user_id=ada, session_id=SESSION)
            with pytest.raises(DeviceUnknown):
                await store.write_as(
                    Authority(principal, MACHINE, "owner"), set_name, MACHINE, "Mine", now_ms=1
                )
            await store.write(give, MACHINE, ada, role="owner", now_ms=1)
            assert await store.write_as(
                Authority(principal, MACHINE, "owner"), set_name, MACHINE, "Mine", now_ms=1
            )
            await store.write(end_sessions, ada, now_ms=1)
            with pytest.raises(TokenRejected):
                await store.write_as(Authority(principal), set_name, MACHINE, "Not mine", now_ms=1)
            [device] = await store.read(all_devices)
            assert device.name == "Mine"


async def test_an_anonymous_write_is_one_of_those_listed_with_a_reason(url: str) -> None:
    assert all(ANONYMOUS_WRITES.values())
    async with open_store(url) as store:
        with pytest.raises(TypeError, match="needs an authority"):
            await store.write_anonymous(set_name, MACHINE, "Mine", now_ms=1)
        await store.write_anonymous(
            register_pairing,
            device_id=MACHINE,
            key_hash=b"k" * 32,
            token_hash=b"t" * 32,
            now_ms=now_ms(),
            expires_at_ms=now_ms() + 1000,
        )


@pytest.mark.parametrize("ending", ["session", "user", "access", "device", "token", "administrator"])
def test_verified_rights_hold_until_the_commit(database: Database, ada: str, ending: str) -> None:
    """Ending waits for the writer that verified first, on both engines."""
    with database.writing() as db:
        bob = add_user(db, email="bob@example.org", name=None, now_ms=1)
        for user_id in (ada, bob.id):
            give(db, MACHINE, user_id, role="owner", now_ms=1)
        set_admin(db, ada, True)
        add_token(db, stored_token(ada))
    principal = Principal(user_id=ada, session_id=SESSION, token_id=TOKEN if ending == "token" else None)
    authority = Authority(principal, MACHINE, "owner", is_admin=ending == "administrator")
    started = threading.Event()

    def end() -> None:
        with database.writing() as db:
            started.set()
            if ending == "session":
                end_session(db, SESSION, now_ms=1)
            elif ending == "user":
                remove_user(db, ada, now_ms=1)
            elif ending == "access":
                take(db, MACHINE, ada, now_ms=1)
            elif ending == "device":
                remove_device(db, MACHINE, now_ms=1)
            elif ending == "token":
                assert revoke_token(db, TOKEN, now_ms=now_ms())
            else:
                set_admin(db, ada, False)

    with ThreadPoolExecutor(1) as threads:
        with database.writing() as db:
            verify(db, authority, now_ms=now_ms())
            ended: Future[None] = threads.submit(end)
            if not database.one_writer:
                assert started.wait(DEADLINE_S)
            with pytest.raises(TimeoutError):
                ended.result(0.1)
            set_name(db, MACHINE, "Kitchen", now_ms=1)
        ended.result(DEADLINE_S)
    with pytest.raises((DeviceUnknown, TokenRejected, NotAnAdministrator)):
        verified(database, authority)
