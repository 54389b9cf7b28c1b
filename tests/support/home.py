"""A home on a real server: signed-in users and their machines.

All of them use HTTP and WebSockets, with tokens that the server issued.
"""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import users_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import find_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.sharing import shares_of
from brewos_relay.settings import DATABASE_FILE
from brewos_relay.vocabulary import Role, now_ms
from support.http_client import Told, ask
from support.process import KEY, Reach, machine_id, serve_here, serve_instances
from support.wire_client import Response, WireClient, text, upgrade_head

MACHINE: Final = machine_id(1)
SOON_S: Final = 1.0
"""How long a client may stay connected after its user lost access."""

REGISTER: Final = "/api/devices/register-claim"
CLAIM: Final = "/api/devices/claim"
CLAIM_SHARE: Final = "/api/devices/claim-share"


@dataclass
class Person:
    """A signed-in user."""

    home: "Home"
    name: str
    session: dict[str, Any]

    @property
    def token(self) -> str:
        return str(self.session["accessToken"])

    @property
    def user_id(self) -> str:
        return str(self.session["user"]["id"])

    def at(self, home: "Home") -> "Person":
        """Return this person, who uses another instance with the same tokens."""
        return replace(self, home=home)

    async def ask(self, method: str, path: str, body: Any = None) -> Told:
        """Send an API request."""
        return await ask(self.home.server, method, path, body, token=self.token)

    async def must(self, method: str, path: str, body: Any = None) -> Any:
        """Send an API request that must succeed. Return the content of the response."""
        told = await self.ask(method, path, body)
        assert told.status == 200, told
        return told.content

    async def app(self, number: int = 1) -> WireClient:
        """Attach an app to a machine. The greeting has arrived when this returns."""
        return await self.home.server.client(machine_id(number), token=self.token)

    async def claim(self, token: str, number: int = 1) -> Told:
        """Pair by the token in the QR code that a machine shows."""
        return await self.ask("POST", CLAIM, {"deviceId": machine_id(number), "token": token})

    async def claim_share(self, token: str, number: int = 1) -> Told:
        """Accept a share by the token in its link."""
        return await self.ask("POST", CLAIM_SHARE, {"deviceId": machine_id(number), "token": token})

    async def type_code(self, code: str) -> Told:
        """Enter a short code, as the app does."""
        return await self.ask("POST", CLAIM, {"deviceId": code, "token": ""})

    async def share(self, number: int = 1, **wanted: Any) -> dict[str, Any]:
        """Share a machine. Return the response, with the link's token and the code."""
        made: dict[str, Any] = await self.must("POST", f"/api/devices/{machine_id(number)}/share", wanted)
        return made


