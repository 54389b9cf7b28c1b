"""Machines that are sent a key, and obey, ignore it, lose it, or keep it for later: none is locked out."""

from pathlib import Path

from brewos_relay.vocabulary import is_key
from support.home import MACHINE, Home, Person, open_home, see_it_work
from support.process import KEY, run_command
from support.wire_client import WireClient

ROTATE = f"/api/devices/{MACHINE}/rotate-key"


async def rotate(ada: Person) -> None:
    told = await ada.ask("POST", ROTATE)
    assert (told.status, told.content["status"]) == (202, "sent")


async def new_key(device: WireClient) -> str:
    """Read the key that a machine is sent."""
    message = await device.read_until("key_rotate")
    assert set(message) == {"type", "key"}
    key = str(message["key"])
    assert is_key(key)
    return key


async def switch_off(ada: Person, device: WireClient) -> None:
    """Let a machine go, and the relay notice that."""
    app = await ada.app()
    device.abort()
    await app.read_until("device_offline")


async def see_in(home: Home, ada: Person, key: str) -> WireClient:
    """See a machine come in with a key, and work."""
    device = await home.server.device(MACHINE, key=key)
    await see_it_work(device, await ada.app())
    return device


async def test_a_machine_that_obeys_ends_its_old_key(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        key = await new_key(device)
        await see_it_work(device, await ada.app())  # no connection is closed for it
        assert await home.status_of_key(KEY) == 101  # until the machine has connected with the new key
        again = await see_in(home, ada, key)
        assert (await device.read_close())[0] == 4002
        assert await home.status_of_key(KEY) == 401
        await see_it_work(again, await ada.app())
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["keyPending"] is False


async def test_a_machine_that_registers_with_its_new_key_first_is_recognized(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, mel = await home.person("ada"), await home.person("mel")
        await home.pair(ada)
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        key = await new_key(device)
        token = await home.show(key=key)  # as at every boot
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["keyPending"] is False
        assert await home.status_of_key(KEY) == 101
        await see_in(home, ada, key)
        assert (await mel.claim(token)).content["role"] == "member"


async def test_a_machine_that_ignores_it_is_never_locked_out(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        for _ in range(5):
            device = await see_in(home, ada, KEY)
            await rotate(ada)
            await new_key(device)
            await switch_off(ada, device)
        device = await see_in(home, ada, KEY)
        told = await ada.ask("POST", ROTATE)
        assert told.status == 409
        await switch_off(ada, device)
        await home.show()
        await see_in(home, ada, KEY)


async def test_a_machine_that_loses_the_new_key_connects_with_the_old_one(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        for _ in range(2):
            device = await see_in(home, ada, KEY)
            await rotate(ada)
            device.abort()  # the message was on its way
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        key = await new_key(device)
        await see_in(home, ada, key)
        assert await home.status_of_key(KEY) == 401


async def test_a_machine_that_stores_the_new_key_connects_with_it_later(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        key = await new_key(device)
        # It reconnects with its old key, since it uses the new one only after a boot, and gets another one.
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        newer = await new_key(device)
        device.abort()
    async with open_home(tmp_path) as home:  # and the relay was restarted meanwhile
        ada = await home.person("ada")
        await see_in(home, ada, key)
        assert await home.status_of_key(KEY) == 401
        assert await home.status_of_key(key) == 101
        await see_in(home, ada, newer)  # which may have been on its way still
        assert await home.status_of_key(key) == 401
        await see_in(home, ada, newer)


async def test_a_machine_whose_first_connection_with_the_new_key_breaks_is_admitted(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await see_in(home, ada, KEY)
        await rotate(ada)
        key = await new_key(device)
        for _ in range(3):
            assert await home.status_of_key(key) == 101  # and is gone
        await see_in(home, ada, key)


async def test_no_key_is_sent_to_an_absent_machine(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        before = home.standing()
        assert (await ada.ask("POST", ROTATE)).status == 409
        assert home.standing() == before


async def test_the_command_line_asks_the_running_server(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device = await see_in(home, ada, KEY)
        done = await run_command(tmp_path, "device", "rotate-key", MACHINE, DATA_DIR=tmp_path)
        assert done.returncode == 0, done.stderr
        key = await new_key(device)
        assert key.encode() not in done.stdout + done.stderr
        await see_in(home, ada, key)
        assert await home.status_of_key(KEY) == 401
