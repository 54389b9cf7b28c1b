"""Snapshot: the last known state of one device, for clients that join and after absences.

A machine sends its whole state rarely, and changes often. Merged, they give what an app knows that was
attached all the time. Messages are merged only when the state is needed: for a machine without clients, the
relay only keeps its last few messages.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import trio

from brewos_relay.core.device_log import DeviceLog
from brewos_relay.core.histories import Histories
from brewos_relay.core.merging import (
    EMPTY_GROUPS,
    fields_of,
    group_names,
    join_fields,
    merge_group,
    overlay,
    raw_value,
    readable_content,
    recode,
    without_volatile,
)
from brewos_relay.dialect import Dialect, StateKind
from brewos_relay.messages import DeviceInfo, Message
from brewos_relay.raw_fields import Key
from brewos_relay.vocabulary import LONG_AGO

_WHOLE: Final = StateKind.WHOLE
_CHANGE: Final = StateKind.CHANGE
_NUMBER: Final = StateKind.NUMBER
_KEPT: Final = StateKind.KEPT
_LOG: Final = StateKind.LOG
_LOG_CONFIG: Final = StateKind.LOG_CONFIG

_NOT_SMALL: Final = (_KEPT, _LOG, _LOG_CONFIG)
"""What an anonymous device may send without it being kept, apart from its description of itself."""

_MERGE_AT: Final = 100
"""This many changes are merged at once, so that few messages are kept."""

_MOST_BYTES: Final = 64 * 1024
"""The same for the bytes of changes. A state is never larger."""

_SMALL_MERGE_AT: Final = 10
_SMALL_BYTES: Final = 4 * 1024
"""The same two limits for an anonymous device."""


class KnownState(NamedTuple):
    """The whole state of a device, and when it was current, in ms since the epoch.

    `since_us` is when the connection that sent it began to stand for the device, in µs since the epoch.
    """

    message: Message
    at_ms: int
    since_us: int = 0


class RestoredState(NamedTuple):
    """A state from before an absence, for the snapshot of another instance; see `Restored`."""

    message: Message
    age_s: float
    renewed: Sequence[Key]
    shown: bool


class SnapshotState(NamedTuple):
    """All that a snapshot knows, for the same snapshot on another instance."""

    status: Message | None
    others: Sequence[Message]
    seq: Any
    age_s: float
    restored: RestoredState | None


class Restored:
    """A state from before an absence, which the snapshot uses until the device has sent a whole state."""

    __slots__ = ("at", "message", "renewed", "shown")

    def __init__(self, message: Message, at: float) -> None:
        self.message = message
        """The whole state, including the volatile parts."""
        self.at = at
        """When it was current (trio time)."""
        self.renewed: set[Key] = set()
        """The groups that the device has sent since."""
        self.shown = False
        """Whether clients are told of it."""


_APART_S: Final = 5.0
"""How soon after a save a whole state is saved again."""
_MOST_APART_S: Final = 60.0
"""The same for a device that sends whole states all the time."""


_SLOTS: Final = (
    "_apart_s",
    "_changes",
    "_changes_bytes",
    "_device_id",
    "_dialect",
    "_kinds",
    "_others",
    "_restored",
    "_saved",
    "_saved_at",
    "_status",
    "_status_seq",
    "_unsaved",
    "_updated",
    "_updated_at",
    "_whole_waits",
    "histories",
    "log",
    "seq",
    "since_us",
)


class Snapshot:
    """The state of a device, from the messages that its dialect lists.

    A change replaces the fields that it names in a group, and leaves the other fields. So an app that joins
    knows the same as one that was attached all the time.
    """

    __slots__ = _SLOTS

    def __init__(self, dialect: Dialect, device_id: str = "") -> None:
        self._dialect = dialect
        self._device_id = device_id
        self._kinds = dialect.snapshot_kinds
        self._status: Message | None = None
        self._status_seq: Any = None
        self._changes: list[Message] = []
        self._changes_bytes = 0
        self._others: dict[str, Message] = {}
        self.seq: Any = None
        """The last sequence number of the device."""
        self.since_us = 0
        """When the last connection began to stand for the device, in µs since the epoch; see
        `DeviceAttachment`."""
        self._updated = False  # since the clock was last read
        self._updated_at = LONG_AGO
        self.log: DeviceLog | None = None
        """The log of the device, once it has sent its log settings."""
        self._restored: Restored | None = None
        self._unsaved = False  # whether it has changed since the state was saved
        self._saved: Message | None = None  # the state that was saved, to tell whether a whole one came since
        self._saved_at = LONG_AGO
        self._apart_s = _APART_S
        self._whole_waits = False  # whether the history has not taken over the whole state
        self.histories: Histories | None = None
        """Takes the messages over after they were merged, while the device is connected to this instance."""

    @property
    def has_status(self) -> bool:
        """Whether the whole state is known, current or from before an absence."""
        return self._status is not None

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return self._status is None and not self._others

    def age_s(self, now: float) -> float:
        """Return how long ago the device sent anything about its state, in s; infinite if it never did.

        For a restored state, this is the age of its oldest part. It is exact to the time between two calls,
        since messages get no time stamp.
        """
        if self._updated:
            self._updated = False
            self._unsaved = True
            self._updated_at = now
            if self.histories is not None:
                self._hand_over_whole(now)
                self.histories.mark(self._device_id, self._changes, self._others, now)
        return now - (self._updated_at if self._restored is None else self._restored.at)

    def count_pause(self, unseen_s: float) -> None:
        """Add `unseen_s`, which is missing on Trio's clock, to the age of the state."""
        self._updated_at -= unseen_s
        if self._restored is not None:
            self._restored.at -= unseen_s

    def update(self, message: Message, message_type: str, seq: Any) -> None:
        """Keep a message of the device, if it is about its state."""
        kind = self._kinds.get(message_type)
        if kind is None:
            return
        if kind is _WHOLE:
            self._status = message
            self._status_seq = self.seq = seq
            self._restored = None
            if self._changes:
                self._drop_changes(message)
            else:  # the history gets it before the next change or with the next check: the last one is enough
                self._whole_waits = self.histories is not None
        elif kind is _CHANGE:
            if self._status is None:
                return  # a change to an unknown state
            if self._whole_waits:
                self._hand_over_whole()
            self._changes.append(message)
            self._changes_bytes += len(message.payload)
            self.seq = seq
            if len(self._changes) >= _MERGE_AT or self._changes_bytes > _MOST_BYTES:
                self._merge()
        elif kind is _NUMBER:
            self.seq = seq
        elif kind is _KEPT:
            self._others[message_type] = message
        else:
            self._update_log(message, kind)
            return
        self._updated = True

    def _update_log(self, message: Message, kind: StateKind) -> None:
        if kind is _LOG_CONFIG:
            if self.log is None:
                self.log = DeviceLog()
            self.log.take_config(message, trio.current_time())
        elif self.log is not None:
            self.log.append(message)

    def messages(self) -> list[Message]:
        """Return the known state as messages for a client that joins, in the encoding of the device.

        The state carries the device's last `seq`, so that the client sees no gap before the next message.
        """
        self._merge()
        status = self._status if self._restored is None or self._restored.shown else None
        return [*([status] if status is not None else []), *self._others.values()]

    def info(self) -> DeviceInfo:
        """Return what the device reports about itself."""
        told = self._others.get(self._dialect.info or "")
        return told.peek_info() if told is not None else DeviceInfo()

    def as_dict(self) -> dict[str, Any]:
        """Return the known messages by type, as JSON content. A 32-bit float is written with 7 digits.

        Fields that JSON cannot hold, such as a text that is not UTF-8, are left out. A message without any
        other field is left out as well.
        """
        known = dict(self._others)
        if self._dialect.state is not None and (status := self.whole_status()) is not None:
            known[self._dialect.state] = status
        contents = {name: readable_content(message) for name, message in known.items()}
        return {name: content for name, content in contents.items() if content is not None}

    def known_fields(self, types: Sequence[str], names: Collection[str]) -> dict[str, bytes]:
        """Return fields of the known messages of these types as the device wrote them; later types win.

        Each value is in the encoding of its message. No other field is decoded.
        """
        known = dict(self._others)
        if self._dialect.state is not None and (status := self.whole_status()) is not None:
            known[self._dialect.state] = status
        found: dict[str, bytes] = {}
        for message in (known[each] for each in types if each in known):
            for name, value in fields_of(message).items():
                if isinstance(name, str) and name in names:
                    found[name] = bytes(value)
        return found

    # Other instances

    def export(self, now: float) -> SnapshotState:
        """Return all that is known, for `take`."""
        self._merge()
        self.age_s(now)
        restored = self._restored
        return SnapshotState(
            self._status,
            list(self._others.values()),
            self.seq,
            now - self._updated_at,
            None
            if restored is None
            else RestoredState(restored.message, now - restored.at, list(restored.renewed), restored.shown),
        )

    def take(self, state: SnapshotState, now: float) -> None:
        """Know the same as the snapshot that `state` is from, and nothing else."""
        self._status = state.status
        self._status_seq = self.seq = state.seq
        self._changes.clear()
        self._changes_bytes = 0
        self._others = {message.peek_type() or "": message for message in state.others}
        self._updated = False
        self._updated_at = now - state.age_s
        self._restored = None
        if (restored := state.restored) is not None:
            self._restored = Restored(restored.message, now - restored.age_s)
            self._restored.renewed.update(restored.renewed)
            self._restored.shown = restored.shown

    # Absences

    def whole_status(self) -> Message | None:
        """Return the whole state: the restored one, overlaid with what the device has sent since."""
        self._merge()
        if self._restored is None or self._status is None:
            return self._status
        return overlay(self._restored.message, self._status)

    def known(self, now: float) -> tuple[Message, float] | None:
        """Return the whole state, and when it was current (trio time); None if it is not known."""
        status = self.whole_status()
        return (status, now - self.age_s(now)) if status is not None else None

    def restore(self, message: Message, *, at: float) -> bool:
        """Continue from a state before an absence; `at` is when it was current (trio time).

        It gets no `seq` until the device sends one, since the device has counted on meanwhile. Clients are
        told it without the volatile parts, and only after `show`. False if the message has no fields, or the
        dialect has no state.
        """
        told = without_volatile(message, self._dialect.volatile)
        if told is None or self._dialect.state is None:
            return False
        self._status = told
        self._status_seq = self.seq = None
        self._changes.clear()
        self._changes_bytes = 0
        self._restored = Restored(message, at)
        self._saved = None if self._unsaved else told
        return True

    def show(self) -> bool:
        """Tell clients of the restored state from here on; False if there is none, or it is shown already."""
        if self._restored is None or self._restored.shown:
            return False
        self._restored.shown = True
        return True

    def groups(self) -> list[str]:
        """List the groups of the state."""
        status = self.whole_status()
        return group_names(status) if status is not None else []

    def stale_groups(self) -> list[str]:
        """List the groups that the device has not sent since its absence."""
        self._merge()
        if self._restored is None:
            return []
        return [name for name in group_names(self._restored.message) if name not in self._restored.renewed]

    # Saving

    def is_due_for_saving(self, now: float, *, every_s: float) -> bool:
        """Whether the state has changed and has to be saved now.

        A whole state is saved at once, since it announces an important change, but not within 5 s of the last
        save. A device that sends whole states all the time waits twice as long after each save, up to a
        minute. Other changes are saved each `every_s`; with 0, everything is saved at once.
        """
        self.age_s(now)
        if not self._unsaved or self._status is None:
            return False
        wait_s = every_s if self._status is self._saved else min(every_s, self._apart_s)
        return now - self._saved_at >= wait_s

    def mark_saved(self, now: float) -> None:
        """Mark the present state as saved, since it is being saved now."""
        self.age_s(now)
        is_early = self._status is not self._saved and now - self._saved_at < 2 * self._apart_s
        self._apart_s = min(2 * self._apart_s, _MOST_APART_S) if is_early else _APART_S
        self._unsaved = False
        self._saved = self._status
        self._saved_at = now

    def mark_unsaved(self) -> None:
        """Mark the state as unsaved, because saving failed: it is due again at once."""
        self._unsaved = True
        self._saved = None
        self._saved_at = LONG_AGO

    def to_full_size(self) -> "Snapshot":
        """Return a snapshot of the usual size with the same state."""
        usual = Snapshot(self._dialect, self._device_id)
        for name in _SLOTS:
            setattr(usual, name, getattr(self, name))
        return usual

    def _merge(self) -> None:
        status = self._status
        if status is None or (not self._changes and self._status_seq == self.seq):
            return
        fields = fields_of(status)
        renewed = self._restored.renewed if self._restored is not None else None
        for change in self._changes:
            for name, value in recode(change, is_text=status.is_text).items():
                fields[name] = merge_group(fields.get(name), value, is_text=status.is_text)
                if renewed is not None and bytes(value) not in EMPTY_GROUPS:
                    renewed.add(name)
        fields["type"] = raw_value(self._dialect.state, is_text=status.is_text)
        if isinstance(self.seq, int) and abs(self.seq) < 2**63:
            fields["seq"] = raw_value(self.seq, is_text=status.is_text)
        merged = Message(join_fields(fields, is_text=status.is_text), status.is_text)
        if self._saved is status:
            self._saved = merged
        # What grows beyond that is not the state of a machine.
        self._status = merged if len(merged.payload) <= _MOST_BYTES else None
        self._status_seq = self.seq
        self._drop_changes()

    def _drop_changes(self, whole: Message | None = None) -> None:
        """Drop changes that were merged, or that `whole` replaces; the history takes them over."""
        if self.histories is None:
            self._changes.clear()
        elif self._changes or whole is not None:
            self.histories.take(self._device_id, self._changes, whole, changes_bytes=self._changes_bytes)
            self._changes = []
        self._changes_bytes = 0

    def _hand_over_whole(self, now: float | None = None) -> None:
        """Let the history take over a whole state that waits for it."""
        if self._whole_waits and self.histories is not None and self._status is not None:
            self.histories.take(self._device_id, (), self._status, changes_bytes=0, now=now)
        self._whole_waits = False

    def hand_over(self) -> None:
        """Let the history take over all messages so far."""
        self._hand_over_whole()
        self._merge()

    def end_history(self, now: float) -> None:
        """Let the history end here, because the device goes offline or to another instance."""
        if self.histories is not None:
            self._hand_over_whole(now)
            self._merge()
            self.histories.end(self._device_id, now)
            self.histories = None


class SmallSnapshot(Snapshot):
    """The state of an anonymous device: small, with few changes, and what the device tells about itself.

    That is enough for a machine, whose messages have 2 KiB at most.
    """

    __slots__ = ()

    def update(self, message: Message, message_type: str, seq: Any) -> None:
        """Keep a message about the state, unless it is too large."""
        kind = self._kinds.get(message_type)
        if kind in _NOT_SMALL and message_type != self._dialect.info:
            return
        if len(message.payload) > _SMALL_BYTES:
            return
        super().update(message, message_type, seq)
        if len(self._changes) >= _SMALL_MERGE_AT or self._changes_bytes > _SMALL_BYTES:
            self._merge()
            if self._status is not None and len(self._status.payload) > _SMALL_BYTES:
                self._status = None
