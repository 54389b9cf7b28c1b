"""Where a request comes from, as the front door sees it, and how many lines it may have in the log."""

from quart import Request, g

from brewos_relay.auth.caller import Caller, ProxyTrust
from brewos_relay.core.rate_limits import LineLimits
from brewos_relay.networks import network_of


def caller_of(request: Request, *, proxy_trust: ProxyTrust) -> Caller:
    """Tell where a request comes from; X-Forwarded-* count only if `proxy_trust` trusts who sent them."""
    client = request.scope.get("client")
    return proxy_trust.caller(
        client[0] if client else "",
        request.scheme == "https",
        request.headers.items(),
    )


def note_caller(request: Request, *, proxy_trust: ProxyTrust) -> None:
    """Find out where a request comes from, once for everybody who asks."""
    g.caller = caller_of(request, proxy_trust=proxy_trust)


def current_caller() -> Caller:
    """Give the caller of the request that is being answered."""
    caller: Caller = g.caller
    return caller


def may_log(lines: LineLimits | None, cause: str) -> bool:
    """Tell whether a line about the request may be logged; otherwise it is counted. None is no limit."""
    return lines is None or lines.admit(cause, network_of(current_caller().address))
