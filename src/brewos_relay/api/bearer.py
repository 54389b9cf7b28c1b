"""Who asks: the bearer token of a request (RFC 6750)."""

from quart import Request

from brewos_relay.api.needs import TokenClaims, TokenVerifier
from brewos_relay.errors import TokenRejected


def bearer_claims(request: Request, *, tokens: TokenVerifier) -> TokenClaims:
    """Read the claims of the request's token. Raises TokenRejected, also if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise TokenRejected("a token is needed: send 'Authorization: Bearer <token>'")
    return tokens.verify(token)
