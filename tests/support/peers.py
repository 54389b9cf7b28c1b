"""A scripted peer: tests make it send, accept, refuse or fail, and read the calls that it received.

Also a session that does nothing, for attachments without one, and the seams to other instances: a device
there, its clients there, and the note of what is here.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from brewos_relay.core.attachment import (
    Attachment,
    ClientAttachment,
    DeviceAttachment,
    RemoteDeviceAttachment,
)
from brewos_relay.core.peer import STAYS, Peer, PeerEnd, Receive, Tasks
from brewos_relay.core.remote import RemoteOutcome, TakeOutcome
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Message, encode


class PeerTasks:
    """The tasks of a peer in a nursery of the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ended = trio.Event()
        self.ends: list[PeerEnd] = []

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(async_fn, *args)

    def end_peer(self, end: PeerEnd) -> None:
        self.ends.append(end)
        self._ended.set()


async def run_peer(peer: Peer, nursery: trio.Nursery, receive: Receive) -> PeerEnd | None:
    """Run a peer to its end, also one that stays without a task."""
    tasks = PeerTasks(nursery)
    end = await peer.run(tasks, receive)
    if end is not STAYS:
        return end
    await tasks._ended.wait()
    (end,) = tasks.ends
    return end


class PassiveSession:
    """The session of an attachment in a test. It starts no tasks and takes no messages."""

    device_id = "BRW-00000001"

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        raise AssertionError("nothing is to be started")

    def end_peer(self, attachment: Attachment) -> None:
        raise AssertionError("no peer is to end")

    def take_from_device(self, device: DeviceAttachment, received: Sequence[Message]) -> float:
        raise AssertionError("no message is to be taken")

    def take_from_remote_device(self, device: RemoteDeviceAttachment, received: Sequence[Message]) -> float:
        raise AssertionError("no message is to be taken")

    def take_from_client(self, client: ClientAttachment, received: Sequence[Message]) -> float:
        raise AssertionError("no message is to be taken")

    def remote_device_went(self, device: RemoteDeviceAttachment) -> None:
        raise AssertionError("no device is to go")


class ScriptedPeer:
    """A `Peer` without a connection. `run` lasts until `leave`, `fail` or `close`.

    It accepts nothing once it ends. It gives a sign of life when `run` begins, unless it is `silent`.
    `min_age_s` is the age before which `aclose` does not end it, as on a wire to a machine. A peer that
    has left by itself is not held.

    A test may change at any time: `refuses` (deliver returns False, unless `keep` is set),
    `refuses_all` (deliver always returns False), `backlog_bytes`, `is_sure` (it is known to be alive, so
    that a ping needs no answer), `stays` (`close` does not let `run` end), `deliver_error`,
    `ping_error`, `close_error` and `aclose_error` (raised by the method of that name), `goodbye_s` (how long
    `aclose` takes, even cancelled).
    """

    def __init__(
        self,
        *,
        goodbye_s: float = 0.0,
        min_age_s: float = 0.0,
        refuses: bool = False,
        silent: bool = False,
    ) -> None:
        self.goodbye_s = goodbye_s
        self.min_age_s = min_age_s
        self.refuses = refuses
        self.refuses_all = False
        self.backlog_bytes = 0
        self.is_sure = False
        self.stays = False
        self.silent = silent
        self.deliver_error: Exception | None = None
        self.ping_error: Exception | None = None
        self.close_error: Exception | None = None
        self.aclose_error: Exception | None = None
        self.deliveries: list[Delivery] = []
        """The accepted deliveries, one entry for each call of `deliver`."""
        self.taken_at: list[float] = []
        """When each was accepted (trio time)."""
        self.kept: list[bool] = []
        """The `keep` of each."""
        self.pauses_s: list[float] = []
        """The relay's answers to received messages: for how long to pause reading."""
        self.pinged_at: list[float] = []
        self.closes: list[tuple[int, str]] = []
        """Every call of `close`."""
        self.closed_at: list[float] = []
        self.opened_at = trio.current_time()
        self.gone_at: float | None = None
        """When its `aclose` was complete (trio time)."""
        self.runs = 0
        self.end: PeerEnd | None = None
        """The return value of `run`."""
        self.acloses_begun = 0
        self.acloses = 0
        self.tasks: Tasks | None = None
        self._receive: Receive | None = None
        self._said_early: list[list[Message]] = []
        self._left = False
        self._leaving = trio.Event()
        self._error: Exception | None = None

    # Actions of a test

    def say(self, *contents: dict[str, Any] | Message) -> None:
        """Send messages to the relay, all in one pass. They wait until `run` is called.

        A call without messages is a sign of life.
        """
        passed = [content if isinstance(content, Message) else encode(content) for content in contents]
        if self._receive is None:
            self._said_early.append(passed)
        else:
            self.pauses_s.append(self._receive(passed))

    def leave(self) -> None:
        """Let `run` return."""
        self._left = True
        self._leaving.set()

    def fail(self, error: Exception) -> None:
        """Let `run` raise."""
        self._error = error
        self.leave()

    @property
    def messages(self) -> list[Message]:
        """Everything that was delivered, in order."""
        return [message for delivery in self.deliveries for message in delivery.messages]

    @property
    def received(self) -> list[Any]:
        """Everything that was delivered, decoded."""
        return [_decode(message) for message in self.messages]

    @property
    def types(self) -> list[str | None]:
        """The `type` of everything that was delivered."""
        return [message.peek_type() for message in self.messages]

    @property
    def close_code(self) -> int | None:
        """The code of the first `close`, which counts."""
        return self.closes[0][0] if self.closes else None

    def forget(self) -> None:
        """Forget the deliveries so far."""
        self.deliveries.clear()
        self.taken_at.clear()
        self.kept.clear()

    # Peer

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        self.runs += 1
        self.tasks = tasks
        self._receive = receive
        if not self.silent:
            receive(())
        for passed in self._said_early:
            self.pauses_s.append(receive(passed))
        await self._leaving.wait()
        if self._error is not None:
            raise self._error
        return self.end

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        if self.deliver_error is not None:
            raise self.deliver_error
        if self._leaving.is_set() or self.refuses_all or (self.refuses and not keep):
            return False
        self.deliveries.append(delivery)
        self.taken_at.append(trio.current_time())
        self.kept.append(keep)
        return True

    def ping(self) -> bool:
        self.pinged_at.append(trio.current_time())
        if self.ping_error is not None:
            raise self.ping_error
        return self.is_sure

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        self.closed_at.append(trio.current_time())
        if not self.stays:
            self._leaving.set()
        if self.close_error is not None:
            raise self.close_error

    async def aclose(self) -> None:
        self.acloses_begun += 1
        held_s = 0.0 if self._left else self.opened_at + self.min_age_s - trio.current_time()
        with trio.move_on_after(max(0.0, held_s) + self.goodbye_s, shield=True):
            await trio.sleep_forever()
        self.acloses += 1
        self.gone_at = trio.current_time()
        if self.aclose_error is not None:
            raise self.aclose_error


