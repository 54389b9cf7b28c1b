"""The server itself: /api/health, /livez, /readyz, /api/info, /api/mode and /api/auth/jwks.json."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import msgspec
from quart import Blueprint, Response

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import API_VERSION, json_answer
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.protocols import RelayView
from brewos_relay.version import installed_version
from brewos_relay.vocabulary import iso_time, now_ms

Problems: TypeAlias = Callable[[], Awaitable[Sequence[str]]]
"""Returns the reasons why load balancers should not send traffic to this server."""
Degraded: TypeAlias = Callable[[], Sequence[str]]
"""Returns the faults of a server that can still serve peers."""

# An app warns that the server is too old if one of these is missing. Both are features of the machine, and
# the relay passes all features of a machine through.
FEATURES: Final = ("temperature_control", "power_monitoring")


class Health(msgspec.Struct):
    """The status of the relay, and the number of connected devices and clients."""

    status: Literal["ok", "closing"]
    timestamp: str
    devices: int
    clients: int


class ReadinessAnswer(msgspec.Struct):
    """Whether the server is ready for traffic, and the reasons if not."""

    status: Literal["ready", "not ready"]
    reasons: Sequence[str]
    degraded: Sequence[str]


class Issuer(msgspec.Struct):
    """The OpenID Connect issuer whose ID tokens are accepted."""

    issuer: str | None
    audience: str | None


class CodeWay(msgspec.Struct):
    """An identity provider for `POST /api/auth/code/start`, and its name for users."""

    kind: str
    name: str


class WaysIn(msgspec.Struct, rename="camel"):
    """The ways to sign in besides one-time links. `google` is the client id."""

    google: str | None
    facebook: bool
    oidc: Issuer | None
    by_code: list[CodeWay]
    password: bool


class Info(msgspec.Struct, rename="camel"):
    """Version and features of this server.

    `webApp` is true if the server has a built web app besides the console. `demo` is true for `brewos-relay
    demo`, whose link signs in without a click. `firmwareVersion` and `webVersion` are always null: the
    firmware belongs to the machine, and an app shows its own version.
    """

    mode: Literal["cloud"]
    api_version: int
    features: tuple[str, ...]
    relay_version: str
    firmware_version: str | None
    web_version: str | None
    web_app: bool
    demo: bool
    sign_in: WaysIn


class PublicKeys(msgspec.Struct):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[dict[str, str]]


class Mode(msgspec.Struct, rename="camel"):
    """The fallback for apps that cannot use `/api/info`."""

    mode: Literal["cloud"]
    ap_mode: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class HealthRoutes:
    """The routes of health checks.

    During the drain, /api/health and /readyz answer 503, so that load balancers send no new connections.
    /readyz calls `problems`; without it, the drain is the only problem. /readyz also lists `degraded`, which
    does not change the status: devices must still reach this server.
    """

    relay: RelayView
    problems: Problems | None = None
    degraded: Degraded = tuple

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "health",
            {
                "GET /api/health": self.health,
                "GET /livez": self.livez,
                "GET /readyz": self.readyz,
            },
        )

    async def _find_problems(self) -> Sequence[str]:
        if self.problems is not None:
            return await self.problems()
        return ["the relay is shutting down"] if self.relay.closing else []

    @described("Check that the relay runs; 503 while it drains", answer=Health, needs_token=False)
    async def health(self) -> Response:
        counts = await self.relay.count_peers()
        return json_answer(
            Health(
                status="closing" if self.relay.closing else "ok",
                timestamp=iso_time(now_ms()),
                devices=counts.devices,
                clients=counts.clients,
            ),
            status=503 if self.relay.closing else 200,
        )

    async def livez(self) -> Response:
        # The answer needs only a running event loop.
        return json_answer({"status": "ok"}, headers={"Cache-Control": "no-store"})

    async def readyz(self) -> Response:
        reasons = await self._find_problems()
        return json_answer(
            ReadinessAnswer("not ready" if reasons else "ready", reasons, list(self.degraded())),
            status=503 if reasons else 200,
            headers={"Cache-Control": "no-store"},
        )


@dataclass(kw_only=True, eq=False)
class InfoRoutes:
    """The routes about the server: version, features and public keys.

    Without `mode: cloud`, an app would take this server for a machine.
    """

    accounts: AccountRules
    keys: KeyRing
    has_web_app: bool
    demo: bool = False

    def __post_init__(self) -> None:
        self._info = Info(
            mode="cloud",
            api_version=API_VERSION,
            features=FEATURES,
            relay_version=installed_version(),
            firmware_version=None,
            web_version=None,
            web_app=self.has_web_app,
            demo=self.demo,
            sign_in=WaysIn(
                google=self.accounts.google_client_id,
                facebook="facebook" in self.accounts.verifiers,
                oidc=Issuer(self.accounts.oidc_issuer, self.accounts.oidc_audience)
                if "oidc" in self.accounts.verifiers
                else None,
                by_code=[CodeWay(kind, flow.name) for kind, flow in self.accounts.code_flows.items()],
                password=True,
            ),
        )

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "info",
            {
                "GET /api/info": self.info,
                "GET /api/mode": self.mode,
                "GET /api/auth/jwks.json": self.public_keys,
            },
        )

    @described("Read version and features of this server", answer=Info, needs_token=False)
    async def info(self) -> Response:
        return json_answer(self._info)

    @described("Tell apps that this is a server and not a machine", answer=Mode, needs_token=False)
    async def mode(self) -> Response:
        return json_answer(Mode(mode="cloud", ap_mode=False))

    @described(
        "Read the public keys that verify access tokens; none if they are signed with a shared secret",
        answer=PublicKeys,
        needs_token=False,
    )
    async def public_keys(self) -> Response:
        return json_answer(PublicKeys(self.keys.jwks()["keys"]))
