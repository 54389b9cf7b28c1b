"""Another process holds the registry's lock: what writes is refused in time, and everything else goes on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from support.home import CLAIM_SHARE, MACHINE, REGISTER, Person, open_home, see_it_work
from support.http_client import Told, ask
from support.process import KEY, machine_id
from support.steady_clock import SteadyClock

ADMISSION_S = 1.0
OTHER_KEY = "o" * 43
_HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    (file,) = folder.glob("*.db")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            holder.kill()


async def ask_free(person: Person, method: str, path: str, body: Any) -> Told:
    """Ask after the lock has ended, and again while what waited behind it is still written."""
    while (told := await person.ask(method, path, body)).status == 503:  # noqa: ASYNC110 - there is no event
        await trio.sleep(0.1)
    return told


async def test_writes_are_answered_with_503_in_time_and_never_done_later(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    statuses: list[int] = []
    async with open_home(tmp_path, within_s=20, admission_s=ADMISSION_S) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await home.server.device(MACHINE, key=KEY)

        async def rename(number: int) -> None:
            told = await ada.ask("PATCH", f"/api/devices/{MACHINE}", {"name": f"late {number}"})
            statuses.append(told.status)
            assert told.response.header("retry-after") == ["5"]
            assert "nothing was changed" in told.content["error"]

        with locked(tmp_path):
            began_at = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(6):  # each of them also behind the others
                    nursery.start_soon(rename, number)
                await see_it_work(device, await ada.app())  # what only reads goes on
            assert trio.current_time() - began_at < 3 * ADMISSION_S
        assert statuses == [503] * 6
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["name"] == MACHINE
        assert (await ask_free(ada, "PATCH", f"/api/devices/{MACHINE}", {"name": "Kitchen"})).status == 200
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["name"] == "Kitchen"


async def test_pairing_and_sign_ins_behind_a_lock_and_each_other_are_answered_in_time(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    took_s: dict[str, float] = {}
    async with open_home(tmp_path, within_s=20, admission_s=ADMISSION_S) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        share = await ada.share()
        refresh_token = ada.session["refreshToken"]

        async def send(name: str, path: str, body: dict[str, Any]) -> None:
            began_at = trio.current_time()
            told = await ada.ask("POST", path, body)
            took_s[name] = trio.current_time() - began_at
            assert told.status == 503, (name, told)

        with locked(tmp_path):
            async with trio.open_nursery() as nursery:
                for number in range(5):  # each kind has a queue with one turn at a time
                    new = {"deviceId": machine_id(number + 2), "token": "t" * 32, "deviceKey": OTHER_KEY}
                    nursery.start_soon(send, f"registration {number}", REGISTER, new)
                    nursery.start_soon(
                        send, f"claim {number}", CLAIM_SHARE, {"deviceId": MACHINE, "token": share["token"]}
                    )
                nursery.start_soon(send, "refresh", "/api/auth/refresh", {"refreshToken": refresh_token})
                nursery.start_soon(send, "logout-all", "/api/auth/logout-all", {})
                nursery.start_soon(send, "share", f"/api/devices/{MACHINE}/share", {})
        assert len(took_s) == 13
        assert {name: took for name, took in took_s.items() if took > 2.5 * ADMISSION_S} == {}


async def test_a_machine_with_its_next_key_is_admitted_and_the_key_is_recorded_later(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    async with open_home(tmp_path, within_s=20, admission_s=ADMISSION_S) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await home.server.device(MACHINE, key=KEY)
        assert (await ada.ask("POST", f"/api/devices/{MACHINE}/rotate-key")).status == 202
        key = (await device.read_until("key_rotate"))["key"]
        with locked(tmp_path):
            began_at = trio.current_time()
            assert await home.status_of_key(key) == 101
            assert trio.current_time() - began_at < 3 * ADMISSION_S
            assert await home.status_of_key(KEY) == 101
        assert await home.status_of_key(key) == 101
        while await home.status_of_key(KEY) != 401:  # noqa: ASYNC110 - the old key ends with the held write
            await trio.sleep(0.1)


async def test_machine_registers_behind_a_lock_and_its_token_is_good_afterwards(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    async with open_home(tmp_path, within_s=30, admission_s=ADMISSION_S) as home:
        ada, bob = await home.person("ada"), await home.person("bob")
        await home.pair(ada)

        async def register(device_id: str, key: str, token: str) -> int:
            body = {"deviceId": device_id, "token": token, "deviceKey": key}
            return (await ask(home.server, "POST", "/api/devices/register-claim", body)).status

        with locked(tmp_path):
            began_at = trio.current_time()
            assert await register(MACHINE, KEY, "shown-behind-a-lock") == 200
            assert trio.current_time() - began_at < 5
            assert await home.status_of_key(KEY) == 101
            # Never a false 200: a machine would not try again before it is switched off and on.
            assert await register(MACHINE, OTHER_KEY, "shown-by-another") == 503
            assert await register("BRW-0000FFFF", KEY, "shown-by-unknown") == 503
            body = {"deviceId": MACHINE, "token": "shown-behind-a-lock"}
            assert (await bob.ask("POST", "/api/devices/claim", body)).status == 503
        claimed = await ask_free(bob, "POST", "/api/devices/claim", body)
        assert (claimed.status, claimed.content["role"]) == (200, "member")
        body["token"] = "shown-by-another"
        assert (await ask_free(bob, "POST", "/api/devices/claim", body)).status == 404


async def test_registration_of_a_known_key_is_answered_with_200_without_a_write(
    tmp_path: Path,
) -> None:
    async with open_home(tmp_path, within_s=20, admission_s=ADMISSION_S) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        with locked(tmp_path):
            await home.show()  # or the machine would not even try to connect
            body = {"deviceId": MACHINE, "token": "t" * 32, "deviceKey": "x" * 43}
            assert (await ask(home.server, "POST", REGISTER, body)).status == 503
