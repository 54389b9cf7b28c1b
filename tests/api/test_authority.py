"""Requests whose authority ends while they wait: each write verifies it inside its transaction."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, select, text

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from brewos_relay.auth.passwords import hash_password
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.core.grant import Principal
from brewos_relay.errors import TokenRejected
from brewos_relay.registry.accounts import find_user, set_admin, set_password_hash
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.database import Database
from brewos_relay.registry.login_sessions import open_session, sessions_of
from brewos_relay.registry.pairing import pair_device, register_pairing
from brewos_relay.registry.schema import device_users, users
from brewos_relay.vocabulary import now_ms
from support.household import Household, open_household
from support.postgresql import PostgreSQL
from support.registry import remove_user

DEADLINE_S = 60.0
CLAIMS = 150
PASSWORDS = 12
PASSWORD = "correct horse battery"
TOKEN = "shown-on-the-screen"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    with postgresql.new_database() as url:
        yield url


@asynccontextmanager
async def open_house(folder: Path, url: str) -> AsyncIterator[Household]:
    request_limits = RequestLimits()
    request_limits.pairings_by_user = RequestLimit("attempts", burst=1000, each_minute=1)
    request_limits.pairings_by_address = RequestLimit("attempts", burst=1000, each_minute=1)
    accounts = AccountRules(machines_per_account=1000)
    with trio.fail_after(DEADLINE_S):
        async with open_household(
            folder, request_limits=request_limits, accounts=accounts, url=url, write_s=DEADLINE_S
        ) as house:
            await house.signed_in("ada")
            yield house


def show_codes(db: Connection) -> None:
    at_ms = now_ms()
    for number in range(CLAIMS):
        register_pairing(
            db,
            device_id=f"BRW-{number + 0x1000:08X}",
            key_hash=b"k" * 32,
            token_hash=hash_secret(TOKEN),
            now_ms=at_ms,
            expires_at_ms=at_ms + 600_000,
        )


def orphans(db: Connection) -> list[str]:
    accounts = select(users.c.id)
    return list(db.scalars(select(device_users.c.device_id).where(device_users.c.user_id.not_in(accounts))))


async def test_pairing_in_flight_leaves_no_machine_with_a_removed_owner(tmp_path: Path, url: str) -> None:
    async with open_house(tmp_path, url) as house:
        await house.signed_in("root")
        await house.store.write(set_admin, "root", True)
        await house.store.write(show_codes)
        statuses: list[int] = []

        async def ask_for(number: int) -> None:
            body = {"deviceId": f"BRW-{number + 0x1000:08X}", "token": TOKEN}
            statuses.append((await house.ask("POST", "/devices/claim", body)).status)

        async with trio.open_nursery() as nursery:
            for number in range(CLAIMS // 2):
                nursery.start_soon(ask_for, number)
            nursery.start_soon(remove_ada, house)
            for number in range(CLAIMS // 2, CLAIMS):
                nursery.start_soon(ask_for, number)
        assert len(statuses) == CLAIMS
        assert set(statuses) <= {200, 401, 503}  # this many requests at once fill the queue
        assert await house.store.read(orphans) == []


async def test_pairing_admitted_before_its_user_was_removed_leaves_no_orphan(
    tmp_path: Path, url: str
) -> None:
    async with open_house(tmp_path, url) as house:
        await house.store.write(show_codes)
        [session] = await house.store.read(sessions_of, "ada", now_ms=now_ms())
        authority = Authority(Principal(user_id="ada", session_id=session.id))
        release, rejected = trio.Event(), list[int]()

        async def take(number: int) -> None:
            with pytest.raises(TokenRejected):
                await house.store.write_as(
                    authority,
                    pair_device,
                    device_id=f"BRW-{number + 0x1000:08X}",
                    token_hash=hash_secret(TOKEN),
                    user_id="ada",
                    name=None,
                    now_ms=now_ms(),
                )
            rejected.append(number)

        async def remove() -> None:
            assert await house.store.write(remove_user, "ada", now_ms=now_ms())

        async with trio.open_nursery() as nursery, locked_account(url, "ada", until=release):
            nursery.start_soon(remove)
            await write_waiting_for_lock(house, url)
            for number in range(CLAIMS):
                nursery.start_soon(take, number)
            await writes_waiting(house, 1 + CLAIMS)
            release.set()
        assert len(rejected) == CLAIMS
        assert await house.store.read(orphans) == []


async def remove_ada(house: Household) -> None:
    assert (await house.ask("DELETE", "/admin/users/ada", by="root")).status == 200


async def test_password_changes_queued_behind_logout_all_fail(tmp_path: Path, url: str) -> None:
    async with open_house(tmp_path, url) as house:
        release, statuses = trio.Event(), list[int]()

        async def change(number: int) -> None:
            body = {"password": f"correct horse battery {number}"}
            statuses.append((await house.ask("PUT", "/me/password", body)).status)

        async def sign_out() -> None:
            assert (await house.ask("POST", "/auth/logout-all")).content == {"ended": 1}

        async with trio.open_nursery() as nursery, locked_account(url, "ada", until=release):
            nursery.start_soon(sign_out)
            await write_waiting_for_lock(house, url)
            for number in range(PASSWORDS):
                nursery.start_soon(change, number)
            await writes_waiting(house, 1 + PASSWORDS)
            release.set()
        assert statuses == [401] * PASSWORDS
        user = await house.store.read(find_user, "ada")
        assert user is not None
        assert not user.has_password


@pytest.mark.parametrize("ending", ["password", "account"])
async def test_sign_in_with_a_password_changed_meanwhile_starts_no_session(
    tmp_path: Path, url: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path, url) as house:
        await house.store.write(set_password_hash, "ada", hash_password(PASSWORD))
        body = {"email": "ada@example.org", "password": PASSWORD}
        assert (await house.ask("POST", "/auth/password", body, by=None)).status == 200
        write = house.store.write_anonymous

        async def write_late(function: Any, *args: Any, **kwargs: Any) -> Any:
            if function is open_session:
                if ending == "password":
                    await house.store.write(set_password_hash, "ada", hash_password(f"{PASSWORD} 2"))
                else:
                    await house.store.write(remove_user, "ada", now_ms=now_ms())
            return await write(function, *args, **kwargs)

        monkeypatch.setattr(house.store, "write_anonymous", write_late)
        before = await house.store.read(sessions_of, "ada", now_ms=now_ms())
        answer = await house.ask("POST", "/auth/password", body, by=None)
        assert answer.status == 401
        after = await house.store.read(sessions_of, "ada", now_ms=now_ms())
        assert after == ([] if ending == "account" else before)


@asynccontextmanager
async def locked_account(url: str, user_id: str, *, until: trio.Event) -> AsyncIterator[None]:
    """Lock a row in another connection, so that every writer of the account waits."""
    held = trio.Event()

    def hold() -> None:
        with Database.open(url) as database, database.writing() as db:
            db.execute(select(users).where(users.c.id == user_id).with_for_update()).all()
            trio.from_thread.run_sync(held.set)
            trio.from_thread.run(until.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, hold)
        await held.wait()
        yield


async def write_waiting_for_lock(house: Household, url: str) -> None:
    """Wait until one write runs and, where several can run at once, waits for the locked row."""
    await writes_waiting(house, 1)
    while True:
        if not url.startswith("postgresql") or await house.store.read(lock_awaited):
            return
        await trio.sleep(0.01)


def lock_awaited(db: Connection) -> bool:
    return bool(db.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


async def writes_waiting(house: Household, count: int) -> None:
    """Wait until `count` writes are running or queued."""
    while True:
        seen = house.store._writers.statistics()
        if seen.borrowed_tokens + seen.tasks_waiting >= count:
            return
        await trio.sleep(0.01)
