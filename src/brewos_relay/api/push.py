"""/api/push: notifications in browsers, as the BrewOS app and the firmware ask for them.

The app sends no access token to these routes, so the app cookie authenticates it. The `userId` in its bodies
is ignored.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from quart import Blueprint, Request, Response, request

from brewos_relay.api.app_cookie import AppAuthenticator, not_kept
from brewos_relay.api.authentication import current_caller
from brewos_relay.api.device_access import device_not_found, require_access
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, SecretStruct, ShortText, body_of, json_answer
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.secrets import hash_secret, secret_matches
from brewos_relay.auth.web_push import read_browser_keys
from brewos_relay.networks import network_of
from brewos_relay.notifications import BY_FIRMWARE, KINDS, is_wanted
from brewos_relay.outbound import MAX_URL_CHARS, check_url
from brewos_relay.protocols import Notifier, Registry
from brewos_relay.registry import push
from brewos_relay.registry.access import devices_of
from brewos_relay.registry.authority import Authority
from brewos_relay.vocabulary import iso_time, now_ms, parse_device_id

log = logging.getLogger(__name__)

_OFF: Final = "Notifications are switched off on this server."
_Url = Annotated[str, msgspec.Meta(max_length=MAX_URL_CHARS)]


class PublicKeyAnswer(msgspec.Struct, rename="camel"):
    """The public key by which push services recognize this server, in base64url."""

    public_key: str


class SubscriptionKeys(SecretStruct):
    """The keys of a browser, in base64 or base64url."""

    p256dh: ShortText
    auth: ShortText


class BrowserSubscription(SecretStruct):
    """A subscription as browsers make it."""

    endpoint: _Url
    keys: SubscriptionKeys


class SubscribeBody(SecretStruct, rename="camel"):
    """A subscription, and the device that it is for; without one, all present devices of the user."""

    subscription: BrowserSubscription
    device_id: ShortText | None = None


class NamedSubscription(SecretStruct):
    """A subscription, by its endpoint."""

    endpoint: _Url


class UnsubscribeBody(SecretStruct, rename="camel"):
    """The subscription that ends, or the device that leaves it."""

    subscription: NamedSubscription
    device_id: ShortText | None = None


class ListedSubscription(msgspec.Struct, rename="camel"):
    """A subscription of the user. `id` is SHA-256 of its endpoint, in hexadecimal digits."""

    id: str
    created_at: str
    device_ids: list[str]


class SubscriptionList(msgspec.Struct):
    """The subscriptions of the user, the oldest first."""

    subscriptions: list[ListedSubscription]


class FirmwareNotification(msgspec.Struct):
    """What a machine reports. `type` is the kind in the firmware's words."""

    type: ShortText
    message: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class NotifyBody(msgspec.Struct, rename="camel"):
    """The report of a machine."""

    device_id: ShortText
    notification: FirmwareNotification


