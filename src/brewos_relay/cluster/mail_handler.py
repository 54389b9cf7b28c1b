"""MailHandler: acts on the envelopes that other instances send."""

import logging
from collections.abc import Callable

import msgspec

from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.devices import DeviceRecord, DeviceTable
from brewos_relay.cluster.envelopes import (
    ChangesWritten,
    Command,
    Confirmed,
    DeviceMessages,
    DeviceState,
    Envelope,
    HistoryAnswer,
    HistoryRequest,
    LiveAnswer,
    LiveRequest,
    LogAnswer,
    LogRequest,
    NotHere,
    Outcome,
    StateAnswer,
    StateRequest,
    Unwatch,
    Watch,
    pack,
    pack_state,
    state_in,
    unpack,
)
from brewos_relay.cluster.ownership import AT_ONCE, Ownership
from brewos_relay.cluster.remote_clients import RemoteClients
from brewos_relay.cluster.remote_commands import RemoteCommands
from brewos_relay.cluster.requests import Requests
from brewos_relay.core.history import Samples
from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.live_devices import device_history, live_device, view_log
from brewos_relay.messages import Message
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)


class MailHandler:
    """Takes messages and states of followed devices, and serves the instances that follow devices here.

    `send` sends an envelope to an instance, if that is possible now. `read_changes` is called when another
    instance has written changes into the registry.
    """

    def __init__(
        self,
        relay: Relay,
        table: DeviceTable,
        instance: str,
        ownership: Ownership,
        commands: RemoteCommands,
        requests: Requests,
        clock: BrokerClock,
        send: Callable[[str, bytes], bool],
        read_changes: Callable[[], None],
    ) -> None:
        self.unreadable = 0
        """Envelopes that were dropped because they could not be read."""
        self._relay = relay
        self._table = table
        self._instance = instance
        self._ownership = ownership
        self._commands = commands
        self._requests = requests
        self._clock = clock
        self._send = send
        self._read_changes = read_changes

    def take(self, payload: bytes) -> None:
        """Act on an envelope."""
        if (envelope := unpack(payload)) is None:
            self.unreadable += 1
            return
        try:
            self._take(envelope)
        except Exception:
            log.exception("a message of another instance failed")

    def _take(self, envelope: Envelope) -> None:
        match envelope:
            case DeviceMessages():
                self._take_messages(envelope)
            case Command():
                self._take_command(envelope)
            case Outcome():
                self._commands.take(envelope)
            case Watch():
                self._take_watch(envelope)
            case Unwatch():
                if (record := self._table.records.get(envelope.device_id)) is not None:
                    self._ownership.drop_client(record, envelope.sender)
            case Confirmed():
                record = self._followed(envelope.device_id, envelope.sender)
                if record is not None and record.remote is not None and record.remote.has_state:
                    record.remote.confirm()
            case ChangesWritten():
                self._read_changes()
            case NotHere():
                self._take_absence(envelope)
            case DeviceState():
                self._take_state(envelope)
            case StateRequest():
                content = self._relay.state_of(envelope.device_id)
                encoded = msgspec.json.encode(content) if content is not None else None
                self._send(envelope.sender, pack(StateAnswer(envelope.number, encoded)))
            case HistoryRequest():
                self._answer_history(envelope)
            case LogRequest():
                log_view = view_log(self._relay, envelope.device_id, envelope.action)
                self._send(envelope.sender, pack(LogAnswer(envelope.number, log_view)))
            case LiveRequest():
                self._answer_live(envelope)
            case _:
                self._requests.take(envelope)

    # Devices here

    def _take_watch(self, watch: Watch) -> None:
        record = self._table.records.get(watch.device_id)
        if record is None or not record.is_local:
            self._send(watch.sender, pack(NotHere(self._instance, watch.device_id)))
            self._ownership.doubt(watch.device_id)
            return
        if record.clients is None:
            record.clients = RemoteClients(self._instance, watch.device_id, self._send, self._pack_state)
        self._relay.set_remote_audience(watch.device_id, record.clients)
        if watch.has_state and watch.sender in record.clients.instances:
            self._send(watch.sender, pack(Confirmed(self._instance, watch.device_id)))
            return
        record.clients.add(watch.sender)
        if watch.has_waited:
            self._relay.ask_for_state(watch.device_id)

    def _pack_state(self, device_id: str) -> bytes:
        state, last_seen_ms = self._relay.export_state(device_id)
        return pack_state(self._instance, device_id, state, last_seen_ms)

    def _take_command(self, command: Command) -> None:
        outcome: RemoteOutcome
        now_us = self._clock.latest_us()
        if now_us is None or now_us > command.deadline_us:
            outcome = "unknown"  # its sender may have told that already
        elif command.not_after_ms <= now_ms():
            outcome = "expired"
        else:
            outcome = self._relay.deliver_remote_command(command.device_id, Message(command.payload))
        if command.number:
            self._send(command.sender, pack(Outcome(command.number, outcome)))

    def _answer_history(self, request: HistoryRequest) -> None:
        def answer(samples: Samples | None) -> None:
            self._send(request.sender, pack(HistoryAnswer(request.number, device_history(samples))))

        self._relay.ask_history(request.device_id, request.seconds, answer)

    def _answer_live(self, request: LiveRequest) -> None:
        devices = {
            device_id: live
            for device_id in request.device_ids[:AT_ONCE]
            if (live := live_device(self._relay, device_id)).is_online or live.user_ids
        }
        self._send(request.sender, pack(LiveAnswer(request.number, devices)))

    # Devices that are followed

    def _take_state(self, envelope: DeviceState) -> None:
        record = self._followed(envelope.device_id, envelope.sender)
        if record is not None and record.remote is not None and record.attachment is not None:
            seen_ms = envelope.last_seen_ms if envelope.last_seen_ms is not None else now_ms()
            self._relay.take_remote_state(record.attachment, state_in(envelope), seen_ms)
            record.remote.confirm()
            record.settle()

    def _take_messages(self, envelope: DeviceMessages) -> None:
        record = self._followed(envelope.device_id, envelope.sender)
        if record is not None and record.remote is not None and record.remote.has_state:
            record.remote.receive([Message(*payload) for payload in envelope.messages])

    def _take_absence(self, answer: NotHere) -> None:
        record = self._table.records.get(answer.device_id)
        remote = record.remote if record is not None else None
        if remote is not None and remote.owner.instance == answer.sender:
            remote.deny()  # the next audit finds the device

    def _followed(self, device_id: str, sender: str) -> DeviceRecord | None:
        """Return the record of a device that is followed on an instance; tell the instance if it is not."""
        record = self._table.records.get(device_id)
        if record is None or record.remote is None or record.remote.owner.instance != sender:
            self._send(sender, pack(Unwatch(self._instance, device_id)))
            return None
        return record
