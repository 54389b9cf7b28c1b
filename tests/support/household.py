"""The HTTP API over a real registry, with a relay of plain data, for tests that send requests."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from quart.testing.utils import sentinel
from quart_trio import QuartTrio
from sqlalchemy import Connection, insert, update
from werkzeug.datastructures import Headers

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.admin_instances import SurveyInstances, no_instances
from brewos_relay.api.app import create_app
from brewos_relay.api.console_pages import FindCa, no_ca
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.counters import Counters
from brewos_relay.core.device_log import DeviceLog
from brewos_relay.core.grant import Grant
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.live_devices import DeviceHistory, LiveDevice, LogAction, LogView, PeerCounts
from brewos_relay.messages import DeviceInfo, Message
from brewos_relay.registry.access import give
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.login_sessions import find_sessions, open_session
from brewos_relay.registry.records import NewDevice
from brewos_relay.registry.schema import device_users, users
from brewos_relay.registry.store import Store, open_store
from brewos_relay.vocabulary import Role, now_ms

SECRET: Final = "tests-only-" + "s" * 32
KEY: Final = "k3y_Of-the_Machine" + "0" * 25
OTHER_KEY: Final = "An0ther-key_" + "1" * 31
MACHINE: Final = "BRW-0000001A"
SECOND: Final = "BRW-0000002B"
STRANGE: Final = "BRW-0000003C"
"""A machine without users."""
BASE_URL: Final = "https://relay.example"


@dataclass
class PlainRelay:
    """A relay without sockets: who is online, their states, and the messages sent to devices."""

    online: set[str] = field(default_factory=set)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: list[tuple[str, Message]] = field(default_factory=list)
    grants: dict[str, list[Grant]] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    logs: dict[str, DeviceLog] = field(default_factory=dict)
    histories: dict[str, DeviceHistory] = field(default_factory=dict)
    outcome: RemoteOutcome = "delivered"
    """What becomes of each message for a device."""
    client_count: int = 0
    closing: bool = False

    async def count_peers(self) -> PeerCounts:
        return PeerCounts(len(self.online), self.client_count)

    async def find_live(self, device_ids: Sequence[str]) -> dict[str, LiveDevice]:
        return {device_id: self._live(device_id) for device_id in device_ids}

    def _live(self, device_id: str) -> LiveDevice:
        told = self.states.get(device_id, {"messages": {}})["messages"].get("device_info")
        info = msgspec.convert(told, DeviceInfo) if isinstance(told, dict) else DeviceInfo()
        user_ids = [grant.user_id for grant in self.grants.get(device_id, [])]
        return LiveDevice(device_id in self.online, info, user_ids)

    async def state_of(self, device_id: str) -> dict[str, Any] | None:
        return self.states.get(device_id)

    async def history_of(self, device_id: str, *, seconds: float) -> DeviceHistory | None:
        return self.histories.get(device_id)

    async def log_of(self, device_id: str, action: LogAction) -> LogView | None:
        log = self.logs.get(device_id)
        if log is not None and action == "clear":
            log.clear()
        lines = log.lines() if log is not None and action == "read" else []
        age_s = trio.current_time() - log.config_at if log is not None else 0.0
        return LogView(log.config, age_s, log.size_bytes, lines) if log is not None else None

    async def send_to_device(self, device_id: str, message: Message) -> RemoteOutcome:
        if self.outcome == "delivered":
            self.sent.append((device_id, message))
        return self.outcome


@dataclass
class PlainNotifier:
    """Takes notifications and sends none."""

    notified: list[tuple[str, str, str]] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)

    async def public_key(self) -> str:
        return "the public key"

    def notify(self, device_id: str, kind: str, *, message: str = "") -> None:
        self.notified.append((device_id, kind, message))

    def watch(self, device_ids: Sequence[str]) -> None:
        self.watched += device_ids


@dataclass(frozen=True)
class Answer:
    status: int
    content: Any
    headers: Headers
    body: bytes


new_databases: list[Callable[[], AbstractContextManager[str]]] = []
"""The last one gives each household the URL of a registry. Without one, registries are files."""


class Household:
    """An API under test; made by `open_household`."""

    def __init__(
        self,
        app: QuartTrio,
        *,
        store: Store,
        relay: PlainRelay,
        request_limits: RequestLimits,
        notifier: PlainNotifier,
    ) -> None:
        self.app = app
        self.store = store
        self.relay = relay
        self.request_limits = request_limits
        self.notifier = notifier
        self.keys = KeyRing([SECRET])
        self._signed_in: set[str] = set()

    def token(self, user_id: str, **claims: Any) -> str:
        """Make a token as the command line does, without a login session."""
        return self.keys.issue(user_id=user_id, email=f"{user_id}@example.org", **claims)

    async def signed_in(self, user_id: str) -> str:
        """Make a token of the login session of `user_id`. The first call adds the account and the session."""
        session_id = f"session of {user_id}"[:32]
        if user_id not in self._signed_in:
            self._signed_in.add(user_id)
            await self.store.write(add_session, user_id, session_id)
        return self.token(user_id, session_id=session_id)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: str | None = "ada",
        token: str | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Send a request as user `by`, with `token`, or anonymously. Check that the response is JSON."""
        headers = {}
        if token is None and by is not None:
            token = await self.signed_in(by)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            data = msgspec.json.encode(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        with trio.fail_after(10):
            response = await self.app.test_client().open(
                f"/api{path}", method=method, headers=headers, data=data, json=sentinel
            )
            content = await response.get_data(as_text=False)
        assert response.content_type == "application/json", content
        assert response.headers["Vary"] == "Authorization"
        decoded = msgspec.json.decode(content)
        if response.status_code >= 400:
            assert set(decoded) == {"error"}
            assert decoded["error"].endswith((".", "?")), decoded
        return Answer(response.status_code, decoded, response.headers, content)

    async def give(self, user_id: str, role: Role = "owner", *, until_ms: int | None = None) -> None:
        """Give a user access to MACHINE."""
        await self.store.write(give, MACHINE, user_id, role=role, until_ms=until_ms, now_ms=now_ms())


def add_session(db: Connection, user_id: str, session_id: str) -> None:
    """Add an account with this id and a login session of it, unless the session exists."""
    if find_sessions(db, [session_id], now_ms=now_ms()):
        return
    email = f"{user_id}@example.org"
    row = {"id": user_id, "email": email, "email_key": email, "is_admin": False, "created_at_ms": 1_000}
    db.execute(insert(users), row)
    db.execute(update(device_users).where(device_users.c.user_id == user_id).values(account_id=user_id))
    open_session(
        db,
        session_id=session_id,
        user_id=user_id,
        refresh_hash=session_id.encode().ljust(32, b"."),
        user_agent=None,
        address=None,
        now_ms=now_ms(),
        expires_at_ms=now_ms() + 3_600_000,
    )


UNHURRIED_S: Final = 60.0
"""The time for a write: a busy computer makes none fail."""


@asynccontextmanager
async def open_household(
    folder: Path,
    *,
    request_limits: RequestLimits | None = None,
    proxy_trust: ProxyTrust | None = None,
    accounts: AccountRules | None = None,
    web_dist_path: Path | None = None,
    url: str | None = None,
    write_s: float = UNHURRIED_S,
    lines: LogLineLimits | None = None,
    survey: SurveyInstances = no_instances,
    local_ca: FindCa = no_ca,
) -> AsyncIterator[Household]:
    """Open a registry and its API. MACHINE and SECOND belong to Ada; STRANGE has no users."""
    request_limits = request_limits or RequestLimits()
    relay, notifier = PlainRelay(), PlainNotifier()
    async with AsyncExitStack() as stack:
        if url is None and new_databases:
            url = stack.enter_context(new_databases[-1]())
        url = url or f"sqlite:///{folder / 'registry.db'}"
        store = await stack.enter_async_context(open_store(url, write_s=write_s))
        new = [
            NewDevice(id=MACHINE, key_hash=hash_secret(KEY), name="Kitchen", user_id="ada"),
            NewDevice(id=SECOND, key_hash=hash_secret(KEY), user_id="ada"),
        ]
        await store.write(add_devices, new, now_ms=1_000)
        # Recent, since the registry prunes old devices without users.
        strange = [NewDevice(id=STRANGE, key_hash=hash_secret(KEY))]
        await store.write(add_devices, strange, now_ms=now_ms())
        app = create_app(
            relay=relay,
            store=store,
            keys=KeyRing([SECRET]),
            proxy_trust=proxy_trust or ProxyTrust(public_url=BASE_URL),
            accounts=accounts or AccountRules(),
            web_dist_path=web_dist_path,
            request_limits=request_limits,
            lines=lines,
            survey=survey,
            local_ca=local_ca,
            notifier=notifier,
        )
        yield Household(app, store=store, relay=relay, request_limits=request_limits, notifier=notifier)
