"""Where a request comes from, as the front door sees it."""

from quart import Request, g

from brewos_relay.auth.caller import Caller, Front


def caller_of(request: Request, *, front: Front) -> Caller:
    """Tell where a request comes from; X-Forwarded-* count only if `front` trusts who sent them."""
    client = request.scope.get("client")
    return front.caller(
        client[0] if client else "",
        request.scheme == "https",
        request.headers.items(),
    )


def note_caller(request: Request, *, front: Front) -> None:
    """Find out where a request comes from, once for everybody who asks."""
    g.caller = caller_of(request, front=front)


def current_caller() -> Caller:
    """Give the caller of the request that is being answered."""
    caller: Caller = g.caller
    return caller
