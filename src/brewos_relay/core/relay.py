"""Relay: from device ids to live sessions."""

import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import Attachment, ClientAttachment, DeviceAttachment, Renew
from brewos_relay.core.audience import LOOK_EVERY_S
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import FULL, ClientCounts, Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.pauses import PauseWatch
from brewos_relay.core.peer import Peer
from brewos_relay.core.rate_limits import LineLimits, open_bucket
from brewos_relay.core.recording import ActivityEvent, Happening
from brewos_relay.core.session import DeviceSession
from brewos_relay.core.snapshot import DeviceInfo, KnownState, Snapshot
from brewos_relay.dialect import NEUTRAL, Dialect, Policy
from brewos_relay.errors import CloseCode, RelayClosing
from brewos_relay.messages import Delivery, Message
from brewos_relay.vocabulary import Role, now_ms

log = logging.getLogger(__name__)

_LOOKS_PER_PASS: Final = 50
"""How many sessions are looked after before everything else in the process gets its turn."""

_LINES_PER_S: Final = 5.0
_LINES_AT_ONCE: Final = 2000.0
"""Log lines about peers that come and go, of all networks together."""
_LINES_AT_ONCE_OF_EACH: Final = 200.0
"""Those of one cause and network."""

OnSeen = Callable[[str, int], None]
OnActivity = Callable[[ActivityEvent], None]