class Home:
    """A server and its registry."""

    def __init__(self, server: Reach, database_url: str) -> None:
        self.server = server
        self.database_url = database_url

    @contextmanager
    def registry(self) -> Iterator[Any]:
        """Open the registry for writing, as another process does."""
        with Database.open(self.database_url) as database, database.writing() as db:
            yield db

    async def person(self, name: str) -> Person:
        """Sign in by a one-time link. The same name is the same account, in another session."""
        token = secrets.token_urlsafe(32)
        with self.registry() as db:
            add_invite(
                db,
                email=f"{name}@example.org",
                token_hash=hash_secret(token),
                is_admin=False,
                expires_at_ms=now_ms() + 60_000,
                now_ms=now_ms(),
            )
        told = await ask(self.server, "POST", "/api/auth/invite", {"token": token})
        assert told.status == 200, told
        return Person(self, name, told.content)

    async def show(self, number: int = 1, *, key: str = KEY) -> str:
        """Register a machine with a new token and `key`. Return the token, as the screen shows it."""
        token = secrets.token_urlsafe(24)
        await self.register(token, number, key=key)
        return token

    async def register(self, token: str, number: int = 1, *, key: str = KEY) -> None:
        """Register a token, as a machine or an impostor does. The response is the same for both."""
        body = {"deviceId": machine_id(number), "token": token, "deviceKey": key}
        told = await ask(self.server, "POST", REGISTER, body)
        assert (told.status, told.content) == (200, {"success": True}), told

    async def pair(self, owner: Person, number: int = 1, *, key: str = KEY) -> None:
        """Pair a machine without users by its screen. This makes `owner` its owner."""
        told = await owner.claim(await self.show(number, key=key), number)
        assert told.status == 200, told
        assert told.content["role"] == "owner"

    async def lend(
        self, owner: Person, name: str, role: Role = "member", *, for_s: float | None = None
    ) -> Person:
        """Share the first machine with a new user, who signs in and accepts."""
        wanted: dict[str, Any] = {"role": role}
        if for_s is not None:
            wanted["until"] = round((time.time() + for_s) * 1000)
        guest = await self.person(name)
        told = await guest.claim_share((await owner.share(**wanted))["token"])
        assert told.status == 200, told
        assert told.content["role"] == role
        return guest

    async def knock(self, target: str, **headers: str) -> Response:
        """Ask for a WebSocket, then disconnect."""
        connection = await self.server.connect()
        try:
            return await connection.ask(upgrade_head(target, **headers))
        finally:
            connection.abort()

    async def status_of_key(self, key: str, number: int = 1) -> int:
        """Connect as a machine with this key, then disconnect. Return the status."""
        return (await self.knock(f"/ws/device?id={machine_id(number)}&key={key}")).status

    def standing(self, number: int = 1) -> object:
        """Read all that a takeover would change: a machine's keys, its users with their roles, its shares."""
        device_id = machine_id(number)
        with self.registry() as db:
            keys = [(device.key_hash, device.next_key_hashes) for device in find_devices(db, [device_id])]
            users = [
                (user.user_id, user.role, user.until_ms) for user in users_of(db, device_id, now_ms=now_ms())
            ]
            return keys, users, shares_of(db, device_id, now_ms=now_ms())


@asynccontextmanager
async def open_home(folder: Path, *, within_s: float = 10.0, **options: Any) -> AsyncIterator[Home]:
    """Open a server without registered machines. `options` are passed to `serve_here`.

    Clients have no rate limit, unless `client_rate` is among them.
    """
    options = {"machines": (), "client_rate": 0.0, **options}
    async with serve_here(folder, within_s=within_s, **options) as server:
        yield Home(server, f"sqlite:///{folder / DATABASE_FILE}")


@asynccontextmanager
async def open_homes(
    folder: Path, bus: str, *, within_s: float = 15.0, **options: Any
) -> AsyncIterator[tuple[Home, Home]]:
    """Open two instances with a bus between them: the same home twice. Otherwise like `open_home`."""
    options = {"machines": (), "client_rate": 0.0, **options}
    async with serve_instances(folder, bus, within_s=within_s, **options) as (one, two):
        url = f"sqlite:///{folder / DATABASE_FILE}"
        yield Home(one, url), Home(two, url)


async def see_it_work(device: WireClient, client: WireClient) -> None:
    """Check that a message arrives in each direction."""
    mark = secrets.token_hex(4)
    with trio.fail_after(2):
        await device.send(text({"type": "status", "mark": mark}))
        while (await client.read_until("status")).get("mark") != mark:
            pass
        await client.send(text({"type": "command", "cmd": "tare", "mark": mark}))
        while (await device.read_until("command")).get("mark") != mark:
            pass


async def commands_before(device: WireClient, client: WireClient) -> list[dict[str, Any]]:
    """Send an allowed command as `client`. Return the commands that the machine received before it."""
    mark = secrets.token_hex(4)
    found: list[dict[str, Any]] = []
    with trio.fail_after(2):
        await client.send(text({"type": "command", "cmd": "tare", "mark": mark}))
        while (command := await device.read_until("command")).get("mark") != mark:
            found.append(command)
    return found


def command(**content: Any) -> bytes:
    """Build a frame of a command that every role with commands may send."""
    return text({"type": "command", "cmd": "tare", **content})
