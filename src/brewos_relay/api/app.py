"""The web application: the blueprints, and the checks and headers of every request."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quart import Response, g, request
from quart.routing import QuartRule
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.activity import ActivityRoutes, NoticeRoutes
from brewos_relay.api.admin_accounts import AdminAccountRoutes
from brewos_relay.api.admin_devices import AdminDeviceRoutes
from brewos_relay.api.admin_instances import AdminInstanceRoutes, SurveyInstances, no_instances
from brewos_relay.api.app_cookie import AppAuthenticator
from brewos_relay.api.authentication import Authenticator, current_caller, store_caller
from brewos_relay.api.browser_security import CrossSiteCheck, SecurityHeaders
from brewos_relay.api.code_sign_in import CodeSignInRoutes
from brewos_relay.api.console_pages import FindCa, console_blueprint, no_ca
from brewos_relay.api.content_codings import CompressedContents
from brewos_relay.api.device_access import DeviceIdConverter
from brewos_relay.api.device_logs import LogRoutes
from brewos_relay.api.device_users import DeviceUserRoutes
from brewos_relay.api.devices import LISTED_AT_MOST, DeviceRoutes
from brewos_relay.api.error_handlers import ErrorHandlers
from brewos_relay.api.firmware import FindReleases, FirmwareRoutes, no_releases
from brewos_relay.api.identity_calls import ProviderCalls
from brewos_relay.api.login_sessions import LoginSessionRoutes, LoginSessions
from brewos_relay.api.metrics import MetricsPage, metrics_blueprint, store_route
from brewos_relay.api.openapi import openapi_blueprint
from brewos_relay.api.pairing import PairingRoutes
from brewos_relay.api.passwords import PasswordCheck, PasswordRoutes
from brewos_relay.api.payloads import SegmentConverter, is_api_path
from brewos_relay.api.push import PushRoutes
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.api.server_info import Degraded, HealthRoutes, InfoRoutes, Problems
from brewos_relay.api.sharing import SharingRoutes
from brewos_relay.api.shots import ShotRoutes
from brewos_relay.api.sign_in import SignInRoutes
from brewos_relay.api.statistics import StatisticsRoutes
from brewos_relay.api.web import PagePathConverter, web_blueprint
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.networks import network_of
from brewos_relay.protocols import Notifier, Registry, RelayView
from brewos_relay.telemetry.measurements import RequestCounters

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
    request_limits: RequestLimits | None = None,
    problems: Problems | None = None,
    degraded: Degraded = tuple,
    survey: SurveyInstances = no_instances,
    find_releases: FindReleases = no_releases,
    notifier: Notifier | None = None,
    metrics: MetricsPage | None = None,
    local_ca: FindCa = no_ca,
    counters: RequestCounters | None = None,
    lines: LogLineLimits | None = None,
) -> QuartTrio:
    """Make the application that answers all HTTP requests; WebSockets do not reach it.

    - `web_dist_path` is the folder of a built single-page app. None serves the console at /.
    - `allowed_origins` are the origins of other sites whose pages may send requests that change something.
    - `body_bytes` limits request bodies (413).
    - `hsts` sends Strict-Transport-Security. Set it only if browsers trust the certificate.
    - `demo` tells pages that this is a demo, whose link works more than once.
    - `problems` and `degraded` are listed by /readyz.
    - `survey` asks all instances of a cluster.
    - `find_releases` returns the firmware releases.
    - `notifier` sends notifications; None switches them off.
    - `metrics` is the page at /metrics; None for no such page.
    - `local_ca` returns the certificate that users can install, for /ca; None for no such page.
    - `counters` count refused requests by reason.
    - `lines` limits the log lines about failed requests; None for no limit.

    Raises errors.SettingsError if `web_dist_path` holds no app.
    """
    app = _bare_app(body_bytes=body_bytes)
    request_limits = request_limits or RequestLimits()
    authenticator = Authenticator(keys=keys, store=store)
    login_sessions = LoginSessions(store=store, keys=keys, accounts=accounts)
    passwords = PasswordCheck(store=store, request_limits=request_limits)

    _RequestHooks(
        proxy_trust=proxy_trust,
        request_limits=request_limits,
        cross_site=CrossSiteCheck(proxy_trust=proxy_trust, allowed_origins=allowed_origins),
        security_headers=SecurityHeaders(
            google=accounts.google_client_id is not None,
            facebook="facebook" in accounts.verifiers,
            hsts=hsts,
        ),
    ).register(app)
    ErrorHandlers(counters=counters or RequestCounters(), lines=lines).register(app)

    providers = ProviderCalls(lines=lines)
    compressed = CompressedContents()
    app_authenticator = AppAuthenticator(keys=keys, store=store, authenticator=authenticator)
    blueprints = [
        # Devices and their users.
        DeviceRoutes(
            relay=relay,
            store=store,
            authenticator=authenticator,
            # The BrewOS app reads one page and takes it for the whole list.
            listed_at_most=max(LISTED_AT_MOST, accounts.machines_per_account),
        ).blueprint(),
        DeviceUserRoutes(relay=relay, store=store, authenticator=authenticator).blueprint(),
        PairingRoutes(
            store=store, authenticator=authenticator, request_limits=request_limits, accounts=accounts
        ).blueprint(),
        SharingRoutes(
            store=store, authenticator=authenticator, request_limits=request_limits, proxy_trust=proxy_trust
        ).blueprint(),
        LogRoutes(relay=relay, store=store, authenticator=authenticator).blueprint(),
        ActivityRoutes(store=store, authenticator=authenticator).blueprint(),
        PushRoutes(
            store=store,
            authenticator=app_authenticator,
            request_limits=request_limits,
            notifier=notifier,
        ).blueprint(),
        ShotRoutes(relay=relay, store=store, authenticator=authenticator).blueprint(),
        StatisticsRoutes(
            relay=relay, store=store, authenticator=authenticator, app_authenticator=app_authenticator
        ).blueprint(),
        FirmwareRoutes(find_releases=find_releases).blueprint(),
        # Administration of the server.
        AdminAccountRoutes(store=store, authenticator=authenticator, proxy_trust=proxy_trust).blueprint(),
        AdminDeviceRoutes(
            relay=relay, store=store, authenticator=authenticator, rules=accounts.new_devices
        ).blueprint(),
        AdminInstanceRoutes(survey=survey, authenticator=authenticator).blueprint(),
        # Accounts and login sessions.
        NoticeRoutes(store=store, authenticator=authenticator).blueprint(),
        SignInRoutes(
            store=store,
            accounts=accounts,
            login_sessions=login_sessions,
            passwords=passwords,
            request_limits=request_limits,
            providers=providers,
            reusable_links=demo,
        ).blueprint(),
        CodeSignInRoutes(
            store=store,
            keys=keys,
            accounts=accounts,
            login_sessions=login_sessions,
            request_limits=request_limits,
            providers=providers,
        ).blueprint(),
        LoginSessionRoutes(
            store=store,
            accounts=accounts,
            login_sessions=login_sessions,
            authenticator=authenticator,
            request_limits=request_limits,
        ).blueprint(),
        PasswordRoutes(
            store=store,
            accounts=accounts,
            authenticator=authenticator,
            passwords=passwords,
            request_limits=request_limits,
        ).blueprint(),
        # The server itself.
        HealthRoutes(relay=relay, problems=problems, degraded=degraded).blueprint(),
        InfoRoutes(
            accounts=accounts, keys=keys, has_web_app=web_dist_path is not None, demo=demo
        ).blueprint(),
        openapi_blueprint(),
        console_blueprint(compressed, beside_app=web_dist_path is not None, local_ca=local_ca),
    ]
    if metrics is not None:
        blueprints.append(metrics_blueprint(metrics))
    if web_dist_path is not None:
        blueprints.append(web_blueprint(web_dist_path, compressed))
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    return app


def _bare_app(*, body_bytes: int) -> QuartTrio:
    """Make an application without routes."""
    app = QuartTrio(__name__, static_folder=None, template_folder=None)
    app.url_rule_class = _Rule
    # Quart reads `debug` from the environment, and would show tracebacks to every client.
    app.debug = False
    app.config.update(
        PROPAGATE_EXCEPTIONS=False,
        MAX_CONTENT_LENGTH=body_bytes,
        BODY_TIMEOUT=_BODY_S,
        # A large file takes long on a slow line. The HTTP side closes connections that make no progress.
        RESPONSE_TIMEOUT=None,
    )
    # Service workers take a redirect for a failure, so no path is answered with one.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.converters["default"] = SegmentConverter
    app.url_map.converters["page"] = PagePathConverter
    app.url_map.converters["device"] = DeviceIdConverter
    return app


class _Rule(QuartRule):
    """A rule that compiles the function that builds its URL only for a call. The relay builds none.

    For a hundred rules, that took three quarters of the time of making the application.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        compile_builder = super()._compile_builder

        def build(rule: QuartRule, **values: Any) -> tuple[str, str]:
            return compile_builder(append_unknown)(rule, **values)

        return build


@dataclass(frozen=True, kw_only=True)
class _RequestHooks:
    """The checks before each view, and the headers after it."""

    proxy_trust: ProxyTrust
    request_limits: RequestLimits
    cross_site: CrossSiteCheck
    security_headers: SecurityHeaders

    def register(self, app: QuartTrio) -> None:
        app.before_request(self._check_request)
        app.before_request(self._answer_for_server)
        app.after_request(self._add_headers)

    async def _check_request(self) -> None:
        store_caller(request, proxy_trust=self.proxy_trust)
        store_route(request)
        self.request_limits.admit_request(request.path, network_of(current_caller().address))
        self.cross_site.check(request, current_caller())

    async def _answer_for_server(self) -> Response | None:
        """Answer OPTIONS *, which asks about the server as a whole (RFC 9110 §9.3.7)."""
        if request.method == "OPTIONS" and request.scope.get("raw_path") == b"*":
            return Response("", headers={"Allow": _METHODS})
        return None

    async def _add_headers(self, response: Response) -> Response:
        return self.security_headers.complete(
            response,
            part=g.get("part", request.blueprint),
            secure=current_caller().scheme == "https",
            is_api=is_api_path(request.path),
        )