class Relay:
    """Brings devices and their clients together; made by `open_relay`.

    **Owns:** nothing itself: each session runs in the nursery of `open_relay`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        limits: Limits,
        dialect: Dialect,
        on_seen: OnSeen | None,
        on_activity: OnActivity | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.limits = limits
        self.policy = Policy(dialect, owner_commands=limits.owner_commands, never_wait=limits.never_wait)
        self.counters = counters if counters is not None else Counters()
        self.logs_messages = log.isEnabledFor(logging.DEBUG)
        self.closing = False
        """Set once the relay takes nobody on any more."""
        self.attached: set[Attachment] = set()
        """Every peer whose goodbye is not said yet."""
        self.client_counts = ClientCounts()
        """How many clients each user has."""
        self._nursery = nursery
        self._on_seen = on_seen
        self._on_activity = on_activity
        self._sessions: dict[str, DeviceSession] = {}
        self._left_behind: dict[str, tuple[Snapshot, float]] = {}
        """What is known of devices without a session, and when they went."""
        self.lines = LineLimits(
            "connections",
            rate_per_s=_LINES_PER_S,
            burst=_LINES_AT_ONCE,
            each_at_once=_LINES_AT_ONCE_OF_EACH,
        )
        """Which lines about peers that come and go are logged."""
        self.line_limits = [self.lines]
        """What reports once a minute how many lines were suppressed."""
        self._admitting = open_bucket(limits.admit_rate, burst=max(1.0, limits.admit_rate))

    @property
    def device_count(self) -> int:
        """How many devices are online."""
        return sum(session.device is not None for session in self._sessions.values())

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
        """How many clients are too far behind to be told everything."""
        return sum(session.lagging_count for session in self._sessions.values())

    @property
    def pending_count(self) -> int:
        """How many commands wait for their device."""
        return sum(session.pending_count for session in self._sessions.values())

    def is_online(self, device_id: str) -> bool:
        """Whether this device is connected now."""
        session = self._sessions.get(device_id)
        return session is not None and session.device is not None

    def admits(self, *, reserve: float = 0.0) -> bool:
        """Take one connection from what `admit_rate` allows, if it allows `reserve` more; False if not."""
        return self._admitting is None or self._admitting.admit(trio.current_time(), reserve=reserve)

    def is_contested(self, device_id: str) -> bool:
        """Whether another machine with this id is here and had better stay; a newcomer is to be refused."""
        session = self._sessions.get(device_id)
        if session is None or not session.is_contested():
            return False
        self.counters.conflicts += 1
        return True

    def reached_client_limit(self, device_id: str, grant: Grant) -> str | None:
        """Say of what there are as many clients as may be, if one with this grant is one too many."""
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
        """Make `peer` a connection of a device; it belongs to the relay from here on.

        It stands for the device from its first sign of life on; an earlier connection of the same device is
        then closed with 4002. `credential` is what `end_device` goes by. `network` is where it comes from:
        its log lines are limited by that. Of an `anonymous` device little is kept. `known_state` is its last
        whole state as far as the caller knows, where the relay itself does not. Raises RelayClosing.
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
        """Attach `peer` to a device as one of its clients; it belongs to the relay from here on.

        `last_seen_ms` says when the device was last seen, in ms since the epoch, as far as the caller knows.
        `expires_at_s` is the end of the client's token, in s since the epoch: it is warned before that, and
        closed then (4002). `renew` takes a fresh token and gives its end, or raises TokenRejected.
        `grant` says what the client may do. `network` is where it comes from. Raises RelayClosing.
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
        """Let a user's clients of a device do this from now on; None ends them (4003).

        With `highest_role`, only clients whose token lends this role at most. Each client keeps its session,
        whatever the grant says of it; clients whose own token names the device are left alone.
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
        """Tell whose clients of a device are there by what the registry says, not by their own token."""
        grants = [client.grant for client in self._clients(device_id)]
        return {grant.user_id for grant in grants if grant.user_id is not None and not grant.by_token}

    def grants_of(self, device_id: str) -> list[Grant]:
        """Give the grant of every client of a device: who they are, and what they may do."""
        return [client.grant for client in self._clients(device_id)]

    def end_clients(self, match: Callable[[Grant], bool], *, code: int, reason: str) -> None:
        """Close every client, of any device, whose grant matches; nothing more that it says is taken."""
        for device_id in list(self._sessions):
            for client in self._clients(device_id):
                if match(client.grant):
                    client.end_access(code, reason)

    def end_device(self, device_id: str, *, unless: Collection[bytes | None] = ()) -> None:
        """Close a device's connections (4003) whose credential is none of these, but none too early."""
        session = self._sessions.get(device_id)
        if session is not None:
            reason = "the key is not that of the machine any more"
            session.end_device(unless, code=CloseCode.ACCESS_ENDED, reason=reason)
        self._left_behind.pop(device_id, None)  # it may be that of another key

    def note_owned(self, device_id: str) -> None:
        """Learn that a user has a device: it is not anonymous any more."""
        if (session := self._sessions.get(device_id)) is not None:
            session.presence.set_anonymous(False)

    def is_anonymous(self, device_id: str) -> bool:
        """Whether a device that is connected registered itself and has no user, as far as is known here."""
        session = self._sessions.get(device_id)
        return session is not None and session.presence.anonymous

    def forget_state(self, device_id: str) -> None:
        """Forget the state of a device, unless it is connected: then it is what the device says now."""
        session = self._sessions.get(device_id)
        if session is not None:
            session.presence.forget_state()
        self._left_behind.pop(device_id, None)

    def send_to_device(self, device_id: str, message: Message) -> bool:
        """Send a message of the relay's own to a device; False if it is not there, or not able to take it."""
        session = self._sessions.get(device_id)
        device = session.device if session is not None else None
        return device is not None and device.deliver(Delivery((message,)), keep=True)

    def tell_clients(self, device_id: str, message: Message, match: Callable[[Grant], bool]) -> None:
        """Send a message of the relay's own to those clients of a device whose grants match."""
        delivery = Delivery((message,))
        for client in self._clients(device_id):
            if match(client.grant):
                client.deliver(delivery, keep=True)

    def _clients(self, device_id: str) -> list[ClientAttachment]:
        session = self._sessions.get(device_id)
        return session.clients if session is not None else []

    def _session(self, device_id: str) -> DeviceSession:
        if self.closing:
            raise RelayClosing("the relay is leaving and takes nobody on; come back later")
        session = self._sessions.get(device_id)
        if session is None:
            snapshot, gone_at = self._left_behind.pop(device_id, (None, -math.inf))
            session = self._sessions[device_id] = DeviceSession(
                device_id, self, snapshot=snapshot, gone_at=gone_at
            )
            self._nursery.start_soon(session.run, name=device_id)
        return session

    def session_emptied(self, session: DeviceSession) -> None:
        """Forget a session that nobody is attached to, but not at once what it knows."""
        if self._sessions.get(session.device_id) is not session:
            return  # said before: a connection that was replaced may be the last to go
        del self._sessions[session.device_id]
        if not (session.presence.snapshot.empty or session.presence.anonymous):
            self._left_behind[session.device_id] = (session.presence.snapshot, session.presence.gone_at)

    def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Give what is known of a device's state, as JSON has it: the last message of each kind by `type`.

        None if nothing is known. `snapshotAgeMs` says how old it is, `staleGroups` which groups of the status
        the device has not spoken of since it came, and `lastKnown` whether there are any.
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
        """Whether the whole state of a device is known, and stays so for this long without the device."""
        session = self._sessions.get(device_id)
        if session is not None and session.device is not None:
            return session.presence.snapshot.has_status
        if session is not None:
            snapshot, gone_at = session.presence.snapshot, session.presence.gone_at
        elif (left_behind := self._left_behind.get(device_id)) is not None:
            snapshot, gone_at = left_behind
        else:
            return False
        return snapshot.has_status and trio.current_time() + for_s < gone_at + self.limits.snapshot_s

    def unsaved_states(self) -> list[str]:
        """List the devices whose whole state is to be saved now, since it has changed; see `Limits`."""
        now, every_s = trio.current_time(), self.limits.state_save_s
        due = []
        for device_id, session in self._sessions.items():
            wait_s = every_s if session.device is not None else 0.0
            if not session.presence.anonymous and session.presence.snapshot.is_due_for_saving(
                now, every_s=wait_s
            ):
                due.append(device_id)
        for device_id, (snapshot, _) in self._left_behind.items():
            if snapshot.is_due_for_saving(now, every_s=0.0):
                due.append(device_id)
        return due

    def state_to_save(self, device_id: str) -> KnownState | None:
        """Give the whole state of a device, which is being saved from here on; None if it has gone."""
        snapshot, now = self._snapshot(device_id), trio.current_time()
        if (known := snapshot.known(now)) is None:
            return None
        snapshot.note_saved(now)
        message, held_at = known
        return KnownState(message, now_ms() - round((now - held_at) * 1000))

    def state_not_saved(self, device_id: str) -> None:
        """Learn that the state of a device could not be saved."""
        self._snapshot(device_id).note_unsaved()

    def info_of(self, device_id: str) -> DeviceInfo:
        """Read what a device says that it is, as far as it is known."""
        return self._snapshot(device_id).info()

    def _snapshot(self, device_id: str) -> Snapshot:
        session = self._sessions.get(device_id)
        if session is not None:
            return session.presence.snapshot
        left_behind = self._left_behind.get(device_id)
        return left_behind[0] if left_behind is not None else Snapshot(self.policy.dialect)

    async def run(self) -> None:
        """Do what is due by time, for ever: one task for all connections."""
        watch = PauseWatch()
        while True:
            due_at = trio.current_time() + LOOK_EVERY_S
            watch.expect(due_at)
            await trio.sleep_until(due_at)
            try:
                await self._run_checks(watch)
            except Exception:  # no memory for a list of them: the next look may have some
                with suppress(Exception):
                    log.exception("not every device could be looked after")

    async def _run_checks(self, watch: PauseWatch) -> None:
        now = trio.current_time()
        paused_s, unseen_s = watch.look(now)
        if paused_s:
            self._resume(now, paused_s, unseen_s)
        for lines in self.line_limits:
            lines.report_if_due(now)
        for number, session in enumerate(list(self._sessions.values()), start=1):
            try:
                session.run_checks(now)
            except Exception:
                log.exception("looking after device %s failed", session.device_id)
            if number % _LOOKS_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
                now = trio.current_time()
        for device_id, (_, gone_at) in list(self._left_behind.items()):
            if now - gone_at >= self.limits.snapshot_s:
                del self._left_behind[device_id]

    def _resume(self, now: float, paused_s: float, unseen_s: float) -> None:
        """Judge no peer by a pause that has just ended."""
        log.warning("the process did not run for %.1f s; every silence timer starts again", paused_s)
        for session in self._sessions.values():
            session.resume(now, unseen_s)
        for device_id, (snapshot, gone_at) in self._left_behind.items():
            snapshot.count_pause(unseen_s)
            self._left_behind[device_id] = (snapshot, gone_at - unseen_s)

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Tell whoever opened the relay that a device came or went."""
        if self._on_seen is None:
            return
        try:
            self._on_seen(device_id, at_ms)
        except Exception:
            log.exception("nobody could note that device %s was seen", device_id)

    def note(self, device_id: str, kind: Happening, user_id: str | None, detail: Mapping[str, str]) -> None:
        """Tell whoever opened the relay what happened."""
        if self._on_activity is None:
            return
        try:
            info = self.info_of(device_id) if kind == "offline" else None
            anonymous = self.is_anonymous(device_id)
            self._on_activity(ActivityEvent(device_id, kind, user_id, detail, anonymous, info))
        except Exception:
            log.exception("nobody could note what happened to device %s", device_id)

    async def drain(self, *, hurry: trio.Event | None = None) -> None:
        """Refuse new peers, close every peer (1012), and wait until all have ended.

        Clients are told when to come back. Clients and devices are closed one after the other, evenly over
        `limits.drain_s`, so that they return as evenly. Once `hurry` is set the rest are closed at once. A
        young device is held until its key is safe, in either case.
        """
        hurry = hurry if hurry is not None else trio.Event()
        self.closing = True
        window_s = self.limits.drain_s
        clients = [peer for peer in self.attached if isinstance(peer, ClientAttachment)]
        devices = sorted(self.attached.difference(clients), key=lambda device: device.attached_at)
        longest_s = self.limits.longest_drain_s
        with trio.move_on_after(longest_s) as deadline:
            for number, client in enumerate(clients):
                back_in_ms = 1000 + round(1000 * window_s * (1 + number / len(clients)))
                client.deliver(Delivery((messages.restarting(back_in_ms),)), keep=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_evenly, clients, window_s, hurry)
                nursery.start_soon(_close_evenly, devices, window_s, hurry)
            for attachment in list(self.attached):
                await attachment.wait_closed()
        if deadline.cancelled_caught:
            log.warning("not everybody had gone after %g s", longest_s)


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
    counters: Counters | None = None,
) -> AsyncIterator[Relay]:
    """Open a relay; leaving the block closes every peer that is still attached, with a goodbye.

    `dialect` says which messages the devices send and understand. Without it, the relay passes on every
    message, keeps no state, lets no command wait, and takes messages for a device from owners only.

    `on_seen(device_id, at_ms)` is called when a device comes or goes, `on_activity` with an
    ActivityEvent also when a client does, or sends a command; neither must block. `counters` is where the
    relay counts, for an owner that needs them before. An exception that leaves the block comes out in an
    ExceptionGroup, as from every nursery.

    **Owns:** the nursery in which every session lives, and the task that looks after them by time.
    """
    async with trio.open_nursery() as nursery:
        relay = Relay(
            nursery,
            limits=limits or Limits(),
            dialect=dialect,
            on_seen=on_seen,
            on_activity=on_activity,
            counters=counters,
        )
        nursery.start_soon(relay.run)
        try:
            yield relay
        finally:
            relay.closing = True
            nursery.cancel_scope.cancel()
            for lines in relay.line_limits:
                lines.report()
