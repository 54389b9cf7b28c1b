"""Error handlers: the answer for each exception that a view lets out."""

import logging
from dataclasses import dataclass

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from brewos_relay.api.authentication import admin_required, may_log
from brewos_relay.api.device_access import device_not_found, role_too_low
from brewos_relay.api.payloads import Refused, as_sentence, error_answer, is_api_path, token_rejected
from brewos_relay.core.rate_limits import LogLineLimits
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
from brewos_relay.telemetry.measurements import RequestCounters

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ErrorHandlers:
    """Answers for exceptions: JSON under /api, plain text elsewhere.

    `counters` count refusals by their reason. `lines` limits the log lines about failed requests; None for no
    limit.
    """

    counters: RequestCounters
    lines: LogLineLimits | None = None

    def register(self, app: QuartTrio) -> None:
        """Register a handler for each kind of exception."""
        app.register_error_handler(Refused, self._refused)
        app.register_error_handler(TokenRejected, _token_rejected)
        app.register_error_handler(RegistryError, self._registry_failed)
        # The registry raises these if something changed after the view checked it.
        app.register_error_handler(DeviceUnknown, _device_unknown)
        app.register_error_handler(NotAnOwner, _not_an_owner)
        app.register_error_handler(QuotaReached, _quota_reached)
        app.register_error_handler(RoleTooLow, _role_too_low)
        app.register_error_handler(NotAnAdministrator, _not_an_administrator)
        app.register_error_handler(TooManyUnproven, _quota_reached)
        app.register_error_handler(HTTPException, http_exception)

    async def _refused(self, refusal: Refused) -> Response:
        if refusal.reason is not None:
            self.counters.refused[refusal.reason] += 1
        return _refusal_answer(refusal)

    async def _registry_failed(self, problem: RegistryError) -> Response:
        if may_log(self.lines, f"registry, {problem.code}"):
            log.warning("the registry failed a request: %s", problem.code)
        return _no_registry(problem)


def _refusal_answer(refusal: Refused) -> Response:
    if not is_api_path(request.path):
        return Response(
            f"{refusal.problem}\n",
            status=refusal.status,
            headers=refusal.headers,
            content_type="text/plain; charset=utf-8",
        )
    return error_answer(refusal.problem, status=refusal.status, headers=refusal.headers)


async def _token_rejected(problem: TokenRejected) -> Response:
    return token_rejected(problem)


def _no_registry(problem: RegistryError) -> Response:
    text = "The registry is not available at the moment. Try again soon."
    if isinstance(problem, RegistryBusy):
        text = (
            "The registry is busy, and nothing was changed. Try again soon."
            if problem.undone
            else "The registry did not answer in time. The change may have been made: check before you try"
            " again."
        )
    return error_answer(text, status=503, headers={"Retry-After": "5"})


async def _device_unknown(_problem: DeviceUnknown) -> Response:
    return _refusal_answer(device_not_found())


async def _not_an_owner(_problem: NotAnOwner) -> Response:
    return _refusal_answer(role_too_low("owner"))


async def _quota_reached(problem: QuotaReached | TooManyUnproven) -> Response:
    return error_answer(as_sentence(problem), status=409)


async def _role_too_low(problem: RoleTooLow) -> Response:
    return _refusal_answer(role_too_low(problem.at_least))


async def _not_an_administrator(_problem: NotAnAdministrator) -> Response:
    return _refusal_answer(admin_required())


async def http_exception(problem: HTTPException) -> Response:
    """Answer an error of Quart, or a crash of a view: JSON under /api, plain text elsewhere."""
    status = problem.code or 500
    headers = {name: value for name, value in problem.get_headers() if name.lower() != "content-type"}
    # HEAD and GET must have the same Content-Length.
    method = "GET" if request.method == "HEAD" else request.method
    text = f"{problem.name}: {method} {request.path}" if status in {404, 405} else problem.name
    if is_api_path(request.path):
        return error_answer(f"{text}.", status=status, headers=headers)
    return Response(
        f"{problem.name}\n", status=status, headers=headers, content_type="text/plain; charset=utf-8"
    )
