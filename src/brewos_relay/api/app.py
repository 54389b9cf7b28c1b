"""The web application: every blueprint, and what holds for all of them."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.activity import activity_blueprint, notices_blueprint
from brewos_relay.api.admin import admin_blueprint, not_an_administrator
from brewos_relay.api.admin_pairing import admin_pairing_blueprint
from brewos_relay.api.authentication import SignedIn, current_caller, may_log, note_caller
from brewos_relay.api.browser_security import CrossSite, HeaderRules
from brewos_relay.api.device_access import DeviceIdPart, no_device, not_allowed
from brewos_relay.api.device_users import device_users_blueprint, watchers_blueprint
from brewos_relay.api.devices import LISTED_AT_MOST, devices_blueprint, keys_blueprint
from brewos_relay.api.login_sessions import SessionStarter, sessions_blueprint
from brewos_relay.api.metrics import MetricsPage, metrics_blueprint, note_route
from brewos_relay.api.openapi import openapi_blueprint
from brewos_relay.api.pairing import pairing_blueprint
from brewos_relay.api.passwords import PasswordCheck, passwords_blueprint
from brewos_relay.api.payloads import Refused, error_answer
from brewos_relay.api.request_limits import Throttles
from brewos_relay.api.server_info import Degraded, Problems, health_blueprint, info_blueprint
from brewos_relay.api.sharing import sharing_blueprint
from brewos_relay.api.sign_in import sign_in_blueprint
from brewos_relay.api.tokens import tokens_blueprint
from brewos_relay.api.web import PagePath, console_blueprint, web_blueprint
from brewos_relay.auth.caller import ProxyTrust
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.rate_limits import LineLimits
from brewos_relay.errors import (
    DeviceUnknown,
    NotAnAdministrator,
    NotAnOwner,
    QuotaReached,
    RegistryBusy,
    RegistryError,
    RoleTooLow,
    TokenRejected,
    TooManyUnproven,
)
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.telemetry.requests import RequestCounters

log = logging.getLogger(__name__)

_BODY_S: Final = 30
_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def create_app(
    *,
    relay: RelayView,
    store: Registry,
    keys: KeyRing,
    proxy_trust: ProxyTrust,
    accounts: AccountRules,
    web_dist_path: Path | None,
    allowed_origins: Collection[str] = (),
    body_bytes: int = 64 * 1024,
    hsts: bool = True,
    demo: bool = False,
    throttles: Throttles | None = None,
    problems: Problems | None = None,
    degraded: Degraded = tuple,
    metrics: MetricsPage | None = None,
    counters: RequestCounters | None = None,
    lines: LineLimits | None = None,
) -> QuartTrio:
    """Make the application that answers everything that is not a WebSocket.

    `web_dist_path` is the folder of a built single-page app; None for the pages that come with the relay.
    `allowed_origins` are those of foreign pages that may send requests that change something.
    `body_bytes` bounds the bodies of requests (413). `hsts` is for a certificate that browsers know.
    `demo` tells pages that this is a demo.
    `problems` gives the reasons why nobody should be sent here now, `degraded` what is wrong otherwise;
    `metrics` is what /metrics shows, None for nothing; `counters` count what is refused since somebody
    asks too often; `lines` limits how many lines are logged about requests that fail, None for no limit.
    Raises errors.SettingsError if that folder holds no app.
    """
    app = QuartTrio(__name__, static_folder=None, template_folder=None)
    # Set here because Quart reads the first from the environment, and shows tracebacks to everybody with it.
    app.debug = False
    app.config.update(
        PROPAGATE_EXCEPTIONS=False,
        MAX_CONTENT_LENGTH=body_bytes,
        BODY_TIMEOUT=_BODY_S,
        # A large file on a slow line is no failure: whoever serves the connection sees to it that it moves.
        RESPONSE_TIMEOUT=None,
    )
    # A service worker mistakes a redirect for a failure, so no path is answered with one.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.converters["page"] = PagePath
    app.url_map.converters["device"] = DeviceIdPart

    throttles = throttles or Throttles()
    counters = counters or RequestCounters()
    signed_in = SignedIn(keys=keys, store=store)
    cross_site = CrossSite(proxy_trust=proxy_trust, allowed_origins=allowed_origins)
    rules = HeaderRules(
        google=accounts.google_client_id is not None,
        facebook="facebook" in accounts.verifiers,
        hsts=hsts,
    )

    async def look_at_request() -> None:
        note_caller(request, proxy_trust=proxy_trust)
        note_route(request)
        throttles.admit_request(request.path, network_of(current_caller().address))
        cross_site.check(request, current_caller())

    async def answer_for_server() -> Response | None:
        """Answer OPTIONS *, which asks about the server and no resource of it (RFC 9110 §9.3.7)."""
        if request.method == "OPTIONS" and request.scope.get("raw_path") == b"*":
            return Response("", headers={"Allow": _METHODS})
        return None

    async def add_headers(response: Response) -> Response:
        return rules.complete(
            response,
            part=request.blueprint,
            secure=current_caller().scheme == "https",
            is_api=_is_api(request.path),
        )

    async def no_registry(problem: RegistryError) -> Response:
        if may_log(lines, f"registry, {problem.code}"):
            log.warning("the registry failed a request: %s", problem.code)
        return _no_registry(problem)

    async def say_no(refusal: Refused) -> Response:
        if refusal.reason is not None:
            counters.refused[refusal.reason] += 1
        return _say_no(refusal)

    app.before_request(look_at_request)
    app.before_request(answer_for_server)
    app.after_request(add_headers)

    # What people do with their machines, and what machines do here.
    app.register_blueprint(
        devices_blueprint(
            relay=relay,
            store=store,
            signed_in=signed_in,
            # An app asks once, and takes the answer for all of its user's machines.
            listed_at_most=max(LISTED_AT_MOST, accounts.machines_per_account),
        )
    )
    app.register_blueprint(device_users_blueprint(store=store, signed_in=signed_in))
    app.register_blueprint(
        pairing_blueprint(store=store, signed_in=signed_in, throttles=throttles, accounts=accounts)
    )
    app.register_blueprint(
        sharing_blueprint(store=store, signed_in=signed_in, throttles=throttles, proxy_trust=proxy_trust)
    )
    app.register_blueprint(keys_blueprint(relay=relay, store=store, signed_in=signed_in))
    app.register_blueprint(activity_blueprint(store=store, signed_in=signed_in))
    app.register_blueprint(watchers_blueprint(relay=relay, store=store, signed_in=signed_in))
    # What they do with the server.
    app.register_blueprint(
        admin_blueprint(relay=relay, store=store, signed_in=signed_in, proxy_trust=proxy_trust)
    )
    app.register_blueprint(
        admin_pairing_blueprint(store=store, signed_in=signed_in, rules=accounts.new_devices)
    )
    app.register_blueprint(tokens_blueprint(store=store, signed_in=signed_in))
    # Who they are.
    app.register_blueprint(notices_blueprint(store=store, signed_in=signed_in))
    starter = SessionStarter(store=store, keys=keys, accounts=accounts)
    passwords = PasswordCheck(store=store, throttles=throttles)
    app.register_blueprint(
        sign_in_blueprint(
            store=store,
            accounts=accounts,
            starter=starter,
            passwords=passwords,
            throttles=throttles,
            lines=lines,
        )
    )
    app.register_blueprint(
        sessions_blueprint(store=store, starter=starter, signed_in=signed_in, throttles=throttles)
    )
    app.register_blueprint(
        passwords_blueprint(store=store, signed_in=signed_in, passwords=passwords, throttles=throttles)
    )
    # What this is.
    app.register_blueprint(health_blueprint(relay=relay, problems=problems, degraded=degraded))
    if metrics is not None:
        app.register_blueprint(metrics_blueprint(metrics))
    app.register_blueprint(
        info_blueprint(accounts=accounts, keys=keys, has_web_app=web_dist_path is not None, demo=demo)
    )
    app.register_blueprint(openapi_blueprint())
    app.register_blueprint(console_blueprint(beside_app=web_dist_path is not None))
    if web_dist_path is not None:
        app.register_blueprint(web_blueprint(web_dist_path))

    app.register_error_handler(Refused, say_no)
    app.register_error_handler(TokenRejected, _no_token)
    app.register_error_handler(RegistryError, no_registry)
    # These have changed since it was looked whether they may.
    app.register_error_handler(DeviceUnknown, _no_device)
    app.register_error_handler(NotAnOwner, _not_an_owner)
    app.register_error_handler(QuotaReached, _quota_reached)
    app.register_error_handler(RoleTooLow, _role_too_low)
    app.register_error_handler(NotAnAdministrator, _not_an_administrator)
    app.register_error_handler(TooManyUnproven, _quota_reached)
    app.register_error_handler(HTTPException, _refuse)
    return app


def _say_no(refusal: Refused) -> Response:
    if not _is_api(request.path):
        return Response(
            f"{refusal.problem}\n",
            status=refusal.status,
            headers=refusal.headers,
            content_type="text/plain; charset=utf-8",
        )
    return error_answer(refusal.problem, status=refusal.status, headers=refusal.headers)


async def _no_token(problem: TokenRejected) -> Response:
    text = str(problem)
    return error_answer(f"{text[:1].upper()}{text[1:]}.", status=401, headers={"WWW-Authenticate": "Bearer"})


def _no_registry(problem: RegistryError) -> Response:
    said = "The registry cannot be used at the moment; try again soon."
    if isinstance(problem, RegistryBusy):
        said = (
            "The registry is busy, and nothing was changed; try again soon."
            if problem.undone
            else "The registry did not answer in time, and the change may have been made; look before you"
            " try again."
        )
    return error_answer(said, status=503, headers={"Retry-After": "5"})


async def _no_device(_problem: DeviceUnknown) -> Response:
    return _say_no(no_device())


async def _not_an_owner(_problem: NotAnOwner) -> Response:
    return _say_no(not_allowed("owner"))


async def _quota_reached(problem: QuotaReached | TooManyUnproven) -> Response:
    text = str(problem)
    return error_answer(f"{text[:1].upper()}{text[1:]}.", status=409)


async def _role_too_low(problem: RoleTooLow) -> Response:
    return _say_no(not_allowed(problem.at_least))


async def _not_an_administrator(_problem: NotAnAdministrator) -> Response:
    return _say_no(not_an_administrator())


async def _refuse(problem: HTTPException) -> Response:
    """Answer what Quart refuses or what failed, in JSON under /api and as plain text elsewhere."""
    status = problem.code or 500
    headers = {name: value for name, value in problem.get_headers() if name.lower() != "content-type"}
    method = "GET" if request.method == "HEAD" else request.method  # whose answers have the same length
    text = f"{problem.name}: {method} {request.path}" if status in {404, 405} else problem.name
    if _is_api(request.path):
        return error_answer(f"{text}.", status=status, headers=headers)
    return Response(
        f"{problem.name}\n", status=status, headers=headers, content_type="text/plain; charset=utf-8"
    )


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")
