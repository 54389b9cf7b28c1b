"""Apps that keep sending while they lose access: by the API, the command line, or expiry."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from brewos_relay.registry.accounts import set_admin
from support.home import MACHINE, SOON_S, Home, Person, command, commands_before, open_home, see_it_work
from support.http_client import ask
from support.load import measured_lateness
from support.process import KEY, one_instance, run_command, serve_process
from support.wire_client import Ended, WireClient, text

_GONE = (Ended, trio.BrokenResourceError, trio.ClosedResourceError)
_LATE_S = 0.05

TakeAway = Callable[[Home, Person, Person], Awaitable[object]]
"""Takes from the third what the second has given them."""


class InsistentApp:
    """An app that sends numbered commands until the connection is gone, even after a close frame."""

    def __init__(self, client: WireClient) -> None:
        self.client = client
        self.sent_at: list[float] = []
        """When each was sent (wall clock)."""
        self.forbidden = 0
        self.heard = 0
        """The number of device messages received."""
        self.code: int | None = None
        self._more = trio.Event()
        self.closed = trio.Event()
        self.ended = trio.Event()

    @property
    def sent(self) -> int:
        return len(self.sent_at)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._insist)
            try:
                while (found := await self.client.read_message()).opcode != 0x8:
                    self.forbidden += b'"forbidden"' in found.payload
                    self.heard += b'"status"' in found.payload
                self.code = int.from_bytes(found.payload[:2], "big")
            except _GONE:
                pass
            self.closed.set()
            await self.ended.wait()

    async def _insist(self) -> None:
        try:
            while True:
                self.sent_at.append(time.time())
                self._more.set()
                self._more = trio.Event()
                await self.client.send(command(number=self.sent))
                await trio.sleep(0.002)
        except _GONE:
            self.ended.set()

    async def wait_for_more(self, count: int = 20) -> None:
        """Wait until this many more messages were sent."""
        enough = self.sent + count
        while self.sent < enough:
            await self._more.wait()


class Scene:
    """A machine, a guest's app that sends without pause, and a witness app that stays attached."""

    def __init__(self, *, device: WireClient, witness: WireClient, app: InsistentApp) -> None:
        self.device = device
        self.witness = witness
        self.app = app

    async def numbers(self) -> list[int]:
        """Return the numbers of the guest's commands that reached the machine since the last call."""
        return [found["number"] for found in await commands_before(self.device, self.witness)]


@asynccontextmanager
async def open_scene(home: Home, guest: Person) -> AsyncIterator[Scene]:
    device = await home.server.device(MACHINE)
    witness = await home.server.client(MACHINE)  # by a token for the machine
    app = InsistentApp(await guest.app())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run)
        scene = Scene(device=device, witness=witness, app=app)
        await app.wait_for_more()
        assert await scene.numbers()
        yield scene
        nursery.cancel_scope.cancel()


async def see_access_end(
    home: Home, ada: Person, guest: Person, take_away: TakeAway, code: int, *, at_once: bool = True
) -> None:
    """Check that a guest's app is closed within a second, and that its later messages have no effect.

    `at_once` is for actions that are complete once they are answered: messages after the response are lost.
    """
    async with open_scene(home, guest) as scene:
        app = scene.app
        await take_away(home, ada, guest)
        answered = app.sent
        with trio.fail_after(SOON_S):
            await app.closed.wait()
        if not at_once:
            answered = app.sent
        assert app.code == code
        await app.ended.wait()
        assert app.sent >= answered
        numbers = await scene.numbers()
        assert max(numbers, default=0) <= answered, (answered, numbers[-5:])
        await see_it_work(scene.device, scene.witness)


async def remove_user(home: Home, ada: Person, guest: Person) -> None:
    await ada.must("DELETE", f"/api/devices/{MACHINE}/users/{guest.user_id}")


async def leave(home: Home, ada: Person, guest: Person) -> None:
    await guest.must("DELETE", f"/api/devices/{MACHINE}")


async def release(home: Home, ada: Person, guest: Person) -> None:
    await ada.must("DELETE", f"/api/devices/{MACHINE}?everyone=true")


async def log_out(home: Home, ada: Person, guest: Person) -> None:
    await guest.must("POST", "/api/auth/logout")


async def log_out_everywhere(home: Home, ada: Person, guest: Person) -> None:
    await (await home.person(guest.name)).must("POST", "/api/auth/logout-all")


async def end_the_session(home: Home, ada: Person, guest: Person) -> None:
    elsewhere = await home.person(guest.name)
    session_id = (await guest.must("GET", "/api/auth/me"))["sessionId"]
    await elsewhere.must("DELETE", f"/api/auth/sessions/{session_id}")


