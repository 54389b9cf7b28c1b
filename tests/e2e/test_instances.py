"""Two instances with one registry and a bus: users and administrators see the same on each of them.

Machines are at the first one, apps and requests at the second.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.passwords import hash_password
from brewos_relay.registry.accounts import find_user_by_email, set_admin, set_password_hash
from support.home import MACHINE, Home, Person, open_homes, see_it_work
from support.http_client import ask
from support.process import KEY, machine_id, run_command
from support.redis_server import RedisServer
from support.wire_client import WireClient, text

SOON_S = 0.5
"""How long a client on another instance may stay connected after its user lost access."""
PASSWORD = "correct horse battery"


async def owner(one: Home, two: Home) -> tuple[Person, WireClient]:
    """Let Ada own a machine, which is connected to the first instance; she uses the second one."""
    ada = await one.person("ada")
    await one.pair(ada)
    device = await one.server.device(MACHINE)
    await device.send(text({"type": "status", "seq": 1, "machine": {"mode": "on"}}))
    return ada.at(two), device


def promote(home: Home, person: Person) -> None:
    with home.registry() as db:
        set_admin(db, person.user_id, True)


async def test_lists_states_and_figures_cover_all_instances(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, device = await owner(one, two)
        promote(one, ada)
        app = await ada.app()
        await see_it_work(device, app)
        for person in (ada, ada.at(one)):
            [listed] = (await person.must("GET", "/api/devices"))["devices"]
            assert listed["isOnline"] is True
            assert (await person.must("GET", f"/api/devices/{MACHINE}"))["device"]["isOnline"] is True
            state = await person.must("GET", f"/api/devices/{MACHINE}/state")
            assert state["messages"]["status"]["mark"]
            [user] = (await person.must("GET", f"/api/devices/{MACHINE}/watchers"))["watchers"]
            assert user["userId"] == ada.user_id
            [shown] = (await person.must("GET", "/api/admin/devices"))["devices"]
            assert (shown["isOnline"], shown["clients"]) == (True, 1)
            told = await ask(person.home.server, "GET", "/api/health")
            stats = await person.must("GET", "/api/admin/stats")
            # Each instance knows the figures of the other since its last renewal.
            assert set(told.content) == {"status", "timestamp", "devices", "clients"}
            assert set(stats) >= {"devices", "clients", "totals"}


async def test_figures_of_other_instances_are_added(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.cluster.member.RENEW_EVERY_S", 0.05)
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, _ = await owner(one, two)
        promote(one, ada)
        await ada.app()
        for person in (ada, ada.at(one)):
            known = (0, 0)
            while known != (1, 1):  # until the other instance has renewed its description
                health = (await ask(person.home.server, "GET", "/api/health")).content
                known = (health["devices"], health["clients"])
            stats = await person.must("GET", "/api/admin/stats")
            assert (stats["devices"], stats["clients"]) == (1, 1)


async def test_the_instances_are_listed_for_administrators(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, _ = await owner(one, two)
        assert (await ada.ask("GET", "/api/admin/instances")).status == 403
        assert (await ask(two.server, "GET", "/api/admin/instances")).status == 401
        promote(one, ada)
        answer = await ada.must("GET", "/api/admin/instances")
        assert answer["problems"] == []
        assert answer["bus"]["available"] is True
        assert answer["bus"]["answerMs"] > 0
        first, second = answer["instances"]
        assert (first["name"][:4], second["name"][:4]) == ("one-", "two-")
        for each in (first, second):
            assert (each["state"], each["processes"]) == ("running", 1)
            assert each["answerMs"] > 0
            assert each["version"]
            assert each["startedAt"].endswith("Z")
        assert (second["devices"], second["clients"]) == (0, 0)
        await ada.app()
        _, second = (await ada.must("GET", "/api/admin/instances"))["instances"]
        assert second["clients"] == 1, "its own figures are those of now"
        redis.kill()
        with trio.fail_after(5):
            while (later := await ada.must("GET", "/api/admin/instances"))["bus"]["available"]:
                pass
        assert [each["name"] for each in later["instances"]] == [second["name"]]
        assert [each["kind"] for each in later["problems"]] == ["bus"]


async def only_key(device: WireClient) -> str:
    """Read the key that a machine gets, and check that no other follows."""
    key = str((await device.read_until("key_rotate"))["key"])
    with trio.move_on_after(0.5):
        other = await device.read_until("key_rotate")
        raise AssertionError(other)
    return key


async def test_a_rotation_on_the_wrong_instance_sends_one_key(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, device = await owner(one, two)
        told = await ada.ask("POST", f"/api/devices/{MACHINE}/rotate-key")
        assert (told.status, told.content["status"]) == (202, "sent")
        key = await only_key(device)
        assert await two.status_of_key(key) == 101
        assert await two.status_of_key(KEY) == 401


async def test_a_rotation_by_the_command_line_sends_one_key(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url, within_s=30) as (one, two):
        _, device = await owner(one, two)
        ran = await run_command(tmp_path, "device", "rotate-key", MACHINE, "--data-dir", str(tmp_path))
        assert ran.returncode == 0, ran
        await only_key(device)


async def sign_out(ada: Person, guest: Person) -> None:
    await guest.must("POST", "/api/auth/logout-all")


async def remove_user(ada: Person, guest: Person) -> None:
    await ada.must("DELETE", f"/api/devices/{MACHINE}/users/{guest.user_id}")


async def remove_account(ada: Person, guest: Person) -> None:
    promote(ada.home, ada)
    await ada.must("DELETE", f"/api/admin/users/{guest.user_id}")


async def release(ada: Person, guest: Person) -> None:
    promote(ada.home, ada)
    await ada.must("POST", f"/api/admin/devices/{MACHINE}/release")


@pytest.mark.parametrize("end", [sign_out, remove_user, remove_account, release])
async def test_lost_access_closes_clients_on_other_instances(
    tmp_path: Path, redis: RedisServer, end: Callable[[Person, Person], Awaitable[None]]
) -> None:
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, device = await owner(one, two)
        guest = (await two.lend(ada, "guest")).at(two)
        app = await guest.app()
        await see_it_work(device, app)
        await end(ada.at(one), guest.at(one))
        with trio.fail_after(SOON_S):
            assert (await app.read_close())[0] in (4002, 4003)


async def test_instances_tell_each_other_of_changes(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.server.cluster._COMPARE_EVERY_S", 0.05)
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, device = await owner(one, two)
        guest = (await two.lend(ada, "guest")).at(two)
        app = await guest.app()
        await see_it_work(device, app)
        await trio.sleep(0.2)  # until the first instance knows the second one
        monkeypatch.setattr("brewos_relay.registry.change_feed.POLL_S", 60.0)
        await trio.sleep(0.5)  # until both wait that long
        await remove_user(ada.at(one), guest)
        with trio.fail_after(SOON_S):
            assert (await app.read_close())[0] == 4003


async def test_a_revoked_token_closes_its_client_on_another_instance(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with open_homes(tmp_path, redis.url, within_s=30) as (one, two):
        ada, _ = await owner(one, two)
        promote(one, ada)
        made = await run_command(
            tmp_path,
            *("token", "--user", "ada", "--email", "a@b.c", "--all-devices"),
            DATA_DIR=tmp_path,
        )
        app = await two.server.client(MACHINE, token=made.stdout.decode().strip())
        [listed] = (await ada.must("GET", "/api/admin/tokens"))["tokens"]
        await ada.at(one).must("DELETE", f"/api/admin/tokens/{listed['id']}")
        with trio.fail_after(SOON_S):
            assert (await app.read_close())[0] == 4002


async def test_a_lower_role_applies_on_another_instance(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url) as (one, two):
        ada, device = await owner(one, two)
        guest = (await two.lend(ada, "guest")).at(two)
        app = await guest.app()
        await see_it_work(device, app)
        path = f"/api/devices/{MACHINE}/users/{guest.user_id}"
        await ada.at(one).must("PATCH", path, {"role": "viewer"})
        with trio.fail_after(SOON_S):
            while True:
                await app.send(text({"type": "command", "cmd": "tare", "requestId": 1}))
                if (await app.read_until("command_status"))["status"] == "forbidden":
                    break
                await trio.sleep(0.02)


async def test_a_machine_with_a_revoked_key_is_closed_on_another_instance(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with open_homes(tmp_path, redis.url, machines=(2,), within_s=30) as (one, two):
        device = await one.server.device(machine_id(2))
        ran = await run_command(tmp_path, "device", "remove", machine_id(2), "--data-dir", str(tmp_path))
        assert ran.returncode == 0, ran
        with trio.fail_after(SOON_S):
            await device.read_close()
        assert await two.status_of_key(KEY, 2) == 401


async def test_guesses_at_a_password_are_counted_on_all_instances(tmp_path: Path, redis: RedisServer) -> None:
    async with open_homes(tmp_path, redis.url, within_s=30) as homes:
        ada = await homes[0].person("ada")
        with homes[0].registry() as db:
            set_password_hash(db, ada.user_id, hash_password(PASSWORD))
            user = find_user_by_email(db, "ada@example.org")
        assert user is not None
        statuses = []
        for number in range(12):
            body = {"email": user.email, "password": f"wrong guess {number}"}
            told = await ask(homes[number % 2].server, "POST", "/api/auth/password", body)
            statuses.append(told.status)
        assert statuses[:8] == [401] * 8
        assert statuses.count(401) <= 9, "a slow machine may allow one more"
        body = {"email": user.email, "password": PASSWORD}
        assert (await ask(homes[1].server, "POST", "/api/auth/password", body)).status == 429
