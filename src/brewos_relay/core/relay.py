"""Relay: the sessions of all devices, by device id."""

import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import (
    Attachment,
    ClientAttachment,
    DeviceAttachment,
    RemoteDeviceAttachment,
    Renew,
)
from brewos_relay.core.audience import CHECK_EVERY_S
from brewos_relay.core.counters import Counters
from brewos_relay.core.device_log import DeviceLog
from brewos_relay.core.grant import FULL, ClientCounts, Grant
from brewos_relay.core.histories import Histories
from brewos_relay.core.history import Samples
from brewos_relay.core.limits import Limits
from brewos_relay.core.pauses import PauseWatch
from brewos_relay.core.peer import Peer
from brewos_relay.core.peer_tasks import own_peers
from brewos_relay.core.rate_limits import LogLineLimits, open_bucket
from brewos_relay.core.recording import ActivityEvent, EventKind
from brewos_relay.core.remote import (
    SINGLE_INSTANCE,
    RemoteAudience,
    RemoteOutcome,
    RemotePeer,
    RemotePresence,
)
from brewos_relay.core.session import DeviceSession
from brewos_relay.core.snapshot import KnownState, Snapshot, SnapshotState
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import NEUTRAL, Dialect, Policy
from brewos_relay.errors import CloseCode, RelayClosing
from brewos_relay.messages import CommandHead, DeviceInfo, Message
from brewos_relay.vocabulary import LONG_AGO, Detail, Role, now_ms

log = logging.getLogger(__name__)

_CHECKS_PER_PASS: Final = 10
"""How many sessions are checked before other tasks get their turn, which takes up to 0.2 ms."""

_LINES_PER_S: Final = 5.0
_LINES_AT_ONCE: Final = 2000.0
"""Limits of log lines about peers that come and go, for all networks together."""
_LINES_AT_ONCE_OF_EACH: Final = 200.0
"""The limit for one cause and network."""

OnSeen = Callable[[str, int], None]
OnActivity = Callable[[ActivityEvent], None]
WantsCommands = Callable[[str, str | None], bool]


