"""Fuzz the HTTP API of a running server from its OpenAPI document, as users of every role.

schemathesis makes the requests and checks the responses. Since requests take effect, the users' access
is restored repeatedly.
"""

import argparse
import logging
import random
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from brewos_relay.api.request_limits import RequestLimit
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user, set_admin
from brewos_relay.registry.login_sessions import open_session
from brewos_relay.vocabulary import Role, now_ms
from support.process import HereServer, machine_id, serve_here
from support.wire_client import Ended, WireClient

HERE: Final = Path(__file__).parent
MACHINE: Final = machine_id(1)
"""An online machine of the owner, the member and the viewer."""
DAY_MS: Final = 24 * 3_600_000
STEP_S: Final = 0.2
LAST_S: Final = 300.0
"""How long the requests of the last user may take after time is up."""

# Without garbage collection, which fails on Python 3.11 while hypothesis reads sources.
_SCHEMATHESIS: Final = "import gc; gc.disable(); from schemathesis.cli import schemathesis; schemathesis()"

# These end the session that the rest of a pass needs.
LAST: Final = "^/api/auth/(logout|logout-all|sessions/)|^/api/me/password"


@dataclass(frozen=True, slots=True)
class Asker:
    """A caller. `token` is None if it is anonymous; `leaves` is True if it has a session to end."""

    name: str
    token: str | None
    leaves: bool = False


async def main(arguments: argparse.Namespace) -> list[str]:
    """Send requests as each caller, in random order, until time is up. Return the callers with findings."""
    logged = Errors()
    logging.getLogger().addHandler(logged)
    end_s = trio.current_time() + arguments.minutes * 60
    # All requests come from one address, faster than its limits allow.
    RequestLimit.admit = lambda *_args, **_named: None  # type: ignore[method-assign]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        async with (
            serve_here(Path(folder), within_s=arguments.minutes * 60 + LAST_S) as server,
            trio.open_nursery() as nursery,
        ):
            users = await people(server)
            await nursery.start(be_a_machine, server)
            nursery.start_soon(put_back, server, users)
            schema = Path(folder) / "openapi.json"
            schema.write_bytes(await document(server, users))
            callers = await askers(server, users)
            random.Random(arguments.seed).shuffle(callers)
            for asker in callers:
                if arguments.askers and asker.name not in arguments.askers:
                    continue
                if trio.current_time() > end_s:
                    print(f"\n===== no time is left for {asker.name}", flush=True)
                    continue
                if not await ask(server, asker, schema, arguments):
                    failed.append(asker.name)
            nursery.cancel_scope.cancel()
    logging.getLogger().removeHandler(logged)
    return [*failed, *logged.found[:5]]


class Errors(logging.Handler):
    """Keeps the server's error records."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"the server, which logs {record.getMessage()!r}")


async def people(server: HereServer) -> dict[str, str]:
    """Add an account for each role. Return the user ids by role."""
    made = {}
    for role in ("admin", "owner", "member", "viewer", "stranger"):
        user = await server.server.store.write(
            add_user, email=f"{role}@example.org", name=role.capitalize(), now_ms=now_ms()
        )
        made[role] = user.id
    await server.server.store.write(set_admin, made["admin"], True)
    return made


async def askers(server: HereServer, users: dict[str, str]) -> list[Asker]:
    """Make a token for each caller: of a session, of the command line, expired, and none."""
    found = []
    for role, user_id in users.items():
        session_id = secrets.token_hex(16)
        await server.server.store.write(
            open_session,
            session_id=session_id,
            user_id=user_id,
            refresh_hash=hash_secret(secrets.token_urlsafe()),
            user_agent=None,
            address=None,
            now_ms=now_ms(),
            expires_at_ms=now_ms() + DAY_MS,
        )
        token = server.signer.issue(user_id=user_id, email=f"{role}@example.org", session_id=session_id)
        found.append(Asker(role, token, leaves=True))
    issue = server.signer.issue
    by_command_line = {
        "star-owner": issue(user_id="ops", email="o@example.org", devices="*"),
        "named-owner": issue(user_id="ops", email="o@example.org", devices=[MACHINE]),
        "named-viewer": issue(user_id="ops", email="o@example.org", devices=[MACHINE], role="viewer"),
        "expired": issue(user_id="ops", email="o@example.org", devices="*", ttl_s=1, now_s=1),
    }
    return [*found, *[Asker(name, token) for name, token in by_command_line.items()], Asker("nobody", None)]


async def be_a_machine(
    server: HereServer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Stay connected as MACHINE, and reconnect when closed."""
    while True:
        try:
            connection: WireClient = await server.device(MACHINE)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            while True:
                with trio.move_on_after(5):
                    await connection.read_message()
                await connection.show_life()
        except (Ended, AssertionError, OSError):
            await trio.sleep(STEP_S)


async def put_back(server: HereServer, users: dict[str, str]) -> None:
    """Restore the users' access to MACHINE, again and again."""
    roles: tuple[Role, ...] = ("owner", "member", "viewer")
    while True:
        for role in roles:
            await server.server.store.write(give, MACHINE, users[role], role=role, now_ms=now_ms())
        await trio.sleep(STEP_S)


async def document(server: HereServer, users: dict[str, str]) -> bytes:
    """Fetch the OpenAPI document and insert the ids of existing devices and users."""
    connection = await server.connect()
    response = await connection.ask(b"GET /api/openapi.json HTTP/1.1\r\nHost: relay.example\r\n\r\n")
    content = msgspec.json.decode(response.body)
    there: dict[str, list[str]] = {
        "device_id": [MACHINE, MACHINE.lower(), machine_id(2), machine_id(99)],
        "user_id": [*users.values(), "nobody"],
    }
    for operations in content["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in there:
                    parameter["schema"] = {"type": "string", "enum": there[parameter["name"]]}
    return msgspec.json.encode(content)


async def ask(server: HereServer, asker: Asker, schema: Path, arguments: argparse.Namespace) -> bool:
    """Run schemathesis as one caller. Return True if it found nothing."""
    passes: list[list[str]] = [[]]
    if asker.leaves:
        passes = [["--exclude-path-regex", LAST], ["--include-path-regex", LAST]]
    fine = True
    for selection in passes:
        command: list[Any] = [
            *(sys.executable, "-c", _SCHEMATHESIS),
            *("--config-file", HERE / "schemathesis.toml"),
            *("run", schema, "--url", f"http://127.0.0.1:{server.address[1]}"),
            *("--max-examples", arguments.examples, "--request-timeout", 10),
            *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
            *("--suppress-health-check", "all", "--warnings", "off"),
            # Other tests check permissions. Here, any request may be refused.
            *("--checks", "all", "--exclude-checks", "use_after_free,ensure_resource_availability"),
            *selection,
        ]
        if asker.token is not None:
            command += ["--header", f"Authorization: Bearer {asker.token}"]
        command += ["--seed", arguments.seed]
        print(f"\n===== as {asker.name} {' '.join(selection)}", flush=True)
        done = await trio.run_process([str(part) for part in command], check=False)
        fine = fine and done.returncode == 0
    return fine
