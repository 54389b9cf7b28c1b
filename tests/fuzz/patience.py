"""Machines that send invalid data and wait: no connection may end before it is old enough.

A machine whose connection ends within 5 s discards its key, for any reason. So a server holds
a failed connection until it is 8 s old.
"""

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from brewos_relay.settings.server_limits import ServerLimits
from fuzz import corpus
from fuzz.mutation import Mutator
from support.frames import CollectingParser
from support.process import KEY, ProcessServer, machine_id
from support.wire_client import CLOSE, Ended, WireClient, frame, upgrade_head

if TYPE_CHECKING:
    from fuzz.live import Seen

PATIENT: Final = [machine_id(number) for number in range(0x100, 0x110)]
SETTINGS: Final[dict[str, object]] = {"BREWOS_RELAY_TLS_SELF_SIGNED": "true"}
"""The settings of a server that holds connections of machines. They use TLS, as in the field."""
HELD_S: Final = ServerLimits().device_min_age_s
SLACK_S: Final = 0.5
"""How much later than the server this process may have started its clock."""
MOST_PAYLOAD_BYTES: Final = 40_000


async def be_patient(
    server: ProcessServer,
    device: str,
    mutator: Mutator,
    tls_context: ssl.SSLContext | None,
    seen: "Seen",
) -> None:
    """Connect as a machine, send an invalid message, and wait; again and again."""
    while True:
        connection = await WireClient.connect(server.address, tls_context=tls_context)
        try:
            answer = await connection.ask(upgrade_head(f"/ws/device?id={device}&key={KEY}"))
            if answer.status == 101:
                await _outlast(connection, mutator, seen)
        except (Ended, trio.BrokenResourceError):
            pass  # before it was let in
        finally:
            connection.abort()
        await trio.sleep(mutator.chance.uniform(0, 1))


async def _outlast(connection: WireClient, mutator: Mutator, seen: "Seen") -> None:
    began_at = trio.current_time()
    limits = ServerLimits()
    parser = CollectingParser(max_message_bytes=limits.device_message_bytes, skip_oversize=True)
    with trio.move_on_at(began_at + HELD_S - SLACK_S) as waited, suppress(Ended, trio.BrokenResourceError):
        for _ in range(mutator.chance.randrange(1, 8)):
            data = _said(mutator)
            parser.feed(data)
            await connection.send(data)
            await trio.sleep(mutator.chance.uniform(0, 1))
        while (await connection.read_frame()).opcode != CLOSE:
            pass
    if waited.cancelled_caught:
        seen.outlasted += 1
    elif parser.ending is None or not parser.ending.by_peer:
        age_s = trio.current_time() - began_at
        seen.problems.append(f"a machine's connection ended at the age of {age_s:.1f} s: {parser.ending}")


def _said(mutator: Mutator) -> bytes:
    if mutator.chance.random() < 0.2:
        return frame(mutator.chance.randrange(16), mutator.chance.randbytes(MOST_PAYLOAD_BYTES))
    return mutator.mutated(corpus.FRAMES)
