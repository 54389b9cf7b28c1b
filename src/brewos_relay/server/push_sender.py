"""Sending notifications: which browsers get one, once, and through which push service."""

import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio

from brewos_relay.auth.web_push import BrowserKeys, ServerKey, encode, encrypt, generate_server_key
from brewos_relay.core.rate_limits import TokenBuckets
from brewos_relay.errors import OutboundFailed, RegistryError
from brewos_relay.notifications import KINDS, Kind, is_wanted
from brewos_relay.outbound import Outbound
from brewos_relay.registry import push
from brewos_relay.registry.push import Subscription
from brewos_relay.registry.store import Store
from brewos_relay.texts import showable
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

WORKERS: Final = 32
"""How many notifications are sent at a time. Many: users choose the push services, and some may hang."""
QUEUED_AT_MOST: Final = 1000
SEND_S: Final = 5.0
"""How long a push service may take."""
NOTICE_S: Final = 60.0
"""How long one notification to all users of a device may take."""
EACH_HOUR: Final = 30
"""How many notifications about one device are sent in an hour, after a burst of as many."""
MESSAGE_CHARS: Final = 120

OUTCOMES: Final = ("sent", "failed", "removed", "suppressed")
"""Accepted by a push service; not accepted; not accepted, and the subscription was removed; or sent to no
browser, as it is a repeat or there are too many."""

_ANSWER_BYTES: Final = 16 * 1024
_GONE: Final = frozenset({404, 410})
_DEVICES_KEPT: Final = 16_384


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell the users of a device.

    It is sent unless one of its kind was sent since `unless_since_ms`; None means the usual time of the kind.
    """

    device_id: str
    kind: Kind
    message: str = ""
    unless_since_ms: int | None = None


class Payload(msgspec.Struct):
    """What the service worker of a page gets: the fields that the BrewOS app's worker reads."""

    title: str
    body: str
    tag: str
    data: dict[str, str]