@dataclass(frozen=True, kw_only=True, eq=False)
class PushRoutes:
    """The routes of notifications. Without a `notifier`, they are switched off."""

    store: Registry
    authenticator: AppAuthenticator
    request_limits: RequestLimits
    notifier: Notifier | None

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "push",
            {
                "GET /api/push/vapid-key": self.vapid_key,
                "POST /api/push/subscribe": self.push_subscribe,
                "POST /api/push/unsubscribe": self.push_unsubscribe,
                "GET /api/push/subscriptions": self.push_subscriptions,
                "GET /api/push/preferences": self.push_preferences,
                "POST /api/push/preferences": self.set_push_preferences,
                "POST /api/push/notify": self.push_notify,
            },
        )

    def _on(self) -> Notifier:
        if self.notifier is None:
            raise Refused(_OFF, status=404)
        return self.notifier

    @described(
        "Read the public key for subscriptions", answer=PublicKeyAnswer, refusals=[404], needs_token=False
    )
    async def vapid_key(self) -> Response:
        return json_answer(PublicKeyAnswer(await self._on().public_key()))

    @described(
        "Subscribe a browser to notifications about a device. The subscription ends with the login session",
        body=SubscribeBody,
        answer=Done,
        refusals=[404],
    )
    async def push_subscribe(self) -> Response:
        notifier = self._on()
        requester = await self.authenticator(request)
        self.request_limits.push_changes.admit(requester.user_id)
        body = await body_of(request, SubscribeBody)
        try:
            check_url(body.subscription.endpoint)
            keys = read_browser_keys(body.subscription.keys.p256dh, body.subscription.keys.auth)
        except ValueError as problem:
            raise Refused(f"The subscription is not valid: {problem}.", status=400) from None
        subscription = push.Subscription(
            id=_id_of(body.subscription.endpoint),
            user_id=requester.user_id,
            endpoint=body.subscription.endpoint,
            p256dh=keys.public,
            auth=keys.auth,
        )
        authority = Authority(requester.principal)
        if body.device_id is not None:
            access = await require_access(requester, body.device_id, store=self.store)
            authority = Authority(requester.principal, access.device_id)
            device_ids: Sequence[str] = [access.device_id]
        else:
            found = await self.store.read(devices_of, requester.user_id, now_ms=now_ms())
            device_ids = [owned.device.id for owned in found][: push.DEVICES_AT_MOST]
        await self.store.write_as(
            authority,
            push.subscribe,
            subscription,
            session_id=requester.session_id,
            device_ids=device_ids,
            now_ms=now_ms(),
        )
        notifier.watch(device_ids)
        return json_answer(Done())

    @described(
        "End the subscription of a browser, or for one device",
        body=UnsubscribeBody,
        answer=Done,
        refusals=[404],
    )
    async def push_unsubscribe(self) -> Response:
        self._on()
        requester = await self.authenticator(request)
        body = await body_of(request, UnsubscribeBody)
        await self.store.write_as(
            Authority(requester.principal),
            push.unsubscribe,
            _id_of(body.subscription.endpoint),
            user_id=requester.user_id,
            device_id=body.device_id.upper() if body.device_id is not None else None,
        )
        return json_answer(Done())

    @described("List your subscriptions", answer=SubscriptionList, refusals=[403, 404])
    async def push_subscriptions(self) -> Response:
        self._on()
        requester = await self.authenticator(request)
        found = await self.store.read(push.subscriptions_of, requester.user_id)
        listed = [
            ListedSubscription(id_.hex(), iso_time(created_at_ms), device_ids)
            for id_, (created_at_ms, device_ids) in found.items()
        ]
        return not_kept(json_answer(SubscriptionList(listed)))

    @described("Read which kinds of notifications you want", answer=dict[str, bool], refusals=[403, 404])
    async def push_preferences(self) -> Response:
        self._on()
        requester = await self.authenticator(request)
        chosen = await self.store.read(push.preferences_of, requester.user_id)
        return not_kept(json_answer(_all_preferences(chosen)))

    @described(
        "Choose kinds of notifications: the ones in the body change, the others stay",
        body=dict[str, bool],
        answer=dict[str, bool],
        refusals=[404],
    )
    async def set_push_preferences(self) -> Response:
        self._on()
        requester = await self.authenticator(request)
        self.request_limits.push_changes.admit(requester.user_id)
        chosen = await _preferences_in(request)
        await self.store.write_as(
            Authority(requester.principal), push.set_preferences, requester.user_id, chosen
        )
        return json_answer(_all_preferences(await self.store.read(push.preferences_of, requester.user_id)))

    @described(
        "Report something to the users of a device; for machines, with their key in X-Device-Key",
        body=NotifyBody,
        answer=Done,
        refusals=[401, 404],
        needs_token=False,
    )
    async def push_notify(self) -> Response:
        notifier = self._on()
        body = await _report_in(request)
        try:
            device_id = parse_device_id(body.device_id)
        except ValueError:
            raise device_not_found() from None
        kind = BY_FIRMWARE.get(body.notification.type)
        if kind is None:
            raise Refused("This type of notification is unknown.", status=400)
        # Before the key is checked: guesses count too, but not those from elsewhere.
        self.request_limits.push_reports.admit(network_of(current_caller().address), about=device_id)
        device = await self.store.find_device(device_id)
        hashes = () if device is None else (device.key_hash, *device.next_key_hashes)
        key = request.headers.get("X-Device-Key", "")
        # Compared once at least, so that the time does not tell whether the device exists.
        matches = [secret_matches(key, key_hash) for key_hash in hashes or (hash_secret(""),)]
        if not hashes or not any(matches):
            raise Refused("The device key is not valid.", status=401)
        notifier.notify(device_id, kind.name, message=body.notification.message)
        return json_answer(Done())


def _id_of(endpoint: str) -> bytes:
    return hashlib.sha256(endpoint.encode("utf-8", "surrogatepass")).digest()


def _all_preferences(chosen: Mapping[str, bool]) -> dict[str, bool]:
    return {name: is_wanted(name, chosen) for name in KINDS}


async def _preferences_in(asked: Request) -> dict[str, bool]:
    """Read preferences from a body, without unknown ones. Raises Refused (400, 415)."""
    content = await body_of(asked, _AnyObject)
    chosen = {name: getattr(content, name) for name in KINDS}
    known = {name: wanted for name, wanted in chosen.items() if wanted is not None}
    if not known:
        raise Refused(f"The body must have one of {', '.join(KINDS)}.", status=400)
    return known


_AnyObject = msgspec.defstruct("Preferences", [(name, bool | None, None) for name in KINDS])


async def _report_in(asked: Request) -> NotifyBody:
    """Decode the report of a machine, with any content type. Raises Refused (400)."""
    content = await asked.get_data(as_text=False)
    try:
        return msgspec.json.decode(content, type=NotifyBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise Refused(f"The body is not valid: {problem}.", status=400) from None
