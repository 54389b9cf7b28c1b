"""Snapshot: the last known state of one device, for clients that join and after absences.

A machine says its whole state rarely and what has changed often; merged, they are what an app that was there
all the time would know. Merging waits until somebody asks: a machine that nobody watches costs nothing here
but keeping its last few messages.
"""

import math
from typing import Any, Final, NamedTuple

import msgspec

from brewos_relay.core.merging import (
    EMPTY_GROUPS,
    fields_of,
    group_names,
    join_fields,
    merge_group,
    overlaid,
    raw_value,
    readable_content,
    recoded,
    without_volatile,
)
from brewos_relay.dialect import Dialect, StateKind
from brewos_relay.fields import MALFORMED, Key
from brewos_relay.messages import Message

_WHOLE, _CHANGE, _NUMBER, _KEPT = StateKind

_MERGE_AT: Final = 100
"""So many changes are merged unasked, so that what is kept stays small."""

_MOST_BYTES: Final = 64 * 1024
"""The same for bytes; and no state is larger than this."""

_SMALL_MERGE_AT: Final = 10
_SMALL_BYTES: Final = 4 * 1024
"""The same two for an anonymous device."""


class DeviceInfo(msgspec.Struct, gc=False, rename="camel"):
    """What is read of a `device_info` to tell machines apart in a list; whatever it is that stands there."""

    firmware_version: Any = None
    machine_type: Any = None


class KnownState(NamedTuple):
    """The whole state of a device as a `status`, and when that was known to hold, in ms since the epoch."""

    message: Message
    at_ms: int


class Restored:
    """The state from before an absence, where a snapshot goes on until the device says all of it."""

    __slots__ = ("at", "message", "renewed", "shown")

    def __init__(self, message: Message, at: float) -> None:
        self.message = message
        """With everything, also what clients are not told again."""
        self.at = at
        """When it was known to hold (trio time)."""
        self.renewed: set[Key] = set()
        """The groups that the device has spoken of since."""
        self.shown = False
        """Whether clients are told of it."""


_decode_info_json = msgspec.json.Decoder(DeviceInfo).decode
_decode_info_msgpack = msgspec.msgpack.Decoder(DeviceInfo).decode
_SAVED_APART_S: Final = 5.0
"""How often a state is due for saving at most, however often the device says all of it."""


