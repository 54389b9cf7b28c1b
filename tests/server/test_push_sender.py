"""Sending notifications to a push service that decrypts them as a browser does."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from brewos_relay import outbound
from brewos_relay.auth.web_push import decode
from brewos_relay.notifications import KINDS
from brewos_relay.outbound import Outbound
from brewos_relay.registry import push
from brewos_relay.registry.access import give
from brewos_relay.registry.devices import add_devices, set_name
from brewos_relay.registry.login_sessions import open_session
from brewos_relay.registry.records import NewDevice
from brewos_relay.registry.store import Store, open_store
from brewos_relay.server import push_sender as module
from brewos_relay.server.push_sender import Notice, PushSender
from brewos_relay.vocabulary import now_ms
from support.browser_push import BrowserEnd
from support.household import add_session
from support.push_service import PushService, open_push_service

DEVICE = "BRW-0000001A"
READY = Notice(DEVICE, KINDS["machineReady"])


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PushService]:
    monkeypatch.setattr(outbound, "is_public", lambda _: True)
    async with open_push_service(tmp_path) as service:
        yield service


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"sqlite:///{tmp_path / 'registry.db'}") as store:
        await store.write(add_devices, [NewDevice(id=DEVICE, key_hash=b"k" * 32)], now_ms=now_ms())
        await store.write(set_name, DEVICE, "Kitchen", now_ms=now_ms())
        yield store


@pytest.fixture
def sender(store: Store, service: PushService) -> PushSender:
    return PushSender(store, Outbound(service.server.tls), contact="mailto:ada@example.org")


async def subscribe(
    store: Store, service: PushService, user_id: str, path: str, *, session_id: str = "", at_ms: int = 0
) -> None:
    browser = service.browsers[path] = BrowserEnd()
    if not session_id:
        await store.write(add_session, user_id, user_id)
    await store.write(give, DEVICE, user_id, role="owner", now_ms=now_ms())
    await store.write(
        push.subscribe,
        push.Subscription(
            id=path.encode().ljust(32),
            user_id=user_id,
            endpoint=service.server.url(path),
            p256dh=decode(browser.keys["p256dh"]),
            auth=browser.auth,
        ),
        session_id=session_id or user_id,
        device_ids=[DEVICE],
        now_ms=at_ms or now_ms(),
    )


async def test_notification_reaches_each_browser_encrypted(
    store: Store, service: PushService, sender: PushSender
) -> None:
    await subscribe(store, service, "ada", "/a")
    await subscribe(store, service, "ben", "/b")
    await sender.send(READY)
    [asked, _] = service.server.asked
    headers = asked.headers
    assert (headers["ttl"], headers["urgency"], headers["content-encoding"]) == ("1800", "high", "aes128gcm")
    assert len(headers["topic"]) <= 32
    scheme, _, rest = headers["authorization"].partition(" ")
    token, public = (part.strip()[2:] for part in rest.split(","))
    assert (scheme, public) == ("vapid", await sender.public_key())
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(public))
    origin = service.server.url("")
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=origin)
    assert claims["sub"] == "mailto:ada@example.org"
    content = {
        "title": "Kitchen: Ready to brew",
        "body": "The machine is at its temperature.",
        "tag": f"machineReady {DEVICE}",
        "data": {"type": "machineReady", "deviceId": DEVICE, "url": f"/machine/{DEVICE}"},
    }
    assert service.got() == [("/a", content), ("/b", content)]


async def test_browser_with_two_subscriptions_gets_a_notification_once(
    store: Store, service: PushService, sender: PushSender
) -> None:
    await subscribe(store, service, "ada", "/app", at_ms=1_000)
    await subscribe(store, service, "ben", "/ben", at_ms=2_000)
    await subscribe(store, service, "ada", "/console", at_ms=3_000)
    await sender.send(READY)
    assert [path for path, _ in service.got()] == ["/console", "/ben"]
    assert sender.outcomes == {"sent": 2, "failed": 0, "removed": 0, "suppressed": 0}


async def test_each_browser_of_a_user_gets_a_notification(
    store: Store, service: PushService, sender: PushSender
) -> None:
    await subscribe(store, service, "ada", "/phone")
    times: dict[str, Any] = {"now_ms": now_ms(), "expires_at_ms": now_ms() + 60_000}
    who: dict[str, Any] = {"user_id": "ada", "user_agent": None, "address": None}
    await store.write(open_session, session_id="laptop", refresh_hash=b"r" * 32, **who, **times)
    await subscribe(store, service, "ada", "/laptop", session_id="laptop")
    await sender.send(READY)
    assert sorted(path for path, _ in service.got()) == ["/laptop", "/phone"]


@pytest.mark.parametrize(("status", "outcome"), [(410, "removed"), (500, "failed")])
async def test_browser_gets_the_notification_through_its_other_subscription_if_one_fails(
    store: Store, service: PushService, sender: PushSender, status: int, outcome: str
) -> None:
    await subscribe(store, service, "ada", "/app", at_ms=1_000)
    await subscribe(store, service, "ada", "/console", at_ms=2_000)
    service.status["/console"] = status
    await sender.send(READY)
    assert [path for path, _ in service.got()] == ["/console", "/app"]
    assert (sender.outcomes["sent"], sender.outcomes[outcome]) == (1, 1)
    await sender.send(Notice(DEVICE, KINDS["waterEmpty"]))
    assert [path for path, _ in service.got()] == ["/app"]


async def test_repeats_are_suppressed_also_after_a_restart(
    store: Store, service: PushService, sender: PushSender
) -> None:
    await subscribe(store, service, "ada", "/a")
    await sender.send(READY)
    await sender.send(READY)
    await PushSender(store, Outbound(service.server.tls)).send(READY)
    await sender.send(Notice(DEVICE, KINDS["waterEmpty"], message="Fill\nme " + "x" * 500))
    assert [(path, content["data"]["type"]) for path, content in service.got()] == [
        ("/a", "machineReady"),
        ("/a", "waterEmpty"),
    ]
    assert sender.outcomes == {"sent": 2, "failed": 0, "removed": 0, "suppressed": 1}


async def test_preferences_are_honoured_and_a_refused_kind_is_not_used_up(
    store: Store, service: PushService, sender: PushSender
) -> None:
    await subscribe(store, service, "ada", "/a")
    await subscribe(store, service, "ben", "/b")
    await store.write(push.set_preferences, "ada", {"machineReady": False})
    await sender.send(Notice(DEVICE, KINDS["brewComplete"]))  # no user has chosen it
    await store.write(push.set_preferences, "ben", {"brewComplete": True})
    await sender.send(Notice(DEVICE, KINDS["brewComplete"]))
    await sender.send(READY)
    assert [path for path, _ in service.got()] == ["/b", "/b"]


@pytest.mark.parametrize("status", [404, 410])
async def test_subscription_that_the_service_does_not_know_is_removed(
    store: Store, service: PushService, sender: PushSender, status: int
) -> None:
    await subscribe(store, service, "ada", "/a")
    service.status["/a"] = status
    await sender.send(READY)
    assert await store.read(push.watched_devices) == set()
    assert sender.outcomes == {"sent": 0, "failed": 0, "removed": 1, "suppressed": 0}


@pytest.mark.parametrize("status", [307, 400, 403, 429, 500])
async def test_failing_service_is_asked_later_and_harms_no_other(
    store: Store, service: PushService, sender: PushSender, status: int
) -> None:
    await subscribe(store, service, "ada", "/a")
    await subscribe(store, service, "ben", "/b")
    service.status["/a"] = status
    await sender.send(READY)
    assert [path for path, _ in service.got()] == ["/a", "/b"]
    await sender.send(Notice(DEVICE, KINDS["waterEmpty"]))
    assert [path for path, _ in service.got()] == ["/b"]
    found = await store.read(push.recipients_of, DEVICE, now_ms=now_ms() + 120_000)
    assert len(found) == 2
    assert sender.outcomes == {"sent": 2, "failed": 1, "removed": 0, "suppressed": 0}


async def test_private_address_is_never_asked(
    store: Store, service: PushService, sender: PushSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    await subscribe(store, service, "ada", "/a")
    await sender.send(READY)
    assert service.server.connections == 0
    assert sender.outcomes["failed"] == 1


async def test_queue_and_rate_of_a_device_are_bounded(
    store: Store, service: PushService, sender: PushSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    async def count(notice: Notice) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(notice.device_id)
        if notice.device_id == "fails":
            raise RuntimeError("a fault")

    monkeypatch.setattr(sender, "send", count)
    sender.notify("fails", "machineReady")
    for _ in range(module.EACH_HOUR + 10):
        sender.notify(DEVICE, "machineReady")
    for number in range(module.QUEUED_AT_MOST + 10):
        sender.notify(f"BRW-{number:08X}", "machineReady")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            while len(sent) < module.QUEUED_AT_MOST:  # noqa: ASYNC110 - it counts
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert sent.count(DEVICE) == module.EACH_HOUR
    assert len(sent) == module.QUEUED_AT_MOST
    over_rate, beyond_queue = 10, 1 + module.EACH_HOUR + 10
    assert sender.outcomes["suppressed"] == over_rate + beyond_queue
    assert sender.outcomes["failed"] == 1


async def test_all_servers_of_a_registry_have_one_key(store: Store, service: PushService) -> None:
    keys = [await PushSender(store, Outbound()).public_key() for _ in range(2)]
    assert keys[0] == keys[1]
    assert len(decode(keys[0])) == 65


async def test_watch_is_passed_on(sender: PushSender) -> None:
    seen: list[Any] = []
    sender.on_watch = seen.append
    sender.watch([DEVICE])
    assert seen == [[DEVICE]]