async def change_the_password(home: Home, ada: Person, guest: Person) -> None:
    elsewhere = await home.person(guest.name)
    await elsewhere.must("PUT", "/api/me/password", {"password": "a first password"})
    await elsewhere.must(
        "PUT",
        "/api/me/password",
        {"password": "another password", "currentPassword": "a first password"},
    )


BY_API: dict[str, tuple[TakeAway, int]] = {
    "the owner removes them": (remove_user, 4003),
    "they leave": (leave, 4003),
    "the owner gives the machine up": (release, 4003),
    "they log out": (log_out, 4002),
    "they log out everywhere": (log_out_everywhere, 4002),
    "they end that session in another": (end_the_session, 4002),
    "they change their password": (change_the_password, 4002),
}


@pytest.mark.parametrize(("take_away", "code"), BY_API.values(), ids=BY_API)
async def test_messages_sent_after_access_ended_are_dropped(
    tmp_path: Path, take_away: TakeAway, code: int
) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        await see_access_end(home, ada, await home.lend(ada, "mel"), take_away, code)


async def test_users_who_lost_access_cannot_reconnect(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        await remove_user(home, ada, mel)
        target = f"/ws/client?token={mel.token}&device={MACHINE}"
        assert (await home.knock(target)).status == 403
        assert (await mel.ask("GET", f"/api/devices/{MACHINE}")).status == 404
        assert (await mel.must("GET", "/api/devices"))["devices"] == []


async def test_other_sessions_of_the_same_user_continue(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, elsewhere = await home.person("ada"), await home.person("ada")
        await home.pair(ada)
        device, app, other = await home.server.device(MACHINE), await ada.app(), await elsewhere.app()
        await ada.must("POST", "/api/auth/logout")
        assert (await app.read_close())[0] == 4002
        await see_it_work(device, other)


# By a command line, in another process


def by_command_line(*arguments: str) -> TakeAway:
    async def take_away(home: Home, ada: Person, guest: Person) -> None:
        folder = Path(home.database_url.removeprefix("sqlite:///")).parent
        done = await run_command(folder, *arguments, DATA_DIR=folder)
        assert done.returncode == 0, done.stderr

    return take_away


BY_COMMAND: dict[str, tuple[TakeAway, int]] = {
    "device take": (by_command_line("device", "take", MACHINE, "--user", "mel@example.org"), 4003),
    "user sign-out": (by_command_line("user", "sign-out", "mel@example.org"), 4002),
    "user remove": (by_command_line("user", "remove", "mel@example.org"), 4002),
}


@pytest.mark.parametrize(("take_away", "code"), BY_COMMAND.values(), ids=BY_COMMAND)
async def test_a_command_line_takes_effect_within_a_second(
    tmp_path: Path, take_away: TakeAway, code: int
) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        await see_access_end(home, ada, await home.lend(ada, "mel"), take_away, code, at_once=False)


async def test_removing_a_machine_closes_it_and_all_its_clients(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device, app = await home.server.device(MACHINE), await ada.app()
        await by_command_line("device", "remove", MACHINE)(home, ada, ada)
        with trio.fail_after(SOON_S):
            assert (await app.read_close())[0] == 4003
            assert (await device.read_close())[0] == 4003
        assert await home.status_of_key(KEY) == 401
        assert (await home.knock(f"/ws/client?token={ada.token}&device={MACHINE}")).status == 403


async def test_changes_take_effect_in_a_server_process(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with serve_process(
            tmp_path, DATA_DIR=tmp_path, BREWOS_RELAY_CLIENT_RATE=0, BREWOS_RELAY_DEVICE_MIN_AGE_S=0.1
        ) as server:
            home = Home(server, f"sqlite:///{tmp_path / 'brewos-relay.db'}")
            ada = await home.person("ada")
            await home.pair(ada)
            mel = await home.lend(ada, "mel")
            take_away, code = BY_COMMAND["device take"]
            await see_access_end(home, ada, mel, take_away, code, at_once=False)
            vic = await home.lend(ada, "vic")
            await see_access_end(home, ada, vic, log_out, 4002)


# A lower role instead of no access


@pytest.mark.parametrize("by_api", [True, False])
async def test_a_member_who_becomes_a_viewer_stays_attached(tmp_path: Path, by_api: bool) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        async with open_scene(home, mel) as scene:
            app = scene.app
            assert app.forbidden == 0
            if by_api:
                path = f"/api/devices/{MACHINE}/users/{mel.user_id}"
                await ada.must("PATCH", path, {"role": "viewer"})
            else:
                give = ("device", "give", MACHINE, "--user", mel.user_id, "--role", "viewer")
                await by_command_line(*give)(home, ada, mel)
                await trio.sleep(SOON_S)
            answered = app.sent
            await app.wait_for_more()
            with trio.fail_after(1):
                while not app.forbidden:
                    await app.wait_for_more(1)
            assert max(await scene.numbers()) <= answered
            assert await scene.numbers() == []
            assert app.code is None
            heard = app.heard
            await see_it_work(scene.device, scene.witness)
            await app.wait_for_more()
            assert app.heard > heard
            if by_api:
                await ada.must("PATCH", path, {"role": "member"})
                await app.wait_for_more()
                assert await scene.numbers()


async def test_an_owner_who_becomes_a_member_keeps_member_access(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        bob = await home.lend(ada, "bob")
        path = f"/api/devices/{MACHINE}/users/{bob.user_id}"
        await ada.must("PATCH", path, {"role": "owner"})
        device, witness, app = await home.server.device(MACHINE), await ada.app(), await bob.app()
        restart = text({"type": "command", "cmd": "restart"})
        await app.send(restart)
        assert (await device.read_until("command"))["cmd"] == "restart"
        await ada.must("PATCH", path, {"role": "member"})
        await app.send(restart)
        assert (await app.read_until("error"))["error"] == "forbidden"
        assert await commands_before(device, witness) == []
        await see_it_work(device, app)


async def test_a_demoted_owner_cannot_become_owner_again(tmp_path: Path) -> None:
    """Requests that were authorized before the demotion and run after it."""
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        bob = await home.lend(ada, "bob")
        path = f"/api/devices/{MACHINE}/users/{bob.user_id}"
        await ada.must("PATCH", path, {"role": "owner"})
        statuses: list[int] = []
        refused = trio.Event()

        async def insist() -> None:
            for _ in range(5):
                statuses.append((await bob.ask("PATCH", path, {"role": "owner"})).status)
                if statuses[-1] == 403:
                    refused.set()

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(insist)
            while 200 not in statuses:
                await trio.lowlevel.checkpoint()
            await ada.must("PATCH", path, {"role": "viewer"})
            await refused.wait()
        users = (await ada.must("GET", f"/api/devices/{MACHINE}/users"))["users"]
        assert [user["role"] for user in users if user["userId"] == bob.user_id] == ["viewer"]


async def let_access_end(ada: Person, guest: Person, *, in_s: float) -> float:
    """Let a guest's access end soon, but several requests later. Return when (wall clock, in s)."""
    path = f"/api/devices/{MACHINE}/users/{guest.user_id}"
    began_s = time.time()
    await ada.must("PATCH", path, {"until": round(began_s * 1000) + 60_000})
    took_s = time.time() - began_s
    until_s = time.time() + in_s + 5 * took_s
    await ada.must("PATCH", path, {"until": round(until_s * 1000)})
    return until_s


async def test_an_access_ends_when_it_expires(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel", for_s=60)
        async with open_scene(home, mel) as scene:
            app = scene.app
            until_s = await let_access_end(ada, mel, in_s=0.5)
            async with measured_lateness() as lateness:
                with trio.fail_after(until_s - time.time() + 1 + SOON_S):
                    await app.closed.wait()
            assert app.code == 4003
            await app.ended.wait()
            numbers = await scene.numbers()
            last_sent_at = max(app.sent_at[number - 1] for number in numbers)
            late_s = lateness.worst_s
            assert until_s - 0.25 - late_s < last_sent_at < until_s + _LATE_S + late_s
        assert (await home.knock(f"/ws/client?token={mel.token}&device={MACHINE}")).status == 403


async def test_a_share_with_an_end_closes_its_client_then(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        began_s = time.time()
        await (await home.lend(ada, "noa", for_s=60)).app()
        for_s = 0.8 + 3 * (time.time() - began_s)
        mel = await home.lend(ada, "mel", for_s=for_s)
        app = await mel.app()
        with trio.fail_after(for_s + 1 + SOON_S):
            assert (await app.read_close())[0] == 4003


# Commands that wait for an absent machine


async def become_viewer(home: Home, ada: Person, guest: Person) -> None:
    await ada.must("PATCH", f"/api/devices/{MACHINE}/users/{guest.user_id}", {"role": "viewer"})


async def run_out_of_time(home: Home, ada: Person, guest: Person) -> None:
    until_s = await let_access_end(ada, guest, in_s=0.2)
    await trio.sleep(until_s - time.time() + 0.1)


async def see_alone(client: WireClient) -> None:
    """Wait until the relay has noticed that all others have left."""
    with trio.fail_after(2):
        clients = 0
        while clients != 1:
            await client.send(text({"type": "get_metrics"}))
            clients = (await client.read_until("metrics"))["connection"]["clients"]


LOSSES: dict[str, TakeAway] = {
    **{what: take_away for what, (take_away, _) in BY_API.items()},
    "they become a viewer": become_viewer,
    "their time runs out": run_out_of_time,
}


@pytest.mark.parametrize("stays", [True, False], ids=["connected", "gone"])
@pytest.mark.parametrize("take_away", LOSSES.values(), ids=LOSSES)
async def test_waiting_commands_end_with_the_access_of_their_sender(
    tmp_path: Path, take_away: TakeAway, stays: bool
) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        witness, app = await home.server.client(MACHINE), await mel.app()
        for client, who in ((app, "mel"), (witness, "the witness")):
            await client.send(command(by=who))
            assert (await client.read_until("device_status"))["messageQueued"] is True
        if not stays:
            app.abort()
            await see_alone(witness)
        await take_away(home, ada, mel)
        device = await home.server.device(MACHINE)
        found = await commands_before(device, witness)
        assert [each["by"] for each in found] == ["the witness"]


async def test_waiting_commands_are_delivered_while_their_sender_has_access(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        witness, app = await home.server.client(MACHINE), await mel.app()
        await app.send(command(by="mel"))
        assert (await app.read_until("device_status"))["messageQueued"] is True
        app.abort()
        await see_alone(witness)
        device = await home.server.device(MACHINE)
        assert [each["by"] for each in await commands_before(device, witness)] == ["mel"]


@one_instance("another instance may take 0.5 s to learn that the key was replaced")
async def test_messages_with_a_replaced_key_are_dropped_after_the_response(tmp_path: Path) -> None:
    async with open_home(tmp_path, device_min_age_s=1.0) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        thief, app = await home.server.device(MACHINE), await ada.app()
        assert (await ada.claim(await home.show(key="m" * 43))).status == 200
        for number in range(20):
            await thief.send(text({"type": "status", "by": "the thief", "number": number}))
        await app.send(command(by="ada"))
        assert (await app.read_until("device_status"))["messageQueued"] is True
        machine = await home.server.device(MACHINE, key="m" * 43)
        assert [each["by"] for each in await commands_before(machine, app)] == ["ada"]
        told = await ask(home.server, "GET", f"/api/devices/{MACHINE}/state", token=ada.token)
        assert "thief" not in str(told.content)
        assert b'"command"' not in await thief.read_to_end()


# Requests whose body arrives after access has ended


async def ask_late(person: Person, method: str, path: str, body: Any, meanwhile: Callable[[], Any]) -> int:
    """Send the head of a request, run an action, then send the body. Return the status."""
    data = msgspec.json.encode(body)
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: relay.example",
        "Connection: close",
        f"Authorization: Bearer {person.token}",
        f"Content-Length: {len(data)}",
    ]
    connection = await person.home.server.connect()
    await connection.send("\r\n".join([*head, "", ""]).encode())
    await person.home.server.client(MACHINE)  # which comes after it, and takes longer
    await trio.sleep(_LATE_S)
    await meanwhile()
    return (await connection.ask(data)).status


async def test_an_ended_session_cannot_share(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        elsewhere = await home.person("ada")
        before = home.standing()

        async def log_out() -> None:
            await elsewhere.must("POST", "/api/auth/logout-all")

        assert await ask_late(ada, "POST", f"/api/devices/{MACHINE}/share", {}, log_out) == 401
        assert home.standing() == before


async def test_a_former_administrator_cannot_make_administrators(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, bob = await home.person("ada"), await home.person("bob")
        with home.registry() as db:
            set_admin(db, ada.user_id, True)
        await home.pair(ada)
        account = f"/api/admin/users/{bob.user_id}"
        invite = {"email": "eve@example.org", "isAdmin": True}

        async def raise_bob() -> None:
            await ada.must("PATCH", account, {"isAdmin": True})

        async def lower_bob() -> None:
            await ada.must("PATCH", account, {"isAdmin": False})

        await raise_bob()
        assert await ask_late(bob, "PATCH", account, {"isAdmin": True}, lower_bob) == 403
        assert (await bob.must("GET", "/api/auth/me"))["isAdmin"] is False
        await raise_bob()
        assert await ask_late(bob, "POST", "/api/admin/invites", invite, lower_bob) == 403
