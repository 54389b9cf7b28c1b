"""What the peers of the soak do: devices, apps and strangers that come, go, freeze, cut and talk nonsense."""

import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio
from soak_wire import BINARY, PING, TEXT, Connection, Crowd, Unanswered, frame, text

SURE_AFTER_S = 1.5
"""How long after its first frame a device is counted at the latest."""
SMALL_BUFFER_BYTES = 4096
MAX_HELD_S = 45.0
"""The longest that the relay may keep a connection that says nothing at all."""

Life = Callable[[Crowd, str], Awaitable[None]]


class Lives:
    """Everything that can happen to a peer, and how often it does."""

    def __init__(self, *, key: str, token: str, chance: random.Random) -> None:
        self._key = key
        self._token = token
        self._chance = chance
        self.of_device: Sequence[tuple[int, Life]] = (
            (40, self.device),
            (15, self.cut_device),
            (15, self.replaced_device),
            (10, self.rude_device),
            (10, self.silent_device),
            (5, self.hasty_device),
            (5, self.refused_device),
        )
        self.of_app: Sequence[tuple[int, Life]] = (
            (45, self.app),
            (15, self.cut_app),
            (12, self.frozen_app),
            (10, self.rude_app),
            (8, self.hasty_app),
            (5, self.half_app),
            (5, self.refused_app),
        )
        self.of_stranger: Sequence[tuple[int, Life]] = ((1, self.stranger),)

    async def live_on(self, crowd: Crowd, device_id: str, lives: Sequence[tuple[int, Life]]) -> None:
        """Live one life after the other, for ever."""
        weights = [weight for weight, _ in lives]
        await trio.sleep(self._chance.uniform(0, 5))
        while True:
            (_, life) = self._chance.choices(lives, weights)[0]
            with suppress(OSError, Unanswered):
                await life(crowd, device_id)
            await trio.sleep(self._chance.uniform(0.05, 1.5))

    def _span_s(self, mean_s: float) -> float:
        return min(self._chance.expovariate(1 / mean_s), 6 * mean_s)

    # Devices

    async def _come(self, connection: Connection, device_id: str, *, key: str | None = None) -> bool:
        if await connection.upgrade(f"/ws/device?id={device_id}&key={key or self._key}") == 101:
            return True
        await trio.sleep(self._chance.uniform(1, 3))
        return False

    async def _report(self, connection: Connection, span_s: float, *, answer: bool = True) -> None:
        """Talk as a device does, for a while or until the relay has ended the connection."""
        with trio.move_on_after(span_s):
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    await connection.listen()
                    nursery.cancel_scope.cancel()

                if answer:
                    nursery.start_soon(listen)
                await connection.send(
                    frame(PING) + text({"type": "status", "seq": 1, "temps": {"brew": 93.2}})
                )
                began_at, seq = trio.current_time(), 1
                while True:
                    await trio.sleep(self._chance.uniform(0.4, 1.2))
                    if (
                        answer
                        and trio.current_time() - began_at > SURE_AFTER_S
                        and connection.close_code is None
                    ):
                        connection.trust()
                    seq += 1
                    report = {"type": "status_delta", "seq": seq, "temps": {"brew": 90 + seq % 7 / 10}}
                    if not await connection.send(
                        text(report | {"filling": "x" * self._chance.randrange(500)})
                    ):
                        return

    async def device(self, crowd: Crowd, device_id: str) -> None:
        """Come, report, and leave as machines do: with a close frame that is answered."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id):
                await self._report(connection, self._span_s(20))
                await connection.leave(within_s=0.2)

    async def cut_device(self, crowd: Crowd, device_id: str) -> None:
        """Come, report, and lose the network."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id):
                await self._report(connection, self._span_s(10))

    async def replaced_device(self, crowd: Crowd, device_id: str) -> None:
        """Come again while the earlier connection is still there."""
        async with Connection(crowd, "device", device_id) as earlier:
            if not await self._come(earlier, device_id):
                return
            await self._report(earlier, self._chance.uniform(2, 12))
            earlier.doubt()
            if self._chance.random() < 0.7:
                await trio.sleep(21)  # as a machine that has lost its connection, and is not fought with
            async with Connection(crowd, "device", device_id) as later:
                if await self._come(later, device_id):
                    await self._report(later, self._span_s(12))

    async def rude_device(self, crowd: Crowd, device_id: str) -> None:
        """Break the protocol; be held until old enough, and closed then."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id):
                await self._report(connection, self._span_s(4))
                connection.doubt()
                await connection.send(self._nonsense(device=True))
                with trio.move_on_after(self._chance.uniform(1, 12)):
                    await connection.listen()

    async def silent_device(self, crowd: Crowd, device_id: str) -> None:
        """Come and never say a word."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id):
                wait_s = self._chance.choice((3.0, MAX_HELD_S))
                with trio.move_on_after(wait_s) as waiting:
                    await connection.wait_ended()
                if waiting.cancelled_caught and wait_s == MAX_HELD_S:
                    crowd.complain("a silent device was not dropped")

    async def hasty_device(self, crowd: Crowd, device_id: str) -> None:
        """Come, say very much at once, and read nothing of what apps say."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id):
                connection.doubt()
                status = text({"type": "status", "seq": 1, "filling": "x" * 400})
                await connection.send(b"".join([status] * 400))
                await self._report(connection, self._span_s(10), answer=False)

    async def refused_device(self, crowd: Crowd, device_id: str) -> None:
        """Come with a wrong key."""
        async with Connection(crowd, "device", device_id) as connection:
            if await self._come(connection, device_id, key="w" * 43):
                crowd.complain("a device with a wrong key was let in")

    # Apps

    async def _attach(self, connection: Connection, device_id: str, *, small: bool = False) -> None:
        status = await connection.upgrade(
            f"/ws/client?token={self._token}&device={device_id}",
            receive_buffer_bytes=SMALL_BUFFER_BYTES if small else None,
        )
        if status != 101:
            await trio.sleep(self._chance.uniform(0.5, 2))
            raise Unanswered(str(status))

    async def _use(self, connection: Connection, span_s: float) -> None:
        """Listen and now and then say something, for a while or until the relay has ended the connection."""
        with trio.move_on_after(span_s):
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    await connection.listen()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                await connection.greeted.wait()
                if connection.close_code is None:
                    connection.trust()
                await connection.send(text({"type": "request_state"}))
                while True:
                    await trio.sleep(self._span_s(2))
                    said = self._chance.choice(
                        (
                            {"type": "ping", "timestamp": 1},
                            {"type": "get_metrics"},
                            {"type": "request_full_status"},
                            {"type": "refresh_auth", "token": self._token},
                            {"type": "command", "cmd": "set_temp", "temp": 93.5},
                            {"type": "command", "cmd": "set_mode", "mode": "on", "requestId": 7},
                            {"type": "command", "cmd": "tare", "requestId": 8, "notAfter": 1},
                        )
                    )
                    if not await connection.send(text(said)):
                        return

    async def app(self, crowd: Crowd, device_id: str) -> None:
        """Attach, listen, and close properly."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id)
            await self._use(connection, self._span_s(8))
            await connection.leave(within_s=0.1)

    async def cut_app(self, crowd: Crowd, device_id: str) -> None:
        """Attach, listen, and vanish."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id)
            await self._use(connection, self._span_s(5))

    async def frozen_app(self, crowd: Crowd, device_id: str) -> None:
        """Attach and read nothing; vanish after a while, or go on if that is still possible."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id, small=True)
            await trio.sleep(self._chance.uniform(3, MAX_HELD_S))
            if self._chance.random() < 0.6:
                await self._use(connection, self._span_s(5))

    async def rude_app(self, crowd: Crowd, device_id: str) -> None:
        """Break the protocol, and be closed for it."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id)
            await self._use(connection, self._span_s(3))
            connection.doubt()
            await connection.send(self._nonsense(device=False))
            with trio.move_on_after(2):
                await connection.listen()

    async def hasty_app(self, crowd: Crowd, device_id: str) -> None:
        """Say much more at once than is taken."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id)
            await connection.send(text({"type": "command", "cmd": "tare"}) * 150)
            await self._use(connection, self._span_s(5))

    async def half_app(self, crowd: Crowd, device_id: str) -> None:
        """Begin a message and never end it."""
        async with Connection(crowd, "app", device_id) as connection:
            await self._attach(connection, device_id)
            await connection.send(text({"type": "command", "cmd": "tare"})[:-3])
            with trio.move_on_after(MAX_HELD_S) as waiting:
                await connection.listen(answer_pings=False)  # a pong would be the end of the message
            if waiting.cancelled_caught and connection.close_code is None:
                crowd.complain("an app that does not end its message was not closed")

    async def refused_app(self, crowd: Crowd, device_id: str) -> None:
        """Attach with a bad token, and be closed with 4002."""
        async with Connection(crowd, "app", device_id) as connection:
            if await connection.upgrade(f"/ws/client?token={self._token}x&device={device_id}") == 101:
                with trio.move_on_after(5):
                    await connection.listen()
                if connection.close_code != 4002:
                    crowd.complain("an app with a bad token was not closed with 4002")

    # Strangers

    async def stranger(self, crowd: Crowd, device_id: str) -> None:
        """Knock at the port with something that is no WebSocket."""
        requests = (
            b"GET /api/health HTTP/1.1\r\nHost: soak\r\n\r\n",
            b"GET /api/devices HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer nonsense\r\n\r\n",
            f"GET /api/devices/{device_id}/state HTTP/1.1\r\nHost: soak\r\n"
            f"Authorization: Bearer {self._token}\r\n\r\n".encode(),
            b"POST / HTTP/1.1\r\nHost: soak\r\nContent-Length: 100\r\n\r\nhalf of it",
            b"GET /ws/device?id=" + device_id.encode(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /" + b"x" * 9000,
            os.urandom(200),
            b"",
        )
        async with Connection(crowd, "stranger") as connection:
            await connection.connect()
            await connection.send(self._chance.choice(requests))
            with trio.move_on_after(self._span_s(3)):
                await connection.wait_ended()

    def _nonsense(self, *, device: bool) -> bytes:
        """Make something that the codec has to refuse, or (once in a while) something that it just drops."""
        return self._chance.choice(
            (
                frame(TEXT, b"x", first=0xF1),
                b"\x81\x03abc",
                frame(TEXT, b"\xff\xfe"),
                frame(0x0, b"no beginning"),
                frame(0x8, b"\x03"),
                frame(TEXT, b"x" * (20_000 if device else 5_000)),
                frame(TEXT, b"[1,2,3]"),
                frame(BINARY, os.urandom(50)),
                os.urandom(300),
            )
        )