class Snapshot:
    """What a device has said of its state, as far as its dialect says which messages are about that.

    A group in a change replaces what it names and leaves the rest of that group as it was: an app
    that joins then knows just what one knows that was there.
    """

    __slots__ = (
        "_changes",
        "_changes_bytes",
        "_dialect",
        "_kinds",
        "_noted",
        "_noted_at",
        "_others",
        "_restored",
        "_saved",
        "_saved_at",
        "_status",
        "_status_seq",
        "_unsaved",
        "seq",
    )

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._kinds = dialect.state_kinds
        self._status: Message | None = None
        self._status_seq: Any = None
        self._changes: list[Message] = []
        self._changes_bytes = 0
        self._others: dict[str, Message] = {}
        self.seq: Any = None
        """The last sequence number that the device gave."""
        self._noted = False  # since the last look at the clock
        self._noted_at = -math.inf
        self._restored: Restored | None = None
        self._unsaved = False  # whether anything was noted since the state was saved
        self._saved: Message | None = None  # the status that was saved, to tell whether a full one came since
        self._saved_at = -math.inf

    @property
    def has_status(self) -> bool:
        """Whether the whole state is known, from now or from before an absence."""
        return self._status is not None

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return self._status is None and not self._others

    def age_s(self, now: float) -> float:
        """Look for how long the device has not spoken of its state, in s; infinite if it never has.

        Of a restored state, the age of the oldest part. Exact to the time between two looks, since messages
        are not stamped as they come.
        """
        if self._noted:
            self._noted = False
            self._unsaved = True
            self._noted_at = now
        return now - (self._noted_at if self._restored is None else self._restored.at)

    def count_pause(self, unseen_s: float) -> None:
        """Let what is known be older by a time that Trio's clock has not counted."""
        self._noted_at -= unseen_s
        if self._restored is not None:
            self._restored.at -= unseen_s

    def note(self, message: Message, message_type: str, seq: Any) -> None:
        """Take note of a message of the device, if it is about its state."""
        kind = self._kinds.get(message_type)
        if kind is None:
            return
        if kind is _WHOLE:
            self._status = message
            self._status_seq = self.seq = seq
            self._restored = None
            self._changes.clear()
            self._changes_bytes = 0
        elif kind is _CHANGE:
            if self._status is None:
                return  # a change of something unknown
            self._changes.append(message)
            self._changes_bytes += len(message.payload)
            self.seq = seq
            if len(self._changes) >= _MERGE_AT or self._changes_bytes > _MOST_BYTES:
                self._merge()
        elif kind is _NUMBER:
            self.seq = seq
        else:
            self._others[message_type] = message
        self._noted = True

    def messages(self) -> list[Message]:
        """Give what a client that joins has to be told, in the device's own encoding.

        The status carries the device's last `seq`, so that the next message is the next one for the client.
        """
        self._merge()
        status = self._status if self._restored is None or self._restored.shown else None
        return [*([status] if status is not None else []), *self._others.values()]

    def info(self) -> DeviceInfo:
        """Read what the device says that it is. Cheap, as the rest, which may be large, is passed over."""
        told = self._others.get(self._dialect.info or "")
        if told is None:
            return DeviceInfo()
        try:
            return (_decode_info_json if told.is_text else _decode_info_msgpack)(told.payload)
        except MALFORMED:
            return DeviceInfo()

    def as_dict(self) -> dict[str, Any]:
        """Give the known messages by type, with numbers as people write them; JSON can hold all of it.

        A message that has no such form is left out: text in a machine's message need not be UTF-8.
        """
        known = dict(self._others)
        if self._dialect.state is not None and (status := self.whole_status()) is not None:
            known[self._dialect.state] = status
        contents = {name: readable_content(message) for name, message in known.items()}
        return {name: content for name, content in contents.items() if content is not None}

    # Before and after an absence

    def whole_status(self) -> Message | None:
        """Give the whole state as a `status`: what was restored, with all that the device has said since."""
        self._merge()
        if self._restored is None or self._status is None:
            return self._status
        return overlaid(self._restored.message, self._status)

    def known(self, now: float) -> tuple[Message, float] | None:
        """Give the whole state, and when it was known to hold (trio time); None if it is not known."""
        status = self.whole_status()
        return (status, now - self.age_s(now)) if status is not None else None

    def restore(self, message: Message, *, at: float) -> bool:
        """Go on from a state from before an absence; `at` is when it held (trio time).

        It gets no `seq` before the device gives one: the device has counted on meanwhile. Clients are told
        without the volatile parts, and only after `show`. False if it is no status, or the dialect has none.
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
        """Tell clients of the restored state from here on; False if there is none (any more)."""
        if self._restored is None:
            return False
        self._restored.shown = True
        return True

    def groups(self) -> list[str]:
        """List the groups of the status."""
        status = self.whole_status()
        return group_names(status) if status is not None else []

    def stale_groups(self) -> list[str]:
        """List the groups that the device has not spoken of since its absence."""
        self._merge()
        if self._restored is None:
            return []
        return [name for name in group_names(self._restored.message) if name not in self._restored.renewed]

    # Saving

    def is_due_for_saving(self, now: float, *, every_s: float) -> bool:
        """Whether it is time to save what the device has said since the state was last saved.

        At once if it has said all of it, since that says that something important is different, but not more
        often than each 5 s; every `every_s` otherwise. With 0, as soon as anything is different.
        """
        self.age_s(now)
        if not self._unsaved or self._status is None:
            return False
        wait_s = every_s if self._status is self._saved else min(every_s, _SAVED_APART_S)
        return now - self._saved_at >= wait_s

    def note_saved(self, now: float) -> None:
        """Take note that the state, as it is now, is being saved."""
        self.age_s(now)
        self._unsaved = False
        self._saved = self._status
        self._saved_at = now

    def note_unsaved(self) -> None:
        """Take note that saving failed: it is due again at once."""
        self._unsaved = True
        self._saved = None
        self._saved_at = -math.inf

    def grown(self) -> "Snapshot":
        """Give a snapshot of the usual size that knows as much."""
        usual = Snapshot(self._dialect)
        for name in Snapshot.__slots__:
            setattr(usual, name, getattr(self, name))
        return usual

    def _merge(self) -> None:
        status = self._status
        if status is None or (not self._changes and self._status_seq == self.seq):
            return
        fields = fields_of(status)
        renewed = self._restored.renewed if self._restored is not None else None
        for change in self._changes:
            for name, value in recoded(change, is_text=status.is_text).items():
                fields[name] = merge_group(fields.get(name), value, is_text=status.is_text)
                if renewed is not None and bytes(value) not in EMPTY_GROUPS:
                    renewed.add(name)
        fields["type"] = raw_value(self._dialect.state, is_text=status.is_text)
        if isinstance(self.seq, int) and abs(self.seq) < 2**63:
            fields["seq"] = raw_value(self.seq, is_text=status.is_text)
        merged = Message(join_fields(fields, is_text=status.is_text), status.is_text)
        if self._saved is status:
            self._saved = merged
        # What grows beyond all measure is not the state of a machine.
        self._status = merged if len(merged.payload) <= _MOST_BYTES else None
        self._status_seq = self.seq
        self._changes.clear()
        self._changes_bytes = 0


class SmallSnapshot(Snapshot):
    """What an anonymous device has said of its state: its status with few changes, and what it is.

    Enough for a machine's own state, whose messages have 2 KiB at most, and for nothing else.
    """

    __slots__ = ()

    def note(self, message: Message, message_type: str, seq: Any) -> None:
        """Take note of a message, unless there is no room for it."""
        if self._kinds.get(message_type) is _KEPT and message_type != self._dialect.info:
            return
        if len(message.payload) > _SMALL_BYTES:
            return
        super().note(message, message_type, seq)
        if len(self._changes) >= _SMALL_MERGE_AT or self._changes_bytes > _SMALL_BYTES:
            self._merge()
            if self._status is not None and len(self._status.payload) > _SMALL_BYTES:
                self._status = None