class PushSender:
    """Sends notifications to browsers; a `protocols.Notifier`.

    `contact` is a mailto or https URL of the operator, for push services.
    """

    def __init__(self, store: Store, outbound: Outbound, *, contact: str | None = None) -> None:
        self._store = store
        self._outbound = outbound
        self._contact = contact
        self._queue, self._queued = trio.open_memory_channel[Notice](QUEUED_AT_MOST)
        self._rates = TokenBuckets(rate_per_s=EACH_HOUR / 3600, burst=EACH_HOUR, kept=_DEVICES_KEPT)
        self._key: ServerKey | None = None
        self.outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
        """How many notifications had each outcome, counted for each request; once if none is sent."""
        self.on_watch: Callable[[Sequence[str]], None] = lambda _: None
        """Called with devices that have a subscription now."""

    async def run(self) -> None:
        """Send queued notifications until cancelled.

        **Owns:** a nursery with the tasks `_send_queued`.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._send_queued)

    async def public_key(self) -> str:
        """Return the public key by which push services recognize this server. Raises RegistryError."""
        return (await self._server_key()).public

    def watch(self, device_ids: Sequence[str]) -> None:
        """Watch devices that have a subscription now."""
        self.on_watch(device_ids)

    def notify(
        self, device_id: str, kind: str, *, message: str = "", unless_since_ms: int | None = None
    ) -> None:
        """Queue a notification. It is dropped if the device has too many, or too many are queued."""
        if not self._rates.use(device_id, trio.current_time()).admit(trio.current_time()):
            self.outcomes["suppressed"] += 1
            return
        try:
            self._queue.send_nowait(Notice(device_id, KINDS[kind], message, unless_since_ms))
        except trio.WouldBlock:
            self.outcomes["suppressed"] += 1
            log.warning("too many notifications are queued; one about device %s was dropped", device_id)

    async def _send_queued(self) -> None:
        async for notice in self._queued:
            try:
                with trio.move_on_after(NOTICE_S) as limit:
                    await self.send(notice)
                self.outcomes["failed"] += limit.cancelled_caught
            except RegistryError as problem:
                self.outcomes["failed"] += 1
                log.warning("a notification about device %s was not sent: %s", notice.device_id, problem)
            except Exception:
                self.outcomes["failed"] += 1
                log.exception("a notification about device %s failed", notice.device_id)

    async def send(self, notice: Notice) -> None:
        """Send a notification to the users who want it, unless it was sent already.

        A browser gets it once. The app and the relay's pages share a login session, and each has a
        subscription.
        """
        at_ms = now_ms()
        found = await self._store.read(push.recipients_of, notice.device_id, now_ms=at_ms)
        wanted: dict[str, list[Subscription]] = {}
        for each in found:
            if is_wanted(notice.kind.name, each.chosen):
                wanted.setdefault(each.session_id, []).append(each.subscription)
        if not wanted:
            return
        since_ms = notice.unless_since_ms
        if since_ms is None:
            since_ms = at_ms - notice.kind.repeats_after_s * 1000
        if not await self._store.write(
            push.claim_notification,
            notice.device_id,
            notice.kind.name,
            unless_since_ms=since_ms,
            now_ms=at_ms,
        ):
            self.outcomes["suppressed"] += 1
            return
        device = await self._store.find_device(notice.device_id)
        name = (device.name if device is not None else None) or notice.device_id
        payload = msgspec.json.encode(payload_of(notice, name))
        for of_browser in wanted.values():
            for subscription in reversed(of_browser):
                if await self._send_to(subscription, notice, payload):
                    break

    async def _send_to(self, subscription: Subscription, notice: Notice, payload: bytes) -> bool:
        """Send a notification to a subscription. False if its push service did not accept it."""
        parts = urlsplit(subscription.endpoint)
        key = await self._server_key()
        headers = {
            "TTL": str(notice.kind.ttl_s),
            "Urgency": notice.kind.urgency,
            "Topic": _topic_of(notice, subscription),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            **key.headers(
                origin=f"{parts.scheme}://{parts.netloc}", contact=self._contact, now_s=int(time.time())
            ),
        }
        try:
            answer = await self._outbound.send(
                "POST",
                subscription.endpoint,
                headers=headers,
                body=encrypt(payload, BrowserKeys(subscription.p256dh, subscription.auth)),
                most_bytes=_ANSWER_BYTES,
                timeout_s=SEND_S,
            )
        except OutboundFailed as problem:
            self.outcomes["failed"] += 1
            log.info("a push service failed: %s", problem)
            await self._store.write(push.record_failure, subscription.id, now_ms=now_ms())
            return False
        if 200 <= answer.status < 300:
            self.outcomes["sent"] += 1
            await self._store.write(push.record_success, subscription.id)
            return True
        if answer.status in _GONE:
            self.outcomes["removed"] += 1
            await self._store.write(push.remove_subscription, subscription.id)
        else:
            self.outcomes["failed"] += 1
            log.info("the push service %s answered %d", parts.hostname, answer.status)
            await self._store.write(push.record_failure, subscription.id, now_ms=now_ms())
        return False

    async def _server_key(self) -> ServerKey:
        """Return the key of the servers. The first server that needs it makes it."""
        if self._key is None:
            private = await self._store.read(push.find_server_key)
            if private is None:
                private = await self._store.write(push.keep_server_key, generate_server_key())
            self._key = ServerKey(private)
        return self._key


def payload_of(notice: Notice, name: str) -> Payload:
    """Write the content of a notification about a device with this name."""
    kind, device_id = notice.kind, notice.device_id
    return Payload(
        title=f"{name}: {kind.title}",
        body=showable(notice.message)[:MESSAGE_CHARS] or kind.text,
        tag=f"{kind.name} {device_id}",
        data={"type": kind.name, "deviceId": device_id, "url": f"/machine/{device_id}"},
    )


def _topic_of(notice: Notice, subscription: Subscription) -> str:
    """Name what a later message replaces while the browser is off.

    Push services cannot compute it, and so learn neither the kind nor the device.
    """
    subject = f"{notice.kind.name} {notice.device_id}".encode()
    return encode(hmac.digest(subscription.auth, subject, "sha256")[:18])