class Relay:
    """Brings devices and their clients together; made by `open_relay`.

    **Owns:** nothing: each session runs in the nursery of `open_relay`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        limits: Limits,
        dialect: Dialect,
        on_seen: OnSeen | None,
        on_activity: OnActivity | None = None,
        wants_commands: WantsCommands | None = None,
        counters: Counters | None = None,
        remote: RemotePresence = SINGLE_INSTANCE,
    ) -> None:
        self.limits = limits
        self.remote = remote
        self.policy = Policy(dialect, owner_commands=limits.owner_commands, never_wait=limits.never_wait)
        self.histories = Histories(limits, dialect)
        """The measurements of devices in the last minutes."""
        self.counters = counters if counters is not None else Counters()
        self.logs_messages = log.isEnabledFor(logging.DEBUG)
        self.closing = False
        """Whether the relay is shutting down and refuses new peers: it drains, or its block was left."""
        self.attached: set[Attachment] = set()
        """Every peer that has not ended."""
        self.client_counts = ClientCounts()
        """How many clients each user has."""
        self._nursery = nursery
        self._on_seen = on_seen
        self._on_activity = on_activity
        self._wants_commands = wants_commands
        self._sessions: dict[str, DeviceSession] = {}
        self._absent_states: dict[str, tuple[Snapshot, float]] = {}
        """The state of devices without a session, and when they went offline (trio time)."""
        self.lines = LogLineLimits(
            "connections",
            rate_per_s=_LINES_PER_S,
            burst=_LINES_AT_ONCE,
            each_at_once=_LINES_AT_ONCE_OF_EACH,
        )
        """Decides which lines about peers that come and go are logged."""
        self.line_limits = [self.lines]
        """Limits that report once a minute how many log lines were suppressed."""
        self._admitting = open_bucket(limits.admit_rate, burst=max(1.0, limits.admit_rate))

    @property
    def device_count(self) -> int:
        """How many devices are connected to this relay."""
        return sum(session.has_device for session in self._sessions.values())

    @property
    def client_count(self) -> int:
        """How many clients are attached."""
        return sum(session.client_count for session in self._sessions.values())

    @property
    def session_count(self) -> int:
        """How many devices are online or have clients attached."""
        return len(self._sessions)

    @property
    def lagging_count(self) -> int:
        """How many clients lag."""
        return sum(session.lagging_count for session in self._sessions.values())

    @property
    def pending_count(self) -> int:
        """How many commands wait for their device."""
        return sum(session.pending_count for session in self._sessions.values())

    def is_online(self, device_id: str) -> bool:
        """Whether this device is connected now, to this relay or to another instance that clients follow."""
        session = self._sessions.get(device_id)
        return session is not None and session.device is not None

    def has_device(self, device_id: str) -> bool:
        """Whether this device is connected to this relay."""
        session = self._sessions.get(device_id)
        return session is not None and session.has_device

    def admits(self, *, reserve: float = 0.0) -> bool:
        """Take a token of `admit_rate`, if `reserve` more are left after that; False if not."""
        return self._admitting is None or self._admitting.admit(trio.current_time(), reserve=reserve)

    def is_contested(self, device_id: str) -> bool:
        """Whether two devices use this id, so that another connection has to be refused."""
        session = self._sessions.get(device_id)
        if session is None or not session.is_contested():
            return False
        self.counters.conflicts += 1
        return True

    def reached_client_limit(self, device_id: str, grant: Grant) -> str | None:
        """Return whose limit of clients is reached, "this machine" or "this user"; None if neither is."""
        session = self._sessions.get(device_id)
        if session is not None and session.client_count >= self.limits.clients_per_device:
            return "this machine"
        return "this user" if self.client_counts.of(grant) >= self.limits.clients_per_user else None

    def attach_device(
        self,
        device_id: str,
        peer: Peer,
        *,
        credential: bytes | None = None,
        network: str = "",
        anonymous: bool = False,
        known_state: KnownState | None = None,
    ) -> DeviceAttachment:
        """Attach `peer` as a connection of a device. The relay owns the peer from here on.

        The connection stands for the device from its first sign of life on. An earlier connection of the same
        device is then closed with 4002. `credential` identifies the key for `end_device`. `network` limits
        its log lines. The relay keeps little state of an `anonymous` device. `known_state` is the last whole
        state that the caller knows; the relay uses it if it knows none itself. Raises RelayClosing.
        """
        return self._session(device_id).attach_device(
            peer,
            credential=credential,
            network=network,
            anonymous=anonymous,
            known_state=known_state,
        )

    def attach_client(
        self,
        device_id: str,
        peer: Peer,
        *,
        last_seen_ms: int | None = None,
        expires_at_s: float = math.inf,
        renew: Renew | None = None,
        grant: Grant = FULL,
        network: str = "",
    ) -> ClientAttachment:
        """Attach `peer` as a client of a device. The relay owns the peer from here on.

        `last_seen_ms` is when the caller knows that the device was last seen, in ms since the epoch.
        `expires_at_s` is when the client's token expires, in s since the epoch: the client is warned before,
        and then closed with 4002. `renew` takes a fresh token and returns when that expires, or raises
        TokenRejected. `grant` says what the client may do. `network` limits its log lines. Raises
        RelayClosing.
        """
        session = self._session(device_id)
        if session.presence.last_seen_ms is None:
            session.presence.last_seen_ms = last_seen_ms
        return session.attach_client(
            peer, expires_at_s=expires_at_s, renew=renew, grant=grant, network=network
        )

    def set_grant(
        self, device_id: str, user_id: str, grant: Grant | None, *, highest_role: Role | None = None
    ) -> None:
        """Give the clients of a user at a device another grant; None closes them with 4003.

        With `highest_role`, only the clients whose token gives at most this role. Each client keeps its login
        session. Clients whose own token names the device do not change.
        """
        for client in self._clients(device_id):
            had = client.grant
            if had.user_id != user_id or had.by_token or highest_role not in (None, had.highest_role):
                continue
            if grant is None:
                client.end_access(CloseCode.ACCESS_ENDED, "the access to the machine has ended")
            else:
                client.set_grant(
                    replace(
                        grant,
                        user_id=user_id,
                        session_id=had.session_id,
                        highest_role=had.highest_role,
                        credential=had.credential,
                    )
                )

    def users_of(self, device_id: str) -> set[str]:
        """Return the users whose clients of a device got their access from the registry."""
        grants = [client.grant for client in self._clients(device_id)]
        return {grant.user_id for grant in grants if grant.user_id is not None and not grant.by_token}

    def grants_of(self, device_id: str) -> list[Grant]:
        """Return the grant of every client of a device."""
        return [client.grant for client in self._clients(device_id)]

    def end_clients(self, match: Callable[[Grant], bool], *, code: int, reason: str) -> None:
        """Close every client, of any device, whose grant matches.

        Its messages, and its commands that wait, no longer reach the device.
        """
        for device_id in list(self._sessions):
            for client in self._clients(device_id):
                if match(client.grant):
                    client.end_access(code, reason)

    def end_device(self, device_id: str, *, unless: Collection[bytes | None] = ()) -> None:
        """Close a device's connections with other credentials (4003), once it is safe to end them."""
        session = self._sessions.get(device_id)
        if session is not None:
            reason = "the key of this connection is no longer valid"
            session.end_device(unless, code=CloseCode.ACCESS_ENDED, reason=reason)
        else:
            self.histories.forget(device_id)
        self._absent_states.pop(device_id, None)  # it may be the state of a device with another key

    def mark_owned(self, device_id: str) -> None:
        """Mark a device as having a user, so that it is no longer anonymous."""
        if (session := self._sessions.get(device_id)) is not None:
            session.presence.set_anonymous(False)

    def is_anonymous(self, device_id: str) -> bool:
        """Whether a connected device registered itself and has no user."""
        session = self._sessions.get(device_id)
        return session is not None and session.presence.anonymous

    def forget_state(self, device_id: str) -> None:
        """Forget the state of a device that is not connected."""
        session = self._sessions.get(device_id)
        if session is not None:
            session.presence.forget_state()
        self._absent_states.pop(device_id, None)

    def send_to_device(self, device_id: str, message: Message) -> bool:
        """Send a message of the relay to a device; False if it is absent or does not take it."""
        session = self._sessions.get(device_id)
        device = session.device if session is not None and session.has_device else None
        return device is not None and device.deliver(Delivery((message,)), keep=True)

    def tell_clients(self, device_id: str, message: Message, match: Callable[[Grant], bool]) -> None:
        """Send a message of the relay to the clients of a device whose grants match."""
        delivery = Delivery((message,))
        for client in self._clients(device_id):
            if match(client.grant):
                client.deliver(delivery, keep=True)

    # Other instances

    def attach_remote_device(
        self, device_id: str, peer: RemotePeer, *, connected_at: float = LONG_AGO
    ) -> RemoteDeviceAttachment:
        """Let a connection of the device on another instance stand for it, and own `peer` from here on.

        A connection to this relay that stands for the device is closed with 4002, once it is safe to end it.
        So is one that does not stand for it yet, if it is older than `connected_at` (trio time). If there is
        no connection, clients are told that the device came. When the peer ends, they are told that it went.
        Raises RelayClosing.
        """
        return self._session(device_id).attach_remote_device(peer, connected_at=connected_at)

    def take_remote_state(
        self, device: RemoteDeviceAttachment, state: SnapshotState, last_seen_ms: int
    ) -> None:
        """Take the state that the instance of a device knows of it, and tell the clients."""
        if (session := self._sessions.get(device.session.device_id)) is not None:
            session.take_remote_state(device, state, last_seen_ms)

    def set_since(self, device_id: str, since_us: int) -> None:
        """Set when the connection of a device came, in µs by the clock of the broker; see `KnownState`."""
        if (session := self._sessions.get(device_id)) is not None:
            session.presence.set_since(since_us)

    def yield_device(self, device_id: str, *, connected_at: float = LONG_AGO) -> bool:
        """End the connection of a device (4002), once it is safe, because another instance has a newer one.

        One that does not stand for it yet ends as well, if it is older than `connected_at` (trio time).
        Its messages no longer count. The clients are told nothing: the device is still online. Return whether
        the connection was lively: then two devices may use the same id.
        """
        session = self._sessions.get(device_id)
        return session is not None and session.yield_device(connected_at=connected_at)

    def is_lively(self, device_id: str) -> bool:
        """Whether the device is connected to this relay and has sent something recently."""
        session = self._sessions.get(device_id)
        return session is not None and session.presence.is_lively(trio.current_time())

    def set_remote_audience(self, device_id: str, audience: RemoteAudience | None) -> bool:
        """Send the messages of a device to its clients on other instances; False if it is not here.

        This ends when the device goes or is yielded.
        """
        session = self._sessions.get(device_id)
        return session is not None and session.set_remote_audience(audience)

    def ask_for_state(self, device_id: str) -> None:
        """Ask a device for its state: clients on another instance waited for it."""
        if (session := self._sessions.get(device_id)) is not None:
            session.ask_for_state()

    def deliver_remote_command(self, device_id: str, message: Message) -> RemoteOutcome:
        """Deliver a command that a client on another instance may send, and return its outcome."""
        session = self._sessions.get(device_id)
        return session.take_remote_command(message) if session is not None else "device_offline"

    def export_state(self, device_id: str) -> tuple[SnapshotState, int | None]:
        """Return all that is known of a device, and when it last came or went, in ms since the epoch."""
        session = self._sessions.get(device_id)
        seen_ms = session.presence.last_seen_ms if session is not None else None
        return self._snapshot(device_id).export(trio.current_time()), seen_ms

    def _clients(self, device_id: str) -> list[ClientAttachment]:
        session = self._sessions.get(device_id)
        return session.clients if session is not None else []

    def _session(self, device_id: str) -> DeviceSession:
        if self.closing:
            raise RelayClosing("the relay is shutting down and accepts no more peers; connect again later")
        session = self._sessions.get(device_id)
        if session is None:
            snapshot, gone_at = self._absent_states.pop(device_id, (None, LONG_AGO))
            session = self._sessions[device_id] = DeviceSession(
                device_id, self, snapshot=snapshot, gone_at=gone_at
            )
            self._nursery.start_soon(own_peers, session, name=device_id)
        return session

    def session_emptied(self, session: DeviceSession) -> None:
        """Forget a session without peers; the state of its device stays for a while."""
        if self._sessions.get(session.device_id) is not session:
            return  # known already: a replaced connection may be the last to end
        del self._sessions[session.device_id]
        presence = session.presence
        if not (presence.snapshot.empty or presence.anonymous or presence.state_is_remote):
            self._absent_states[session.device_id] = (session.presence.snapshot, session.presence.gone_at)

    def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Return the known state of a device as JSON content: the last message of each kind, by `type`.

        None if nothing is known. `snapshotAgeMs` is how old it is, `staleGroups` are the groups that the
        device has not sent since it came, and `lastKnown` tells whether there are any.
        """
        snapshot = self._snapshot(device_id)
        if snapshot.empty:
            return None
        age_s = snapshot.age_s(trio.current_time())
        is_online = self.is_online(device_id)
        return {
            "snapshotAgeMs": round(age_s * 1000),
            "lastKnown": bool(stale := snapshot.stale_groups() if is_online else snapshot.groups()),
            "staleGroups": stale,
            "messages": snapshot.as_dict(),
        }

    def knows_state(self, device_id: str, *, for_s: float) -> bool:
        """Whether a device's whole state is known, and stays known for this long in its absence.

        The state of a device on another instance does not stay here.
        """
        session = self._sessions.get(device_id)
        if session is not None and session.presence.state_is_remote:
            return False
        if session is not None and session.device is not None:
            return session.presence.snapshot.has_status
        if session is not None:
            snapshot, gone_at = session.presence.snapshot, session.presence.gone_at
        elif (absent_state := self._absent_states.get(device_id)) is not None:
            snapshot, gone_at = absent_state
        else:
            return False
        return snapshot.has_status and trio.current_time() + for_s < gone_at + self.limits.snapshot_s

    def unsaved_states(self) -> list[str]:
        """List the devices whose state has changed and has to be saved now; see `Limits`."""
        now, every_s = trio.current_time(), self.limits.state_save_s
        due = []
        for device_id, session in self._sessions.items():
            wait_s = every_s if session.device is not None else 0.0
            if session.presence.anonymous or session.presence.state_is_remote:
                continue
            if session.presence.snapshot.is_due_for_saving(now, every_s=wait_s):
                due.append(device_id)
        for device_id, (snapshot, _) in self._absent_states.items():
            if snapshot.is_due_for_saving(now, every_s=0.0):
                due.append(device_id)
        return due

    def state_to_save(self, device_id: str) -> KnownState | None:
        """Return the state of a device, and mark it as saved; None if it is not known any more."""
        snapshot, now = self._snapshot(device_id), trio.current_time()
        if (known := snapshot.known(now)) is None:
            return None
        snapshot.mark_saved(now)
        message, held_at = known
        return KnownState(message, now_ms() - round((now - held_at) * 1000), snapshot.since_us)

    def state_not_saved(self, device_id: str) -> None:
        """Mark the state of a device as unsaved, because saving failed."""
        self._snapshot(device_id).mark_unsaved()

    def info_of(self, device_id: str) -> DeviceInfo:
        """Return what a device reported about itself, as far as it is known."""
        return self._snapshot(device_id).info()

    def known_fields(self, device_id: str, types: Sequence[str], names: Collection[str]) -> dict[str, bytes]:
        """Return fields of the known messages of a device; see `Snapshot.known_fields`."""
        return self._snapshot(device_id).known_fields(types, names)

    def log_of(self, device_id: str) -> DeviceLog | None:
        """Return the log of a device; None if the device has not sent its log settings."""
        return self._snapshot(device_id).log

    async def history_of(self, device_id: str, *, seconds: float) -> Samples | None:
        """Return the measurements of a device's last seconds; None if there are none."""
        self._snapshot(device_id).hand_over()
        return await self.histories.read(device_id, seconds=seconds)

    def ask_history(self, device_id: str, seconds: float, answer: Callable[[Samples | None], None]) -> None:
        """Have `answer` called with the measurements of a device's last seconds, soon."""
        self._snapshot(device_id).hand_over()
        self.histories.ask(device_id, seconds, answer)

    def _snapshot(self, device_id: str) -> Snapshot:
        session = self._sessions.get(device_id)
        if session is not None:
            return session.presence.snapshot
        absent_state = self._absent_states.get(device_id)
        return absent_state[0] if absent_state is not None else Snapshot(self.policy.dialect)

    async def run(self) -> None:
        """Run the periodic checks of every session, once a second, until cancelled."""
        watch = PauseWatch()
        while True:
            due_at = trio.current_time() + CHECK_EVERY_S
            watch.expect(due_at)
            await trio.sleep_until(due_at)
            try:
                await self._run_checks(watch)
            except Exception:  # there was no memory for the list of sessions
                with suppress(Exception):
                    log.exception("the periodic checks failed")

    async def _run_checks(self, watch: PauseWatch) -> None:
        now = trio.current_time()
        paused_s, unseen_s = watch.check(now)
        if paused_s:
            self._resume(now, paused_s, unseen_s)
        for lines in self.line_limits:
            lines.report_if_due(now)
        for number, session in enumerate(list(self._sessions.values()), start=1):
            try:
                session.run_checks(now)
            except Exception:
                log.exception("the periodic checks of device %s failed", session.device_id)
            if number % _CHECKS_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
                now = trio.current_time()
        for device_id, (_, gone_at) in list(self._absent_states.items()):
            if now - gone_at >= self.limits.snapshot_s:
                del self._absent_states[device_id]

    def _resume(self, now: float, paused_s: float, unseen_s: float) -> None:
        """Start every silence timer again after a pause."""
        log.warning("the process did not run for %.1f s; every silence timer starts again", paused_s)
        for session in self._sessions.values():
            session.resume(now, unseen_s)
        self.histories.count_pause(unseen_s)
        for device_id, (snapshot, gone_at) in self._absent_states.items():
            snapshot.count_pause(unseen_s)
            self._absent_states[device_id] = (snapshot, gone_at - unseen_s)

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Report that a device came or went, by calling `on_seen`."""
        if self._on_seen is None:
            return
        try:
            self._on_seen(device_id, at_ms)
        except Exception:
            log.exception("on_seen failed for device %s", device_id)

    def record_activity(self, device_id: str, kind: EventKind, user_id: str | None, detail: Detail) -> None:
        """Record activity of a device or a client, by calling `on_activity`."""
        if self._on_activity is None:
            return
        try:
            info = self.info_of(device_id) if kind == "offline" else None
            anonymous = user_id is None and self.is_anonymous(device_id)
            self._on_activity(ActivityEvent(device_id, kind, user_id, detail, anonymous, info))
        except Exception:
            log.exception("on_activity failed for device %s", device_id)

    def record_command(self, device_id: str, user_id: str | None, head: CommandHead, outcome: str) -> bool:
        """Record a command, and return True, unless `wants_commands` says that it would be ignored."""
        try:
            if self._wants_commands is not None and not self._wants_commands(device_id, user_id):
                return False
        except Exception:
            log.exception("wants_commands failed for device %s", device_id)
        self.record_activity(device_id, "command", user_id, {"name": head.name, "outcome": outcome})
        return True

    async def drain(self, *, hurry: trio.Event | None = None, window_s: float | None = None) -> None:
        """Refuse new peers, close every peer with 1012, and wait until all have ended.

        Clients are told when to connect again. Clients and devices are closed one by one, evenly over
        `limits.drain_s`, so that they come back evenly. Once `hurry` is set, the rest are closed at once. In
        both cases a young device is held until its key is safe. `window_s` is the part of `limits.drain_s` in
        which this relay closes its peers, if several relays drain one after another.
        """
        hurry = hurry if hurry is not None else trio.Event()
        self.closing = True
        whole_s = self.limits.drain_s
        window_s = whole_s if window_s is None else window_s
        clients = [peer for peer in self.attached if isinstance(peer, ClientAttachment)]
        devices = sorted(self.attached.difference(clients), key=lambda device: device.attached_at)
        longest_s = self.limits.longest_drain_s - whole_s + window_s
        with trio.move_on_after(longest_s) as deadline:
            for number, client in enumerate(clients):
                back_in_ms = 1000 + round(1000 * (whole_s + window_s * number / len(clients)))
                client.deliver(Delivery((messages.restarting(back_in_ms),)), keep=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_evenly, clients, window_s, hurry)
                nursery.start_soon(_close_evenly, devices, window_s, hurry)
            for attachment in list(self.attached):
                await attachment.wait_closed()
        if deadline.cancelled_caught:
            log.warning("some peers had not ended after %g s", longest_s)


async def _close_evenly(attachments: Sequence[Attachment], window_s: float, hurry: trio.Event) -> None:
    began_at = trio.current_time()
    for number, attachment in enumerate(attachments):
        with trio.move_on_at(began_at + window_s * number / len(attachments)):
            await hurry.wait()
        attachment.close(CloseCode.SERVICE_RESTART, "the relay is restarting")


@asynccontextmanager
async def open_relay(
    *,
    limits: Limits | None = None,
    dialect: Dialect = NEUTRAL,
    on_seen: OnSeen | None = None,
    on_activity: OnActivity | None = None,
    wants_commands: WantsCommands | None = None,
    counters: Counters | None = None,
    remote: RemotePresence = SINGLE_INSTANCE,
) -> AsyncIterator[Relay]:
    """Open a relay. Leaving the block closes every peer that is still attached.

    `dialect` says which messages the devices send and understand. Without it, the relay passes on every
    message, keeps no state, lets no command wait, and takes messages for a device from owners only.

    `on_seen(device_id, at_ms)` is called when a device comes or goes, and `on_activity` with an ActivityEvent
    also when a client does or sends a command; neither may block. `wants_commands(device_id, user_id)`
    returns False while `on_activity` would ignore the commands of a user, so that no event is made for them.
    After that, the commands of the client are not recorded for a second. `counters` are the counters of the
    relay, for a caller that needs them earlier. `remote` takes note of the devices that this relay has and
    wants, if it is one of many instances. An exception that leaves the block is raised in an ExceptionGroup,
    as from every nursery.

    **Owns:** the nursery of all sessions, and the task of the periodic checks.
    """
    async with trio.open_nursery() as nursery:
        relay = Relay(
            nursery,
            limits=limits or Limits(),
            dialect=dialect,
            on_seen=on_seen,
            on_activity=on_activity,
            wants_commands=wants_commands,
            counters=counters,
            remote=remote,
        )
        nursery.start_soon(relay.run)
        try:
            yield relay
        finally:
            relay.closing = True
            nursery.cancel_scope.cancel()
            for lines in relay.line_limits:
                lines.report()
