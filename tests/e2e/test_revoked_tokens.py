"""Tokens of the command line, and what becomes of their connections when they are revoked."""

from pathlib import Path

import pytest
import trio

from brewos_relay.auth.tokens import KeyRing
from support.process import SECRET, machine_id, run_command, serve_process
from support.wire_client import text

SOON_S = 1.0
"""ChangeApplier closes connections within this time."""


@pytest.mark.parametrize("renewed", [False, True])
async def test_revoking_a_token_closes_its_connections_within_a_second(tmp_path: Path, renewed: bool) -> None:
    with trio.fail_after(60):
        async with serve_process(tmp_path) as server:

            async def make(name: str) -> str:
                made = await run_command(
                    tmp_path, "token", "--user", "ada", "--email", "a@b.c", "--all-devices", "--name", name
                )
                return made.stdout.decode().strip()

            one, other = await make("one"), await make("other")
            first = await server.client(machine_id(1), token=other if renewed else one)
            if renewed:
                await first.send(text({"type": "refresh_auth", "token": one}))
                assert (await first.read_until("auth_refreshed")).get("error") is None
            kept = await server.client(machine_id(1), token=other)
            id_ = KeyRing([SECRET]).verify(one).token_id
            assert id_ is not None
            await run_command(tmp_path, "token", "revoke", id_)
            with trio.fail_after(SOON_S):
                assert (await first.read_close())[0] == 4002
            again = await server.upgrade(f"/ws/client?token={one}&device={machine_id(1)}")
            assert (await again.read_close())[0] == 4002
            await kept.send(text({"type": "ping"}))
            await kept.read_until("pong")