@dataclass
class SentCommand:
    """A command for a device on another instance."""

    message: Message
    take_outcome: TakeOutcome | None
    not_after_ms: float

    def becomes(self, outcome: RemoteOutcome) -> None:
        """Report the outcome, which the sender must want to know."""
        assert self.take_outcome is not None
        self.take_outcome(outcome)


class ScriptedRemotePeer(ScriptedPeer):
    """A `RemotePeer` without another instance.

    A test may change at any time: `outcome` (reported before `send_command` returns; None for later, with
    `SentCommand.becomes`), and `send_error` (raised by `send_command`).
    """

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.outcome: RemoteOutcome | None = None
        self.send_error: Exception | None = None
        self.commands: list[SentCommand] = []
        """Every call of `send_command`."""

    def send_command(self, message: Message, take_outcome: TakeOutcome | None, not_after_ms: float) -> None:
        if self.send_error is not None:
            raise self.send_error
        sent = SentCommand(message, take_outcome, not_after_ms)
        self.commands.append(sent)
        if self.outcome is not None and take_outcome is not None:
            sent.becomes(self.outcome)

    @property
    def sent(self) -> list[Message]:
        """The messages of all commands."""
        return [command.message for command in self.commands]


class ScriptedAudience:
    """A `RemoteAudience` that records its calls."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.renewals = 0

    def deliver(self, delivery: Delivery) -> None:
        self.messages += delivery.messages

    def renew_state(self) -> None:
        self.renewals += 1


class DefectiveAudience(ScriptedAudience):
    """A `RemoteAudience` with a defect, which each message of the device meets."""

    def deliver(self, delivery: Delivery) -> None:
        raise ZeroDivisionError


class RecordedPresence:
    """A `RemotePresence` that records its calls, and which devices came and are wanted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        """The name of each call and its device."""
        self.connected_at: dict[str, float] = {}
        """The devices that came and have not gone."""
        self.wanted: set[str] = set()

    def device_came(self, device_id: str, connected_at: float) -> None:
        self.calls.append(("came", device_id))
        self.connected_at[device_id] = connected_at

    def device_went(self, device_id: str) -> None:
        self.calls.append(("went", device_id))
        del self.connected_at[device_id]

    def device_wanted(self, device_id: str) -> None:
        assert device_id not in self.wanted
        self.calls.append(("wanted", device_id))
        self.wanted.add(device_id)

    def device_unwanted(self, device_id: str) -> None:
        self.calls.append(("unwanted", device_id))
        self.wanted.remove(device_id)


def _decode(message: Message) -> Any:
    return (msgspec.json if message.is_text else msgspec.msgpack).decode(message.payload)
