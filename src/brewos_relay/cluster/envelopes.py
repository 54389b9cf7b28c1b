"""Envelopes: the messages that instances send to each other's mailboxes, in MessagePack."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.core.snapshot import RestoredState, SnapshotState
from brewos_relay.live_devices import DeviceHistory, LiveDevice, LogAction, LogView
from brewos_relay.messages import Message

Payload: TypeAlias = tuple[bytes, bool]
"""The payload of a message, and whether it is text."""


Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,200}\Z")]
"""The name of an instance."""
DeviceId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Envelope(msgspec.Struct, array_like=True, gc=False):
    pass


class _OfDevice(_Envelope):
    """An envelope about one device, which an instance may answer."""

    sender: Name
    device_id: DeviceId


class Watch(_OfDevice, tag=1):
    """Asks the instance of a device for its state, and for its messages from then on.

    `has_state` says that the sender has the state already, from the same instance. `has_waited` says that
    clients waited for the device before it came, so that the device is asked for its state.
    """

    has_state: bool = False
    has_waited: bool = False


class Unwatch(_OfDevice, tag=2):
    """Asks for no more messages of a device."""


class NotHere(_OfDevice, tag=3):
    """Answers a `Watch`: the device is not connected to this instance."""


class Confirmed(_OfDevice, tag=12):
    """Answers a `Watch` of an instance that has the state already, and has missed no message."""


class DeviceState(_OfDevice, tag=4):
    """The state of a device; messages follow. The fields are those of `SnapshotState`."""

    last_seen_ms: int | None
    status: Payload | None
    others: Sequence[Payload]
    seq: Any
    age_s: float
    restored: Payload | None
    restored_age_s: float
    renewed: Sequence[Any]
    shown: bool


class DeviceMessages(_OfDevice, tag=5):
    """Messages of a device, in order."""

    messages: Sequence[Payload]


class Command(_OfDevice, tag=6):
    """A message of a client for a device. It may not be delivered after either of the two times.

    `number` is for the `Outcome`; 0 asks for none. `deadline_us` is by the broker's clock.
    """

    number: int
    deadline_us: int
    not_after_ms: float
    payload: bytes


class Outcome(_Envelope, tag=7):
    """The outcome of a `Command`."""

    number: int
    outcome: RemoteOutcome


class StateRequest(_OfDevice, tag=8):
    """Asks for the known state of a device as the API shows it."""

    number: int


class StateAnswer(_Envelope, tag=9):
    """The known state of a device as JSON; None if nothing is known."""

    number: int
    content: bytes | None


class ChangesWritten(_Envelope, tag=13):
    """Tells that the sender has written changes into the registry, which every instance has to apply."""

    sender: Name


class LogRequest(_OfDevice, tag=14):
    """Asks for the log of a device, or for the same without its lines, or clears it."""

    number: int
    action: LogAction


class LogAnswer(_Envelope, tag=15):
    """Answers a `LogRequest`; None if the device has not sent its log settings."""

    number: int
    log: LogView | None


class LiveRequest(_Envelope, tag=10):
    """Asks what an instance knows of the connections of devices."""

    sender: Name
    number: int
    device_ids: Sequence[str]


class LiveAnswer(_Envelope, tag=11):
    """Answers a `LiveRequest`, for the devices that are connected or have clients."""

    number: int
    devices: dict[str, LiveDevice]


class HistoryRequest(_OfDevice, tag=16):
    """Asks for the measurements of a device's last seconds."""

    number: int
    seconds: float


class HistoryAnswer(_Envelope, tag=17):
    """Answers a `HistoryRequest`; None if nothing is known."""

    number: int
    history: DeviceHistory | None


Envelope: TypeAlias = (
    Watch
    | Unwatch
    | NotHere
    | DeviceState
    | DeviceMessages
    | Command
    | Outcome
    | StateRequest
    | StateAnswer
    | LiveRequest
    | LiveAnswer
    | LogRequest
    | LogAnswer
    | Confirmed
    | ChangesWritten
    | HistoryRequest
    | HistoryAnswer
)

pack: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Envelope).decode


def unpack(payload: bytes) -> Envelope | None:
    """Read an envelope; None if another version or program wrote it."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def pack_state(sender: str, device_id: str, state: SnapshotState, last_seen_ms: int | None) -> bytes:
    """Write a `DeviceState`."""
    restored = state.restored
    return pack(
        DeviceState(
            sender,
            device_id,
            last_seen_ms,
            _payload(state.status) if state.status is not None else None,
            [_payload(message) for message in state.others],
            state.seq,
            state.age_s,
            _payload(restored.message) if restored is not None else None,
            restored.age_s if restored is not None else 0.0,
            restored.renewed if restored is not None else (),
            restored is not None and restored.shown,
        )
    )


def pack_messages(sender: str, device_id: str, messages: Sequence[Message]) -> bytes:
    """Write a `DeviceMessages`."""
    return pack(DeviceMessages(sender, device_id, [(each.payload, each.is_text) for each in messages]))


def state_in(envelope: DeviceState) -> SnapshotState:
    """Return the state in an envelope."""
    restored = None
    if envelope.restored is not None:
        renewed = [name for name in envelope.renewed if isinstance(name, str | bytes)]
        restored = RestoredState(
            Message(*envelope.restored), envelope.restored_age_s, renewed, envelope.shown
        )
    return SnapshotState(
        Message(*envelope.status) if envelope.status is not None else None,
        [Message(*payload) for payload in envelope.others],
        envelope.seq,
        envelope.age_s,
        restored,
    )


def _payload(message: Message) -> Payload:
    return message.payload, message.is_text
